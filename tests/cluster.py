"""A Dask scheduler and its workers on 127.0.0.1, each a process."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

from conftest import ROOT, free_port


@contextmanager
def cluster(folder, names=("one", "two")):
    """The address of a scheduler, and its workers, name -> Popen; they run in `folder` and end with the block."""
    port, started = str(free_port()), {}
    address, paths = f"tcp://127.0.0.1:{port}", os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    options = {"cwd": folder, "env": os.environ | {"PYTHONPATH": paths}}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def start(program, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, "--host", "127.0.0.1"]
        return subprocess.Popen([*command, "--no-dashboard"], **options)

    scheduler = start("dask_scheduler", "--port", port)
    try:
        for name in names:
            alone = ("--nthreads", "1", "--no-nanny", "--local-directory", str(folder))
            started[name] = start("dask_worker", address, "--name", name, *alone)
        yield address, started
    finally:
        for process in (*started.values(), scheduler):
            process.kill()
            process.wait()


def kill_the_first_at_work(address, started, begun, within=100):
    """Once `begun()` is true, kill a worker that has a job; returns its name."""
    from dask.distributed import Client

    end = time.monotonic() + within
    with Client(address, timeout=within, set_as_default=False) as client:
        while time.monotonic() < end:
            names = {about["name"]: key for key, about in client.scheduler_info()["workers"].items()}
            busy = [name for name, key in names.items() if client.processing().get(key)]
            if busy and begun():
                started[busy[0]].kill()
                return busy[0]
            time.sleep(0.02)
    raise TimeoutError(f"no worker had a job within {within} s")
