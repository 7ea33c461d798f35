"""Pixel-space primitives against loops written from their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torchvision.transforms import Normalize, v2

from xai_utils.images import (
    BASELINES,
    as_maps,
    baseline,
    gaussian_blur,
    keep_top,
    perturb,
    rank_pixels,
    require_pixels,
    resize,
    rise_weights,
    scaled_area,
    scaled_length,
    unit_range,
)


class Normalising(nn.Module):
    """A model that only has a mean colour."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.25, 0.5, 0.75]))


def convolve_slowly(channel, kernel, fold):
    """Sum kernel * pixel position by position; `fold` maps a position to an index, or None for nothing there."""
    height, width = channel.shape
    radius = len(kernel) // 2
    result = np.zeros_like(channel)
    for y in range(height):
        for x in range(width):
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    row, column = fold(y + dy, height), fold(x + dx, width)
                    if row is not None and column is not None:
                        result[y, x] += kernel[dy + radius, dx + radius] * channel[row, column]
    return result


def reflected(position, length):
    while not 0 <= position < length:
        position = -position if position < 0 else 2 * (length - 1) - position
    return position


def nothing_beyond(position, length):
    return position if 0 <= position < length else None


def gaussian_kernel(size, sigma):
    offsets = np.arange(size) - size // 2
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
    return kernel / kernel.sum()


def test_lengths_scale_with_the_side_and_areas_with_the_area():
    """A length halves and an area quarters at half of 224 pixels; an oblong image counts by its area."""
    assert scaled_length(10, 224) == 10
    assert scaled_length(10, 112) == 5
    assert scaled_area(1792, 112) == 448
    assert scaled_area(1792, (112, 224)) == 896
    assert scaled_length(10, (56, 224)) == pytest.approx(5)
    with pytest.raises(ValueError, match="no pixels"):
        scaled_length(10, 0)


def test_resize_interpolates_between_pixel_centres():
    """Doubling a row (0, 4) gives 0, 1, 3, 4: centres at a quarter, clamped at the border; maps go like images."""
    row = torch.tensor([[[0.0, 4.0]]])  # (1, 1, 2)
    assert resize(row, (1, 4)).tolist() == [[[0, 1, 3, 4]]]
    assert torch.equal(resize(row[:, None], (1, 4))[:, 0], resize(row, (1, 4)))
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        resize(row[0], 4)


@pytest.mark.parametrize(("padding", "fold"), [("reflect", reflected), ("zeros", nothing_beyond)])
def test_blur_equals_a_loop_over_pixels(padding, fold):
    """The blur is the plain convolution, also where the kernel is wider than the image and folds repeatedly."""
    images = torch.rand(2, 3, 6, 4, dtype=torch.float64)
    blurred = gaussian_blur(images, 3.0, kernel_size=15, padding=padding)
    expected = convolve_slowly(images[1, 2].numpy(), gaussian_kernel(15, 3.0), fold)
    np.testing.assert_allclose(blurred[1, 2].numpy(), expected, atol=1e-12)
    assert torch.allclose(gaussian_blur(images[:, 0], 3.0, kernel_size=15, padding=padding), blurred[:, 0])


