"""Rules that every explainer keeps, generated over the registry, and the checks of `explain`."""

import contextlib
import gc
import re
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from test_layers import same, settled, snapshot
from torch import nn

from xai_utils.explainers import CONTROLS, EXPLAINERS, Explainer, cam_maps, explain, explain_many, rows_of
from xai_utils.metrics.cost import counted_passes
from xai_utils.networks import Surrogate, Target, build, effect_predictor_of, gate_for, predictor_of
from xai_utils.training.mask_predictor import CONTROLLER_OF

FAST = {  # fewer draws than a report would use
    "smooth_grad_cam_plus_plus": {"samples": 3, "chunk": 4},
    "rise": {"masks": 40},
    "lime": {"samples": 30},
    "meaningful_perturbation": {"iterations": 3},
    "integrated_gradients": {"steps": 4},
    "expected_gradients": {"samples": 3, "chunk": 4},
    "smooth_grad": {"samples": 3, "chunk": 4},
    "smooth_grad_squared": {"samples": 3, "chunk": 4},
}

TRANSFORMERS = ("attention_rollout", "transformer_attribution")  # which explain no other network


@lru_cache
def surrogate():
    torch.manual_seed(4)
    return settled(Surrogate(explained()))


@lru_cache
def predictor(controller):
    torch.manual_seed(4)
    return settled(predictor_of(explained(), torch.rand(1, 3, 64, 64), controller=controller).eval())


@lru_cache
def effects(cells):
    torch.manual_seed(4)
    return settled(effect_predictor_of(explained(), torch.rand(1, 3, 64, 64), cells=cells).eval())


@lru_cache
def convolutional():
    torch.manual_seed(2)
    return settled(build("small_resnet", range(4)))


class Transformer(nn.Module):
    """A vision transformer without positions, whose parts are called as the ResNet's: a class token, two layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layer1, self.layer2 = (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True) for _ in range(2)
        )

    def forward(self, images):
        patches = self.conv1(images).flatten(2).mT
        return self.fc(self.layer2(self.layer1(torch.cat([self.token.expand(len(images), -1, -1), patches], 1)))[:, 0])


@lru_cache
def transformer():
    torch.manual_seed(2)
    return Target(Transformer(), "transformer", range(4)).eval()


def explained(method=None):
    """A network that `method` can explain."""
    return transformer() if method in TRANSFORMERS else convolutional()


def asked(request):
    """The method that a test is about, in a fixture."""
    return request.getfixturevalue("method") if "method" in request.fixturenames else None


@lru_cache
def gate():
    torch.manual_seed(4)
    return settled(gate_for(explained(), torch.rand(1, 3, 64, 64)))


def generated(method, seed=3):
    """The method's quick options, with the network that it brings, and a fresh generator if it draws."""
    record, options = EXPLAINERS[method], dict(FAST.get(method, {}))
    if record.part is not None:
        networks = {"surrogate": surrogate, "attention_gate": gate}
        networks["mask_predictor"] = partial(predictor, CONTROLLER_OF.get(method))
        networks["effect_predictor"] = partial(effects, 3 if method == "fast_shap" else 0)
        options[record.part.option] = networks[record.part.kind]()
    return record.seeded(options, seed)


@pytest.fixture
def small(request):
    return explained(asked(request))


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", EXPLAINERS)
def test_a_record_says_what_its_function_takes(method):
    """Every keyword is an option of the record, its part, or one that all methods have alike; defaults are allowed."""
    record = EXPLAINERS[method]
    part = [] if record.part is None else [record.part.option]
    known = {option.name for option in record.options} | {*part, "generator", "chunk"}
    assert set(record.keywords) <= known
    assert {option.name for option in record.options} | {*part} <= set(record.keywords)
    record.check(method, {name: default for name, default in record.keywords.items() if name not in part})
    assert record.label
    assert record.paper
    assert record.draws in (None, "seed", "generator")


def test_rows_are_methods_options_additions_and_exclusions():
    """ "all" are the methods in the registry's order; a row that names one stands behind it; false leaves one out;
    a list names methods and rows."""
    assert rows_of("all", {}) == {method: {} for method in EXPLAINERS}
    rows = {"rise": {"masks": 9}, "lime": False, "equal": {"method": "smoe", "weights": "equal"}, "gradient": None}
    found = rows_of("all", rows)
    order = list(found)
    assert order[order.index("smoe") + 1] == "equal"
    assert found["rise"] == {"masks": 9}
    assert "lime" not in found
    assert found["gradient"] == {}
    assert rows_of(["equal", "rise"], rows) == {"equal": rows["equal"], "rise": {"masks": 9}}
    with pytest.raises(ValueError, match="'gradcam' is unknown"):
        rows_of(["gradcam"], {})
    with pytest.raises(ValueError, match="'mine' is unknown"):
        rows_of("all", {"mine": {}})
    with pytest.raises(ValueError, match="lime is asked for and left out"):
        rows_of(["lime"], rows)


