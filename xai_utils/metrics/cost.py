"""What an explanation costs, in units of one plain inference pass of the same network, batch and device.

A `function` here is anything called as `function(model, images)`, such as `partial(explain, method="grad_cam")`.
"""

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from xai_utils.networks import evaluating


def plain_forward(model, images):
    """The unit of cost: one inference pass without gradients."""
    with torch.inference_mode():
        return model(images)


def _operations(model, images, function):
    with FlopCounterMode(display=False) as counter:
        function(model, images)
    return counter.get_total_flops()


def counted_forward_equivalents(model, images, function):
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


def forward_equivalents(model, images, functions, *, rounds=5, warmup=1):
    """Wall-clock time of each function over that of one forward pass: dict name -> ratio, each a median.

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
    return {name: statistics.median(values) for name, values in ratios.items()}


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


def peak_memory(model, images, function):
    """Bytes that `function` holds at its peak above what was allocated before it, on a CUDA device.

    On a CPU the process keeps freed memory, so no honest number exists there: ValueError.
    """
    device = images.device
    if device.type != "cuda":
        raise ValueError(f"peak memory is measured on CUDA devices, not on {device.type!r}; leave the column out")
    with evaluating(model):
        _synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function(model, images)
        _synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
