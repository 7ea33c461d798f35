"""DGLE's controllers by their closed forms, the mask predictor, its folder, and the explainers that use it."""

import json
import math

import pytest
import torch
import toy_networks
from scipy import integrate, stats
from torch import nn
from torch.nn import functional

from xai_utils.explainers import explain
from xai_utils.networks import NotApplicable, Target, build, captured, evaluating, inference_copy
from xai_utils.networks.mask_predictor import (
    LATER,
    UPSAMPLERS,
    FeatureFilter,
    MaskGenerator,
    basic_controller,
    controller_density,
    controller_moments,
    customized_controller,
    customized_controller_inverse,
    encoded,
    instance_normalised,
    load_predictor,
    predictor_of,
    quantile_normalised,
    save_predictor,
    two_channel_mask,
)

PAIRS = [(0.5, 0.5), (0.5, 2.5), (1.5, 1.0), (1.5, 2.5), (2.5, 0.5), (2.5, 2.5)]
CLASSES = ("wren", "crow", "gull")


def predictor(target, size=64, **options):
    torch.manual_seed(1)
    return predictor_of(target, torch.rand(1, 3, size, size), **({"controller": "customized"} | options)).eval()


def test_instance_normalisation_is_per_image():
    """Each map gets mean 0 and variance v / (v + 1e-5) of its own, whatever stands beside it; a constant one gets 0."""
    maps = torch.stack(
        [torch.randn(7, 9) * 5 + 3, torch.full((7, 9), 4.0), torch.tensor([[0.0, 2e-3]]).expand(7, 9, 2)[..., 0]]
    )
    found = instance_normalised(maps)
    assert found[0].mean().item() == pytest.approx(0, abs=1e-6)
    assert found[0].var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(found[1], torch.zeros(7, 9))
    torch.testing.assert_close(found[:1], instance_normalised(maps[:1]))
    pair = instance_normalised(torch.tensor([[[0.0, 2e-3]]]))  # mean 1e-3, variance 1e-6: z = ±1e-3 / sqrt(1.1e-5)
    torch.testing.assert_close(pair, torch.tensor([[[-1.0, 1.0]]]) * 1e-3 / math.sqrt(1.1e-5))


