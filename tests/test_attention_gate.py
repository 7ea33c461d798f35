"""The gates of attention-map-guided Grad-CAM: by hand, beside Grad-CAM, on every kind of network, and on disk."""

import json
import os

import pytest
import torch
import toy_networks
from test_cam import curved
from test_layers import same, settled, snapshot
from torch import nn

from xai_utils.explainers import explain
from xai_utils.explainers.attention_gate import PART, amg
from xai_utils.explainers.cam import grad_cam
from xai_utils.images import resize, unit_range
from xai_utils.metrics.cost import counted_passes
from xai_utils.networks import (
    ARCHITECTURES,
    AttentionGate,
    Target,
    build,
    gate_for,
    head_gradient,
    load_gate,
    save_gate,
)
from xai_utils.networks.attention_gate import gated_logits

CLASSES = ("wren", "crow", "gull")


def target(architecture="small_resnet"):
    torch.manual_seed(1)
    return settled(build(architecture, CLASSES))


def gate(model=None, images=None, **options):
    """A gate in eval mode whose spatial part is not even."""
    torch.manual_seed(4)
    images = torch.rand(1, 3, 64, 64) if images is None else images
    return settled(gate_for(model or target(), images, **options))


def opened(gate):
    """The gate with both its gates exactly 1 in float32."""
    nn.init.constant_(gate.channel.mlp[2].bias, 50.0)
    nn.init.constant_(gate.spatial.norm.bias, 50.0)
    return gate


def test_sizes_are_the_papers():
    """Behind a ResNet-50 the channel gate has 526,464 parameters, the spatial one 98 weights and a batch norm's two."""
    made = gate_for(build("resnet50", range(1000)), torch.rand(1, 3, 64, 64))
    assert (made.layer, made.channels) == ("layer4", 2048)
    assert sum(weight.numel() for weight in made.channel.parameters()) == 526_464
    assert sum(weight.numel() for weight in made.spatial.parameters()) == 98 + 2


@pytest.mark.parametrize(
    ("architecture", "layer", "channels"),
    [("vgg19", "features.35", 512), ("vgg16_bn", "features.42", 512), ("googlenet", "inception5b", 1024),
     ("densenet121", "features", 1024), ("mobilenet_v2", "features", 1280), ("mobilenet_v3_small", "features", 576),
     ("efficientnet_b0", "features", 1280), ("shufflenet_v2_x0_5", "conv5", 1024),
     ("alexnet", None, 256), ("tiny_resnet", "layer4", 64)],
)  # fmt: skip
def test_channels_are_counted_on_any_network(architecture, layer, channels):
    """The default layer's channels are found by a pass."""
    made = gate_for(Target(ARCHITECTURES[architecture](20), architecture, range(20)), torch.rand(1, 3, 64, 64))
    assert made.layer == layer or layer is None
    assert (made.channels, made.architecture) == (channels, architecture)


def test_amg_is_its_formula_position_by_position():
    """relu(g_s Σ_k g_ck W_k A_k) by nested loops, on a network whose gradients vary, for both inputs of the gates."""
    model, images, classes = curved(), torch.rand(4, 3, 16, 16), torch.arange(4)
    for gate_input in ("activations", "weighted"):
        made = settled(
            AttentionGate("curved", CLASSES, layer="3", channels=5, reduction=2, gate_input=gate_input)
        ).requires_grad_(False)
        PART.adopt(made, model)
        activation, gradient, _, _ = head_gradient(model, images, "3", classes)
        low = torch.zeros(4, 4, 4)
        for n in range(4):
            weights = [sum(gradient[n, k].flatten().tolist()) / 16 for k in range(5)]
            scales = weights if gate_input == "weighted" else [1] * 5
            read = torch.stack([scale * activation[n, k] for k, scale in enumerate(scales)])[None]
            pooled = [made.channel.mlp(values) for values in (read.mean((2, 3)), read.amax((2, 3)))]
            channel = (pooled[0] + pooled[1]).sigmoid()[0]  # (C,)
            read = channel[:, None, None] * read[0]
            stacked = torch.stack([read.amax(0), read.mean(0)])[None]
            spatial = made.spatial.norm(made.spatial.conv(stacked)).sigmoid()[0, 0]  # (h, w)
            for i in range(4):
                for j in range(4):
                    total = sum(float(channel[k]) * weights[k] * float(activation[n, k, i, j]) for k in range(5))
                    low[n, i, j] = max(0.0, float(spatial[i, j]) * total)
        assert (low.amax((1, 2)) > 0).sum() >= 2
        found = amg(model, images, classes, gate=made)
        torch.testing.assert_close(found, resize(low, 16), rtol=1e-4, atol=1e-7)
        plain = grad_cam(model, images, classes, layer="3")
        assert (found - plain).abs().max() > 0.1 * plain.max()


