"""Several processes, or one, behind the same calls: spawned on this machine, or started on many by torchrun.

Code that runs inside `run` asks `rank`, `world_size` and `shard` what its part is and puts the parts together with
`gather_in_order`. Outside of a process group there is one process, rank 0, and nothing changes.
"""

import atexit
import functools
import inspect
import math
import os
import pickle
import platform
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

import torch
from torch import distributed, multiprocessing

from xai_utils.files import scratch_folder
from xai_utils.networks.engine import lacking_for
from xai_utils.processes import die_with

HOST = torch.device("cpu")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")
# for `deterministic`; here, since CUDA reads it at the first matrix product of the process, which may come before
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@dataclass(frozen=True)
class Compute:
    """Where a training runs; CUDA_VISIBLE_DEVICES says which GPU "cuda" is.

    "auto" is a GPU where there is one, and bfloat16 (autocast, weights stay float32) where that GPU computes it
    natively; otherwise the CPU and float32. `threads` is per process, `prefetch` how many batches it reads ahead.
    `engine`: what makes the passes that need no gradient when a network is explained and evaluated
    (`networks.engine`).
    A precision of "bfloat16" that is asked for holds where networks are explained and evaluated, too (`casting`);
    "auto" is float32 there. `asked` is what the precision was before it was `resolved`.
    Of its share of a batch `micro_batch` examples pass the network at a time (None: all). `compile`: losses, with the
    networks in them, go through torch.compile. `scheduler`: address of a Dask scheduler, whose workers do independent
    jobs (workers.py): explain, score, retrain; without one processes of this machine do them.
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int = 1
    processes: int = 1
    engine: str = "auto"
    prefetch: int = 2
    micro_batch: int | None = None
    compile: bool = False
    scheduler: str | None = None
    asked: str = ""

    def resolved(self) -> "Compute":
        """The same with "auto" replaced by what this machine has; the engine's stays, for each network decides.

        ValueError for what it has not, ImportError for an engine, or a client of the scheduler, that is not installed.
        """
        if self.device not in DEVICES or self.precision not in PRECISIONS:
            raise ValueError(f"device is one of {DEVICES} and precision one of {PRECISIONS}; got {self}")
        lacking_for(self.engine)
        if min(self.threads, self.processes) < 1:
            raise ValueError(f"threads and processes are at least 1; got {self}")
        if self.prefetch < 0:
            raise ValueError(f"prefetch is 0 (batches are read in the step) or more, such as 2; got {self}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is 1 or more, or None (whole batches at a time); got {self}")
        if self.scheduler and find_spec("distributed") is None:
            raise ImportError(
                "compute.scheduler needs dask.distributed, which cannot be imported; install the extra `cluster` "
                '(pip install ".[cluster]"), or leave it empty'
            )
        gpu = torch.cuda.is_available()
        if self.device == "cuda" and not gpu:
            raise ValueError('device is "cuda", but torch finds no GPU; use "auto" or "cpu"')
        device = self.device if self.device != "auto" else "cuda" if gpu else "cpu"
        native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = self.precision if self.precision != "auto" else "bfloat16" if native else "float32"
        return replace(self, device=device, precision=precision, asked=self.asked or self.precision)

    def casting(self):
        """A context in which passes are made in bfloat16 if that was asked for; maps and scores remain float32.

        Of a resolved one.
        """
        return torch.autocast(self.device, torch.bfloat16, enabled=self.asked == "bfloat16")

    def decisive(self) -> dict:
        """What results may depend on, in their last digits or more: not how early batches are read, nor where."""
        return {name: value for name, value in asdict(self).items() if name not in ("prefetch", "scheduler", "asked")}

    def device_name(self) -> str:
        """What a record of a measurement or a training says of the device."""
        return torch.cuda.get_device_name() if self.device == "cuda" else platform.machine()


def rank() -> int:
    """This process's number, 0 ... world_size() - 1."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0 if distributed.is_initialized() else os.environ.get("RANK", "0") == "0"  # torchrun's


def shard(count: int) -> range:
    """The items, out of 0 ... count - 1, that this process works on: every world_size()-th, from rank() on."""
    return range(rank(), count, world_size())


def gather_in_order(values: torch.Tensor, count: int) -> torch.Tensor:
    """Each process's rows for the items of its `shard(count)`, put back in item order, on every process.

    values (len(shard(count)), ...) -> (count, ...), of the same type and on the same device. A process whose shard is
    empty may pass rows of any shape.
    """
    if len(values) != len(shard(count)):
        raise ValueError(f"rank {rank()} has {len(values)} rows; its shard of {count} items has {len(shard(count))}")
    if world_size() == 1 or count == 0:
        return values
    kinds = [None] * world_size()
    distributed.all_gather_object(kinds, (values.shape[1:], values.dtype))
    shape, kind = kinds[0]  # rank 0 has the first item, hence a row
    rows = values.new_zeros((math.ceil(count / world_size()), *shape), dtype=kind)  # (R, ...) equally long everywhere
    rows[: len(values)] = values.reshape(-1, *shape)
    sent = rows.reshape(-1).view(torch.uint8)  # bytes: every type travels, bool and bfloat16 too
    parts = [torch.empty_like(sent) for _ in range(world_size())]
    distributed.all_gather(parts, sent)
    parts = [part.view(kind).reshape(rows.shape) for part in parts]
    return torch.stack(parts, dim=1).flatten(0, 1)[:count]  # item i is row i // world of rank i % world


