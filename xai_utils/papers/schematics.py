"""AKD's Figures 2 to 4, DGLE's 1 (b), AMG's 1 to 5 and an effect predictor, drawn from the modules.

With their names, shapes, parameters.
"""

from typing import NamedTuple

import pandas
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from xai_utils.networks import captured, encoded, find_layer
from xai_utils.networks.layers import observed
from xai_utils.networks.layouts import tensor_of
from xai_utils.networks.probe import layout_of
from xai_utils.networks.students import StagedStudent
from xai_utils.plots import STYLE

WIDTH, HEIGHT = 1.7, 0.72  # of a box
COLOURS = {"data": "#f2f2f2", "frozen": "#dbe7f3", "trained": "#fbe3c8", "attention": "#f6c9c9", "loss": "#e3f0dc"}


def _shapes(model, *inputs):
    """The name of each module -> the shape of its output without the batch, of one pass in eval mode."""
    found = {}

    def note(name, _, output):
        if (tensor := tensor_of(output)) is not None:  # of several, a block's features before its Δ
            found[name] = tuple(tensor.shape[1:])

    with observed(model, note), torch.no_grad():
        model(*inputs)
    return found


def layers(model, *inputs, depth=3) -> pandas.DataFrame:
    """The parts of a network as built, in the order of a pass of `inputs`: kind, shape of the output, parameters.

    Names of up to `depth` words; a part whose own parts are shown is left out.
    """
    shapes = {name: shape for name, shape in _shapes(model, *inputs).items() if len(name.split(".")) <= depth}
    rows = {
        name: {
            "kind": type(module := find_layer(model, name)).__name__,
            "output": _sized(shape),
            "parameters": f"{sum(weights.numel() for weights in module.parameters()):,}",
        }
        for name, shape in shapes.items()
        if name and not any(other.startswith(f"{name}.") for other in shapes)
    }
    return pandas.DataFrame.from_dict(rows, orient="index")


def _sized(shape):
    return " × ".join(map(str, shape))


def _parameters(module):
    return f"{sum(weights.numel() for weights in module.parameters()):,} parameters"


def _diagram(boxes, arrows):
    """`boxes`: name -> (column, row from the top, kind, lines of text); `arrows`: (from, to, label)."""
    columns, rows = (1 + max(box[axis] for box in boxes.values()) for axis in (0, 1))
    with rc_context(STYLE):
        figure = Figure(figsize=(2.3 * columns - 0.4, 1.15 * rows - 0.23))  # nothing but the boxes
        axis = figure.add_subplot()
        axis.set(xlim=(-0.1, 2.3 * columns - 0.5), ylim=(0.97 - 1.15 * rows, 0.82), aspect="equal")
        axis.axis("off")
        centres = {}
        for name, (column, row, kind, lines) in boxes.items():
            x, y = 2.3 * column, -1.15 * row
            centres[name] = x + WIDTH / 2, y + HEIGHT / 2
            shape = FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.04", facecolor=COLOURS[kind], lw=0.8)
            axis.add_patch(shape)
            axis.text(*centres[name], "\n".join(lines), ha="center", va="center", fontsize=6.5)
        for start, end, label in arrows:
            (x0, y0), (x1, y1) = centres[start], centres[end]
            sideways = abs(x1 - x0) > 0.1
            step = (WIDTH / 2 + 0.05) * (1 if x1 > x0 else -1) if sideways else 0
            drop = 0 if sideways else (HEIGHT / 2 + 0.05) * (1 if y1 > y0 else -1)
            ends = {"xy": (x1 - step, y1 - drop), "xytext": (x0 + step, y0 + drop)}
            axis.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "lw": 0.8, "shrinkA": 0, "shrinkB": 0})
            aside = {"ha": "center", "va": "bottom"} if sideways else {"ha": "left", "va": "center"}
            axis.text(
                (x0 + x1) / 2 + 0.07 * (not sideways), (y0 + y1) / 2 + 0.07 * sideways, label, fontsize=6.5, **aside
            )
    return figure


