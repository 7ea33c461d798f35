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
from xai_utils.explainers.masking import lime, rise, rise_draws, rise_masks, superpixels
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
    ours = rise(model, image, 1, masks=2**9, cells=cells, chunk=100)

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
    ours = rise(model, images, torch.tensor([1, 3]), **options)
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
    rise(Counting(), torch.rand(2, 3, 12, 12), masks=1000, cells=3, chunk=50)
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
