"""AMG in every way that its text leaves open: three objectives and two inputs of the gates, beside Grad-CAM.

The gates are trained with several seeds, for what one training is better at another may be worse at.
"""

from contextlib import suppress
from itertools import product

import numpy as np
import pandas
import torch

from xai_utils import datasets
from xai_utils.evaluation.scores import score_methods
from xai_utils.explainers.attention_gate import amg
from xai_utils.explainers.cam import grad_cam
from xai_utils.images import rank_correlation
from xai_utils.metrics import METRICS
from xai_utils.metrics.part_truth import deciding_parts
from xai_utils.metrics.statistics import FAILS, HOLDS, decide, holm, paired_test
from xai_utils.networks import NotApplicable, cam_layer, last_convolution, targets
from xai_utils.networks.attention_gate import GATE_INPUTS, OBJECTIVES
from xai_utils.papers.amg import BATCH, HELD
from xai_utils.training.gate import fit_gate
from xai_utils.training.target import fit_target

SCORED = ("average_drop", "percent_increase", "percentage_in", "box_average_precision", "part_truth")
CORRELATION = "rank correlation"
MARKS = {HOLDS: " ▲", FAILS: " ▼"}


def fit_variants(settings: dict, *, seeds: int, **options) -> dict:
    """(objective, gate_input) -> gates, one for each of `seeds` trainings; one of "none", which has nothing to train.

    `settings` and `options` as of `training.gate.fit_gate`; training s begins at the settings' seed + s. They are
    scored afterwards, not after each epoch.
    """
    found = {}
    for objective, gate_input in product(OBJECTIVES, GATE_INPUTS):
        chosen = settings | {"objective": objective, "gate_input": gate_input, "validate": False}
        count = 1 if objective == "none" else seeds
        found[objective, gate_input] = [
            fit_gate(chosen | {"seed": settings["seed"] + place}, **options)[0] for place in range(count)
        ]
    return found


def fit_stage(settings: dict, *, compute, checkpoint_steps=None, log=None):
    """All trainings of the stage train_attention, as its notebook asks for them: it then finds them finished.

    `settings`: data, target (folders) and the stage's parameters. Black boxes, a gate for each layer, the variants.
    """
    options = {"compute": compute, "log": log}
    shared = {name: settings[name] for name in ("data", "seed")}
    target, data = targets.load(settings["target"]), datasets.load(settings["data"])
    for name in settings["networks"]:
        if name != target.architecture:
            chosen = settings["network"] | shared | {"target": name}
            fit_target(chosen, checkpoint_steps=checkpoint_steps, **options)
    probe, gate = data.validation.tensor([0]), settings["gate"]
    base = gate | shared | {name: settings[name] for name in ("target", "intensity_weight", "reduction")}
    layers = [cam_layer(target, probe)]
    with suppress(NotApplicable):
        layers.append(last_convolution(target, probe))
    if gate["epochs"]:
        for layer in layers:
            chosen = base | {name: settings[name] for name in ("objective", "gate_input")} | {"layer": layer}
            fit_gate(chosen, checkpoint_steps=checkpoint_steps, **options)
        if settings["variants"]:
            fit_variants(base | {"layer": layers[0]}, seeds=settings["variants"], **options)


def scores_of(model, images, target, gates: dict, *, layer, part_masks=None, **given) -> dict[str, pandas.DataFrame]:
    """Of "grad_cam" and each variant: rows trainings and images, columns SCORED and the rank correlation with Grad-CAM.

    `gates` of `layer` from `fit_variants`, on the model's device; `given` (masks, chunk) and `part_masks` as of
    `scores.score_batch`. What has no score on any image is left out, as part truth is without part masks.
    """
    named = [("grad_cam", 0, None)]
    for variant, trained in gates.items():
        named += [(", ".join(variant), place, gate) for place, gate in enumerate(trained)]
    maps = {}
    for number, (_, _, gate) in enumerate(named):
        explain, options = (grad_cam, {"layer": layer}) if gate is None else (amg, {"gate": gate})
        parts = zip(images.split(BATCH), target.split(BATCH), strict=True)
        maps[number] = torch.cat([explain(model, *part, **options) for part in parts]).cpu()
    metrics = [name for name in SCORED if name != "part_truth" or part_masks is not None]
    frame = score_methods(model, images, target, maps, metrics=metrics, part_masks=part_masks, **given)
    frame[CORRELATION] = torch.cat([rank_correlation(each, maps[0]) for each in maps.values()]).numpy()
    frame = frame.join(pandas.DataFrame([each[:2] for each in named], columns=["variant", "training"]), on="method")
    frame = frame.set_index(["variant", "training", "image"])[[*metrics, CORRELATION]].dropna(axis=1, how="all")
    return {name: part.droplevel("variant") for name, part in frame.groupby(level="variant", sort=False)}


