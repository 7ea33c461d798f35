"""Which layers return a map of the image, and in which layout. Decided by evidence.

Shapes and names of classes do not tell: (N, h, w, C) reads as (N, C, h, w), attention is (N, heads, T, T), tokens may
begin with class, distillation and register tokens, and a network of position biases never sees the image. So six
pictures of noise go through the network once: one, four that differ from it in the left, right, upper or lower half,
and the one again. How much each place of an output answers to either half is its coordinate; a map is what has
coordinates in order.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from xai_utils.networks.layers import bare, evaluating, find_layer, layer_root, observed
from xai_utils.networks.layouts import Layout, tensor_of

IN_ORDER = 0.5  # least correlation of coordinates with columns and rows; noise of 36 places or more stays below
FEW = 16  # places, on which chance alone may bring coordinates in order or out of it
MOST_PREFIX = 32  # tokens before the grid's: class, distillation, registers
SQUEEZED = 2.0  # the most that a patch may be higher than wide, or wider than high


@dataclass(frozen=True)
class Seen:
    """One map of the probe: the layer's name, its layout, channels and scale (how often the image was halved)."""

    name: str
    layout: Layout
    channels: int
    scale: int
    rectified: bool  # nothing is negative
    pooled: bool  # pooling or interpolation made it: it shows no more than what it was made of
    block: bool  # it has layers of its own


class _Pooled(TorchFunctionMode):
    """While active, remembers which tensors pooling or interpolation has made: `made(output)`."""

    NAMES = ("max_pool2d", "avg_pool2d", "lp_pool2d", "interpolate", "upsample")

    def __init__(self):
        super().__init__()
        self.outputs = WeakTensorKeyDictionary()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        name = getattr(function, "__name__", "")
        if isinstance(output, torch.Tensor) and any(part in name for part in self.NAMES):
            self.outputs[output] = True
        return output

    def made(self, output):
        return self.outputs.get(output, False)


class Probe(NamedTuple):
    """What one look at a network has shown."""

    maps: tuple[Seen, ...]  # in the order in which their layers finish
    returned: dict[str, str]  # of all layers that were run, in words
    choices: dict  # what was decided from it (defaults.py)


_known = WeakKeyDictionary()  # model -> {(its layers, the images' shape): Probe}


def probed(model, images):
    """What a pass of `images` (N, 3, H, W) would leave of maps: a Probe.

    One pass of six images of that size, kept for the model as long as its layers are the same; which weights they
    have does not matter. A layer that is called several times counts with its last call.
    """
    root = layer_root(model)
    key = tuple(map(id, root.modules())), tuple(images.shape[1:])
    kept = _known.setdefault(root, {})
    if key not in kept:
        found = _look(model, images)
        if not found.maps:
            return found  # a network that answers nothing yet may be filled with weights later
        kept[key] = found
    return kept[key]


def layouts(model, images):
    """Layer name -> Layout of all layers that return a map of the image, in the order in which they finish."""
    return {seen.name: seen.layout for seen in probed(model, images).maps}


def layout_of(model, images, layer):
    """The Layout of one layer; ValueError where the name is unknown, or the layer returns no map of the image."""
    find_layer(model, layer)
    found, size = probed(model, images), f"{images.shape[-2]} x {images.shape[-1]} pixels"
    for each in found.maps:
        if each.name == layer:
            return each.layout
    if layer not in found.returned:
        raise ValueError(f"layer {layer!r} is not run by the model's forward pass; choose another layer")
    raise ValueError(
        f"layer {layer!r} returns {found.returned[layer]} for images of {size}, no map of the image with more than one "
        "place; choose a layer that does (default: cam_layer), or larger images"
    )


