"""Explainers: functions `method(model, images, target, **options) -> maps`.

model    a `Target`, or any module that takes the images and returns logits (N, K); it is explained as in eval mode
         and left exactly as it was, also after an exception
images   (N, 3, H, W) float in [0, 1]
target   (N,) class indices; None is the class that the model predicts; one int serves all images
maps     (N, H, W) float32, raw, finite, on the images' device, without graph; higher is more salient

Random methods take a `generator` (None is torch's global one), heavy ones a `chunk` that bounds memory and cannot
change the result. To add a method: write the function, name it in `EXPLAINERS`.
"""

import inspect

import torch

from xai_utils.explainers import smoe  # the module, which has a function of its name
from xai_utils.explainers.attention_gate import amg, gate_layer
from xai_utils.explainers.cam import (
    WEIGHTS,
    cam_maps,
    grad_cam,
    grad_cam_plus_plus,
    smooth_grad_cam_plus_plus,
    xgrad_cam,
)
from xai_utils.explainers.controls import centred_gaussian, random, sobel_edges
from xai_utils.explainers.gradients import (
    NotApplicable,
    gradient,
    guided_backprop,
    integrated_gradients,
    smooth_grad,
    smooth_grad_squared,
)
from xai_utils.explainers.mask_predictor import dgle_bf, dgle_cf, mgnet
from xai_utils.explainers.masking import lime, rise
from xai_utils.explainers.optimisation import meaningful_perturbation
from xai_utils.explainers.surrogate import akd, akd_unoptimised
from xai_utils.networks import checked_target

__all__ = [
    "CONTROLS",
    "EXPLAINERS",
    "NotApplicable",
    "cam_maps",
    "check_options",
    "explain",
    "explain_many",
    "method_of",
    "named_layers",
    "smoe",
]

EXPLAINERS = {
    "akd": akd,
    "akd_unoptimised": akd_unoptimised,
    "amg": amg,
    "dgle_bf": dgle_bf,
    "dgle_cf": dgle_cf,
    "mgnet": mgnet,
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "xgrad_cam": xgrad_cam,
    "smooth_grad_cam_plus_plus": smooth_grad_cam_plus_plus,
    "smoe": smoe.smoe,
    "fastcam": smoe.fastcam,
    "non_class": smoe.non_class,
    "gradient": gradient,
    "guided_backprop": guided_backprop,
    "integrated_gradients": integrated_gradients,
    "smooth_grad": smooth_grad,
    "smooth_grad_squared": smooth_grad_squared,
    "rise": rise,
    "lime": lime,
    "meaningful_perturbation": meaningful_perturbation,
    "random": random,
    "sobel_edges": sobel_edges,
    "centred_gaussian": centred_gaussian,
}

CONTROLS = ("random", "sobel_edges", "centred_gaussian")


def _checked_images(images):
    wanted = "give images (N, 3, H, W), float, in [0, 1], not normalised: the target normalises"
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        shape = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images are {shape}; {wanted}")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; {wanted} (uint8 pixels: divide by 255)")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # "not": NaN is refused too
        raise ValueError(f"images reach from {float(low):.4g} to {float(high):.4g}; {wanted}")
    return images


def check_options(method, options):
    """ValueError for an unknown method, or an option that it does not have."""
    if method not in EXPLAINERS:
        raise ValueError(f"method {method!r} is unknown; choose one of {', '.join(EXPLAINERS)}")
    parameters = inspect.signature(EXPLAINERS[method]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{method} has no option {unknown[0]!r}; its options: {', '.join(known) or 'none'}")


def _checked_maps(method, maps):
    broken = (~maps.isfinite()).flatten(1).any(1)
    if broken.any():
        listed = ", ".join(map(str, broken.nonzero().flatten().tolist()[:10]))
        raise ValueError(f"{method} gives infinite or undefined values for image {listed} of the batch")
    return maps


def explain(model, images, target=None, *, method="grad_cam", **options):
    """The maps (N, H, W) of one method of `EXPLAINERS`, with that method's options.

    ValueError for an unknown method or option, images that are not pixels in [0, 1], a target that is not a class,
    and maps that are not finite.
    """
    return explain_many(model, images, target, {method: options})[method]


def method_of(row, options):
    """What a row of a table asks for: the name of a method and its options, from the row's name and options.

    The row is called as its method, unless the options name another: smoe_equal {"method": "smoe", "weights": "equal"}.
    """
    options = dict(options)
    return options.pop("method", row), options


def named_layers(methods):
    """The layers that the rows of `methods` (row -> options) read by name: `inference_copy` must keep them unfolded."""
    names = []
    for row, given in methods.items():
        method, options = method_of(row, given)
        names += [options["layer"]] if options.get("layer") else []
        names += options.get("layers") or []
        if method == "amg":
            names += gate_layer(**{key: options[key] for key in ("gate",) if key in options})
    return list(dict.fromkeys(names))


def explain_many(model, images, target=None, methods=("grad_cam",)):
    """The maps of several rows: a dict row -> maps (N, H, W), as `explain` gives them one by one.

    `methods`: a dict row -> options (see `method_of`), or names. The plain class activation maps of one layer share one
    pass.
    """
    methods = dict(methods) if isinstance(methods, dict) else {name: {} for name in methods}
    asked = {row: method_of(row, options) for row, options in methods.items()}
    for method, options in asked.values():
        check_options(method, options)
    _checked_images(images)
    if target is not None:  # a model without named classes is checked by the methods, against its logits
        target = checked_target(target, images, len(getattr(model, "classes", ())))
    maps = {}
    for row, (method, options) in asked.items():
        if row in maps:
            continue
        if method in WEIGHTS:
            together = {other: name for other, (name, own) in asked.items() if name in WEIGHTS and own == options}
            found = cam_maps(model, images, target, methods=list(dict.fromkeys(together.values())), **options)
            maps |= {other: found[name] for other, name in together.items()}
        else:
            maps[row] = EXPLAINERS[method](model, images, target, **options)
    return {row: _checked_maps(row, maps[row]) for row in methods}
