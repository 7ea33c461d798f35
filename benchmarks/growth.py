"""How time and memory grow with the work: python benchmarks/growth.py [--json PATH] [--docs FOLDER] [--quick]

Maps of several methods (explain), RISE, all scores of a map that need neither drawn birds nor mosaics (evaluate), as
the pipeline makes them: `make_maps` and `scores.score_maps`, from prepared images to files; `small_resnet` with random
weights, CPU, one thread a process. Along one axis at a time: images, pixels, classes, processes.

Time. Each job is done on n images and on one. The one is its *start*: opening the data and the target, the inference
copy, counting passes, starting processes (each imports PyTorch anew). What n images take beyond it is the *steady*
time, of n - 1 images, whose growth is fitted; both are in the JSON. Shortest times of interleaved rounds, after one
that is not timed; jobs of less than half a second are repeated within a round.

Memory. The most private memory (see memory.py, whose allocator's setting it has) of a process of its own, and of those
that it starts, less what it held before the job began ("imported", most of it PyTorch, which would hide all growth; of
two processes their own imports are in it). Over images it is compared from where batches are full. Two such processes
are measured at a time.

An exponent e says that time or memory grows as x^e: the least squares' slope in logarithms, with the flattest and the
steepest slope between neighbouring points. --docs puts the figure and the table into FOLDER (benchmarks.md); with
--measured PATH they are made of an earlier --json, and nothing is measured. --quick takes a minute and shows no more
than that this file works. Made for eight minutes on two idle cores.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from memory import ALLOCATOR, most_private, private_kilobytes
from timing import count, new_file, processor, seconds

from xai_utils import datasets, networks, plots
from xai_utils.evaluation import explanation, scores
from xai_utils.files import write_json, write_text
from xai_utils.images import resize
from xai_utils.metrics import METRICS
from xai_utils.networks import targets
from xai_utils.training.distributed import Compute

NETWORK = "small_resnet"
METHODS = {"grad_cam": {}, "grad_cam_plus_plus": {}, "smoe": {}, "fastcam": {}, "gradient": {}}
METHODS |= {"integrated_gradients": {"steps": 4}}
RISE = {"rise": {"masks": 16}}
LIME = {"lime": {"samples": 16}}
CURVES = {name: {"pixels_per_step": 12544} for name in ("insertion", "deletion")} | {"faithfulness": {"steps": 8}}
BATCH = explanation.BATCH
PRELOADED = ["xai_utils.evaluation.explanation", "xai_utils.evaluation.scores", "xai_utils.plots"]
REPEATED = 0.5  # seconds: shorter jobs are repeated for as long within a round


SCORED = [name for name in METRICS if name != "road"]  # its linear system grows faster than the pixels


class Point(NamedTuple):
    """What a job is done on."""

    images: int
    side: int  # pixels
    classes: int
    processes: int = 1


AXES = {
    "images": [Point(images, 64, 10) for images in (10, 100, 1000)],
    "pixels": [Point(8, side, 10) for side in (64, 128, 256, 512)],
    "classes": [Point(32, 64, classes) for classes in (10, 100, 1000, 10000)],
    "processes": [Point(1000, 64, 10, processes) for processes in (1, 2)],
}
QUICK = {
    "images": [Point(images, 32, 4) for images in (4, 12)],
    "pixels": [Point(2, side, 4) for side in (32, 64)],
    "classes": [Point(4, 32, classes) for classes in (4, 16)],
    "processes": [Point(12, 32, 4, processes) for processes in (1, 2)],
}
ALONG = {  # the measure of a point along each axis
    "images": lambda point: point.images,
    "pixels": lambda point: point.side**2,
    "classes": lambda point: point.classes,
}
SPEED_UP = 1.8  # of two processes over one
PROMISED = [  # axis, quantity, the largest exponent
    ("images", "steady_seconds", 1.1),
    ("images", "working_kilobytes", 0.1),
    ("pixels", "steady_seconds", 1.15),
    ("pixels", "working_kilobytes", 1.15),
    ("classes", "steady_seconds", 1.1),
    ("classes", "start_seconds", 1.1),
    ("classes", "working_kilobytes", 1.1),
]
WORDS = {"steady_seconds": "time", "start_seconds": "start", "working_kilobytes": "memory"}


def made_maps(folder, processes, methods, name="maps"):
    """Maps of all images of a project, into a folder of it."""
    settings = {each: str(folder / each) for each in ("data", "target")} | {"maps": str(folder / name)}
    settings |= {"images": None, "seed": 0, "mosaics": {"number": 0, "cells": 2, "confidence": 0}, "methods": methods}
    explanation.make_maps(settings, compute=computing(processes))


def evaluated(folder, processes):
    """The scores of the maps of a project, into folders of it."""
    settings = {each: str(folder / each) for each in ("data", "target", "maps", "scores", "drawn")}
    scores.score_maps(settings | {"metrics": SCORED, "curves": CURVES}, compute=computing(processes))


def passed(folder, processes):
    """Plain passes over all images, with what opening the project takes."""
    split, model = datasets.load(folder / "data").validation, targets.load(folder / "target")
    with torch.inference_mode():
        for start in range(0, len(split), BATCH):
            model(split.tensor(range(start, min(start + BATCH, len(split)))))


def computing(processes):
    return Compute(device="cpu", threads=1, processes=processes)


JOBS = {
    "explain": partial(made_maps, methods=METHODS, name="explained"),
    "RISE": partial(made_maps, methods=RISE, name="rise"),
    "evaluate": evaluated,
}
OVER_PIXELS = {"LIME": partial(made_maps, methods=LIME, name="lime"), "plain passes": passed}  # beside the jobs
COLOURS = dict(zip((*JOBS, *OVER_PIXELS), ("tab:blue", "tab:orange", "tab:green", "tab:purple", "0.5"), strict=True))


def project(folder: Path, point: Point) -> Path:
    """Prepared smooth noise, one class after the other, an untrained target, and the maps that are evaluated."""
    random = torch.Generator().manual_seed(0)
    for split, number in (("train", 1), ("validation", point.images)):
        (part := folder / "data" / split).mkdir(parents=True)
        pixels = [resize(torch.rand(1, 3, 9, 9, generator=random), point.side) * 255 for _ in range(number)]
        np.save(part / "images.npy", torch.cat(pixels).byte().numpy())
        np.save(part / "labels.npy", np.arange(number) * point.classes // number)
        quarter = ",".join(map(str, (0, 0, point.side // 2, point.side // 2)))
        for name, head, value in (("files", "index,file", "noise"), ("boxes", "image,x0,y0,x1,y1", quarter)):
            write_text(part / f"{name}.csv", "\n".join([head, *(f"{each},{value}" for each in range(number))]) + "\n")
    classes = [f"class {number}" for number in range(point.classes)]
    about = {"name": "noise", "kind": "folder", "image_size": point.side, "geometry": "squash", "classes": classes}
    about |= {"part_names": [], "counts": {"train": 1, "validation": point.images}}
    write_json(folder / "data" / "dataset.json", about)
    torch.manual_seed(0)
    networks.save(networks.build(NETWORK, classes).eval(), folder / "target")
    made_maps(folder, 1, {"grad_cam": {}})
    return folder


def jobs_of(axis):
    """What is measured along an axis."""
    return JOBS | OVER_PIXELS if axis == "pixels" else JOBS


def timed(job, folder, processes):
    """The shortest time of a job, repeated while all of it is short."""
    taken = [seconds(lambda: job(folder, processes))]
    while sum(taken) < REPEATED:
        taken.append(seconds(lambda: job(folder, processes)))
    return min(taken)


def held(job, folder, processes):
    """The private memory, in kB, of this process: before a job, and at the most meanwhile."""
    torch.set_num_threads(1)
    imported = private_kilobytes()
    most = most_private(lambda: job(folder, processes))
    return {"imported_kilobytes": imported, "working_kilobytes": most - imported}


def in_its_own_process(function, *given):
    """What a function returns, called in a process that does nothing else, forked from one that has only imported."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as alone:
        return alone.submit(function, *given).result()


