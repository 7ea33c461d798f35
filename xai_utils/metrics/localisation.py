"""Localisation: does the map point at the object? `masks` (N, H, W) are true on it (`Split.box_masks`)."""

import torch

from xai_utils.images import BLUR_SIGMA, as_maps, finite_maps, gaussian_blur, rank_pixels, scaled_length

TIE_WEIGHT = 1e-4


def break_zero_ties(maps):
    """S + 1e-4 * blur(S), sigma 10 at 224 pixels: zero pixels rank by their nearness to evidence (DGLE, metrics).

    Sparse and rectified maps leave large areas at exactly zero, whose order would otherwise be that of reading.
    A constant map has no evidence to be near to and stays exactly as it is.
    """
    maps = as_maps(maps)
    moved = maps + TIE_WEIGHT * gaussian_blur(maps, scaled_length(BLUR_SIGMA, maps.shape[-2:]))
    constant = maps.amax((-2, -1), keepdim=True) == maps.amin((-2, -1), keepdim=True)
    return torch.where(constant, maps, moved)


def aligned(maps, masks):
    """Masks as bool and maps, both on the CPU; ValueError where they are not of the same images, or not finite."""
    maps, masks = finite_maps(maps).cpu(), torch.as_tensor(masks)
    if masks.shape != maps.shape:
        shapes = f"masks are {tuple(masks.shape)} and maps {tuple(maps.shape)}"
        raise ValueError(f"{shapes}; both must be (N, H, W) of the same images")
    return masks.bool().cpu(), maps


def mass_share(mass, masks):
    """Share of the mass (N, H, W; none negative) that lies on the masks (N,); NaN where a mask is empty.

    A map without mass counts as one that is the same everywhere: its share is the mask's of the image, which is chance.
    """
    mass = mass.double()
    mass = torch.where(mass.sum((1, 2), keepdim=True) > 0, mass, 1)
    share = (mass * masks).sum((1, 2)) / mass.sum((1, 2))
    return torch.where(masks.any(2).any(1), share.float(), torch.nan)


def box_average_precision(model, images, target, maps, *, masks):
    """Explainability M_I in percent (N,): average precision of the pixel ranking, higher is better (DGLE, eq. 9).

    M_I = 100 * sum_i P_i (R_i - R_{i-1}),   precision and recall after the i most salient pixels

    A random ranking scores the covered share of the image; NaN where the mask is empty. Needs no model.
    """
    masks, maps = aligned(maps, masks)
    ranks = rank_pixels(maps).flatten(1)  # (N, H*W)
    relevant = torch.zeros(ranks.shape, dtype=torch.float64).scatter_(1, ranks, masks.flatten(1).double())
    precision = relevant.cumsum(1) / torch.arange(1, ranks.shape[1] + 1, dtype=torch.float64)
    return (100 * (precision * relevant).sum(1) / relevant.sum(1)).float()  # 0 / 0 = NaN: no positives


def pointing_game(model, images, target, maps, *, masks, tolerance=0):
    """1 where the map's maximum lies on the object, else 0 (N,), higher is better (Zhang et al. 2016; DGLE).

    [argmax map ∈ object],   the paper's number is its mean over the classes

    The point is the first maximum in row-major order. `tolerance` (pixels at 224, scaled) also accepts points that
    near to the object. A constant map points nowhere: a miss. NaN where the mask is empty. Needs no model.
    """
    masks, maps = aligned(maps, masks)
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; give 0 or a positive distance in pixels at 224")
    height, width = maps.shape[-2:]
    flat = maps.flatten(1)
    point = torch.from_numpy(flat.numpy().argmax(1))  # numpy promises the first of equal maxima
    rows = torch.arange(height)[:, None] - (point // width)[:, None, None]  # (N, H, 1)
    columns = torch.arange(width) - (point % width)[:, None, None]  # (N, 1, W)
    near = rows**2 + columns**2 <= scaled_length(tolerance, (height, width)) ** 2
    hits = (near & masks).flatten(1).any(1) & (flat.amax(1) > flat.amin(1))
    return torch.where(masks.flatten(1).any(1), hits.float(), torch.nan)
