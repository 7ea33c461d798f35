"""How much memory the stages take for 1,000 and for 10,000 images: python benchmarks/memory.py [--json PATH]

What the stages call, each in a process of its own for each number of images: prepare_data (reading and decoding),
finetune_target (a training of one epoch, and held-out logits), train_mask_predictor (the distribution of its scores),
train_attention (AMG's tables and variants), train_effect_predictor (scores of held-out images, exact Shapley values),
explain (maps, what is said of them), evaluate (all metrics that need no drawn birds), remove_and_retrain (maps, ranks
and trainings of one row), figures (AKD's failures). Its private memory, with that of the processes that it starts
(RssAnon of Linux: without libraries and mapped files, whose pages the system takes back when it needs them), is read
every 5 ms. glibc is told to give back every freed piece of 64 kB and more at once. By default it keeps fragments, which
hide what a stage holds: 657 and 824 MB were seen, a level that depends on chance and not on the images so far.
`--images 40 80` takes minutes and shows no more than that this file works.
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

from xai_utils import datasets, networks
from xai_utils.evaluation import explanation, maps, scores
from xai_utils.metrics import METRICS
from xai_utils.networks import effect_predictor_of
from xai_utils.networks.mask_predictor import predictor_of
from xai_utils.papers import akd, amg, amg_variants, dgle, removal
from xai_utils.retraining import experiment
from xai_utils.training.distributed import Compute
from xai_utils.training.surrogate import explained_classes
from xai_utils.training.target import fit_target, held_out_logits

COUNTS, SIZE, NETWORK, METHODS = (1000, 10_000), 64, "tiny_resnet", {"grad_cam": {}, "smoe": {}, "random": {}}
CURVES = {name: {"pixels_per_step": 25088} for name in ("insertion", "deletion")}  # short ones: longer take no more
CURVES["faithfulness"] = {"steps": 4}
SHORT = {"curves": CURVES, "options": {"road": {"percents": [20]}, "infidelity": {"squares": 4}}}
PLAYERS = {"fast_shap": 2, "removal_effect": 0}  # cells of a side, few for the exact values; 0: no grid
LEARNING = {"epochs": 1, "batch_size": 32, "learning_rate": 0.01, "schedule": "steps", "milestones": []}
LEARNING |= {"momentum": 0.9, "weight_decay": 1e-4, "smallest_crop": 0.6}
RETRAINING = {"data": "data", "target": "target", "seed": 0, "network": "target", "image_size": 48, "fill": "mean"}
RETRAINING |= {"train_images": None, "held_out_images": None, "start": "explained", "explained_epochs": 1}
RETRAINING |= {"repetitions": 1, "percentages": [50], "rows": {"gradient": {"method": "gradient"}}, "statistics": []}
RETRAINING |= {"keep_share": 0.1, "least_share": 0.1, "scale_kept": True, "image": LEARNING, "layer": LEARNING}
COMPUTE = Compute(device="cpu", threads=1)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
GROWTH = 1.10  # what we promise: ten times as many images


def source(folder: Path, count: int):
    """Files of so many images to train on and as many held out, of two classes, with boxes."""
    random, boxes = np.random.default_rng(0), ["file,x0,y0,x1,y1"]
    for split in ("train", "validation"):
        for number in range(count):
            file = folder / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(file)
            boxes.append(f"{file.relative_to(folder)},8,8,40,48")
    (folder / "boxes.csv").write_text("\n".join(boxes) + "\n", encoding="utf-8")


def prepare_data():
    datasets.prepare("source", "data", image_size=SIZE, geometry="squash")
    torch.manual_seed(0)
    networks.save(networks.build(NETWORK, ["a", "b"]).eval(), "target")


def finetune_target():
    fitted, _ = fit_target(LEARNING | {"data": "data", "target": NETWORK, "seed": 0}, compute=COMPUTE)
    held_out_logits(fitted, datasets.load("data").validation, compute=COMPUTE)


def train_mask_predictor():
    target, split, law = networks.load("target").eval(), datasets.load("data").validation, {"eta": 1.5, "exponent": 2.5}
    predictor = predictor_of(target, split.tensor([0]), controller="customized").eval()
    dgle.distribution(dgle.held_out_scores(target, predictor, split, **law), **law)


def train_attention():
    target, data = networks.load("target").eval(), datasets.load("data")
    indices, classes = np.arange(len(data.validation)), torch.zeros(len(data.validation), dtype=torch.int64)
    layer, probe = networks.cam_layer(target, data.validation.tensor([0])), data.validation.tensor([0])
    gate = networks.gate_for(target, probe, objective="none").eval()
    options = {"smooth_samples": 2, "seed": 0}
    amg.held_out_scores(target, data.validation, indices, classes, {layer: gate}, **options)
    ways = {("none", "weighted"): [gate]}
    amg_variants.held_out_scores(target, data, indices, classes, ways, layer=layer)


def train_effect_predictor():
    target, data = networks.load("target").eval(), datasets.load("data")
    indices, probe = np.arange(len(data.validation)), data.validation.tensor([0])
    predictors = {name: effect_predictor_of(target, probe, cells=cells).eval() for name, cells in PLAYERS.items()}
    removal.POINTS.update(pixels_per_step=25088)
    removal.held_out_scores(target, data, indices, predictors, seed=0)
    removal.beside_exact(target, data.validation, indices, predictors, seed=0)


def explain():
    settings = {"data": "data", "target": "target", "maps": "maps", "images": None, "seed": 0, "methods": METHODS}
    settings |= {"mosaics": {"number": 40, "cells": 2, "confidence": 0}}
    explanation.make_maps(settings, compute=COMPUTE)
    for made in maps.load("maps").arrays.values():
        maps.described(made)


def evaluate():
    settings = {name: name for name in ("data", "target", "maps", "scores", "drawn")}
    metrics = [name for name, metric in METRICS.items() if metric.needs != "part_masks"]
    scores.score_maps(settings | {"metrics": metrics, "chunk": 128} | SHORT, compute=COMPUTE)


def remove_and_retrain():
    experiment.retrain(RETRAINING, ["none", "keep"], compute=COMPUTE)


def figures():
    made, split = maps.load("maps"), datasets.load("data").validation
    explained_classes(networks.load("target").eval(), split, made.indices, made.arrays["grad_cam"])
    akd.box_areas(split, made.indices)


JOBS = (prepare_data, finetune_target, train_mask_predictor, train_attention, train_effect_predictor)
JOBS += (explain, evaluate, remove_and_retrain, figures)


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


def peaks(count: int) -> dict[str, int]:
    """Stage -> the most kB of private memory while it works on so many images, in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source(Path(folder, "source"), count)
        for job in JOBS:
            command = [sys.executable, Path(__file__).resolve(), "--job", job.__name__]
            options = {"check": True, "text": True, "stdout": subprocess.PIPE, "cwd": folder}
            told = subprocess.run(command, **options, env=os.environ | ALLOCATOR).stdout
            found[job.__name__] = int(told.splitlines()[-1])
            print(f"{count:6} images, {job.__name__}: {found[job.__name__] / 1e3:.0f} MB at the peak", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, help="also write the measurements there")
    parser.add_argument("--images", type=int, nargs=2, default=COUNTS, help="to compare (default: %(default)s)")
    parser.add_argument("--job", choices=[job.__name__ for job in JOBS], help=argparse.SUPPRESS)  # of the process
    arguments = parser.parse_args()
    if arguments.job:
        torch.set_num_threads(COMPUTE.threads)
        print(most_private({job.__name__: job for job in JOBS}[arguments.job]))
        sys.exit()
    few, many = (peaks(count) for count in arguments.images)
    ratios = {name: round(many[name] / few[name], 4) for name in many}
    for name, ratio in ratios.items():
        print(f"{name}: ratio {ratio:.3f} (promised {GROWTH:.2f}){'' if ratio <= GROWTH else ' NOT KEPT'}")
    if arguments.json:
        sizes = dict(zip(map(str, arguments.images), (few, many), strict=True))
        about = {"peak_kilobytes": sizes, "ratios": ratios, "promised": GROWTH, "torch": torch.__version__}
        arguments.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