@pytest.mark.parametrize("architecture", ["small_resnet", "mobilenet_v2", "googlenet", "squeezenet1_1"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gates_of_one_are_grad_cam(architecture, memory_format):
    """With gates of constant 1 the maps are Grad-CAM's, bit by bit, whatever the network, the input and the class."""
    torch.manual_seed(1)
    model = build(architecture, range(20)).eval().to(memory_format=memory_format)
    images, classes = torch.rand(5, 3, 64, 64), torch.tensor([2, 0, 11, 5, 7])
    expected = grad_cam(model, images, classes)
    assert expected.max() > 0
    for gate_input in ("activations", "weighted"):
        made = opened(gate(model, images, gate_input=gate_input))
        assert torch.equal(amg(model, images, classes, gate=made), expected)


def test_composition_uses_the_gates_that_it_names():
    """ "channel" is "both" with a spatial gate of 1, "spatial" with a channel gate of 1 in the map, none Grad-CAM."""
    model, images = target(), torch.rand(2, 3, 64, 64)
    made, even = gate(model), gate(model)
    nn.init.constant_(even.spatial.norm.bias, 50.0)
    assert torch.equal(amg(model, images, gate=made, composition="channel"), amg(model, images, gate=even))
    activation, gradient, _, _ = head_gradient(model, images, "layer4")
    with torch.no_grad():
        _, spatial = made(activation)
    total = (gradient.mean((2, 3), keepdim=True) * activation).sum(1)
    found = amg(model, images, gate=made, composition="spatial")
    torch.testing.assert_close(found, resize((spatial[:, 0] * total).relu(), 64))
    assert not torch.allclose(found, amg(model, images, gate=made), rtol=0.01)


def test_gates_that_need_no_training_by_hand():
    """Standardised sums through a sigmoid: channels 1, 3 and 5 of constant maps; the even position's gate is 1/2."""
    made = AttentionGate(None, (), layer="x", channels=None, objective="none")
    features = torch.tensor([1.0, 3.0, 5.0])[None, :, None, None].expand(1, 3, 2, 2)
    channel, spatial = made(features)
    deviation = 1.5**0.5  # of 2, 6, 10: ±4 over sqrt(32 / 3)
    torch.testing.assert_close(channel.flatten(), torch.tensor([-deviation, 0.0, deviation]).sigmoid())
    assert torch.equal(spatial, torch.full((1, 1, 2, 2), 0.5))
    features = torch.tensor([[0.0, 0.0], [0.0, 8.0]]).expand(1, 4, 2, 2)
    channel, spatial = made(features)
    assert torch.equal(channel, torch.full((1, 4, 1, 1), 0.5))
    root = 3**0.5  # mean + max is (0, 0, 0, 8), mean 2, deviation sqrt(12)
    torch.testing.assert_close(spatial.flatten(), torch.tensor([-1 / root] * 3 + [root]).sigmoid())
    assert not list(made.parameters())
    model, images = target(), torch.rand(2, 3, 64, 64)
    maps = explain(model, images, method="amg", gate=None)
    assert torch.equal(maps, amg(model, images, gate=gate(model, objective="none")))
    plain = grad_cam(model, images)
    assert (unit_range(maps) - unit_range(plain)).abs().max() > 0.05


def test_amg_costs_one_pass():
    """Operations beyond Grad-CAM's are those of the gates: under 2 % of a pass of a ResNet-18."""
    model, images = target("resnet18"), torch.rand(1, 3, 96, 96)
    made = gate(model, images)
    passes = counted_passes(model, images, lambda model, images: amg(model, images, gate=made))
    plain = counted_passes(model, images, grad_cam)
    assert plain <= passes < plain + 0.02


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("small_resnet", None), ("densenet121", None), ("squeezenet1_1", None), ("small_resnet", "layer4.0.conv2"),
     ("googlenet", "inception5b.branch1")],
)  # fmt: skip
def test_gated_logits_put_features_in_the_place_of_a_layer(architecture, layer):
    """A layer's own activations give the network's answer, differentiably, also where something bypasses the layer."""
    model = target(architecture).requires_grad_(False)
    images = torch.rand(3, 3, 64, 64)
    layer = layer or gate(model, images, objective="none").layer
    activation, gradient, logits, classes = head_gradient(model, images, layer)
    before, features = activation.clone(), activation.requires_grad_()
    found = gated_logits(model, layer, features, images)
    torch.testing.assert_close(found, logits)
    (slope,) = torch.autograd.grad(found.gather(1, classes[:, None]).sum(), features)
    torch.testing.assert_close(slope, gradient)
    assert torch.equal(features, before)  # whatever a later module overwrites
    assert not torch.equal(gated_logits(model, layer, 2 * before, images), logits)


