"""Layers by name, captured activations, the gradient of the head, and the inference copy."""

import pytest
import torch
import torchvision
import toy_networks
from torch import nn

from xai_utils.explainers import cam_maps
from xai_utils.networks import (
    ARCHITECTURES,
    NotApplicable,
    Target,
    build,
    cam_layer,
    captured,
    class_indices,
    find_layer,
    head_gradient,
    inference_copy,
    last_convolution,
    layer_names,
)
from xai_utils.networks.inference import BlockConvolution


class Branching(nn.Module):
    """One convolution whose output goes to a batch norm and, beside it, on: it cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_var, 2, 3)

    def forward(self, images):
        features = self.conv(images)
        return self.head((features + self.norm(features)).mean((2, 3)))


class Repeating(nn.Module):
    """One in-place ReLU module called three times, as in torchvision's ResNet blocks."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head, self.unused = nn.ReLU(inplace=True), nn.Linear(4 * 64, 5), nn.Conv2d(1, 1, 1)

    def forward(self, images):
        features = self.relu(self.second(self.relu(self.first(images))))
        return self.head(self.relu(features * features - 0.01).flatten(1))


def settled(model):
    """Batch norms with statistics unlike their initial ones, so that folding them wrongly shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


def snapshot(model):
    """Everything of a model that must not change: weights, modules, flags, hooks, gradients."""
    return (
        {key: (id(tensor), tensor.clone()) for key, tensor in model.state_dict(keep_vars=True).items()},
        [(name, id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
         for name, module in model.named_modules()],
        [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
    )  # fmt: skip


def same(before, after):
    tensors = all(
        identity == after[0][key][0] and torch.equal(tensor, after[0][key][1])
        for key, (identity, tensor) in before[0].items()
    )
    return tensors and before[1:] == after[1:]


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(1)
    return settled(build("small_resnet", ("wren", "crow", "gull")))


def test_layer_names_are_the_networks(small):
    """Names leave out the wrapper, and an unknown one is answered with its neighbours and the top level."""
    assert "layer4.0.conv1" in layer_names(small)
    assert layer_names(small) == layer_names(small.network)
    assert find_layer(small, "layer4") is small.network.layer4
    with pytest.raises(ValueError, match=r"'layer5' is unknown; close names: layer4.*top level: conv1, .*, fc;"):
        find_layer(small, "layer5")
    with pytest.raises(ValueError, match="'' is unknown"):
        find_layer(small, "")


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("resnet50", "layer4"), ("vgg19", "features.35"), ("googlenet", "inception5b"),
     ("mobilenet_v2", "features"), ("densenet121", "features"), ("efficientnet_b0", "features"),
     ("small_resnet", "layer4")],
)  # fmt: skip
def test_default_layer_of_known_families(architecture, layer):
    """The default layer is the last convolutional map of the literature, inside a target and bare."""
    network, images = ARCHITECTURES[architecture](10), torch.rand(1, 3, 64, 64)
    assert cam_layer(network, images) == layer
    assert cam_layer(Target(network, architecture, range(10)), images) == layer


def test_default_layer_of_any_model():
    """An unknown network is probed: the module that finishes last with a map; without one, an error says so."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).train()
    before = snapshot(model)
    assert cam_layer(model, torch.rand(2, 3, 9, 9)) == "0"
    assert same(before, snapshot(model))
    with pytest.raises(ValueError, match=r"no layer of Sequential returns a map .*\(2, 3, 3, 3\)"):
        cam_layer(model, torch.rand(2, 3, 3, 3))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(6), nn.AdaptiveMaxPool2d(6), nn.Upsample(scale_factor=6)])
def test_a_map_that_was_made_larger_is_no_default_layer(pool):
    """One place pooled into 6 x 6, as AlexNet does at 64 pixels, says nothing of where: the layer before does."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(7))
    model = nn.Sequential(body, nn.Sequential(pool), nn.Flatten(), nn.Linear(144, 2))
    assert cam_layer(model, torch.rand(1, 3, 9, 9)) == "0.1"
    with pytest.raises(ValueError, match="no layer of Sequential returns a map"):
        cam_layer(nn.Sequential(nn.Conv2d(3, 4, 9), *model[1:]), torch.rand(1, 3, 9, 9))
    for size, expected in ((64, "features.11"), (224, "features.11")):
        assert cam_layer(ARCHITECTURES["alexnet"](2), torch.rand(1, 3, size, size)) == expected


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("resnet50", "layer4.2.conv3"), ("small_resnet", "layer4.0.conv2"), ("small_vgg", "features.16"),
     ("small_googlenet", "inception5b.branch4.1.conv")],
)  # fmt: skip
def test_the_last_convolution_is_not_a_shortcuts(architecture, layer):
    """The convolution that runs last, shortcuts aside; a network without a map of one says so."""
    assert last_convolution(ARCHITECTURES[architecture](3), torch.rand(1, 3, 64, 64)) == layer
    with pytest.raises(ValueError, match=r"no convolution of Linear returns a map .* give larger images"):
        last_convolution(nn.Linear(3, 3), torch.rand(1, 3, 3, 3))


@pytest.mark.parametrize(
    ("name", "layer"), [("staged", "stages.2.1.back"), ("shifted", "embedding"), ("tokens", "embedding")]
)
def test_what_embeds_patches_is_no_last_convolution(name, layer):
    """A ConvNeXt has its last convolution in its last stage; a transformer's stands before all blocks."""
    target, images = toy_networks.target(name), torch.rand(1, 3, *toy_networks.SIZES[name])
    if layer == "embedding":
        with pytest.raises(NotApplicable, match=r"embedding, the last convolution of .*, stands before its last stage"):
            last_convolution(target, images)
    else:
        assert last_convolution(target, images) == layer


