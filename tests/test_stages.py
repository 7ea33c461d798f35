"""All stages, one after the other, on tiny data: what a user of any image folder gets."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw
from scratch import change, project, run
from test_explainers import TRANSFORMERS

from xai_utils.explainers import rows_of
from xai_utils.metrics import metrics_of
from xai_utils.papers import fastcam, fastcam_claims
from xai_utils.pipeline import dependencies, parameters, report
from xai_utils.retraining.inputs import FOLDER

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole pipeline at the smoke scale, on an image folder with boxes and a class name that attacks HTML."""
    folder = tmp_path_factory.mktemp("a project") / "p"
    source, random, rows = folder.parent / "images", np.random.default_rng(0), []
    for label, (name, colour) in enumerate({HOSTILE: "red", "plain": "blue"}.items()):
        for number in range(8):
            file = source / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(random.integers(90, 160, (70, 90, 3), dtype=np.uint8))
            x, y = (int(v) for v in random.integers(15, 35, 2))
            ImageDraw.Draw(image).rectangle((x, y, x + 24, y + 19), fill=colour)
            image.save(file)
            if label or number:  # one image has no box
                rows.append([f"{name}/{number}.png", x, y, x + 25, y + 20])
    with (source / "boxes.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["file", "x0", "y0", "x1", "y1"], *rows])
    known = parameters.read(ROOT / "params.yaml")["remove_and_retrain"]["rows"]
    changes = {
        "compute.threads": 1,  # the other worker has the other core
        "remove_and_retrain.statistics": ["smoe_scale"],  # each takes ten trainings and runs no other code
        "remove_and_retrain.rows": {name: dict(known[name]) for name in ("gradient", "smooth_gradient", "fastcam")},
    }
    project(folder, dataset=str(source), scale="smoke", **changes)
    run(folder, *parameters.STAGES)
    return folder


def test_every_stage_leaves_its_page_and_its_results(finished):
    """Each stage has a page that opens from disk, and what dvc.yaml promises exists."""
    for stage, about in parameters.read(ROOT / "dvc.yaml")["stages"].items():
        for kind in ("outs", "metrics"):
            for entry in about.get(kind, []) if stage != "strip" else []:
                path = finished / (entry if isinstance(entry, str) else next(iter(entry)))
                assert path.exists(), f"{stage} promises {path.name}"
    for page in (finished / "reports").glob("*.html"):
        text = re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", page.read_text())
        text = text.replace(f"<script>{report.page_script()}</script>", "")
        assert not re.search(r"<script|<link|src=\"(?:https?:)?//", text)
        assert str(finished) not in text


@pytest.mark.parametrize(
    ("off", "told"),
    [({"rows": {}}, ["image"]), ({"statistics": []}, ["layer"]), ({"rows": {}, "statistics": []}, ["layer", "image"])],
)
def test_remove_and_retrain_can_be_switched_off(finished, off, told, tmp_path):
    """Without rows, statistics or both its page says what was not run and what to change, and trains the rest alone."""
    folder = tmp_path / "p"
    shutil.copytree(finished, folder)
    change(folder / "params.yaml", **{f"remove_and_retrain.{key}": value for key, value in off.items()})
    done = sorted((folder / FOLDER).rglob("*.json"))
    run(folder, "remove_and_retrain")
    assert sorted((folder / FOLDER).rglob("*.json")) == done
    page = (folder / "reports" / "remove_and_retrain.html").read_text()
    numbers = json.loads((folder / "reports" / "remove_and_retrain.json").read_text())
    for level, text in fastcam_claims.OFF.items():
        assert (text in page) == (level in told)
    for claim, row in numbers["claims"].items():
        assert (row["verdict"] == "not run") == (("image" if "SUM" in claim else "layer") in told)
    records = fastcam.read_records(folder / "reports" / "remove_and_retrain.tsv")
    assert {record["level"] for record in records} == set(fastcam_claims.OFF) - set(told)


def test_no_other_page_waits_for_remove_and_retrain():
    """Nothing in dvc.yaml depends on what it makes, so it may be left out, or take a week."""
    stages = parameters.read(ROOT / "dvc.yaml")["stages"]
    made = set(dependencies.outputs(stages["remove_and_retrain"]))
    assert not [stage for stage, about in stages.items() if made & set(about.get("deps", []))]


def test_all_numbers_are_of_one_run(finished):
    """Each JSON file of the reports names these data and this network, as scores and curves of each image do.

    But for the headlines, which DVC shows in columns: numbers of metrics.json.
    """
    files = [path for path in (finished / "reports").glob("*.json") if path.name != "headlines.json"]
    files += finished.glob("*/*/protocol.json")
    assert len(files) == 10 + 2
    found = {str(path): json.loads(path.read_text())["run"] for path in files}
    assert len({run["data"] for run in found.values()}) == 1
    assert len({run["target"] for run in found.values() if "target" in run}) == 1
    (alone,) = (path for path, run in found.items() if "target" not in run)  # there is no network yet
    assert alone.endswith("prepare_data.json")
    assert "of another run" not in (finished / "reports" / "evaluate.html").read_text()


def test_a_hostile_class_name_is_text_in_every_page(finished):
    """A class called like an HTML tag never becomes one, and does appear."""
    pages = {page.stem: page.read_text() for page in (finished / "reports").glob("*.html")}
    assert "&lt;img src=x onerror=alert(1)&gt;" in pages["finetune_target"]
    for name, text in pages.items():
        assert "<img src=x" not in text, name


def test_scores_are_complete_and_within_range(finished):
    """Every method has every metric; shares lie in [0, 1]; Grad-CAM costs one pass, the controls none."""
    summary = json.loads((finished / "reports" / "metrics.json").read_text())
    values = parameters.read(finished / "params.yaml")
    explained = parameters.resolve(values, "explain")
    applied = [row for row in rows_of(explained["methods"], explained["rows"]) if row not in TRANSFORMERS]
    assert list(summary["methods"]) == applied
    said = f"{', '.join(TRANSFORMERS)}: NarrowResNet computes no attention among tokens"  # once, for both
    assert (finished / "reports" / "explain.html").read_text().count(said) == 1
    scored, asked = list(summary["metrics"]), metrics_of(parameters.resolve(values, "evaluate")["metrics"])
    assert scored == [name for name in asked if name in scored]
    assert {"insertion", "deletion", "box_average_precision", "pointing_game"} <= set(scored)
    if "faithfulness" not in scored:  # a network trained for one epoch may see no gap on any image: then it is said
        assert "Left out, for no image has a score: faithfulness, faithfulness_offset" in summary["protocol"]
    assert "part_truth, part_truth_top" in summary["protocol"]  # photographs cannot be drawn again
    mosaics = json.loads((finished / "build" / "maps" / "explained.json").read_text())["mosaics"]
    assert ("grid_pointing" in scored) == (len(mosaics["images"]) > 0)  # it may recognise images of one class alone
    for page in ("explain", "evaluate"):
        assert mosaics["told"] in (finished / "reports" / f"{page}.html").read_text()
    for row in summary["methods"].values():
        for name in ("insertion", "deletion", "pointing_game"):
            assert 0 <= row[name]["low"] <= row[name]["mean"] <= row[name]["high"] <= 1
    assert summary["methods"]["grad_cam"]["passes"] == pytest.approx(1, abs=0.01)
    assert summary["methods"]["random"]["passes"] == 0
    speed = json.loads((finished / "reports" / "measure_speed.json").read_text())
    assert all(row["frames per second"] > 0 for row in speed["methods"].values())
    assert speed["methods"]["plain pass"]["passes"] is None


def test_a_wrong_method_stops_the_stage_before_work(finished):
    """The error names the methods that exist; the earlier maps are gone, as DVC would have removed them."""
    folder = finished.parent / "wrong"
    shutil.copytree(finished, folder, symlinks=True)
    change(folder / "params.yaml", **{"explain.methods": ["grad_cam", "x_grad_cam"]})
    command = [sys.executable, "-m", "xai_utils.pipeline", "explain"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "methods: 'x_grad_cam' is unknown; choose one of akd, " in done.stderr
    assert not (folder / "build" / "maps").exists()