def test_blur_passes_gradients_and_refuses_nonsense():
    """Its gradient is exact (gradcheck); even kernels, no width and unknown paddings are errors."""
    images = torch.rand(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gaussian_blur(x, 1.0), images)
    for options, message in [({"kernel_size": 4}, "odd"), ({"padding": "wrap"}, "'reflect' or 'zeros'")]:
        with pytest.raises(ValueError, match=message):
            gaussian_blur(images, 1.0, **options)
    with pytest.raises(ValueError, match="positive sigma"):
        gaussian_blur(images, 0.0)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (lambda maps: maps.half(), torch.float32),
        (lambda maps: maps[:, None].bfloat16().requires_grad_(), torch.float32),
        (lambda maps: maps.double(), torch.float64),
        (lambda maps: maps.numpy().astype("float16")[:, None], torch.float32),
        (lambda maps: maps.numpy().astype(">f8"), torch.float64),  # of another machine's order of bytes
        (lambda maps: maps.flip(0, 2).numpy()[::-1, :, ::-1], torch.float32),  # negative strides
        (lambda maps: maps.numpy().astype("uint8"), torch.float32),
    ],
)
def test_maps_of_any_library_are_the_same_maps(given, dtype):
    """Arrays and tensors of any real type, (N, H, W) or (N, 1, H, W), give the same values, single or double."""
    maps = torch.arange(24.0).reshape(2, 3, 4)
    found = as_maps(given(maps), torch.zeros(2, 3, 3, 4))
    assert found.dtype == dtype
    assert not found.requires_grad
    assert found.tolist() == maps.tolist()
    assert torch.equal(rank_pixels(given(maps)), 11 - torch.arange(12).reshape(1, 3, 4).expand(2, 3, 4))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.rand(3, 4), r"\(3, 4\); .*; of a single map: maps\[None\]"),
        (np.ones((2, 3, 3, 4)), r"\(2, 3, 3, 4\); .*; reduce the channels first, e\.g\. abs\(maps\)\.sum\(1\)"),
        (np.ones((2, 6, 4, 3)), r"\(2, 6, 4, 3\); .*; reduce the channels first, e\.g\. abs\(maps\)\.sum\(-1\)"),
        (torch.rand(4), r"shape \(4,\); give a NumPy array or a tensor of real numbers, \(N, H, W\) or"),
        ([[[1.0]]], "maps are list; give a NumPy array or a tensor"),
        (np.ones((2, 3, 4), dtype=complex), "maps are complex128; give"),
        (torch.ones(2, 3, 4, dtype=torch.complex64), r"maps are torch\.complex64; give"),
        (np.array([[["a"]]]), "maps are <U1; give"),
        (torch.rand(1, 3, 4), r"maps are \(1, 3, 4\) and images \(2, 3, 3, 4\); give one map per image"),
        (torch.rand(2, 1, 2, 2), r"maps are \(2, 1, 2, 2\) and images .* resize\(as_maps\(maps\), \(3, 4\)\)"),
    ],
)
def test_other_maps_are_named_with_the_way_to_mend_them(maps, message):
    """A single map, channels, another size or number, and what is no numbers: the shape, what is taken, the fix."""
    with pytest.raises(ValueError, match=message):
        as_maps(maps, torch.zeros(2, 3, 3, 4))


