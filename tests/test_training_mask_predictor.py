"""The losses of mask prediction by hand, what its trainings may change, and that they find the patch that counts."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from xai_utils import datasets, explainers, networks
from xai_utils.images import blur, random_backgrounds
from xai_utils.networks.architectures import ARCHITECTURES
from xai_utils.networks.mask_predictor import save_predictor
from xai_utils.training import loop
from xai_utils.training.distributed import Compute
from xai_utils.training.mask_predictor import (
    CONTROLLER_OF,
    OPTIONS,
    _selected,
    filter_loss,
    filter_task,
    fit_predictors,
    mask_task,
    mgnet_loss,
    roughness,
    skewness,
    starting_predictor,
)

SIZE, ROWS, COLUMNS = 32, slice(8, 16), slice(16, 24)
MGNET = {"area": 8.0, "area_power": 0.3, "smoothness": 0.005, "preserve": 0.3}  # weights of its loss


def averages(channels):
    """A convolution that halves a map by means of 2 × 2 places, as a pooling does, which would be no layer to read."""
    layer = nn.Conv2d(channels, channels, 2, stride=2, groups=channels, bias=False)
    nn.init.constant_(layer.weight, 0.25)
    return layer


class PatchReader(nn.Module):
    """Answers with the brightness of one patch of 8 × 8 pixels; its four scales tell that patch's evidence."""

    def __init__(self, num_classes):
        super().__init__()
        window = torch.zeros(SIZE, SIZE)
        window[ROWS, COLUMNS] = 1
        self.register_buffer("window", window)
        self.scale1, self.scale2, self.scale3, self.scale4 = (averages(32) for _ in range(4))
        self.fc = nn.Linear(1, num_classes)
        nn.init.constant_(self.fc.bias, 0)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[3.0], [-3.0]]))

    def forward(self, images):
        evidence = images.mean(1, keepdim=True) * self.window
        features = torch.cat([evidence, -evidence, 0.2 * images, -0.2 * images], 1).relu().repeat(1, 4, 1, 1)
        self.scale4(self.scale3(self.scale2(self.scale1(features))))
        return self.fc(evidence.sum((2, 3)) / 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Prepared images of noise, bright or dark in the patch that the target reads; 32 to train on and 16 held out."""
    folder, source = tmp_path_factory.mktemp("masks"), tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(0)
    for name, brightness in (("bright", 200), ("dark", 20)):
        (source / name).mkdir()
        for number in range(24):
            pixels = noise.integers(60, 190, (SIZE, SIZE, 3)).astype(np.uint8)
            pixels[ROWS, COLUMNS] = brightness
            Image.fromarray(pixels).save(source / name / f"{number}.png")
    options = {"train_per_class": 16, "validation_per_class": 8, "validation_fraction": 0.34, "seed": 0}
    datasets.prepare(source, folder / "data", image_size=SIZE, geometry="squash", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "patch_reader", PatchReader)
        networks.save(networks.build("patch_reader", ("bright", "dark")), folder / "target")
        save_predictor(starting_predictor(settings(folder), controller="customized"), folder / "filter")
        yield folder


def settings(folders, **changes):
    return {
        "data": str(folders / "data"), "target": str(folders / "target"), "seed": 0, "epochs": 2, "batch_size": 16,
        "learning_rate": 0.01, "weight_decay": 0.0, "schedule": "halving", "halve_every": 1, "milestones": [],
        "smallest_crop": 1.0, "upsampler": "subpixel_blur", "normalisation": "instance", "eta": 1.5, "exponent": 2.5,
        "filter_loss": "logit_mean", "controller": "customized", "mgnet": MGNET,
        "predictor": str(folders / "filter"), **changes,
    }  # fmt: skip


def fit(make_task, chosen, folder):
    return loop.fit(make_task, chosen, checkpoints=folder, data_hash="")


def changed(before, after):
    """The first part of the name of all weights and buffers that differ."""
    return {key.split(".")[0] for key, tensor in before.items() if not torch.equal(tensor, after[key])}


def test_filter_loss_by_hand():
    """Evidence 2 and 0: the mean logit 1, or the mean probability (σ(2) + 1/2) / 2, against yes and against no."""
    evidence = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]]])
    yes, no = torch.tensor([True, True]), torch.tensor([False, False])
    probability = (1 / (1 + math.exp(-2)) + 0.5) / 2
    assert filter_loss(evidence, yes).item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)
    assert filter_loss(evidence, no).item() == pytest.approx(math.log(1 + math.exp(1)), rel=1e-5)
    assert filter_loss(evidence, yes, kind="sigmoid_mean").item() == pytest.approx(-math.log(probability), rel=1e-5)
    assert filter_loss(evidence, no, kind="sigmoid_mean").item() == pytest.approx(-math.log(1 - probability), rel=1e-5)
    mixed = filter_loss(evidence, torch.tensor([True, False])).item()
    assert mixed == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="filter_loss 'hinge' is unknown; choose one of logit_mean, sigmoid_mean"):
        filter_loss(evidence, yes, kind="hinge")


def test_roughness_by_hand():
    """A 3 × 3 map with a 1 in its middle: four squared steps of 1, no border; a map of ones: twelve border values."""
    middle = torch.zeros(3, 3)
    middle[1, 1] = 1
    border = 0.3 * 12 / (3 / 224)
    torch.testing.assert_close(roughness(torch.stack([middle, torch.ones(3, 3)])), torch.tensor([2.0, border / 2]))


def test_mgnet_loss_by_hand():
    """Leads of 3 when kept and -1 when hidden: only the hidden one pays, 5 - 1; a class that is not shown pays both."""
    maps = torch.full((1, 4, 4), 0.0)
    area = 8 * 0.0005**0.3
    preserved, destroyed = torch.tensor([[4.0, 1.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]])
    asked = torch.tensor([0])
    real = mgnet_loss(maps, preserved, destroyed, asked, torch.tensor([True])).item()
    assert real == pytest.approx(4 + area, rel=1e-5)
    fake = mgnet_loss(maps, preserved, destroyed, asked, torch.tensor([False])).item()
    assert fake == pytest.approx((1 + 1) + 0.3 * (3 + 1) + area, rel=1e-5)
    both = mgnet_loss(
        maps.repeat(2, 1, 1),
        preserved.repeat(2, 1),
        destroyed.repeat(2, 1),
        asked.repeat(2),
        torch.tensor([True, False]),
    )
    assert both.item() == pytest.approx((real + fake) / 2, rel=1e-5)
    ones = torch.ones(1, 4, 4)
    full = mgnet_loss(ones, preserved, destroyed, asked, torch.tensor([True])).item()
    assert full == pytest.approx(4 + 8 * 1.0005**0.3 + 0.005 * roughness(ones).item(), rel=1e-5)


def test_skewness_is_scipys():
    """The third standardised moment of each map; 0 for a constant one."""
    maps = torch.rand(3, 8, 9) ** 3
    maps[2] = 0.5
    expected = [*stats.skew(maps[:2].flatten(1).numpy(), axis=1), 0.0]
    assert skewness(maps).tolist() == pytest.approx(expected, abs=1e-5)


def test_backgrounds_are_blur_or_colour():
    """Half the images show their own blur, the others one noisy colour each within 0.5 ± 0.165; a seed decides all."""
    images = torch.rand(400, 3, 24, 24)
    images[:, :, :12] *= 0.2
    shown = random_backgrounds(images, torch.Generator().manual_seed(1))
    assert torch.equal(shown, random_backgrounds(images, torch.Generator().manual_seed(1)))
    blurred = (shown == blur(None, images)).flatten(1).all(1)
    assert 0.4 < blurred.float().mean() < 0.6
    flat = shown[~blurred]
    colours = flat.mean((2, 3))
    assert ((colours - 0.5).abs() < 0.165 + 0.01).all()
    assert colours.std(0).min() > 0.08  # uniform: 0.165 / sqrt(3) = 0.095
    assert flat.flatten(2).std(2).mean().item() == pytest.approx(0.055, rel=0.02)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_wrong_classes_are_uniform_among_the_others():
    """The asked share of images gets a wrong class, each equally often, and is marked as not real."""
    predicted = torch.arange(4).repeat(3000)
    classes, real = _selected(predicted, 4, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(classes == predicted, real)
    assert real.float().mean().item() == pytest.approx(0.7, abs=0.02)
    steps = ((classes - predicted) % 4)[~real].bincount(minlength=4) / (~real).sum()
    assert steps.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.03)


def test_each_training_changes_its_part_alone(folders, tmp_path):
    """The filter's training leaves a filter; a generator's leaves the filter bit for bit; the target learns nothing."""
    start = starting_predictor(settings(folders), controller="customized").state_dict()
    fitted = fit(filter_task, settings(folders), tmp_path)
    assert changed({"embedding.weight": start["filter.embedding.weight"]}, fitted.weights) == {"embedding"}
    for controller, normalisation in (("customized", "instance"), ("customized", "quantile"), ("mgnet", "instance")):
        chosen = settings(folders, controller=controller, normalisation=normalisation)
        task = mask_task(chosen)
        before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
        after = fit(mask_task, chosen, tmp_path).weights
        assert changed(before, after) == {"generator"}
        (teacher,) = task.frozen
        kept = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
        batch = task.batch(torch.arange(8), torch.Generator().manual_seed(0))
        loss, _ = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        loss.backward()
        assert changed(kept, teacher.state_dict()) == set()
        assert not any(module.training for module in teacher.modules())
        assert all(weight.grad is None for weight in (*teacher.parameters(), *task.model.filter.parameters()))


def test_no_label_is_read(folders):
    """A batch holds images alone: what class they are is what the target says."""
    for make_task in (filter_task, mask_task):
        batch = make_task(settings(folders)).batch(torch.arange(5), torch.Generator().manual_seed(0))
        assert [part.shape for part in batch] == [(5, 3, SIZE, SIZE)]


@pytest.mark.parametrize("make_task", [filter_task, mask_task])
def test_a_training_that_is_broken_off_ends_the_same(folders, tmp_path, make_task):
    """Stopped after its first epoch and started again it gives the same bits; its rows tell the gradient's norm."""

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(make_task, settings(folders), checkpoints=tmp_path / "one", data_hash="", log=stop)
    broken, whole = fit(make_task, settings(folders), tmp_path / "one"), fit(make_task, settings(folders), tmp_path)
    assert broken.resumed_from == 2
    assert changed(broken.weights, whole.weights) == set()
    assert broken.history == whole.history
    assert all(row["gradient_norm"] > 0 for row in whole.history)


@pytest.fixture(scope="module")
def predictors(folders, tmp_path_factory):
    """All three predictors of the patch's reader, on one filter."""
    torch.set_num_threads(1)
    part = {name: settings(folders)[name] for name in ("batch_size", "weight_decay", "smallest_crop", "milestones")}
    part |= {"schedule": "halving", "halve_every": 10}
    chosen = {name: settings(folders)[name] for name in ("data", "target", "seed", *OPTIONS)}
    chosen |= {"predictors": list(CONTROLLER_OF), "filter_loss": "logit_mean", "mgnet": MGNET}
    chosen |= {"filter": part | {"epochs": 15, "learning_rate": 0.3}}
    chosen |= {"generator": part | {"epochs": 25, "learning_rate": 0.01}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xai_utils.training.mask_predictor.CHECKPOINTS", tmp_path_factory.mktemp("checkpoints"))
        lines = []
        made = fit_predictors(chosen, compute=Compute("cpu"), log=lines.append)
        said = len(lines)
        assert list(dict.fromkeys(line.split(":")[0] for line in lines)) == ["filter", *CONTROLLER_OF]
        again, _ = fit_predictors(chosen, compute=Compute("cpu"), log=lines.append)
        assert len(lines) == said, "a second call trained again"
        for name, predictor in made[0].items():
            assert changed(predictor.state_dict(), again[name].state_dict()) == set()
        return made


@pytest.mark.parametrize("name", ["dgle_bf", "dgle_cf", "mgnet"])
def test_a_predictor_finds_the_patch(folders, predictors, name):
    """Of a model that reads one patch of 64 pixels, most of the top 64 lie in it, and it is by far the brightest."""
    split, target = datasets.load(folders / "data").validation, networks.load(folders / "target")
    maps = explainers.explain(target, split.tensor(range(16)), method=name, predictor=predictors[0][name])
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[ROWS, COLUMNS] = True
    top = inside.flatten()[maps.flatten(1).topk(64).indices]
    assert top.float().mean(1).min() > 0.5
    assert (maps[:, inside].mean(1) > 3 * maps[:, ~inside].mean(1)).all()


def own_controller(maps):
    return torch.sigmoid(4 * maps)


def test_a_controller_of_ones_own_is_trained_beside_the_papers(folders, tmp_path, monkeypatch):
    """By the same loop, on the same filter, with a key of its own; its scores are the function's of the raw answer."""
    monkeypatch.setattr("xai_utils.training.mask_predictor.CHECKPOINTS", tmp_path)
    part = {name: settings(folders)[name] for name in ("epochs", "batch_size", "learning_rate", "weight_decay")}
    part |= {name: settings(folders)[name] for name in ("schedule", "halve_every", "milestones", "smallest_crop")}
    chosen = {name: settings(folders)[name] for name in ("data", "target", "seed", *OPTIONS)}
    chosen |= {
        "predictors": ["dgle_cf"],
        "filter_loss": "logit_mean",
        "mgnet": MGNET,
        "filter": part,
        "generator": part,
    }
    plain, _ = fit_predictors(chosen, compute=Compute("cpu"))
    keys = {path.name for path in (tmp_path / "train_mask_predictor").iterdir()}
    lines = []
    made, histories = fit_predictors(chosen, controller=own_controller, compute=Compute("cpu"), log=lines.append)
    assert list(made) == ["dgle_cf", "own_controller"]
    assert list(histories) == ["filter", *made]
    assert {line.split(":")[0] for line in lines} == {"own_controller"}  # the others are only read
    assert len({path.name for path in (tmp_path / "train_mask_predictor").iterdir()} - keys) == 1
    assert changed(plain["dgle_cf"].state_dict(), made["dgle_cf"].state_dict()) == set()
    assert changed(made["dgle_cf"].state_dict(), made["own_controller"].state_dict()) == {"generator"}
    images = datasets.load(folders / "data").validation.tensor([0, 1])
    predictor, target = made["own_controller"], networks.load(folders / "target")
    features, logits = networks.encoded(target, images, predictor.layers)
    raw = predictor.uncontrolled(features, logits.argmax(1))[:, 0]
    torch.testing.assert_close(predictor(features, logits.argmax(1)), torch.sigmoid(4 * raw))


def test_what_a_controller_of_ones_own_may_not_be(folders, tmp_path):
    """Named like a predictor of the paper, kept in a file, or sent to a process that cannot import it."""

    def dgle_cf(maps):
        return maps

    with pytest.raises(ValueError, match="a predictor 'dgle_cf' exists; give your controller another name"):
        fit_predictors(settings(folders), controller=dgle_cf, compute=Compute("cpu"))
    predictor = starting_predictor(settings(folders), controller=own_controller)
    with pytest.raises(ValueError, match="is a function, which no file can hold; use it as it is"):
        save_predictor(predictor, tmp_path)
    task, two = partial(mask_task, controller=dgle_cf), Compute("cpu", processes=2)
    with pytest.raises(ValueError, match="dgle_cf cannot be sent to another process: define it at the top"):
        loop.fit(task, settings(folders), checkpoints=tmp_path, data_hash="", compute=two)


def test_the_histories_tell_what_was_learned(predictors):
    """The filter tells both classes apart; what the masks keep is answered as the whole image is."""
    predictors, histories = predictors
    assert list(histories) == ["filter", *predictors]
    assert histories["filter"][-1]["validation_accuracy"] > 0.9
    for name in predictors:
        assert histories[name][-1]["validation_probability"] > 0.6
        assert not any(module.training for module in predictors[name].modules())


def test_unusable_settings_are_refused(folders, tmp_path):
    """An unknown predictor, filter loss or schedule, and a diverging training: each is named."""
    chosen = settings(folders) | {"predictors": ["dgle_xf"], "filter": {}, "generator": {}}
    with pytest.raises(ValueError, match="predictor 'dgle_xf' is unknown; choose among dgle_bf, dgle_cf, mgnet"):
        fit_predictors(chosen, compute=Compute("cpu"))
    with pytest.raises(ValueError, match="filter_loss 'hinge' is unknown"):
        filter_task(settings(folders, filter_loss="hinge"))
    with pytest.raises(ValueError, match="schedule 'linear' is unknown"):
        mask_task(settings(folders, schedule="linear"))
    with pytest.raises(loop.DivergenceError, match="Lower the learning rate"):
        fit(filter_task, settings(folders, learning_rate=3e37, epochs=9), tmp_path)
