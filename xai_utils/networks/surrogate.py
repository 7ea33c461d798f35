"""The self-explaining surrogate of a target: an attentive student and the explanation network that reads it (AKD).

A surrogate is kept in a folder as `surrogate.safetensors` (weights) and `surrogate.json` (what they are).
"""

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from xai_utils.networks import stored
from xai_utils.networks.attention import ATTENTION
from xai_utils.networks.digests import made_for
from xai_utils.networks.layers import deep_copy
from xai_utils.networks.targets import build, require_known

DELTA_SOURCES = ("last", "mean")  # of a stage's blocks
OPTIONS = ("attention", "reduction", "residual_attention", "delta_source")
KIND = "surrogate"  # of file: stored.py


class AttentiveBlock(nn.Module):
    """A residual block of a ResNet with attention on its branch, just before the addition (AKD §3.2).

    features -> the block's output, and Δ (N, C, h, w), what attention did to the branch f: att ⊙ f - f. With
    `residual_attention` the branch becomes f + att ⊙ f, and Δ = att ⊙ f.
    """

    def __init__(self, block, attention, *, reduction, residual_attention):
        super().__init__()
        self.block, self.residual_attention = block, residual_attention
        self.depth = 3 if isinstance(block, Bottleneck) else 2  # convolutions
        self.channels = getattr(block, f"bn{self.depth}").num_features
        self.attention = ATTENTION[attention](self.channels, reduction=reduction)

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
    """A ResNet with one attention module in each block of its last three stages (AKD §3.2); 13 in a ResNet-50.

    Normalised images (N, 3, H, W) -> logits (N, K) and the three Δ of the stages, finest first, each (N, C, h, w).
    `network`, a torchvision ResNet (or ours), is copied, weights included. `attention`: a name of ATTENTION,
    with its `reduction` of the channels.
    `delta_source`: a stage's Δ is its last block's, or the mean of its blocks'. ValueError for anything else.
    """

    def __init__(self, network, *, attention="cbam", reduction=16, residual_attention=False, delta_source="last"):
        super().__init__()
        if not isinstance(network, ResNet):
            raise ValueError(
                f"a student is made of a ResNet, not of a {type(network).__name__}; choose resnet18, resnet50, "
                "small_resnet or another ResNet"
            )
        for name, value, allowed in (
            ("attention", attention, ATTENTION),
            ("delta_source", delta_source, DELTA_SOURCES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(allowed)}")
        network, self.delta_source = deep_copy(network), delta_source
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)
        options = {"reduction": reduction, "residual_attention": residual_attention}
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
        if min(features.shape[-2:]) < 2:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels leave the last stage a map of "
                f"{features.shape[-2]} x {features.shape[-1]}, which has no place to point at; give images that leave "
                "2 x 2 or more (64 pixels do for a torchvision ResNet)"
            )
        return self.head(self.pool(features).flatten(1)), tuple(found)


class ExplanationNetwork(nn.Module):
    """The decoder of a student's three Δ: -> map (N, H, W) in [0, 1], of `size` (H, W) (AKD §3.2).

    Three upsample blocks, 3×3 convolution, batch norm, ReLU and bilinear doubling, from the coarsest Δ up; the next
    finer Δ joins after each of the first two. A 1×1 convolution, resized to the image, and a sigmoid end it.
    `channels` of the Δ, finest first; widths are a quarter (the last: an eighth) of theirs: 13,420,225 parameters for
    a ResNet-50. Maps begin near 0.88 everywhere (head bias 2), so that training starts with the image visible.
    """

    def __init__(self, channels):
        super().__init__()
        fine, middle, coarse = channels
        widths = (coarse // 4, middle // 4, fine // 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(entering, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for entering, width in zip((coarse, widths[0] + middle, widths[1] + fine), widths, strict=True)
        )
        self.head = nn.Conv2d(widths[2], 1, 1)
        nn.init.constant_(self.head.bias, 2.0)

    def forward(self, deltas, size):
        fine, middle, coarse = deltas
        features = _resized(self.blocks[0](coarse), middle.shape[-2:])  # twice as large, for sizes that halve evenly
        features = _resized(self.blocks[1](torch.cat([features, middle], 1)), fine.shape[-2:])
        features = self.blocks[2](torch.cat([features, fine], 1))
        features = _resized(features, [2 * side for side in features.shape[-2:]])
        return _resized(self.head(features), size)[:, 0].sigmoid()


def _resized(features, size):
    return functional.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


class Surrogate(nn.Module):
    """Student and explanation network in one pass: images (N, 3, H, W) in [0, 1] -> logits (N, K), map (N, H, W).

    The map is in [0, 1], higher = more salient for the target's prediction. `target`, a `Target` whose network is a
    ResNet, gives the trunk (copied, with its weights: random from `build`, or pretrained), classes and normalisation;
    the options are AttentiveStudent's. The new parts follow torch's global generator. `made_for` says whose
    surrogate it is: that target's, unless another is set (digests.py).
    """

    def __init__(self, target, *, attention="cbam", reduction=16, residual_attention=False, delta_source="last"):
        super().__init__()
        self.architecture, self.classes = target.architecture, target.classes
        self.made_for = made_for(target)
        self.attention, self.reduction = attention, reduction
        self.residual_attention, self.delta_source = residual_attention, delta_source
        self.student = AttentiveStudent(target.network, **{name: getattr(self, name) for name in OPTIONS})
        self.explanation = ExplanationNetwork(self.student.channels)
        self.register_buffer("mean", target.mean.clone())
        self.register_buffer("std", target.std.clone())

    def _attend(self, images):
        return self.student((images - self.mean[:, None, None]) / self.std[:, None, None])

    def classify(self, images):
        """The student's logits (N, K) alone."""
        return self._attend(images)[0]

    def forward(self, images):
        logits, deltas = self._attend(images)
        return logits, self.explanation(deltas, images.shape[-2:])


def save_surrogate(surrogate, folder, *, made_with=None):
    """Write `surrogate` into `folder` (made if missing): the weights first, then the facts with their SHA-256.

    `made_with`: a JSON-able dict of what made the weights, kept in surrogate.json for readers.
    """
    require_known(surrogate.architecture)  # what could not be loaded again is not saved
    facts = {"architecture": surrogate.architecture, "classes": list(surrogate.classes)}
    facts |= {name: getattr(surrogate, name) for name in ("made_for", *OPTIONS)}
    stored.write(surrogate, folder, KIND, facts, made_with=made_with)


@stored.drawing_nothing
def load_surrogate(folder, *, device="cpu"):
    """The surrogate that `save_surrogate` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    facts = stored.facts(folder, KIND, ("architecture", "classes", *OPTIONS))
    target = build(facts["architecture"], tuple(facts["classes"]))
    surrogate = Surrogate(target, **{name: facts[name] for name in OPTIONS})
    surrogate.made_for = facts.get("made_for")
    return stored.read_into(surrogate, folder, KIND, facts).to(device)