def test_ranks_are_stable_and_row_major():
    """Rank 0 is the largest value and equal values keep the reading order, -0.0 and 0.0 included."""
    maps = torch.tensor([[[0.0, 2.0], [-0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert rank_pixels(maps).tolist() == [[[2, 0], [3, 1]], [[0, 1], [2, 3]]]


def test_ranks_refuse_nan_and_name_the_image():
    """The error says which images carry NaN."""
    maps = torch.zeros(3, 2, 2)
    maps[1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"images \[1\] contain NaN"):
        rank_pixels(maps)


def test_keep_top_keeps_exactly_the_count_whatever_the_ties():
    """Every count from none to all is exact on a constant map and on a map of few values."""
    maps = torch.stack([torch.zeros(5, 7), torch.randint(3, (5, 7)).float()])
    ranks = rank_pixels(maps)
    for count in range(36):
        assert keep_top(ranks, count).sum((1, 2)).tolist() == [count, count]
    assert keep_top(ranks, torch.tensor([3, 11])).sum((1, 2)).tolist() == [3, 11]
    kept = keep_top(ranks, 9)[1]
    assert maps[1][kept].min() >= maps[1][~kept].max()
    with pytest.raises(ValueError, match=r"0\.\.35"):
        keep_top(ranks, 36)
    with pytest.raises(TypeError, match="whole numbers"):
        keep_top(ranks, 0.5)


def test_perturb_blends_all_channels_of_a_pixel():
    """images * keep + baseline * (1 - keep) with a fractional mask, and an exact choice with a bool mask."""
    images, other = torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2)
    keep = torch.tensor([[[1.0, 0.0], [0.25, 0.5]]])
    blended = perturb(images, keep, other)
    for y in range(2):
        for x in range(2):
            share = keep[0, y, x]
            expected = images[0, :, y, x] * share + other[0, :, y, x] * (1 - share)
            assert torch.allclose(blended[0, :, y, x], expected)
    chosen = perturb(images, keep > 0.4, other)
    assert torch.equal(chosen[..., 0, 0], images[..., 0, 0])
    assert torch.equal(chosen[..., 1, 0], other[..., 1, 0])
    with pytest.raises(ValueError, match="height and width"):
        perturb(images, keep[..., :1], other)


def test_unit_range_is_per_map_and_constant_maps_are_zero():
    """Each map fills 0..1 on its own; a constant map divides by nothing and becomes 0."""
    maps = torch.tensor([[[-1.0, 1.0], [3.0, 0.0]], [[7.0, 7.0], [7.0, 7.0]]])
    assert unit_range(maps).tolist() == [[[0, 0.5], [1, 0.25]], [[0, 0], [0, 0]]]


def test_rise_kernel_is_the_published_one():
    """At 224: 11x11, centre 0.0088326, edge 0.00827, corner 0.00774, sum 1, equal to scipy's filtered delta."""
    weights = rise_weights(224).numpy()
    kernel = weights[:, None] * weights
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    np.testing.assert_allclose(kernel, gaussian_filter(delta, 5), atol=1e-15)
    assert kernel[5, 5] == pytest.approx(0.0088326, abs=5e-8)
    assert kernel[0, 5] == pytest.approx(0.00827, abs=5e-6)
    assert kernel[0, 0] == pytest.approx(0.00774, abs=5e-6)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("size", "width"), [(224, 11), (112, 5), (96, 5), (64, 3), (8, 3)])
def test_rise_kernel_is_odd_at_every_size(size, width):
    """The scaled kernel is the nearest odd width, never a single pixel, and keeps its sum."""
    weights = rise_weights(size)
    assert len(weights) == width
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["rise_blur", "rise_blur_gauss"])
def test_rise_blur_pads_with_the_mean_colour(name):
    """Equal to: normalise, convolve with zero padding, undo the normalisation, at 112 pixels (5x5, sigma 2.5)."""
    mean, std = np.array([0.25, 0.5, 0.75]), np.array([0.2, 0.3, 0.4])
    images = torch.rand(1, 3, 112, 112, dtype=torch.float64)
    images[..., 10:, :] = images[..., 10:11, :]  # only the first rows are compared
    delta = np.zeros((5, 5))
    delta[2, 2] = 1
    kernel = gaussian_filter(delta, 2.5) if name == "rise_blur" else gaussian_kernel(5, 2.5)
    got = baseline(name, Normalising(), images)[0, 2, :4].numpy()
    normalised = ((images[0, 2].numpy() - mean[2]) / std[2])[:8]
    expected = convolve_slowly(normalised, kernel, nothing_beyond)[:4] * std[2] + mean[2]
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_blur_baseline_is_sigma_10_and_55_wide_at_224():
    """One bright pixel spreads to exactly 27 pixels on each side, with the Gaussian's ratio of neighbours."""
    images = torch.zeros(1, 3, 224, 224, dtype=torch.float64)
    images[..., 112, 112] = 1
    row = baseline("blur", Normalising(), images)[0, 0, 112]
    assert row.nonzero().flatten().tolist() == list(range(85, 140))
    assert float(row[122] / row[112]) == pytest.approx(math.exp(-0.5))
    assert float(row[100:].sum() / row[:125].sum()) == pytest.approx(1)


def test_every_baseline_is_an_image():
    """All named baselines have the images' shape and type, lie in [0, 1], and leave the images as they are."""
    images = torch.rand(2, 3, 20, 30)
    before = images.clone()
    for name in BASELINES:
        result = baseline(name, Normalising(), images)
        assert result.shape == images.shape, name
        assert result.dtype == images.dtype, name
        assert result.min() >= 0, name
        assert result.max() <= 1, name
    assert torch.equal(images, before)
    assert baseline("black", None, images).max() == 0
    assert baseline("mean", Normalising(), images)[1, :, 3, 4].tolist() == [0.25, 0.5, 0.75]
    flat = torch.full((1, 3, 20, 30), 0.3)
    assert torch.allclose(baseline("blur", None, flat), flat)


MEAN, STD = (0.25, 0.5, 0.75), (0.2, 0.3, 0.4)


class Holding(nn.Module):
    """A module with attributes, and with others inside."""

    def __init__(self, *inside, **attributes):
        super().__init__()
        self.inside = nn.Sequential(*inside)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images):
        return self.inside(images)


