"""All metrics by name. To add one: write its function, and a record here."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from xai_utils.metrics.complexity import mean_intensity
from xai_utils.metrics.confidence import average_drop, percent_increase, percentage_in
from xai_utils.metrics.grid_pointing import grid_pointing
from xai_utils.metrics.imputation import road
from xai_utils.metrics.infidelity import infidelity
from xai_utils.metrics.localisation import box_average_precision, pointing_game
from xai_utils.metrics.part_truth import part_truth, part_truth_top
from xai_utils.metrics.perturbation import (
    CURVES,
    area_under_curve,
    deletion,
    faithfulness,
    faithfulness_score,
    insertion,
)

GROUPS = ("truth", "perturbation", "localisation", "sparsity", "")  # of metrics, in the order of tables
GROUP_OF = {  # by what a metric needs
    "part_masks": "truth",
    "cell_masks": "truth",
    "model": "perturbation",
    "falls": "perturbation",
    "masks": "localisation",
    "maps": "sparsity",
}
GIVEN = (
    "masks",
    "part_masks",
    "cell_masks",
    "falls",
    "chunk",
)  # keywords that whoever scores gives: no part of what is measured


class Metric(NamedTuple):
    """One column of a table of methods."""

    label: str  # "{percent:g}" in it is the option of that name: `heading` fills it in
    higher_is_better: bool | None  # None: neither
    needs: str  # "model" (forward passes), "falls" (passes whatever the map), "maps" (no more), "masks" (of objects),
    # "part_masks" (drawn parts), or "cell_masks": the maps are not of the images, but of mosaics that explain them
    unit: str
    measures: str  # in words, without the settings
    function: Callable  # the second paragraph of its docstring is the formula
    paper: str = ""  # and year, as `papers.LINKS` has it; what the number is there, after a comma
    curve: str | None = None  # the curve of `perturbation.CURVES` that it is a number of
    curve_score: Callable | None = None  # that curve (N, points) -> (N,), so that metrics can share curves
    by_category: bool = False  # the paper averages over categories first
    hit: float | None = None  # the score of a hit, where an image is a hit or scores 0: its share has an exact interval

    @property
    def group(self) -> str:
        """Which of `GROUPS` it belongs to."""
        return GROUP_OF[self.needs]

    @property
    def options(self) -> dict:
        """What can be set of the metric: keyword -> default. Those of its curve belong to the curve."""
        parameters = inspect.signature(self.function).parameters.values()
        keywords = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        of_curve = inspect.signature(CURVES[self.curve]).parameters if self.curve else ()
        return {name: default for name, default in keywords.items() if name not in (*GIVEN, *of_curve)}

    def heading(self, options=None) -> str:
        """The label, with these options of the metric."""
        return self.label.format(**self.options | (options or {}))

    def protocol(self, size, *, curve=None, options=None) -> str:
        """What is measured on images of `size` (H, W) with these options of the curve and of the metric, in words."""
        said = [self.measures]
        if self.curve:
            made, pixels = CURVES[self.curve](size, **(curve or {})), size[0] * size[1]
            said += [f"baseline {made.baseline}", f"score {made.score}"]
            said.append(f"{len(made.counts)} points, {made.counts[1]} of {pixels} pixels a step")
        for name, value in (self.options | (options or {})).items():
            if value is not None:
                parts = value if isinstance(value, list | tuple) else [value]
                told = ", ".join(part if isinstance(part, str) else format(part, "g") for part in parts)
                said.append(f"{name.replace('_', ' ')} {told}")
        return "; ".join(said)


METRICS = {
    "insertion": Metric(
        label="Insertion",
        higher_is_better=True,
        needs="model",
        unit="area, 0 to 1",
        measures="probability while the most salient pixels return to the baseline",
        paper="Petsiuk et al. 2018",
        function=insertion,
        curve="insertion",
        curve_score=area_under_curve,
    ),
    "deletion": Metric(
        label="Deletion",
        higher_is_better=False,
        needs="model",
        unit="area, 0 to 1",
        measures="probability while the most salient pixels become the baseline",
        paper="Petsiuk et al. 2018",
        function=deletion,
        curve="deletion",
        curve_score=area_under_curve,
    ),
    "faithfulness": Metric(
        label="Faithfulness M_F",
        higher_is_better=True,
        needs="model",
        unit="percent",
        measures="mean probability with the most salient pixels on the baseline, over the whole gap",
        paper="DGLE, eq. 8",
        function=faithfulness,
        curve="faithfulness",
        curve_score=faithfulness_score,
    ),
    "faithfulness_offset": Metric(
        label="M_F, offset",
        higher_is_better=True,
        needs="model",
        unit="percent",
        measures="as M_F, with the probability of the baseline taken off above the bar as well",
        paper="DGLE, eq. 8",
        function=partial(faithfulness, variant="offset"),
        curve="faithfulness",
        curve_score=partial(faithfulness_score, variant="offset"),
    ),
    "road": Metric(
        label="ROAD",
        higher_is_better=True,
        needs="model",
        unit="-1 to 1",
        measures="probability without the least salient pixels, less that without the most salient, which are imputed "
        "from their neighbours",
        paper="Rong et al. 2022",
        function=road,
    ),
    "infidelity": Metric(
        label="Infidelity",
        higher_is_better=False,
        needs="falls",
        unit="squared probability",
        measures="squared error of the map's sum in a square, best scaled, as the fall of the probability without it",
        paper="Yeh et al. 2019, eq. 1",
        function=infidelity,
    ),
    "average_drop": Metric(
        label="Average drop",
        higher_is_better=False,
        needs="model",
        unit="percent",
        measures="how much of its probability the class loses when the image fades by the map",
        paper="An & Joe 2022 (AMG), eq. 8",
        function=average_drop,
    ),
    "percent_increase": Metric(
        label="Increase",
        higher_is_better=True,
        needs="model",
        unit="percent",
        measures="share of images whose class gains probability when the image fades by the map",
        paper="An & Joe 2022 (AMG), eq. 9",
        function=percent_increase,
        hit=100,
    ),
    "percentage_in": Metric(
        label="Percentage in, {percent:g} %",
        higher_is_better=True,
        needs="model",
        unit="0 to 1",
        measures="what the network says of the most salient pixels alone",
        paper="An & Joe 2022 (AMG), Table 4",
        function=percentage_in,
    ),
    "box_average_precision": Metric(
        label="Explainability M_I",
        higher_is_better=True,
        needs="masks",
        unit="percent",
        measures="average precision of the pixel ranking against the boxes of the object",
        paper="DGLE, eq. 9",
        function=box_average_precision,
    ),
    "pointing_game": Metric(
        label="Pointing game",
        higher_is_better=True,
        needs="masks",
        unit="share of hits",
        measures="first maximum of the map inside a box of the object; a constant map misses",
        paper="Zhang et al. 2016",
        function=pointing_game,
        by_category=True,
        hit=1,
    ),
    "part_truth": Metric(
        label="Part truth",
        higher_is_better=True,
        needs="part_masks",
        unit="0 to 1",
        measures="share of the map's mass, above its minimum, on the parts that decide",
        paper="Arras et al. 2022, mass accuracy",
        function=part_truth,
    ),
    "part_truth_top": Metric(
        label="Part truth, top",
        higher_is_better=True,
        needs="part_masks",
        unit="0 to 1",
        measures="as part truth, of as many of the map's top pixels as those parts have",
        paper="Arras et al. 2022, rank accuracy",
        function=part_truth_top,
    ),
    "grid_pointing": Metric(
        label="Grid pointing",
        higher_is_better=True,
        needs="cell_masks",
        unit="0 to 1",
        measures="share of the map's mass, in a mosaic of images of several classes, on that of the explained class",
        paper="Rao et al. 2022",
        function=grid_pointing,
    ),
    "mean_intensity": Metric(
        label="Mean intensity",
        higher_is_better=None,
        needs="maps",
        unit="0 to 1",
        measures="mean of the map stretched to [0, 1]",
        paper="Lee & Kim 2021 (AKD), Table 3",
        function=mean_intensity,
    ),
}


def metric(name):
    """The `Metric` called `name`; ValueError listing the names."""
    if not isinstance(name, str) or name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown; choose among {', '.join(METRICS)}")
    return METRICS[name]


def metrics_of(names) -> list[str]:
    """The metrics that are asked for: `names`, or "all"; ValueError for an unknown one."""
    names = list(METRICS) if names == "all" else list(names)
    for name in names:
        metric(name)
    return names
