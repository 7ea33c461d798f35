"""One training loop for every network of the project: a classifier, a student, a mask predictor, attention gates.

A `Task` says what is learned, `Compute` on what, and `fit` trains it. Everything random in step s of epoch e is drawn
from generators seeded with (seed, e, s) alone, so a training that is killed and started again goes on from its last
checkpoint and ends with the weights, bit for bit, of one that ran through (on a GPU where the operations that the
network uses have a deterministic version; torch warns of those that have none).

Several processes share each batch (DistributedDataParallel). They see the same batches in the same order as one
process, and follow the gradient of the mean over the whole batch. Two things differ: batch norm on the CPU takes its
statistics from each process's part of the batch (on GPUs from the whole batch), and dropout and the loss's own noise
are other draws. The same holds for the parts of `compute.micro_batch`, whose batch norms see a part on GPUs, too.
`torchrun ... -m xai_utils.training STAGE` trains on several machines that share a folder.
"""

import functools
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from xai_utils import sources
from xai_utils.files import fingerprint, write_text
from xai_utils.networks import evaluating
from xai_utils.training import checkpoints as storage
from xai_utils.training import distributed
from xai_utils.training.checkpoints import CheckpointError
from xai_utils.training.distributed import Compute
from xai_utils.training.reading import ahead

PROGRESS = ("epoch", "step", "steps_done", "sums", "history")  # what a checkpoint says of where the training stands
LOOK_STEPS = 50  # between looks at losses, which wait for the device: a stall in each step would cost a GPU a tenth


class DivergenceError(RuntimeError):
    """A loss, gradient or weight that is no finite number; names the step and the last good checkpoint."""