def _probe_images(images):
    """Noise (6, C, H, W) in [0, 1]: one picture, four with another half, and the first again."""
    generator = torch.Generator().manual_seed(0)
    first, other = torch.rand(2, *images.shape[1:], generator=generator).to(images)
    height, width = images.shape[-2:]
    halves = torch.zeros(4, 1, height, width, dtype=torch.bool, device=images.device)
    halves[0, ..., : width // 2], halves[1, ..., width - width // 2 :] = True, True  # left and right
    halves[2, :, : height // 2], halves[3, :, height - height // 2 :] = True, True  # upper and lower
    return torch.cat([first[None], torch.where(halves, other, first), first[None]])


def _look(model, images):
    calls, pooled = [], _Pooled()  # (name, layer, shape, coordinates of each reading, rectified, pooled)
    last, found, returned = None, None, {}  # a container returns what its last layer returned

    def see(name, layer, output):
        nonlocal last, found
        given, output = output, tensor_of(output)
        returned[name] = (
            f"a {type(given).__name__}" if output is None else f"(N, {', '.join(map(str, output.shape[1:]))})"
        )
        if not name or output is None or output.ndim not in (3, 4) or len(output) != 6 or output.numel() == 0:
            return
        if not output.is_floating_point() or tuple(output.shape[1:]) == tuple(images.shape[1:]):
            return  # the image itself, normalised
        if output is not last or output._version != found[0]:
            last, found = output, (output._version, _coordinates(output), bool(output.amin() >= 0))
        calls.append((name, layer, output.shape[1:], *found[1:], pooled.made(output)))

    with torch.inference_mode(False), torch.no_grad(), observed(model, see), evaluating(model), pooled:
        bare(model)(_probe_images(images))
    aspect = images.shape[-2] / images.shape[-1]
    grids = _token_grids(calls, aspect)
    readings = [_readings(shape, coordinates, grids, aspect) for _, _, shape, coordinates, _, _ in calls]
    proven = {
        (layout, layout.channels(call[2]))
        for call, found in zip(calls, readings, strict=True)
        for layout, order in found.items()
        if order >= IN_ORDER
    }
    seen = []
    for (name, layer, shape, _, rectified, by_pooling), found in zip(calls, readings, strict=True):
        layout = _decided(found, shape, proven)
        if layout is not None:
            channels = layout.channels(shape)
            pixels = images.shape[-2] * images.shape[-1] / math.prod(layout.grid)
            scale = max(0, round(math.log2(pixels) / 2))
            block = next(layer.children(), None) is not None
            seen.append(Seen(name, layout, channels, scale, rectified, by_pooling, block))
    last = {each.name: place for place, each in enumerate(seen)}
    return Probe(tuple(each for place, each in enumerate(seen) if last[each.name] == place), returned, {})


def _coordinates(output):
    """How the places of an output (6, …) answer to the halves, read as maps and as tokens: kind -> (2, …) in [-1, 1].

    First from left to right, then from top to bottom; 0 where neither half changes anything, and where the same
    picture gives something else: the first axis is not the images' (a table of positions may be as long).
    """
    changes = (output[1:].float() - output[:1].float()).square()  # (5, …)
    changes, again = changes[:4], changes[4]
    if again.sum() > max(changes.mean(0).sum() / 2, 1e-3 * output[0].float().square().sum()):  # more than rounding
        changes = torch.zeros_like(changes)
    readings = {"tokens": (-1,)} if output.ndim == 3 else {"channels first": (1,), "channels last": (3,)}
    found = {}
    for kind, axis in readings.items():
        before, after = changes.sum(axis).unflatten(0, (2, 2)).unbind(1)  # left and upper, right and lower
        total = before + after
        faint = total <= 1e-9 * total.amax()
        found[kind] = torch.where(faint, 0, (after - before) / torch.where(faint, 1, total)).double().cpu()
    return found


def _correlation(values, positions):
    """Pearson's correlation; 0 where one of the two is constant, NaN or infinite."""
    values, positions = values.flatten() - values.mean(), positions.flatten() - positions.mean()
    norm = values.norm() * positions.norm()
    return float(values @ positions / norm) if norm > 0 and norm.isfinite() else 0.0


def _order(across, down):
    """How far coordinates (h, w) from left to right and from top to bottom are in order, in [-1, 1]: the worse one."""
    height, width = across.shape
    rows, columns = torch.meshgrid(_positions(height), _positions(width), indexing="ij")
    found = []
    if width > 1:
        found.append(_correlation(across, columns) - abs(_correlation(across, rows)))
    if height > 1:
        found.append(_correlation(down, rows) - abs(_correlation(down, columns)))
    return min(found, default=0.0)


def _positions(length):
    return torch.linspace(-1, 1, length, dtype=torch.float64) if length > 1 else torch.zeros(1, dtype=torch.float64)


def _token_grids(calls, aspect):
    """Number of tokens -> (h, w, prefix) that brings them in order best, over all layers with that many tokens.

    Where a network has more tokens their prefix is the surer one: fewer have the same, or none.
    """
    sums = {}
    for _, _, shape, coordinates, _, _ in calls:
        if len(shape) == 2 and shape[0] > 1:
            sums[shape[0]] = sums.get(shape[0], 0) + coordinates["tokens"]
    grids, prefixes = {}, set()
    for tokens in sorted(sums, reverse=True):
        possible = [
            (height, (tokens - prefix) // height, prefix)
            for prefix in range(min(MOST_PREFIX, tokens - 2) + 1)
            for height in range(1, tokens - prefix + 1)
            if (tokens - prefix) % height == 0 and _alike(height, (tokens - prefix) // height, aspect)
        ]
        possible = [grid for grid in possible if grid[2] in prefixes] or possible
        if possible:
            orders = {grid: _token_order(sums[tokens], *grid) for grid in possible}
            best = max((min(grid[:2]) > 1, order, grid) for grid, order in orders.items())[
                2
            ]  # a row only if it must be
            grids[tokens] = best
            prefixes |= {0, best[2]} if orders[best] >= IN_ORDER else set()
    return grids


def _alike(height, width, aspect):
    """Whether a grid has about the image's aspect, as patches that are about squares give it."""
    return 1 / SQUEEZED <= height / width / aspect <= SQUEEZED


def _token_order(coordinates, height, width, prefix):
    """As `_order`, of tokens (2, T) on a grid behind a prefix, which lies in the middle."""
    rows, columns = torch.meshgrid(_positions(height), _positions(width), indexing="ij")
    middle = torch.zeros(prefix, dtype=torch.float64)
    across, down = coordinates
    found = []
    if width > 1:
        found.append(_correlation(across, torch.cat([middle, columns.flatten()])))
    if height > 1:
        found.append(_correlation(down, torch.cat([middle, rows.flatten()])))
    return sum(found) / len(found)


def _readings(shape, coordinates, grids, aspect):
    """The ways to read an output of `shape` that the images move: Layout -> how far its coordinates are in order."""
    if not any(places.any() for places in coordinates.values()):
        return {}
    if "tokens" not in coordinates:
        found = {Layout(kind, tuple(places.shape[1:])): _order(*places) for kind, places in coordinates.items()}
        return {
            layout: order for layout, order in found.items() if layout.may_hold(shape) and _alike(*layout.grid, aspect)
        }
    if (tokens := coordinates["tokens"].shape[1]) not in grids:
        return {}
    height, width, prefix = grids[tokens]
    places = coordinates["tokens"][:, prefix:].unflatten(1, (height, width))
    return {Layout("tokens", (height, width), prefix): _order(*places)}


def _decided(readings, shape, proven):
    """The Layout of an output of `shape` with these readings, or None.

    One that is in order; else one that is in another layer with as many channels (the deeper, the more each place
    answers to both halves); else, on a few places, where order is chance, the only one.
    """
    best = max(readings, key=readings.get, default=None)
    if best is None or readings[best] >= IN_ORDER:
        return best
    for layout in readings:
        if (layout, layout.channels(shape)) in proven or math.prod(layout.grid) <= FEW:
            return layout
    return None
