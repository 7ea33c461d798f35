"""Perturbation of regions: hide parts of the image at random and see how the class probability answers.

Neither method needs a gradient, so any classifier can be explained; what is seen of the class is a `score` of
`networks.SCORES`. Both draw from `seed` alone: each image meets the same draws, in a batch or by itself, today or
tomorrow.
"""

import math

import numpy as np
import torch
from captum.attr import LimeBase
from scipy.linalg import hadamard
from skimage.segmentation import quickshift
from torch.nn import functional
from torch.quasirandom import SobolEngine

from xai_utils.images import (
    REFERENCE_SIZE,
    in_full_precision,
    interpolation_matrix,
    rank_correlation,
    scaled_length,
)
from xai_utils.images import baseline as named_baseline
from xai_utils.networks import answering, class_indices, class_scores, evaluating, logits_of

ESTIMATORS = ("balanced", "paper")
MOST_BALANCED = 32  # cells of a side: more would need a design of 4096 rows and more
BLOCK = 256  # RISE masks that are drawn, held and summed together, whatever the chunk
OTHER_SEEDS, CONVERGED_PART = 1_000_000, 4000  # of a map of many masks: its first seed, the masks of one seed
KERNEL_WIDTH = 0.25  # of LIME's proximity kernel, in cosine distance
RIDGE_PENALTY = 1.0
QUICKSHIFT = {"kernel_size": 4, "max_dist": 200, "ratio": 0.2}  # LIME's superpixels, at 224 pixels


def _check(seed, **counts):
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or more")


def _predicted(model, images, target, chunk):
    return class_indices(torch.cat([logits_of(model, part) for part in images.split(chunk)]), target)


def rise_draws(size, *, masks, cells, probability, seed):
    """The random part of RISE's masks, in blocks of at most 256: grids (B, s, s) float, offsets (B, 2) int64.

    A grid is Bernoulli(probability); an offset (down, right) is uniform in 0 … cell - 1, cell = ceil(side / cells).
    Whole blocks are drawn, so that fewer masks are the first of more masks.
    """
    generator = torch.Generator().manual_seed(seed)
    cell = torch.tensor([math.ceil(side / cells) for side in size])
    for start in range(0, masks, BLOCK):
        grids = (torch.rand(BLOCK, cells, cells, generator=generator) < probability).float()
        offsets = (torch.rand(BLOCK, 2, generator=generator) * cell).long().minimum(cell - 1)
        yield grids[: masks - start], offsets[: masks - start]


def _set(cells):
    """How many masks weigh each other out: twice a power of 2 above cells^2."""
    return 2 * 2 ** (cells * cells).bit_length()


def balanced_draws(size, *, masks, cells, seed):
    """As `rise_draws` with the probability 1/2, but masks that weigh each other out, in sets of 2^k > 2 cells^2.

    Each mask by itself is drawn as there. In a set, though, every cell is seen as often as it is hidden, with each
    other cell and without it, and so it is for every three cells: the rows of a Hadamard matrix, with random columns,
    signs and order, and their complements next to them (a design of resolution IV). All of a set have one offset, and
    the offsets cover a cell evenly (a scrambled Sobol sequence). Blocks are of one set; the sets have an even length.
    """
    generator, count = torch.Generator().manual_seed(seed), _set(cells) // 2
    signs = torch.from_numpy(hadamard(count, dtype=np.float32))
    cell = torch.tensor([math.ceil(side / cells) for side in size])
    sets = math.ceil(masks / (2 * count))
    places = (SobolEngine(2, scramble=True, seed=seed).draw(sets) * cell).long().minimum(cell - 1)
    for number, place in enumerate(places):
        columns, rows = 1 + torch.randperm(count - 1, generator=generator), torch.randperm(count, generator=generator)
        half = signs[rows][:, columns[: cells * cells]]  # (count, cells^2), no constant column
        half = half * (2 * torch.randint(2, (cells * cells,), generator=generator) - 1)
        grids = (torch.stack([half, -half], 1).flatten(0, 1) + 1) / 2
        grids = grids[: masks - 2 * count * number].unflatten(1, (cells, cells))
        for block in grids.split(BLOCK):
            yield block, place.expand(len(block), 2)


