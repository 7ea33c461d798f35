"""Students of networks that are no ResNets: attention behind three stages, whatever their maps look like."""

import json

import pytest
import torch
from torch import nn
from toy_networks import NETWORKS, SIZES, Tokens, as_map, opened, target

from xai_utils.explainers import explain
from xai_utils.networks import NotApplicable, Target, captured, inference_copy
from xai_utils.networks.surrogate import load_surrogate, save_surrogate, surrogate_of

STAGES = {  # layers, and the grids of their maps
    "staged": {"stages.0": (8, 12), "stages.1": (4, 6), "stages.2": (2, 3)},
    "shifted": {"stages.0": (8, 8), "stages.1": (4, 4), "stages.2": (2, 2)},
    "tokens": {"blocks.1": (6, 8), "blocks.2": (6, 8), "blocks.3": (6, 8)},  # the head reads the class token alone
}
pytestmark = pytest.mark.usefixtures("toy_architectures")
every = pytest.mark.parametrize("name", NETWORKS)


def images_for(name):
    return torch.rand(2, 3, *SIZES[name])


def surrogate(name, **options):
    made = target(name)
    torch.manual_seed(2)
    return surrogate_of(made, images_for(name), **{"reduction": 4} | options).eval()


@every
@pytest.mark.parametrize("options", [{}, {"residual_attention": True}, {"attention": "bam"}])
def test_delta_is_what_attention_did_to_a_stage(name, options):
    """Δ = att ⊙ f - f of what the stage returned, or att ⊙ f with residual_attention; finest first, of its grid."""
    model, images = surrogate(name, **options), images_for(name)
    layers = list(STAGES[name])
    with captured(model.student.network, layers, reduce=lambda _, output: output.clone()) as raw, torch.no_grad():
        logits, deltas = model.student(images)
    assert [stage.layer for stage in model.student.stages] == layers
    assert logits.shape == (2, 3)
    for layer, attention, delta in zip(layers, model.student.attention, deltas, strict=True):
        features = as_map(name, raw[layer])
        assert delta.shape[2:] == STAGES[name][layer]
        expected = attention(features) - (0 if options.get("residual_attention") else features)
        torch.testing.assert_close(delta, expected)
    assert not any(module._forward_hooks for module in model.modules())


@every
def test_open_gates_leave_the_trunk(name):
    """With attention 1 everywhere a student answers as its target, class token and all, and Δ is 0."""
    made, model, images = target(name), opened(surrogate(name)), images_for(name)
    with torch.no_grad():
        _, deltas = model.student(images)
        torch.testing.assert_close(model.classify(images), made(images))
    assert all((delta == 0).all() for delta in deltas)


@every
def test_attention_goes_on_into_the_logits(name):
    """Each module of the student, gates included, has a gradient of the logits; a copy of the target is trained."""
    model = surrogate(name)
    parameters = dict(model.student.named_parameters())
    gradients = torch.autograd.grad(model.classify(images_for(name)).square().sum(), parameters.values())
    moved = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient.any()}
    for place in range(3):
        assert {f"attention.{place}.channel.mlp.2.bias", f"attention.{place}.spatial.norm.bias"} <= moved
    assert any(name.startswith("network.") for name in moved)


@every
def test_a_folder_gives_the_same_surrogate(name, tmp_path):
    """Bit by bit, without images to find the stages again; the explainer's inference copy up to rounding."""
    model, images, made = surrogate(name), images_for(name), target(name)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2.0)
    save_surrogate(model, tmp_path)
    again = load_surrogate(tmp_path)
    with torch.no_grad():
        expected = model(images)
        assert all(torch.equal(one, other) for one, other in zip(again(images), expected, strict=True))
        for one, other in zip(inference_copy(again, images)(images), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    maps = explain(made, images, method="akd", surrogate=tmp_path)
    torch.testing.assert_close(maps, expected[1], rtol=1e-3, atol=1e-4)
    assert maps.shape == (2, *SIZES[name])
    facts = json.loads((tmp_path / "surrogate.json").read_text())
    assert [stage["layer"] for stage in facts["stages"]] == list(STAGES[name])


def test_a_map_of_convolutions_may_have_any_size():
    """What was made for one size explains another where the network can, and says what it was made for where not."""
    assert surrogate("staged")(torch.rand(1, 3, 72, 80))[1].shape == (1, 72, 80)
    model, other = surrogate("tokens"), Tokens(3, grid=(8, 8))
    model.student.network.places = other.places
    with pytest.raises(ValueError, match=r"images of 64 x 64 pixels leave 'blocks.1' 65 tokens, and .* grid of 6 x 8"):
        model(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"images of 32 x 64 pixels leave the last stage a map of 1 x 2"):
        surrogate("staged")(torch.rand(1, 3, 32, 64))


def test_what_cannot_be_a_student_is_told():
    """Fewer than three stages, and a Δ that is the mean over blocks that have no attention."""
    made = Target(Tokens(3, blocks=3), "tokens", "abc").eval()
    with pytest.raises(NotApplicable, match=r"reads 3 stages, and tokens has 2 \(blocks.0, blocks.1\) for"):
        surrogate_of(made, torch.rand(1, 3, *SIZES["tokens"]), reduction=4)
    with pytest.raises(ValueError, match=r"delta_source 'mean' is for ResNets.* a Staged has one: choose last"):
        surrogate("staged", delta_source="mean")
