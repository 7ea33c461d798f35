"""Insertion, deletion and faithfulness: what happens to the class probability when pixels go in the map's order.

A ranking is made once per map and serves all curves; the perturbed images of all curves share batches of `chunk`, and
points that show the same (the ends of curves, insertion's steps among M_F's) are one image.
The score of the target is one of `networks.SCORES`, its softmax probability by default. What removed pixels show is a
named baseline of `xai_utils.images`: "mean" is zero in the network's normalised space (the mean colour), "black" zero
in pixel space.
"""

import math
from typing import NamedTuple

import torch

from xai_utils.images import baseline, keep_top, perturb, rank_pixels, scaled_area
from xai_utils.networks import answering, class_indices, class_scores, evaluating, logits_of


class Protocol(NamedTuple):
    """One curve: at each point the `counts[point]` most salient pixels are kept ("insert") or removed ("delete")."""

    name: str
    counts: tuple  # pixels, from 0 to H*W
    baseline: object  # what the other pixels show: a name in BASELINES or a tensor
    direction: str  # "insert" or "delete"
    score: str = "softmax"  # of the target, along y: a name in SCORES

    @property
    def fractions(self):
        """The x axis: counts as fractions of all pixels, 0 to 1."""
        return [count / self.counts[-1] for count in self.counts]


def explained_classes(model, images, target, chunk):
    """`target` as indices (N,), checked; one image tells how many classes there are when none must be predicted."""
    asked = images if target is None else images[:1]
    logits = torch.cat([logits_of(model, batch) for batch in asked.split(chunk)])
    return class_indices(logits.expand(len(images), -1), target)


def step_counts(pixels, pixels_per_step):
    """Pixels changed at each point of a curve, 0 … pixels, in ceil(pixels / pixels_per_step) steps.

    `pixels_per_step` may be a fraction (a scaled area): each count is rounded, so that a step that is 1/28 of
    the image at 224 pixels is 1/28 at every size; below one pixel it counts as one.
    """
    if not pixels_per_step > 0:
        raise ValueError(f"pixels_per_step is {pixels_per_step}; give a positive number of pixels at 224 (e.g. 224)")
    pixels_per_step = max(1.0, pixels_per_step)
    steps = math.ceil(pixels / pixels_per_step - 1e-9)
    counts = [min(pixels, math.floor(step * pixels_per_step + 0.5)) for step in range(steps)]
    return (*counts, pixels)


def deletion_protocol(size, *, pixels_per_step=224, baseline="mean", score="softmax"):
    """RISE's deletion game; `pixels_per_step` holds at 224 pixels and scales with the area of `size` (H, W)."""
    counts = step_counts(size[0] * size[1], scaled_area(pixels_per_step, size))
    return Protocol("deletion", counts, baseline, "delete", score)


def insertion_protocol(size, *, pixels_per_step=224, baseline="rise_blur", score="softmax"):
    """RISE's insertion game; `pixels_per_step` holds at 224 pixels and scales with the area of `size` (H, W)."""
    counts = step_counts(size[0] * size[1], scaled_area(pixels_per_step, size))
    return Protocol("insertion", counts, baseline, "insert", score)


def faithfulness_protocol(size, *, steps=32, baseline="blur", score="softmax"):
    """The curve behind M_F: the top i/steps of the pixels stay, the rest is blurred, i = 0 … steps."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; give 1 or more points of M_F's curve (32)")
    pixels = size[0] * size[1]
    counts = tuple(math.floor(pixels * step / steps + 0.5) for step in range(steps + 1))
    return Protocol("faithfulness", counts, baseline, "insert", score)


CURVES = {"insertion": insertion_protocol, "deletion": deletion_protocol, "faithfulness": faithfulness_protocol}


def _places(values):
    """Each distinct value -> its place among them."""
    return {value: place for place, value in enumerate(dict.fromkeys(values))}


def _view(which, count, deletes, pixels):
    """What a point shows, as (baseline, count, deletes): the same for points that show the same."""
    if count == (0 if deletes else pixels):
        return 0, pixels, False  # the image, whatever the baseline
    if count == (pixels if deletes else 0):
        return which, 0, False  # the baseline alone
    return which, count, deletes


def probability_curves(model, images, target, ranks, protocols, *, chunk=64):
    """The target's score (by default its probability) along each protocol: dict name -> (N, points) float32, CPU.

    `ranks` (N, H, W) from `rank_pixels`. Every view (what a point shows) of every image is one perturbed image; they
    fill batches of `chunk` regardless of their curves, so `chunk` bounds memory and changes nothing but float noise.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give the number of perturbed images per batch, at least 1")
    for protocol in protocols:
        if protocol.direction not in ("insert", "delete"):
            raise ValueError(f"direction {protocol.direction!r} is unknown; choose 'insert' or 'delete'")
    number, device = len(images), images.device
    ranks = ranks.to(device)
    kinds = _places(protocol.score for protocol in protocols)
    with torch.inference_mode(), evaluating(model), answering(model, *kinds):
        target = explained_classes(model, images, target, chunk)
        baselines = _places(protocol.baseline for protocol in protocols)
        removed = torch.stack([baseline(each, model, images) for each in baselines])  # (B, N, C, H, W)
        shown = [
            _view(baselines[protocol.baseline], count, protocol.direction == "delete", ranks[0].numel())
            for protocol in protocols
            for count in protocol.counts
        ]
        views = _places(shown)
        which, counts, inverted = (torch.tensor(column, device=device) for column in zip(*views, strict=True))
        scores = []
        for items in torch.arange(len(views) * number, device=device).split(chunk):
            view, image = items // number, items % number
            keep = keep_top(ranks[image], counts[view]) ^ inverted[view, None, None]  # (chunk, H, W)
            perturbed = perturb(images[image], keep, removed[which[view], image])
            logits = logits_of(model, perturbed)
            scores.append(torch.stack([class_scores(logits, target[image], kind) for kind in kinds]))  # (S, chunk)
    scores = torch.cat(scores, 1).float().cpu().reshape(len(kinds), len(views), number)
    kind = [kinds[protocol.score] for protocol in protocols for _ in protocol.counts]
    scores = scores[kind, [views[view] for view in shown]].T  # (N, points of all curves)
    lengths = [len(protocol.counts) for protocol in protocols]
    names = [protocol.name for protocol in protocols]
    return {name: part.clone() for name, part in zip(names, scores.split(lengths, 1), strict=True)}


