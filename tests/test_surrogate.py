"""The attentive student, the explanation network, and their checkpoints."""

import json
import os

import pytest
import torch
import torchvision
from torch import nn

from xai_utils.networks import build
from xai_utils.networks.attention import BAM, CBAM
from xai_utils.networks.surrogate import (
    AttentiveStudent,
    ExplanationNetwork,
    Surrogate,
    load_surrogate,
    save_surrogate,
)

CLASSES = ("wren", "crow", "gull")


def surrogate(**options):
    torch.manual_seed(1)
    return Surrogate(build("small_resnet", CLASSES), **options).eval()


def open_gates(module):
    """Make every CBAM pass its input on unchanged: both gates are exactly 1 in float32."""
    for gate in module.modules():
        if isinstance(gate, CBAM):
            nn.init.constant_(gate.channel.mlp[2].bias, 50.0)
            nn.init.constant_(gate.spatial.norm.bias, 50.0)
    return module


def test_resnet50_has_the_papers_sizes():
    """13 modules in the last three stages, Δ of 512, 1024 and 2048 channels, 13,420,225 parameters, map 224 × 224."""
    with torch.device("meta"):
        student = AttentiveStudent(torchvision.models.resnet50()).eval()
        explanation = ExplanationNetwork(student.channels).eval()
        logits, deltas = student(torch.empty(1, 3, 224, 224))
        maps = explanation(deltas, (224, 224))
    gates = [name for name, module in student.named_modules() if isinstance(module, CBAM)]
    assert len(gates) == 13
    assert [sum(name.startswith(f"stages.{stage}.") for name in gates) for stage in range(3)] == [4, 6, 3]
    assert [tuple(delta.shape) for delta in deltas] == [(1, 512, 28, 28), (1, 1024, 14, 14), (1, 2048, 7, 7)]
    assert sum(weight.numel() for weight in explanation.parameters()) == 13_420_225
    assert (logits.shape, maps.shape) == ((1, 1000), (1, 224, 224))


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "resnext50_32x4d"])
def test_open_gates_leave_the_trunk(name):
    """With attention 1 everywhere a student answers exactly as its trunk, Δ is 0, and the trunk is left untouched."""
    network = build(name, CLASSES).network.eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    student = open_gates(AttentiveStudent(network)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, deltas = student(images)
        torch.testing.assert_close(logits, network(images))
    assert all((delta == 0).all() for delta in deltas)
    nn.init.zeros_(student.head.weight)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("residual", [False, True])
def test_delta_is_what_attention_did_to_the_branch(residual):
    """One basic block by hand: Δ = att ⊙ f - f, or att ⊙ f beside the kept f; the block goes on with f + Δ or f̂."""
    student = AttentiveStudent(build("small_resnet", CLASSES).network, residual_attention=residual).eval()
    images = torch.randn(2, 3, 32, 32)
    (layer,) = student.stages[0]
    block, entering = layer.block, student.stem(images)
    branch = block.bn2(block.conv2(block.bn1(block.conv1(entering)).clamp(min=0)))
    gated = layer.attention(branch)
    output, delta = layer(entering)
    torch.testing.assert_close(delta, gated if residual else gated - branch)
    kept = block.downsample(entering)
    torch.testing.assert_close(output, (kept + branch + (gated if residual else gated - branch)).clamp(min=0))
    torch.testing.assert_close(student(images)[1][0], delta)


def test_delta_source():
    """A stage's Δ is its last block's, or the mean over its blocks."""
    network = build("resnet18", CLASSES).network
    torch.manual_seed(2)
    last = AttentiveStudent(network).eval()
    mean = AttentiveStudent(network, delta_source="mean").eval()
    mean.load_state_dict(last.state_dict())
    images = torch.randn(1, 3, 64, 64)
    features = last.stem(images)
    for stage, one, other in zip(last.stages, last(images)[1], mean(images)[1], strict=True):
        features, first = stage[0](features)
        features, second = stage[1](features)
        torch.testing.assert_close(one, second)
        torch.testing.assert_close(other, (first + second) / 2)


def test_explanation_network_by_the_table():
    """The decoder is the table of its docstring, written out with plain functions."""
    network = ExplanationNetwork((64, 128, 256)).eval()
    fine, middle, coarse = torch.randn(2, 64, 24, 24), torch.randn(2, 128, 12, 12), torch.randn(2, 256, 6, 6)

    def twice(features):
        return nn.functional.interpolate(features, scale_factor=2, mode="bilinear")

    first, second, third = ((block[0].weight, block[1]) for block in network.blocks)
    features = twice(first[1](nn.functional.conv2d(coarse, first[0], padding=1)).relu())  # (2, 64, 12, 12)
    features = torch.cat([features, middle], 1)
    features = twice(second[1](nn.functional.conv2d(features, second[0], padding=1)).relu())
    features = torch.cat([features, fine], 1)
    features = twice(third[1](nn.functional.conv2d(features, third[0], padding=1)).relu())  # (2, 8, 48, 48)
    assert features.shape == (2, 8, 48, 48)
    scores = twice(nn.functional.conv2d(features, network.head.weight, network.head.bias))
    torch.testing.assert_close(network((fine, middle, coarse), (96, 96)), scores[:, 0].sigmoid())


@pytest.mark.parametrize("options", [{}, {"attention": "bam"}, {"residual_attention": True, "delta_source": "mean"}])
@pytest.mark.parametrize("size", [(96, 96), (70, 51)])
def test_one_pass_gives_logits_and_maps(options, size):
    """Shapes and range hold for any size; images do not mix; the map begins near 0.88; the mode is left alone."""
    model = surrogate(**options)
    images = torch.rand(3, 3, *size)
    with torch.no_grad():
        logits, maps = model(images)
        alone, map_alone = model(images[1:2])
    assert logits.shape == (3, 3)
    assert maps.shape == (3, *size)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert maps.mean() == pytest.approx(0.88, abs=0.05)
    torch.testing.assert_close(alone[0], logits[1])
    torch.testing.assert_close(map_alone[0], maps[1])
    torch.testing.assert_close(model.classify(images), logits)


def test_surrogate_normalises_as_its_target():
    """With open gates it answers as the target that it was made of, for pixels and an unusual normalisation."""
    target = build("small_resnet", CLASSES, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)).eval()
    model = open_gates(Surrogate(target)).eval()
    images = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(model.classify(images), target(images))