def test_quantile_normalisation_by_hand():
    """Ranks 4, 1, 2½, 2½ of 4 are the quantiles 7/8, 1/8, 1/2, 1/2 of a normal variable; a constant map gets 0."""
    maps = torch.tensor([[[30.0, -1.0], [2.0, 2.0]], [[7.0, 7.0], [7.0, 7.0]]])
    expected = torch.tensor([[[1.15035, -1.15035], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(quantile_normalised(maps), expected, atol=1e-5, rtol=0)
    rounded = torch.randn(3, 9, 11).mul(4).round()  # many ties
    ranks = stats.rankdata(rounded.flatten(1), axis=1)
    slow = torch.from_numpy(stats.norm.ppf((ranks - 0.5) / 99)).float().reshape(3, 9, 11)
    torch.testing.assert_close(quantile_normalised(rounded), slow)


def test_quantiles_follow_eq_7_whatever_the_map():
    """Of a skewed map the distance from eq. 7 is 1 / 2n; the order stays, and any rising function gives the same."""
    maps = torch.randn(2, 56, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    scores = customized_controller(maps, normalise=quantile_normalised)
    for values in customized_controller_inverse(scores).flatten(1).numpy():
        assert stats.kstest(values, "norm").statistic == pytest.approx(1 / (2 * 56 * 56))
    assert stats.kstest(instance_normalised(maps)[0].flatten().numpy(), "norm").statistic > 0.1
    assert torch.equal(scores.flatten(1).argsort(1), maps.flatten(1).argsort(1))
    for rising in (torch.log, lambda values: 3 * values**3 - 5):
        assert torch.equal(quantile_normalised(rising(maps)), quantile_normalised(maps))


def test_the_quantiles_gradient_is_instance_normalisations():
    """Training goes on through ranks: finite, not zero, and without a part that shifts or stretches the map."""
    maps, weights = torch.randn(2, 7, 9, dtype=torch.float64) * 5 + 3, torch.randn(2, 7, 9, dtype=torch.float64)
    gradients = []
    for normalise in (quantile_normalised, instance_normalised):
        leaf = maps.clone().requires_grad_()
        gradients.append(torch.autograd.grad((normalise(leaf) * weights).sum(), leaf)[0])
    assert torch.equal(*gradients)
    assert gradients[0].isfinite().all()
    assert gradients[0].abs().amax((1, 2)).min() > 0.01
    centred = maps - maps.mean((1, 2), keepdim=True)
    for direction in (torch.ones_like(maps), centred):
        assert (gradients[0] * direction).sum((1, 2)).abs().max() < 1e-5
    assert quantile_normalised(torch.full((1, 2, 2), math.nan)).isnan().all()  # a training that diverged shows


def test_controllers_by_hand():
    """z = ±1: BF keeps the positive half as it is; CF is sigmoid(η z)^h; both keep the order of the pixels."""
    maps = torch.tensor([[[-3.0, 5.0]]], dtype=torch.float64)  # z = -1, 1 up to the 1e-5 beside the variance 16
    torch.testing.assert_close(basic_controller(maps), torch.tensor([[[0.0, 1.0]]]).double(), atol=1e-6, rtol=0)
    expected = torch.tensor([[[(1 + math.exp(2)) ** -3, (1 + math.exp(-2)) ** -3]]]).double()
    torch.testing.assert_close(customized_controller(maps, eta=2.0, exponent=3.0), expected, atol=1e-6, rtol=0)
    noise = torch.randn(1, 8, 8)
    order = noise.flatten().argsort()
    for eta, exponent in PAIRS:
        assert (customized_controller(noise, eta=eta, exponent=exponent).flatten()[order].diff() > 0).all()
    assert (basic_controller(noise).flatten()[order].diff() >= 0).all()


@pytest.mark.parametrize(("eta", "exponent"), PAIRS)
def test_the_density_is_that_of_the_scores(eta, exponent):
    """Eq. 7 integrates to 1, is the derivative of Φ(z(m)), and z(m) undoes the controller."""
    scores = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    options = {"eta": eta, "exponent": exponent}
    z = customized_controller_inverse(scores, **options)
    torch.testing.assert_close(torch.sigmoid(eta * z) ** exponent, scores)
    step = 1e-6
    above, below = (customized_controller_inverse(scores + sign * step, **options) for sign in (1, -1))
    slope = (stats.norm.cdf(above) - stats.norm.cdf(below)) / (2 * step)
    torch.testing.assert_close(controller_density(scores, **options), torch.from_numpy(slope), rtol=1e-5, atol=1e-8)

    def in_logits(y):  # dm = m (1 - m) dy: the ends of the interval are far away there
        m = torch.tensor(1 / (1 + math.exp(-y)), dtype=torch.float64)
        return float(controller_density(m, **options) * m * (1 - m))

    assert integrate.quad(in_logits, -60, 30, limit=200)[0] == pytest.approx(1, abs=1e-5)
    outside = controller_density(torch.tensor([-0.5, 0.0, 1.0, 2.0]), **options)
    assert torch.equal(outside, torch.zeros(4))


def test_moments_of_the_customized_controller():
    """Mean, standard deviation, skewness, median and share above 1/2 for normal z, as known for three settings."""
    found = controller_moments()
    assert found["median"] == pytest.approx(0.5**2.5)
    assert found["above_half"] == pytest.approx(0.2234, abs=1e-4)
    for (eta, exponent), expected in {
        (1.5, 2.5): (0.2727, 0.2700, 0.851),
        (0.5, 2.5): (0.1952, 0.1089, 0.832),
        (2.5, 2.5): (0.3318, 0.3506, 0.632),
        (1.5, 1.0): (0.5, 0.2707, 0.0),
    }.items():
        found = controller_moments(eta=eta, exponent=exponent)
        assert [found[name] for name in ("mean", "std", "skewness")] == pytest.approx(expected, abs=5e-4)
    z = torch.randn(1, 1000, 1000, generator=torch.Generator().manual_seed(0))
    drawn, default = customized_controller(z), controller_moments()
    assert drawn.mean().item() == pytest.approx(default["mean"], abs=1e-3)
    assert drawn.median().item() == pytest.approx(default["median"], abs=1e-3)
    assert (drawn > 0.5).float().mean().item() == pytest.approx(default["above_half"], abs=1e-3)
    basic = basic_controller(z)
    assert basic.mean().item() == pytest.approx(0.3989, abs=1e-3)
    assert basic.std().item() == pytest.approx(0.5838, abs=1e-3)
    assert (basic > 1).float().mean().item() == pytest.approx(0.159, abs=1e-3)


@pytest.mark.parametrize(("name", "value"), [("eta", 0), ("eta", -1.5), ("exponent", 0), ("exponent", math.nan)])
def test_controllers_refuse_what_is_not_positive(name, value):
    """η and h must be above 0; the value is named."""
    for function in (controller_density, customized_controller, customized_controller_inverse):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            function(torch.rand(1, 2, 2), **{name: value})
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        controller_moments(**{name: value})


def test_the_filter_by_hand():
    """X σ(X·E_c - confidence) at each place: evidence 2 and 0 for one class, 0 and -1 for the other."""
    filters = FeatureFilter(2, 2)
    filters.embedding.weight.data = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0]])[None, :, None]  # places (2, 0) and (0, 1)
    evidence = filters.evidence(features.expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert torch.equal(evidence, torch.tensor([[[2.0, 0.0]], [[0.0, -1.0]]]))
    gates = torch.sigmoid(torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(filters(features, torch.tensor([0])), features * gates)
    torch.testing.assert_close(
        filters(features, torch.tensor([0]), confidence=6.0), features * torch.sigmoid(torch.tensor([-4.0, -6.0]))
    )


def test_new_embeddings_are_short():
    """Entries begin as N(0, 1/√C), so that evidence begins near 0."""
    weights = FeatureFilter(1000, 400).embedding.weight
    assert weights.std().item() == pytest.approx(400**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("upsampler", "parameters"), [("subpixel_blur", 20_961_922), ("subpixel", 20_961_922), ("transpose", None)]
)
def test_resnet50_has_the_public_codes_sizes(upsampler, parameters):
    """7×7 features become a 56×56 mask; with two outputs as many parameters as are told, of the public code's too."""
    with torch.device("meta"):
        generator = MaskGenerator((256, 512, 1024, 2048), outputs=2, upsampler=upsampler)
        features = [torch.empty(1, 2 ** (8 + place), 56 >> place, 56 >> place) for place in range(4)]
        assert generator(features).shape == (1, 2, 56, 56)
    if parameters:
        assert sum(weight.numel() for weight in generator.parameters()) == parameters


def scattered(upsampler):
    """A generator for three scales whose weights and norms all differ, as a training may leave them."""
    torch.manual_seed(0)
    made = MaskGenerator((16, 32, 64), upsampler=upsampler)
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
    return made


def spread(made):
    """How far apart the map's values are where features are constant: of the middle, where no border is seen."""
    features = [torch.ones(1, channels, side, side) for channels, side in ((16, 32), (32, 16), (64, 8))]
    with evaluating(made), torch.no_grad():
        middle = made(features)[..., 12:20, 12:20]
    return (middle.amax() - middle.amin()).item()


@pytest.mark.parametrize(("upsampler", "grid"), [("subpixel_blur", False), ("subpixel", True), ("transpose", True)])
def test_no_grid_where_features_are_constant(upsampler, grid):
    """The default draws a constant whatever its weights, before and behind steps that ask for a chequered map."""
    made = scattered(upsampler)
    chequered = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    before, optimizer = spread(made), torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(5):
        features = [torch.rand(2, channels, side, side) for channels, side in ((16, 32), (32, 16), (64, 8))]
        optimizer.zero_grad()
        (-made(features) * chequered).mean().backward()
        optimizer.step()
    after = spread(made)
    assert (min(before, after) > 0.01) if grid else (max(before, after) < 1e-5)


def test_the_public_codes_upsampler_is_as_it_was_stored():
    """Weights of earlier versions keep names and meaning: convolution, batch norm, ReLU, then a shuffle of pixels."""
    made, features = scattered("subpixel").eval(), torch.randn(2, 64, 5, 6)
    stored = {name.removeprefix("upsamplers.0."): tensor for name, tensor in made.state_dict().items()}
    wide = functional.conv2d(features, stored["0.weight"], padding=1)
    norm = [stored[f"1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    wide = functional.batch_norm(wide, *norm).relu().reshape(2, 8, 2, 2, 5, 6)  # (N, width, row, column, h, w)
    expected = wide.permute(0, 1, 4, 2, 5, 3).reshape(2, 8, 10, 12)
    torch.testing.assert_close(made.upsamplers[0](features), expected)


def isolated(lit):
    """Of the lit pixels of maps (N, H, W), bool, the share that has no lit one above, below, left or right."""
    around = functional.pad(lit, (1, 1, 1, 1))
    vertical, horizontal = around[:, :-2, 1:-1] | around[:, 2:, 1:-1], around[:, 1:-1, :-2] | around[:, 1:-1, 2:]
    return ((lit & ~(vertical | horizontal)).sum() / lit.sum()).item()


@pytest.mark.parametrize(("upsampler", "dotted"), [("subpixel_blur", False), ("subpixel", True), ("transpose", True)])
def test_masks_are_not_dotted(upsampler, dotted):
    """Coarse features that vary at random leave hardly a lit pixel alone, and no more in one corner of a place."""
    features = [torch.zeros(8, 16, 32, 32), torch.zeros(8, 32, 16, 16), torch.randn(8, 64, 8, 8)]
    with torch.no_grad():
        lit = instance_normalised(scattered(upsampler)(features)[:, 0]) > 0
    shares = [lit[:, row::2, column::2].float().mean().item() for row in (0, 1) for column in (0, 1)]
    assert (isolated(lit) > 0.05) if dotted else (isolated(lit) < 0.01)
    assert (max(shares) > 1.3 * min(shares)) if dotted else (max(shares) < 1.2 * min(shares))
    example = torch.tensor([[[1, 1, 0], [0, 0, 0], [0, 0, 1]]], dtype=torch.bool)
    assert isolated(example) == pytest.approx(1 / 3)


def test_the_mask_of_two_channels():
    """|a| / (|a| + |b|), 0 where both are 0."""
    logits = torch.tensor([[[[3.0, -1.0, 0.0]], [[1.0, 1.0, 0.0]]]])
    torch.testing.assert_close(two_channel_mask(logits), torch.tensor([[[0.75, 0.5, 0.0]]]))


@pytest.mark.parametrize("name", ["small_resnet", "googlenet", "densenet121"])
def test_any_network_of_four_scales(name):
    """The predictor reads the four coarsest scales; its map has the finest one's size."""
    target = build(name, CLASSES).eval()
    images = torch.rand(2, 3, 64, 64)
    made = predictor(target)
    with torch.no_grad():
        features, logits = encoded(target, images, made.layers)
        maps = made(features, torch.tensor([0, 1]))
        assert torch.equal(logits, target(images))
    sides = [feature.shape[-1] for feature in features]
    assert sides == sorted(set(sides), reverse=True)
    assert len(sides) == 4
    assert [feature.shape[1] for feature in features] == list(made.channels)
    assert maps.shape == (2, sides[0], sides[0])


@pytest.mark.parametrize(
    ("channels", "sizes", "options", "size"),
    [
        ((32, 64), [8, 4], {}, 8),
        ((32, 48, 64), [8, 4, 2], {"doublings": 1}, 16),
        ((64, 64, 64, 64), [4, 4, 4, 4], {"one_size": True, "doublings": 2}, 16),
    ],
)
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_generators_of_fewer_scales_or_one(channels, sizes, options, size, upsampler):
    """Each coarser map is enlarged to the next, those of one size are not, and doublings follow; all weights learn."""
    made = MaskGenerator(channels, upsampler=upsampler, **options)
    features = [torch.rand(2, number, side, side) for number, side in zip(channels, sizes, strict=True)]
    maps = made(features)
    assert maps.shape == (2, 1, size, size)
    widened = [layer for layer in made.upsamplers.modules() if isinstance(layer, nn.PixelShuffle | nn.ConvTranspose2d)]
    assert len(widened) == (0 if options.get("one_size") else len(channels) - 1)
    gradients = torch.autograd.grad(maps.square().sum(), list(made.parameters()))
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.usefixtures("toy_architectures")
@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [
        ("staged", ["stages.0", "stages.1", "stages.2"], (16, 24)),  # from an eighth of the sides to a quarter
        ("shifted", ["stages.0", "stages.1", "stages.2"], (16, 16)),
        ("tokens", ["blocks.0", "blocks.1", "blocks.2", "blocks.3"], (12, 16)),  # the last one reaches no logit
    ],
)
def test_any_layout_is_read(name, layers, size, tmp_path):
    """Maps of every layout, as a quarter of the image's sides; a folder gives the same, as the explainer does."""
    target, images, classes = (
        toy_networks.target(name),
        torch.rand(2, 3, *toy_networks.SIZES[name]),
        torch.tensor([2, 0]),
    )
    torch.manual_seed(1)
    made = predictor_of(target, images, controller="customized").eval()
    assert list(made.layers) == layers
    with captured(target, layers, reduce=lambda _, output: output.clone()) as raw, torch.no_grad():
        features, _ = encoded(target, images, layers)
    for layer, feature in zip(layers, features, strict=True):
        assert torch.equal(feature, toy_networks.as_map(name, raw[layer]))
    with torch.no_grad():
        maps = made(features, classes)
    assert maps.shape == (2, *size)
    save_predictor(made, tmp_path)
    again = load_predictor(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(features, classes), maps)
    expected = functional.interpolate(maps[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    found = explain(target, images, classes, method="dgle_cf", predictor=tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_folder_of_an_earlier_version_opens(tmp_path):
    """Its facts tell fewer options: each map was twice the next coarser one's, and no more; z had two moments fixed."""
    made = predictor(build("small_resnet", CLASSES).eval())
    save_predictor(made, tmp_path)
    facts = tmp_path / "mask_predictor.json"
    about = json.loads(facts.read_text())
    facts.write_text(json.dumps({name: value for name, value in about.items() if name not in LATER}))
    again = load_predictor(tmp_path)
    assert [getattr(again, name) for name in LATER] == [getattr(made, name) for name in LATER] == [False, 0, "instance"]


def test_one_map_is_not_enough():
    """A network with a single map that its logits depend on is named with it; stages leave the method out."""
    made = Target(toy_networks.Tokens(3, blocks=2), "tokens", CLASSES).eval()
    with pytest.raises(NotApplicable, match=r"two feature maps or more, and tokens has 1 .* pixels \(blocks.0\)"):
        predictor_of(made, torch.rand(1, 3, 48, 64), controller="basic")


def test_unknown_options_are_refused():
    """Controller, normalisation, upsampler, η and h are checked when the predictor is made."""
    target = build("small_resnet", CLASSES).eval()
    for options, message in (
        ({"controller": "cf"}, "controller 'cf' is unknown; choose one of basic, customized, mgnet"),
        ({"upsampler": "nearest"}, "upsampler 'nearest' is unknown; choose one of subpixel_blur, subpixel, transpose"),
        ({"normalisation": "rank"}, "normalisation 'rank' is unknown; choose one of instance, quantile"),
        ({"eta": 0}, "eta is 0"),
        ({"exponent": -1}, "exponent is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor(target, **options)


@pytest.mark.parametrize(
    ("method", "controller"), [("dgle_bf", "basic"), ("dgle_cf", "customized"), ("mgnet", "mgnet")]
)
def test_the_explainer_gives_the_predictors_map(method, controller):
    """The map is the predictor's for the asked class, resized; the same of the model's inference copy."""
    target = build("small_resnet", CLASSES).eval()
    made, images, classes = predictor(target, controller=controller), torch.rand(3, 3, 64, 64), torch.tensor([2, 0, 1])
    found = explain(target, images, classes, method=method, predictor=made)
    with torch.no_grad():
        features, _ = encoded(target, images, made.layers)
        raw = made(features, classes)[:, None]
    expected = functional.interpolate(raw, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, explain(target, images, method=method, predictor=made, target=classes.roll(1)))
    copied = explain(inference_copy(target, images), images, classes, method=method, predictor=made)
    torch.testing.assert_close(copied, expected, rtol=1e-3, atol=1e-4)


def test_save_and_load(tmp_path):
    """A folder gives back the same predictor; the explainer folds its batch norms without changing a map."""
    target, images = build("small_resnet", CLASSES).eval(), torch.rand(2, 3, 64, 64)
    chosen = {"controller": "basic", "upsampler": "transpose", "eta": 0.5, "exponent": 1.0, "normalisation": "quantile"}
    made = predictor(target, **chosen)
    for norm in made.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2.0)
    save_predictor(made, tmp_path, made_with={"seed": 1})
    again = load_predictor(tmp_path)
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in made.state_dict().items())
    assert (again.layers, again.channels, again.classes) == (made.layers, made.channels, made.classes)
    assert {name: getattr(again, name) for name in chosen} == chosen
    assert json.loads((tmp_path / "mask_predictor.json").read_text())["made_with"] == {"seed": 1}
    direct = explain(target, images, method="dgle_bf", predictor=made)
    torch.testing.assert_close(
        explain(target, images, method="dgle_bf", predictor=tmp_path), direct, rtol=1e-3, atol=1e-4
    )


def test_what_does_not_fit_is_named(tmp_path):
    """A missing folder, damaged weights or facts, and a predictor of another network are refused with their names."""
    target, images = build("small_resnet", CLASSES).eval(), torch.rand(1, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match=r"holds no mask predictor: mask_predictor\.json is missing"):
        explain(target, images, method="dgle_cf", predictor=tmp_path / "none")
    save_predictor(predictor(target), tmp_path)
    stranger = build("small_resnet", CLASSES).eval()
    with pytest.raises(ValueError, match=f"{tmp_path} was trained for .*stage train_mask_predictor"):
        explain(stranger, images, method="dgle_cf", predictor=tmp_path)
    facts = tmp_path / "mask_predictor.json"
    text = facts.read_text()
    facts.write_text(text.replace('"eta"', '"theta"'))
    with pytest.raises(ValueError, match=r"mask_predictor\.json is corrupt .*eta"):
        load_predictor(tmp_path)
    facts.write_text(text)
    weights = tmp_path / "mask_predictor.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ValueError, match=r"mask_predictor\.safetensors is corrupt"):
        load_predictor(tmp_path)
