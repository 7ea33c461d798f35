"""RISE and LIME against enumeration, slow loops and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import pairwise_distances
from torch import nn
from torch.nn import functional

from xai_utils.explainers import masking
from xai_utils.explainers.masking import (
    balanced_draws,
    lime,
    rise,
    rise_and_count,
    rise_by_masks,
    rise_draws,
    rise_masks,
    superpixels,
)
from xai_utils.images import rank_correlation
from xai_utils.networks import Target, build


class Linear(nn.Module):
    """Two classes whose probabilities are linear in the image: p_1 = weights · (x - mean) + 0.5, pixel by pixel."""

    def __init__(self, weights):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.2, 0.5, 0.7]))
        self.register_buffer("weights", weights)  # (3, H, W)

    def forward(self, images):
        probability = ((images - self.mean[:, None, None]) * self.weights).sum((1, 2, 3)) + 0.5
        return torch.stack([1 - probability, probability], 1).log()


def enumerated(cells):
    """All 2^(s * s) grids, unshifted, as the one block of draws."""
    grids = torch.tensor([*itertools.product([0.0, 1.0], repeat=cells * cells)]).reshape(-1, cells, cells)
    return lambda *_, **__: [(grids, torch.zeros(len(grids), 2, dtype=torch.int64))]


def test_rise_of_a_linear_score_by_enumeration(monkeypatch):
    """Over all grids of 3 x 3 cells the map is E[p(x * m) m_j] / 0.5, known in closed form from the enlargement."""
    side, cells = 6, 3
    weights = 0.02 * torch.randn(3, side, side)
    image = torch.rand(1, 3, side, side)
    model = Linear(weights)
    monkeypatch.setattr(masking, "rise_draws", enumerated(cells))
    ours = rise(model, image, 1, masks=2**9, cells=cells, estimator="paper", chunk=100)

    enlarge = functional.interpolate(torch.eye(9).reshape(1, 9, 3, 3), size=8, mode="bilinear")[0, :, :6, :6]
    response = enlarge.reshape(9, -1)  # (cell, pixel): mask = grid @ response
    moments = response.T @ (0.25 * torch.ones(9, 9) + 0.25 * torch.eye(9)) @ response  # E[m_k m_j]
    evidence = (weights * (image[0] - model.mean[:, None, None])).sum(0).flatten()  # (pixel,)
    expected = (evidence @ moments + 0.5 * 0.5 * response.sum(0)) / 0.5
    torch.testing.assert_close(ours[0].flatten(), expected, rtol=1e-4, atol=1e-5)


def test_rise_equals_a_slow_loop():
    """Mask by mask with plain interpolation and slicing, in the network's normalised space, on an oblong image."""
    torch.manual_seed(1)
    model, images = build("small_resnet", range(4)).eval(), torch.rand(2, 3, 40, 61)
    options = {"masks": 30, "cells": 4, "probability": 0.3, "seed": 5}
    ours = rise(model, images, torch.tensor([1, 3]), estimator="paper", **options)
    expected = torch.zeros(2, 40, 61)
    (grids, offsets), *more = rise_draws((40, 61), **options)
    assert not more
    for grid, (down, right) in zip(grids, offsets.tolist(), strict=True):
        enlarged = functional.interpolate(grid[None, None], size=(5 * 10, 5 * 16), mode="bilinear")[0, 0]
        mask = enlarged[down : down + 40, right : right + 61]
        normalised = (images - model.mean[:, None, None]) / model.std[:, None, None]
        with torch.no_grad():
            scores = model.network(normalised * mask).softmax(1)[[0, 1], [1, 3]]
        expected += scores[:, None, None] * mask
    torch.testing.assert_close(ours, expected / (30 * 0.3))


def balanced_set(cells, seed=0, size=(12, 12)):
    """The grids of one whole set (M, cells^2), as signs."""
    grids = torch.cat([grids for grids, _ in balanced_draws(size, masks=masking._set(cells), cells=cells, seed=seed)])
    return 2 * grids.flatten(1) - 1


