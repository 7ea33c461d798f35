"""The schematics say what the modules are."""

import pytest
import torch
from toy_networks import SIZES, target

from xai_utils.networks import Surrogate, build, encoded, predictor_of, surrogate_of
from xai_utils.papers import schematics


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    target = build("resnet18", "abc").eval()
    return target, Surrogate(target).eval(), torch.rand(1, 3, 64, 64)


def texts(figure):
    return "\n".join(text.get_text() for text in figure.axes[0].texts)


def test_the_student_has_its_real_stages(parts):
    """ResNet-18: two basic blocks and two CBAM in each stage, with the shapes of a pass of 64 pixels."""
    _, surrogate, images = parts
    found = texts(schematics.student(surrogate, images))
    for part in ("layer2: 2 × BasicBlock\n128 × 8 × 8", "2 × CBAM", "Δ: 512 × 2 × 2", "pooling, fc\n3", "64 × 16 × 16"):
        assert part in found


def test_the_explanation_network_has_its_real_widths(parts):
    """512 → 128, 384 → 64, 192 → 16, then the head, to the image's size."""
    found = texts(schematics.explanation_network(*parts[1:]))
    for part in ("3×3 512 → 128", "3×3 384 → 64", "3×3 192 → 16", "1×1 16 → 1", "64 × 64", "Δ of layer4\n512 × 2 × 2"):
        assert part in found


def test_the_overview_counts_parameters(parts):
    """Target, student and explanation network stand with their numbers of parameters; no hook stays."""
    target, surrogate, images = parts
    found = texts(schematics.overview(target, surrogate, images))
    for module in (target, surrogate.student, surrogate.explanation):
        assert f"{sum(weights.numel() for weights in module.parameters()):,} parameters" in found
    assert not any(module._forward_hooks for module in surrogate.modules())


def test_a_student_of_tokens_has_its_stages():
    """Of a ViT: three blocks with a CBAM behind each, Δ of one size, an explanation network that enlarges once."""
    torch.manual_seed(0)
    images = torch.rand(1, 3, *SIZES["tokens"])
    surrogate = surrogate_of(target("tokens"), images, reduction=4).eval()
    found = texts(schematics.student(surrogate, images))
    for part in ("blocks.3\n49 × 16", "CBAM\nbehind it\nΔ: 16 × 6 × 8", "head\n3"):
        assert part in found
    found = texts(schematics.explanation_network(surrogate, images))
    for part in ("Δ of blocks.1\n16 × 6 × 8", "U1\n3×3 16 → 4, BN, ReLU", "48 × 64"):
        assert part in found
    assert found.count("bilinear ×2") == 1


def test_the_mask_predictor_s_parts_and_shapes():
    """The layers it reads, the filtered map's shape, parameters of filter and generator, its map's size."""
    torch.manual_seed(0)
    target, images = build("small_resnet", "abc").eval(), torch.rand(1, 3, 64, 64)
    predictor = predictor_of(target, images, controller="customized").eval()
    found = texts(schematics.distribution_guided(target, predictor, images))
    for module in (predictor.filter, predictor.generator):
        assert f"{sum(weights.numel() for weights in module.parameters()):,} parameters" in found
    with torch.no_grad():
        features, logits = encoded(target, images, list(predictor.layers))
        size = predictor(features, logits.argmax(1)).shape[-2:]
    for part in (
        "customized controller",
        f"map {size[0]} × {size[1]}",
        f"{predictor.layers[0]} … {predictor.layers[-1]}",
    ):
        assert part in found
    assert " × ".join(map(str, features[-1].shape[1:])) in found
