"""ROAR and KAR: every condition trained once, by masks that know no label, in runs that can be stopped and shared."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster import cluster, kill_the_first_at_work
from conftest import ROOT

from xai_utils import datasets
from xai_utils.retraining import experiment, jobs
from xai_utils.retraining.experiment import not_applicable, retrain
from xai_utils.retraining.inputs import FOLDER
from xai_utils.training.distributed import Compute

LAYERS = ("relu", "layer4")  # of the five that a ResNet has: each takes eight trainings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder to work in, with 24 birds of 32 pixels to learn from and 12 held out."""
    folder = tmp_path_factory.mktemp("retraining")
    options = {"image_size": 32, "train_per_class": 2, "validation_per_class": 1}
    datasets.prepare(ROOT / "data" / "birds", folder / "build" / "data", **options)
    return folder


LEARNING = {
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": 0.05,
    "schedule": "steps",
    "milestones": [1],
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "smallest_crop": 0.6,
}
SETTINGS = {
    "data": "build/data",
    "target": "build/target",
    "seed": 3,
    "network": "tiny_resnet",
    "image_size": 24,
    "train_images": 16,
    "held_out_images": 9,
    "explained_epochs": 1,
    "start": "scratch",
    "repetitions": 2,
    "percentages": [10, 50],
    "fill": "mean",
    "keep_share": 0.025,
    "least_share": 0.1,
    "scale_kept": True,
    "image": LEARNING,
    "layer": LEARNING,
    "statistics": ["truncated_normal_entropy"],
    "rows": {"grad_cam": {"method": "grad_cam"}},
}


@pytest.fixture(scope="module")
def finished(prepared):
    """Every record of a small study by two workers, and what was said."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        patch.setattr(experiment, "scale_layers", lambda *_: LAYERS)
        records = retrain(SETTINGS, compute=Compute("cpu", threads=2), log=said.append)
    return records, said


def test_every_condition_is_trained_once(finished):
    """2 x (2 layers + 2 percentages) x 2 rows of KAR and of ROAR, and 2 x (2 layers + 1) without; hits are 0 or 1."""
    records, said = finished
    assert len(records) == 2 * (2 + 1) + 2 * 2 * (2 * 2 + 2 * 2)
    for record in records:
        assert set(record) == {"level", "mode", "row", "percent", "layer", "repetition", "passes", "hits"}
        assert len(record["hits"]) == 9
        assert set(record["hits"]) <= {0, 1}
    conditions = {tuple((k, v) for k, v in record.items() if k != "hits") for record in records}
    assert len(conditions) == len(records)
    layers = [record["layer"] for record in records if record["level"] == "layer" and record["mode"] == "keep"]
    assert tuple(dict.fromkeys(layers)) == LAYERS
    assert any(text.endswith("maps of grad_cam") for text in said)


def test_what_is_fine_tuned_without_masks_is_fine_tuned_behind_the_same_layers(finished):
    """One training per layer and repetition, of its own; maps of the rows cost what is counted: random ones nothing."""
    records, _ = finished
    plain = [record for record in records if record["level"] == "layer" and record["mode"] == "none"]
    assert [(record["layer"], record["repetition"]) for record in plain] == [(x, r) for x in LAYERS for r in (0, 1)]
    passes = {record["row"]: record["passes"] for record in records if record["level"] == "image"}
    assert passes["random"] == 0
    assert passes["grad_cam"] == pytest.approx(1, abs=0.05)
    assert passes["none"] is None


def test_random_masks_of_both_modes_share_their_trainings(finished):
    """To keep 50 % at random is to remove 50 %: one training, the same hits."""
    random = {
        (record["mode"], record["repetition"]): record["hits"]
        for record in finished[0]
        if record["level"] == "image" and record["row"] == "random" and record["percent"] == 50
    }
    for repetition in (0, 1):
        assert random["keep", repetition] == random["remove", repetition]


def test_a_second_run_trains_nothing_and_one_worker_gives_the_same(finished, prepared, monkeypatch):
    """Finished results are read; what is missing is made again, by a single process, with the same hits."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(experiment, "scale_layers", lambda *_: LAYERS)
    keep = [record for record in finished[0] if record["mode"] == "keep"]
    said = []
    compute = Compute("cpu", threads=1)
    assert retrain(SETTINGS, ["keep"], compute=compute, log=said.append) == keep
    assert said == []
    for kind in ("layer", "image"):
        sorted((FOLDER / kind).iterdir())[0].unlink()
    assert not list((FOLDER / "running").iterdir())
    assert retrain(SETTINGS, compute=compute, log=said.append) == finished[0]
    assert len(said) == 2