@pytest.mark.parametrize("cells", [2, 3, 7, 8])
def test_balanced_masks_weigh_each_other_out(cells):
    """Each cell, each pair and each three of cells: the products of their signs sum to 0 over a set."""
    signs = balanced_set(cells, size=(16, 16)).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert not signs.sum(0).any()
    assert torch.equal(signs.T @ signs, len(signs) * torch.eye(cells * cells, dtype=torch.float64))
    assert not torch.einsum("ma,mb,mc->abc", signs, signs, signs).any()


def test_balanced_offsets_cover_a_cell_and_fewer_masks_begin_more():
    """One offset for each set, spread evenly over the cell; the first masks of many are those of few."""
    blocks = [*balanced_draws((70, 35), masks=64 * 128, cells=7, seed=1)]
    offsets = torch.stack([offsets[0] for _, offsets in blocks])
    assert all((offsets == offsets[0]).all() for _, offsets in blocks)
    for axis, cell in enumerate((10, 5)):
        counts = offsets[:, axis].bincount(minlength=cell)
        assert len(counts) == cell
        assert (counts - 64 / cell).abs().max() <= 1.5
    (grids, _), *more = balanced_draws((70, 35), masks=50, cells=7, seed=1)
    assert not more
    assert torch.equal(grids, blocks[0][0][:50])


def test_one_balanced_set_is_exact_for_a_linear_score(monkeypatch):
    """Its 32 masks of 3 x 3 cells give the map that all 512 give; as many of the paper's do not."""
    side, cells = 6, 3
    image, model = torch.rand(1, 3, side, side), Linear(0.02 * torch.randn(3, side, side))
    found = rise(model, image, 1, masks=32, cells=cells)
    few = rise(model, image, 1, masks=32, cells=cells, estimator="paper")
    ((grids, offsets),) = balanced_draws((side, side), masks=32, cells=cells, seed=0)
    every = enumerated(cells)()[0][0]
    monkeypatch.setattr(masking, "rise_draws", lambda *_, **__: [(every, offsets[:1].expand(len(every), 2))])
    expected = rise(model, image, 1, masks=2**9, cells=cells, estimator="paper")
    torch.testing.assert_close(found, expected)
    assert (few - expected).abs().max() > 100 * (found - expected).abs().max()
    assert len(grids) == 32


def test_balanced_masks_are_unbiased_and_nearer_than_the_papers():
    """300 maps of a network, of 16 masks of 2 x 2 cells each: their mean is that of all grids at all offsets."""
    torch.manual_seed(3)
    model, image = build("small_resnet", range(3)).eval(), torch.rand(1, 3, 32, 32)
    every = enumerated(2)()[0][0]
    places = torch.tensor([*itertools.product(range(0, 16), repeat=2)])
    grids, offsets = every.repeat(len(places), 1, 1), places.repeat_interleave(len(every), 0)
    shown = rise_masks(grids, offsets, (32, 32))
    with torch.no_grad():
        pixels = model.mean[:, None, None] + shown[:, None] * (image - model.mean[:, None, None])
        scores = torch.cat([model(part).softmax(1)[:, 1] for part in pixels.split(512)])
    expected = torch.einsum("m,mhw->hw", scores, shown) / (len(shown) * 0.5)
    errors = {}
    for estimator in masking.ESTIMATORS:
        options = {"masks": 16, "cells": 2, "estimator": estimator, "chunk": 16}
        maps = torch.cat([rise(model, image, 1, seed=seed, **options) for seed in range(300)])
        deviation = maps.std(0) / 300**0.5
        assert ((maps.mean(0) - expected).abs() < 5 * deviation).all(), estimator
        errors[estimator] = (maps - expected).square().mean()
    assert errors["balanced"] < errors["paper"] / 4


