"""Numbers that are not float32, or no numbers: half precision, autocast, NaN, narrow classes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_explainers import explained, generated
from torch import nn
from torch.backends import cudnn

from xai_utils import datasets
from xai_utils.evaluation import maps
from xai_utils.evaluation.explanation import make_maps
from xai_utils.evaluation.scores import score_maps
from xai_utils.explainers import CONTROLS, EXPLAINERS, explain
from xai_utils.metrics import METRICS
from xai_utils.networks import class_indices, deep_copy, inference_copy, logits_of, targets
from xai_utils.training.distributed import Compute, deterministic

WITHOUT_MODEL = (*CONTROLS, "akd", "akd_unoptimised")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def correlation(one, other):
    """Of each map with its like, the least."""
    pairs = torch.stack([one.flatten(1), other.flatten(1)], 1).double()
    return min(torch.corrcoef(pair)[0, 1].item() for pair in pairs)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_maps_of_half_precision_are_float32(method, images):
    """Under autocast, and of a model in half precision: float32 maps, much like those of the model in float32."""
    record, expected = EXPLAINERS[method], None
    for kind in (torch.float32, torch.bfloat16, torch.float16, "model"):
        model, pixels, options = explained(method), images, generated(method)
        if kind == "model":
            model, pixels = deep_copy(model).half(), images.half()
            if record.part is not None:
                own = options[record.part.option] = deep_copy(options[record.part.option])
                record.part.adopt(own, model)
        with torch.autocast("cpu", kind if kind in (torch.bfloat16, torch.float16) else None, enabled=kind != "model"):
            maps = record(model, pixels, torch.tensor([1, 2]), **options)
        assert maps.dtype == torch.float32
        expected = maps if expected is None else expected
        assert correlation(maps, expected) > {"lime": 0.8, "expected_gradients": 0.85}.get(method, 0.95)  # few draws


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", EXPLAINERS)
def test_logits_that_are_no_numbers_are_an_error(method, value, images):
    """Whatever the class, they are named; no method gives a map of such a model, not even one of zeros."""
    if method in WITHOUT_MODEL:
        return
    model, options = deep_copy(explained(method)), generated(method)
    model.network.fc.bias.data[0] = value
    if (part := EXPLAINERS[method].part) is not None:
        options[part.option] = deep_copy(options[part.option])
        part.adopt(options[part.option], model)
    with pytest.raises(ValueError, match=r"logits are NaN or infinite for images \[0, 1"):
        explain(model, images, torch.tensor([1, 2]), method=method, **options)


@pytest.mark.parametrize("name", METRICS)
def test_no_metric_scores_what_is_no_number(name, images):
    """A map with NaN or an infinite value, and a model that answers with NaN, are errors; so are they in half."""
    metric, maps = METRICS[name], torch.rand(2, 32, 32)
    given = {} if metric.needs in ("model", "maps", "falls") else {metric.needs: torch.rand(2, 32, 32) > 0.5}
    expected = metric.function(explained(), images, None, maps.half().float(), **given)
    found = metric.function(explained(), images, None, maps.half(), **given)
    torch.testing.assert_close(found, expected, equal_nan=True)
    for value in (math.nan, math.inf, -math.inf):
        broken = maps.clone()
        broken[1, 3, 4] = value
        with pytest.raises(ValueError, match=r"maps of images \[1\] contain NaN or infinite values"):
            metric.function(explained(), images, None, broken, **given)
    if metric.needs in ("model", "falls"):
        model = deep_copy(explained())
        model.network.fc.weight.data.fill_(math.nan)
        with pytest.raises(ValueError, match="logits are NaN or infinite"):
            metric.function(model, images, 1, maps, **given)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_classes_may_be_whole_numbers_of_any_width(kind, images):
    """200 logits do not fit an int8; the classes do. One that is outside, and what is not whole, are named."""
    logits = torch.zeros(2, 200)
    assert class_indices(logits, torch.tensor([3, 100], dtype=kind)).tolist() == [3, 100]
    target = torch.tensor([1, 2], dtype=kind)
    assert torch.equal(explain(explained(), images, target), explain(explained(), images, target.long()))
    with pytest.raises(ValueError, match=r"100 is not a class of this model; give 0\.\.3"):
        class_indices(logits[:, :4], torch.tensor([3, 100], dtype=kind))
    for wrong in (torch.tensor([True, False]), torch.tensor([1.0, 2.0]), ["a", "b"], torch.tensor([1j, 1j])):
        with pytest.raises(ValueError, match="give whole class indices"):
            class_indices(logits, wrong)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_computed(normed, images):
    """Weight norm, hooks or parametrizations, is no layer: scales are found, maps and copies are those without it."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()]
    plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    model = deep_copy(plain)
    for place in (0, 3, 7):
        normed(model[place])
    copies = model, deep_copy(model), inference_copy(model, images)
    for method in ("smoe", "grad_cam", "gradient"):
        expected = explain(plain, images, method=method)
        for each in copies:
            torch.testing.assert_close(explain(each, images, method=method), expected, rtol=1e-4, atol=1e-5)


