"""Independent jobs: here, in processes of this machine, or on the workers of a Dask scheduler, with the same results.

A job is a function at the top level of a module and its arguments, which are plain values; what it makes it returns, or
leaves in files of its own. Dask's workers see the same files: they run where this folder has the same path.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

import torch

from xai_utils.training import distributed
from xai_utils.training.distributed import Compute

REACHED = 10  # seconds in which a scheduler answers
_one_at_a_time = threading.Lock()  # torch's generator and number of threads are the process's
_open = {}  # what this process keeps open for jobs: the key of an `Opened` -> what its function returned


@dataclass(frozen=True)
class Opened:
    """What jobs have in common and takes long, such as a network: each process calls `function(*arguments)` once."""

    function: Callable
    arguments: tuple = ()
    key: str = field(default_factory=lambda: uuid4().hex)

    def here(self):
        """What this process has open; that of another is let go."""
        if self.key not in _open:
            _open.clear()
            _open[self.key] = self.function(*self.arguments)
        return _open[self.key]


@contextmanager
def workers(compute: Compute) -> Iterator[Callable[..., Iterator[tuple[int, object]]]]:
    """A function `done(function, jobs)` -> (place, result) of `function(*job)` for each of `jobs`, as they are done.

    They run on the workers of the Dask scheduler at `compute.scheduler`; without one in `compute.processes` processes
    of this machine, which end with it (on GPUs, each on its own), or, if that is one, in this process. Each job has
    `compute.threads` threads, and nothing runs beside it in its process. With `opened=`, an `Opened`, what that opens
    comes before its arguments. What a job raises is raised here and cancels the others. A worker of Dask that dies
    costs its job: another does it again.
    """
    if compute.scheduler:
        with _client(compute.scheduler) as client:
            yield partial(_done, partial(_by_dask, client), compute.threads)
    elif compute.processes == 1:
        try:
            yield partial(_done, _here, compute.threads)
        finally:
            _open.clear()
    else:
        with distributed.pool(compute.processes, compute.device) as pool:
            yield partial(_done, partial(_by_processes, pool, compute.processes), compute.threads)


def _done(way, threads, function, jobs, *, opened=None):
    return way(partial(_alone, threads, opened, function), jobs)


def _here(perform, jobs):
    for place, job in enumerate(jobs):
        yield place, perform(job)


def _by_processes(pool, count, perform, jobs):
    places = {pool.submit(perform, job): place for place, job in enumerate(jobs)}
    for _ in range(count if places else 0):
        pool.submit(int)  # all processes start with the first jobs, however few; else the next jobs would wait for them
    try:
        for future in as_completed([*places]):
            yield places.pop(future), future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


@contextmanager
def _client(address):
    from dask.distributed import Client  # an extra; `Compute.resolved` says so

    try:
        client = Client(address, timeout=REACHED, set_as_default=False)
    except OSError as error:
        raise ConnectionError(f"no Dask scheduler answers at {address} (compute.scheduler); start one there") from error
    with client:
        yield client


def _by_dask(client, perform, jobs):
    from dask.distributed import as_completed

    given = os.getcwd(), perform
    futures = [client.submit(_in_folder, *given, job, pure=False) for job in jobs]  # not pure: a job may leave files
    places = {future.key: place for place, future in enumerate(futures)}
    try:
        for future in as_completed(futures, loop=client.loop):
            yield places[future.key], future.result()
    finally:
        client.cancel(futures, force=True)


def _in_folder(folder, perform, job):
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"a worker finds no folder {folder}; start workers where it has the same path")
    with _one_at_a_time:
        os.chdir(folder)
        return perform(job)


def _alone(threads, opened, function, job):
    """`function(*job)` with so many threads, which leaves torch's generator and threads as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            return function(*([opened.here()] if opened else []), *job)
    finally:
        torch.set_num_threads(before)
