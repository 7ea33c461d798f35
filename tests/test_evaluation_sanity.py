"""Sanity checks: rank correlations by hand, networks that forget in order, and verdicts on methods that are known."""

import copy
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max
from scipy import stats
from test_explainers import explained, generated
from test_layers import same, snapshot
from torch import nn

from xai_utils.evaluation.sanity import (
    Sanity,
    layer_stages,
    max_sensitivity,
    own_network,
    parameter_randomisation,
    rank_correlation,
    sanity,
    seed_agreement,
    seeded,
    stability,
    untrained,
)
from xai_utils.explainers import CONTROLS, EXPLAINERS
from xai_utils.explainers.controls import sobel_edges
from xai_utils.explainers.gradients import gradient
from xai_utils.networks import inference_copy
from xai_utils.networks.layers import layer_root


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def options_of(method):
    return {name: value for name, value in generated(method).items() if name != "generator"}


def test_rank_correlation_by_hand():
    """Ranks 1 2.5 2.5 4 against 4 2 3 1: covariance -4.5, spreads √4.5 and √5; reversed -1, monotone 1."""
    first = torch.tensor([[[1.0, 2.0], [2.0, 7.0]]])
    second = torch.tensor([[[9.0, 3.0], [4.0, 0.0]]])
    assert rank_correlation(first, second).item() == pytest.approx(-4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation(first, -first).item() == pytest.approx(-1)
    assert rank_correlation(second, second.exp() - 5).item() == pytest.approx(1)


def test_rank_correlation_is_scipys_and_image_by_image():
    """Each image's value is scipy.stats.spearmanr of its own pixels, on maps with many ties."""
    first, second = torch.rand(4, 7, 9).mul(5).floor(), torch.rand(4, 7, 9).mul(3).floor()
    expected = [stats.spearmanr(*(each[i].flatten().numpy() for each in (first, second))).statistic for i in range(4)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, rtol=1e-6)


def test_maps_without_an_order():
    """Equal constant maps agree, a constant and another map do not; a map that is not finite has no value."""
    flat, slope = torch.ones(1, 2, 3), torch.arange(6.0).reshape(1, 2, 3)
    broken = slope.clone()
    broken[0, 0, 0] = torch.inf
    pairs = [(flat, flat), (flat, slope), (slope, flat), (broken, slope), (broken, broken)]
    found = torch.cat([rank_correlation(*pair) for pair in pairs])
    assert found[:3].tolist() == [1, 0, 0]
    assert found[3:].isnan().all()


def test_stages_go_from_the_head_to_the_first_layer():
    """A small ResNet forgets its head, then each scale's layers, coarsest first; none is left out or named twice."""
    probe = torch.rand(1, 3, 64, 64)
    for model in (explained(), inference_copy(explained(), probe)):
        stages = layer_stages(model, partial(model, probe))
        assert list(stages) == ["fc", "layer4.0.conv1", "layer3.0.conv1", "layer1.0.conv1", "conv1"]
        assert stages["fc"] == ("fc",)
        named = [name for layers in stages.values() for name in layers]
        owners = {name.rpartition(".")[0] for name, _ in layer_root(model).named_parameters()}
        assert len(named) == len(set(named))
        assert set(named) == owners
        assert all(name.startswith("layer3.") for name in stages["layer3.0.conv1"])
        assert named[-1] == "conv1"


def test_layers_with_channels_last_begin_no_stage():
    """A ConvNeXt's linear layers see (N, h, w, C), which is no other size: a stage per scale of its convolutions."""

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.spatial, self.mix = nn.Conv2d(channels, channels, 3, padding=1), nn.Linear(channels, channels)
            self.norm, self.scale = nn.LayerNorm(channels), nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, features):
            mixed = self.mix(self.norm(self.spatial(features).movedim(1, -1))).movedim(-1, 1)
            return features + self.scale * mixed

    model = nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2), Block(4), Block(4), nn.Conv2d(4, 5, 2, stride=2), Block(5), nn.Flatten(),
        nn.Linear(80, 2),
    )  # fmt: skip
    stages = layer_stages(model, lambda: model(torch.rand(1, 3, 16, 16)))
    assert list(stages) == ["6", "3", "0"]
    assert stages["3"] == ("4", "4.mix", "4.norm", "4.spatial", "3")


