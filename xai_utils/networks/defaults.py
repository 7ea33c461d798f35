"""The layers that methods read where none is named, and why: of any network, as a probe shows it (probe.py).

A network's scale is how often the image was halved. What ends a scale is the last map of that scale that is not the
inside of a layer which halves it once more.
"""

from typing import NamedTuple

import torch
from torch import nn
from torchvision import models

from xai_utils.networks.activations import head_gradient
from xai_utils.networks.answers import answering
from xai_utils.networks.layers import bare, layer_root, named_layers
from xai_utils.networks.probe import probed

RESNET_SCALES = ("relu", "layer1", "layer2", "layer3", "layer4")  # FastCAM §3; small ones halve less often than that
BLOCKS = 5  # of a network of one scale, spread over its depth


class NotApplicable(ValueError):
    """The method cannot explain this kind of network, whatever its options."""


class Choice(NamedTuple):
    """Layers (names) and, in words, why these."""

    layers: tuple[str, ...]
    why: str


def cam_layer(model, images):
    """The name of the layer that class activation maps explain by default; ValueError where the model has no map.

    The last stage's output: what ends the scale of the last map. Where the head reads class tokens alone, the last
    stage's places have no gradient: then the first map inside the last block, its norm (`describe` tells which it is).
    """
    return _chosen(model, images, _for_cams).layers[0]


def _chosen(model, images, choose):
    """The Choice of a function (model, images), made once for a network that was looked at."""
    choices = probed(model, images).choices
    if choose not in choices:
        choices[choose] = choose(model, images)
    return choices[choose]


def _for_cams(model, images):
    seen = _maps(model, images)
    last = _end(_outside(seen, seen[-1].scale))
    if _reached(model, images, last.name):
        return Choice((last.name,), "the last stage's output")
    answers = _reached(model, images, seen[0].name)  # not with a head of zeros, say
    if not (answers or last.layout.prefix):
        return Choice((last.name,), "the last stage's output; the logits depend on none")
    for block in _blocks([each for each in seen if each.scale == last.scale])[:-3:-1]:
        if answers and _reached(model, images, block.name):
            return Choice((block.name,), "the last block's output that the head reads")
        inside = next((each.name for each in seen if each.name.startswith(f"{block.name}.")), None)
        if inside and (not answers or _reached(model, images, inside)):
            return Choice((inside,), "the first map of the last block: of what follows the head reads the class token")
    return Choice((last.name,), "the last stage's output; the logits do not depend on it")


def scale_layers(model, images):
    """The names of the layers that end the network's spatial scales, finest first: a tuple.

    ResNets have their five in a table (FastCAM §3): in small ones two of them have one size. A network of one scale
    (ViT, Mixer) gives the outputs of five blocks spread over its depth. ValueError where it has neither.
    """
    return _chosen(model, images, _for_statistics).layers


def _for_statistics(model, images):
    seen = _maps(model, images)
    for name, module in named_layers(model).items():
        if isinstance(module, models.ResNet):
            ends = [f"{name}.{layer}" if name else layer for layer in RESNET_SCALES]
            ends = tuple(each.name for each in seen if each.name in ends)
            if len(ends) > 1:
                told = f"the scales of FastCAM (§3){' with more than one place' * (len(ends) < len(RESNET_SCALES))}"
                return Choice(ends, told)
    scales = sorted({each.scale for each in seen})
    ends = {scale: _outside(seen, scale) for scale in scales}
    names = tuple(_end(maps).name for maps in ends.values() if maps)
    blocks = [each.name for each in _blocks(seen)]
    if len(names) > 1:
        return Choice(names, "the ends of the stages, one for each scale")
    if len(blocks) > 1:
        count = min(BLOCKS, len(blocks))
        places = [round(len(blocks) * (place + 1) / count) - 1 for place in range(count)]
        return Choice(tuple(blocks[place] for place in places), f"{count} of {len(blocks)} blocks: there is one scale")
    raise NotApplicable(
        f"{type(layer_root(model)).__name__} has {len(names)} spatial scale{'s' * (len(names) != 1)} {list(names)} for "
        f"images of {images.shape[-2]} x {images.shape[-1]} pixels; scale statistics need maps of two sizes or two "
        "blocks: name layers with `layers`, or give larger images"
    )


def reached_scales(model, images):
    """Those of `scale_layers` whose places the logits depend on, which what is trained on the logits can read: a tuple.

    All but the last block where the head reads the class token alone.
    """
    names, seen = scale_layers(model, images), {each.name: each for each in probed(model, images).maps}
    return tuple(
        name for name in names if name not in seen or not seen[name].layout.prefix or _reached(model, images, name)
    )


