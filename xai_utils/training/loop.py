"""One training loop for every network of the project: a classifier, a student, a mask predictor, attention gates.

A `Task` says what is learned, `Compute` on what, and `fit` trains it. Everything random in step s of epoch e is drawn
from generators seeded with (seed, e, s) alone, so a training that is killed and started again goes on from its last
checkpoint and ends with the weights, bit for bit, of one that ran through (on a GPU where the operations that the
network uses have a deterministic version; torch warns of those that have none).

Several processes share each batch (DistributedDataParallel). They see the same batches in the same order as one
process, and follow the gradient of the mean over the whole batch. Two things differ: batch norm on the CPU takes its
statistics from each process's part of the batch (on GPUs from the whole batch), and dropout and the loss's own noise
are other draws. `torchrun ... -m xai_utils.training REQUEST.json` trains on several machines that share a folder.
"""

import functools
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
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

PROGRESS = ("epoch", "step", "steps_done", "sums", "history")  # what a checkpoint says of where the training stands


class DivergenceError(RuntimeError):
    """A loss, gradient or weight that is no finite number; names the step and the last good checkpoint."""


@dataclass(kw_only=True)
class Task:
    """What is learned. A module-level function of the settings makes it, anew in every process.

    The model comes in the modes (train, eval) in which it is to be trained. `batch` and `loss` draw random numbers
    from their generator, or from torch's global one, and from nowhere else.
    """

    model: nn.Module
    examples: int  # the training examples are 0 ... examples - 1
    batch: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]  # indices (B,) -> CPU tensors (B, ...), augmented
    # (model, batch and generator on the device) -> the mean loss over the batch, further such means to log by name
    loss: Callable[[nn.Module, tuple[Tensor, ...], torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]  # over the parameters that are to be trained
    epochs: int
    batch_size: int  # of all processes together
    schedule: Callable[[float], float] = lambda epoch: 1.0  # epochs passed -> factor on the optimizer's rates
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None  # after each epoch; eval mode, no gradients
    frozen: Sequence[nn.Module] = ()  # what the loss reads (a teacher): put on the device, in eval mode, never saved


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
        "compute": {name: value for name, value in asdict(compute).items() if name != "engine"},  # not a training's
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
        self.model = task.model.to(self.device)
        if self.world > 1 and self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.optimizer = task.optimizer(self.model)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch = self.step = self.steps_done = 0  # steps done of this epoch, and of all
        self.sums, self.history = {}, []  # the loss and the logged means summed over this epoch's examples so far; rows
        self.saved = time.monotonic()
        self.resume()
        self.loss = _Loss(self.model, task.loss).to(self.device)
        if self.world > 1:  # looking for unused parameters also fixes the order of sums, so that a resume keeps bits
            self.loss = nn.parallel.DistributedDataParallel(self.loss, find_unused_parameters=True)

    def run_epoch(self, checkpoint_steps: int | None, checkpoint_seconds: float) -> None:
        """Take the rest of the epoch's steps, validate, and write the checkpoint if one is due."""
        task = self.task
        order = torch.randperm(task.examples, generator=_generator("cpu", self.seed, self.epoch))
        for indices in order.tensor_split(self.steps)[self.step :]:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * task.schedule(self.epoch + self.step / self.steps)
            self.take_step(indices)
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
        self.epoch, self.step, self.sums, self.history = self.epoch + 1, 0, {}, [*self.history, row]
        if self.epoch == task.epochs or time.monotonic() - self.saved >= checkpoint_seconds:
            self.save()

    def take_step(self, indices: Tensor) -> None:
        """One step down the gradient of the mean loss over the batch `indices` of all processes."""
        moment, rank = (self.seed, self.epoch, self.step), distributed.rank()
        _seed_global(self.device, *moment, "batch, global")
        whole = self.task.batch(indices, _generator("cpu", *moment, "batch"))
        batch = tuple(part[rank :: self.world].to(self.device) for part in whole)
        share = len(distributed.shard(len(indices))) / len(indices)
        _seed_global(self.device, *moment, "loss, global", rank)  # dropout: other draws in every process
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.compute.precision == "bfloat16"):
            loss, means = self.loss(batch, _generator(self.device, *moment, "loss", rank))
        values = torch.stack([value.detach().double().reshape(()) for value in (loss, *means.values())]) * share
        if self.world > 1:
            torch.distributed.all_reduce(values)
        values = dict(zip(["train_loss", *means], values.tolist(), strict=True))
        if self.sums and self.sums.keys() - {"gradient_norm"} != values.keys():
            raise ValueError(f"the loss logs {list(values)} in one step and {list(self.sums)} in another of an epoch")
        if not math.isfinite(values["train_loss"]):
            raise self.diverged(f"the loss is {values['train_loss']}")
        (loss * (share * self.world)).backward()  # DDP takes the mean over the processes
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = nn.utils.get_total_norm([weight.grad for weight in trained if weight.grad is not None])
        if not norm.isfinite():
            raise self.diverged(f"the gradient's norm is {norm.item()} at a loss of {values['train_loss']:.6g}")
        self.optimizer.step()
        values["gradient_norm"] = norm.item()
        self.sums = {name: self.sums.get(name, 0.0) + value * len(indices) for name, value in values.items()}
        self.step, self.steps_done = self.step + 1, self.steps_done + 1

    def save(self) -> None:
        """Write the checkpoint, in the main process. The one of a finished training holds the model alone."""
        for name, value in self.model.named_parameters():
            if not value.isfinite().all():
                raise self.diverged(f"{name} holds numbers that are not finite")
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

    def diverged(self, what: str) -> DivergenceError:
        last = storage.read_record(self.folder)
        kept = f"the one after step {last['progress']['steps_done']} is kept" if last else "none was written yet"
        return DivergenceError(
            f"{what} at epoch {self.epoch + 1}, step {self.step + 1} of {self.steps} (step {self.steps_done + 1} in "
            f"all). Lower the learning rate. Last good checkpoint in {self.folder}: {kept}."
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
        while training.epoch < training.task.epochs:
            training.run_epoch(checkpoint_steps, checkpoint_seconds)
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
