"""FastCAM: scales, normalisations, the combined map, LOVI, and the explainers made of them."""

import colorsys
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_layers import settled
from torch import nn
from torch.nn import functional
from torchvision import models

from xai_utils.explainers import explain
from xai_utils.explainers.activation_statistics import PRE_ACTIVATION, STATISTICS, smoe_scale
from xai_utils.explainers.lovi import LAYER_WEIGHTS, hsv_to_rgb, layer_weights, lovi, lovi_heat_map
from xai_utils.explainers.smoe import combine, gamma_cdf, layer_maps, normal_cdf, statistic_maps
from xai_utils.images import resize, unit_range
from xai_utils.networks import build, captured, pre_activations, scale_layers


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(2)
    return settled(build("small_resnet", range(4)))


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


# Scales -------------------------------------------------------------------------------------------------------------


def test_scale_layers_of_the_papers_networks():
    """ResNet, VGG and GoogLeNet have the five layers of the paper's list."""
    images, vgg16, vgg19 = torch.rand(1, 3, 64, 64), build("vgg16", range(3)), build("vgg19_bn", range(3))
    assert scale_layers(models.resnet50(), images) == ("relu", "layer1", "layer2", "layer3", "layer4")
    assert scale_layers(vgg16, images) == ("features.3", "features.8", "features.15", "features.22", "features.29")
    relus = [vgg19.network.get_submodule(name) for name in scale_layers(vgg19, images)]
    assert len(relus) == 5
    assert all(isinstance(module, nn.ReLU) for module in relus)
    google = build("googlenet", range(3))
    assert scale_layers(google, images) == ("conv1", "conv3", "inception3b", "inception4e", "inception5b")


PROBED = {  # sides of the maps of 96-pixel images, and whether all are a ReLU's outputs
    "mobilenet_v2": ([48, 24, 12, 6, 3], False),  # linear bottlenecks end its stages
    "densenet121": ([48, 24, 12, 6, 3], False),
    "efficientnet_b0": ([48, 24, 12, 6, 3], False),
    "squeezenet1_1": ([47, 23, 11, 5], True),
    "alexnet": ([23, 11, 5], True),
}


@pytest.mark.parametrize("architecture", [*PROBED, "resnet18", "googlenet"])
def test_torchvision_networks_work(architecture):
    """Each family: one map per scale, finest first, the statistic of that layer's own (rectified) activation."""
    torch.manual_seed(0)
    model = build(architecture, range(3)).eval()
    batch = torch.rand(2, 3, 96, 96)
    layers = scale_layers(model, batch)
    maps = statistic_maps(model, batch)
    assert tuple(maps) == layers
    with captured(model, layers, reduce=lambda _, output: output.clone()) as activations, torch.no_grad():
        model(batch)
    for name, activation in activations.items():
        torch.testing.assert_close(maps[name], smoe_scale(activation.relu()), rtol=1e-4, atol=1e-9)
    if architecture in PROBED:
        sides, rectified = PROBED[architecture]
        assert [each.shape[1] for each in maps.values()] == sides
        assert all(bool(activation.amin() >= 0) for activation in activations.values()) == rectified
    for method in ("smoe", "fastcam", "non_class"):
        saliency = explain(model, batch, method=method)
        assert saliency.shape == (2, 96, 96)
        assert saliency.amin() >= 0
        assert saliency.amax() <= 1


@pytest.mark.parametrize("architecture", ["resnet18", "googlenet", "mobilenet_v2", "efficientnet_b0"])
def test_pre_activations(architecture):
    """Before the ReLU: rectified again it gives the layer's output, and it has negative values; no ReLU, as it is."""
    torch.manual_seed(0)
    model, batch = build(architecture, range(3)).eval(), torch.rand(1, 3, 64, 64)
    layers = scale_layers(model, batch)
    with torch.no_grad(), captured(model, layers) as after, pre_activations(model, layers) as before:
        model(batch)
    for name in layers:
        ceiling = 6 if architecture == "mobilenet_v2" else math.inf
        rectified = before[name] if after[name].amin() < 0 else before[name].clamp(0, ceiling)
        assert torch.equal(rectified, after[name])
        assert before[name].amin() < 0
    maps = statistic_maps(model, batch, statistic="truncated_normal_mean", layers=layers)
    for name in layers:
        torch.testing.assert_close(maps[name], STATISTICS["truncated_normal_mean"](before[name]))


def test_pre_activations_against_a_hook():
    """In a ResNet, whose ReLU runs in place and three times a block, it is what the last ReLU was given."""
    model, seen = settled(build("resnet18", range(3))), []
    relu = model.network.layer2[1].relu
    handle = relu.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad(), pre_activations(model, ["layer2"]) as before:
        model(torch.rand(2, 3, 64, 64))
    handle.remove()
    assert torch.equal(before["layer2"], seen[-1])
    with (
        pytest.raises(ValueError, match="'maxpool' is not negative anywhere, and no ReLU made its output"),
        torch.no_grad(),
        pre_activations(model, ["maxpool"]),
    ):
        model(torch.rand(1, 3, 64, 64))


