"""Predicted effects of removal beside what removing does: exact Shapley values, insertion, deletion, the truth."""

from functools import partial

import pandas
import torch

from xai_utils import datasets
from xai_utils.evaluation.scores import score_methods
from xai_utils.explainers.cam import grad_cam
from xai_utils.explainers.controls import random
from xai_utils.explainers.effect_predictor import fast_shap, predicted_values, removal_effect
from xai_utils.explainers.shapley import MOST, grid_values
from xai_utils.metrics import METRICS
from xai_utils.metrics.part_truth import deciding_parts
from xai_utils.metrics.statistics import summary

HELD = 64  # images in memory at once
POINTS = {"pixels_per_step": 1792}  # of a curve: 28
SCORED = ("insertion", "deletion", "part_truth")


def beside_exact(target, split, indices, predictors, *, seed, **intervals) -> pandas.DataFrame:
    """How near predicted Shapley values are to the exact ones of the images `indices` of a `Split`.

    `predictors`: name -> `EffectPredictor` with cells, on one device with `target`; those of more than MOST cells are
    left out, for an exact game has 2^cells passes. A row each: cells, the correlation (Pearson's) of an image's values
    with the exact ones, mean [low, high] over the images, and the mean absolute error beside the exact values' mean.
    """
    device, rows = next(target.parameters()).device, {}
    for name, predictor in predictors.items():
        if not predictor.cells or predictor.cells**2 > MOST:
            continue
        pairs = []
        for some in torch.as_tensor(indices).split(HELD):
            images = split.tensor(some, device)
            exact, _ = grid_values(target, images, cells=predictor.cells)
            pairs.append(torch.stack([predicted_values(target, images, None, predictor).cpu().double(), exact]))
        found, exact = torch.cat(pairs, 1).flatten(2)
        near = torch.nn.functional.cosine_similarity(*(each - each.mean(1, keepdim=True) for each in (found, exact)))
        about = summary(near, seed, **intervals)
        rows[name] = {
            "cells": f"{predictor.cells} × {predictor.cells}",
            "correlation": "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**about),
            "mean error": f"{(found - exact).abs().mean():.4f}",
            "mean exact value": f"{exact.abs().mean():.4f}",
            "images": about["n"],
        }
    return pandas.DataFrame.from_dict(rows, orient="index")


def rows_of(predictors, seed) -> dict:
    """Row -> function (model, images, target): maps of each predictor, also as they are, of Grad-CAM, random ones."""
    found = {}
    for name, predictor in predictors.items():
        found[name] = partial(fast_shap if predictor.cells else removal_effect, predictor=predictor)
        if not predictor.cells:
            found[f"{name}, as it is"] = partial(removal_effect, predictor=predictor, concentration=None)
    return found | {"grad_cam": grad_cam, "random": partial(random, generator=torch.Generator().manual_seed(seed))}


def held_out_scores(target, data: datasets.Data, indices, predictors, *, seed) -> pandas.DataFrame:
    """`score_frame` of SCORED for `rows_of` on held-out images, for the predicted class; HELD images at a time.

    Predictors are on one device with `target`. Part truth for drawn birds alone.
    """
    device, found, rows = next(target.parameters()).device, [], rows_of(predictors, seed)
    for some in torch.as_tensor(indices).split(HELD):
        images = data.validation.tensor(some, device)
        with torch.no_grad():
            classes, masks = target(images).argmax(1), None
        if data.catalogue is not None:
            masks = deciding_parts(target, data, "validation", some, classes, device=device).masks
        maps = {row: explain(target, images, classes).cpu() for row, explain in rows.items()}
        metrics = [name for name in SCORED if name != "part_truth" or masks is not None]
        curves = {"insertion": POINTS, "deletion": POINTS}
        frame = score_methods(target, images, classes, maps, metrics=metrics, part_masks=masks, curves=curves)
        found.append(frame.assign(image=some.numpy()[frame["image"]]))
    return pandas.concat(found, ignore_index=True)


def table(frame, *, seed, **intervals) -> pandas.DataFrame:
    """Rows of a `score_frame` -> mean [low, high] of each metric that has scores, over the images."""
    rows, text = {}, "{mean:.3f} [{low:.3f}, {high:.3f}]"
    metrics = [name for name in SCORED if name in frame and frame[name].notna().any()]
    for row, part in frame.groupby("method", sort=False):
        about = {name: summary(part[name], seed, **intervals) for name in metrics}
        rows[row] = {METRICS[name].heading(): text.format(**numbers) for name, numbers in about.items()}
    return pandas.DataFrame.from_dict(rows, orient="index")