@in_full_precision
def rise_masks(grids, offsets, size):
    """RISE's masks (B, H, W) in [0, 1]: grids (B, s, s) resized to (s + 1) cells a side, cut out at offsets (B, 2)."""
    cells = grids.shape[-1]
    factors = []
    for side, offset in zip(size, offsets.unbind(1), strict=True):
        enlarged = (cells + 1) * math.ceil(side / cells)
        windows = interpolation_matrix(cells, enlarged).to(grids).unfold(0, side, 1)  # (offsets, s, side)
        factors.append(windows[offset])  # (B, s, side)
    rows, columns = factors
    return rows.mT @ grids @ columns


def rise(
    model,
    images,
    target=None,
    *,
    masks=1000,
    cells=7,
    probability=0.5,
    baseline="mean",
    score="softmax",
    estimator="balanced",
    until=1.0,
    seed=0,
    chunk=16,
):
    """RISE: the mean of random soft masks, each weighted by the class probability that it leaves (Petsiuk et al. 2018).

    map = 1 / (masks * probability) * sum_i score_c(f(x_i)) m_i,   x_i = x * m_i + baseline * (1 - m_i)          (eq. 6)

    A mask m_i is a grid of cells x cells, each 1 with `probability`, enlarged bilinearly and shifted by a random part
    of a cell (sec. 3.2). It fades to the colour that the network's normalisation maps to zero ("mean"), so that it
    multiplies the network's input, or to another `baseline` of `xai_utils.images`. The map is the mean score of the
    class where the pixel is seen: non-negative where the score is a probability.

    `estimator`: "paper" draws each mask by itself, as published (there with 8000 of them). "balanced" draws masks that
    weigh each other out (`balanced_draws`): the same map on average, and an eighth of the masks for one as close to it.
    It needs the probability 1/2 and at most 32 cells. `until`: an image takes no more masks as soon as the maps of
    their two halves have a rank correlation above it (1: never); `rise_and_count` tells how many it took. Masks depend
    on `seed`, `estimator`, `cells`, `probability` and the images' size, fewer are the first of more, and all images
    share them.

    `chunk` masked images, at most 256 of each image, go through the network at once. Masks are held and summed in
    blocks of at most 256, so that `chunk` changes no bit beyond what the network rounds by its batch. Fastest on the
    model's `engine` or `inference_copy`.

    ValueError for counts below 1, more cells than pixels on a side, a probability outside (0, 1), `until` outside
    (0, 1], a negative seed, and what an estimator cannot do.
    """
    options = {"masks": masks, "cells": cells, "probability": probability, "baseline": baseline, "score": score}
    options |= {"estimator": estimator, "until": until, "seed": seed, "chunk": chunk}
    return rise_and_count(model, images, target, **options)[0]


def rise_and_count(model, images, target, *, masks, **options):
    """The maps of `rise`, and how many masks each image took: int64 (N,), `masks` where none is to stop."""
    maps, used = _rise(model, images, target, counts=[masks], **options)
    return maps[masks], used


