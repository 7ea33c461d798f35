"""Pixel space: what every room shares about images and maps.

Images are float (N, C, H, W) in [0, 1], maps are float (N, H, W). Nothing here knows a network; a baseline that
needs one (the colour that the network's normalisation maps to zero) looks for that normalisation in its modules.

The papers state lengths and areas at 224 pixels. `scaled_length` and `scaled_area` are the one place that carries
them to another size.
"""

import math
from functools import lru_cache, wraps

import numpy as np
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter1d
from torch.nn import functional
from torchvision.transforms import Normalize, v2

REFERENCE_SIZE = 224
BLUR_SIGMA, BLUR_KERNEL = 10.0, 55  # the strong blur of meaningful perturbation, at 224 pixels
RISE_SIGMA, RISE_KERNEL = 5.0, 11  # the substrate of the insertion game, at 224 pixels
ROUNDING = 1e-5  # what resizing may leave of white and black pixels
MEAN_AND_STD = (("mean", "std"), ("pixel_mean", "pixel_std"))  # what modules that normalise call their values
RECIPE = """from xai_utils.networks import Target
model = Target(network, "my network", classes, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))"""


def in_full_precision(function):
    """`function(tensor or list of them, …)` without autocast, which would round its matrix products to half."""

    @wraps(function)
    def precise(tensors, *given, **options):
        first = tensors if isinstance(tensors, torch.Tensor) else tensors[0]
        with torch.autocast(first.device.type, enabled=False):
            return function(tensors, *given, **options)

    return precise


def unit_float(images):
    """Images as stored, uint8, as float32 in [0, 1]; others as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _pair(size):
    height, width = (size, size) if isinstance(size, int) else (int(side) for side in size)
    if height < 1 or width < 1:
        raise ValueError(f"size {size} has no pixels; give an int or (height, width), both at least 1")
    return height, width


def scaled_area(at_224, size):
    """An area or a pixel sum that holds at 224 pixels, at `size` (int or (H, W)): at_224 * H * W / 224²."""
    height, width = _pair(size)
    return float(at_224) * height * width / REFERENCE_SIZE**2


def scaled_length(at_224, size):
    """A length in pixels that holds at 224 pixels, at `size` (int or (H, W)): at_224 * sqrt(H * W) / 224."""
    height, width = _pair(size)
    return float(at_224) * math.sqrt(height * width) / REFERENCE_SIZE


def require_pixels(images, wanted):
    """ValueError, ending in what is `wanted`, where images leave [0, 1] by more than rounding, or are no numbers."""
    low, high = images.aminmax()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # "not": NaN is refused, too
        raise ValueError(f"images reach from {float(low):.4g} to {float(high):.4g}; {wanted}")


def resize(tensor, size):
    """Bilinear resize without corner alignment of (N, C, H, W) or (N, H, W) to `size` (int or (H, W))."""
    size = _pair(size)
    if tensor.ndim not in (3, 4):
        raise ValueError(f"cannot resize a tensor of shape {tuple(tensor.shape)}; give (N, C, H, W) or (N, H, W)")
    if tuple(tensor.shape[-2:]) == size:
        return tensor
    stacked = tensor if tensor.ndim == 4 else tensor[:, None]  # (N, C, H, W)
    resized = functional.interpolate(stacked, size=size, mode="bilinear", align_corners=False)
    return resized if tensor.ndim == 4 else resized[:, 0]


@lru_cache(maxsize=64)
def interpolation_matrix(length, size):
    """The matrix (size, length) of `resize` along one axis: bilinear, without corner alignment."""
    with torch.inference_mode(False):  # a cached tensor must serve every caller
        unit = torch.eye(length)[None, None]  # column j is the response to the j-th pixel
        return functional.interpolate(unit, size=(size, length), mode="bilinear", align_corners=False)[0, 0]


def _odd(length):
    """The odd kernel size nearest to `length`, at least 3: one pixel is no blur."""
    return 2 * max(1, round((length - 1) / 2)) + 1


@lru_cache(maxsize=64)  # made and sent to a GPU in each step it would stop the network there
def _smoothing_matrix(weights, length, padding, dtype, device):
    """The matrix (length, length) that convolves one axis with `weights`, numbers, as many as is odd.

    A matrix instead of a convolution, because reflection then folds as often as a kernel wider than the image
    needs, and because matrix products keep full precision where GPU convolutions round to TF32.
    """
    with torch.inference_mode(False):  # a cached tensor must serve every caller
        return _convolving(torch.tensor(weights, dtype=torch.float64), length, padding).to(device, dtype)


def _convolving(weights, length, padding):
    radius = len(weights) // 2
    positions = torch.arange(length)[:, None] + torch.arange(-radius, radius + 1)  # (length, k)
    values = weights.expand_as(positions).clone()
    if padding == "reflect":
        period = max(1, 2 * (length - 1))
        positions = positions.abs() % period
        positions = torch.minimum(positions, period - positions) if length > 1 else torch.zeros_like(positions)
    elif padding == "zeros":
        values[(positions < 0) | (positions >= length)] = 0
        positions = positions.clamp(0, length - 1)
    else:
        raise ValueError(f"padding {padding!r} is unknown; choose 'reflect' or 'zeros'")
    return torch.zeros(length, length, dtype=weights.dtype).scatter_add_(1, positions, values)


@in_full_precision
def _smooth(images, weights, padding):
    """Convolve both spatial axes of (..., H, W) with the same one-dimensional `weights`; differentiable."""
    kind = padding, images.dtype, images.device
    rows, columns = (_smoothing_matrix(tuple(weights.tolist()), length, *kind) for length in images.shape[-2:])
    return rows @ images @ columns.T


def gaussian_blur(images, sigma, *, kernel_size=None, padding="reflect"):
    """Gaussian blur of (N, C, H, W) images or (N, H, W) maps, each channel alone; differentiable.

    `sigma` in pixels of these images; `kernel_size` is odd, by default 5.5 sigma (55 at sigma 10);
    `padding` is "reflect" (constants stay constant) or "zeros".
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; a blur needs a positive sigma in pixels")
    kernel_size = _odd(5.5 * sigma) if kernel_size is None else int(kernel_size)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; give an odd positive number, e.g. {_odd(kernel_size)}")
    offsets = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return _smooth(images, weights / weights.sum(), padding)