def test_an_image_takes_no_more_masks_than_it_needs():
    """It stops when its halves agree, by itself, with the map of that many masks; 1 never stops."""
    images, options = torch.rand(3, 3, 12, 12), {"masks": 2048, "cells": 3, "chunk": 64}
    given = {"probability": 0.5, "baseline": "mean", "score": "softmax", "estimator": "balanced", "seed": 0}
    maps, used = rise_and_count(Picked(), images, None, until=0.9, **given, **options)
    assert (used % (2 * masking._set(3)) == 0).all()
    assert (used < 2048).any()
    for image, own, count in zip(images.split(1), maps, used.tolist(), strict=True):
        torch.testing.assert_close(rise(Picked(), image, masks=count, cells=3)[0], own)
    assert rise_and_count(Picked(), images, None, until=1.0, **given, **options)[1].tolist() == [2048] * 3


def test_maps_of_more_masks_come_nearer_to_the_map_of_many(monkeypatch):
    """The map of many is the mean of both estimators' by other seeds; every other map is the one of its masks."""
    monkeypatch.setattr(masking, "CONVERGED_PART", 512)
    images, options = torch.rand(3, 3, 12, 12), {"cells": 3, "chunk": 64}
    found = list(rise_by_masks(Picked(), images, None, counts=[32, 512], converged=2048, seed=7, until=0.5, **options))
    assert [each[:2] for each in found] == [(name, count) for name in masking.ESTIMATORS for count in (32, 512)]
    parts = [
        rise(Picked(), images, masks=512, estimator=name, seed=masking.OTHER_SEEDS + part, **options)
        for part, name in enumerate(masking.ESTIMATORS * 2)
    ]
    for estimator, count, maps, correlation in found:
        expected = rise(Picked(), images, masks=count, estimator=estimator, seed=7, **options)
        torch.testing.assert_close(maps, expected)
        torch.testing.assert_close(correlation, rank_correlation(expected, sum(parts)))
    nearness = [correlation.mean() for *_, correlation in found]
    assert nearness[0] < nearness[1]
    assert nearness[2] < nearness[3]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"probability": 0.3}, "estimator 'balanced' draws with the probability 0.5 and at most 32 cells"),
        ({"cells": 33}, "give estimator='paper'"),
        ({"estimator": "literal"}, "estimator 'literal' is unknown; choose one of balanced, paper"),
        ({"until": 0}, "until is 0; give a rank correlation above 0, or 1 to take all masks"),
    ],
)
def test_what_an_estimator_cannot_do_is_refused(options, told):
    """Before any pass."""
    with pytest.raises(ValueError, match=told):
        rise(Picked(), torch.rand(1, 3, 40, 40), **options)


def test_rise_draws_are_bernoulli_grids_and_uniform_offsets():
    """Grids hold ones with the probability asked, offsets every value below a cell; fewer draws begin more draws."""
    options = {"cells": 5, "probability": 0.3, "seed": 2}
    blocks = [*rise_draws((50, 21), masks=2000, **options)]
    assert max(len(grids) for grids, _ in blocks) <= masking.BLOCK
    grids, offsets = (torch.cat(part) for part in zip(*blocks, strict=True))
    assert grids.shape == (2000, 5, 5)
    assert set(grids.unique().tolist()) == {0.0, 1.0}
    assert grids.mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / grids.numel()))
    for axis, cell in enumerate((10, 5)):
        counts = offsets[:, axis].bincount()
        assert len(counts) == cell
        assert (counts - 2000 / cell).abs().max() < 5 * math.sqrt(2000 / cell)
    for part, whole in zip(next(rise_draws((50, 21), masks=40, **options)), blocks[0], strict=True):
        assert torch.equal(part, whole[:40])
    assert not torch.equal(next(rise_draws((50, 21), masks=40, cells=5, probability=0.3, seed=3))[0], grids[:40])


def test_rise_masks_lie_between_0_and_1():
    """Masks are in [0, 1]; grids of ones give ones, and 200 random masks average to the probability."""
    (grids, offsets), *_ = rise_draws((32, 45), masks=200, cells=6, probability=0.5, seed=0)
    masks = rise_masks(grids, offsets, (32, 45))
    assert masks.shape == (200, 32, 45)
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-6
    assert masks.mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(rise_masks(torch.ones_like(grids), offsets, (32, 45)), torch.ones_like(masks))


