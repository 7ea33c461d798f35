"""Explaining and scoring by several: maps and scores are those of one process, whatever becomes of a worker."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from cluster import cluster, kill_the_first_at_work
from recognised import project

from xai_utils.evaluation import explanation, maps, scores
from xai_utils.files import files_fingerprint
from xai_utils.training.distributed import Compute

METHODS = {"rise": {"masks": 40}, "grad_cam": {}, "random": {}}
METRICS = ["insertion", "average_drop", "grid_pointing", "mean_intensity"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project that is explained and scored two images at a time."""
    monkeypatch.chdir(project(tmp_path, "small_resnet"))
    monkeypatch.setattr(explanation, "BATCH", 2)
    return tmp_path


def explained_and_scored(name, compute):
    """The counted passes and the hash of maps, and the scores and curves of them, of a run of both."""
    settings = {"data": "data", "target": "target", "maps": name}
    mosaics = {"number": 3, "cells": 2, "confidence": 0.0}
    lines = []
    explanation.make_maps(
        settings | {"images": None, "seed": 0, "methods": METHODS, "mosaics": mosaics},
        compute=compute,
        log=lines.append,
    )
    assert lines[-1] == "explained mosaics: 3 of 3"
    folders = {"scores": f"{name}-scores", "drawn": f"{name}-drawn"}
    scores.score_maps(settings | folders | {"metrics": METRICS, "batch": 2}, compute=compute)
    made = maps.load(name)
    assert made.passes["grad_cam"] == pytest.approx(1, abs=0.1)  # and no look at the network that is made only once
    return made.passes, made.run["maps"], *map(files_fingerprint, folders.values())


def test_processes_and_workers_of_a_cluster_explain_and_score_as_one(folder):
    """Once more, in two processes, and by two workers of Dask, one of which is killed at its job: the same bytes."""
    pytest.importorskip("distributed", reason="dask.distributed (the extra `cluster`) is not installed")
    run = partial(Compute, "cpu", "float32")
    one = explained_and_scored("one", run())
    assert explained_and_scored("again", run()) == one
    assert explained_and_scored("two", run(processes=2)) == one
    with cluster(folder) as (address, started), ThreadPoolExecutor(1) as beside:
        begun = lambda: any(folder.glob(".clustered.*/.parts.*"))  # noqa: E731
        killed = beside.submit(kill_the_first_at_work, address, started, begun)
        assert explained_and_scored("clustered", run(scheduler=address)) == one
        assert started[killed.result()].poll() is not None
    assert not [*folder.glob(".*.partial")]
    assert sorted(path.name for path in (folder / "one").iterdir()) == [
        "explained.json",
        "grad_cam.npy",
        "mosaics",
        "random.npy",
        "rise.npy",
    ]