def as_maps(maps, images=None):
    """Maps of any library as a tensor (N, H, W) without graph, float64 where they are, else float32.

    `maps`: a NumPy array or a tensor, (N, H, W) or (N, 1, H, W), on any device. `images`, if given, (N, C, H, W), are
    what they must be of: one map each, of their height and width. ValueError for all else, saying how to mend it.
    """
    wanted = "give a NumPy array or a tensor of real numbers, (N, H, W) or (N, 1, H, W)"
    if isinstance(maps, np.ndarray) and maps.dtype.kind in "biuf":
        wide = maps.dtype.kind == "f" and maps.dtype.itemsize > 4
        maps = torch.from_numpy(maps.astype(np.float64 if wide else np.float32, order="C"))  # of any strides and bytes
    elif not isinstance(maps, torch.Tensor) or maps.is_complex():
        raise ValueError(f"maps are {getattr(maps, 'dtype', type(maps).__name__)}; {wanted}")
    shape, mend = tuple(maps.shape), None
    if maps.ndim == 2:
        mend = "of a single map: maps[None]"
    elif maps.ndim == 4 and shape[1] != 1:
        mend = f"reduce the channels first, e.g. abs(maps).sum({-1 if shape[-1] < shape[1] else 1})"
    if mend or maps.ndim not in (3, 4):
        raise ValueError(f"maps have shape {shape}; {wanted}{f'; {mend}' if mend else ''}")
    maps = maps.detach().reshape(len(maps), *shape[-2:])
    if images is not None and maps.shape != (len(images), *images.shape[-2:]):
        mend = f"xai_utils.images: resize(as_maps(maps), {tuple(images.shape[-2:])})"
        given = f"maps are {shape} and images {tuple(images.shape)}"
        raise ValueError(f"{given}; give one map per image, of its height and width ({mend})")
    return maps if maps.dtype == torch.float64 else maps.float()


def finite_maps(maps, images=None):
    """`as_maps`, and a ValueError that names the images whose maps are not finite."""
    maps = as_maps(maps, images)
    finite = maps.flatten(1).isfinite().all(1)
    if not finite.all():
        broken = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"the maps of images {broken} contain NaN or infinite values; explain them again")
    return maps


def rank_pixels(maps, images=None):
    """Ranks (N, H, W) int64 of the pixels of `maps` (as in `finite_maps`): 0 = most salient, ties by row-major index.

    A stable sort, so that any count of top pixels is exact even on a constant map.
    """
    maps = finite_maps(maps, images)
    flat = maps.flatten(1)  # (N, H*W)
    order = torch.argsort(flat, dim=1, descending=True, stable=True)
    positions = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions).reshape(maps.shape)