def test_maps_of_one_pass(small, images):
    """Every statistic of every layer costs one forward pass, and no activation is left in memory."""
    statistic_maps(small, images)  # which looks at the network once
    passes = []
    handle = small.network.conv1.register_forward_hook(lambda *_: passes.append(1))
    for statistic in STATISTICS:
        statistic_maps(small, images, statistic=statistic)
    handle.remove()
    assert len(passes) == len(STATISTICS)


def peak_bytes(function, file):
    """The most main memory that torch held for `function` at once, from the profiler's record of allocations."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    profile.export_chrome_trace(str(file))
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return int(np.cumsum(changes).max())


@pytest.mark.parametrize("method", ["smoe", "fastcam"])
def test_memory_of_a_map(method, tmp_path):
    """Beside the plain pass a map needs at most 1 MB per image of 224 pixels."""
    model, batch = settled(build("resnet18", range(3))), torch.rand(2, 3, 224, 224)

    def plain():
        with torch.inference_mode():
            model(batch)

    extra = peak_bytes(lambda: explain(model, batch, method=method), tmp_path / "map.json")
    assert extra - peak_bytes(plain, tmp_path / "plain.json") <= 2e6


# Normalisation and combination --------------------------------------------------------------------------------------


def test_normal_cdf_by_hand():
    """The map of a ramp (unbiased deviation), a constant map, and independence of scale and offset."""
    ramp = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    expected = torch.tensor([[[0.1226, 0.3493], [0.6507, 0.8774]]])
    torch.testing.assert_close(normal_cdf(ramp), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(normal_cdf(1e30 * ramp), normal_cdf(ramp - 7), rtol=1e-5, atol=1e-6)
    assert (normal_cdf(torch.full((2, 3, 3), 4.0)) == 0.5).all()


def test_gamma_cdf_against_scipy():
    """The exact CDF of the fitted law; it rises with the map to the end, where the published series turns down."""
    maps = torch.exp(1.5 * torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0)))
    result = gamma_cdf(maps)
    for values, own in zip(maps.double().flatten(1).numpy(), result.flatten(1).numpy(), strict=True):
        shifted = values - values.min() + 1e-7
        k, _, theta = stats.gamma.fit(shifted, floc=0)
        np.testing.assert_allclose(own, stats.gamma.cdf(shifted, k, scale=theta), atol=2e-4)
        assert (np.diff(own[np.argsort(values)]) >= 0).all()
        assert own[np.argmax(values)] > 0.99
    flat = gamma_cdf(torch.ones(1, 3, 3))
    assert flat.isfinite().all()
    assert flat.std() == 0


def test_combined_map_is_a_convex_combination():
    """Weights do not depend on their scale, and the result is the weighted mean of the resized maps."""
    maps = [torch.rand(2, side, side + 1) for side in (12, 6, 3)]
    for weights in ([3, 1, 0], [0.2, 0.5, 0.1], "linear", "equal", "prior"):
        values = {"linear": [1, 2, 3], "equal": [1, 1, 1], "prior": [0.18, 0.37, 0.72]}.get(str(weights), weights)
        resized = [resize(each, (20, 24)) for each in maps]
        expected = sum(w * each for w, each in zip(values, resized, strict=True)) / sum(values)
        combined = combine(maps, weights, size=(20, 24))
        torch.testing.assert_close(combined, expected, rtol=1e-5, atol=1e-6)
        stack = torch.stack(resized, 1)
        assert (combined <= stack.amax(1) + 1e-5).all()
        assert (combined >= stack.amin(1) - 1e-5).all()
        torch.testing.assert_close(combine(stack, weights), combined, rtol=1e-5, atol=1e-6)
    assert LAYER_WEIGHTS["prior"] == (0.18, 0.15, 0.37, 0.40, 0.72)
    assert combine(maps).shape == (2, 12, 13)


def test_bad_weights():
    """Weights of the wrong length, all zero, negative or unknown are refused; the paper's five serve any number."""
    stack = torch.rand(1, 3, 4, 4)
    for weights, message in (
        ([1, 2], r"shape \(2,\); give one for each of 3 layers"),
        ([0, 0, 0], r"\[0.0, 0.0, 0.0\] must be finite, not negative, and not all zero"),
        ([1, -1, 1], "not negative"),
        ([1, math.nan, 1], "finite"),
        ("best", "'best' are unknown; choose prior, linear, equal, or give 3 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            combine(stack, weights)
    expected = torch.tensor([0.18, 0.165, 0.15, 0.26, 0.37, 0.385, 0.40, 0.56, 0.72], dtype=torch.float64)
    torch.testing.assert_close(layer_weights("prior", 9), expected)
    with pytest.raises(ValueError, match=r"give maps \(N, h, w\)"):
        combine(stack[0])


# LOVI ---------------------------------------------------------------------------------------------------------------


def single_pixel(*values):
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 0, 0, 0, 0), (300, 1, 1)),
        ((0, 0, 0, 0, 1), (0, 1, 1)),
        ((1, 1, 1, 1, 1), (150, 0, 1)),
        ((0, 0, 0.5, 0, 0), (150, 1, 0.5)),
        ((0, 0, 0, 0, 0), (0, 0, 0)),
        ((0.8, 0.4, 0, 0, 0), (275, 0.875, 0.8)),
    ],
)
def test_lovi_corner_cases(values, expected):
    """One layer alone is fully saturated in its own hue, all together are white, none is black."""
    picture = lovi(single_pixel(*values), range_normalise=False)
    assert [round(part.item(), 4) for part in (picture.hue, picture.saturation, picture.value)] == list(expected)
    rgb = colorsys.hsv_to_rgb(expected[0] / 360, expected[1], expected[2])
    assert picture.rgb.flatten().tolist() == pytest.approx(rgb, abs=1e-5)


