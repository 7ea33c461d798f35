"""Independent jobs: the same results here, in processes and on a scheduler's workers, whatever becomes of one."""

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import cluster, kill_the_first_at_work

from xai_utils.training.distributed import Compute
from xai_utils.training.workers import workers


def square(folder, number):
    """The square of a number; who asks first for that of 0 waits in vain."""
    begun = Path(folder, f"{number}.begun")
    if number == 0 and not begun.exists():
        begun.write_text(str(os.getpid()))
        time.sleep(600)
    return number**2


def test_jobs_here_come_with_their_places_and_errors(tmp_path):
    """In this process: results with the places of their jobs, none of no job, and the exception of one that fails."""
    with workers(Compute("cpu")) as done:
        assert sorted(done(square, [(tmp_path, 2), (tmp_path, 3)])) == [(0, 4), (1, 9)]
        assert list(done(square, [])) == []
        with pytest.raises(ValueError, match="math domain error"):
            list(done(math.sqrt, [(-1,)]))


def test_a_killed_worker_costs_its_job_alone(tmp_path, monkeypatch):
    """Of two workers of Dask the one that waits in vain is killed: the other does its job, too; errors come through."""
    pytest.importorskip("distributed", reason="dask.distributed (the extra `cluster`) is not installed")
    monkeypatch.chdir(tmp_path)
    with cluster(tmp_path) as (address, started), ThreadPoolExecutor(1) as beside:
        begun = tmp_path / "0.begun"
        killed = beside.submit(kill_the_first_at_work, address, started, begun.exists)
        with workers(Compute("cpu", scheduler=address)) as done:
            # alone at first: so the worker that has a job is the one that waits
            assert list(done(square, [(tmp_path, 0)])) == [(0, 0)]
            assert started[killed.result()].poll() is not None
            assert begun.read_text() == str(started[killed.result()].pid)
            assert sorted(done(square, [(tmp_path, number) for number in range(4)])) == [(n, n * n) for n in range(4)]
            with pytest.raises(ValueError, match="math domain error"):
                list(done(math.sqrt, [(-1,)]))


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    """Where nobody listens, an error has the address and the key to mend."""
    pytest.importorskip("distributed", reason="dask.distributed (the extra `cluster`) is not installed")
    monkeypatch.setattr("xai_utils.training.workers.REACHED", 0.5)
    with (
        pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 \(compute"),
        workers(Compute("cpu", scheduler="tcp://127.0.0.1:9")),
    ):
        pass