def overview(target, surrogate, images) -> Figure:
    """Figure 2: target, student and explanation network, what they pass on, and what is minimised."""
    size = _sized(images.shape[1:])
    boxes = {
        "x": (0, 1, "data", ["image x", size]),
        "T": (1, 0, "frozen", [f"T: {target.architecture}", "frozen", _parameters(target)]),
        "S": (
            1,
            1,
            "trained",
            [f"S: {surrogate.architecture} + {surrogate.attention}", _parameters(surrogate.student)],
        ),
        "kd": (2, 0, "loss", ["α t² KL(T ‖ S)", "+ (1 − α) CE(S, label)"]),
        "E": (2, 1, "trained", ["E, from three Δ of S", _parameters(surrogate.explanation)]),
        "H": (3, 1, "data", ["map H", _sized(images.shape[2:])]),
        "xH": (3, 2, "data", ["x ⊙ H", size]),
        "T2": (2, 2, "frozen", ["T, the same", "frozen"]),
        "exp": (1, 2, "loss", ["KL(T(x) ‖ T(x ⊙ H))", "+ λ Σ H"]),
    }
    arrows = [("x", "T", ""), ("x", "S", ""), ("T", "kd", ""), ("S", "kd", ""), ("S", "E", "")]
    arrows += [("E", "H", ""), ("H", "xH", ""), ("xH", "T2", ""), ("T2", "exp", "")]
    return _diagram(boxes, arrows)


class _Stage(NamedTuple):
    """What is drawn of one stage of a student; `layer`, `gate`: the modules whose shapes are the features' and Δ's."""

    name: str
    blocks: str
    layer: str
    gates: str
    gate: str


def _stages(student):
    """The stages of either kind of student: gates in each block, or one behind the stage."""
    if isinstance(student, StagedStudent):
        found = zip(student.stages, student.attention, strict=True)
        return [
            _Stage(stage.layer, stage.layer, f"student.network.{stage.layer}", f"{type(gate).__name__}\nbehind it",
                   f"student.attention.{number}")
            for number, (stage, gate) in enumerate(found)
        ]  # fmt: skip
    found = []
    for number, stage in enumerate(student.stages):
        name, last = f"layer{number + 2}", f"student.stages.{number}.{len(stage) - 1}"
        blocks = f"{name}: {len(stage)} × {type(stage[0].block).__name__}"
        gates = f"{len(stage)} × {type(stage[0].attention).__name__}\nbefore the addition"
        found.append(_Stage(name, blocks, last, gates, f"{last}.attention"))
    return found


def student(surrogate, images) -> Figure:
    """Figure 3: the student's stages, how many attention modules each has, and the Δ that leave them."""
    shapes, found = _shapes(surrogate, images[:1]), surrogate.student
    boxes, arrows = {"x": (0, 0, "data", ["image", _sized(images.shape[1:])])}, []
    if "student.stem" in shapes:
        boxes["stem"] = (1, 0, "trained", ["stem, layer1", _sized(shapes["student.stem"])])
        arrows = [("x", "stem", "")]
    before, column = list(boxes)[-1], len(boxes)
    for place, stage in enumerate(_stages(found), column):
        boxes[stage.name] = (place, 0, "trained", [stage.blocks, _sized(shapes[stage.layer])])
        lines = [stage.gates, f"Δ: {_sized(shapes[stage.gate])}"]
        boxes[f"{stage.name} attention"] = (place, 1, "attention", lines)
        arrows += [(before, stage.name, ""), (stage.name, f"{stage.name} attention", "")]
        before = stage.name
    pooled = "pooling, fc" if "student.head" in shapes else "head"
    logits = shapes.get("student.head", (len(surrogate.classes),))
    boxes["head"] = (column + 3, 0, "trained", [pooled, _sized(logits)])
    return _diagram(boxes, [*arrows, (before, "head", "")])


def explanation_network(surrogate, images) -> Figure:
    """Figure 4: the upsample blocks, the Δ that join them, and the head."""
    shapes, found = _shapes(surrogate, images[:1]), surrogate.explanation
    stages = _stages(surrogate.student)[::-1]  # the coarsest first
    deltas = [shapes[stage.gate] for stage in stages]
    boxes, arrows = {}, []
    for number, (stage, delta, block) in enumerate(zip(stages, deltas, found.blocks, strict=True)):
        convolution, name = block[0], f"U{number + 1}"
        larger = number == len(deltas) - 1 or deltas[number + 1][1:] != delta[1:]
        lines = [name, f"3×3 {convolution.in_channels} → {convolution.out_channels}, BN, ReLU"]
        boxes[f"delta {number}"] = (number, 0, "attention", [f"Δ of {stage.name}", _sized(delta)])
        boxes[name] = (number, 1, "trained", [*lines, "bilinear ×2"] if larger else lines)
        arrows.append((f"delta {number}", name, ""))
        if number:
            arrows.append((f"U{number}", name, "⊕"))
    head = [f"1×1 {found.head.in_channels} → 1", "bilinear, sigmoid", _sized(images.shape[2:])]
    boxes["head"] = (3, 1, "trained", head)
    return _diagram(boxes, [*arrows, ("U3", "head", "")])


