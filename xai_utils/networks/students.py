"""AKD's students: a copy of a network with attention in it, which answers and tells what the attention changed.

A ResNet has attention in its blocks, as the paper. Any other network has it behind three of its stages.
"""

from typing import NamedTuple

import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from xai_utils.networks.answers import unpacked
from xai_utils.networks.attention import ATTENTION
from xai_utils.networks.defaults import NotApplicable, reached_scales
from xai_utils.networks.layers import deep_copy, find_layer, observed
from xai_utils.networks.layouts import Layout, tensor_of, with_tensor
from xai_utils.networks.probe import probed

DELTA_SOURCES = ("last", "mean")  # of a stage's blocks
STAGES = 3  # whose Δ the explanation network reads


def _require_known(attention, delta_source):
    for name, value, allowed in (
        ("attention", attention, ATTENTION),
        ("delta_source", delta_source, DELTA_SOURCES),
    ):
        if value not in allowed:
            raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(allowed)}")


def _require_places(images, features):
    """ValueError where the last stage's features (N, C, h, w) have no place to point at."""
    if min(features.shape[-2:]) < 2:
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels leave the last stage a map of "
            f"{features.shape[-2]} x {features.shape[-1]}, which has no place to point at; give images that leave "
            "2 x 2 or more (64 pixels do for a torchvision ResNet)"
        )


class AttentiveBlock(nn.Module):
    """A residual block of a ResNet with attention on its branch, just before the addition (AKD §3.3).

    features -> the block's output, and Δ (N, C, h, w), what attention did to the branch f: att ⊙ f - f. With
    `residual_attention` the branch becomes f + att ⊙ f, and Δ = att ⊙ f.
    """

    def __init__(self, block, attention, *, residual_attention, **options):
        super().__init__()
        self.block, self.residual_attention = block, residual_attention
        self.depth = 3 if isinstance(block, Bottleneck) else 2  # convolutions
        self.channels = getattr(block, f"bn{self.depth}").num_features
        self.attention = ATTENTION[attention](self.channels, **options)

    def forward(self, features):
        block, branch = self.block, features
        for place in range(1, self.depth + 1):
            branch = getattr(block, f"bn{place}")(getattr(block, f"conv{place}")(branch))
            if place < self.depth:
                branch = block.relu(branch)
        gated = self.attention(branch)
        kept = features if block.downsample is None else block.downsample(features)
        if self.residual_attention:
            return block.relu(kept + branch + gated), gated
        return block.relu(kept + gated), gated - branch


class AttentiveStudent(nn.Module):
    """A ResNet with one attention module in each block of its last three stages (AKD §3.3); 13 in a ResNet-50.

    Normalised images (N, 3, H, W) -> logits (N, K) and the three Δ of the stages, finest first, each (N, C, h, w).
    `network`, a torchvision ResNet (or ours), is copied, weights included. `attention`: a name of ATTENTION,
    with its `reduction` of the channels, its gates `opened` in the beginning or not.
    `delta_source`: a stage's Δ is its last block's, or the mean of its blocks'. ValueError for anything else.
    """

    def __init__(
        self, network, *, attention="cbam", reduction=16, opened=False, residual_attention=False, delta_source="last"
    ):
        super().__init__()
        if not isinstance(network, ResNet):
            raise ValueError(
                f"a {type(network).__name__} is no torchvision ResNet; choose one, or name `stages`: surrogate_of "
                "finds those of any network"
            )
        _require_known(attention, delta_source)
        network, self.delta_source = deep_copy(network), delta_source
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)
        options = {"reduction": reduction, "opened": opened, "residual_attention": residual_attention}
        self.stages = nn.ModuleList(
            nn.ModuleList(AttentiveBlock(block, attention, **options) for block in stage)
            for stage in (network.layer2, network.layer3, network.layer4)
        )
        self.pool, self.head = network.avgpool, network.fc
        self.channels = tuple(stage[-1].channels for stage in self.stages)

    def forward(self, images):
        features, found = self.stem(images), []
        for stage in self.stages:
            deltas = []
            for block in stage:
                features, delta = block(features)
                deltas = [*deltas, delta] if self.delta_source == "mean" else [delta]
            found.append(torch.stack(deltas).mean(0) if len(deltas) > 1 else delta)
        _require_places(images, features)
        return self.head(self.pool(features).flatten(1)), tuple(found)


class Stage(NamedTuple):
    """A layer that ends a stage of a network, by name: how its output holds a map, and of how many channels."""

    layer: str
    layout: Layout
    channels: int


def student_stages(target, images):
    """The three Stages behind which a student of `target` has attention, finest first; None for a ResNet.

    The last three of `scale_layers` whose places the logits depend on, for images (N, 3, H, W) of that size.
    NotApplicable where the target has fewer.
    """
    if isinstance(target.network, ResNet):
        return None
    names = reached_scales(target, images)[-STAGES:]
    if len(names) < STAGES:
        raise NotApplicable(
            f"AKD's explanation network reads {STAGES} stages, and {target.architecture} has {len(names)} "
            f"({', '.join(names)}) for images of {images.shape[-2]} x {images.shape[-1]} pixels; choose another "
            "`trunk`, such as small_resnet"
        )
    seen = {each.name: each for each in probed(target, images).maps}
    return tuple(Stage(name, seen[name].layout, seen[name].channels) for name in names)


class StagedStudent(nn.Module):
    """Any network with one attention module behind each of three `stages`; takes and returns as AttentiveStudent.

    A stage's features f (N, C, h, w) go on as att ⊙ f, and Δ = att ⊙ f - f; with `residual_attention` as f + att ⊙ f,
    and Δ = att ⊙ f. Of tokens the grid's are f; class and register tokens go on as they are.

    Notes: the paper's attention stands on the branches of residual blocks, which other networks do not have alike.
    """

    def __init__(
        self, network, stages, *, attention="cbam", reduction=16, opened=False, residual_attention=False,
        delta_source="last",
    ):  # fmt: skip
        super().__init__()
        _require_known(attention, delta_source)
        if delta_source != "last":
            raise ValueError(
                f"delta_source {delta_source!r} is for ResNets, whose blocks each have attention; a stage of a "
                f"{type(network).__name__} has one: choose last"
            )
        self.network, self.stages, self.residual_attention = deep_copy(network), tuple(stages), residual_attention
        options = {"reduction": reduction, "opened": opened}
        self.attention = nn.ModuleList(ATTENTION[attention](each.channels, **options) for each in stages)
        self.channels = tuple(each.channels for each in stages)

    def forward(self, images):
        known, deltas = {stage.layer: place for place, stage in enumerate(self.stages)}, [None] * len(self.stages)

        def attend(name, _, output):
            tensor, place = tensor_of(output), known[name]
            layout = self.stages[place].layout
            if layout.kind == "tokens" and tensor.shape[1] != layout.prefix + layout.grid[0] * layout.grid[1]:
                raise ValueError(
                    f"images of {images.shape[-2]} x {images.shape[-1]} pixels leave {name!r} {tensor.shape[1]} "
                    f"tokens, and this student was made for a grid of {layout.grid[0]} x {layout.grid[1]}; give "
                    "images of the size that it was made for"
                )
            features = layout.as_map(tensor)
            gated = self.attention[place](features)
            deltas[place] = gated if self.residual_attention else gated - features
            return with_tensor(output, layout.with_map(tensor, features + gated if self.residual_attention else gated))

        with observed(self.network, attend, modules={name: find_layer(self.network, name) for name in known}):
            output = self.network(images)
        _require_places(images, deltas[-1])
        return unpacked(output), tuple(deltas)
