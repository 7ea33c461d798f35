"""Score fine-tuning: pixels that add nothing to the class once better ones are seen lose their score (DGLE §3.3)."""

import torch

from xai_utils.images import rank_pixels
from xai_utils.metrics.perturbation import Protocol, probability_curves


def tuned_scores(scores, probabilities):
    """r'_i = r_i (q_max - q_i), a tensor (…, n); the map of an image as a list, best pixel first.

    `scores` r (…, n), falling and non-negative; `probabilities` (…, n): of the class, with the first i = 1 … n pixels
    shown. q is their running maximum. The order is kept until q reaches its largest value; from there on all is 0.
    """
    reached = probabilities.cummax(-1).values
    return scores * (reached[..., -1:] - reached)


def fine_tune_scores(model, images, target, maps, *, steps=32, hidden="blur", chunk=64):
    """The `maps` (N, H, W) with fine-tuned scores, non-negative, on the maps' device (DGLE §3.3).

    The target's probability is measured with the top 0, 1/steps, 2/steps, … of the pixels shown on the baseline
    `hidden`, and interpolated linearly in between. `chunk` perturbed images go through the network at once.
    ValueError for maps with negative scores (which a factor would raise), and for `steps` below 1.

    Notes: the paper's number of measured points is not given; its tables and comparisons use scores as they were.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give 1 or more measured points (32)")
    negative = (maps < 0).flatten(1).any(1).nonzero().flatten().tolist()
    if negative:
        raise ValueError(f"the maps of images {negative} have scores below 0; fine-tuning needs scores from 0 on")
    number, pixels = len(maps), maps.shape[-2] * maps.shape[-1]
    counts = tuple(round(step * pixels / steps) for step in range(steps + 1))
    ranks = rank_pixels(maps)
    protocol = Protocol("tuning", counts, hidden, "insert")
    measured = probability_curves(model, images, target, ranks, [protocol], chunk=chunk)["tuning"].to(maps)
    shown, at = torch.arange(1, pixels + 1, device=maps.device), torch.tensor(counts, device=maps.device)
    right = torch.searchsorted(at, shown)  # at[right - 1] < shown <= at[right]
    share = (shown - at[right - 1]) / (at[right] - at[right - 1])
    probabilities = torch.lerp(measured[:, right - 1], measured[:, right], share.to(maps.dtype))
    order = ranks.flatten(1).argsort(1)  # the pixels, best first
    flat = maps.flatten(1)
    tuned = tuned_scores(flat.gather(1, order), probabilities)
    return torch.empty_like(flat).scatter_(1, order, tuned).reshape(number, *maps.shape[-2:])
