"""AKD's Figures 2 to 4, drawn from the modules themselves: names, output shapes and parameters as they are."""

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from xai_utils.plots import STYLE

WIDTH, HEIGHT = 1.7, 0.72  # of a box
COLOURS = {"data": "#f2f2f2", "frozen": "#dbe7f3", "trained": "#fbe3c8", "attention": "#f6c9c9", "loss": "#e3f0dc"}


def _shapes(model, images):
    """The name of each module -> the shape of its output without the batch, of one pass in eval mode."""
    found = {}

    def noted(name):
        def note(_, __, output):
            output = output[0] if isinstance(output, tuple) else output  # a block's features, before its Δ
            found[name] = tuple(output.shape[1:])

        return note

    handles = [module.register_forward_hook(noted(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _sized(shape):
    return " × ".join(map(str, shape))


def _parameters(module):
    return f"{sum(weights.numel() for weights in module.parameters()):,} parameters"


def _diagram(boxes, arrows):
    """`boxes`: name -> (column, row from the top, kind, lines of text); `arrows`: (from, to, label)."""
    columns, rows = (1 + max(box[axis] for box in boxes.values()) for axis in (0, 1))
    with rc_context(STYLE):
        figure = Figure(figsize=(2.3 * columns, 1.15 * rows))
        axis = figure.add_subplot()
        axis.set(xlim=(-0.1, 2.3 * columns - 0.4), ylim=(-1.15 * rows + 0.3, 0.85), aspect="equal")
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
            axis.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.07, label, ha="center", fontsize=6.5)
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


def student(surrogate, images) -> Figure:
    """Figure 3: the student's stages, how many attention modules each has, and the Δ that leave them."""
    shapes, found = _shapes(surrogate, images[:1]), surrogate.student
    boxes = {"x": (0, 0, "data", ["image", _sized(images.shape[1:])])}
    boxes["stem"] = (1, 0, "trained", ["stem, layer1", _sized(shapes["student.stem"])])
    arrows, before = [("x", "stem", "")], "stem"
    for number, stage in enumerate(found.stages):
        name, last = f"layer{number + 2}", len(stage) - 1
        kind = type(stage[0].block).__name__
        lines = [f"{name}: {len(stage)} × {kind}", _sized(shapes[f"student.stages.{number}.{last}"])]
        boxes[name] = (number + 2, 0, "trained", lines)
        gates = f"{len(stage)} × {type(stage[0].attention).__name__}"
        delta = _sized(shapes[f"student.stages.{number}.{last}.attention"])
        boxes[f"{name} attention"] = (number + 2, 1, "attention", [gates, "before the addition", f"Δ: {delta}"])
        arrows += [(before, name, ""), (name, f"{name} attention", "")]
        before = name
    boxes["head"] = (5, 0, "trained", ["pooling, fc", _sized(shapes["student.head"])])
    return _diagram(boxes, [*arrows, (before, "head", "")])


def explanation_network(surrogate, images) -> Figure:
    """Figure 4: the upsample blocks, the Δ that join them, and the head."""
    shapes, found = _shapes(surrogate, images[:1]), surrogate.explanation
    fine, middle, coarse = (
        _sized(shapes[f"student.stages.{number}.{len(stage) - 1}.attention"])
        for number, stage in enumerate(surrogate.student.stages)
    )
    boxes, arrows = {}, []
    for number, (delta, block) in enumerate(zip((coarse, middle, fine), found.blocks, strict=True)):
        convolution = block[0]
        name = f"U{number + 1}"
        lines = [f"{name}: 3×3 {convolution.in_channels} → {convolution.out_channels}, BN, ReLU", "bilinear ×2"]
        boxes[f"delta {number}"] = (number, 0, "attention", [f"Δ of layer{4 - number}", delta])
        boxes[name] = (number, 1, "trained", [lines[0].split(": ")[0], *lines[0].split(": ")[1:], lines[1]])
        arrows.append((f"delta {number}", name, ""))
        if number:
            arrows.append((f"U{number}", name, "⊕"))
    head = [f"1×1 {found.head.in_channels} → 1", "bilinear, sigmoid", _sized(images.shape[2:])]
    boxes["head"] = (3, 1, "trained", head)
    return _diagram(boxes, [*arrows, ("U3", "head", "")])