def rank_correlation(first, second):
    """Spearman's correlation of two stacks of maps (N, H, W), image by image: (N,), in [-1, 1].

    Equal values share their mean rank. Equal maps have 1, constant ones too; a constant map and one that is not have
    0, for it orders nothing. NaN where a map is not finite.
    """
    flat = [maps.detach().flatten(1).cpu().double().numpy() for maps in (first, second)]
    ranks = [stats.rankdata(values, axis=1) for values in flat]
    centred = [values - values.mean(1, keepdims=True) for values in ranks]
    spread = np.sqrt(np.prod([(values**2).sum(1) for values in centred], axis=0))
    correlation = (centred[0] * centred[1]).sum(1) / np.where(spread > 0, spread, 1)
    correlation = np.where((flat[0] == flat[1]).all(1), 1, correlation.clip(-1, 1))
    finite = np.logical_and(*(np.isfinite(values).all(1) for values in flat))
    return torch.from_numpy(np.where(finite, correlation, np.nan)).float()


def keep_top(ranks, count):
    """The `count` most salient pixels as bool (N, H, W), exactly; `count` is an int or one per image (N,)."""
    pixels = ranks.shape[-2] * ranks.shape[-1]
    counts = torch.as_tensor(count, device=ranks.device)
    if counts.is_floating_point():
        raise TypeError(f"count is {count!r}; give whole numbers of pixels, rounded by the caller")
    if ((counts < 0) | (counts > pixels)).any():
        raise ValueError(f"cannot keep {count} pixels of maps with {pixels}; the count lies in 0..{pixels}")
    return ranks < counts.reshape(-1, 1, 1)


def perturb(images, keep, baseline):
    """images * keep + baseline * (1 - keep): all channels of a pixel go together. Differentiable in all three.

    `images` and `baseline` (N, C, H, W), `keep` (N, H, W) bool or float in [0, 1]; float masks blend.
    """
    if keep.ndim != 3 or keep.shape[-2:] != images.shape[-2:]:
        shapes = f"keep is {tuple(keep.shape)} and images are {tuple(images.shape)}"
        raise ValueError(f"{shapes}; keep must be (N, H, W) with the images' height and width")
    keep = keep[:, None]  # (N, 1, H, W)
    if keep.dtype == torch.bool:
        return torch.where(keep, images, baseline)
    return images * keep + baseline * (1 - keep)


def unit_range(maps):
    """Each map (S - min) / (max - min), in [0, 1]; a constant map becomes 0, for it says nothing. (N, H, W).

    NaN makes its map NaN.
    """
    low = maps.amin((-2, -1), keepdim=True)
    span = maps.amax((-2, -1), keepdim=True) - low
    return torch.where(span == 0, 0, (maps - low) / torch.where(span == 0, 1, span))


def _values(holder, name, images, sizes):
    """The values of an attribute (C,), like the images, if it holds as many numbers as one of `sizes`; else None."""
    found = getattr(holder, name, None)
    try:
        found = torch.as_tensor(found, dtype=images.dtype, device=images.device).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        return None
    return found.expand(images.shape[1]) if found.numel() in sizes else None


def _normalisation_means(model, images):
    """What the normalisations inside `model` map to zero: a list of (C,).

    A normalisation is a torchvision `Normalize` anywhere in the model (in a v2 `Compose`, too), or a module with mean
    and std (pixel_mean and pixel_std), one value for each channel, that no module with weights precedes: features have
    such numbers, too. The model itself may have its mean alone.
    """
    found, sees_pixels, channels = [], True, images.shape[1]
    modules = list(getattr(model, "modules", lambda: [model])())
    composed = [each for module in modules if isinstance(module, v2.Compose) for each in module.transforms]
    for module in (*modules, *composed):
        transform = isinstance(module, Normalize | v2.Normalize)
        for names in MEAN_AND_STD if sees_pixels or transform else ():
            mean, std = (_values(module, name, images, (channels, 1) if transform else (channels,)) for name in names)
            if mean is not None and (module is model or (std is not None and (std > 0).all())):
                found.append(mean)
        sees_pixels = sees_pixels and not any(True for _ in getattr(module, "parameters", list)(recurse=False))
    return found


def _mean_colour(model, images):
    """The colour (1, C, 1, 1) that the model's normalisation maps to zero; ValueError where there is not just one."""
    found = _normalisation_means(model, images)
    if not found or any(not torch.equal(each, found[0]) for each in found):
        told = " and ".join(str([round(value, 4) for value in each.tolist()]) for each in found) or "none"
        raise ValueError(
            f"this baseline needs the colour that the model's normalisation maps to zero, and found {told}; choose the "
            f"baseline 'black' or 'blur', or give the tensor, or a Target that normalises:\n{RECIPE}"
        )
    return found[0].reshape(1, -1, 1, 1)