def perturbation_curves(model, images, target, maps, *, curves=tuple(CURVES), chunk=64, **options):
    """Several named curves (see `CURVES`) with one ranking: dict name -> (N, points).

    `options` belong to the curves: dict name -> options of its protocol, e.g. `deletion={"baseline": "black"}`.
    """
    unknown = [name for name in (*curves, *options) if name not in CURVES]
    if unknown:
        raise ValueError(f"curves {unknown} are unknown; choose among {', '.join(CURVES)}")
    protocols = [CURVES[name](images.shape[-2:], **options.get(name, {})) for name in curves]
    return probability_curves(model, images, target, rank_pixels(maps, images), protocols, chunk=chunk)


def area_under_curve(curves):
    """(sum_i c_i - (c_0 + c_last) / 2) / steps of (N, steps + 1): the mean height (N,), whatever the step count."""
    if curves.shape[-1] < 2:
        raise ValueError(f"a curve of {curves.shape[-1]} points has no area; it needs at least its two end points")
    precise = curves.double()
    ends = (precise[..., 0] + precise[..., -1]) / 2
    return ((precise.sum(-1) - ends) / (curves.shape[-1] - 1)).float()


def faithfulness_score(curves, *, variant="paper", min_gap=0.05):
    """M_F in percent (N,) from curves q (N, n + 1): q_0 fully blurred, q_n the image; n = 32 (DGLE, eq. 8).

    paper:   100 * sum_{i=1..32} q_i / 32 / (q_32 - q_0)
    offset:  100 * sum_{i=1..32} (q_i - q_0) / 32 / (q_32 - q_0)

    NaN where q_32 - q_0 < `min_gap`: blurring hardly moves the class, the quotient would explode.

    Notes: the paper subtracts q_0 only below the bar, so values above 100 are possible and a straight line from
    0 to 1 gives 51.5625; the offset variant subtracts it in both places.
    """
    if variant not in ("paper", "offset"):
        raise ValueError(f"variant {variant!r} is unknown; choose 'paper' or 'offset'")
    precise = curves.double()
    start, gap = precise[:, :1], precise[:, -1] - precise[:, 0]
    kept = precise[:, 1:] if variant == "paper" else precise[:, 1:] - start
    usable = (gap >= min_gap) & (gap > 0)
    return torch.where(usable, 100 * kept.mean(1) / torch.where(usable, gap, 1), torch.nan).float()


def insertion(model, images, target, maps, *, pixels_per_step=224, baseline="rise_blur", score="softmax", chunk=64):
    """Area under the insertion curve (N,), in [0, 1] for a probability, higher is better (RISE, Petsiuk et al. 2018).

    sum_i (p_i + p_{i+1}) / 2n,   p_i = p_c with the i/n most salient pixels on the baseline

    From the blurred image, copy the next `pixels_per_step` (at 224 pixels) most salient pixels from the image.
    """
    options = {"pixels_per_step": pixels_per_step, "baseline": baseline, "score": score}
    curves = perturbation_curves(model, images, target, maps, curves=("insertion",), chunk=chunk, insertion=options)
    return area_under_curve(curves["insertion"])


def deletion(model, images, target, maps, *, pixels_per_step=224, baseline="mean", score="softmax", chunk=64):
    """Area under the deletion curve (N,), in [0, 1] for a probability, lower is better (RISE, Petsiuk et al. 2018).

    sum_i (p_i + p_{i+1}) / 2n,   p_i = p_c with the i/n most salient pixels gone

    Replace the next `pixels_per_step` (at 224 pixels) most salient pixels by the baseline.
    """
    options = {"pixels_per_step": pixels_per_step, "baseline": baseline, "score": score}
    curves = perturbation_curves(model, images, target, maps, curves=("deletion",), chunk=chunk, deletion=options)
    return area_under_curve(curves["deletion"])


def faithfulness(
    model,
    images,
    target,
    maps,
    *,
    variant="paper",
    min_gap=0.05,
    steps=32,
    baseline="blur",
    score="softmax",
    chunk=64,
):
    """M_F in percent (N,), higher is better; NaN where the image is skipped (see `faithfulness_score`).

    paper: 100 · sum_i q_i / n / (q_n - q_0);   offset: 100 · sum_i (q_i - q_0) / n / (q_n - q_0), q_i as in DGLE eq. 8
    """
    options, curve = {"baseline": baseline, "steps": steps, "score": score}, "faithfulness"
    curves = perturbation_curves(model, images, target, maps, curves=(curve,), chunk=chunk, faithfulness=options)
    return faithfulness_score(curves[curve], variant=variant, min_gap=min_gap)
