"""What an explanation costs, in units of one plain inference pass of the same network, batch and device.

A `function` here is anything called as `function(model, images)`, such as `partial(explain, method="grad_cam")`.
"""

import statistics
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from xai_utils.networks import evaluating


def plain_forward(model, images):
    """The unit of cost: one inference pass without gradients."""
    with torch.inference_mode():
        return model(images)


class _NoModules(nullcontext):
    """In place of the counter's module tracker, whose hooks forbid gradients of a leaf that enters a module."""

    parents = frozenset({"Global"})


def _operations(model, images, function):
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        function(model, images)
    return counter.get_total_flops()


def counted_passes(model, images, function):
    """Operations of `function` / operations of one forward pass of `model` on the same images: a pure number.

    Counts the matrix products and convolutions that PyTorch executes, forward and backward, and no element-wise
    work, so it is the same on every machine and on every run.
    """
    with evaluating(model):
        unit = _operations(model, images, plain_forward)
        if unit == 0:
            raise ValueError("the model has no matrix product and no convolution, so its operations cannot be a unit")
        return _operations(model, images, function) / unit


def _synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(model, images, function):
    _synchronise(images.device)
    start = time.perf_counter()
    function(model, images)
    _synchronise(images.device)
    return time.perf_counter() - start


class Ratio(NamedTuple):
    """A time over that of one plain pass: the median of the rounds, the lowest and the highest of them."""

    median: float
    low: float
    high: float

    def __str__(self):
        return "{:.2f} [{:.2f}, {:.2f}]".format(*self)

    def apart(self, other) -> bool:
        """Whether no round of the one was as slow as any of the other."""
        return self.high < other.low or other.high < self.low


def times_over_a_pass(model, images, functions, *, rounds=5, warmup=1):
    """Wall-clock time of each function over that of one plain forward pass: dict name -> `Ratio`.

    `functions` is a dict name -> function. Each of `rounds` rounds times the forward pass and then every function,
    so that a machine that slows down meanwhile slows both sides of a ratio.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; time at least one round")
    ratios = {name: [] for name in functions}
    with evaluating(model):
        for _ in range(warmup):
            for function in (plain_forward, *functions.values()):
                function(model, images)
        for _ in range(rounds):
            unit = _seconds(model, images, plain_forward)
            for name, function in functions.items():
                ratios[name].append(_seconds(model, images, function) / unit)
    return {name: Ratio(statistics.median(values), min(values), max(values)) for name, values in ratios.items()}


def frames_per_second(model, images, function, *, warmup=10, repeats=100):
    """1 / median seconds of `function` on one image (batch 1), the images taken in turn; synchronised.

    AKD's table 3 reports this number; it means something only beside the name of the device.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; time at least one image")
    singles = images.split(1)
    with evaluating(model):
        for index in range(warmup):
            function(model, singles[index % len(singles)])
        seconds = [_seconds(model, singles[index % len(singles)], function) for index in range(repeats)]
    return 1 / statistics.median(seconds)


RESNET50_SCALES = ((64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))  # (C, h, w) at 224
COMBINATION = (18, *[27] * 4)  # per layer and pixel of the first map: FastCAM's constants, which it does not derive
LOGARITHM = 4  # a logarithm of about 13 operations makes the statistics four times as dear: the upper estimate
NETWORK_OPERATIONS = 3.8e9  # of a backward pass through ResNet-50 at 224, as FastCAM counts it
SMOOTH_GRAD_PASSES = 15


def smoe_operations(scales=RESNET50_SCALES):
    """Operations of FastCAM's combined map, per layer (C, h, w), finest first: dict part -> counts (FastCAM Table 6).

    statistics h w (4 C + 1);   normalisation 12 h w;   combination 18 H W for the first layer, 27 H W for the others,
    H W being the first map's size, to which the paper's constants refer.
    """
    if len(scales) != len(COMBINATION):
        raise ValueError(f"{len(scales)} scales were given; the published counts are for {len(COMBINATION)} layers")
    _, height, width = scales[0]
    return {
        "statistics": [h * w * (4 * channels + 1) for channels, h, w in scales],
        "normalisation": [12 * h * w for _, h, w in scales],
        "combination": [factor * height * width for factor in COMBINATION],
    }


def smoe_memory(scales=RESNET50_SCALES):
    """Bytes that the maps of all layers and one combined map of the first one's size take as float32 (117 kB)."""
    _, height, width = scales[0]
    return 4 * (sum(h * w for _, h, w in scales) + height * width)


def smoe_speed_ups():
    """How many times fewer operations FastCAM's map takes than gradients: dict -> (low, high) (FastCAM §4.1).

    For ResNet-50 at 224. "backward pass": one; "smooth_grad": its 15. The low end lets logarithms be dear. Operations
    are rounded to two digits and the overhead to 0.01 % where the paper did so: exact numbers would give 1469 and 5167
    for SmoothGrad.
    """
    counted = {part: sum(counts) for part, counts in smoe_operations().items()}
    cheap = sum(counted.values())
    dear = float(f"{cheap + (LOGARITHM - 1) * counted['statistics']:.1e}")  # 3.9e7
    overhead = round(dear / NETWORK_OPERATIONS, 4)
    return {
        "backward pass": (int(NETWORK_OPERATIONS / dear), int(NETWORK_OPERATIONS / cheap)),
        "smooth_grad": (
            int(SMOOTH_GRAD_PASSES / overhead),
            int(SMOOTH_GRAD_PASSES * NETWORK_OPERATIONS / float(f"{cheap:.1e}")),
        ),
    }
