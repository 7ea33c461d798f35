"""Whether a map is one: it changes where the picture does. What the tests and the table of networks ask of layers.

The networks have random weights, so nobody knows what they see; but what is drawn into a corner must show in that
corner, in each of four, on images that are not squares, too. No map that is read in another order passes.
"""

import torch
from torch import nn
from torch.nn import functional

from xai_utils.explainers.smoe import statistic_maps
from xai_utils.networks import cam_layer, head_gradient

CORNERS = ("upper left", "upper right", "lower left", "lower right")


def settled(network, images):
    """A fresh network, in eval mode, with weights that let something of each place through; the network.

    Filters are weakened away from their middle: of random ones, a few layers smear a corner over the whole image.
    Fresh heads and ends of residual branches may be zeros, or 1e-6: nothing would reach the logits. Batch norms get
    the statistics of `images` (N, 3, H, W).
    """
    norms = [module for module in network.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.trunc_normal_(parameter, std=0.02)
            elif 0 < parameter.abs().amax() <= 1e-4 and parameter.unique().numel() == 1:
                parameter.fill_(0.2)
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > max(module.stride):
                module.weight.mul_(_peak(*module.kernel_size))
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        network(images)
    for norm in norms:
        norm.eval()
    return network


def _peak(height, width):
    """A window (h, w) over the taps of a filter: 1 in the middle, 0.14 beside it."""
    rows, columns = (torch.exp(-2 * (torch.arange(taps) - (taps - 1) / 2) ** 2) for taps in (height, width))
    return rows[:, None] * columns


def patched(height, width, pictures=4):
    """(5, n, 3, H, W) in [0, 1]: n pictures of faint noise, and the same with one texture in each of CORNERS."""
    generator = torch.Generator().manual_seed(1)
    images = (0.45 + 0.1 * torch.rand(pictures, 3, height, width, generator=generator)).repeat(5, 1, 1, 1, 1)
    high, wide = height * 2 // 5, width * 2 // 5
    texture = torch.rand(pictures, 3, high, wide, generator=generator).round()
    for corner in range(4):
        rows = slice(high) if corner < 2 else slice(-high, None)
        columns = slice(wide) if corner % 2 == 0 else slice(-wide, None)
        images[1 + corner, ..., rows, columns] = texture
    return images


def shown(maps):
    """How much each texture changes each quadrant (4 textures, 4 quadrants): maps (5, n, C, h, w) of `patched`.

    A change is one from the mean of the four pictures: as they show the same, what random attention, which is nearly
    uniform, spreads from a corner over all places is in each of them. A quadrant counts by what all four textures
    change there: random weights let some places answer to everything.
    """
    changes = (maps[1:] - maps[1:].mean(0)).double().square().sum(2).sqrt().mean(1)  # (4, h, w)
    quadrants = functional.adaptive_avg_pool2d(changes[:, None], 2).flatten(1)
    return quadrants / quadrants.mean(0)


def missed_corners(seen):
    """Those of CORNERS whose texture changes another quadrant more than its own, of what `shown` gives."""
    found = seen.argmax(1).tolist()
    return [name for own, name in enumerate(CORNERS) if found[own] != own]


def weighed_channels(model, images):
    """What Grad-CAM adds up, w_k A_k (5, n, C, h, w) of `patched`; w_k is that of the picture without texture."""
    activation, gradient, _, _ = head_gradient(model, images.flatten(0, 1), cam_layer(model, images[0]))
    weights = gradient[: images.shape[1]].mean((2, 3))
    return activation.unflatten(0, images.shape[:2]) * weights[..., None, None]


def cams_show(model, images):
    """{"the layer": what the layer of class activation maps shows of `patched` images}, by `shown`."""
    return {"the layer": shown(weighed_channels(model, images))}


def statistics_show(model, images):
    """Scale layer -> what its map of SMOE Scale shows of `patched` images, by `shown`."""
    maps = statistic_maps(model, images.flatten(0, 1))
    return {layer: shown(each.unflatten(0, images.shape[:2])[:, :, None]) for layer, each in maps.items()}


def missed(seen):
    """Layer -> the corners that it misses, of what `cams_show` or `statistics_show` gives; {} where none does."""
    found = {layer: missed_corners(each) for layer, each in seen.items()}
    return {layer: corners for layer, corners in found.items() if corners}
