"""What a device does with ResNet-50: python benchmarks/device.py --json PATH [--device auto|cpu|cuda] [--seconds N]

Training from images stored whole beside training on what lies on the device; methods, RISE and insertion beside plain
passes, in float32 and bfloat16; whether the device agrees with the CPU; whether `inference_copy` copies there; peak
memory. All weights are random and all images are noise: speeds do not depend on either. Rates are medians over
interleaved rounds, ratios the medians of the rounds' own ratios. A part that fails is an "error" in the JSON, which is
written after each part. Made for 90 seconds on a GPU; a minute on the CPU with --device cpu --network resnet18
--size 64 --seconds 10, where the numbers show no more than that this file works.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
import traceback
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from data_path import prepared
from timing import count, new_file
from torch import nn

from xai_utils.explainers import EXPLAINERS, explain
from xai_utils.files import scratch_folder
from xai_utils.images import rank_correlation, resize
from xai_utils.metrics import insertion
from xai_utils.metrics.perturbation import insertion_protocol
from xai_utils.networks import Surrogate, build, deep_copy, gate_for, inference_copy, predictor_of
from xai_utils.training import loop
from xai_utils.training.distributed import Compute
from xai_utils.training.target import target_task

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
METHODS = ("fastcam", "smoe", "grad_cam", "amg", "akd", "dgle_cf")
ROUNDS = 2, 30  # at least, whatever the time, and at most
RECIPE = {
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "smallest_crop": 0.08,
    "schedule": "steps",
    "milestones": [],
}
EPOCHS = 4  # of each training; the first warms up, the last writes the checkpoint


class Amounts(NamedTuple):
    """How much is measured: little on a CPU, whose numbers only show that this file works."""

    batches: tuple[int, ...]
    chunks: tuple[int, ...]
    masks: int
    examples: int  # of an epoch
    train_batch: int
    curves: int  # images
    step: int  # pixels per point of a curve, at 224


GPU = Amounts((1, 16, 64, 256), (16, 64, 256), masks=1000, examples=384, train_batch=128, curves=8, step=224)
CPU = Amounts((1, 4), (16,), masks=40, examples=12, train_batch=4, curves=2, step=6272)


@dataclass(frozen=True)
class Run:
    """Where and how long."""

    device: torch.device
    size: int
    seconds: float
    architecture: str = "resnet50"

    @property
    def on_gpu(self):
        return self.device.type == "cuda"

    @property
    def amounts(self):
        return GPU if self.on_gpu else CPU

    def images(self, number):
        """Smooth noise (number, 3, size, size), the same on every device."""
        noise = torch.rand(number, 3, 9, 9, generator=torch.Generator().manual_seed(1))
        return resize(noise, self.size).to(self.device)


def network(run):
    """A ResNet-50 whose batch norms have seen images, so that its activations are of a trained one's size."""
    torch.manual_seed(0)
    model = build(run.architecture, range(1000)).to(run.device).train()
    for norm in (each for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        model(run.images(16))
    return model.eval()


def attempted(function):
    """What the function returns, or {"error": ...} with the traceback printed."""
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def peak(run, function):
    """(what the function returns, the most megabytes that tensors held on the GPU meanwhile or None)."""
    if not run.on_gpu:
        return function(), None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    torch.cuda.synchronize()
    return result, round(torch.cuda.max_memory_allocated() / 1e6)


def peaks(found):
    """All "peak_megabytes" inside of a part's numbers."""
    own = [found["peak_megabytes"]] if "peak_megabytes" in found else [0]
    return own + [each for value in found.values() if isinstance(value, dict) for each in peaks(value)]


def timed(run, function):
    """Wall-clock time of one call, synchronised."""
    if run.on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if run.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rates(run, functions, seconds):
    """name -> per_second and times_plain, of `functions` name -> (function, how many it makes): "plain" is the unit."""
    found, times = {}, {}
    for name, (function, _) in functions.items():
        found[name] = attempted(lambda function=function: {"peak_megabytes": peak(run, function)[1]})
        if "error" not in found[name]:
            function()
            times[name] = []
    end = time.monotonic() + seconds
    for turn in range(ROUNDS[1]):
        if turn >= ROUNDS[0] and time.monotonic() > end:
            break
        for name, own in times.items():
            own.append(timed(run, functions[name][0]))
    for name, own in times.items():
        made, plain = functions[name][1], functions["plain"][1]
        found[name]["per_second"] = round(made / statistics.median(own), 2)
        if name != "plain" and "plain" in times:
            shares = [made / mine / (plain / unit) for mine, unit in zip(own, times["plain"], strict=True)]
            found[name]["times_plain"] = round(statistics.median(shares), 4)
        found[name]["rounds"] = len(own)
    return found


def from_stored(settings):
    """What finetune_target trains, without its validation."""
    task = target_task(settings)
    task.validate = None
    return task


def on_device(settings):
    """The same with one batch that lies on the device: what the network and the loop take without the data."""
    task, size = from_stored(settings), settings["image_size"]
    images = torch.rand(settings["batch_size"], 3, size, size, device=settings["device"])
    labels = torch.zeros(settings["batch_size"], dtype=torch.long, device=settings["device"])
    task.read = lambda indices: (torch.zeros(len(indices)),)
    task.draw = lambda count, generator: torch.zeros(count, 0)
    task.augment = lambda rows, numbers: (images[: len(numbers)], labels[: len(numbers)])
    return task


def training(run):
    """Images per second of `loop.fit` (its epochs but the first and the last), in the precision that "auto" gives."""
    with scratch_folder("device-benchmark") as folder:
        data, examples = prepared(folder, run.amounts.examples, run.size)
        common = RECIPE | {"data": data, "target": run.architecture}
        common |= {"batch_size": run.amounts.train_batch, "epochs": EPOCHS, "image_size": run.size}
        common |= {"device": run.device.type}

        def trained(make_task, threads, seed):
            ends = []
            loop.fit(
                make_task,
                common | {"seed": seed},
                checkpoints=folder / "checkpoints",
                data_hash="noise",
                compute=Compute(device=run.device.type, threads=threads),
                checkpoint_seconds=1e9,
                log=lambda _: ends.append(time.perf_counter()),
            )
            return examples / statistics.median(np.diff(ends).tolist()[:-1])

        few = 2 if run.on_gpu else 1  # of params.yaml
        kinds = {"on_device": (on_device, few), f"from_stored, {few} threads": (from_stored, few)}
        if run.on_gpu and (most := processors()) > few:
            kinds[f"from_stored, {most} threads"] = (from_stored, most)
        rounds, memory, end = [], {}, time.monotonic() + 0.3 * run.seconds
        while len(rounds) < ROUNDS[0] or (time.monotonic() < end and len(rounds) < 5):
            rounds.append({})
            for name, kind in kinds.items():
                rounds[-1][name], memory[name] = peak(run, lambda kind=kind: trained(*kind, len(rounds)))
        task, generator = target_task(common | {"seed": 0}), torch.Generator().manual_seed(0)
        indices, before = torch.arange(min(run.amounts.train_batch, examples)), torch.get_num_threads()
        alone = {}

        def cpu_part():
            return task.read(indices), task.draw(len(indices), generator)

        for threads in sorted({kind[1] for kind in kinds.values()}):
            torch.set_num_threads(threads)
            cpu_part()
            taken = statistics.median(timed(run, cpu_part) for _ in range(3))
            alone[threads] = round(len(indices) / taken, 1)
        torch.set_num_threads(before)
    precision = Compute(device=run.device.type).resolved().precision
    found = {name: {"per_second": round(statistics.median(each[name] for each in rounds), 1)} for name in kinds}
    for name in found:
        shares = [each[name] / each["on_device"] for each in rounds]
        found[name] |= {"of_on_device": round(statistics.median(shares), 4), "peak_megabytes": memory[name]}
    about = {"precision": precision, "batch": run.amounts.train_batch, "rounds": len(rounds), "epochs": EPOCHS - 2}
    return (
        about | found | {"CPU part alone, per second, by threads": alone} | {"plain step": plain_step(run, precision)}
    )


def plain_step(run, precision):
    """Images per second of PyTorch's own step, without the loop: no determinism, no look at the loss."""
    model = build(run.architecture, range(2)).to(run.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = run.images(run.amounts.train_batch)
    labels = torch.zeros(len(images), dtype=torch.long, device=run.device)

    def step():
        optimizer.zero_grad()
        with torch.autocast(run.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return rates(run, {"plain": (step, run.amounts.train_batch)}, 0.02 * run.seconds)["plain"]


def processors():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def explained(run, kind):
    """The inference copy as the pipeline makes it, and methods name -> function(images, target), all in one precision.

    bfloat16 is `model.to(torch.bfloat16)`, images too; no autocast.
    """
    model, image = network(run), run.images(1)
    parts = {"amg": gate_for(model, image).to(run.device).eval(), "akd": Surrogate(model).to(run.device).eval()}
    parts["dgle_cf"] = predictor_of(model, image, controller="customized").to(run.device).eval()
    copied = inference_copy(model, image, keep=[parts["amg"].layer]).to(kind)
    options = {}
    for name, network_of_part in parts.items():
        part = EXPLAINERS[name].part
        with torch.no_grad():
            ready = part.prepared(network_of_part).to(kind)
        part.adopt(ready, copied)  # rounded weights are another model's
        options[name] = {part.option: ready}

    def method(name):
        return lambda images, target: explain(copied, images, target, method=name, **options.get(name, {}))

    return copied, {name: method(name) for name in METHODS}


def passing(model, images):
    """A plain pass and how many images it takes, as `rates` wants them."""

    def forward():
        with torch.inference_mode():
            model(images)

    return forward, len(images)


def frames_per_second(run):
    """precision -> batch -> method -> rate, and the best batch's of each method."""
    found = {}
    for precision, kind in PRECISIONS.items():
        copied, methods = explained(run, kind)
        own = found[precision] = {}
        for batch in run.amounts.batches:
            images, target = run.images(batch).to(kind), torch.arange(batch, device=run.device)
            functions = {"plain": passing(copied, images)}
            for name, method in methods.items():
                functions[name] = (lambda method=method, images=images, target=target: method(images, target)), batch
            own[batch] = rates(run, functions, 0.35 * run.seconds / len(run.amounts.batches) / len(PRECISIONS))
        best = {}
        for name in ("plain", *METHODS):
            speeds = {batch: own[batch][name].get("per_second", 0) for batch in run.amounts.batches if batch > 1}
            best[name] = max(speeds, key=speeds.get)
        own["best batch"] = best
    return found


def masks_and_points(run):
    """RISE's masks and insertion's points per second beside as many plain passes in batches of the chunk's size."""
    found = {}
    points = len(insertion_protocol((run.size, run.size), pixels_per_step=run.amounts.step).counts) * run.amounts.curves
    for precision, kind in PRECISIONS.items():
        copied = inference_copy(network(run), run.images(1)).to(kind)
        images = run.images(run.amounts.curves).to(kind)
        maps = torch.rand(run.amounts.curves, run.size, run.size, device=run.device)
        target = torch.arange(run.amounts.curves, device=run.device)
        for chunk in run.amounts.chunks:

            def rise(copied=copied, images=images, chunk=chunk):
                explain(copied, images[:1], 0, method="rise", masks=run.amounts.masks, chunk=chunk)

            def curves(copied=copied, images=images, target=target, maps=maps, chunk=chunk):
                insertion(copied, images, target, maps, pixels_per_step=run.amounts.step, chunk=chunk)

            functions = {"plain": passing(copied, run.images(chunk).to(kind)), "rise, masks": (rise, run.amounts.masks)}
            functions["insertion, points"] = curves, points
            share = 0.2 * run.seconds / len(run.amounts.chunks) / len(PRECISIONS)
            found[f"{precision}, chunk {chunk}"] = rates(run, functions, share)
    return found


def without_tf32():
    """Convolutions in full float32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def agreement(run):
    """Rank correlations of the maps of 2 images, and the largest difference of their insertion scores, per setting."""
    images, target, host = run.images(2).cpu(), torch.tensor([3, 5]), replace(run, device=torch.device("cpu"))
    torch.set_num_threads(processors() if run.on_gpu else torch.get_num_threads())
    original, ranked = network(host), torch.rand(2, run.size, run.size, generator=torch.Generator().manual_seed(0))
    options = {"grad_cam": {}, "smoe": {}, "fastcam": {}, "rise": {"masks": run.amounts.masks // 5, "chunk": 64}}

    def made(device, kind=torch.float32):
        model, own, classes = deep_copy(original).to(device, kind), images.to(device, kind), target.to(device)
        maps = {name: explain(model, own, classes, method=name, **each).cpu() for name, each in options.items()}
        return maps, insertion(model, own, classes, ranked.to(device), pixels_per_step=8 * 224)

    def compared(first, second):
        found = {name: rank_correlation(maps, second[0][name]).tolist() for name, maps in first[0].items()}
        spread = {name: float(maps.std() / maps.mean().abs()) for name, maps in first[0].items()}
        difference = float((first[1] - second[1]).abs().max())
        about = {"insertion, largest difference": difference, "insertion": first[1].tolist()}
        return about | {"rank correlation": found, "spread of the maps (std / mean)": spread}

    own, cpu = made(run.device), made(host.device)
    with without_tf32():
        full = made(run.device)
    half = made(run.device, torch.bfloat16)
    return {
        "device and CPU, float32": compared(own, cpu),
        "device and CPU, float32 without TF32": compared(full, cpu),
        "bfloat16 and float32 on the device": compared(half, own),
    }


def copies(run):
    """Whether inference_copy folds the batch norms or undoes itself, by how and where it is made, and what it saves."""
    model, image = network(run), run.images(1)
    noise = run.images(max(run.amounts.batches[-2:]))
    flags = {"cudnn.allow_tf32": torch.backends.cudnn.allow_tf32}
    flags["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    made = {"as the pipeline": inference_copy(model, image), "without an image": inference_copy(model)}
    with without_tf32():
        made["without TF32"] = inference_copy(model, image)
    made["on the CPU, then moved"] = inference_copy(deep_copy(model).cpu(), image.cpu()).to(run.device)
    found = {"norms of the model": sum(isinstance(each, nn.BatchNorm2d) for each in model.modules())}
    with torch.inference_mode():
        expected = model(image)
        for name, each in made.items():
            error = float((each(image) - expected).abs().max() / expected.abs().max())
            left = sum(isinstance(module, nn.BatchNorm2d) for module in each.modules())
            found[name] = {"norms left": left, "undid itself": left > 0, "largest error over largest logit": error}
    functions = {"plain": passing(model, noise)} | {name: passing(each, noise) for name, each in made.items()}
    for name, measured in rates(run, functions, 0.05 * run.seconds).items():
        found.setdefault(name, {}).update(measured)
    return flags | found


PARTS = (copies, agreement, frames_per_second, masks_and_points, training)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, help="also write the measurements there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seconds", type=count, default=45, help="for the rounds of all parts (default 45)")
    parser.add_argument("--size", type=count, default=224, help="pixels of a side (default 224)")
    parser.add_argument("--network", default="resnet50", help="a ResNet (default resnet50)")
    parser.add_argument("--only", nargs="+", choices=[part.__name__ for part in PARTS], help="these parts alone")
    arguments = parser.parse_args()
    compute = Compute(device=arguments.device).resolved()
    run = Run(torch.device(compute.device), arguments.size, arguments.seconds, arguments.network)
    facts = {"device": compute.device_name(), "torch": torch.__version__, "python": platform.python_version()}
    facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if compute.device == "cuda" else {}
    facts |= {"network": run.architecture, "size": run.size, "precision of trainings": compute.precision}
    begun = time.monotonic()
    for part in PARTS:
        if arguments.only and part.__name__ not in arguments.only:
            continue
        start, threads = time.monotonic(), torch.get_num_threads()
        result = attempted(lambda part=part: peak(run, lambda: part(run)))
        torch.set_num_threads(threads)
        found, most = result if isinstance(result, tuple) else (result, None)
        most = most and max(most, *peaks(found))  # what is measured inside begins anew
        taken = round(time.monotonic() - start, 1)
        facts[part.__name__] = {"seconds": taken, "peak_megabytes": most} | found
        facts["seconds"] = round(time.monotonic() - begun, 1)
        print(f"{part.__name__}: {json.dumps(facts[part.__name__], indent=1)}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