def test_a_damaged_result_is_named(finished, prepared, monkeypatch):
    """A result cut short is an error with its path, not a training silently repeated."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(experiment, "scale_layers", lambda *_: LAYERS)
    path = sorted((FOLDER / "layer").glob("*.json"))[0]
    whole = path.read_text()
    path.write_text(whole[:5])
    with pytest.raises(ValueError, match=f"{path.name} is damaged .* delete it and run again"):
        retrain(SETTINGS, compute=Compute("cpu"))
    path.write_text(whole)


def test_maps_are_kept_for_one_trained_part(tmp_path):
    """Another surrogate in the folder that a row names is another map; methods without a part have one key."""
    keys, chosen = [], {"row": {"method": "akd", "surrogate": str(tmp_path)}, "seed": 0}
    for text in ("first", "second"):
        (tmp_path / "surrogate.safetensors").write_text(text)
        keys.append(jobs.key_of("levels", chosen, {}))
    assert len({*keys, jobs.key_of("levels", chosen, {})}) == 2
    assert len({jobs.key_of("levels", {"row": {"method": "random"}}, {}) for _ in range(2)}) == 1


def test_masks_know_no_label(finished, prepared, monkeypatch, tmp_path):
    """With the labels of all images shuffled the maps, hence the masks, are the same."""
    monkeypatch.chdir(prepared)
    explained = next((FOLDER / "explained").glob("*/target.json")).parent
    shutil.copytree("build/data", tmp_path / "shuffled")
    for split in datasets.SPLITS:
        file = tmp_path / "shuffled" / split / "labels.npy"
        np.save(file, np.roll(np.load(file), 5))
    results = []
    for folder in (Path("build/data"), tmp_path / "shuffled"):
        chosen = {name: None for name in ("image_size", "train_images", "held_out_images", "images")}
        chosen |= {"data": str(folder), "data_hash": folder.name, "subset_seed": 0, "explained": str(explained)}
        chosen |= {"percentages": [50], "seed": 0, "row": {"method": "fastcam"}}
        path = tmp_path / f"{folder.name}.json"
        jobs.work("maps", path, "levels", chosen, Compute("cpu", "float32"))
        results.append(json.loads(path.read_text()))
    assert results[0] == results[1]
    found = np.load(tmp_path / results[0]["levels"] / "train.npy")
    assert found.shape == (24, 32, 32)
    assert (found == 0).reshape(24, -1).sum(1).tolist() == [512] * 24


def test_workers_of_a_scheduler_train_what_processes_here_do(finished, prepared, tmp_path, monkeypatch):
    """Two workers of Dask, one killed in the middle of a job: every record as it is without them, to the bit."""
    pytest.importorskip("distributed", reason="dask.distributed (the extra `cluster`) is not installed")
    shutil.copytree(prepared / "build", tmp_path / "build")
    monkeypatch.chdir(tmp_path)
    asked, said = SETTINGS | {"statistics": []}, []
    expected = [record for record in finished[0] if record["level"] == "image" and record["mode"] == "keep"]
    with cluster(tmp_path) as (address, started), ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill_the_first_at_work, address, started, lambda: any((FOLDER / "image").glob("*.json")))
        records = retrain(asked, ["keep"], compute=Compute("cpu", threads=2, scheduler=address), log=said.append)
        assert started[killed.result()].poll() is not None
        assert sum(process.poll() is None for process in started.values()) == 1
    assert records == expected
    assert len(said) == 1 + 1 + 2 + 2 * 2 * 2  # images, the explained network, maps of two rows, trainings


def test_each_image_is_read_once_an_epoch(prepared, tmp_path, monkeypatch):
    """One training reads its images once for each epoch, and what all share reads them once for all of them."""
    monkeypatch.chdir(prepared)
    read, pixels = [], datasets.Split.pixels
    monkeypatch.setattr(datasets.Split, "pixels", lambda split, rows: read.append(len(rows)) or pixels(split, rows))
    chosen = {"data": "build/data", "data_hash": "once", "image_size": None, "train_images": 16, "held_out_images": 9}
    chosen |= {"subset_seed": 0, "images": None}
    jobs.work("images", tmp_path / "images.json", "images", chosen, Compute("cpu", "float32"))
    shared = json.loads((tmp_path / "images.json").read_text())
    assert (shared["images"], sum(read)) == (None, 16)
    whole = datasets.load("build/data").train
    mean = whole.tensor(whole.subset(16, 0)).mean((0, 2, 3))
    torch.testing.assert_close(torch.tensor(shared["colour"]), mean)
    read.clear()
    chosen |= SETTINGS["image"] | experiment.UNMASKED | {"fill": shared["colour"], "seed": 0, "epochs": 3}
    chosen["network"] = {"architecture": "tiny_resnet"}
    jobs.work("a training", tmp_path / "image.json", "image", chosen, Compute("cpu", "float32"))
    assert sum(read) - 9 in range(3 * 16, 3 * 16 + 4)  # nine held out; a network is built for the size of one image


def test_what_is_switched_off_is_not_trained(prepared, finished, monkeypatch):
    """Without statistics no layer, without rows no image is masked, and no network is fine-tuned or trained in vain."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(experiment, "scale_layers", lambda *_: LAYERS)
    records, said, compute = finished[0], [], Compute("cpu")
    for off, level in (({"rows": {}}, "layer"), ({"statistics": []}, "image")):
        found = retrain(SETTINGS | off, compute=compute, log=said.append)
        assert found == [record for record in records if record["level"] == level]
    assert said == []
    nothing = SETTINGS | {"rows": {}, "statistics": [], "data": "no such folder"}
    assert retrain(nothing, compute=compute, log=said.append) == []
    assert not_applicable(nothing) == {}