def measured(axes, rounds):
    """What the JSON holds."""
    torch.set_num_threads(1)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    asked = {}
    for axis, points in axes.items():
        asked |= {(name, point): job for point in points for name, job in jobs_of(axis).items()}
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def prepared(images, side, classes):
            return project(Path(folder, f"{images}-{side}-{classes}"), Point(images, side, classes))

        tasks = {key: (held, job, prepared(*key[1][:3]), key[1].processes) for key, job in asked.items()}
        os.environ |= ALLOCATOR  # of the processes that are started from now on
        multiprocessing.set_forkserver_preload(PRELOADED)
        with ThreadPoolExecutor(2) as two:
            memory = dict(zip(tasks, two.map(lambda task: in_its_own_process(*task), tasks.values()), strict=True))
        for name in ALLOCATOR:
            del os.environ[name]
        start, whole = {key: [] for key in asked}, {key: [] for key in asked}
        for turn in range(-1, rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
            for (name, point), job in asked.items():
                one, all_of_them = (prepared(images, point.side, point.classes) for images in (1, point.images))
                if turn < 0:  # not timed: what is done once in a process
                    job(one, 1)
                    continue
                start[name, point].append(timed(job, one, point.processes))
                whole[name, point].append(timed(job, all_of_them, point.processes))
    rows = []
    for name, point in asked:
        first, taken = min(start[name, point]), min(whole[name, point])
        times = {"start_seconds": first, "seconds": taken, "steady_seconds": taken - first}
        rows.append({"job": name, **point._asdict(), **{key: round(value, 4) for key, value in times.items()}})
        rows[-1] |= memory[name, point]
    about = {"network": NETWORK, "threads": 1, "rounds": rounds, "cores": cores, "load_before": round(load, 2)}
    facts = about | processor() | {"axes": {axis: [list(point) for point in points] for axis, points in axes.items()}}
    return facts | {"rows": rows}


def along(facts, axis, job, quantity, *, full=False):
    """A job's measures and quantities along an axis, two lists; `full`: only where batches of images are."""
    rows = {(row["job"], *(row[name] for name in Point._fields)): row for row in facts["rows"]}
    points = [Point(*point) for point in facts["axes"][axis]]
    if full:
        points = [point for point in points if point.images >= BATCH]
    return [ALONG[axis](point) for point in points], [rows[job, *point][quantity] for point in points]


def exponent(x, y):
    """(exponent, flattest, steepest slope between neighbours) of y over x.

    None of fewer than two, and where a y is not positive: noise that hides what is beyond the start.
    """
    if len(y) < 2 or min(y) <= 0:
        return None
    x, y = np.log(x), np.log(y)
    slopes = np.diff(y) / np.diff(x)
    return tuple(round(float(each), 3) + 0.0 for each in (np.polyfit(x, y, 1)[0], slopes.min(), slopes.max()))


def promises(facts):
    """What is promised and whether it is kept: dicts what, promised, and found: job -> exponent or times as fast."""
    found = []
    for axis, quantity, limit in PROMISED:
        full = (axis, quantity) == ("images", "working_kilobytes")
        values = {job: exponent(*along(facts, axis, job, quantity, full=full)) for job in jobs_of(axis)}
        kept = {job: value is not None and value[0] <= limit for job, value in values.items()}
        found.append({"what": f"{WORDS[quantity]} over {axis}", "promised": limit, "found": values, "kept": kept})
    one, two = ({row["job"]: row for row in facts["rows"] if same(row, point)} for point in facts["axes"]["processes"])
    values = {job: round(one[job]["steady_seconds"] / two[job]["steady_seconds"], 3) for job in JOBS}
    kept = {job: value >= SPEED_UP for job, value in values.items()}
    return [*found, {"what": "two processes, times as fast", "promised": SPEED_UP, "found": values, "kept": kept}]


def same(row, point):
    return [row[name] for name in Point._fields] == list(point)


def shown(value):
    """An exponent with its range, or how many times as fast."""
    if value is None:
        return "not seen"
    return f"{value:.2f}" if isinstance(value, float) else "{:.2f} ({:.2f} to {:.2f})".format(*value)


def verdict(row):
    """Which jobs do not keep a promise."""
    broken = [job for job, kept in row["kept"].items() if not kept]
    return f"NOT KEPT: {', '.join(broken)}" if broken else "kept"


def told(facts):
    """The table in Markdown, and what stands around it."""
    found = promises(facts)
    lines = [f"| | {' | '.join(JOBS)} | promised | |", f"|---|{'---:|' * len(JOBS)}---:|---|"]
    for row in found:
        sign = "≥" if row["what"].startswith("two") else "≤"
        cells = [row["what"], *(shown(row["found"][job]) for job in JOBS), f"{sign} {row['promised']:g}", verdict(row)]
        lines.append(f"| {' | '.join(cells)} |")
    over = [row for row in found if set(OVER_PIXELS) <= row["found"].keys()]
    beside = [
        f"{job} {', '.join(row['what'].split()[0] + ' ' + shown(row['found'][job]) for row in over)}"
        for job in OVER_PIXELS
    ]
    one, two = ({row["job"]: row for row in facts["rows"] if same(row, point)} for point in facts["axes"]["processes"])
    starts = [f"{job} {one[job]['start_seconds']:.1f} and {two[job]['start_seconds']:.1f} s" for job in JOBS]
    ends = [f"{job} {one[job]['seconds']:.1f} and {two[job]['seconds']:.1f} s" for job in JOBS]
    number = facts["axes"]["processes"][0][0]
    where = f"{facts['network']}, {facts['machine']} ({facts['vectors']}), {facts['cores']} cores"
    return "\n".join([
        "![Time and private memory over images, pixels, classes and processes](growth.png)",
        "",
        *lines,
        "",
        f"Beside them over pixels: {'; '.join(beside)}. The start takes one process and two: {', '.join(starts)}; "
        f"with it {number} images: {', '.join(ends)}. Measured with {where}, PyTorch {facts['torch']}; "
        f"load before: {facts['load_before']:g}.",
    ])  # fmt: skip


def drawn(facts) -> Figure:
    """Time (left) and memory (right) along each axis, on logarithmic scales; two processes beside one."""
    panels = [("steady_seconds", "steady time, s", 1), ("working_kilobytes", "memory, MB", 1e-3)]
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(5.2, 9))  # at 390 pixels the letters have 7
        rows = figure.subplots(4, 2)
        for (axis, points), places in zip(facts["axes"].items(), rows, strict=True):
            for (quantity, label, unit), place in zip(panels, places, strict=True):
                for job in jobs_of(axis):
                    style = {"color": COLOURS[job], "label": job}
                    if axis in ALONG:
                        x, y = along(facts, axis, job, quantity)
                        place.plot(x, np.array(y) * unit, marker=".", **style)
                    else:
                        of = [
                            row for point in points for row in facts["rows"] if same(row, point) and row["job"] == job
                        ]
                        place.plot(
                            [str(row["processes"]) for row in of], [row[quantity] * unit for row in of], "o-", **style
                        )
                place.set(xlabel="pixels of an image" if axis == "pixels" else axis, ylabel=label, yscale="log")
                low, high = np.log10(place.get_ylim())
                place.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))  # two labels at least
                place.yaxis.set_major_formatter("{x:g}")
                place.yaxis.set_minor_formatter(NullFormatter())
                if axis in ALONG:
                    place.set_xscale("log")
                    place.set_xticks(x, [f"{point[1]}²" for point in points] if axis == "pixels" else [*map(str, x)])
                    place.minorticks_off()
        handles, labels = rows[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def part():
    """What stands between the two markers in benchmarks.md: the group 1."""
    start, end = "<!-- growth: `make bench` writes this -->\n", "<!-- end of growth -->"
    return re.compile(f"(?<={re.escape(start)})(.*?)(?={re.escape(end)})", re.DOTALL)


def write(facts, folder: Path):
    """Put the figure and the table into the page."""
    page = folder / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    if not part().search(text):
        raise ValueError(
            f"{page} lacks the markers of growth.py, '<!-- growth: `make bench` writes this -->' and its end"
        )
    plots.save(drawn(facts), folder / "growth.png")
    write_text(page, part().sub(lambda _: told(facts) + "\n", text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, help="also write the measurements there")
    parser.add_argument("--docs", type=Path, help="also put figure and table into the benchmarks.md of this folder")
    parser.add_argument("--measured", type=Path, help="take the measurements from there")
    parser.add_argument("--rounds", type=count, default=2, help="interleaved rounds (default 2)")
    parser.add_argument("--quick", action="store_true", help="as little as shows that this file works")
    arguments = parser.parse_args()
    if arguments.measured:
        facts = json.loads(arguments.measured.read_text(encoding="utf-8"))
    else:
        facts = measured(QUICK if arguments.quick else AXES, arguments.rounds)
    for row in promises(facts):
        found = ", ".join(f"{job} {shown(value)}" for job, value in row["found"].items())
        print(f"{row['what']:30} promised {row['promised']:g}: {verdict(row):8} {found}")
    if arguments.json:
        arguments.json.write_text(json.dumps(facts | {"promises": promises(facts)}, indent=1) + "\n", encoding="utf-8")
    if arguments.docs:
        write(facts, arguments.docs)