def distribution_guided(target, predictor, images) -> Figure:
    """DGLE's Figure 1 (b): features, filter, generator, controller, and what the map has to keep."""
    *_, coarsest = (_captured_shape(target, layer, images) for layer in predictor.layers)
    first, last = predictor.layers[0], predictor.layers[-1]
    with torch.no_grad():
        features, logits = encoded(target, images[:1], list(predictor.layers))
        scores = predictor(features, logits.argmax(1))
    size, control = _sized(images.shape[1:]), f"{predictor.controller} controller"
    boxes = {
        "x": (0, 0, "data", ["image x", size]),
        "T": (1, 0, "frozen", [f"{target.architecture}, frozen", f"{first} … {last}"]),
        "filter": (2, 0, "attention", ["filter: X σ(X·E_c)", _sized(coarsest), _parameters(predictor.filter)]),
        "generator": (3, 0, "trained", ["generator", _parameters(predictor.generator)]),
        "controller": (3, 1, "attention", [control, f"map {_sized(scores.shape[1:])}"]),
        "perturbed": (2, 1, "data", ["M ⊙ x + (1 − M) ⊙ hidden", size]),
        "T2": (1, 1, "frozen", ["the same network", "frozen"]),
        "loss": (0, 1, "loss", ["cross-entropy with", "its answer to x"]),
    }
    arrows = [("x", "T", ""), ("T", "filter", ""), ("filter", "generator", ""), ("generator", "controller", "")]
    arrows += [("controller", "perturbed", "bilinear"), ("perturbed", "T2", ""), ("T2", "loss", "")]
    return _diagram(boxes, arrows)


def effect_prediction(target, predictor, images) -> Figure:
    """How an effect predictor learns: what it says of each place, and what hiding places does to the answer."""
    *_, coarsest = (_captured_shape(target, layer, images) for layer in predictor.layers)
    first, last = predictor.layers[0], predictor.layers[-1]
    with torch.no_grad():
        features, logits = encoded(target, images[:1], list(predictor.layers))
        effects = predictor(features, logits.argmax(1))
    size = _sized(images.shape[1:])
    boxes = {
        "x": (0, 0, "data", ["image x", size]),
        "T": (1, 0, "frozen", [f"{target.architecture}, frozen", f"{first} … {last}"]),
        "filter": (2, 0, "trained", ["filter: X σ(X·E_c)", _sized(coarsest), _parameters(predictor.filter)]),
        "generator": (3, 0, "trained", ["generator", _parameters(predictor.generator)]),
        "effects": (3, 1, "data", ["effects φ of class c", _sized(effects.shape[1:])]),
        "loss": (2, 1, "loss", ["squares: Σ φ (2m − 1)", "beside the difference"]),
        "T2": (1, 1, "frozen", ["the same network,", "twice: v_c, v_c"]),
        "hidden": (0, 1, "data", ["x ⊙ m, x ⊙ (1 − m)", "m drawn at random"]),
    }
    arrows = [("x", "T", ""), ("T", "filter", ""), ("filter", "generator", ""), ("generator", "effects", "w_c")]
    arrows += [("effects", "loss", ""), ("x", "hidden", ""), ("hidden", "T2", ""), ("T2", "loss", "")]
    return _diagram(boxes, arrows)


def _captured_shape(target, layer, images):
    layout = layout_of(target, images, layer)
    with torch.no_grad(), captured(target, [layer], reduce=lambda _, output: layout.as_map(output).shape[1:]) as shapes:
        target(images[:1])
    return tuple(shapes[layer])


def attention_guided(target, gate, images) -> Figure:
    """AMG's Figure 1: the target, Grad-CAM's weights of one layer, the gates, and the map."""
    channels, *size = _captured_shape(target, gate.layer, images)
    boxes = {
        "x": (0, 0, "data", ["image x", _sized(images.shape[1:])]),
        "T": (1, 0, "frozen", [f"{target.architecture}", f"to {gate.layer}, frozen"]),
        "A": (2, 0, "data", ["A", _sized((channels, *size))]),
        "head": (3, 0, "frozen", ["head", f"{len(target.classes)} logits"]),
        "W": (3, 1, "data", ["W: mean of ∂y/∂A", str(channels)]),
        "gates": (2, 1, "attention", [f"gates read {gate.gate_input}", _parameters(gate)]),
        "sum": (2, 2, "data", ["relu(g_s ⊙ Σ g_ck W_k A_k)", _sized(size)]),
        "map": (1, 2, "data", ["map", _sized(images.shape[2:])]),
    }
    arrows = [("x", "T", ""), ("T", "A", ""), ("A", "head", ""), ("head", "W", "gradient"), ("A", "gates", "")]
    return _diagram(boxes, [*arrows, ("W", "sum", ""), ("gates", "sum", "g_c, g_s"), ("sum", "map", "bilinear")])


