"""What all benchmarks share: one network, interleaved rounds, a table in forward equivalents, and its JSON.

ResNet-50 with random weights, 8 images of 224 pixels, CPU, two threads. A forward equivalent is the time of one plain
`inference_mode` pass of the same network. Each measurement follows such a pass and is divided by its time, rounds
are interleaved (A, B, C, A, B, C, ...), and the median of the ratios is shown: load that comes and goes hits all
alike.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from xai_utils.networks import build, inference_copy

BATCH, SIZE, THREADS = 8, 224, 2


class Row(NamedTuple):
    """Something measured: its time is divided by `passes` (steps, samples) and compared with what is promised."""

    function: Callable[[], object]
    passes: int = 1
    promised: float | None = None  # forward equivalents


def setting():
    """The target, its inference copy, images and their classes, the same in every benchmark."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = build("resnet50", range(1000)).eval()
    return model, inference_copy(model), torch.rand(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)


def seconds(function):
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measured(forward, rows, rounds):
    """Ratios per row (rounds,), and the seconds of all plain passes."""
    ratios, plain = {name: [] for name in rows}, []
    for function in (forward, *(row.function for row in rows.values())):
        function()  # warm up: memory, kernels, imports
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        for name, row in rows.items():
            forward()  # not timed: memory that the row before has just freed makes this pass faster than others
            plain.append(seconds(forward))
            ratios[name].append(seconds(row.function) / row.passes / plain[-1])
    return ratios, plain


def optional(make):
    """The rows that `make` gives, or none where a library that it imports is missing (which is said)."""
    try:
        return make()
    except ImportError as missing:
        print(f"not measured: {missing}", file=sys.stderr)
        return {}


def run(description, model, images, rows, *, further=None):
    """Measure as the command line asks, print the table, and write it with `further` facts where --json says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the measurements there")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    arguments = parser.parse_args()

    def forward():
        with torch.inference_mode():
            model(images)

    ratios, plain = measured(forward, rows, arguments.rounds)
    print(f"ResNet-50, {BATCH} x {SIZE} px, {THREADS} threads, torch {torch.__version__}, {arguments.rounds} rounds")
    print(f"plain forward: median {statistics.median(plain):.3f} s, {min(plain):.3f} to {max(plain):.3f} s\n")
    print(f"{'forward equivalents':52} median    min    max  promised")
    results = []
    for name, values in ratios.items():
        limit, median = rows[name].promised, statistics.median(values)
        verdict = "" if limit is None else f"<= {limit:.2f} {'kept' if median <= limit else 'NOT KEPT'}"
        print(f"{name:52} {median:6.3f} {min(values):6.3f} {max(values):6.3f}  {verdict}".rstrip())
        rounded = [round(value, 4) for value in values]
        results.append({"name": name, "median": round(median, 4), "promised": limit, "ratios": rounded})
    for name, value in (further or {}).items():
        print(f"{name}: {value}")
    if arguments.json:
        facts = {
            "network": "resnet50",
            "batch": BATCH,
            "size": SIZE,
            "threads": THREADS,
            "rounds": arguments.rounds,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "forward_seconds": {"median": round(statistics.median(plain), 4), "min": round(min(plain), 4)},
            "forward_equivalents": results,
        } | (further or {})
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