def test_unusable_settings_are_refused_before_any_work(tmp_path, monkeypatch):
    """A row's unknown option, an unknown statistic, network or fill: an error that says what is allowed."""
    monkeypatch.chdir(tmp_path)
    for change, message in (
        ({"rows": {"mine": {"method": "grad_cam", "power": 2}}}, "rows.mine: grad_cam has no option 'power'"),
        ({"statistics": ["median"]}, "statistics: 'median' is unknown; choose among smoe_scale"),
        ({"network": "lenet"}, "network: 'lenet' is unknown; choose among target, alexnet"),
        ({"fill": "white"}, "fill: 'white' is unknown; choose among mean, black"),
    ):
        with pytest.raises(ValueError, match=message):
            retrain(SETTINGS | change, ["keep"], compute=Compute("cpu"))


def test_rows_that_cannot_explain_the_network_are_told(prepared, monkeypatch):
    """Guided backprop, alone or smoothed, needs ReLU modules: an EfficientNet has none of them, a ResNet has."""
    monkeypatch.chdir(prepared)
    rows = {name: {"method": name} for name in ("guided_backprop", "gradient")}
    rows["smooth"] = {"method": "smooth_grad_squared", "over": "guided_backprop", "samples": 1}
    asked = SETTINGS | {"rows": rows}
    [(reason, left)] = not_applicable(asked | {"network": "efficientnet_b0", "image_size": 32}).items()
    assert left == ["guided_backprop", "smooth"]
    assert reason.startswith("guided backprop changes the gradient of nn.ReLU modules")
    before = torch.get_rng_state()
    assert not not_applicable(asked)
    assert torch.equal(torch.get_rng_state(), before)
