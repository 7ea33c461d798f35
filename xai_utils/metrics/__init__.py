"""Scores of saliency maps. A metric is a function `metric(model, images, target, maps, **options) -> (N,)`.

`images` (N, 3, H, W) in [0, 1]; `target` (N,) class indices or None (the predicted class); `maps` (N, H, W) raw;
the result is float on the CPU, one value per image, NaN where the image has no score. `METRICS` says for each
metric which direction is better and what is measured; means and intervals are made in `statistics` only.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from xai_utils.metrics.complexity import mean_intensity
from xai_utils.metrics.confidence import average_drop, percent_increase, percentage_in
from xai_utils.metrics.localisation import box_average_precision, pointing_game
from xai_utils.metrics.part_truth import part_truth, part_truth_top
from xai_utils.metrics.perturbation import area_under_curve, deletion, faithfulness, faithfulness_score, insertion


class Metric(NamedTuple):
    """One column of a table of methods."""

    label: str
    higher_is_better: bool | None  # None: neither
    needs: str  # "model" (forward passes), "masks" (annotated objects), "part_masks" (drawn ones) or "maps" (no more)
    unit: str
    protocol: str  # one line, with the defaults
    function: Callable
    curve: str | None = None  # the curve of `perturbation.CURVES` that it is a number of
    curve_score: Callable | None = None  # that curve (N, points) -> (N,), so that metrics can share curves
    by_category: bool = False  # the paper averages over categories first


METRICS = {
    "insertion": Metric(
        label="Insertion",
        higher_is_better=True,
        needs="model",
        unit="area, 0 to 1",
        protocol="probability while the most salient pixels return to RISE's blur, 224 px per step at 224 px",
        function=insertion,
        curve="insertion",
        curve_score=area_under_curve,
    ),
    "deletion": Metric(
        label="Deletion",
        higher_is_better=False,
        needs="model",
        unit="area, 0 to 1",
        protocol="probability while the most salient pixels become the mean colour, 224 px per step at 224 px",
        function=deletion,
        curve="deletion",
        curve_score=area_under_curve,
    ),
    "faithfulness": Metric(
        label="Faithfulness M_F",
        higher_is_better=True,
        needs="model",
        unit="percent",
        protocol="mean probability of the top i/32 pixels on a blur (sigma 10 at 224 px), over the whole gap >= 0.05",
        function=faithfulness,
        curve="faithfulness",
        curve_score=faithfulness_score,
    ),
    "faithfulness_offset": Metric(
        label="M_F, offset",
        higher_is_better=True,
        needs="model",
        unit="percent",
        protocol="as M_F, with the probability of the blurred image taken off above the bar as well",
        function=partial(faithfulness, variant="offset"),
        curve="faithfulness",
        curve_score=partial(faithfulness_score, variant="offset"),
    ),
    "average_drop": Metric(
        label="Average drop",
        higher_is_better=False,
        needs="model",
        unit="percent",
        protocol="how much of its probability the class loses when the image is multiplied by the map, on black",
        function=average_drop,
    ),
    "percent_increase": Metric(
        label="Increase",
        higher_is_better=True,
        needs="model",
        unit="percent",
        protocol="share of images whose class gains probability when the image is multiplied by the map, on black",
        function=percent_increase,
    ),
    "percentage_in": Metric(
        label="Percentage in, 20 %",
        higher_is_better=True,
        needs="model",
        unit="0 to 1",
        protocol="probability of the class when only the 20 % most salient pixels are shown, on black",
        function=percentage_in,
    ),
    "box_average_precision": Metric(
        label="Explainability M_I",
        higher_is_better=True,
        needs="masks",
        unit="percent",
        protocol="average precision of the pixel ranking against the boxes of the object",
        function=box_average_precision,
    ),
    "pointing_game": Metric(
        label="Pointing game",
        higher_is_better=True,
        needs="masks",
        unit="share of hits",
        protocol="first maximum of the map inside a box of the object, tolerance 0 px, a constant map misses",
        function=pointing_game,
        by_category=True,
    ),
    "part_truth": Metric(
        label="Part truth",
        higher_is_better=True,
        needs="part_masks",
        unit="0 to 1",
        protocol="share of the map's mass, above its minimum, on the parts whose change takes half the probability",
        function=part_truth,
    ),
    "part_truth_top": Metric(
        label="Part truth, top",
        higher_is_better=True,
        needs="part_masks",
        unit="0 to 1",
        protocol="as part truth, of as many of the map's top pixels as those parts have",
        function=part_truth_top,
    ),
    "mean_intensity": Metric(
        label="Mean intensity",
        higher_is_better=None,
        needs="maps",
        unit="0 to 1",
        protocol="mean of the map stretched to [0, 1]",
        function=mean_intensity,
    ),
}


def metric(name):
    """The `Metric` called `name`; ValueError listing the names."""
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown; choose among {', '.join(METRICS)}")
    return METRICS[name]
