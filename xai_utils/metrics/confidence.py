"""How sure the network stays of its class when it sees only what the map shows (AMG §4, Grad-CAM++ §3).

What the map hides is black, zero in pixel space, or the mean colour, zero in the network's normalised space: the
`baseline`. A mask is either soft, the map stretched to [0, 1], or the exact top `percent` of the pixels.
"""

import math

import torch

from xai_utils.images import baseline as named_baseline
from xai_utils.images import finite_maps, keep_top, perturb, rank_pixels, unit_range
from xai_utils.metrics.perturbation import explained_classes
from xai_utils.networks import evaluating, logits_of

PERCENTS = (5, 10, 20, 25, 50)
SCORES = ("logit", "probability", "accuracy")


def _checked(images, maps, chunk):
    """The maps on the images' device; ValueError for what would give a wrong number."""
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images reach from {float(low):.4g} to {float(high):.4g}; give pixels in [0, 1], not normalised, or black "
            "is no black"
        )
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give the number of masked images per batch, at least 1")
    return finite_maps(maps, images).float().to(images.device)


def _answers(model, images, target, masks, baseline, chunk):
    """The target's logit and probability, and whether it is predicted, (N, M, 3) float64: one column per mask.

    Masks (N, H, W) are bool or soft; None is the image as it is.
    """
    found = []
    with torch.inference_mode(), evaluating(model):
        target = explained_classes(model, images, target, chunk)
        hidden = named_baseline(baseline, model, images)
        for mask in masks:
            seen = images if mask is None else perturb(images, mask, hidden)
            logits = torch.cat([logits_of(model, batch) for batch in seen.split(chunk)]).double()  # (N, K)
            pair = torch.stack([logits, logits.softmax(1)], 2)  # (N, K, 2)
            pair = pair.gather(1, target[:, None, None].expand(-1, 1, 2))[:, 0]  # (N, 2)
            found.append(torch.cat([pair, (logits.argmax(1) == target)[:, None]], 1))
    return torch.stack(found, 1).cpu()


def top_mask(maps, percent):
    """The `percent` most salient pixels of each map as bool (N, H, W): exactly round(percent / 100 · H · W)."""
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}; give a share of the pixels in percent, 0 to 100")
    ranks = rank_pixels(maps)
    return keep_top(ranks, math.floor(percent / 100 * ranks[0].numel() + 0.5))


def explained_probabilities(model, images, target, maps, *, percent=None, baseline="black", chunk=64):
    """Y and O, each (N,) float64: the class's probability for the image, and for what the map shows of it.

    The mask is soft by default, or the top `percent` of the pixels.
    """
    maps = _checked(images, maps, chunk)
    mask = unit_range(maps) if percent is None else top_mask(maps, percent)
    return _answers(model, images, target, [None, mask], baseline, chunk)[:, :, 1].unbind(1)


def _drop(whole, explained):
    return (100 * (whole - explained).clamp(min=0) / whole.clamp(min=1e-300)).float()


def _increase(whole, explained):
    return 100 * (whole < explained).float()


def average_drop(model, images, target, maps, *, percent=None, baseline="black", chunk=64):
    """100 · max(0, Y - O) / Y in percent (N,), lower is better (AMG eq. 8); its mean is the average drop.

    Notes: the paper's "activation score" is the softmax probability here, and its maps hide softly (`percent` None).
    """
    options = {"percent": percent, "baseline": baseline, "chunk": chunk}
    return _drop(*explained_probabilities(model, images, target, maps, **options))


def percent_increase(model, images, target, maps, *, percent=None, baseline="black", chunk=64):
    """100 where Y < O, else 0 (N,), higher is better (AMG eq. 9); its mean is the percent increase.

    Notes: as in `average_drop`.
    """
    options = {"percent": percent, "baseline": baseline, "chunk": chunk}
    return _increase(*explained_probabilities(model, images, target, maps, **options))


def all_scores(model, images, target, maps, *, percents=PERCENTS, baseline="black", chunk=64):
    """Everything in AMG's Tables 3 and 4, every masked image seen once: dict name -> (N,) float32.

    average_drop and percent_increase with the soft mask; "<score>_<percent>", such as logit_5, with the top `percents`.
    """
    maps = _checked(images, maps, chunk)
    masks = [None, unit_range(maps), *(top_mask(maps, percent) for percent in percents)]
    found = _answers(model, images, target, masks, baseline, chunk)  # (N, 2 + P, 3)
    whole, explained = found[:, 0, 1], found[:, 1, 1]
    scores = {"average_drop": _drop(whole, explained), "percent_increase": _increase(whole, explained)}
    for place, percent in enumerate(percents, start=2):
        scores |= {f"{name}_{percent}": found[:, place, column].float() for column, name in enumerate(SCORES)}
    return scores


def percentage_in_scores(model, images, target, maps, *, percents=PERCENTS, baseline="black", chunk=64):
    """What the network says of the top `percents` of the pixels alone: dict logit, probability, accuracy -> (N, P).

    The logit and the probability of the class, and 1 where it is still predicted, 0 where not. Higher is better.

    Notes: the paper does not define its numbers; they exceed 1, so its Table 4 must hold mean logits.
    """
    maps = _checked(images, maps, chunk)
    masks = [top_mask(maps, percent) for percent in percents]
    found = _answers(model, images, target, masks, baseline, chunk).float()
    return dict(zip(SCORES, found.unbind(2), strict=True))


def percentage_in(model, images, target, maps, *, percent=20, score="probability", baseline="black", chunk=64):
    """One number of `percentage_in_scores`, (N,): `score` with the top `percent` of the pixels; higher is better."""
    if score not in SCORES:
        raise ValueError(f"score {score!r} is unknown; choose one of {', '.join(SCORES)}")
    options = {"percents": (percent,), "baseline": baseline, "chunk": chunk}
    return percentage_in_scores(model, images, target, maps, **options)[score][:, 0]