def map_in_order(function: Callable[[list[int]], torch.Tensor], count: int, *, batch_size: int) -> torch.Tensor:
    """`function(indices) -> rows (len(indices), ...)` over the items 0 ... count - 1, shared among the processes.

    Every process gets all rows (count, ...) in item order.
    """
    mine = list(shard(count))
    rows = [function(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
    return gather_in_order(torch.cat(rows) if rows else torch.zeros(0), count)


@contextmanager
def deterministic():
    """Operations that give the same bits each time, where there are such (torch warns where not)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # no code here reads such memory; 6 % of a step
    try:
        precise = {"allow_tf32": torch.backends.cudnn.allow_tf32}  # as it is: the default would switch it on
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, **precise):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def run(function: Callable, *args, processes: int = 1, threads: int = 1, device: str = "cpu"):
    """Call `function(*args)` in `processes` processes of `threads` threads each; return what rank 0 returns.

    One process is this one. More are spawned, each with its own GPU if `device` is "cuda", and end with this one; the
    first exception of any rank is raised here, with that rank's traceback. In a process that torchrun started, run
    joins torchrun's group instead, whose size must be `processes`, and every rank gets rank 0's result.

    Spawned processes import `function` anew, so it and every function among `args` must be importable: ValueError for
    a lambda, an inner function or one defined in a notebook, also inside a partial.
    """
    if distributed.is_initialized() or "WORLD_SIZE" in os.environ:
        return _join(function, args, processes, threads, device)
    if processes == 1:
        return _call(function, args, threads)
    if device == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(f"{processes} processes need a GPU each; this machine has {torch.cuda.device_count()}")
    for value in (function, *args):
        _check_importable(value)
    with scratch_folder("xai-processes") as folder:
        shared = (function, args, processes, threads, device, folder, os.getpid())
        context = multiprocessing.spawn(_worker, shared, nprocs=processes, join=False)
        try:
            while not context.join():
                pass
        except Exception as error:
            first = min(folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns, default=None)
            if first is None:  # killed from outside, or an exception that cannot travel
                raise
            cause, trace = pickle.loads(first.read_bytes())
            cause.add_note(f"Raised in {first.name.replace('error-', 'rank ')} of {processes}:\n{trace}")
            raise cause from error
        finally:
            for process in context.processes:
                process.kill()
                process.join()
        return pickle.loads((folder / "result").read_bytes())


def pool(workers: int, device: str = "cpu") -> ProcessPoolExecutor:
    """An executor of spawned processes of one thread each, for jobs that need nothing of each other.

    They start when there is work and end with this process, however it ends. With "cuda" worker i uses GPU i modulo
    their number.
    """
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    return ProcessPoolExecutor(workers, context, _begin, (numbers, device, os.getpid()))


def _begin(numbers, device: str, parent: int) -> None:
    die_with(parent)
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(numbers.get() % torch.cuda.device_count())


def _call(function: Callable, args: tuple, threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return function(*args)
    finally:
        torch.set_num_threads(before)


def _join(function: Callable, args: tuple, processes: int, threads: int, device: str):
    """`run` in a process that is already one of a group: torchrun's (joined once, left at exit) or our own."""
    if not distributed.is_initialized():
        _open_group(device, int(os.environ.get("LOCAL_RANK", 0)))
        atexit.register(distributed.destroy_process_group)
    if processes != world_size():
        raise ValueError(f"processes is {processes}, but the group that this process was started in has {world_size()}")
    result = [_call(function, args, threads)]
    distributed.broadcast_object_list(result, src=0, device=HOST)
    return result[0]


def _open_group(device: str, local_rank: int, **rendezvous) -> None:
    if device == "cuda":
        torch.cuda.set_device(local_rank)  # from now on "cuda" means this process's own GPU
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"  # tensors in main memory travel by gloo
    distributed.init_process_group(backend, **rendezvous)


def _worker(number: int, function: Callable, args: tuple, processes: int, threads: int, device: str, folder, parent):
    """One spawned process: its result or its exception goes into a file in `folder`."""
    die_with(parent)
    try:
        rendezvous = (folder / "rendezvous").as_uri()
        _open_group(device, number, init_method=rendezvous, rank=number, world_size=processes)
        result = _call(function, args, threads)
    except Exception as error:
        (folder / f"error-{number}").write_bytes(pickle.dumps((error, traceback.format_exc())))
        raise
    if number == 0:
        (folder / "result").write_bytes(pickle.dumps(result))
    distributed.destroy_process_group()


def _check_importable(value) -> None:
    if isinstance(value, functools.partial):
        for each in (value.func, *value.args, *value.keywords.values()):
            _check_importable(each)
    if not inspect.isfunction(value):
        return
    if value.__module__ == "__main__" or "<" in value.__qualname__:  # <lambda>, outer.<locals>.inner
        raise ValueError(
            f"{value.__module__}.{value.__qualname__} cannot be sent to another process: define it at the top level of "
            "a module that can be imported (not a notebook), or use processes=1"
        )