def _rise(model, images, target, *, counts, cells, probability, baseline, score, estimator, until, seed, chunk):
    """Count -> the maps (N, H, W) of so many masks, all in one go, and how many each image took of the most.

    Several counts are for images that never stop (`until` is 1).
    """
    size, masks = images.shape[-2:], max(counts)
    _check(seed, masks=min(counts), cells=cells, chunk=chunk)
    if cells > min(size):
        raise ValueError(f"cells is {cells} on images of {size[0]} x {size[1]}; give 1..{min(size)}")
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; give a number above 0 and below 1")
    if not 0 < until <= 1:
        raise ValueError(f"until is {until}; give a rank correlation above 0, or 1 to take all masks")
    drawn = {"masks": masks, "cells": cells, "seed": seed}
    if estimator == "paper":
        blocks, together = rise_draws(size, probability=probability, **drawn), BLOCK
    elif estimator != "balanced":
        raise ValueError(f"estimator {estimator!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
    elif probability != 0.5 or cells > MOST_BALANCED:
        raise ValueError(
            f"estimator 'balanced' draws with the probability 0.5 and at most {MOST_BALANCED} cells, and they are "
            f"{probability} and {cells}; give estimator='paper'"
        )
    else:
        blocks, together = balanced_draws(size, **drawn), _set(cells)
    with torch.no_grad(), evaluating(model), answering(model, score):
        target = _predicted(model, images, target, chunk)
        colour = named_baseline(baseline, model, images)
        difference = images - colour
        totals = images.new_zeros(2, len(images), size[0] * size[1], dtype=torch.float32)  # of every other set
        used, going = torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images), device=images.device)
        taken, maps = 0, {}

        def mean():
            return (totals.sum(0) / (used.to(totals) * probability)[:, None]).unflatten(1, size)

        for grids, offsets in _ending_at(blocks, counts):
            shown = rise_masks(grids.to(images.device), offsets.to(images.device), size)  # (B, H, W)
            blend, scores = shown[:, None].to(images.dtype), []
            for items in torch.arange(len(shown) * len(going), device=images.device).split(chunk):
                mask, image = items // len(going), going[items % len(going)]
                logits = logits_of(model, torch.addcmul(colour[image], difference[image], blend[mask]))
                scores.append(class_scores(logits, target[image], score))
            scores = torch.cat(scores).float().reshape(len(shown), len(going))
            half = taken // together % 2 if until < 1 else 0
            summed = totals[half, going]
            totals[half, going] = summed.addmm_(scores.T, shown.flatten(1).float())  # in place: in float32, always
            used[going.cpu()] += len(shown)
            taken += len(shown)
            if taken in counts:
                maps[taken] = mean()
            if until < 1 and taken % (2 * together) == 0 and not len(going := _apart(totals, going, size, until)):
                break
        return maps | {masks: mean()}, used


def _ending_at(blocks, counts):
    """The blocks of masks, parted where one of `counts` ends inside."""
    taken = 0
    for grids, offsets in blocks:
        ends = [end - taken for end in sorted(set(counts)) if taken < end < taken + len(grids)]
        parts = np.diff([0, *ends, len(grids)]).tolist()
        yield from zip(grids.split(parts), offsets.split(parts), strict=True)
        taken += len(grids)


def rise_by_masks(model, images, target, *, counts, converged, seed=0, **options):
    """RISE's maps by more and more masks, and how near each is to a map of many more.

    Yields, for each of `ESTIMATORS` and of `counts`, estimator, count, maps (N, H, W), and their rank correlation (N,)
    with the maps of about `converged` masks of other seeds. Half of those are drawn one by one and half are balanced,
    so that neither estimator is measured by its own kind. `options`: others of `rise`; all masks are taken.
    """

    given = rise.__kwdefaults__ | options | {"until": 1.0}
    given.pop("masks")

    def made(counts, estimator, seed):
        return _rise(model, images, target, **given | {"counts": counts, "estimator": estimator, "seed": seed})[0]

    parts = 2 * math.ceil(converged / (2 * CONVERGED_PART))
    each = math.ceil(converged / parts)
    true = sum(made([each], ESTIMATORS[part % 2], OTHER_SEEDS + part)[each] for part in range(parts))
    for estimator in ESTIMATORS:
        maps = made(counts, estimator, seed)
        for count in counts:
            yield estimator, count, maps[count], rank_correlation(maps[count], true)


def _apart(totals, going, size, until):
    """Those of the images `going` (n,) whose maps of the two halves (2, N, H * W) do not agree yet."""
    first, second = totals[:, going].unflatten(2, size)
    return going[(rank_correlation(first, second) <= until).to(going.device)]


class _Ridge:
    """LIME's weighted ridge regression with intercept, in float64, behind the interface that captum fits.

    Not captum's wrapper of scikit-learn: its data loader draws from torch's global generator.
    """

    def fit(self, loader):
        seen, scores, weights = (tensor.cpu().double() for tensor in loader.dataset.tensors)  # (M, S), (M,), (M,)
        share = weights / weights.sum()
        seen, scores = seen - share @ seen, scores - share @ scores  # the intercept is not penalised
        weighted = seen.T * weights  # (S, M)
        penalty = RIDGE_PENALTY * torch.eye(seen.shape[1], dtype=seen.dtype)
        self.coefficients = torch.linalg.solve(weighted @ seen + penalty, weighted @ scores)  # (S,)

    def representation(self):
        return self.coefficients