def test_captured_keeps_the_last_call_and_no_hook():
    """A module that runs three times is captured as it was last; hooks go, also when the pass fails."""
    model, images = Repeating().eval(), torch.rand(2, 3, 8, 8)
    before = snapshot(model)
    with captured(model, ["relu", "head"]) as activations:
        logits = model(images)
    assert torch.equal(activations["head"], logits)
    torch.testing.assert_close(model.head(activations["relu"].flatten(1)), logits)
    with pytest.raises(RuntimeError), captured(model, ["relu"]):
        model(images[:, :2])
    assert same(before, snapshot(model))


def test_captured_notices_overwriting():
    """An output that an in-place ReLU overwrites is an error, or a faithful copy in inference mode."""
    model, images = Repeating().eval(), torch.randn(2, 3, 8, 8)
    overwritten = pytest.raises(RuntimeError, match="'first' was overwritten in place")
    with overwritten, torch.no_grad(), captured(model, ["first"]):
        model(images)
    with captured(model, ["first"]) as activations, torch.inference_mode():
        model(images)
    assert activations["first"].min() < 0


@pytest.mark.parametrize("layer", ["relu", "second", "first"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_head_gradient_is_the_full_gradient(layer, mode):
    """Activation and gradient equal those of an ordinary recorded pass, in any mode, before in-place ReLUs as well."""
    model = Repeating().train()
    model.first.requires_grad_(False)
    model.second.eval()
    images, target = torch.rand(2, 3, 8, 8), torch.tensor([4, 1])
    first = model.first(images)
    second = model.second(first.relu())
    last = (second.relu() ** 2 - 0.01).relu()
    score = model.head(last.flatten(1)).gather(1, target[:, None]).sum()
    wanted = {"first": first, "second": second, "relu": last}[layer]
    before = snapshot(model)
    if layer == "first":  # frozen parameters: only its output leads to a gradient
        leaf = wanted.detach().requires_grad_()
        last = (model.second(leaf.relu()).relu() ** 2 - 0.01).relu()
        score, wanted = model.head(last.flatten(1)).gather(1, target[:, None]).sum(), leaf
    (expected,) = torch.autograd.grad(score, wanted)
    with mode():
        activation, gradient, logits, used = head_gradient(model, images, layer, target)
        grad_mode = torch.is_grad_enabled()
    assert grad_mode == (mode is torch.enable_grad)
    torch.testing.assert_close(activation, wanted.detach())
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(logits.gather(1, target[:, None]).sum(), score.detach())
    assert not activation.requires_grad
    assert not logits.requires_grad
    assert torch.equal(used, target)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "layer"), [("tokens", "blocks.4.norm"), ("tokens", "blocks.2"), ("shifted", "stages.1")]
)
def test_head_gradient_of_tokens_is_the_full_gradient(name, layer, precision):
    """Leaving places without gradient out changes nothing: of a head that reads one token, or all, also in half."""
    model, images = toy_networks.target(name), torch.rand(2, 3, *toy_networks.SIZES[name])
    half = torch.autocast("cpu", dtype=precision, enabled=precision == torch.bfloat16)
    with half, captured(model, [layer]) as recorded:
        score = model(images)[:, 1].sum()
    (wanted,) = torch.autograd.grad(score, recorded[layer])
    with half:
        gradient = head_gradient(model, images, layer, 1)[1]
    bound = 1e-6 if precision == torch.float32 else 0.02
    assert (gradient - toy_networks.as_map(name, wanted)).abs().max() <= bound * wanted.abs().max()


def test_head_gradient_errors():
    """A layer without map, one that never runs, one behind a detach, and a model without logits are told apart."""
    model, images = Repeating(), torch.rand(2, 3, 8, 8)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'head' returns \(N, 5\) .* no map"):
        head_gradient(model, images, "head")
    with pytest.raises(ValueError, match="'unused' is not run"):
        head_gradient(model, images, "unused")
    with pytest.raises(ValueError, match=r"returns \(2, 4, 8, 8\); wrap it"):
        head_gradient(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), images, "0")
    detached = Repeating()
    detached.head.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    with pytest.raises(ValueError, match="do not depend differentiably on layer 'relu'"):
        head_gradient(detached, images, "relu")
    assert same(before, snapshot(model))