def black(model, images):
    """All pixels zero."""
    return torch.zeros_like(images)


def mean(model, images):
    """The colour that the network's normalisation maps to zero."""
    return _mean_colour(model, images).expand_as(images)


def blur(model, images):
    """Gaussian of sigma 10, 55 wide, with reflection (both at 224 pixels)."""
    size = images.shape[-2:]
    kernel_size = _odd(scaled_length(BLUR_KERNEL, size))
    return gaussian_blur(images, scaled_length(BLUR_SIGMA, size), kernel_size=kernel_size)


def rise_weights(size):
    """One axis (k,) of the kernel that RISE's published evaluation blurs with; its outer product is the kernel.

    A delta of 11 pixels smoothed with sigma 5 under reflection (both at 224 pixels): sum 1 and almost flat, because
    the tails that leave the 11 pixels are folded back.
    """
    delta = torch.zeros(_odd(scaled_length(RISE_KERNEL, size)), dtype=torch.float64)
    delta[len(delta) // 2] = 1
    return torch.from_numpy(gaussian_filter1d(delta.numpy(), scaled_length(RISE_SIGMA, size), mode="reflect"))


def rise_blur(model, images):
    """RISE's reference kernel with zero padding in normalised space: beyond the border lies the mean colour."""
    colour = _mean_colour(model, images)
    return colour + _smooth(images - colour, rise_weights(images.shape[-2:]), "zeros")  # the std cancels


def rise_blur_gauss(model, images):
    """As `rise_blur`, with a plain truncated Gaussian (sigma 5, 11 wide at 224 pixels) instead of RISE's kernel."""
    colour, size = _mean_colour(model, images), images.shape[-2:]
    options = {"kernel_size": _odd(scaled_length(RISE_KERNEL, size)), "padding": "zeros"}
    return colour + gaussian_blur(images - colour, scaled_length(RISE_SIGMA, size), **options)


def noisy_copies(images, samples, noise_fraction, generator, chunk):
    """Pairs (noisy images (n, C, H, W), their row in the batch (n,)), image-major, at most `chunk` at a time.

    Gaussian noise of `noise_fraction` of each image's (max - min), drawn copy by copy: `chunk` changes no draw.
    """
    device = images.device if generator is None else generator.device
    sigma = noise_fraction * (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))  # (N,)
    all_rows = torch.arange(len(images), device=images.device).repeat_interleave(samples)
    for rows in all_rows.split(chunk):
        draws = [torch.randn(images.shape[1:], generator=generator, device=device) for _ in rows]
        noise = torch.stack(draws).to(images)  # one draw per copy: the stream does not depend on `chunk`
        yield images[rows] + sigma[rows][:, None, None, None] * noise, rows


def random_backgrounds(images, generator=None):
    """What hidden pixels show while a mask predictor learns (N, C, H, W), in [0, 1]: for each image, with equal odds,
    its strong blur, or one random colour (0.5 ± 0.165 in each channel) with noise (standard deviation 0.055)
    (DGLE §4.1; figures of Dabkowski & Gal's code, which has pixels in [-1, 1]).
    """

    def draw(function, *shape):
        return function(*shape, generator=generator, device=images.device, dtype=images.dtype)

    number, channels = images.shape[:2]
    colour = 0.5 + 0.165 * (2 * draw(torch.rand, number, channels, 1, 1) - 1)
    noisy = (colour + 0.055 * draw(torch.randn, *images.shape)).clamp(0, 1)
    return torch.where(draw(torch.rand, number, 1, 1, 1) < 0.5, blur(None, images), noisy)


BASELINES = {"black": black, "mean": mean, "blur": blur, "rise_blur": rise_blur, "rise_blur_gauss": rise_blur_gauss}


def baseline(name_or_tensor, model, images):
    """What removed pixels show, (N, C, H, W): a name in `BASELINES`, or a tensor that broadcasts to `images`."""
    if isinstance(name_or_tensor, torch.Tensor):
        try:
            return name_or_tensor.to(images).expand_as(images)
        except RuntimeError as error:
            shapes = f"{tuple(name_or_tensor.shape)} does not broadcast to the images' {tuple(images.shape)}"
            raise ValueError(f"the baseline's shape {shapes}") from error
    if name_or_tensor not in BASELINES:
        raise ValueError(f"baseline {name_or_tensor!r} is unknown; choose one of {', '.join(BASELINES)}, or a tensor")
    return BASELINES[name_or_tensor](model, images)