def test_probing_leaves_the_model_alone():
    """A model in train mode with odd flags keeps its flags, statistics and hooks, also after an error."""
    model = target().train()
    model.network.layer2.eval()
    before = snapshot(model)
    gate(model)
    amg(model, torch.rand(2, 3, 64, 64), gate=gate(model))
    with pytest.raises(ValueError, match="layer 'avgpool' returns"):
        gate(model, layer="avgpool")
    assert same(before, snapshot(model))


def test_bad_input_is_named():
    """Layers without a map, options, classes, images and gates that do not fit: each with what is allowed."""
    model, images = target(), torch.rand(2, 3, 64, 64)
    made = gate(model)
    for layer, message in (
        ("avgpool", r"'avgpool' returns \(N, 128, 1, 1\) for images of 64 x 64 pixels, no map"),
        ("fc", r"'fc' returns \(N, 3\)"),
        ("layer5", "'layer5' is unknown; close names: layer4"),
    ):
        with pytest.raises(ValueError, match=message):
            gate(model, layer=layer)
    with pytest.raises(ValueError, match=r"'layer4' returns \(N, 128, 1, 1\) for images of 16 x 16"):
        gate(model, images[..., :16, :16], layer="layer4")
    with pytest.raises(ValueError, match=r"returns \(N, 128, 1, 1\) .* no map .* larger images"):
        amg(model, images[..., :16, :16], gate=made)
    for options, message in (
        ({"gate_input": "weights"}, "gate_input is 'weights'; give one of activations, weighted"),
        ({"composition": "sum"}, "composition is 'sum'; give one of both, channel, spatial"),
        ({"target": 3}, r"target 3 is not a class of this model; give 0\.\.2"),
        ({"target": torch.tensor([0, -1])}, r"target -1 is not a class of this model; give 0\.\.2"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(model, images, method="amg", gate=made, **options)
    with pytest.raises(ValueError, match=r"images reach from .*in \[0, 1\]"):
        explain(model, images * 2, method="amg", gate=made)
    for options, message in (
        ({"gate_input": "weights"}, "gate_input 'weights' is unknown"),
        ({"objective": "labels"}, "objective 'labels' is unknown; choose one of cross_entropy, mask, none"),
        ({"layer": "layer4", "reduction": 512}, "128 channels cannot be reduced by 512"),
    ):
        with pytest.raises(ValueError, match=message):
            gate(model, **options)
    with pytest.raises(ValueError, match=r"trained for a small_resnet of 3 .*, not for a tiny_resnet of 3"):
        amg(other := build("tiny_resnet", CLASSES), images, gate=made)
    PART.adopt(made, other)
    with pytest.raises(ValueError, match=r"gate is for 128 channels, and layer 'layer4' of this model has 64"):
        amg(other, images, gate=made)


def test_checkpoint_round_trip(tmp_path):
    """A loaded gate gives the same maps bit by bit, options included; a folder names it; a rewritten one is reread."""
    model, images = target(), torch.rand(2, 3, 64, 64)
    save_gate(gate(model), tmp_path)
    first = explain(model, images, method="amg", gate=tmp_path)
    assert torch.equal(first, amg(model, images, gate=gate(model)))
    made = gate(model, layer="layer3", gate_input="weighted", objective="mask", reduction=8)
    save_gate(made, tmp_path, made_with={"epochs": 3})
    os.utime(tmp_path / "attention_gate.json", ns=(1, 1))  # a clock that is too coarse for two writes
    with torch.inference_mode():
        second = amg(model, images, gate=tmp_path)
    assert torch.equal(second, amg(model, images, gate=made))
    assert torch.equal(second, amg(model, images, gate=tmp_path))
    again = load_gate(tmp_path)
    assert (again.layer, again.gate_input, again.objective, again.reduction) == ("layer3", "weighted", "mask", 8)
    assert (again.classes, again.training) == (CLASSES, False)
    assert sorted(os.listdir(tmp_path)) == ["attention_gate.json", "attention_gate.safetensors"]
    assert json.loads((tmp_path / "attention_gate.json").read_text())["made_with"] == {"epochs": 3}
    save_gate(gate(model, objective="none"), tmp_path / "none")
    assert torch.equal(amg(model, images, gate=tmp_path / "none"), amg(model, images, gate=None))


def test_checkpoint_errors(tmp_path):
    """Every broken file is refused by name."""
    with pytest.raises(FileNotFoundError, match=r"holds no attention gate: attention_gate\.json is missing"):
        amg(target(), torch.rand(1, 3, 64, 64), gate=tmp_path / "nowhere")
    save_gate(gate(), tmp_path)
    facts_file, weights = tmp_path / "attention_gate.json", tmp_path / "attention_gate.safetensors"
    facts, whole = json.loads(facts_file.read_text()), weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"attention_gate\.safetensors is corrupt"):
        load_gate(tmp_path)
    weights.write_bytes(whole)
    for change, message in (
        ({"channels": 64}, r"of another shape: channel\.mlp\.0\.weight \(8, 128\) instead of \(4, 64\)"),
        ({"objective": "none"}, r"does not hold weights of AttentionGate \(unexpected: "),
        ({"gate_input": "none"}, r"gate_input 'none' is unknown"),
    ):
        facts_file.write_text(json.dumps(facts | change))
        with pytest.raises(ValueError, match=message):
            load_gate(tmp_path)
    for broken in ('{"architecture": ', "{}", "[]"):
        facts_file.write_text(broken)
        with pytest.raises(ValueError, match=r"attention_gate\.json is corrupt"):
            load_gate(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"attention_gate\.safetensors is missing"):
        load_gate(tmp_path)
    made = gate()
    made.architecture = "my_net"
    with pytest.raises(ValueError, match="'my_net' is unknown"):
        save_gate(made, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


@pytest.mark.usefixtures("toy_architectures")
@pytest.mark.parametrize("name", toy_networks.NETWORKS)
def test_gates_of_one_change_no_logit_in_any_layout(name, tmp_path):
    """Features put back as they were taken give the same logits, on tokens too; with gates of 1 AMG is Grad-CAM."""
    model, images = toy_networks.target(name), torch.rand(2, 3, *toy_networks.SIZES[name])
    made = opened(gate(model, images, reduction=4))
    activation, _, logits, _ = head_gradient(model, images, made.layer)
    with torch.no_grad():
        channel, spatial = made(activation)
        torch.testing.assert_close(gated_logits(model, made.layer, spatial * (channel * activation), images), logits)
        assert not torch.allclose(gated_logits(model, made.layer, activation.flip(1), images), logits, rtol=1e-3)
    save_gate(made, tmp_path)
    assert torch.equal(explain(model, images, method="amg", gate=tmp_path), grad_cam(model, images))