@pytest.mark.parametrize("method", [name for name, record in EXPLAINERS.items() if record.draws])
def test_a_seed_reaches_every_method_that_draws(method, small, images):
    """Seed 3 gives the same map twice, 4 another; of those by seed, one among the options comes before the run's."""
    first, again, other = (explain(small, images[:1], method=method, **generated(method, seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    record = EXPLAINERS[method]
    if record.draws == "seed":
        assert record.seeded({"seed": 7}, 3) == {"seed": 7}
    else:
        begun = record.seeded({}, 3, begin=5)["generator"]
        assert begun.initial_seed() == 5


def test_controls_by_hand():
    """Sobel of a step of 1 is 4 beside the step and 0 elsewhere; the Gaussian is 1 in the middle; noise is seeded."""
    step = torch.zeros(1, 3, 5, 6)
    step[..., 3:] = 1
    expected = torch.zeros(1, 5, 6)
    expected[..., 2:4] = 4
    torch.testing.assert_close(explain(None, step, method="sobel_edges"), expected)
    odd = explain(None, torch.zeros(2, 3, 9, 5), method="centred_gaussian")
    assert odd[1, 4, 2] == 1
    assert odd[0, 0, 2].item() == pytest.approx(np.exp(-((4 / 2.25) ** 2) / 2))
    assert odd[0, 4, 0].item() == pytest.approx(np.exp(-((2 / 1.25) ** 2) / 2))
    draws = [explain(None, step, method="random", generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert set(CONTROLS) <= set(EXPLAINERS)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_batch_equals_singles(method, small, images):
    """A batch gives each image's map as if it were alone, with its own target, raw, finite and without graph."""
    target, options = torch.tensor([2, 0, 1]), generated(method)
    maps = explain(small, images, target, method=method, **options)
    assert maps.shape == (3, 64, 64)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.flatten(1).std(1).min() > 0
    assert not maps.requires_grad
    options = generated(method)
    singles = [explain(small, images[n : n + 1], target[n : n + 1], method=method, **options) for n in range(3)]
    torch.testing.assert_close(maps, torch.cat(singles), rtol=1e-4, atol=1e-5 * float(maps.abs().max()))


@pytest.mark.parametrize("method", EXPLAINERS)
def test_default_target_is_the_prediction(method, small, images):
    """No target means the class that the model predicts."""
    with torch.inference_mode():
        predicted = small(images).argmax(1)
    maps = [explain(small, images, target, method=method, **generated(method)) for target in (None, predicted)]
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_model_is_left_as_found(method, small, images):
    """In train mode with odd flags, under no_grad, with a gradient in place: same maps, and nothing changes."""
    expected = explain(small, images, method=method, **generated(method))
    small.train()
    small.network.layer2.eval()
    small.network.fc.weight.grad = torch.ones_like(small.network.fc.weight)
    small.network.conv1.weight.requires_grad_(False)
    try:
        before = snapshot(small)
        for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
            with mode():
                maps = explain(small, images, method=method, **generated(method))
            torch.testing.assert_close(maps, expected)
        assert same(before, snapshot(small))
        assert (small.network.fc.weight.grad == 1).all()
    finally:
        small.network.conv1.weight.requires_grad_(True)
        small.zero_grad()
        small.eval()


@pytest.mark.parametrize("method", EXPLAINERS)
def test_model_is_left_as_found_after_an_exception(method, small, images):
    """A model that fails in its last layer keeps its hooks, modules and flags; the exception gets through."""

    def fail(*_):
        raise KeyError("broken head")

    small.train()
    handle = small.network.fc.register_forward_hook(fail)
    before = snapshot(small)
    without_model = (*CONTROLS, "akd", "akd_unoptimised")
    with contextlib.nullcontext() if method in without_model else pytest.raises(KeyError, match="broken head"):
        explain(small, images, method=method, **generated(method))
    assert torch.is_grad_enabled()
    assert same(before, snapshot(small))
    handle.remove()
    small.eval()


@pytest.mark.parametrize("method", EXPLAINERS)
def test_nothing_is_retained(method, small, images):
    """A second call leaves no tensor behind: no graph, no captured activation."""
    explain(small, images, method=method, **generated(method))
    counts = []
    gc.freeze()  # the objects of all libraries are neither visited nor counted
    try:
        for _ in range(2):
            explain(small, images, method=method, **generated(method))
            gc.collect()
            counts.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    finally:
        gc.unfreeze()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("method", [method for method, record in EXPLAINERS.items() if record.part is not None])
def test_a_method_without_its_network_says_what_to_train_or_to_pass(method, small, images, tmp_path, monkeypatch):
    """From any folder: where it was looked for, the stage that trains it, the option, and what needs none."""
    monkeypatch.chdir(tmp_path)
    part = EXPLAINERS[method].part
    where = re.escape(str(tmp_path / EXPLAINERS[method].keywords[part.option]))
    advice = f"`dvc repro {part.stage}`.* or pass `{part.option}`: another folder, or the network itself"
    advice += ".*gate=None takes fixed gates" if method == "amg" else ""
    for call in (explain, EXPLAINERS[method].layers):
        given = {"model": small, "images": images, "method": method} if call is explain else {"options": {}}
        with pytest.raises(FileNotFoundError, match=f"{where} holds no .* is missing; {advice}"):
            call(**given)
    for wrong in (3, small):
        with pytest.raises(ValueError, match=f"{part.option} is .*{advice}"):
            explain(small, images, method=method, **{part.option: wrong})


def test_any_module_is_explained(images):
    """A user's bare network works like a target, its default layer found by a probe."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4))
    model = nn.Sequential(nn.Conv2d(3, 7, 5, stride=4), nn.ReLU(), pool).eval()
    torch.testing.assert_close(explain(model, images), explain(model, images, layer="1"))
    with pytest.raises(ValueError, match=r"9 is not a class.*0\.\.3"):
        explain(model, images, 9)


def test_many_share_one_pass(small, images):
    """Plain CAMs of one layer cost one pass together, and the maps are those of single calls, in the order asked."""
    passes = []
    handle = small.network.conv1.register_forward_hook(lambda *_: passes.append(1))
    methods = {"random": {}, "xgrad_cam": {}, "grad_cam": {"layer": "layer3"}, "grad_cam_plus_plus": {}}
    maps = explain_many(small, images, methods=methods)
    handle.remove()
    assert list(maps) == list(methods)
    assert len(passes) == 2
    for method in ("xgrad_cam", "grad_cam", "grad_cam_plus_plus"):
        torch.testing.assert_close(maps[method], explain(small, images, method=method, **methods[method]))


def test_explain_errors(small, images, monkeypatch):
    """Each wrong argument is named together with what is allowed."""
    cases = [
        ({"method": "gradcam"}, r"'gradcam' is unknown; choose one of akd, .*centred_gaussian"),
        ({"method": "grad_cam", "samples": 3}, "grad_cam has no option 'samples'; its options: layer"),
        ({"method": "sobel_edges", "layer": "x"}, "sobel_edges has no option 'layer'; its options: none"),
        ({"layer": "layer9"}, "'layer9' is unknown; close names: layer4, layer3"),
        ({"layer": "avgpool"}, r"'avgpool' returns \(N, 128, 1, 1\) .* no map"),
        ({"target": 4}, r"4 is not a class of this model; give 0\.\.3"),
        ({"target": torch.tensor([0, 1])}, r"shape \(2,\).*\(3,\)"),
        ({"method": "smooth_grad_cam_plus_plus", "samples": 0}, "samples is 0"),
        ({"method": "smooth_grad_cam_plus_plus", "noise_fraction": -1}, "noise_fraction is -1"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            explain(small, images, **options)
    for wrong, message in ((images * 255, r"reach from .* to 25\d"), (images[0], r"\(3, 64, 64\)"),
                           ((images * 255).byte(), "uint8"), (images * float("nan"), "nan")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            explain(small, wrong)
    with pytest.raises(ValueError, match="must name one or more of grad_cam, grad_cam_plus_plus, xgrad_cam"):
        cam_maps(small, images, methods=["smooth_grad_cam_plus_plus"])

    def broken(model, images, target):
        return torch.stack([torch.zeros(4, 4), torch.full((4, 4), torch.inf), torch.full((4, 4), torch.nan)])

    monkeypatch.setitem(EXPLAINERS, "broken", Explainer(broken, "Broken", "none"))
    with pytest.raises(ValueError, match="broken gives infinite or undefined values for image 1, 2 of the batch"):
        explain(small, images, method="broken")


@pytest.mark.parametrize("method", EXPLAINERS)
def test_passes_can_be_counted(method, small, images):
    """The table of methods shows a counted cost for each; a plain gradient is two passes, a control none."""
    passes = counted_passes(small, images[:1], partial(explain, method=method, **generated(method)))
    assert np.isfinite(passes)
    expected = {"gradient": 2, "grad_cam": 1, "amg": 1, "random": 0}
    if method in expected:
        assert passes == pytest.approx(expected[method], abs=0.01)
