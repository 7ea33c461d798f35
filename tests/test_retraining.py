"""ROAR and KAR: masks of exactly the promised size that know no label, and trainings that can be stopped and shared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from xai_utils import datasets
from xai_utils.distributed import Compute
from xai_utils.explainers.smoe import STATISTICS
from xai_utils.metrics import retraining, retraining_jobs, retraining_masks
from xai_utils.networks import build, captured, find_layer, pre_activations

LAYERS = ("relu", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build("tiny_resnet", range(3)).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_exactly_k_positions_are_kept(count, least):
    """None, one, some and all positions, also of a map full of ties; most and least salient are the ends of a ramp."""
    ramp = torch.arange(12.0).reshape(1, 3, 4)
    tied = torch.cat([torch.zeros(1, 3, 4), (ramp > 3).float(), ramp])
    kept = retraining.kept_positions(tied, count, least=least)
    assert kept.flatten(1).sum(1).tolist() == [count] * 3
    expected = ramp[0] < count if least else ramp[0] >= 12 - count
    assert torch.equal(kept[2], expected)
    assert torch.equal(kept[0].flatten(), torch.arange(12) < count)  # ties go by row-major index


def test_a_share_keeps_at_least_one_position():
    """2.5 % of 7 x 7 is one position, of 112 x 112 it is 314; a share outside (0, 1] is refused."""
    assert [retraining.kept_count(0.025, n) for n in (49, 112**2, 196)] == [1, 314, 5]
    assert retraining.kept_count(1, 36) == 36
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
            retraining.kept_count(share, 10)


def recorded(capture, model, images, layer):
    with torch.no_grad(), capture(model, [layer], reduce=lambda _, output: output.clone()) as found:
        model(images)
    return found[layer]


@pytest.mark.parametrize("statistic", [None, "smoe_scale", "truncated_normal_entropy"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_masked_layer_by_hand(tiny, images, layer, statistic):
    """Behind the mask stands the layer's own output at its most salient positions, times positions / kept, else 0."""
    capture = pre_activations if statistic == "truncated_normal_entropy" else captured
    plain, seen = (recorded(each, tiny, images, layer) for each in (captured, capture))
    positions = plain[0, 0].numel()
    count = retraining.kept_count(0.1, positions)
    masked, behind = retraining.layer_masked_model(tiny, layer, statistic=statistic, share=0.1), []
    following = {"relu": "maxpool", "layer1": "layer2", "layer2": "layer3", "layer3": "layer4", "layer4": "avgpool"}
    find_layer(masked.model, following[layer]).register_forward_pre_hook(
        lambda _, given: behind.append(given[0].clone())
    )
    torch.manual_seed(7)
    with torch.no_grad():
        masked(images)
    torch.manual_seed(7)
    maps = torch.rand(2, *plain.shape[2:]) if statistic is None else STATISTICS[statistic](seen)
    keep = retraining.kept_positions(maps, count)
    torch.testing.assert_close(behind[0], torch.where(keep[:, None], plain * positions / count, 0))


def test_all_positions_are_the_plain_network(tiny, images):
    """A share of 1 changes nothing; without scaling neither; the user's model keeps no hook and is not the copy."""
    with torch.no_grad():
        for scale in (True, False):
            masked = retraining.layer_masked_model(tiny, "layer2", statistic="mean", share=1, scale=scale)
            torch.testing.assert_close(masked(images), tiny(images))
    assert not any(module._forward_hooks for module in (*tiny.modules(), *masked.modules()))
    assert masked.model is not tiny


def test_least_salient_positions_and_no_scaling(tiny, images):
    """KAR of share s and ROAR of share 1 - s split the positions: unscaled, the two layer outputs sum to the plain."""
    seen = {}
    for name, share, least in (("most", 0.25, False), ("least", 0.75, True)):
        masked = retraining.layer_masked_model(tiny, "layer4", statistic="mean", share=share, least=least, scale=False)
        hook = find_layer(masked.model, "avgpool").register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].clone()})
        )
        with torch.no_grad():
            masked(images)
        hook.remove()
    with torch.no_grad(), captured(tiny, ["layer4"]) as plain:
        tiny(images)
    torch.testing.assert_close(seen["most"] + seen["least"], plain["layer4"])


