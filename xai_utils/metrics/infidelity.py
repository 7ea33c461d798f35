"""Infidelity: does the map say how much the class loses when some of the pixels go?

What the class loses is asked of the image alone, so that all maps of an image share the answers (`removal_falls`).
"""

import torch

from xai_utils.images import baseline as named_baseline
from xai_utils.images import finite_maps, perturb, scaled_length
from xai_utils.metrics.perturbation import explained_classes
from xai_utils.networks import answering, class_scores, evaluating, logits_of

SQUARES, SIDE = 64, 56  # how many are removed, one at a time; pixels at 224, a quarter of the image


def square_masks(size, *, squares=SQUARES, side=SIDE, seed=0):
    """Masks (squares, H, W), bool, of squares of `side` (at 224 pixels) in images of `size` (H, W), as `seed` draws.

    ValueError for a side that does not fit into the image, and for no square.
    """
    length = round(scaled_length(side, size))
    if not 1 <= length <= min(size):
        raise ValueError(f"side is {side} at 224 pixels, {length} of {size[0]} x {size[1]}; give one that fits in")
    if squares < 1:
        raise ValueError(f"squares is {squares}; remove one or more")
    generator, masks = torch.Generator().manual_seed(seed), torch.zeros(squares, *size, dtype=torch.bool)
    corners = [torch.randint(extent - length + 1, (squares,), generator=generator).tolist() for extent in size]
    for mask, top, left in zip(masks, *corners, strict=True):
        mask[top : top + length, left : left + length] = True
    return masks


def removal_falls(
    model, images, target, *, squares=SQUARES, side=SIDE, baseline="mean", seed=0, score="softmax", chunk=64
):
    """By how much the score of the class falls where each of `square_masks` shows the baseline: (N, squares), CPU."""
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give the number of perturbed images per batch, at least 1")
    masks = square_masks(images.shape[-2:], squares=squares, side=side, seed=seed).to(images.device)
    with torch.inference_mode(), evaluating(model), answering(model, score):
        target, hidden = explained_classes(model, images, target, chunk), named_baseline(baseline, model, images)
        scores = []
        for items in torch.arange((squares + 1) * len(images), device=images.device).split(chunk):
            view, image = items // len(images), items % len(images)
            gone = masks[view - 1] & (view > 0)[:, None, None]  # view 0 is the image as it is
            logits = logits_of(model, perturb(images[image], ~gone, hidden[image]))
            scores.append(class_scores(logits, target[image], score))
    whole, *left = torch.cat(scores).float().cpu().reshape(squares + 1, len(images))
    return whole[:, None] - torch.stack(left, 1)


def infidelity(
    model,
    images,
    target,
    maps,
    *,
    squares=SQUARES,
    side=SIDE,
    baseline="mean",
    seed=0,
    score="softmax",
    falls=None,
    chunk=64,
):
    """How far the map is from saying what the class loses with a square, (N,), 0 or more, lower is better.

    mean over squares of (b · sum of the map in the square - (p_c(x) - p_c(x without the square)))²

    Infidelity (Yeh et al. 2019, eq. 1) of the network as a function of which pixels are there, I being the square. As a
    map has no unit, b is the scale that fits best, sum (map · fall) / sum map² over the squares. A map that is zero
    explains nothing, and scores the mean of the squared falls. `falls` (N, squares): those of `removal_falls` with the
    same options, where they are at hand; then the model is not asked.

    Notes: the paper's own scale, 1, suits attributions that sum up to the score, as few maps do.
    """
    options = {"squares": squares, "side": side, "seed": seed}
    maps, masks = finite_maps(maps, images).double().cpu(), square_masks(images.shape[-2:], **options).double()
    if falls is None:
        asked = options | {"baseline": baseline, "score": score, "chunk": chunk}
        falls = removal_falls(model, images, target, **asked)
    falls = falls.double()
    told = maps.flatten(1) @ masks.flatten(1).T  # (N, squares)
    power = (told**2).sum(1, keepdim=True)
    fitting = torch.where(power > 0, (told * falls).sum(1, keepdim=True) / power.clamp(min=1e-300), 0)
    return ((fitting * told - falls) ** 2).mean(1).float()
