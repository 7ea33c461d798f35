"""What all benchmarks share: one network, interleaved rounds, a table of times over a plain pass, and its JSON.

ResNet-50 with random weights, 8 images of 224 pixels, CPU, two threads. The unit is the time of one plain
`inference_mode` pass of the same network, measured in the same run; rounds are interleaved (A, B, C, A, B, C, ...).

Other work on the machine only ever adds time, so what a function costs is its shortest time, as `timeit` has it: the
shortest over that of as many plain passes, each made just before, is compared with what is promised. Beside it stands
the median over the rounds of time divided by the pass just before: what was felt on the day.
"""

import argparse
import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import stats

from xai_utils.networks import build, inference_copy

BATCH, SIZE, THREADS = 8, 224, 2


class Row(NamedTuple):
    """Something measured: its time is divided by `passes` (steps, samples) and compared with what is promised."""

    function: Callable[[], object]
    passes: int = 1
    promised: float | None = None  # the time over a plain pass
    forward: Callable[[], object] | None = None  # the plain pass of its own network, where it is not the benchmark's


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
    """Seconds per row, and of the plain passes just before them: dicts name -> (rounds,)."""
    taken, plain = {name: [] for name in rows}, {name: [] for name in rows}
    for function in (forward, *(row.function for row in rows.values())):
        function()  # warm up: memory, kernels, imports
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        for name, row in rows.items():
            own = row.forward or forward
            own()  # not timed: memory that the row before has just freed makes this pass faster than others
            plain[name].append(seconds(own))
            taken[name].append(seconds(row.function) / row.passes)
    return taken, plain


def optional(make):
    """The rows that `make` gives, or none where a library that it imports is missing (which is said)."""
    try:
        return make()
    except ImportError as missing:
        print(f"not measured: {missing}", file=sys.stderr)
        return {}


def new_file(text):
    """The path of a file that can be written, said before minutes are measured."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file in a folder that exists")
    return path


def count(text):
    """A whole number, 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def processor():
    """What the JSON says of where it was measured, and with what."""
    known = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    named = re.search(r"^model name\s*: *(.+)$", known, re.MULTILINE)
    return {
        "processor": named[1].strip() if named else platform.processor(),
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def median(ratios):
    """The median of the rounds' ratios and its 95 % interval, which assumes nothing of how they are distributed."""
    interval = stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    parts = {"median": statistics.median(ratios), "low": interval.low, "high": interval.high}
    ends = {"low": min(ratios), "high": max(ratios)}  # of fewer than six rounds there is no such interval
    return {name: round(ends[name] if math.isnan(value) else value, 4) for name, value in parts.items()}


def setup(network, rounds):
    """What the JSON says of the measurement."""
    return {"network": network, "batch": BATCH, "size": SIZE, "threads": THREADS, "rounds": rounds} | processor()


def run(description, model, images, rows, *, network="resnet50", further=None):
    """Measure as the command line asks, print the table, and write it with `further` facts where --json says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, help="also write the measurements there")
    parser.add_argument("--rounds", type=count, default=9, help="interleaved rounds (default 9)")
    arguments = parser.parse_args()

    def forward():
        with torch.inference_mode():
            model(images)

    taken, plain = measured(forward, rows, arguments.rounds)
    passes = [value for values in plain.values() for value in values]
    vectors = torch.backends.cpu.get_cpu_capability()
    print(f"{network}, {BATCH} x {SIZE} px, {THREADS} threads, {vectors}, torch {torch.__version__}")
    print(f"plain forward: {min(passes):.3f} s, median {statistics.median(passes):.3f} s, {arguments.rounds} rounds\n")
    print(f"{'time over a plain pass':52} of shortest times  median  promised")
    results = []
    for name, times in taken.items():
        limit, value = rows[name].promised, min(times) / min(plain[name])
        median = statistics.median(mine / theirs for mine, theirs in zip(times, plain[name], strict=True))
        verdict = "" if limit is None else f"<= {limit:.2f} {'kept' if value <= limit else 'NOT KEPT'}"
        print(f"{name:52} {value:17.3f} {median:7.3f}  {verdict}".rstrip())
        times = [[round(mine, 4), round(theirs, 4)] for mine, theirs in zip(times, plain[name], strict=True)]
        facts = {"name": name, "time_over_a_plain_pass": round(value, 4), "median": round(median, 4), "promised": limit}
        results.append(facts | {"seconds_and_plain_pass": times})
    for name, value in (further or {}).items():
        print(f"{name}: {value}")
    if arguments.json:
        facts = {
            **setup(network, arguments.rounds),
            "forward_seconds": {"median": round(statistics.median(passes), 4), "min": round(min(passes), 4)},
            "rows": results,
        } | (further or {})
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