def test_hsv_to_rgb_against_the_standard_library():
    """Random colours agree with colorsys."""
    hue, saturation, value = torch.rand(3, 2, 5, 5)
    rgb = hsv_to_rgb(360 * hue, saturation, value)
    for n, y, x in np.ndindex(2, 5, 5):
        expected = colorsys.hsv_to_rgb(*(float(part[n, y, x]) for part in (hue, saturation, value)))
        assert rgb[n, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_lovi_normalises_each_images_stack_jointly():
    """One minimum and maximum per image; a constant stack is black; raw maps below 0 are refused."""
    stack = torch.rand(2, 4, 5, 5) * 0.3 + 0.2
    low, high = stack.amin((1, 2, 3), keepdim=True), stack.amax((1, 2, 3), keepdim=True)
    stretched = lovi((stack - low) / (high - low), range_normalise=False)
    for ours, expected in zip(lovi(stack), stretched, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert (lovi(torch.full((1, 3, 2, 2), 0.5)).rgb == 0).all()
    for wrong, message in ((stack - 1, "reaches down to"), (stack[0], r"\(4, 5, 5\); give the maps of two layers")):
        with pytest.raises(ValueError, match=message):
            lovi(wrong)


def test_heat_map_runs_from_blue_to_red():
    """The most salient position is red, what is half as salient is green-ish, nothing is blue-black."""
    stack = torch.zeros(1, 2, 1, 3)
    stack[0, 1, 0] = torch.tensor([1.0, 0.5, 0.0])  # one layer alone: fully saturated
    expected = torch.tensor([[1, 0, 0], [0, 0.5, 0], [0, 0, 0]]).T[None, :, None]
    torch.testing.assert_close(lovi_heat_map(stack, [1, 1]), expected, rtol=0, atol=1e-5)


# The explainers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cam", ["grad_cam", "grad_cam_plus_plus", "xgrad_cam"])
def test_fastcam_and_non_class_sum_to_smoe(small, images, cam):
    """FastCAM is the combined map times the CAM in [0, 1]; with the non-class map it sums to the combined map."""
    combined = explain(small, images, method="smoe")
    fast, other = (explain(small, images, 2, method=method, cam=cam) for method in ("fastcam", "non_class"))
    torch.testing.assert_close(fast + other, combined, rtol=1e-4, atol=1e-5)
    expected = combined * unit_range(explain(small, images, 2, method=cam))
    torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("normalisation", ["normal_cdf", "gamma_cdf", "unit_range"])
def test_smoe_is_its_parts(small, images, statistic, normalisation):
    """The explainer equals statistic, normalisation, resizing and combination made one after the other."""
    options = {"statistic": statistic, "normalisation": normalisation}
    stack = layer_maps(small, images, **options)
    assert stack.shape == (3, 5, 64, 64)
    assert stack.amin() >= 0
    assert stack.amax() <= 1 + 1e-6
    maps = explain(small, images, method="smoe", weights="linear", **options)
    torch.testing.assert_close(maps, combine(stack, "linear"), rtol=1e-4, atol=1e-5)
    raw = statistic_maps(small, images, statistic=statistic)
    normalise = {"normal_cdf": normal_cdf, "gamma_cdf": gamma_cdf, "unit_range": unit_range}[normalisation]
    torch.testing.assert_close(stack[:, 2], resize(normalise(raw["layer2"]), 64), rtol=1e-4, atol=1e-5)


def test_smoe_is_blind_to_the_class(small, images):
    """The target changes nothing, but must be a class."""
    assert torch.equal(explain(small, images, 0, method="smoe"), explain(small, images, 3, method="smoe"))
    with pytest.raises(ValueError, match=r"4 is not a class of this model; give 0\.\.3"):
        explain(small, images, 4, method="smoe")


class TwoScales(nn.Module):
    """A network of functional ReLUs without names in any table."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 6, 3, 2), nn.Linear(6, 4)

    def forward(self, x):
        x = functional.relu(self.first(x))
        return self.head(functional.leaky_relu(self.second(x), 0.3).mean((2, 3)))


def test_a_network_of_ones_own(images):
    """Any model is probed; a scale that no module rectifies is rectified here, for its raw tensor is what is seen."""
    model = TwoScales()
    assert scale_layers(model, images) == ("first", "second")
    with captured(model, ["first", "second"]) as activations, torch.no_grad():
        model(images)
    maps = statistic_maps(model, images)
    for name, activation in activations.items():
        torch.testing.assert_close(maps[name], smoe_scale(activation.relu()), rtol=1e-4, atol=1e-9)
    before = statistic_maps(model, images, statistic="truncated_normal_mean")
    torch.testing.assert_close(before["first"], STATISTICS["truncated_normal_mean"](activations["first"]))
    assert explain(model, images, method="fastcam").shape == (3, 64, 64)


def test_bad_models_layers_and_options(small, images):
    """A single scale, an unknown layer or name, negative activations and NaN are refused with what would do."""
    single = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"Sequential has 1 spatial scale \['1'\]"):
        explain(single, images, method="smoe")
    for options, message in (
        ({"layers": ["layer1", "layer9"]}, "'layer9' is unknown; close names: layer4"),
        ({"layers": ["layer1"]}, "name two or more different layers.*all names: conv1, bn1"),
        ({"layers": "layer1"}, "layers is 'layer1'; give two names of layers or more"),
        ({"layers": ["layer1", "layer4.0.bn2"]}, r"layer 'layer4.0.bn2': the activation reaches down to -"),
        ({"layers": ["layer1", "maxpool"], "statistic": "truncated_normal_std"}, "give one of smoe_scale"),
        ({"statistic": "smoe"}, "statistic is 'smoe'; give one of smoe_scale, standard_deviation"),
        ({"normalisation": "softmax"}, "normalisation is 'softmax'; give one of normal_cdf, gamma_cdf, unit_range"),
        ({"weights": [1, 2, 3]}, "give one for each of 5 layers"),
    ):
        for method in ("smoe", "fastcam"):
            with pytest.raises(ValueError, match=message):
                explain(small, images, method=method, **options)
    with pytest.raises(ValueError, match="cam is 'score_cam'; give one of grad_cam"):
        explain(small, images, method="fastcam", cam="score_cam")
    for options, message in (
        ({"layers": "layer1"}, "layers are 'layer1'; name two or more"),
        ({"statistic": "smoe"}, "statistic 'smoe' is unknown; choose one of smoe_scale, standard_deviation"),
        ({"normalisation": "softmax"}, "'softmax' is unknown; choose one of normal_cdf, gamma_cdf, unit_range"),
    ):
        with pytest.raises(ValueError, match=message):
            layer_maps(small, images, **options)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_nan_names_the_layer(statistic, images):
    """A network whose weights broke says which layer shows it first."""
    model = build("small_resnet", range(4)).eval()
    model.network.layer3[0].conv2.weight.data.fill_(math.nan)
    layer = "layer3"
    with pytest.raises(ValueError, match=f"layer '{layer}': the activation contains NaN"):
        explain(model, images, method="smoe", statistic=statistic)


def test_a_map_that_points_at_the_object():
    """On a flat background with one textured patch every statistic's SMOE-style map is highest on the patch."""
    model = settled(build("resnet18", range(4)))  # in a narrower random network an entropy may point elsewhere
    picture = torch.full((1, 3, 64, 64), 0.5)
    picture[..., 20:40, 8:28] = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(1))
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[20:40, 8:28] = True
    for statistic in sorted(set(STATISTICS) - PRE_ACTIVATION - {"shannon_entropy"}):
        saliency = explain(model, picture, method="smoe", statistic=statistic)[0]
        assert saliency[inside].mean() > saliency[~inside].mean() + 0.1, statistic


def test_the_module_is_reached_by_its_name():
    """`xai_utils.explainers.smoe` is the module with the combination, not the explainer of the same name."""
    from xai_utils import explainers

    assert explainers.smoe.combine is combine
    assert explainers.EXPLAINERS["smoe"].function is explainers.smoe.smoe
