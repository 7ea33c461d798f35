"""What a training image costs before the network sees it: python benchmarks/data_path.py [--json PATH]

One core, 512 images stored whole, 341 x 256 pixels, that lie in the page cache, batches of 128, crops of 224. The CPU
part is what a training does of a batch before a GPU fetches it: draw the crops, read the images as they are stored, and
pin them where there is a GPU. The other part, the crops themselves, runs where the network does; here it is measured on
the CPU. Beside both a
training step of ResNet-50 (float32, 8 images, SGD) on the same core. Rounds are interleaved, the shortest time counts.
Then two processes train together for an epoch, and each tells how many images it read. About three minutes.
"""

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import count, new_file, seconds

from xai_utils import datasets
from xai_utils.files import scratch_folder
from xai_utils.training import distributed, loop
from xai_utils.training.target import target_task

IMAGES, SIZE, BATCH, STEP_BATCH = 512, 224, 128, 8
SHORTER, LONGER = 256 / 224, 4 / 3  # of stored images: the shorter side over a crop's, the longer over the shorter
PART, SHARE = 0.15, 0.51  # what we promise: milliseconds of one core per image; of each of two processes, odd batches
SETTINGS = {
    "seed": 0,
    "epochs": 1,
    "learning_rate": 0.01,
    "schedule": "halving",
    "halve_every": 20,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "smallest_crop": 0.08,
}


def prepared(folder, images, size):
    """Noise in two classes, stored whole: the folder, as a task's setting, and the number of training images."""
    random, shorter = np.random.default_rng(0), round(SHORTER * size)
    shape = shorter, round(LONGER * shorter), 3
    for number in range(images):
        path = folder / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        picture.save(path, compress_level=0)
    options = {"image_size": size, "stored_size": shorter, "validation_fraction": 0.01}
    datasets.prepare(folder / "images", folder / "data", **options)
    return str(folder / "data"), len(datasets.load(folder / "data").train)


def counting_task(settings):
    """A target's training without its validation; afterwards each process has left the number of images it read."""
    task, read = target_task(settings), []
    read_rows = task.read

    def counted(indices):
        read.append(len(indices))
        return read_rows(indices)

    def tell(model):
        Path(settings["counts"], str(distributed.rank())).write_text(str(sum(read)), encoding="utf-8")
        return {}

    task.read, task.validate = counted, tell
    return task


def shares(data, folder, images):
    """The share of an epoch's images that each of two processes reads."""
    import data_path  # the processes know it by this name

    folder.mkdir()
    settings = SETTINGS | {"data": data, "target": "tiny_resnet", "batch_size": BATCH, "counts": str(folder)}
    compute = loop.Compute("cpu", processes=2)
    loop.fit(data_path.counting_task, settings, checkpoints=folder / "checkpoints", data_hash="noise", compute=compute)
    return [int((folder / str(rank)).read_text(encoding="utf-8")) / images for rank in range(2)]


def parts(data, images):
    """(what to call each part, images that it handles, the function)."""
    task = target_task(SETTINGS | {"data": data, "target": "resnet50", "batch_size": BATCH})
    generator, gpu = torch.Generator().manual_seed(0), torch.cuda.is_available()

    def read(count=BATCH):
        indices = torch.randperm(images, generator=generator)[:count]
        rows = (*task.read(indices), task.draw(len(indices), generator))
        return [row.pin_memory() for row in rows] if gpu else rows

    *rows, numbers = read(STEP_BATCH)
    optimizer = task.optimizer(task.model.train())

    def crop():
        return task.augment(tuple(rows), numbers)

    def step():
        optimizer.zero_grad()
        task.loss(task.model, batch, generator)[0].backward()
        optimizer.step()

    batch = crop()
    return {"CPU part": (read, min(BATCH, images)), "crops": (crop, STEP_BATCH), "training step": (step, STEP_BATCH)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, help="also write the measurements there")
    parser.add_argument("--rounds", type=count, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--images", type=count, default=IMAGES, help=f"images (default {IMAGES})")
    parser.add_argument("--size", type=count, default=SIZE, help=f"pixels of a side of a crop (default {SIZE})")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with scratch_folder("data-path") as folder:
        data, images = prepared(folder, arguments.images, arguments.size)
        measured = parts(data, images)
        times = {name: [] for name in measured}
        for function, _ in measured.values():
            function()  # warm up
        for turn in range(arguments.rounds):
            print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr)
            for name, (function, handled) in measured.items():
                times[name].append(1000 * seconds(function) / handled)
        read = shares(data, folder / "counts", images)
    rates = {name: round(1000 / min(own), 1) for name, own in times.items()}
    for name, own in times.items():
        print(f"{name:14} {min(own):8.3f} ms an image, median {statistics.median(own):.3f}; {rates[name]} a second")
    best, ratio = min(times["CPU part"]), rates["CPU part"] / rates["training step"]
    print(f"CPU part <= {PART} ms {'kept' if best <= PART else 'NOT KEPT'}: {ratio:.0f} times what a step takes")
    verdict = "kept" if max(read) <= SHARE else "NOT KEPT"
    print(f"two processes read {read[0]:.3f} and {read[1]:.3f} of the images, <= {SHARE} {verdict}")
    if arguments.json:
        facts = {
            "size": arguments.size,
            "images": images,
            "rounds": arguments.rounds,
            "machine": platform.machine(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "milliseconds per image": {name: [round(each, 4) for each in own] for name, own in times.items()},
            "images per second and core": rates,
            "CPU part": {"milliseconds": round(best, 4), "promised": PART},
            "path over training step": round(ratio, 1),
            "read by each of two processes": {"shares": read, "promised": SHARE},
        }
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
