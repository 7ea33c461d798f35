"""Small trainings and group jobs that spawned and killed processes of the tests can import."""

import contextlib
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import safetensors.torch
import torch
from torch import nn

from xai_utils.training import distributed, loop

HERE = Path(__file__).resolve().parent
EXAMPLES, CLASSES = 25, 3  # odd on purpose: neither batches nor processes divide it
EXTRA = 0  # outputs that a change of the code adds


class KilledHere(Exception):
    """Raised by the toy task in place of a kill, where the test wants to go on in the same process."""


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright column at the place that is the class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(EXAMPLES) % CLASSES
    pixels = torch.rand(EXAMPLES, 1, 6, 6, generator=generator)
    for index, label in enumerate(labels):
        pixels[index, :, :, 2 * label] += 1.0
    return pixels, labels


def make_classifier(settings: dict) -> loop.Task:
    """Convolution, normalisation, dropout; noise as augmentation; everything that a resume could get wrong."""
    normalisation = nn.BatchNorm2d(4) if settings.get("norm") == "batch" else nn.GroupNorm(2, 4)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), normalisation, nn.ReLU(), nn.Dropout(settings.get("dropout", 0.0)), nn.Flatten(),
        nn.Linear(64, CLASSES + EXTRA),
    )  # fmt: skip
    pixels, labels = images()
    rate = settings.get("rate", 0.05)
    steps = {"done": 0}

    def read(indices):
        return pixels[indices], labels[indices]

    def draw(count, generator):
        return 0.1 * torch.randn(count, 1, 6, 6, generator=generator)

    def augment(rows, noise):
        return rows[0] + noise, rows[1]

    def loss(network, rows, generator):
        steps["done"] += 1
        if steps["done"] == settings.get("raise_in_call"):
            raise KilledHere(f"rank {distributed.rank()}")
        scale = float("nan") if steps["done"] == settings.get("nan_in_call") else 1.0
        logits = network(rows[0] + settings.get("loss_noise", 0.0) * torch.rand(rows[0].shape, generator=generator))
        right = (logits.argmax(1) == rows[1]).float().mean()
        return scale * nn.functional.cross_entropy(logits, rows[1]), {"train_accuracy": right}

    def optimizer(network):
        if settings.get("optimizer") == "adam":
            return torch.optim.AdamW(network.parameters(), lr=rate)
        return torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=1e-3)

    def validate(network):
        rows = distributed.map_in_order(lambda indices: network(pixels[indices]), EXAMPLES, batch_size=4)
        return {"accuracy": (rows.argmax(1) == labels).double().mean(), "logits": rows.double().sum()}

    return loop.Task(
        model=model,
        examples=EXAMPLES,
        read=read,
        draw=draw,
        augment=augment,
        loss=loss,
        optimizer=optimizer,
        epochs=settings.get("epochs", 3),
        batch_size=settings.get("batch_size", 7),
        schedule=loop.step_decay([1.5, 2], 0.5),
        validate=validate,
    )


def make_recorded(settings: dict) -> loop.Task:
    """Nothing is learned: each process leaves the indices that it read and the crops that it saw in a file."""
    from xai_utils.training.recipes import crops_of  # seconds of imports that the other tasks do without

    pixels = torch.randint(0, 256, (EXAMPLES, 3, 17, 19), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    seen, asked = [], []

    def pixels_of(indices):
        asked.append(indices.tolist())
        return pixels[indices]

    split = SimpleNamespace(stored=lambda indices: (pixels_of(indices),))

    def loss(network, rows, generator):
        seen.append(rows)
        return network.weight.sum(), {}

    def validate(network):
        torch.save({"read": asked, "seen": seen}, Path(settings["folder"], f"{distributed.rank()}.pt"))
        return {}

    return loop.Task(
        model=nn.Linear(1, 1),
        examples=EXAMPLES,
        **crops_of(split, torch.arange(EXAMPLES), {"smallest_crop": 0.1}),
        loss=loss,
        optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.0),
        epochs=2,
        batch_size=7,
        validate=validate,
    )


