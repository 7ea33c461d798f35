"""Scores of saliency maps. A metric is a function `metric(model, images, target, maps, **options) -> (N,)`.

`images` (N, 3, H, W) in [0, 1]; `target` (N,) class indices or None (the predicted class); `maps` (N, H, W) or (N, 1,
H, W), a tensor or a NumPy array of any library (`images.as_maps`), raw, finite (ValueError naming the images, as for
logits that are not). None of them is written into, `model` is left as it was, and threads may share it. What asks the
model takes a `score`, by default the softmax probability (`networks.SCORES`). The result is float on the CPU, one value
per image, NaN where the image has no score. `METRICS` holds a record of each: which direction is better, what it needs,
what was measured; means and intervals are made in `statistics` only.
"""

from xai_utils.metrics.complexity import mean_intensity
from xai_utils.metrics.confidence import average_drop, percent_increase, percentage_in
from xai_utils.metrics.grid_pointing import grid_pointing
from xai_utils.metrics.imputation import road
from xai_utils.metrics.infidelity import infidelity
from xai_utils.metrics.localisation import box_average_precision, pointing_game
from xai_utils.metrics.part_truth import part_truth, part_truth_top
from xai_utils.metrics.perturbation import deletion, faithfulness, insertion
from xai_utils.metrics.registry import METRICS, Metric, metric, metrics_of

__all__ = [
    "METRICS",
    "Metric",
    "average_drop",
    "box_average_precision",
    "deletion",
    "faithfulness",
    "grid_pointing",
    "infidelity",
    "insertion",
    "mean_intensity",
    "metric",
    "metrics_of",
    "part_truth",
    "part_truth_top",
    "percent_increase",
    "percentage_in",
    "pointing_game",
    "road",
]