def test_layers_that_a_pass_does_not_meet_are_not_forgotten_about():
    """A layer that only its weights are read of stands in the last stage."""

    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.read, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.first(images).mean((2, 3)) @ self.read.weight)

    model = Reading()
    assert layer_stages(model, lambda: model(torch.rand(1, 3, 8, 8))) == {"head": ("head",), "read": ("first", "read")}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_computed_forget_with_their_layer(normed):
    """Weight norm's parameters are drawn anew, in the stage of the layer whose weights they make."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten())
    for place in (0, 3):
        normed(model[place])
    assert not any(torch.equal(*pair) for pair in zip(model.parameters(), untrained(model).parameters(), strict=True))
    stages = layer_stages(model, lambda: model(torch.rand(1, 3, 12, 12)))
    assert [{name[0] for name in names} for names in stages.values()] == [{"3"}, {"0"}]


def test_untrained_draws_each_layer_by_its_own_scheme():
    """Layers are as new from the same seed, batch norms forget their statistics, a bare parameter is shuffled."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.arange(40.0))

    model = Scaled().requires_grad_(False)
    nn.init.constant_(model.norm.running_var, 7)
    nn.init.constant_(model.conv.weight, 3)
    before, state = snapshot(model), torch.get_rng_state()
    fresh, again, other = untrained(model, 1), untrained(model, 1), untrained(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.default_generator.manual_seed(1)
    assert torch.equal(fresh.scale, torch.arange(40.0)[torch.randperm(40)])  # the root comes first
    assert torch.equal(fresh.conv.weight, nn.Conv2d(3, 4, 3).weight)
    assert fresh.norm.running_var.tolist() == [1] * 4
    assert all(torch.equal(one, two) for one, two in zip(fresh.parameters(), again.parameters(), strict=True))
    assert not torch.equal(fresh.conv.weight, other.conv.weight)
    assert same(before, snapshot(model))


class Linear(nn.Module):
    """Logits of weights on single pixels: the gradient of a class is its weights, whatever the image."""

    def __init__(self):
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(3 * 36, 4)

    def forward(self, images):
        return self.head(self.flat(images))


def test_the_gradient_of_a_linear_model_becomes_that_of_the_forgotten_one():
    """Its maps before and after are known: the largest weight per pixel of the trained and of the untrained head."""
    model, pictures, target = Linear(), torch.rand(5, 3, 6, 6), torch.tensor([0, 1, 2, 3, 0])

    def weights(network):
        return network.head.weight[target].reshape(5, 3, 6, 6).abs().amax(1)

    torch.testing.assert_close(gradient(model, pictures, target), weights(model).detach())
    found = parameter_randomisation(gradient, model, pictures, target, seed=4, batch=2)
    assert list(found) == ["head"]
    torch.testing.assert_close(found["head"], rank_correlation(weights(model), weights(untrained(model, 4))))
    assert found["head"].abs().max() < 0.7  # 36 pixels in random order: standard deviation 0.17


def test_an_edge_detector_does_not_change():
    """Sobel's map is the same at every stage, exactly, in spite of networks that are not."""
    pictures, logits = torch.rand(2, 3, 64, 64), []

    def edges(model, images, target):
        logits.append(model(images).detach())
        return sobel_edges(model, images, target)

    found = parameter_randomisation(edges, explained(), pictures)
    assert all((values == 1).all() for values in found.values())
    assert all(not torch.allclose(one, two) for one, two in pairwise(logits))


def test_a_cascade_keeps_what_it_has_not_reached(images):
    """A map of the first layer alone stays the same until the last stage, and changes there."""

    def first_layer(model, images, target):
        with torch.no_grad():
            return model.network.conv1(images).abs().mean(1)

    model = explained()
    *before, last = parameter_randomisation(first_layer, model, images).values()
    assert len(before) == 4
    assert all((values == 1).all() for values in before)
    assert (last < 0.99).all()


def test_a_check_changes_neither_the_model_nor_the_outcome_of_another_batch(images):
    """State, flags and gradients of a model in train mode stay as they were; the size of the batch does not matter."""
    model = copy.deepcopy(explained()).train()
    before = snapshot(model)
    for method in ("grad_cam", "smooth_grad", "random"):
        alone, together = (
            sanity(method, model, images, options=options_of(method), cascade=False, batch=batch) for batch in (1, 3)
        )
        for one, two in zip(alone.cascade.values(), together.cascade.values(), strict=True):
            torch.testing.assert_close(one, two, atol=2e-3, rtol=0)
        torch.testing.assert_close(alone.noise, together.noise, atol=2e-3, rtol=0)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("method", EXPLAINERS)
def test_every_method_has_its_row(method, images):
    """Of each method there is a number for every image, and the verdict that is known: controls read no network."""
    found = sanity(method, explained(method), images[:2], options=options_of(method), cascade=False)
    values = [
        found.target,
        found.everything,
        found.noise,
        found.sensitivity,
        *([] if found.seeds is None else [found.seeds]),
    ]
    assert all(each.shape == (2,) and each.isfinite().all() for each in values)
    assert (found.seeds is not None) == (EXPLAINERS[method].draws is not None)
    if method in CONTROLS:
        assert (found.everything == 1).all()
        assert found.verdict == "does not depend on the model"
    elif "surrogate" in EXPLAINERS[method].keywords:
        assert (found.target == 1).all()
        assert found.verdict == "depends on its own network alone"
    else:
        assert (found.everything < 1).all()


@pytest.mark.parametrize("method", ["akd", "dgle_cf"])
def test_a_learned_method_and_its_target_forget_apart(method, images):
    """Two cascades, the target's with the same stages as any method's; each equals a map of networks made by hand."""
    model, options = explained(), options_of(method)
    option, own = next(iter(options.items()))
    before = snapshot(model), snapshot(own), own.made_for
    target = torch.tensor([0, 1, 2])
    found = sanity(method, model, images, target, options=options, seed=7)
    assert list(found.cascade) == list(layer_stages(model, lambda: model(images)))
    assert next(iter(found.own)).split(".")[0] in ("explanation", "generator")
    assert list(found.own)[-1] == {"surrogate": "student.stem.0", "predictor": "filter.embedding"}[option]

    def maps(network, own):
        own = copy.deepcopy(own)
        EXPLAINERS[method].part.adopt(own, network)
        return EXPLAINERS[method](network, images, target, **{option: own})

    whole, forgot, fresh = maps(model, own), untrained(model, 7), untrained(own, 7)
    torch.testing.assert_close(found.target, rank_correlation(whole, maps(forgot, own)))
    torch.testing.assert_close(list(found.own.values())[-1], rank_correlation(whole, maps(model, fresh)))
    torch.testing.assert_close(found.everything, rank_correlation(whole, maps(forgot, fresh)))
    assert same(before[0], snapshot(model))
    assert same(before[1], snapshot(own))
    assert own.made_for == before[2]


def test_verdicts_follow_the_means():
    """Nine tenths of the order left, on average over the images with a value, count as no change."""

    def verdict(target, everything):
        target, everything = torch.tensor(target), torch.tensor(everything)
        return Sanity(
            {"fc": torch.ones(2), "conv1": target}, {}, everything, None, torch.ones(2), torch.zeros(2)
        ).verdict

    assert verdict([0.85, 0.97], [0.85, 0.97]) == "does not depend on the model"
    assert verdict([0.95, torch.nan], [0.95, torch.nan]) == "does not depend on the model"
    assert verdict([1.0, 1.0], [0.3, 0.2]) == "depends on its own network alone"
    assert verdict([0.85, 0.9], [0.85, 0.9]) == "depends on the model"


def test_a_learned_method_needs_its_network(tmp_path):
    """Other methods have none of their own; a folder without one is named."""
    assert own_network("grad_cam", {}) is None
    with pytest.raises(FileNotFoundError, match="holds no surrogate"):
        own_network("akd", {"surrogate": tmp_path})


class Corner(nn.Module):
    """The odds of class 1 follow the brightness of the top left quarter."""

    mean = torch.zeros(3)

    def forward(self, images):
        evidence = 8 * images[:, :, : images.shape[2] // 2, : images.shape[3] // 2].mean((1, 2, 3))
        return torch.stack([torch.full_like(evidence, 2), evidence], 1)


def test_two_seeds_agree_as_far_as_draws_matter():
    """A method that draws nothing agrees with itself, noise does not, and more draws agree better."""
    model, images, target = Corner(), torch.rand(3, 3, 28, 28), torch.tensor([1, 1, 1])
    assert (seed_agreement(seeded("gradient"), model, images, target) == 1).all()
    assert seed_agreement(seeded("random"), model, images, target).abs().max() < 0.1
    few, many = (seed_agreement(seeded("rise", masks=masks), model, images, target).mean() for masks in (20, 2000))
    assert few + 0.2 < many < 1


def test_stability_is_that_of_the_noisy_image():
    """A map that is the grey image itself keeps the ranks that noise leaves; a map of the place alone keeps all."""
    pictures = torch.rand(2, 3, 16, 16)
    model = Linear()
    model.head = nn.Linear(3 * 256, 4)

    def grey(model, images, target):
        return images.mean(1)

    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([torch.randn(3, 16, 16, generator=generator) for _ in range(2)])
    expected = rank_correlation(pictures.mean(1), (pictures + 0.1 * noise).clamp(0, 1).mean(1))
    assert torch.equal(stability(grey, model, pictures, noise=0.1), expected)
    assert stability(grey, model, pictures, noise=0.01).min() > expected.max()
    assert (stability(seeded("centred_gaussian"), model, pictures) == 1).all()
    with pytest.raises(ValueError, match="noise is 0"):
        stability(grey, model, pictures, noise=0)


def test_max_sensitivity_by_hand():
    """The largest of the distances of the maps of two images near by, over the map's; none of a map of the place.

    captum's, which draws by itself, is as large on average; one image is as good as its batch.
    """
    model, pictures = Linear(), torch.rand(2, 3, 16, 16)

    def grey(model, images, target):
        return images.mean(1)

    given, moved = {"radius": 0.1, "samples": 2}, []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        shifts = torch.stack([2 * torch.rand(3, 16, 16, generator=generator) - 1 for _ in pictures])
        near = (pictures + 0.1 * shifts).clamp(0, 1)
        assert (near - pictures).abs().max() <= 0.1
        moved.append((near.mean(1) - pictures.mean(1)).flatten(1).norm(dim=1))
    expected = torch.stack(moved).amax(0) / pictures.mean(1).flatten(1).norm(dim=1)
    found = max_sensitivity(grey, model, pictures, torch.tensor([0, 1]), **given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(max_sensitivity(grey, model, pictures[:1], torch.tensor([0]), **given), found[:1])
    theirs = sensitivity_max(lambda inputs: (inputs[0].mean(1),), 0.1 + 0.8 * pictures, perturb_radius=0.1)
    ours = max_sensitivity(grey, model, 0.1 + 0.8 * pictures, torch.tensor([0, 1]), radius=0.1, samples=10)
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0)
    assert max_sensitivity(seeded("centred_gaussian"), model, pictures, torch.tensor([0, 1])).tolist() == [0, 0]
    for wrong, message in (({"radius": 0}, "radius is 0"), ({"samples": 0}, "samples is 0")):
        with pytest.raises(ValueError, match=message):
            max_sensitivity(grey, model, pictures, torch.tensor([0, 1]), **wrong)


def test_unknown_methods_and_options_are_refused():
    """As everywhere: by name, with what is allowed."""
    with pytest.raises(ValueError, match="'grad_camm' is unknown"):
        sanity("grad_camm", None, torch.rand(1, 3, 8, 8), 0)
    with pytest.raises(ValueError, match="has no option 'sample'"):
        seeded("smooth_grad", sample=3)