def test_class_indices():
    """None predicts, an int serves all images, and what is not a class is refused with the range."""
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    assert class_indices(logits).tolist() == [1, 0]
    assert class_indices(logits, 2).tolist() == [2, 2]
    for wrong, message in (([0, 3], r"3 is not a class.*0\.\.2"), ([-1, 0], "-1 is not a class"),
                           ([0], r"shape \(1,\)"), ([0.0, 1.0], "float32")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            class_indices(logits, torch.tensor(wrong))


@pytest.mark.parametrize(
    ("architecture", "norms"),
    [("small_resnet", 0), ("resnet18", 0), ("mobilenet_v2", 0), ("googlenet", 0), ("densenet121", 62),
     ("efficientnet_b0", 0), ("tf_mobilenet_v2", 0)],
)  # fmt: skip
def test_inference_copy_gives_the_same_maps(architecture, norms):
    """Folded and channels last, a copy makes the same maps to 1e-4; only norms before convolutions remain."""
    model = settled(build(architecture, range(5))).train()
    with torch.no_grad():  # every class has positive evidence, so that no map is zero
        find_layer(
            model, [name for name in layer_names(model) if "fc" in name or "classifier" in name][-1]
        ).weight.abs_()
    images = torch.rand(2, 3, 64, 64)
    before = snapshot(model)
    faster = inference_copy(model, images)
    assert same(before, snapshot(model))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in faster.modules()) == norms
    assert not any(module.training for module in faster.modules())
    assert layer_names(faster) == layer_names(model)
    # DenseNet's map has negative values: the sums that the other two divide by may nearly cancel
    methods = ["grad_cam"] if architecture == "densenet121" else ["grad_cam", "xgrad_cam", "grad_cam_plus_plus"]
    target = torch.tensor([0, 3])
    for name, maps in cam_maps(model, images, target, methods=methods).items():
        copied = cam_maps(faster, images, target, methods=methods)[name]
        assert maps.abs().max() > 0, name
        assert (maps - copied).abs().max() <= 1e-4 * maps.abs().max(), name


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 2, 3), (3, 2, 1), (3, 2, 0), (4, 4, 0), (11, 4, 2)])
@pytest.mark.parametrize("size", [(32, 32), (33, 30), (31, 35)])
def test_a_convolution_over_blocks_is_the_same(kernel, stride, padding, size):
    """Over blocks of pixels, a strided convolution has the same output and the same gradient, at any size."""
    plain = nn.Conv2d(3, 8, kernel, stride=stride, padding=padding).double()
    images = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected, output = plain(images), BlockConvolution(plain)(images)
    torch.testing.assert_close(output, expected)
    weights = torch.rand_like(expected)
    gradients = [torch.autograd.grad((weights * each).sum(), images)[0] for each in (output, expected)]
    torch.testing.assert_close(*gradients)


def test_inference_copy_reads_pixels_over_blocks(small):
    """The strided stem of a copy works on blocks, with the weights that the folded convolution has."""
    stem = inference_copy(small, torch.rand(1, 3, 48, 48)).network.conv1
    assert isinstance(stem, BlockConvolution)
    assert stem.weight.shape == small.network.conv1.weight.shape
    assert type(small.network.conv1) is nn.Conv2d


def test_inference_copy_of_a_vgg_with_norms():
    """A bare torchvision network works as well, with the default probe and a layer by name."""
    features = torchvision.models.vgg.make_layers([8, "M", 8, "M", 16, 16, "M"], batch_norm=True)
    model = settled(torchvision.models.VGG(features, num_classes=4, init_weights=False))
    model.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16 * 49, 4)).eval()
    faster, images = inference_copy(model), torch.rand(2, 3, 64, 64)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in faster.modules())
    for layer in (None, "features.10", "features.2"):
        maps = cam_maps(model, images, 1, methods=["grad_cam_plus_plus"], layer=layer)["grad_cam_plus_plus"]
        copied = cam_maps(faster, images, 1, methods=["grad_cam_plus_plus"], layer=layer)["grad_cam_plus_plus"]
        assert (maps - copied).abs().max() <= 1e-4 * maps.abs().max() > 0


def test_inference_copy_leaves_what_it_cannot_fold():
    """Where a convolution's output is also used beside its norm, logits would change, so the norm stays."""
    model, images = Branching().eval(), torch.rand(2, 3, 16, 16)
    faster = inference_copy(model, images)
    assert isinstance(faster.norm, nn.BatchNorm2d)
    torch.testing.assert_close(faster(images), model(images))


def test_inference_copy_keeps_named_convolutions(small):
    """A convolution in `keep` still returns its own output; one that is folded returns its norm's."""
    images = torch.rand(2, 3, 48, 48)
    with captured(small, ["layer4.0.conv2", "layer4.0.bn2"]) as own, torch.inference_mode():
        small(images)
    for keep, layer in (((), "layer4.0.bn2"), (("layer4.0.conv2",), "layer4.0.conv2")):
        faster = inference_copy(small, images, keep=keep)
        with captured(faster, ["layer4.0.conv2"]) as activations, torch.inference_mode():
            faster(images)
        torch.testing.assert_close(activations["layer4.0.conv2"], own[layer], rtol=1e-4, atol=1e-5)