def test_whole_numbers_are_no_logits(images):
    """They are named by their type."""
    with pytest.raises(ValueError, match=r"the model returns torch\.int64; wrap it"):
        logits_of(lambda images: images.flatten(1).long(), images)


class Watching(nn.Sequential):
    """A small classifier that notes whether convolutions may round to TensorFloat-32 when it is asked."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
        self.seen = []

    def forward(self, images):
        self.seen.append(cudnn.allow_tf32)
        return super().forward(images)


@pytest.mark.parametrize("allowed", [True, False])
def test_tensorfloat_32_is_off_in_the_probe_and_as_the_caller_has_it_elsewhere(allowed, images):
    """The copy's probe asks at full precision; a training neither allows nor forbids what the caller has set."""
    with cudnn.flags(enabled=cudnn.enabled, allow_tf32=allowed):
        copied = inference_copy(Watching().eval(), images)
        assert copied.seen == [False, False]  # before and after folding
        assert cudnn.allow_tf32 is allowed
        with deterministic():
            assert cudnn.allow_tf32 is allowed
        assert cudnn.allow_tf32 is allowed


@pytest.mark.parametrize("allowed", [True, False])
def test_the_copy_is_made_in_full_precision_whatever_the_caller_computes_in(images, allowed):
    """Under autocast the probe sees float32, and norms are folded; with bfloat16's rounding they would not be."""
    with torch.autocast("cpu", torch.bfloat16, enabled=allowed):
        copied = inference_copy(Watching().eval(), images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())


class Doubting(Watching):
    """It answers otherwise where its norm is folded."""

    def forward(self, images):
        return super().forward(images) + isinstance(self[1], nn.Sequential)


def test_a_copy_that_cannot_be_folded_says_so(images):
    """The copy is then as its model is, norms and all."""
    model = Doubting().eval()
    with pytest.warns(UserWarning, match=r"Doubting is copied as it is, with batch norms .* differ by \S+ of the"):
        copied = inference_copy(model, images)
    torch.testing.assert_close(copied(images), model(images))


def ranks(maps):
    return maps.flatten(1).argsort(1).argsort(1)


def test_bfloat16_where_it_is_asked_for_ranks_pixels_and_scores_as_float32(tmp_path, monkeypatch):
    """Maps and scores are float32, of passes in bfloat16: ranks correlate, areas differ by hundredths."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    datasets.prepare(tmp_path / "images", "build/data", image_size=32, geometry="squash", validation_fraction=1.0)
    targets.save(targets.build("tiny_resnet", "01").eval(), "build/target")
    methods = {"grad_cam": {}, "gradient": {}, "rise": {"masks": 64}, "fastcam": {}, "random": {}}
    asked = {"data": "build/data", "target": "build/target", "images": None, "methods": methods, "seed": 0}
    asked["mosaics"] = {"number": 2, "cells": 2, "confidence": 0.0}
    found, engines = {}, []
    for precision in ("float32", "bfloat16"):
        compute = Compute("cpu", precision)
        make_maps(asked | {"maps": precision}, compute=compute)
        made = maps.load(precision)
        settings = {"data": "build/data", "target": "build/target", "maps": precision}
        settings["metrics"] = ["insertion", "deletion"]
        found[precision] = made.arrays, score_maps(settings, compute=compute)["scores"]
        engines.append(made.engine)
    assert engines[1].endswith("passes are made in bfloat16")
    for row in methods:
        one, other = (torch.from_numpy(found[precision][0][row][:]) for precision in found)
        assert other.dtype == torch.float32
        assert correlation(ranks(one), ranks(other)) > 0.9
        for metric, scores in found["float32"][1][row].items():
            assert np.abs(scores - found["bfloat16"][1][row][metric]).max() < 0.05
    assert not np.array_equal(found["float32"][0]["gradient"], found["bfloat16"][0]["gradient"])


def test_bfloat16_is_not_asked_for_by_auto(monkeypatch):
    """On a device that trains in bfloat16 of its own accord, networks are explained in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    compute = Compute().resolved()
    assert (compute.precision, compute.asked) == ("bfloat16", "auto")
    assert compute.resolved() == compute
    with Compute("cpu", "bfloat16").resolved().casting():
        assert torch.is_autocast_enabled("cpu")
    with Compute("cpu").resolved().casting():
        assert not torch.is_autocast_enabled("cpu")