class Picked(nn.Module):
    """Logits that are single pixels: no sum, so that no rounding depends on the batch."""

    mean = torch.tensor([0.5, 0.4, 0.3])

    def forward(self, images):
        return 4 * torch.stack([images[:, 0, 3, 4], images[:, 1, 9, 2], images[:, 2, 5, 5]], 1)


def test_rise_does_not_depend_on_the_chunk():
    """Bit for bit the same map for chunks that divide blocks and batches, that do not, and that exceed them."""
    images = torch.rand(3, 3, 12, 12)
    maps = [rise(Picked(), images, masks=600, cells=3, chunk=chunk) for chunk in (1, 7, 32, 256, 10_000)]
    assert all(torch.equal(one, maps[0]) for one in maps)
    assert maps[0].flatten(1).std(1).min() > 0


def test_seeds_decide_and_global_generators_rest():
    """Neither method moves torch's or numpy's global stream, and equal seeds give equal maps, others do not."""
    images, model = painted(), build("small_resnet", range(4)).eval()
    for method, options in ((rise, {"masks": 9}), (lime, {"samples": 9})):
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        first, again, other = (method(model, images, 1, seed=seed, **options) for seed in (4, 4, 5))
        assert torch.equal(torch.get_rng_state(), before)
        assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_rise_holds_one_block_of_masks(monkeypatch):
    """However many masks are asked for, at most 256 exist at a time, and at most `chunk` masked images."""
    held, batches = [], []

    def watched(grids, offsets, size):
        held.append(len(grids))
        return rise_masks(grids, offsets, size)

    class Counting(Picked):
        def forward(self, images):
            batches.append(len(images))
            return super().forward(images)

    monkeypatch.setattr(masking, "rise_masks", watched)
    rise(Counting(), torch.rand(2, 3, 12, 12), masks=1000, cells=3, estimator="paper", chunk=50)
    assert held == [256, 256, 256, 232]
    assert max(batches) == 50
    assert sum(batches) == 2 + 2 * 1000


def painted():
    """Four patches of colour with a little texture, (1, 3, 32, 32): quickshift finds several superpixels."""
    image = 0.1 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(8))
    image[0, :16] += 0.8
    image[1, :, :16] += 0.7
    return image[None]


def test_superpixels_are_numbered_regions():
    """Labels run from 0 without gaps, do not change from call to call, and respect a hard edge of colour."""
    labels = superpixels(painted()[0])
    assert labels.shape == (32, 32)
    assert torch.equal(labels.unique(), torch.arange(int(labels.max()) + 1))
    assert labels.max() > 2
    assert torch.equal(labels, superpixels(painted()[0]))
    assert not set(labels[:14].unique().tolist()) & set(labels[18:].unique().tolist())


def test_lime_equals_the_formula_with_scikit_learn():
    """Masked images written out in numpy, distances and ridge regression from scikit-learn, on the samples drawn."""
    torch.manual_seed(3)
    model, images = build("small_resnet", range(4)).eval(), painted()
    ours = lime(model, images, 2, samples=60, seed=7, chunk=16)

    labels, image = superpixels(images[0], seed=7).numpy(), images[0].numpy()
    count = labels.max() + 1
    generator = torch.Generator().manual_seed(7)
    seen = np.array(
        [np.ones(count)] + [torch.randint(2, (1, count), generator=generator)[0].numpy() for _ in range(59)]
    )
    scores = []
    for row in seen:
        masked = image.copy()
        for region in np.flatnonzero(row == 0):
            masked[:, labels == region] = image[:, labels == region].mean(1, keepdims=True)
        with torch.no_grad():
            scores.append(model(torch.from_numpy(masked)[None]).softmax(1)[0, 2].item())
    distances = pairwise_distances(seen, np.ones((1, count)), metric="cosine")[:, 0]
    weights = np.sqrt(np.exp(-(distances**2) / 0.25**2))
    fitted = Ridge(alpha=1).fit(seen, scores, sample_weight=weights)
    np.testing.assert_allclose(ours[0].numpy(), fitted.coef_[labels], rtol=1e-3, atol=2e-4 * abs(fitted.coef_).max())