@dataclass(kw_only=True)
class Task:
    """What is learned. A module-level function of the settings makes it, anew in every process.

    The model comes in the modes (train, eval) in which it is to be trained. `draw` draws from its generator alone,
    `loss` from its generator or from torch's global one; `read` and `augment` draw nothing. Row i of the batch depends
    on its own example and numbers only, so it is the same whichever process makes it, and however early it is read.
    """

    model: nn.Module
    examples: int  # the training examples are 0 ... examples - 1
    read: Callable[[Tensor], tuple[Tensor, ...]]  # indices (n,) -> CPU tensors of those, as small as stored; in threads
    draw: Callable[[int, torch.Generator], Tensor] = lambda count, _: torch.zeros(count, 0)  # B -> each place's (B, k)
    # (what was read, its places' numbers, both on the device) -> the batch: tensors (n, ...)
    augment: Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]] = lambda rows, _: rows
    # (model, batch and generator on the device) -> the mean loss over the batch, further such means to log by name
    loss: Callable[[nn.Module, tuple[Tensor, ...], torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]  # over the parameters that are to be trained
    epochs: int
    batch_size: int  # of all processes together
    schedule: Callable[[float], float] = lambda epoch: 1.0  # epochs passed -> factor on the optimizer's rates
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None  # after each epoch; eval mode, no gradients
    frozen: Sequence[nn.Module] = ()  # what the loss reads (a teacher): put on the device, in eval mode, never saved

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the loss gets for a whole batch `indices` (B,), here and on the CPU."""
        return self.augment(self.read(indices), self.draw(len(indices), generator))


@dataclass(frozen=True)
class Fitted:
    """A finished training."""

    weights: dict[str, Tensor]  # the model's state_dict, on the CPU
    history: list[dict]  # a row per epoch: epoch, learning_rate, train_loss, logged means, gradient_norm, validation's
    key: str
    folder: Path  # of the checkpoint
    resumed_from: int  # steps that earlier calls had taken; all of them if the training was finished


def step_decay(milestones: Sequence[float], factor: float = 0.1) -> Callable[[float], float]:
    """A schedule: the rate is multiplied by `factor` when each epoch of `milestones` has passed."""
    return lambda epoch: factor ** sum(epoch >= milestone for milestone in milestones)


def fit(
    make_task: Callable[[dict], Task],
    settings: Mapping,
    *,
    checkpoints: Path,
    data_hash: str,
    compute: Compute | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_seconds: float = 0,
    log: Callable[[str], object] | None = None,
) -> Fitted:
    """Train what `make_task(settings)` describes, or go on from where an earlier call was ended.

    The checkpoint lies in `checkpoints`/key. The key stands for all that the weights depend on: the task's name, its
    `settings` (JSON, with an integer "seed"), `data_hash`, the sources of the task and of all that it imports of this
    package (`sources.closure`), kind of device, precision, threads and processes. So another setting is another
    training, and a finished one is returned at once. A checkpoint is written after every epoch (at most every
    `checkpoint_seconds`, and after the last) and every `checkpoint_steps` steps. `log` gets one line per epoch, in the
    main process. BlockingIOError where another process is at this very training.

    An epoch's examples are shuffled and split into ceil(examples / batch_size) batches, as evenly as can be: no last
    batch is too small for batch statistics. Raises DivergenceError, CheckpointError, ValueError for unusable settings.
    """
    compute = (compute or Compute()).resolved()
    try:
        settings = json.loads(json.dumps(dict(settings), allow_nan=False))  # the same as when read from a file
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must be what JSON can hold ({error}); got {settings}") from error
    if not isinstance(settings.get("seed"), int):
        raise ValueError(f'settings need an integer "seed"; got {settings}')
    made_from = {
        "task": sources.name_of(make_task),
        "settings": settings,
        "data": data_hash,
        "code": sources.fingerprint_of(make_task, fit),
        "compute": {name: value for name, value in compute.decisive().items() if name != "engine"},  # not a training's
    }
    key = fingerprint(made_from)
    folder = Path(checkpoints) / key
    with storage.held(folder) if distributed.is_main() else nullcontext():
        before = storage.read_record(folder)
        if before is None or not before["finished"]:
            work = (make_task, settings, compute, folder, made_from, checkpoint_steps, checkpoint_seconds, log)
            distributed.run(_train, *work, processes=compute.processes, threads=compute.threads, device=compute.device)
        tensors, record = storage.load(folder)
    steps_before = before["progress"]["steps_done"] if before else 0
    return Fitted(_model_state(tensors), record["progress"]["history"], key, folder, steps_before)


def named(log: Callable[[str], object] | None, name: str) -> Callable[[str], object] | None:
    """`log` for one of several trainings, whose lines begin with its name."""
    return log and functools.partial(_log_named, log, name)  # a spawned process must be able to receive it


def _log_named(log, name, text):
    log(f"{name}: {text}")


def write_curves(history: Sequence[Mapping], path: Path) -> None:
    """Write the history as a table, one row per epoch, tab-separated: what `dvc plots` draws."""
    names = list(dict.fromkeys(name for row in history for name in row))
    rows = [names, *([str(row.get(name, "")) for name in names] for row in history)]
    text = "".join("\t".join(row) + "\n" for row in rows)
    write_text(path, text)


class _Training:
    """The state of one training in one of its processes."""

    def __init__(self, make_task: Callable, settings: Mapping, compute: Compute, folder: Path, made_from: Mapping):
        self.compute, self.folder, self.made_from, self.seed = compute, folder, made_from, settings["seed"]
        self.device, self.world = torch.device(compute.device), distributed.world_size()
        _seed_global(self.device, self.seed)  # the weights that the model starts from
        self.task = task = make_task(settings)
        sizes = {name: getattr(task, name) for name in ("examples", "batch_size", "epochs")}
        if min(sizes.values()) < 1:
            raise ValueError(f"examples, batch_size and epochs of a task are at least 1; got {sizes}")
        self.steps = math.ceil(task.examples / task.batch_size)  # of an epoch
        if task.examples // self.steps < self.world:
            raise ValueError(f"{self.world} processes cannot share a batch of {task.examples // self.steps}; use fewer")
        for network in task.frozen:
            network.to(self.device).eval().requires_grad_(False)
        self.model = task.model.to(self.device, memory_format=torch.channels_last)  # 1.5 times as fast, on CPUs too
        if self.world > 1 and self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.optimizer = task.optimizer(self.model)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch = self.step = self.steps_done = 0  # steps done of this epoch, and of all
        self.sums, self.history = {}, []  # the loss and the logged means summed over this epoch's examples so far; rows
        self.taken = []  # of each step not looked at: its number of examples, and its values, on the device
        self.names = []  # of what the loss logs in this epoch
        self.saved = time.monotonic()
        self.resume()
        self.loss = _Loss(self.model, task.loss).to(self.device)
        if compute.compile:
            self.loss.compile()
        if self.world > 1:  # looking for unused parameters also fixes the order of sums, so that a resume keeps bits
            self.loss = nn.parallel.DistributedDataParallel(self.loss, find_unused_parameters=True)

    def batches(self) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Of every step from here on: how many examples its batch has, and this process's part, read ahead."""
        read, gpu = self.read, self.device.type == "cuda"
        begin = functools.partial(torch.cuda.set_device, torch.cuda.current_device()) if gpu else None
        return ahead(read, self.moments(), count=self.compute.prefetch, begin=begin)

    def moments(self) -> Iterator[tuple[int, int, Tensor]]:
        """(epoch, step, indices of the batch of all processes) of every step from here on."""
        first = self.step
        for epoch in range(self.epoch, self.task.epochs):
            order = torch.randperm(self.task.examples, generator=_generator("cpu", self.seed, epoch))
            for step, indices in enumerate(order.tensor_split(self.steps)[first:], first):
                yield epoch, step, indices
            first = 0

    def read(self, moment: tuple[int, int, Tensor]) -> tuple[int, tuple[Tensor, ...]]:
        """One of `batches`; the numbers of its places come last. Pinned where a GPU is to fetch it."""
        epoch, step, indices = moment
        mine = slice(distributed.rank(), None, self.world)
        numbers = self.task.draw(len(indices), _generator("cpu", self.seed, epoch, step, "batch"))
        rows = (*self.task.read(indices[mine]), numbers[mine].contiguous())
        return len(indices), tuple(row.pin_memory() for row in rows) if self.device.type == "cuda" else rows

    def run_epoch(self, batches: Iterator, checkpoint_steps: int | None, checkpoint_seconds: float) -> None:
        """Take the rest of the epoch's steps, validate, and write the checkpoint if one is due."""
        task = self.task
        while self.step < self.steps:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * task.schedule(self.epoch + self.step / self.steps)
            self.take_step(*next(batches))
            if len(self.taken) == LOOK_STEPS or self.step == self.steps:
                self.look()
            if checkpoint_steps and self.steps_done % checkpoint_steps == 0 and self.step < self.steps:
                self.save()
        row = {"epoch": self.epoch + 1, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        row |= {name: total / task.examples for name, total in self.sums.items()}
        if task.validate is not None:
            _seed_global(self.device, self.seed, self.epoch, "validate")
            for buffer in self.model.buffers() if self.world > 1 else ():  # each process has its own batch statistics
                torch.distributed.broadcast(buffer, 0)
            with evaluating(self.model), torch.no_grad():
                row |= {name: float(value) for name, value in task.validate(self.model).items()}
        self.epoch, self.step, self.sums, self.names = self.epoch + 1, 0, {}, []
        self.history = [*self.history, row]
        if self.epoch == task.epochs or time.monotonic() - self.saved >= checkpoint_seconds:
            self.save()

    def take_step(self, count: int, rows: tuple[Tensor, ...]) -> None:
        """One step down the gradient of the mean loss over the `count` examples of all processes, without waiting."""
        moment, rank = (self.seed, self.epoch, self.step), distributed.rank()
        *read, numbers = (row.to(self.device, non_blocking=True) for row in rows)
        batch, size = self.task.augment(tuple(read), numbers), self.compute.micro_batch or len(numbers)
        *first, last = zip(*(each.split(size) for each in batch), strict=True)
        generator = _generator(self.device, *moment, "loss", rank)
        _seed_global(self.device, *moment, "loss, global", rank)  # dropout: other draws in every process
        self.optimizer.zero_grad()
        with self.loss.no_sync() if self.world > 1 else nullcontext():  # gradients add up
            values = [self.take_part(part, count, generator) for part in first]
        values.append(self.take_part(last, count, generator))
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = nn.utils.get_total_norm([weight.grad for weight in trained if weight.grad is not None])
        self.optimizer.step()
        self.taken.append((count, torch.cat([sum(values), norm.double().reshape(1) * (len(numbers) / count)])))
        self.step, self.steps_done = self.step + 1, self.steps_done + 1

    def take_part(self, part: tuple[Tensor, ...], count: int, generator: torch.Generator) -> Tensor:
        """Add the share of some of a step's `count` examples to its gradient; returns their share of its means."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.compute.precision == "bfloat16"):
            loss, means = self.loss(part, generator)
        share = len(part[0]) / count
        (loss * (share * self.world)).backward()  # DDP takes the mean over the processes
        values = {"train_loss": loss.detach(), **means}
        if self.names not in ([], [*values]):
            raise ValueError(f"the loss logs {[*values]} in one step and {self.names} in another of an epoch")
        self.names = [*values]
        return torch.stack([value.double().reshape(()) for value in values.values()]) * share

    def look(self) -> None:
        """Add the steps since the last look to the epoch's sums; DivergenceError names the first that is no number."""
        if not self.taken:
            return
        counts, values = zip(*self.taken, strict=True)
        values = torch.stack(values)  # (steps, names): of this process's part
        if self.world > 1:
            torch.distributed.all_reduce(values)
        for step, (count, row) in enumerate(zip(counts, values.tolist(), strict=True), self.step - len(counts) + 1):
            row = dict(zip([*self.names, "gradient_norm"], row, strict=True))
            if not math.isfinite(row["train_loss"]):
                raise self.diverged(f"the loss is {row['train_loss']}", step)
            if not math.isfinite(norm := row["gradient_norm"]):
                raise self.diverged(f"the gradient's norm is {norm} at a loss of {row['train_loss']:.6g}", step)
            self.sums = {name: self.sums.get(name, 0.0) + value * count for name, value in row.items()}
        self.taken = []

    def save(self) -> None:
        """Write the checkpoint, in the main process. The one of a finished training holds the model alone."""
        self.look()
        names, weights = zip(*self.model.named_parameters(), strict=True)
        finite = torch.stack([weight.isfinite().all() for weight in weights]).tolist()
        if not all(finite):
            raise self.diverged(f"{names[finite.index(False)]} holds numbers that are not finite", self.step + 1)
        if not distributed.is_main():
            return
        finished = self.epoch == self.task.epochs
        tensors, optimizer = ({}, None) if finished else storage.flatten(self.optimizer.state_dict(), "optimizer")
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        made_by = [platform.python_version(), torch.__version__, self.compute.device_name()]
        record = {"finished": finished, "made_from": self.made_from, "made_by": made_by, "optimizer": optimizer}
        record["progress"] = {name: getattr(self, name) for name in PROGRESS}
        storage.save(self.folder, tensors, record)
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Take over the model, the optimizer and the progress of the checkpoint, if there is one."""
        if (found := storage.load(self.folder)) is None:
            return
        tensors, record = found
        try:
            self.model.load_state_dict(_model_state(tensors))
            self.optimizer.load_state_dict(storage.unflatten(record["optimizer"], tensors))
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.folder} does not fit the model and optimizer of {self.made_from['task']}: "
                f"{error}\nDelete the folder and run again."
            ) from error
        for name in PROGRESS:
            setattr(self, name, record["progress"][name])
        self.names = [*self.sums][:-1]

    def diverged(self, what: str, step: int) -> DivergenceError:
        last = storage.read_record(self.folder)
        kept = f"the one after step {last['progress']['steps_done']} is kept" if last else "none was written yet"
        return DivergenceError(
            f"{what} at epoch {self.epoch + 1}, step {step} of {self.steps} (step {self.steps_done - self.step + step} "
            f"in all). Lower the learning rate. Last good checkpoint in {self.folder}: {kept}."
        )


class _Loss(nn.Module):
    """The loss as a module: it may use any part of the model, and DDP still sees one forward pass."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss
        self.unused = nn.Parameter(torch.zeros(()))  # DDP, told to expect such, warns in every process if there is none

    def forward(self, batch, generator):
        loss, means = self.loss(self.model, batch, generator)
        return loss.float(), {name: torch.as_tensor(value).detach().to(loss.device) for name, value in means.items()}


def _train(make_task, settings, compute, folder, made_from, checkpoint_steps, checkpoint_seconds, log) -> None:
    """`fit` in one of the processes: train and leave the finished checkpoint in `folder`."""
    gpus = [torch.cuda.current_device()] if compute.device == "cuda" else []
    with torch.random.fork_rng(gpus), distributed.deterministic():
        training = _Training(make_task, settings, compute, folder, made_from)
        with closing(training.batches()) as batches:
            while training.epoch < training.task.epochs:
                training.run_epoch(batches, checkpoint_steps, checkpoint_seconds)
                if log is not None and distributed.is_main():
                    row = training.history[-1]
                    facts = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
                    log(f"epoch {row['epoch']} of {training.task.epochs}: {facts}")
                    sys.stdout.flush()  # a spawned process's output is buffered


def _mix(*parts) -> int:
    """A seed for torch that depends on all parts."""
    return int(fingerprint(parts)[:15], 16)


def _seed_global(device: torch.device, *parts) -> None:
    """Seed torch's own generators of the CPU and of `device`: torch.manual_seed asks all backends, 2 ms of a step."""
    torch.default_generator.manual_seed(_mix(*parts))
    if device.type == "cuda":
        torch.cuda.manual_seed(_mix(*parts))


def _generator(device: torch.device | str, *parts) -> torch.Generator:
    return torch.Generator(device).manual_seed(_mix(*parts))


def _model_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
