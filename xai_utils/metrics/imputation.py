"""ROAD: remove pixels by imputing them from what is left, so that neither a mask's shape nor an odd colour tells.

A network that meets a black patch meets images that it was never trained on, and the shape of the patch alone may tell
the class. Here each removed pixel becomes the weighted mean of its eight neighbours, removed ones included, and a
little noise (Rong et al. 2022): for all of them together a linear system.
"""

import math

import numpy as np
import torch
from scipy.linalg import solveh_banded
from threadpoolctl import ThreadpoolController

from xai_utils.images import rank_pixels
from xai_utils.metrics.perturbation import explained_classes
from xai_utils.networks import answering, class_scores, evaluating, logits_of

PERCENTS = (20, 40, 60, 80)  # of the pixels that are removed
NOISE = 0.01  # its standard deviation on pixels in [0, 1]
WEIGHTS = {  # of a pixel's neighbours, (down, across) -> weight
    (down, across): 1 / 6 if 0 in (down, across) else 1 / 12
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if (down, across) != (0, 0)
}
POOLS = ThreadpoolController()


def road_curves(model, images, target, maps, *, percents=PERCENTS, noise=NOISE, seed=0, score="softmax", chunk=64):
    """The score of the class without its most and without its least salient pixels: dict "most", "least" -> (N, P).

    Of `percents` of the pixels each, exactly round(percent / 100 · H · W), imputed by `imputed` with noise of that
    standard deviation. The noise follows `seed` alone: every image, map and point meets the same.
    """
    if not percents or not all(0 < percent < 100 for percent in percents):
        raise ValueError(f"percents are {percents}; give shares of the pixels in percent, between 0 and 100")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}; give a standard deviation of pixels in [0, 1], 0 or more")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give the number of imputed images per batch, at least 1")
    ranks, number = rank_pixels(maps, images).to(images.device), len(images)
    pixels = ranks[0].numel()
    counts = [math.floor(percent / 100 * pixels + 0.5) for percent in percents]
    first = torch.tensor([0] * len(counts) + [pixels - count for count in counts], device=images.device)
    last = torch.tensor(counts + [pixels] * len(counts), device=images.device)  # ranks first … last - 1 are removed
    grain = noise * torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)
    found = []
    with torch.inference_mode(), evaluating(model), answering(model, score):
        target = explained_classes(model, images, target, chunk)
        for items in torch.arange(2 * len(counts) * number, device=images.device).split(chunk):
            view, image = items // number, items % number
            own = ranks[image]
            keep = (own < first[view, None, None]) | (own >= last[view, None, None])
            shown = torch.where(keep[:, None], images[image], imputed(images[image], keep) + grain)
            found.append(class_scores(logits_of(model, shown), target[image], score))
    most, least = torch.cat(found).float().cpu().reshape(2, len(counts), number).mT
    return {"most": most, "least": least}


def road(model, images, target, maps, *, percents=PERCENTS, noise=NOISE, seed=0, score="softmax", chunk=64):
    """What the least salient pixels cost less than the most salient ones (N,), in [-1, 1], higher is better (ROAD).

    mean over q of p_c(without the q % least salient) - p_c(without the q % most salient)

    Removed pixels are imputed (Rong et al. 2022), as in `road_curves`, which has both orders apart.

    Notes: the paper draws both curves; their mean difference is twice the number that the library grad-cam calls ROAD
    combined. It takes a map that orders nothing to 0.
    """
    options = {"percents": percents, "noise": noise, "seed": seed, "score": score, "chunk": chunk}
    curves = road_curves(model, images, target, maps, **options)
    return (curves["least"] - curves["most"]).mean(1)


def imputed(images, keep):
    """Images (N, C, H, W) whose pixels outside of `keep` (N, H, W), bool, are imputed from the others.

    x_p = sum_q w_pq x_q / sum_q w_pq   over the neighbours q that the image has, for all such p at once

    WEIGHTS are those of Rong et al. 2022. The system is solved directly (banded Cholesky, on the CPU): numbered row by
    row, pixels are tied to none that is further away than a row. Of 96 x 96 pixels a fifth takes 2.5 ms, a half 7 (a
    general sparse solver: 5 and 12), at twice the side ten times as much. ValueError where an image keeps no pixel.
    """
    arrays = zip(images.detach().double().cpu().numpy(), (~keep).cpu().numpy(), strict=True)
    # threads of the small systems' BLAS gain nothing, and on a busy machine wait for each other: 3 s instead of 0.02
    with POOLS.limit(limits=1, user_api="blas"):
        return torch.from_numpy(np.stack([_imputed(*each) for each in arrays])).to(images)


def _imputed(image, free):
    """One image (C, H, W) whose `free` pixels (H, W) are imputed."""
    if free.all():
        raise ValueError("an image keeps no pixel to impute the others from; remove less than all of them")
    (height, width), count = free.shape, int(free.sum())
    if not count:
        return image
    own, numbers = np.arange(count), np.full((height + 2, width + 2), -1)
    numbers[1:-1, 1:-1][free] = own
    inside, known = np.pad(np.ones_like(free), 1), np.pad(np.where(free, 0, image), ((0, 0), (1, 1), (1, 1)))
    bands, sums = np.zeros((width + 2, count), image.dtype), np.zeros((count, len(image)), image.dtype)
    for (down, across), weight in WEIGHTS.items():
        there = slice(1 + down, height + 1 + down), slice(1 + across, width + 1 + across)
        bands[0] += weight * inside[there][free]
        sums += weight * known[:, *there][:, free].T
        apart = numbers[there][free] - own
        later = apart > 0  # the matrix is symmetric: bands[k, p] is its row p + k, column p
        bands[apart[later], own[later]] = -weight
    reached = bands[: 1 + np.flatnonzero(bands.any(1)).max()]
    filled = image.copy()
    filled[:, free] = solveh_banded(reached, sums, lower=True, overwrite_ab=True, check_finite=False).T
    return filled