@pytest.mark.parametrize("layer", LAYERS)
def test_only_what_lies_behind_the_layer_is_trained(tiny, images, layer):
    """A step of training leaves the trunk's weights and batch statistics bit for bit, and moves all of the rest."""
    masked = retraining.layer_masked_model(tiny, layer, statistic="smoe_scale", share=0.2).train()
    masked.freeze_trunk(images[:1])
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    order = ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "fc"]
    trunk = order[: order.index(layer) + 1]
    masked.train()
    optimizer = torch.optim.SGD([weights for weights in masked.parameters() if weights.requires_grad], lr=0.1)
    nn.functional.cross_entropy(masked(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    for name, value in masked.state_dict().items():
        if name.endswith(("mean", "std")) and "bn" not in name and "downsample" not in name and "layer" not in name:
            continue  # the normalisation of the images
        frozen = name.removeprefix("model.network.").split(".")[0] in trunk
        assert torch.equal(value, before[name]) == frozen, name


def test_no_gradient_passes_where_nothing_is_kept(tiny, images):
    """The mask is a constant: a tail's gradient is that of the kept values, and of no removed one."""
    masked = retraining.layer_masked_model(tiny, "layer3", statistic="smoe_scale", share=0.25, scale=False)
    leaf = {}

    def begin(_, __, output):
        leaf["in"] = output.detach().requires_grad_()
        return leaf["in"].clone()

    find_layer(masked.model, "layer3").register_forward_hook(begin)
    masked(images).sum().backward()
    touched = leaf["in"].grad.abs().sum(1) > 0  # (N, h, w)
    kept = retraining.kept_positions(STATISTICS["smoe_scale"](leaf["in"].detach()), 9)
    assert not (touched & ~kept).any()
    assert touched.any()


def test_masked_images_by_hand():
    """Top 25 % of a ramp kept or removed, all channels, the rest in the fill colour; levels hold every percentage."""
    ramp, pictures = torch.arange(16.0).reshape(1, 4, 4), torch.rand(1, 3, 4, 4)
    shares = retraining_masks.thresholds([25, 50])
    assert shares == [25, 50, 75]
    levels = retraining_masks.levels(ramp, shares)
    assert levels.dtype == torch.uint8
    assert levels.flatten().tolist() == [3] * 4 + [2] * 4 + [1] * 4 + [0] * 4
    fill = (0.1, 0.2, 0.3)
    for place, percent in enumerate(shares):
        top = ramp[0] >= 16 - 16 * percent // 100
        for keep in (True, False):
            masked = retraining.masked_images(pictures, levels.numpy(), place, keep=keep, fill=fill)
            stays = top if keep else ~top
            assert torch.equal(masked[..., stays], pictures[..., stays])
            assert torch.equal(masked[..., ~stays], torch.tensor(fill)[None, :, None].expand(1, 3, int((~stays).sum())))


def test_unknown_names_are_refused(tiny):
    """A statistic or a layer that does not exist is an error that lists what does."""
    with pytest.raises(ValueError, match="statistic 'median' is unknown; choose one of smoe_scale"):
        retraining.layer_masked_model(tiny, "layer1", statistic="median", share=0.1)
    with pytest.raises(ValueError, match="layer 'layer9' is unknown; close names: layer"):
        retraining.layer_masked_model(tiny, "layer9", statistic="mean", share=0.1)


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
        records = retraining.retrain(SETTINGS, compute=Compute("cpu", threads=2), log=said.append)
    return records, said


def test_every_condition_is_trained_once(finished):
    """2 x (5 layers + 2 percentages) x 2 rows of KAR and of ROAR, and three without masks; hits are 0 or 1."""
    records, said = finished
    assert len(records) == 1 + 2 + 2 * 2 * (5 * 2 + 2 * 2)
    for record in records:
        assert set(record) == {"level", "mode", "row", "percent", "layer", "repetition", "hits"} or "folder" in record
        assert len(record["hits"]) == 9
        assert set(record["hits"]) <= {0, 1}
    conditions = {tuple((k, v) for k, v in record.items() if k != "hits") for record in records}
    assert len(conditions) == len(records)
    layers = [record["layer"] for record in records if record["level"] == "layer" and record["mode"] == "keep"]
    assert tuple(dict.fromkeys(layers)) == LAYERS
    assert any(text.endswith("maps of grad_cam") for text in said)


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
    keep = [record for record in finished[0] if record["mode"] == "keep"]
    said = []
    compute = Compute("cpu", threads=1)
    assert retraining.keep_and_retrain(SETTINGS, compute=compute, log=said.append) == keep
    assert said == []
    for kind in ("layer", "image"):
        sorted((retraining_jobs.FOLDER / kind).iterdir())[0].unlink()
    assert not list((retraining_jobs.FOLDER / "running").iterdir())
    for function in (retraining.keep_and_retrain, retraining.remove_and_retrain):
        again = function(SETTINGS, compute=compute, log=said.append)
        mode = again[0]["mode"]
        assert again == [record for record in finished[0] if record["mode"] == mode]
    assert len(said) == 2


def test_a_damaged_result_is_named(finished, prepared, monkeypatch):
    """A result cut short is an error with its path, not a training silently repeated."""
    monkeypatch.chdir(prepared)
    path = sorted((retraining_jobs.FOLDER / "plain").glob("*.json"))[0]
    whole = path.read_text()
    path.write_text(whole[:5])
    with pytest.raises(ValueError, match=f"{path.name} is damaged .* delete it and run again"):
        retraining.retrain(SETTINGS, ["none"], compute=Compute("cpu"))
    path.write_text(whole)


def test_masks_know_no_label(finished, prepared, monkeypatch, tmp_path):
    """With the labels of all images shuffled the maps, hence the masks, are the same."""
    monkeypatch.chdir(prepared)
    explained = next((retraining_jobs.FOLDER / "explained").glob("*/target.json")).parent
    shutil.copytree("build/data", tmp_path / "shuffled")
    for split in datasets.SPLITS:
        file = tmp_path / "shuffled" / split / "labels.npy"
        np.save(file, np.roll(np.load(file), 5))
    results = []
    for folder in (Path("build/data"), tmp_path / "shuffled"):
        chosen = {name: None for name in ("image_size", "train_images", "held_out_images")}
        chosen |= {"data": str(folder), "data_hash": folder.name, "subset_seed": 0, "explained": str(explained)}
        chosen |= {"percentages": [50], "seed": 0, "row": {"method": "fastcam"}}
        path = tmp_path / f"{folder.name}.json"
        retraining_jobs.work(path, "levels", chosen, Compute("cpu", "float32"))
        results.append(json.loads(path.read_text()))
    assert results[0] == results[1]
    found = np.load(tmp_path / results[0]["levels"] / "train.npy")
    assert found.shape == (24, 32, 32)
    assert (found == 0).reshape(24, -1).sum(1).tolist() == [512] * 24


def test_unusable_settings_are_refused_before_any_work(tmp_path, monkeypatch):
    """A row's unknown option, an unknown statistic, network or fill: an error that says what is allowed."""
    monkeypatch.chdir(tmp_path)
    for change, message in (
        ({"rows": {"mine": {"method": "grad_cam", "power": 2}}}, "row 'mine': grad_cam has no option 'power'"),
        ({"statistics": ["median"]}, "statistic 'median' is unknown; choose among smoe_scale"),
        ({"network": "lenet"}, "network 'lenet' is unknown; choose among target, alexnet"),
        ({"fill": "white"}, "fill 'white' is unknown; choose among mean, black"),
    ):
        with pytest.raises(ValueError, match=message):
            retraining.keep_and_retrain(SETTINGS | change, compute=Compute("cpu"))
