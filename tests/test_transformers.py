"""Attention rollout and Chefer's transformer attribution: by hand, by slow loops, and where they do not apply."""

import copy
import math

import pytest
import timm
import torch
import torchvision
from inspected import make as make_project
from test_attentions import lively, timm_transformer, torchvision_transformer, transformers_transformer, unfused
from test_explainers import convolutional
from test_layers import same, snapshot
from torch import nn
from torch.nn import functional

from xai_utils.evaluation.explanation import not_applicable
from xai_utils.explainers import NotApplicable, explain, rows_of
from xai_utils.images import resize

METHODS = ("attention_rollout", "transformer_attribution")


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def stepwise(query, key, value):
    return (query @ key.mT).softmax(-1) @ value


def fused(query, key, value):
    return functional.scaled_dot_product_attention(query, key, value)


class TwoTokens(nn.Module):
    """The halves of an image, white 1 and black 0, and one attention: queries 1, keys t ln 3, values 6 t - 4.

    Where the left half is white, A = (3/4, 1/4) in both rows. The logits are the mean output and its negative, so that
    dz/dA is half a value: (1, -2), or (-1, 2).
    """

    def __init__(self, attend, heads):
        super().__init__()
        self.attend, self.heads, self.tokens = attend, heads, nn.Identity()

    def forward(self, images):
        tokens = self.tokens(functional.avg_pool2d(images.mean(1, keepdim=True), 2).flatten(2).mT)  # (N, 2, 1)
        projected = torch.ones_like(tokens), math.log(3) * tokens, 6 * tokens - 4
        output = self.attend(*(each[:, None] if self.heads else each for each in projected))
        mean = output.flatten(1).mean(1)
        return torch.stack([mean, -mean], 1)


@pytest.mark.parametrize("attend", [stepwise, fused])
@pytest.mark.parametrize("heads", [True, False])
def test_two_tokens_by_hand(attend, heads):
    """(∇A ⊙ A)⁺ is (3/4, 0) or (0, 1/2) in both rows; rollout is the mean of its rows (7/8, 1/8) and (3/8, 5/8)."""
    images, model = torch.zeros(2, 3, 2, 4), TwoTokens(attend, heads)
    images[0, ..., :2] = images[1, ..., 2:] = 1

    def expected(left, right):
        return resize(torch.tensor([[[left, right]], [[right, left]]]), (2, 4))

    for target, values in ((0, (3 / 4, 0)), (1, (0, 1 / 2))):
        torch.testing.assert_close(explain(model, images, target, method="transformer_attribution"), expected(*values))
        torch.testing.assert_close(explain(model, images, target, method="attention_rollout"), expected(5 / 8, 3 / 8))


def of_timm(model, images, target):
    """By layer, (A, dz/dA), each (N, heads, T, T): the projections are hooked, dz/dA_ij is dz/dO_i · V_j."""
    seen = []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda module, _, output: seen.append([output]))
        block.attn.proj.register_forward_pre_hook(lambda module, inputs: seen[-1].append(inputs[0]))
    score = model(images)[:, target].sum()
    for projected, output in seen:
        query, key, value = (each.unflatten(2, (2, 8)).transpose(1, 2) for each in projected.chunk(3, 2))
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True)
        gradient = gradient.unflatten(2, (2, 8)).transpose(1, 2) @ value.mT
        yield (query @ key.mT / 8**0.5).softmax(-1).detach(), gradient.detach()


def of_torchvision(model, images, target):
    """As above; the output O goes through the weights of out_proj, whose input no hook sees."""
    seen = []
    for block in model.encoder.layers:
        block.self_attention.register_forward_hook(
            lambda module, inputs, output: seen.append((module, inputs[0], output[0]))
        )
    score = model(images)[:, target].sum()
    for module, tokens, output in seen:
        projected = functional.linear(tokens, module.in_proj_weight, module.in_proj_bias).chunk(3, 2)
        query, key, value = (each.unflatten(2, (2, 8)).transpose(1, 2) for each in projected)
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True)
        gradient = (gradient @ module.out_proj.weight).unflatten(2, (2, 8)).transpose(1, 2) @ value.mT
        yield (query @ key.mT / 8**0.5).softmax(-1).detach(), gradient.detach()


def slow_rollout(layers, fuse):
    """R = Â_L … Â_1, element by element."""
    total = torch.eye(len(layers[0][0][0]))
    for attention, _ in layers:
        mixed = torch.zeros_like(total)
        for row in range(len(total)):
            for column in range(len(total)):
                heads = [float(head[row, column]) for head in attention]
                mixed[row, column] = fuse(heads) + (row == column)
            mixed[row] /= mixed[row].sum()
        total = mixed @ total
    return total


def slow_attribution(layers):
    """R ← R + Ā R, from I; then without the I."""
    total = torch.eye(len(layers[0][0][0]))
    for attention, gradient in layers:
        weighted = torch.zeros_like(total)
        for head in range(len(attention)):
            weighted += (attention[head] * gradient[head]).clamp(min=0) / len(attention)
        total = total + weighted @ total
    return total - torch.eye(len(total))


