"""Transformers' own baselines: what the tokens that the classifier reads took from which others, through all layers.

Both methods follow the attentions A (N, heads, T, T) from the last layer to the first, and begin with the tokens that
are read: the rows of the last attention that have a gradient of the class logit. That is the class token's row (with
a distillation token both); in a network that reads the mean of its tokens, the mean of their rows. What falls on the
tokens of the grid is the map (N, h, w), resized to the images.

NotApplicable where an attention is not one among all tokens of an image: convolutional networks have none; windows
(Swin), pooled keys (PVT), class attention (CaiT) and attention among channels (XCiT) leave tokens out.

Notes: the papers have a class token; reading the rows by their gradient is ours. Where no row has one (a head of
zeros), all count alike. Attentions that a network runs side by side count as if one followed the other.
"""

import math

import torch

from xai_utils.explainers.gradients import NotApplicable
from xai_utils.images import in_full_precision, resize
from xai_utils.networks import class_indices, evaluating, logits_of
from xai_utils.networks.attentions import Attentions
from xai_utils.networks.layers import bare, layer_root
from xai_utils.networks.probe import layouts

HEADS = {  # one attention of those of all heads, (N, heads, T, T) -> (N, T, T)
    "mean": lambda attention: attention.mean(1),
    "max": lambda attention: attention.amax(1),
    "min": lambda attention: attention.amin(1),
}


def attention_rollout(model, images, target=None, *, heads="mean"):
    """Attention rollout: attention and residual, multiplied through all layers (Abnar & Zuidema 2020, §3, eq. 1).

    Â = ½ A + ½ I, A the mean over heads,   map = the rows of Â_L … Â_2 Â_1 that are read

    Non-negative, (N, H, W). `heads`: mean (the paper's), or max or min, after which each row of Â is divided by its
    sum. The class plays no role but for the tokens that it reads, which a backward pass finds out.
    """
    if heads not in HEADS:
        raise ValueError(f"heads is {heads!r}; choose one of {', '.join(HEADS)}")
    attentions, _, read, layout = _attended(model, images, target)
    return _on_grid(_rollout([HEADS[heads](attention) for attention in attentions], read), layout, images)


def transformer_attribution(model, images, target=None):
    """Gradient-weighted attention of all layers (Chefer et al. 2021, ICCV, eq. 5-6), for self-attention.

    Ā = E_h[(∇A ⊙ A)⁺], ∇A = dz_c / dA,   R ← R + Ā R from R = I,   map = the rows of R - I that are read

    Non-negative, (N, H, W). One pass and its backward pass.

    Notes: the rule of "Generic Attention-model Explainability", not the relevance propagation of the authors' CVPR
    paper of that year. I is taken away for networks without a class token: there it adds the same to all tokens, and
    much more than what they differ by. In the row of a class token it does not fall on the grid.
    """
    attentions, gradients, read, layout = _attended(model, images, target)
    pairs = zip(attentions, gradients, strict=True)
    weighted = [(gradient * attention).relu().mean(1) for attention, gradient in pairs]
    return _on_grid(_relevance(weighted, read), layout, images)


@in_full_precision
def _rollout(layers, rows):
    """rows (N, T) of the product of (A + I), (N, T, T) by layer, each row divided by its sum."""
    for attention in reversed(layers):
        mixed = rows / (1 + attention.sum(2))  # one for the residual
        rows = mixed + (mixed[:, None] @ attention)[:, 0]
    return rows


@in_full_precision
def _relevance(layers, rows):
    """rows (N, T) of R - I, R the product of (I + Ā), (N, T, T) by layer: small numbers are not added to ones."""
    gained = torch.zeros_like(rows)
    for weighted in reversed(layers):
        gained = gained + ((rows + gained)[:, None] @ weighted)[:, 0]
    return gained


def _on_grid(shares, layout, images):
    """Shares (N, T) of the tokens as maps (N, H, W)."""
    return resize(shares[:, layout.prefix :].unflatten(1, layout.grid), images.shape[-2:])


def _attended(model, images, target):
    """Attentions, their gradients (N, heads, T, T) by layer, float32, weights of rows (N, T), the tokens' Layout."""
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        pixels = (images.clone() if images.is_inference() else images.detach()).requires_grad_()
        with Attentions() as seen:
            logits = logits_of(bare(model), pixels)
        layout = _layout(model, images, seen.found)
        score = logits.gather(1, class_indices(logits, target).clone()[:, None]).sum()  # images do not mix
        gradients = [None]
        if score.requires_grad and all(attention.requires_grad for attention in seen.found):
            gradients = torch.autograd.grad(score, seen.found, allow_unused=True)
    pairs = [pair for pair in zip(seen.found, gradients, strict=False) if pair[1] is not None]
    if not pairs:
        raise ValueError("the logits do not depend differentiably on the attentions; look for no_grad or detach")
    by_image = (len(images), -1, *seen.found[0].shape[-2:])
    attentions, gradients = (
        [each.detach().float().reshape(by_image) for each in side] for side in zip(*pairs, strict=True)
    )
    read = (gradients[-1] != 0).any(3).any(1)  # (N, T)
    read = (read | ~read.any(1, keepdim=True)).float()
    return attentions, gradients, read / read.sum(1, keepdim=True), layout


def _layout(model, images, attentions):
    """The Layout of the tokens that all attentions join; NotApplicable where there is none."""
    network, count = type(layer_root(model)).__name__, len(images)
    if not attentions:
        raise NotApplicable(f"{network} computes no attention among tokens; this method is for vision transformers")
    shapes = list(dict.fromkeys(tuple(attention.shape) for attention in attentions))
    if all(_joins_all(shape, count, shapes[0][-1]) for shape in shapes):
        for layout in reversed(layouts(model, images).values()):
            if layout.kind == "tokens" and layout.prefix + math.prod(layout.grid) == shapes[0][-1]:
                return layout
    raise NotApplicable(
        f"{network} computes attentions {', '.join(map(str, shapes[:3]))} for {count} images; this method is for "
        "attention among all tokens in every layer, not among windows, pooled tokens or channels"
    )


def _joins_all(shape, images, tokens):
    """Whether an attention is (images, heads, tokens, tokens), or (images · heads, tokens, tokens)."""
    *batch, queries, keys = shape
    whole = batch[0] == images if len(batch) == 2 else len(batch) == 1 and batch[0] % images == 0
    return whole and queries == keys == tokens