def class_activation(target, layer, images) -> Figure:
    """AMG's Figure 2: a class activation map, the maps of a layer summed by the class's weights."""
    channels, *size = _captured_shape(target, layer, images)
    boxes = {
        "x": (0, 0, "data", ["image x", _sized(images.shape[1:])]),
        "A": (1, 0, "frozen", [f"A of {layer}", _sized((channels, *size))]),
        "pool": (2, 0, "data", ["mean of each map", str(channels)]),
        "y": (3, 0, "frozen", ["w_c · mean + b", f"{len(target.classes)} logits"]),
        "sum": (2, 1, "data", ["Σ w_ck A_k", _sized(size)]),
        "map": (3, 1, "data", ["map of class c", _sized(images.shape[2:])]),
    }
    arrows = [("x", "A", ""), ("A", "pool", ""), ("pool", "y", ""), ("A", "sum", ""), ("y", "sum", "w_c")]
    return _diagram(boxes, [*arrows, ("sum", "map", "bilinear")])


def gradient_weighted(target, layer, images) -> Figure:
    """AMG's Figure 3: Grad-CAM, the same sum by the mean gradient of a class's logit."""
    channels, *size = _captured_shape(target, layer, images)
    boxes = {
        "x": (0, 0, "data", ["image x", _sized(images.shape[1:])]),
        "A": (1, 0, "frozen", [f"A of {layer}", _sized((channels, *size))]),
        "y": (2, 0, "frozen", ["any head", f"logit y of {len(target.classes)}"]),
        "g": (2, 1, "data", ["∂y/∂A", _sized((channels, *size))]),
        "W": (3, 1, "data", ["W: mean over places", str(channels)]),
        "sum": (3, 2, "data", ["relu(Σ W_k A_k)", _sized(size)]),
        "map": (2, 2, "data", ["map of class c", _sized(images.shape[2:])]),
    }
    arrows = [("x", "A", ""), ("A", "y", ""), ("y", "g", "gradient"), ("g", "W", ""), ("W", "sum", "")]
    return _diagram(boxes, [*arrows, ("sum", "map", "bilinear")])


def channel_attention(gate, features) -> Figure:
    """AMG's Figure 4: the channel gate, for one image's `features` (1, C, h, w)."""
    boxes = {"F": (0, 0.5, "data", ["F", _sized(features.shape[1:])])}
    arrows, channels = [], features.shape[1]
    for row, pooling in enumerate(("mean", "maximum")):
        boxes[pooling] = (1, row, "data", [f"{pooling} over places", str(channels)])
        arrows.append(("F", pooling, ""))
    layers = [layer for layer in gate.channel.modules() if isinstance(layer, torch.nn.Linear)]
    if layers:
        widths = " → ".join(str(width) for width in (channels, *(layer.out_features for layer in layers)))
        boxes["mlp"] = (2, 0.5, "attention", [f"shared MLP {widths}", _parameters(gate.channel)])
    else:
        boxes["mlp"] = (2, 0.5, "attention", ["sum, standardised", "nothing to learn"])
    boxes["g"] = (3, 0.5, "attention", ["g_c: σ of their sum", _sized(gate.channel(features).shape[1:])])
    return _diagram(boxes, [*arrows, ("mean", "mlp", ""), ("maximum", "mlp", ""), ("mlp", "g", "")])


def spatial_attention(gate, features) -> Figure:
    """AMG's Figure 5: the spatial gate, behind the channel gate, for one image's `features` (1, C, h, w)."""
    size, arrows = features.shape[2:], []
    boxes = {"F": (0, 0.5, "data", ["g_c ⊙ F", _sized(features.shape[1:])])}
    for row, pooling in enumerate(("maximum", "mean")):
        boxes[pooling] = (1, row, "data", [f"{pooling} over channels", _sized((1, *size))])
        arrows.append(("F", pooling, ""))
    layers = [layer for layer in gate.spatial.modules() if isinstance(layer, torch.nn.Conv2d)]
    if layers:
        kernel = _sized(layers[0].kernel_size)
        boxes["conv"] = (2, 0.5, "attention", [f"{kernel} 2 → 1, batch norm", _parameters(gate.spatial)])
    else:
        boxes["conv"] = (2, 0.5, "attention", ["sum, standardised", "nothing to learn"])
    boxes["g"] = (3, 0.5, "attention", ["g_s: σ", _sized(gate.spatial(features).shape[1:])])
    return _diagram(boxes, [*arrows, ("maximum", "conv", ""), ("mean", "conv", ""), ("conv", "g", "")])
