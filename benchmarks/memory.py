"""How much memory the scoring of maps takes for 100 and for 1000 images: python benchmarks/memory.py [--json PATH]

All metrics that need no drawn birds, two methods, `small_resnet` at 96 pixels, the pipeline's default chunk; a process
of its own for each number of images, whose private memory (RssAnon of Linux: without libraries and mapped files, whose
pages the system takes back when it needs them) is read every 5 ms. glibc is told to give back every freed piece of
64 kB and more at once. By default it keeps fragments, which hide what the scoring holds: 657 and 824 MB were seen, a
level that depends on chance and not on the images scored so far. About five minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import new_file

from xai_utils import datasets, networks, runs
from xai_utils.evaluation import scores
from xai_utils.metrics import METRICS

COUNTS, SIZE, METHODS = (100, 1000), 96, ("first", "second")
CURVES = {name: {"pixels_per_step": 12544} for name in ("insertion", "deletion")}  # short ones: longer take no more
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
GROWTH = 1.10  # what we promise: 1000 images over 100


def project(folder: Path, count: int):
    """Prepared images with boxes, an untrained target and random maps: what `scores.evaluate` reads."""
    random = np.random.default_rng(0)
    boxes = ["file,x0,y0,x1,y1"]
    for number in range(count):
        file = folder / "source" / "validation" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(file)
        boxes.append(f"{file.relative_to(folder / 'source')},8,8,48,64")
    (folder / "source" / "boxes.csv").write_text("\n".join(boxes) + "\n", encoding="utf-8")
    datasets.prepare(folder / "source", folder / "data", image_size=SIZE, geometry="squash")
    torch.manual_seed(0)
    networks.save(networks.build("small_resnet", ["a", "b"]).eval(), folder / "target")
    (folder / "maps").mkdir()
    explained = {"split": "validation", "indices": list(range(count)), "targets": [n % 2 for n in range(count)]}
    explained |= {"methods": {name: {} for name in METHODS}, "passes": dict.fromkeys(METHODS, 1.0)}
    explained["run"] = runs.identity([], data=folder / "data", target=folder / "target") | {"maps": "random"}
    (folder / "maps" / "explained.json").write_text(json.dumps(explained), encoding="utf-8")
    for name in METHODS:
        np.save(folder / "maps" / f"{name}.npy", random.random((count, SIZE, SIZE), dtype=np.float32))


def private_kilobytes(process="self"):
    """The private memory of a process and of those that it has started, in kB."""
    folder, private = Path("/proc", str(process)), 0
    with suppress(OSError, IndexError):  # it has ended meanwhile
        private = int((folder / "status").read_text(encoding="utf-8").split("RssAnon:")[1].split()[0])
        started = [file.read_text(encoding="utf-8") for file in (folder / "task").glob("*/children")]
        private += sum(map(private_kilobytes, " ".join(started).split()))
    return private


def most_private(function):
    """The most kB of private memory while `function()` runs, in this process and those that it starts."""
    done, most = threading.Event(), 0

    def watch():
        nonlocal most
        while not done.wait(0.005):
            most = max(most, private_kilobytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return most


def peak(folder: Path) -> int:
    """The most kB of private memory during the evaluation of a folder, in this process."""
    metrics = [name for name, metric in METRICS.items() if metric.needs != "part_masks"]
    settings = {name: str(folder / name) for name in ("data", "target", "maps", "scores", "drawn")}
    return most_private(lambda: scores.evaluate(settings | {"metrics": metrics, "curves": CURVES, "chunk": 128}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, help="also write the measurements there")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the process that is measured
    arguments = parser.parse_args()
    if arguments.folder:
        print(peak(arguments.folder))
        sys.exit()
    peaks = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            project(Path(folder), count)
            command = [sys.executable, __file__, "--folder", folder]
            options = {"check": True, "text": True, "stdout": subprocess.PIPE, "env": os.environ | ALLOCATOR}
            told = subprocess.run(command, **options).stdout
        peaks[count] = int(told.splitlines()[-1])
        print(f"{count:5} images: {peaks[count] / 1e3:.0f} MB at the peak")
    ratio = peaks[COUNTS[1]] / peaks[COUNTS[0]]
    print(f"ratio {ratio:.3f} (promised {GROWTH:.2f})")
    if arguments.json:
        about = {"peak_kilobytes": peaks, "ratio": round(ratio, 4), "promised": GROWTH, "torch": torch.__version__}
        arguments.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
