"""What a run says: stages that are left, how long they take, and the numbers that come first."""

import json
import os

import pytest
from conftest import ROOT

from xai_utils.pipeline import parameters, terminal

STAGES = list(parameters.STAGES)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with the pipeline's dvc.yaml as the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    return tmp_path


def test_what_is_left_of_a_run(project):
    """All stages before the first run; those behind a changed one afterwards; none behind the last."""
    described = parameters.read("dvc.yaml")["stages"]
    assert terminal.remaining("prepare_data", described, {}) == STAGES[1:]
    made = {name: 1.0 for name in STAGES}
    assert terminal.remaining("evaluate", described, made) == ["measure_speed", "figures"]
    assert terminal.remaining("figures", described, made) == []
    behind = ["evaluate", "measure_speed", "figures"]
    assert terminal.remaining("explain", described, made) == behind
    assert terminal.remaining("train_attention", described, made) == ["explain", "evaluate", *STAGES[8:]]
    assert terminal.remaining("measure_speed", described, made | {"explain": 2.0}) == ["evaluate", "figures"]


def test_a_stage_says_how_long_it_takes(project):
    """The default scale begins with dvc.yaml's estimate; after a run, this machine's times of the same scale count."""
    runs = project / "build/runs"
    first = terminal.announcement("prepare_data", "default", runs)
    assert first.startswith("stage 1 of 11, prepare_data: about ")
    assert first.endswith(" min for what follows")
    assert terminal.announcement("prepare_data", "paper", runs) == "stage 1 of 11, prepare_data"
    runs.mkdir(parents=True)
    for name in STAGES:
        (runs / f"{name}.ipynb").touch()
        os.utime(runs / f"{name}.ipynb", (1, 1))
        terminal.record(name, "paper", 100)
    later = terminal.announcement("evaluate", "paper", runs)
    assert later == "stage 9 of 11, evaluate: about 2 min, and about 3 min for what follows"
    assert terminal.announcement("figures", "paper", runs) == "stage 11 of 11, figures: about 2 min"
    terminal.SECONDS.write_text("{")  # a damaged note of times is no reason to stop
    assert terminal.announcement("figures", "paper", runs) == "stage 11 of 11, figures"


def test_a_run_ends_with_its_numbers(tmp_path):
    """The target's accuracy and the best method of each metric that was scored, by its direction; then the page."""
    (tmp_path / "finetune_target.json").write_text(json.dumps({"top1": 0.9833, "images": 360}))
    value = {name: {"mean": mean, "low": mean / 2, "high": 2 * mean} for name, mean in (("a", 0.25), ("b", 0.5))}
    metrics = {name: {"label": name, "arrow": arrow} for name, arrow in (("insertion", "↑"), ("deletion", "↓"))}
    rows = {name: dict.fromkeys(metrics, value[name]) | {"passes": 1} for name in value}
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": metrics, "methods": rows}))
    assert terminal.headlines(tmp_path) == [
        "target: 98.3% top-1 on 360 held-out images",
        "insertion ↑: b 0.5 [0.25, 1], best of 2",
        "deletion ↓: a 0.25 [0.125, 0.5], best of 2",
        f"open {tmp_path}/index.html",
    ]
