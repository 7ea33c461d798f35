"""The attention probabilities of a pass: the same output, each attention once, whoever computes it and how."""

import copy

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torch.nn import functional

from xai_utils.networks.attentions import Attentions


def tensors(*shape, count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def timm_transformer(**options):
    """A tiny ViT of timm: 16 patches, three layers of two heads, five classes, weights that matter."""
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5, **options
    )
    return lively(model)


def torchvision_transformer():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32)
    return lively(model)


def lively(model):
    """The model with weights drawn large enough that attentions and answers differ from place to place."""
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.3)
    return model.eval()


class Answers(nn.Module):
    """The logits of a model of transformers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


def transformers_transformer(implementation):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    model = transformers.ViTForImageClassification._from_config(config, attn_implementation=implementation)
    return lively(Answers(model))


def unfused(model):
    """A copy of a ViT of timm that computes its attention step by step."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.ones(5, 6, dtype=torch.bool).triu(-2)},
        {"attn_mask": torch.linspace(-2, 1, 2 * 5 * 6).reshape(2, 1, 5, 6)},
    ],
)
def test_fused_attention_keeps_its_output(options):
    """The output is torch's own, and what was found times the values gives it; rows of probabilities sum to 1."""
    query, key, value = tensors(2, 3, 5, 4)[0], *tensors(2, 3, 6, 4, count=2)
    with Attentions() as attentions:
        output = functional.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(output, functional.scaled_dot_product_attention(query, key, value, **options))
    [found] = attentions.found
    torch.testing.assert_close(found @ value, output)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 5))


def test_heads_that_share_keys():
    """Four heads of queries on two of keys and values, as torch has it with enable_gqa."""
    query, [key, value] = tensors(2, 4, 5, 3)[0], tensors(2, 2, 5, 3, count=2)
    with Attentions() as attentions:
        output = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    expected = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(output, expected)
    assert attentions.found[0].shape == (2, 4, 5, 5)


@pytest.mark.parametrize("weighted", [False, True])
def test_multi_head_attention_is_seen_within(weighted):
    """torch's module returns what it does without, its weights included, and each call is found once."""
    layer, tokens = nn.MultiheadAttention(8, 2, batch_first=True).eval(), tensors(3, 5, 8)[0]
    with Attentions() as attentions:
        output, weights = layer(tokens, tokens, tokens, need_weights=weighted)
    expected = layer(tokens, tokens, tokens, need_weights=True)
    torch.testing.assert_close(output, expected[0])
    [found] = attentions.found
    torch.testing.assert_close(found.reshape(3, 2, 5, 5).mean(1), expected[1])
    if weighted:
        torch.testing.assert_close(weights, expected[1])


@pytest.mark.parametrize(
    "make",
    [
        timm_transformer,
        lambda: unfused(timm_transformer()),
        torchvision_transformer,
        lambda: transformers_transformer("sdpa"),
        lambda: transformers_transformer("eager"),
    ],
)
def test_each_layer_is_found_once(make):
    """Three layers, three attentions among the 17 tokens, with a graph to the logits, which stay the same."""
    model, images = make(), torch.rand(2, 3, 32, 32)
    with Attentions() as attentions:
        logits = model(images)
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
    assert [tuple(each.shape) for each in attentions.found] == 3 * [(2, 2, 17, 17)]
    gradients = torch.autograd.grad(logits[:, 1].sum(), attentions.found)
    assert all(each.abs().max() > 0 for each in gradients)


def test_other_softmaxes_are_no_attention():
    """Probabilities of classes, and a softmax over another axis, are not looked at."""
    logits, maps = tensors(2, 5)[0], tensors(2, 3, 4, 4)[0]
    with Attentions() as attentions:
        logits.softmax(1)
        functional.softmax(logits, dim=-1)
        torch.softmax(maps, 1)
    assert attentions.found == []
    torch.testing.assert_close(logits.softmax(1), functional.softmax(logits, dim=1))
