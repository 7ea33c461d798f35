"""Independent jobs: the same results here, in processes and on a scheduler's workers, whatever becomes of one."""

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import cluster, kill_the_first_at_work
from conftest import ROOT, free_port

from xai_utils.files import fingerprint
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


def test_a_cluster_that_is_started_as_the_docs_say_serves_two_at_once(tmp_path, monkeypatch):
    """The commands of docs/training.md, typed in the project's folder, find the package, from wherever two runs ask."""
    pytest.importorskip("distributed", reason="dask.distributed (the extra `cluster`) is not installed")
    text, port = (ROOT / "docs" / "training.md").read_text(), str(free_port())
    typed = [line.partition("#")[0] for line in re.findall(r"python -m dask .*", text) if " --" in line]
    assert [line.split()[3] for line in typed] == ["scheduler", "worker"]
    unset = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES")
    options = {"cwd": ROOT, "env": {key: value for key, value in os.environ.items() if key not in unset}}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    monkeypatch.setattr("xai_utils.training.workers.REACHED", 100)  # on a busy machine a scheduler begins late
    monkeypatch.chdir(tmp_path)  # as an experiment of DVC's queue, which runs in a folder of its own
    started = []
    try:
        for line in typed:
            words = shlex.split(line.replace("HOST", "127.0.0.1").replace("8786", port))[1:]
            started.append(
                subprocess.Popen([sys.executable, *words, "--host", "127.0.0.1", "--no-dashboard"], **options)
            )
        compute = Compute("cpu", scheduler=f"tcp://127.0.0.1:{port}")
        with workers(compute) as one, workers(compute) as other:
            pairs = zip(one(fingerprint, [(1,), (2,)]), other(fingerprint, [(3,), (4,)]), strict=True)
            (first, second), (third, fourth) = (sorted(found) for found in zip(*pairs, strict=True))
        assert [first[1], second[1], third[1], fourth[1]] == [fingerprint(number) for number in (1, 2, 3, 4)]
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    """Where nobody listens, an error has the address and the key to mend."""
    pytest.importorskip("distributed", reason="dask.distributed (the extra `cluster`) is not installed")
    monkeypatch.setattr("xai_utils.training.workers.REACHED", 0.5)
    with (
        pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 \(compute"),
        workers(Compute("cpu", scheduler="tcp://127.0.0.1:9")),
    ):
        pass
