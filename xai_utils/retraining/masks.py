"""What ROAR and KAR take away: pixels of the images, or positions of one layer inside the network.

Masks come from maps alone, never from a label, so that they cannot tell a network what to answer.
"""

import torch
from torch import nn

from xai_utils.explainers.activation_statistics import PRE_ACTIVATION, STATISTICS
from xai_utils.images import keep_top, perturb, rank_pixels
from xai_utils.networks import captured, deep_copy, evaluating, find_layer, pre_activations, unpacked
from xai_utils.networks.layers import observed
from xai_utils.networks.layouts import tensor_of, with_tensor
from xai_utils.networks.probe import layout_of


def kept_count(share, positions):
    """How many of `positions` a share in (0, 1] keeps: rounded, and at least one."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; the part of the positions that is kept lies in (0, 1]")
    return max(1, round(share * positions))


def kept_positions(maps, count, *, least=False):
    """The `count` most (or `least`) salient positions of maps (N, h, w): bool, exactly; ties by row-major index."""
    return keep_top(rank_pixels(-maps if least else maps), count)


class LayerMasked(nn.Module):
    """A network that sees one of its layers only at few positions; see `layer_masked_model`."""

    def __init__(self, model, layer, *, statistic, share, least, scale, layout):
        super().__init__()
        self.model, self.layer, self.known = model, layer, layout
        self.statistic, self.share, self.least, self.scale = statistic, share, least, scale
        self.frozen = []  # a plain list of modules that the model holds anyway

    def _kept(self, _, output):
        activation = self.layout.as_map(output).detach()
        if self.statistic is None:
            saliency = torch.rand(len(activation), *activation.shape[2:], device=activation.device)
        else:  # what is not behind a ReLU is rectified here, as the explainer does
            rectified = activation if self.statistic in PRE_ACTIVATION else activation.clamp(min=0)
            saliency = STATISTICS[self.statistic](rectified)
        return kept_positions(saliency, kept_count(self.share, saliency[0].numel()), least=self.least)

    def forward(self, images):
        def mask(layer, _, output):
            positions, tensor = kept[layer], tensor_of(output)  # (N, h, w), made by the hook before this one
            factor = positions[0].numel() / positions[0].sum() if self.scale else 1
            features = self.layout.as_map(tensor)
            features = features * (positions[:, None] * factor).to(features.dtype)
            return with_tensor(output, self.layout.with_map(tensor, features))

        self.layout = self.known or layout_of(self.model, images, self.layer)
        capture = pre_activations if self.statistic in PRE_ACTIVATION else captured
        masked = {self.layer: find_layer(self.model, self.layer)}
        with capture(self.model, [self.layer], reduce=self._kept) as kept, observed(self.model, mask, modules=masked):
            return unpacked(self.model(images))

    def train(self, mode=True):
        """As in every module, but what is frozen stays in eval mode: its batch statistics do not move."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def freeze_trunk(self, images):
        """Freeze every module that is done when the masked layer is, as one pass of `images` (N, 3, H, W) shows."""
        finished, last = [], find_layer(self.model, self.layer)

        def finish(_, module, __):
            if last not in finished:
                finished.append(module)

        modules = dict(self.model.named_modules())
        with observed(self.model, finish, modules=modules), evaluating(self.model), torch.no_grad():
            self.model(images)
        self.frozen = [module.requires_grad_(False) for module in finished]
        return self.train(self.training)


def layer_masked_model(model, layer, *, statistic, share, least=False, scale=True, layout=None):
    """A copy of `model` in which `layer` keeps only the positions that its own `statistic` finds salient.

    The layer's output (N, C, h, w) is multiplied by a binary mask, the same for all channels, of exactly
    max(1, round(share * h * w)) positions: the most salient (KAR), or with `least` the least salient ones (ROAR,
    FastCAM §2.4). `statistic` is a name of `STATISTICS`, or None: positions drawn anew in each pass, from torch's
    global generator. Where no ReLU ends the layer, negative values count as 0 for the statistics that need a ReLU's
    output. `scale` multiplies what is kept by 1 / (part kept), as the published code does. The mask is a
    constant to the gradient. `layout`: the layer's, where it is known for images of that size; a probe of the network,
    which tells it otherwise, takes longer than a short training. `freeze_trunk(images)` leaves only what lies behind
    the layer to be trained.
    """
    if statistic is not None and statistic not in STATISTICS:
        raise ValueError(f"statistic {statistic!r} is unknown; choose one of {', '.join(STATISTICS)}, or None (random)")
    find_layer(model, layer)
    kept_count(share, 1)
    copied = deep_copy(model)
    options = {"statistic": statistic, "share": share, "least": least, "scale": scale, "layout": layout}
    return LayerMasked(copied, layer, **options).train(model.training)


def thresholds(percentages):
    """Every percentage and its complement, ascending: the shares of pixels at which images are masked."""
    return sorted({share for percent in percentages for share in (percent, 100 - percent)})


def levels(maps, percentages):
    """What masking needs to know of maps (N, H, W): for each pixel the number of `percentages` whose top lacks it.

    uint8 (N, H, W). `percentages` ascend; the top of p % are exactly round(p / 100 * H * W) pixels, ties by row-major
    index, so it is where the level is at most p's place in `percentages`. One byte a pixel: ImageNet's fit a disk.
    """
    ranks = rank_pixels(maps)
    counts = [round(percent / 100 * ranks[0].numel()) for percent in percentages]
    return torch.stack([ranks >= count for count in counts]).sum(0).to(torch.uint8)


def masked_images(images, levels, place, *, keep, fill):
    """Images (N, 3, H, W) that keep (KAR) or lose (ROAR) the top pixels, all channels together.

    `levels` (N, H, W) as above, `place` the percentage's place in theirs; `fill` (3,) is the colour of what is gone.
    """
    top = torch.as_tensor(levels) <= place
    colour = torch.as_tensor(fill).to(images, non_blocking=True).reshape(1, 3, 1, 1)
    return perturb(images, top if keep else ~top, colour.expand_as(images))