def weighing():
    return nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize(
    "model",
    [
        Normalising(),
        Holding(mean=MEAN),
        nn.Sequential(Normalize(MEAN, STD), weighing()),
        nn.Sequential(weighing(), v2.Normalize(MEAN, STD)),  # defined last, called first
        Holding(weighing(), v2.Compose([v2.Resize(4), v2.Normalize(MEAN, STD)])),
        Holding(nn.Sequential(weighing(), Normalize(torch.tensor(MEAN), STD))),
        nn.Sequential(Holding(mean=torch.tensor(MEAN).reshape(1, 3, 1, 1), std=list(STD)), weighing()),
        Holding(Holding(pixel_mean=nn.Buffer(torch.tensor(MEAN)), pixel_std=STD), weighing(), nn.BatchNorm2d(3)),
        nn.DataParallel(nn.Sequential(Normalize(MEAN, STD), weighing())),
        torch.compile(nn.Sequential(Holding(mean=MEAN, std=STD), weighing())),
        Holding(Normalize(MEAN, STD), Holding(mean=MEAN, std=STD)),  # twice the same
        Holding(Holding(mean=MEAN, std=STD), weighing(), Holding(mean=(9, 9, 9), std=STD)),  # of features: not taken
        Holding(Holding(mean=MEAN, std=STD), Holding(mean=(0.1, 0.2), std=(1, 1)), Holding(mean=(1, 1, 1))),
    ],
)
def test_the_mean_colour_is_found_where_a_model_normalises(model):
    """In its own mean, any Normalize, or mean and std of three values that no weights precede, however wrapped."""
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.tensor(MEAN).double()[:, None, None].expand_as(images)
    assert torch.equal(baseline("mean", model, images), expected)


def test_a_normalize_of_one_value_has_it_for_each_channel():
    assert baseline("mean", nn.Sequential(Normalize([0.5], [0.5])), torch.rand(1, 3, 2, 2)).eq(0.5).all()


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Sequential(nn.BatchNorm2d(3)), "none"),
        (nn.Sequential(weighing(), Holding(mean=MEAN, std=STD)), "none"),
        (Holding(Holding(mean=MEAN, std=(1, 0, 1)), Holding(mean="grey", std=1), Holding(mean=MEAN)), "none"),
        (nn.Sequential(Normalize(MEAN, STD), v2.Normalize([0.5], [0.5])), r"\[0.25, 0.5, 0.75\] and \[0.5, 0.5, 0.5\]"),
    ],
)
def test_no_mean_colour_or_several_are_an_error(model, found):
    """Batch norms, features, what has no std: none of them says what black means to the network."""
    with pytest.raises(ValueError, match=f"normalisation maps to zero, and found {found}; choose the baseline 'black'"):
        baseline("mean", model, torch.rand(1, 3, 4, 4))


def test_baseline_errors_name_what_is_allowed():
    """Unknown names list the names, a model without a mean colour is told so, a tensor must broadcast."""
    images = torch.rand(1, 3, 8, 8)
    colour = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    assert torch.equal(baseline(colour, None, images)[0, :, 5, 5], colour.flatten())
    with pytest.raises(ValueError, match="choose one of black, mean, blur, rise_blur, rise_blur_gauss"):
        baseline("grey", None, images)
    with pytest.raises(ValueError, match=r"found none;.*'black' or 'blur'.*\n.*\nmodel = Target\(network"):
        baseline("mean", nn.Identity(), images)
    with pytest.raises(ValueError, match="does not broadcast"):
        baseline(torch.zeros(4, 1, 1), None, images)


def test_what_resizing_leaves_of_white_is_a_pixel():
    """1 + 1e-6 is white, as interpolated white pixels are; values of a normalised image are refused, and NaN."""
    white = torch.ones(1, 3, 4, 4)
    for images in (white * (1 + 1e-6), -1e-6 * white, white):
        require_pixels(images, "give pixels")
    for images in (1.01 * white, white - 1.01, white * float("nan")):
        with pytest.raises(ValueError, match=r"images reach from .*; give pixels"):
            require_pixels(images, "give pixels")