NETWORKS = {  # a network, its attentions, the rows that it reads, the tokens before the grid
    "class token": (timm_transformer, of_timm, [0], 1),
    "registers": (lambda: timm_transformer(reg_tokens=2), of_timm, [0], 3),
    "mean of the grid": (lambda: timm_transformer(global_pool="avg"), of_timm, range(1, 17), 1),
    "no class token": (lambda: timm_transformer(global_pool="avg", class_token=False), of_timm, range(16), 0),
    "torchvision": (torchvision_transformer, of_torchvision, [0], 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_slow_loops(name, images):
    """Both methods, image by image, layer by layer, head by head, from attentions that hooks give."""
    make, attentions, rows, prefix = NETWORKS[name]
    layers = list(attentions(make(), images, 2))

    def expected(slow, *given):
        rows_of = [slow([(a[n], g[n]) for a, g in layers], *given)[list(rows)].mean(0) for n in range(2)]
        return resize(torch.stack(rows_of)[:, prefix:].unflatten(1, (4, 4)), 32)

    model = make()
    found = explain(model, images, 2, method="transformer_attribution")
    torch.testing.assert_close(found, expected(slow_attribution), rtol=1e-3, atol=1e-5 * float(found.max()))
    for heads, fuse in {"mean": lambda values: sum(values) / len(values), "max": max, "min": min}.items():
        found = explain(model, images, 2, method="attention_rollout", heads=heads)
        torch.testing.assert_close(found, expected(slow_rollout, fuse))


def test_two_tokens_are_read_where_two_heads_answer(images):
    """A distilled DeiT averages the answers of two tokens: the map is the mean of both rows."""
    torch.manual_seed(0)
    model = lively(
        timm.models.deit.VisionTransformerDistilled(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
        )
    )
    layers = [[each[0] for each in layer] for layer in of_timm(model, images[:1], 1)]
    expected = slow_attribution(layers)[:2].mean(0)[2:].reshape(1, 4, 4)
    found = explain(model, images[:1], 1, method="transformer_attribution")
    torch.testing.assert_close(found, resize(expected, 32), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (timm_transformer, lambda: unfused(timm_transformer())),
        (lambda: transformers_transformer("sdpa"), lambda: transformers_transformer("eager")),
    ],
)
def test_fused_or_not_is_the_same_map(method, one, other, images):
    """timm and transformers, in one fused call and step by step; within a Sequential and compiled, too."""
    expected = explain(one(), images, 2, method=method)
    assert expected.max() > 1.1 * expected.min() >= 0
    for model in (other(), nn.Sequential(nn.Identity(), one()), torch.compile(one())):
        torch.testing.assert_close(
            explain(model, images, 2, method=method), expected, rtol=1e-4, atol=1e-5 * float(expected.max())
        )


def test_rollout_does_not_need_the_class_to_answer(images):
    """torchvision's ViT begins with a head of zeros: no row has a gradient, all count alike; nothing is attributed."""
    model = torchvision.models.VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    layers = list(of_torchvision(model, images, 0))
    expected = torch.stack([slow_rollout([(a[n], g[n]) for a, g in layers], max).mean(0) for n in range(2)])
    expected = resize(expected[:, 1:].unflatten(1, (4, 4)), 32)
    torch.testing.assert_close(explain(model, images, 0, method="attention_rollout", heads="max"), expected)
    assert (explain(model, images, 0, method="transformer_attribution") == 0).all()


OTHERS = {  # networks without attention among all tokens -> what they say
    "convolutional": (
        lambda: copy.deepcopy(convolutional()),
        "ResNet computes no attention among tokens; this method is for vision transf",
    ),
    "windows": (
        lambda: torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=5),
        r"SwinTransformer computes attentions \(32, 1, 16, 16\), .* not among windows",
    ),
    "channels": (
        lambda: timm.models.xcit.Xcit(32, 8, embed_dim=16, depth=1, num_heads=2, num_classes=5),
        r"Xcit computes attentions \(2, 2, 8, 8\), \(2, 2, 1, 17\) .* or channels",
    ),
    "pooled keys": (
        lambda: timm_transformer(global_pool="map", class_token=False),
        r"VisionTransformer computes attentions \(2, 2, 16, 16\), \(2, 2, 1, 16\) for 2 images; .* pooled tokens",
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_refused(method, name, images):
    """In one line that says what was seen, and the network is left as it was."""
    make, message = OTHERS[name]
    model = make().train()
    before = snapshot(model)
    with pytest.raises(NotApplicable, match=message) as refused:
        explain(model, images, 0, method=method)
    assert str(refused.value).isprintable()
    assert same(before, snapshot(model))


def test_what_cannot_be_differentiated_is_an_error(images):
    """Attentions behind no_grad, and a fusion of heads that there is not, are named."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.head = timm_transformer(), nn.Linear(5, 3)

        def forward(self, images):
            with torch.no_grad():
                features = self.network(images)
            return self.head(features)

    for method in METHODS:
        with pytest.raises(ValueError, match="do not depend differentiably on the attentions; look for no_grad"):
            explain(Frozen(), images, 0, method=method)
    with pytest.raises(ValueError, match="attention_rollout: heads is 'median'; give one of mean, max, min"):
        explain(timm_transformer(), images, method="attention_rollout", heads="median")


def test_the_pipeline_leaves_them_out_and_says_why_once(tmp_path):
    """Of all methods, both of them, for one reason, where the target is a convolutional network."""
    folder = make_project(tmp_path / "p")
    found = not_applicable(folder / "build/target", folder / "build/data", rows_of("all", {}))
    assert list(found.values()) == [list(METHODS)]