def test_lime_of_a_linear_score():
    """The coefficients are what each superpixel adds to the score over its mean colour, less 1 % for the ridge."""
    weights, image = 1e-3 * torch.randn(3, 32, 32), painted()
    labels = superpixels(image[0])
    mean = torch.stack([image[0][:, labels == region].mean(1) for region in range(int(labels.max()) + 1)], 1)
    added = (weights * (image[0] - mean[:, labels])).sum(0)  # (H, W)
    expected = torch.zeros(mean.shape[1]).index_add_(0, labels.flatten(), added.flatten())[labels]
    ours = lime(Linear(weights), image, 1, samples=1000)[0]
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.01 * float(expected.abs().max()))


def test_superpixels_scale_with_the_image():
    """An enlarged image is cut into about as many superpixels: lengths hold at 224 pixels."""
    counts = []
    for side in (64, 96, 128):
        enlarged = functional.interpolate(painted(), size=side, mode="bilinear")[0]
        counts.append(int(superpixels(enlarged).max()) + 1)
    assert max(counts) <= 1.5 * min(counts)
    assert min(counts) > 5


def test_superpixels_of_a_large_image_are_those_at_224_pixels():
    """Twice as large they are twice as large, cut in the same time: a kernel that grew with them took 16 times that."""
    image = functional.interpolate(painted(), size=(196, 256), mode="bilinear")[0]
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(superpixels(large), superpixels(image).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_lime_of_a_constant_score_is_zero():
    """A classifier that ignores the image leaves nothing to attribute; nothing divides by zero."""

    class Constant(nn.Module):
        def forward(self, images):
            return images.new_tensor([[0.0, 1.0, 2.0]]).expand(len(images), -1)

    torch.testing.assert_close(lime(Constant(), painted(), samples=20), torch.zeros(1, 32, 32))
    assert lime(Constant(), torch.full((1, 3, 8, 8), 0.5), samples=1).isfinite().all()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (rise, {"masks": 0}, "masks is 0; give 1 or more"),
        (rise, {"cells": 0}, "cells is 0; give 1 or more"),
        (rise, {"cells": 33}, r"cells is 33 on images of 32 x 32; give 1\.\.32"),
        (rise, {"probability": 0}, "probability is 0; give a number above 0 and below 1"),
        (rise, {"probability": 1.0}, "probability is 1.0"),
        (rise, {"chunk": 0}, "chunk is 0; give 1 or more"),
        (rise, {"seed": -1}, "seed is -1; give 0 or more"),
        (rise, {"target": 9}, r"9 is not a class of this model; give 0\.\.3"),
        (lime, {"samples": 0}, "samples is 0; give 1 or more"),
        (lime, {"chunk": -2}, "chunk is -2; give 1 or more"),
        (lime, {"seed": -1}, "seed is -1; give 0 or more"),
    ],
)
def test_bad_input_is_named(method, options, message):
    """Each wrong argument is named with what is allowed, before the network runs thousands of passes."""
    with pytest.raises(ValueError, match=message):
        method(build("small_resnet", range(4)), painted(), **options)


def test_rise_fades_to_the_baseline():
    """A bare network has no colour that its normalisation maps to zero: name another one, or wrap it, as told."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"needs the colour.* found none;.*\n.*import Target\nmodel = Target\("):
        rise(network, painted(), masks=2)
    colour = torch.tensor([0.1, 0.2, 0.3])
    target = Target(network, "mine", "abc", mean=colour)
    found = rise(target, painted(), masks=9, baseline=colour[:, None, None])
    assert torch.equal(rise(target, painted(), masks=9), found)
    assert not torch.equal(rise(target, painted(), masks=9, baseline="black"), found)
