"""Invariants of ranking, perturbation and curves, on arbitrary maps that hypothesis makes (the same on each run)."""

import math
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from xai_utils.images import keep_top, perturb, rank_pixels, unit_range
from xai_utils.metrics.perturbation import area_under_curve, step_counts

examples = settings(derandomize=True, deadline=None, max_examples=60)
values = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0])  # ties are common in real maps
shapes = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
maps = shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=values)).map(torch.from_numpy)


@examples
@given(maps)
def test_ranks_order_the_pixels(saliency):
    """Ranks are a permutation in which no pixel comes before a more salient one, and equal pixels keep their order."""
    ranks = rank_pixels(saliency).flatten(1)
    flat = saliency.flatten(1)
    assert torch.equal(ranks.sort(1).values, torch.arange(flat.shape[1]).expand_as(ranks))
    ordered = flat.gather(1, ranks.argsort(1))
    assert (ordered[:, :-1] >= ordered[:, 1:]).all()
    places = ranks.argsort(1)
    ties = ordered[:, :-1] == ordered[:, 1:]
    assert (places[:, :-1] < places[:, 1:])[ties].all()


@examples
@given(maps, st.floats(0, 1))
def test_exactly_as_many_pixels_are_kept_as_asked(saliency, share):
    """Whatever the ties, `count` pixels stay; a larger count keeps those of a smaller one, too."""
    pixels = saliency[0].numel()
    count = round(share * pixels)
    kept = keep_top(rank_pixels(saliency), count)
    assert (kept.flatten(1).sum(1) == count).all()
    assert (keep_top(rank_pixels(saliency), pixels) | kept).all()
    assert not (kept & ~keep_top(rank_pixels(saliency), min(pixels, count + 1))).any()


@examples
@given(maps)
def test_ranks_do_not_depend_on_the_scale_of_the_map(saliency):
    """A power of two times the map is exact in floating point: the same ranks; and unit_range ends at 0 and 1."""
    assert torch.equal(rank_pixels(saliency), rank_pixels(saliency * 4))
    unit = unit_range(saliency).flatten(1)
    assert unit.min() >= 0
    assert unit.max() <= 1
    constant = saliency.flatten(1).amax(1) == saliency.flatten(1).amin(1)
    assert (unit[constant] == 0).all()


@examples
@given(maps, st.floats(0, 1))
def test_a_perturbed_pixel_is_the_image_or_the_baseline(saliency, share):
    """With a binary mask every pixel is one or the other, and masks and their complements exchange the two."""
    image = torch.rand(len(saliency), 3, *saliency.shape[1:], generator=torch.Generator().manual_seed(0))
    other = torch.zeros_like(image)
    keep = keep_top(rank_pixels(saliency), round(share * saliency[0].numel()))
    mixed = perturb(image, keep, other)
    assert torch.equal(mixed, torch.where(keep[:, None], image, other))
    assert torch.equal(perturb(other, ~keep, image), mixed)


@examples
@given(st.integers(1, 5000), st.floats(0.3, 6000))
def test_steps_go_from_none_to_all(pixels, per_step):
    """Counts start at 0, end at all pixels and never fall; there are ceil(pixels / step) steps."""
    counts = step_counts(pixels, per_step)
    assert (counts[0], counts[-1]) == (0, pixels)
    assert all(a <= b for a, b in pairwise(counts))
    assert len(counts) - 1 == max(1, math.ceil(pixels / max(1.0, per_step) - 1e-9))


@examples
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 40)), elements=st.floats(0, 1, width=32)))
def test_the_area_lies_between_the_extremes_of_the_curve(curve):
    """The area under a curve in [0, 1] is a mean height: between its smallest and its largest value."""
    area = area_under_curve(torch.from_numpy(curve)).numpy()
    assert (area >= curve.min(1) - 1e-6).all()
    assert (area <= curve.max(1) + 1e-6).all()
