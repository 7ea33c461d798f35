"""How sure the network stays of its class when it sees only what the map shows (AMG §4, Grad-CAM++ §3).

What the map hides is black, zero in pixel space, or the mean colour, zero in the network's normalised space: the
`baseline`. A mask is either soft, the map stretched to [0, 1], or the exact top `percent` of the pixels.
"""

import math

import torch

from xai_utils.images import baseline as named_baseline
from xai_utils.images import finite_maps, keep_top, perturb, rank_pixels, require_pixels, unit_range
from xai_utils.metrics.perturbation import explained_classes
from xai_utils.networks import SCORES, answering, class_scores, evaluating, logits_of

PERCENTS = (5, 10, 20, 25, 50)
ACCURACY = "accuracy"  # 1 where the class is the predicted one, 0 where not: beside SCORES, of percentage-in alone
PRINTED = ("logit", "softmax", ACCURACY)


def _checked(images, maps, chunk):
    """The maps on the images' device; ValueError for what would give a wrong number."""
    require_pixels(images, "give pixels in [0, 1], not normalised, or black is no black")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give the number of masked images per batch, at least 1")
    return finite_maps(maps, images).float().to(images.device)


def _answers(model, images, target, masks, baseline, scores, chunk):
    """The `scores` (names of SCORES, or accuracy) of the target, each (N, M) float64: one column per mask.

    Masks (N, H, W) are bool or soft; None is the image as it is.
    """
    unknown = [score for score in scores if score not in (*SCORES, ACCURACY)]
    if unknown:
        raise ValueError(f"score {unknown[0]!r} is unknown; choose one of {', '.join((*SCORES, ACCURACY))}")
    found = []
    named = [score for score in scores if score != ACCURACY]
    with torch.inference_mode(), evaluating(model), answering(model, *named):
        target = explained_classes(model, images, target, chunk)
        hidden = named_baseline(baseline, model, images)
        for mask in masks:
            seen = images if mask is None else perturb(images, mask, hidden)
            logits = torch.cat([logits_of(model, batch) for batch in seen.split(chunk)]).double()  # (N, K)
            right = (logits.argmax(1) == target).double()
            found.append([right if score == ACCURACY else class_scores(logits, target, score) for score in scores])
    return [torch.stack(each, 1).cpu() for each in zip(*found, strict=True)]


def top_mask(maps, percent):
    """The `percent` most salient pixels of each map as bool (N, H, W): exactly round(percent / 100 · H · W)."""
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}; give a share of the pixels in percent, 0 to 100")
    ranks = rank_pixels(maps)
    return keep_top(ranks, math.floor(percent / 100 * ranks[0].numel() + 0.5))


def explained_scores(model, images, target, maps, *, percent=None, baseline="black", score="softmax", chunk=64):
    """Y and O, each (N,) float64: the class's score for the image, and for what the map shows of it.

    The mask is soft by default, or the top `percent` of the pixels.
    """
    maps = _checked(images, maps, chunk)
    mask = unit_range(maps) if percent is None else top_mask(maps, percent)
    (found,) = _answers(model, images, target, [None, mask], baseline, [score], chunk)
    return found.unbind(1)


def drop(whole, explained):
    """100 · max(0, Y - O) / Y of two scores, each (N,)."""
    fall = (whole - explained).clamp(min=0)
    return torch.where((whole > 0) | (fall == 0), 100 * fall / whole.clamp(min=1e-300), torch.nan).float()


def increase(whole, explained):
    """100 where Y < O, else 0, of two scores, each (N,)."""
    return 100 * (whole < explained).float()


def average_drop(model, images, target, maps, *, percent=None, baseline="black", score="softmax", chunk=64):
    """How much of its score the class loses, in percent (N,), lower is better (AMG eq. 8); its mean: the average drop.

    100 · max(0, Y - O) / Y,   Y the score of the image, O of the image under its map

    NaN where a score of 0 or less, as only logits are, falls further: it has no share to lose.

    Notes: the paper's "activation score" is by default the softmax probability, and maps hide softly (`percent` None).
    """
    options = {"percent": percent, "baseline": baseline, "score": score, "chunk": chunk}
    return drop(*explained_scores(model, images, target, maps, **options))


def percent_increase(model, images, target, maps, *, percent=None, baseline="black", score="softmax", chunk=64):
    """Whether the class gains, in percent (N,), higher is better (AMG eq. 9); its mean is the percent increase.

    100 · [Y < O],   Y the score of the image, O of the image under its map

    Notes: as in `average_drop`.
    """
    options = {"percent": percent, "baseline": baseline, "score": score, "chunk": chunk}
    return increase(*explained_scores(model, images, target, maps, **options))


def all_scores(model, images, target, maps, *, percents=PERCENTS, baseline="black", score="softmax", chunk=64):
    """Everything in AMG's Tables 3 and 4, every masked image seen once: dict name -> (N,) float32.

    average_drop and percent_increase of `score` with the soft mask; with the top `percents` "logit_<percent>", such as
    logit_5, "<score>_<percent>" and "accuracy_<percent>".
    """
    maps = _checked(images, maps, chunk)
    masks = [None, unit_range(maps), *(top_mask(maps, percent) for percent in percents)]
    names = list(dict.fromkeys(("logit", score, ACCURACY)))
    found = dict(zip(names, _answers(model, images, target, masks, baseline, names, chunk), strict=True))
    whole, explained = found[score][:, :2].unbind(1)
    scores = {"average_drop": drop(whole, explained), "percent_increase": increase(whole, explained)}
    for place, percent in enumerate(percents, start=2):
        scores |= {f"{name}_{percent}": values[:, place].float() for name, values in found.items()}
    return scores


def percentage_in_scores(model, images, target, maps, *, percents=PERCENTS, baseline="black", scores=PRINTED, chunk=64):
    """What the network says of the top `percents` of the pixels alone: dict name of `scores` -> (N, P) float32.

    Scores of the class, and as accuracy 1 where it is still predicted, 0 where not. Higher is better.

    Notes: the paper does not define its numbers; they exceed 1, so its Table 4 must hold mean logits.
    """
    maps = _checked(images, maps, chunk)
    masks = [top_mask(maps, percent) for percent in percents]
    found = _answers(model, images, target, masks, baseline, scores, chunk)
    return {score: values.float() for score, values in zip(scores, found, strict=True)}


def percentage_in(model, images, target, maps, *, percent=20, score="softmax", baseline="black", chunk=64):
    """One number of `percentage_in_scores`, (N,): `score` with the top `percent` of the pixels; higher is better.

    p_c(x ⊙ [rank ≤ percent])
    """
    options = {"percents": (percent,), "baseline": baseline, "scores": (score,), "chunk": chunk}
    return percentage_in_scores(model, images, target, maps, **options)[score][:, 0]