def _samples(image, *, count, samples, seed):
    """Which of `count` superpixels are seen, (1, count) each: first all, then each with probability 1/2."""
    generator = torch.Generator().manual_seed(seed)
    yield torch.ones(1, count, device=image.device)
    for _ in range(samples - 1):
        yield torch.randint(2, (1, count), generator=generator).float().to(image.device)


def _proximity(image, masked, seen, **_):
    """sqrt(exp(-d^2 / 0.25^2)) with the cosine distance d between (1, S) and ones; d = 1 where nothing is seen."""
    distance = 1 - seen.mean().sqrt()  # the cosine of zeros and ones with ones is sqrt(their share)
    return torch.exp(-((distance / KERNEL_WIDTH) ** 2) / 2)


def superpixels(image, *, seed=0):
    """Quickshift superpixels (H, W) int64, 0 … S - 1, on the CPU, of an image (3, H, W) in [0, 1].

    LIME's own at 224 pixels: kernel_size 4, max_dist 200, ratio 0.2. At smaller sizes all three scale with the side
    (kernel_size down to 1, its least), which scales distances of pixels and of colours alike: an image keeps about
    the number of its superpixels. A larger image has those of its means at 224 pixels, enlarged: with a kernel that
    grows with the side, quickshift's time is quadratic in the pixels.
    """
    size = image.shape[-2:]
    share = min(1, REFERENCE_SIZE / math.sqrt(size[0] * size[1]))
    cut = [max(1, round(share * side)) for side in size]
    pixels = functional.interpolate(image[None].double().cpu(), cut, mode="area")[0].permute(1, 2, 0).numpy()
    options = {name: scaled_length(value, cut) for name, value in QUICKSHIFT.items()}
    options["kernel_size"] = max(1.0, options["kernel_size"])
    regions = torch.from_numpy(quickshift(pixels, rng=seed, **options))
    return functional.interpolate(regions[None, None].double(), size, mode="nearest")[0, 0].long()


def lime(model, images, target=None, *, samples=1000, score="softmax", seed=0, chunk=16):
    """LIME: the weight of each superpixel in a linear model of the class score p_c nearby (Ribeiro et al. 2016).

    beta = argmin sum_i w_i (p_c(x_i) - b - z_i beta)^2 + |beta|^2,   w_i = sqrt(exp(-d_i^2 / 0.25^2))           (eq. 2)

    z_i says which superpixels are seen: all in the first sample, each with probability 1/2 in the others; the rest
    show their mean colour. d_i is the cosine distance of z_i from all ones. Through captum's `LimeBase`.
    Signed: each pixel has its superpixel's coefficient, negative where hiding it helps the class. `chunk` masked
    images go through the network at once.

    ValueError for counts below 1 and a negative seed.
    """
    _check(seed, samples=samples, chunk=chunk)
    with torch.no_grad(), evaluating(model), answering(model, score):
        target = _predicted(model, images, target, chunk)
        maps = [_lime_map(model, *pair, samples, score, seed, chunk) for pair in zip(images, target, strict=True)]
    return torch.stack(maps)


def _lime_map(model, image, index, samples, score, seed, chunk):
    regions = superpixels(image, seed=seed)  # (H, W)
    flat, count = regions.flatten(), int(regions.max()) + 1
    sums = torch.zeros(3, count, dtype=torch.float64).index_add_(1, flat, image.cpu().double().flatten(1))
    flattened = (sums / flat.bincount())[:, regions].to(image)  # (3, H, W): each superpixel in its mean colour
    regions = regions.to(image.device)
    explainer = LimeBase(
        lambda masked: class_scores(logits_of(model, masked), index.expand(len(masked)), score),
        _Ridge(),
        similarity_func=_proximity,
        perturb_func=_samples,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda seen, original, **_: torch.where(seen[0, regions] > 0, original, flattened),
        to_interp_rep_transform=None,
    )
    options = {"n_samples": samples, "perturbations_per_eval": chunk}
    coefficients = explainer.attribute(image[None], count=count, samples=samples, seed=seed, **options)
    return coefficients.float().to(image.device)[regions]