def held_out_scores(model, data, indices, target, gates: dict, *, layer) -> dict[str, pandas.DataFrame]:
    """`scores_of` the held-out images `indices` (N,) of `Data` and their classes (N,), with boxes and deciding parts.

    HELD images at a time, so that memory does not grow with N. The classes are on the model's device.
    """
    split, found = data.validation, {}
    for begun in range(0, len(indices), HELD):
        places, classes = indices[begun : begun + HELD], target[begun : begun + HELD]
        masks = {"masks": split.box_masks(places)}
        if data.catalogue is not None:
            masks["part_masks"] = deciding_parts(model, data, "validation", places, classes, device=target.device).masks
        images = split.tensor(places, target.device)
        for name, frame in scores_of(model, images, classes, gates, layer=layer, **masks).items():
            frame = frame.rename(index=lambda image, begun=begun: begun + image, level="image")
            found.setdefault(name, []).append(frame)
    joined = {name: pandas.concat(frames).sort_index() for name, frames in found.items()}
    return {name: frame[[each for each in (*SCORED, CORRELATION) if each in frame]] for name, frame in joined.items()}


def compared(scored: dict, *, seed, **intervals) -> pandas.DataFrame:
    """Rows variants, columns as of `scores_of`: mean [interval]; ▲ better, ▼ worse than Grad-CAM.

    The interval resamples trainings and images. A mark needs three trainings, or fixed gates, and a paired test over
    trainings and images at 5 %, after Holm's correction for all of the table, that its interval agrees with
    (`statistics.decide`).
    """
    rows, tests = {}, {}
    for name, frame in scored.items():
        rows[name] = {}
        for column in frame:
            if (name, column) == ("grad_cam", CORRELATION):
                rows[name][column] = "1"
                continue
            own, plain = (each[column].unstack("image").to_numpy() for each in (frame, scored["grad_cam"]))
            plain = np.broadcast_to(plain, own.shape)
            digits = 3 if column == CORRELATION or METRICS[column].unit != "percent" else 1
            about = paired_test(own, 0 * plain, seed=seed, **intervals)
            text = "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*(about[k] for k in ("difference", "low", "high")), d=digits)
            head = column if column == CORRELATION else METRICS[column].heading()
            if column != CORRELATION and name != "grad_cam" and (len(own) >= 3 or name.startswith("none")):
                sign = 1 if METRICS[column].higher_is_better else -1
                tests[name, head] = paired_test(sign * own, sign * plain, seed=seed, **intervals)
            rows[name][head] = text
        rows[name]["trainings"] = frame.index.get_level_values("training").nunique()
    for (name, head), p in zip(tests, holm([test["p"] for test in tests.values()]), strict=True):
        rows[name][head] += MARKS.get(decide(tests[name, head] | {"p": p}), "")
    return pandas.DataFrame.from_dict(rows, orient="index")


def in_words(table: pandas.DataFrame) -> str:
    """Which variant of `compared`, if any, is better than Grad-CAM, and at what."""
    told = []
    for name, row in table.drop(index="grad_cam").iterrows():
        better, worse = ([head for head, text in row.items() if str(text).endswith(mark)] for mark in MARKS.values())
        if better:
            told.append(f"{name}: better in {', '.join(better)}" + (f", worse in {', '.join(worse)}" if worse else ""))
    return "Better than Grad-CAM: " + "; ".join(told) if told else "No variant is better than Grad-CAM in any column."
