"""The self-explaining surrogate of a target: an attentive student and the explanation network that reads it (AKD).

A surrogate is kept in a folder as `surrogate.safetensors` (weights) and `surrogate.json` (what they are).
"""

from dataclasses import asdict

import torch
from torch import nn
from torch.nn import functional

from xai_utils.networks import stored
from xai_utils.networks.digests import made_for
from xai_utils.networks.layouts import Layout
from xai_utils.networks.students import AttentiveStudent, Stage, StagedStudent, student_stages
from xai_utils.networks.targets import build, require_known

OPTIONS = ("attention", "reduction", "opened", "residual_attention", "delta_source")
KIND = "surrogate"  # of file: stored.py


class ExplanationNetwork(nn.Module):
    """The decoder of a student's three Δ: -> map (N, H, W) in [0, 1], of `size` (H, W) (AKD §3.4).

    Three upsample blocks, 3×3 convolution, batch norm, ReLU and bilinear doubling, from the coarsest Δ up; the next
    finer Δ joins after each of the first two. A 1×1 convolution, resized to the image, and a sigmoid end it.
    `channels` of the Δ, finest first; widths are a quarter (the last: an eighth) of theirs: 13,420,225 parameters for
    a ResNet-50. Between Δ of one size (a transformer's) nothing is enlarged. Maps begin near 0.88 everywhere (head
    bias 2), so that training starts with the image visible.
    """

    def __init__(self, channels):
        super().__init__()
        fine, middle, coarse = channels
        widths = tuple(max(1, width) for width in (coarse // 4, middle // 4, fine // 8))
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

    The map is in [0, 1], higher = more salient for the target's prediction. `target`, a `Target`, gives the trunk
    (copied, with its weights: random from `build`, or pretrained), classes and normalisation. A ResNet gets attention
    in its blocks; any other network behind `stages` that were found with images of `image_size` (h, w): make its
    surrogate with `surrogate_of`. The options are AttentiveStudent's; delta_source is a ResNet's alone. The new parts
    follow torch's global generator. `made_for` says whose surrogate it is: that target's, unless another is set
    (digests.py).
    """

    def __init__(
        self, target, *, stages=None, image_size=None, attention="cbam", reduction=16, opened=False,
        residual_attention=False, delta_source="last",
    ):  # fmt: skip
        super().__init__()
        self.architecture, self.classes, self.options = target.architecture, target.classes, target.options
        self.made_for, self.image_size = made_for(target), image_size
        self.attention, self.reduction, self.opened = attention, reduction, opened
        self.residual_attention, self.delta_source = residual_attention, delta_source
        options = {name: getattr(self, name) for name in OPTIONS}
        trunk = target.network
        self.student = StagedStudent(trunk, stages, **options) if stages else AttentiveStudent(trunk, **options)
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


def surrogate_of(target, images, **options):
    """A new Surrogate of any `target`, for images (N, 3, H, W) of that size; the options are Surrogate's.

    NotApplicable where the target has fewer than three stages.
    """
    stages = student_stages(target, images)
    return Surrogate(target, stages=stages, image_size=tuple(images.shape[-2:]) if stages else None, **options)


def save_surrogate(surrogate, folder, *, made_with=None):
    """Write `surrogate` into `folder` (made if missing): the weights first, then the facts with their SHA-256.

    `made_with`: a JSON-able dict of what made the weights, kept in surrogate.json for readers.
    """
    require_known(surrogate.architecture)  # what could not be loaded again is not saved
    facts = {"architecture": surrogate.architecture, "classes": list(surrogate.classes)}
    facts |= {name: getattr(surrogate, name) for name in ("made_for", *OPTIONS, "options", "image_size")}
    facts["stages"] = [
        {"layer": stage.layer, "channels": stage.channels} | asdict(stage.layout)
        for stage in (surrogate.student.stages if surrogate.image_size else ())
    ]
    stored.write(surrogate, folder, KIND, facts, made_with=made_with)


@stored.drawing_nothing
def load_surrogate(folder, *, device="cpu"):
    """The surrogate that `save_surrogate` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    facts = stored.facts(folder, KIND, ("architecture", "classes", *OPTIONS))
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # the right ones are among the weights
    target = build(facts["architecture"], tuple(facts["classes"]), **plain, **facts.get("options", {}))
    stages = [
        Stage(each["layer"], Layout(each["kind"], tuple(each["grid"]), each["prefix"]), each["channels"])
        for each in facts.get("stages", ())
    ]
    image_size = tuple(facts.get("image_size") or ()) or None
    surrogate = Surrogate(target, stages=stages, image_size=image_size, **{name: facts[name] for name in OPTIONS})
    surrogate.made_for = facts.get("made_for")
    return stored.read_into(surrogate, folder, KIND, facts).to(device)