def start(*arguments: str, **options) -> subprocess.Popen:
    """A new Python process that can import the package and this module."""
    path = os.pathsep.join(str(folder) for folder in (HERE.parent, HERE))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **options)


def fit(folder: Path, settings: dict, **options) -> loop.Fitted:
    """`loop.fit` of the classifier with the tests' usual arguments."""
    options = {"checkpoint_steps": 2, **options}
    return loop.fit(make_classifier, {"seed": 3, **settings}, checkpoints=folder, data_hash="toy", **options)


def fit_several(folder: Path, several: list[dict]) -> list:
    """Several trainings in the group that runs this, each gone on with for as often as it raises."""
    found = []
    while len(found) < len(several):
        with contextlib.suppress(KilledHere):
            settings = several[len(found)]
            compute = loop.Compute("cpu", processes=2, micro_batch=settings.get("micro_batch"))
            found.append(fit(folder, settings, compute=compute))
    return [(fitted.weights, fitted.history, fitted.resumed_from) for fitted in found]


def gather(counts: list[int]) -> list:
    """For each count: rows of several types, made by each process for its shard, put back in order."""
    results = []
    for count in counts:
        mine = torch.tensor(list(distributed.shard(count)), dtype=torch.int64)
        rows = [mine, mine[:, None].expand(-1, 6).bfloat16(), mine % 2 == 0]
        results.append([distributed.gather_in_order(row, count) for row in rows])
        results[-1].append(distributed.map_in_order(lambda part: torch.tensor(part) * 10.0, count, batch_size=2))
    return results


def group_job(folder: Path, several: list[dict], counts: list[int]) -> dict:
    """Everything that the tests ask of two processes, in one spawn."""
    return {"fits": fit_several(folder, several), "gathered": gather(counts), "threads": torch.get_num_threads()}


def raise_in_rank_one() -> None:
    if distributed.rank() == 1:
        raise KilledHere("rank one is unwell")
    distributed.gather_in_order(torch.zeros(len(distributed.shard(3))), 3)  # rank 0 waits here for the other


def report_and_sleep(folder: Path) -> None:
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(120)


def fit_and_die(folder: Path, settings: dict, moment: dict) -> None:
    """Train, and kill this process without warning at the n-th call of a function, before or after it."""
    owner = {"augment": None, "fsync": os, "replace": os, "unlink": Path, "save_file": safetensors.torch}[moment["at"]]
    calls = {"done": 0}

    def deadly(function):
        def wrapped(*args, **options):
            calls["done"] += 1
            last = calls["done"] == moment["call"]
            if last and moment["when"] == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **options)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    if owner is None:
        loop.Task.__init__ = _with_deadly_augmentation(loop.Task.__init__, deadly)
    else:
        setattr(owner, moment["at"], deadly(getattr(owner, moment["at"])))
    fit(folder, settings)


def _with_deadly_augmentation(make, deadly):
    def wrapped(task, **parts):
        make(task, **{**parts, "augment": deadly(parts["augment"])})

    return wrapped


def disk_full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def main(request: str) -> None:
    """Run the jobs of a JSON list one after the other, each in a fork of this fresh process; print how they ended."""
    job = json.loads(request)
    if job["do"] == "sleep":
        distributed.run(report_and_sleep, Path(job["folder"]), processes=2)
        return
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # every optimizer imports it: once here rather than in each fork
    for folder, settings, moment in job["jobs"]:
        child = os.fork()  # no torch work and no threads so far, so a fork is safe, and torch is imported once
        if child == 0:
            try:
                fit_and_die(Path(folder), settings, moment)
            finally:
                os._exit(7)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    import toy_tasks  # the task's name, and so the checkpoint's key, is that of the importable module

    toy_tasks.main(sys.argv[1])