def last_convolution(model, images):
    """The name of the convolution that runs last, before its norm and ReLU; those of ResNets' shortcuts do not count.

    ResNet-50: layer4.2.conv3. Where the network ends in branches (GoogLeNet) it is the last one's, and sees a part of
    the channels. NotApplicable where there is none in the last stage: what embeds a transformer's patches.
    """
    layers, seen = named_layers(model), [each for each in probed(model, images).maps if not each.pooled]
    found = [each for each in seen if isinstance(layers[each.name], nn.Conv2d) and "downsample" not in each.name]
    if not found:
        raise NotApplicable(_no_map(model, images, "convolution"))
    last = found[-1]
    blocks = [block for block in _blocks(seen)[-1:] if not last.name.startswith(f"{block.name}.")]
    if last.scale < seen[-1].scale or any(seen.index(last) < seen.index(block) for block in blocks):
        raise NotApplicable(
            f"{last.name}, the last convolution of {type(layer_root(model)).__name__}, stands before its last stage: "
            "it embeds patches, and does not see what the network makes of them; name a layer, such as cam_layer's"
        )
    return last.name


class Description(NamedTuple):
    """What methods read of a model by default; printed, a table."""

    rows: tuple[tuple[str, str, str, str, str], ...]  # for, layer, layout, grid, why

    HEAD = ("for", "layer", "layout", "grid", "why")

    def __str__(self):
        table = [Description.HEAD, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in table
        )


def describe(model, images):
    """The layers that class activation maps and scale statistics read of `model` by default, and why: a Description.

    `images` (N, 3, H, W): their size decides, too. ValueError where the model has no map of them.
    """
    seen, rows = {each.name: each.layout for each in probed(model, images).maps}, []
    for used, choose in (("class activation maps", _for_cams), ("statistics of scales", _for_statistics)):
        try:
            choice = _chosen(model, images, choose)
        except ValueError as error:
            if not rows:
                raise
            rows.append((used, "none", "", "", str(error)))
            continue
        for name in choice.layers:
            rows.append((used, name, str(seen[name]), " x ".join(map(str, seen[name].grid)), choice.why))
    return Description(tuple(rows))


def _no_map(model, images, kind):
    return (
        f"no {kind} of {type(layer_root(model)).__name__} returns a map of the image with more than one place for "
        f"images of shape {tuple(images.shape)}; name one with `layer`, or give larger images"
    )


def _maps(model, images):
    """What was seen of the network's maps, less those that pooling made: they show no more than what it was given."""
    found = [each for each in probed(model, images).maps if not each.pooled]
    if not found:
        raise NotApplicable(_no_map(model, images, "layer"))
    return found


def _outside(seen, scale):
    """The maps of one scale that are not the inside of a layer that takes such a map and halves it.

    A stage of transformers' Swin halves behind its blocks: they return what it took, and belong to the scale before.
    """
    halving, starts = {}, {}
    for place, each in enumerate(seen):
        starts.setdefault(each.name, place)
        for parent in _parents(each.name):
            starts.setdefault(parent, place)
    for each in seen:
        before = starts[each.name] - 1
        if each.block and before >= 0 and seen[before].scale == scale == each.scale - 1:
            halving[f"{each.name}."] = seen[before].channels
    built = {parent for each in seen if each.block for parent in _parents(each.name)}  # of blocks: no norm or branch
    return [
        each
        for each in seen
        if each.scale == scale
        and all(
            each.name in built and each.channels == given
            for layer, given in halving.items()
            if each.name.startswith(layer)
        )
    ]


def _parents(name):
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _end(maps):
    """Of the maps of one scale the last, if a ReLU made it; else the last that a block returns, no norm behind it."""
    blocks = [each for each in maps if each.block]
    return maps[-1] if maps[-1].rectified or not blocks else blocks[-1]


def _blocks(seen):
    """The longest row of blocks that stand side by side and return maps of one layout and as many channels.

    Of equally long ones the outer one: two blocks hold two attentions.
    """
    rows = {}
    for each in seen:
        if each.block:
            parent = each.name.rpartition(".")[0]
            rows.setdefault((parent, each.layout, each.channels), []).append(each)
    return max(rows.values(), key=lambda row: (len(row), -row[0].name.count(".")), default=[])


def _reached(model, images, layer):
    """Whether the logits change with the places of a layer's map."""
    with torch.no_grad():
        try:
            with answering(model, "logit"):
                _, gradient, _, _ = head_gradient(bare(model), images[:1], layer)
        except ValueError:
            return False
    return bool(gradient.any())
