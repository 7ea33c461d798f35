"""Explainers: functions `method(model, images, target, **options) -> maps`.

model    a `Target`, or any module that takes the images and returns logits (N, K): by themselves, as `.logits`, or
         first in a tuple (`networks.unpacked`); it is explained as in eval mode and left exactly as it was, also after
         an exception; threads may share it
images   (N, 3, H, W) float in [0, 1]; never written into, even by a model that normalises its input in place
target   (N,) class indices, whole numbers of any width; None is the class that the model predicts; one int serves all
maps     (N, H, W) float32, raw, finite, on the images' device, without graph; higher is more salient; float32 also of
         a model in half precision and under autocast

Answers of the model that are NaN or infinite are a ValueError that names the images. One logit per image means two
classes, and is refused until a `score` says so: "sigmoid" (or "logit"). `explain`, `explain_many` and each record take
it for every method; the functions have it where they score classes instead of differentiating their logit.

Random methods take a `generator` (None is torch's global one), heavy ones a `chunk` that bounds memory and cannot
change the result. `EXPLAINERS` holds a record of each (records.py).
"""

from xai_utils.explainers.cam import cam_maps
from xai_utils.explainers.gradients import NotApplicable
from xai_utils.explainers.records import Explainer, Option, Part
from xai_utils.explainers.registry import (
    CONTROLS,
    EXPLAINERS,
    check_options,
    check_rows,
    explain,
    explain_many,
    explainer,
    method_of,
    named_layers,
    passes,
    rows_of,
    signed_rows,
)

__all__ = [
    "CONTROLS",
    "EXPLAINERS",
    "Explainer",
    "NotApplicable",
    "Option",
    "Part",
    "cam_maps",
    "check_options",
    "check_rows",
    "explain",
    "explain_many",
    "explainer",
    "method_of",
    "named_layers",
    "passes",
    "rows_of",
    "signed_rows",
]