def test_what_cannot_be_a_student_is_refused():
    """Other networks, options and images too small for a map of 2 × 2 are named, with what is allowed."""
    with pytest.raises(ValueError, match=r"a MobileNetV2 is no torchvision ResNet; choose one, or name `stages`"):
        Surrogate(build("mobilenet_v2", CLASSES))
    with pytest.raises(ValueError, match=r"attention 'gate' is unknown; choose one of cbam, bam"):
        surrogate(attention="gate")
    with pytest.raises(ValueError, match=r"delta_source 'first' is unknown; choose one of last, mean"):
        surrogate(delta_source="first")
    model = surrogate()
    assert model(torch.rand(1, 3, 17, 17))[1].shape == (1, 17, 17)
    with pytest.raises(ValueError, match=r"images of 16 x 20 pixels leave the last stage a map of 1 x 2"):
        model(torch.rand(1, 3, 16, 20))


def test_checkpoint_round_trip(tmp_path):
    """A loaded surrogate gives the same logits and maps bit by bit, options included; old files are replaced."""
    model = surrogate(attention="bam", residual_attention=True, delta_source="mean")
    model.mean += 0.1
    save_surrogate(surrogate(), tmp_path / "new")
    save_surrogate(model, tmp_path / "new", made_with={"epochs": 3})
    again = load_surrogate(tmp_path / "new")
    images = torch.rand(2, 3, 48, 48)
    assert all(torch.equal(one, other) for one, other in zip(again(images), model(images), strict=True))
    assert (again.classes, again.training) == (CLASSES, False)
    assert sum(isinstance(module, BAM) for module in again.modules()) == 3
    assert sorted(os.listdir(tmp_path / "new")) == ["surrogate.json", "surrogate.safetensors"]
    assert json.loads((tmp_path / "new" / "surrogate.json").read_text())["made_with"] == {"epochs": 3}


def test_checkpoint_errors(tmp_path):
    """Every broken file is refused by name."""
    with pytest.raises(FileNotFoundError, match=r"holds no surrogate: surrogate\.json is missing"):
        load_surrogate(tmp_path / "nowhere")
    save_surrogate(surrogate(), tmp_path)
    facts_file, weights = tmp_path / "surrogate.json", tmp_path / "surrogate.safetensors"
    facts, whole = json.loads(facts_file.read_text()), weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"surrogate\.safetensors is corrupt"):
        load_surrogate(tmp_path)
    weights.write_bytes(whole)
    for change, message in (
        ({"architecture": "resnet18"}, r"does not hold weights of Surrogate \(missing: student\.stem\.4\.1"),
        ({"architecture": "resnet19"}, r"'resnet19' is unknown"),
        ({"classes": ["wren", "crow"]}, r"of another shape: student\.head\.weight \(3, 128\) instead of \(2, 128\)"),
        ({"attention": "bam"}, r"does not hold weights of Surrogate"),
        ({"attention": "none"}, r"attention 'none' is unknown"),
    ):
        facts_file.write_text(json.dumps(facts | change))
        with pytest.raises(ValueError, match=message):
            load_surrogate(tmp_path)
    for broken in ('{"architecture": ', "{}", "[]"):
        facts_file.write_text(broken)
        with pytest.raises(ValueError, match=r"surrogate\.json is corrupt"):
            load_surrogate(tmp_path)
    model = surrogate()
    model.architecture = "my_net"
    with pytest.raises(ValueError, match="'my_net' is unknown"):
        save_surrogate(model, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
