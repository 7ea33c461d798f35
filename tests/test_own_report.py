"""A report on one's own images and network: in a place of its own, with or without labels, or one clear line."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import chdir

import numpy as np
import pytest
import scratch
import torch
from conftest import ROOT
from PIL import Image

from xai_utils import networks
from xai_utils.evaluation import tables
from xai_utils.pipeline import own_report
from xai_utils.pipeline.own_report import ReportError


def photos(folder, names, *, size=80):
    """Pictures of noise, each another."""
    generator = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a run of its own, and beside it a network saved as a checkpoint."""
    root = tmp_path_factory.mktemp("beside") / "project"
    root.mkdir()
    for name in ("notebooks", "data", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("dvc.yaml", "params.yaml", "dvc.lock"):
        shutil.copy(ROOT / name, root)
    few = {"evaluate.pixels_per_step": 12544, "evaluate.sanity_images": 2}  # at every scale
    scratch.change(root / "params.yaml", **{"compute.threads": 1}, **few)
    for name in ("build/data/dataset.json", "reports/metrics.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    torch.manual_seed(0)
    target = networks.build("small_resnet", ["wren", "auk", "tern"])
    networks.save(target.eval(), root.parent / "checkpoints" / "mine")
    return root


def contents(root):
    """Path -> hash of all that lies in a project, but for its reports."""
    files = [path for path in root.rglob("*") if path.is_file() and "build/reports" not in path.as_posix()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


def command(project, *arguments):
    """What the command prints, on both streams, and its exit status."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-m", "xai_utils.pipeline.own_report", *map(str, arguments)],
        cwd=project,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout, done.stderr


def test_images_without_labels_are_reported_on_beside_the_run(project, monkeypatch):
    """Maps, scores, advice and pages of six photographs; the run's files stay; a second report runs no stage."""
    images, before = photos(project.parent / "photos", [f"{i}.png" for i in range(6)]), contents(project)
    given = (images, "../checkpoints/mine", "--methods=grad_cam gradient", "--limit=4", "--size=64")
    out, error = command(project, *given)
    assert contents(project) == before
    assert re.findall("stage . of 4, ([a-z_]+)", error) == list(own_report.STAGES)
    assert re.search(r"grad_cam: 4 images scored, 0 without a map; 1 of 5, about \d+ s left", error)
    lines = out.splitlines()
    where = "build/reports/photos-mine"
    assert lines[0] == f"4 of 6 images (chosen by seed 0) of photos, no labels, mine, 64 pixels, in {where}/"
    assert lines[-1] == f"open {where}/reports/index.html"
    place = project / where / "reports"
    summary = json.loads((place / "metrics.json").read_text())
    assert list(summary["methods"]) == ["grad_cam", "gradient", "random", "sobel_edges", "centred_gaussian"]
    assert "nothing tells whether it is right" in summary["protocol"]
    said = [sentence.replace("`", "") for sentence in summary["trust"]["sentences"]]
    assert lines[-1 - len(said) : -1] == said
    assert json.loads((place / "finetune_target.json").read_text())["top1"] is None
    assert "the images have no labels" in text_of(place / "finetune_target.html")
    assert "Which method to trust" in text_of(place / "evaluate.html")
    for page in place.glob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)"', page.read_text("utf-8")):
            assert (place / link).is_file(), f"{page.name}: {link}"
    monkeypatch.chdir(project)
    monkeypatch.setattr(own_report.stage, "perform", lambda *_: pytest.fail("a stage runs again"))
    options = {"methods": ["grad_cam", "gradient"], "limit": 4, "size": 64}
    told = []
    assert own_report.make(images, "../checkpoints/mine", **options, tell=told.append).is_file()
    assert told == [lines[0], *said]


def test_classes_that_the_network_does_not_know_have_no_accuracy(project, tmp_path):
    """Of three class folders the network knows two: accuracy is over their images alone, nothing is refused."""
    names = [f"{name}/{i}.png" for name in ("auk", "wren", "my cats") for i in range(2)]
    work = scratch.project(tmp_path / "work", dataset=str(photos(tmp_path / "mixed", names)), target="mine")
    shutil.copytree(project.parent / "checkpoints" / "mine", work / "data" / "weights" / "mine")
    changes = {"prepare_data.image_size": 64, "prepare_data.validation_fraction": 1.0, "finetune_target.epochs": 0}
    scratch.change(work / "params.yaml", **changes)
    for stage in ("prepare_data", "finetune_target"):
        (work / "reports").mkdir(exist_ok=True)
        space = scratch.execute(work, stage)
    assert space["result"]["images"] == 4
    assert space["truth"].tolist() == [1, 1, -1, -1, 0, 0]
    assert space["why"] == "the target does not know the classes my cats"
    told = tables._told_accuracy([1, 0, 2, 2, 0, 0], space["truth"])
    assert told == "right on 75% of the 4 images whose class the network knows"


WRONG = {
    "no folder": ({"images": "absent"}, "IMAGES=absent is no folder; give a folder of images"),
    "no name": ({"images": ""}, "IMAGES= names no folder"),
    "an empty folder": ({"images": "../empty"}, r"IMAGES: .*empty is empty"),
    "no image": ({"images": "../notes"}, r"IMAGES: .*notes has no class folders; it holds a\.txt"),
    "corrupt images": ({"images": "../corrupt"}, r"IMAGES: .*1\.png: .*\nIMAGES: .*2\.png: .*\nIMAGES: 2 corrupt"),
    "the project": ({"images": "."}, "holds this project"),
    "no network": ({"target": ""}, "TARGET= names no network"),
    "an unknown network": ({"target": "resnet51"}, "TARGET: no target 'resnet51'"),
    "a file alone": ({"target": "../checkpoints/mine/target.safetensors"}, "write its architecture before it"),
    "random weights, no labels": (
        {"target": "small_resnet"},
        "TARGET: small_resnet has no weights and hence no classes",
    ),
    "too small a size": ({"size": 16}, r"SIZE = 16 is not allowed; it should be greater than or equal to 32"),
    "a size that it cannot take": (
        {"target": "../checkpoints/vit", "size": 100},
        "TARGET: timm:test_vit takes no images of 100",
    ),
    "an unknown method": ({"methods": ["grad_kam"]}, "METHODS: 'grad_kam' is unknown"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_leaves_nothing(project, name):
    """One line for each thing, in the words of the command; no workspace stays."""
    for folder, file, content in (("notes", "a.txt", "x"), ("corrupt", "1.png", "x"), ("corrupt", "2.png", "")):
        (project.parent / folder).mkdir(exist_ok=True)
        (project.parent / folder / file).write_text(content)
    (project.parent / "empty").mkdir(exist_ok=True)
    photos(project.parent / "corrupt", ["3.png"])
    images = photos(project.parent / "some", ["1.png", "2.png"])
    if name == "a size that it cannot take":
        networks.save(networks.build("timm:test_vit", "ab", image_size=64), project.parent / "checkpoints" / "vit")
    changes, message = WRONG[name]
    given = {"images": images, "target": "../checkpoints/mine", "name": "wrong"} | changes
    with chdir(project), pytest.raises(ReportError, match=message):
        own_report.make(given.pop("images"), given.pop("target"), **given)
    assert not [path for path in (project / "build" / "reports").glob("*") if "wrong" in path.name]


def test_the_cap_of_a_class_leaves_the_limit():
    """The smallest cap with which as many images remain as were asked for; all where there are fewer."""
    counts = Counter({"a": 10, "b": 2, "c": 1})
    assert own_report._per_class(counts, 5) == 2
    assert own_report._per_class(counts, 6) == 3
    assert own_report._per_class(counts, 100) == 10


def test_cheap_methods_are_those_of_few_passes():
    """No RISE, LIME or perturbation, nothing trained; the controls, and gradients with up to 16 repetitions."""
    from xai_utils.pipeline import parameters

    kept = own_report._methods(parameters.read(ROOT / "params.yaml") | {"scale": "default"}, None)
    assert {"grad_cam", "smoe", "integrated_gradients", "smooth_grad", "random"} <= set(kept)
    assert not {"rise", "lime", "meaningful_perturbation", "akd", "dgle_cf", "amg_last_convolution"} & set(kept)
