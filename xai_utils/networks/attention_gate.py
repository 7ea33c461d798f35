"""The channel and spatial gates that attention-map-guided Grad-CAM (AMG) learns for one layer of a frozen target.

A gate is kept in a folder as `attention_gate.safetensors` (weights) and `attention_gate.json` (what they are).
"""

import torch
from torch import nn

from xai_utils.networks import stored
from xai_utils.networks.answers import unpacked
from xai_utils.networks.attention import CBAM
from xai_utils.networks.defaults import cam_layer
from xai_utils.networks.digests import made_for
from xai_utils.networks.layers import find_layer, observed
from xai_utils.networks.layouts import tensor_of, with_tensor
from xai_utils.networks.probe import layout_of, probed
from xai_utils.networks.targets import require_known

GATE_INPUTS = ("activations", "weighted")
OBJECTIVES = ("cross_entropy", "mask", "none")
OPTIONS = ("layer", "channels", "objective", "gate_input", "reduction")
KIND = "attention_gate"  # of file: stored.py


def _standardised(values, dims):
    """(values - mean) / standard deviation (the population's) over `dims`; 0 where all values are the same."""
    values = values - values.mean(dims, keepdim=True)
    spread = values.square().mean(dims, keepdim=True).sqrt()
    return torch.where(spread > 0, values / torch.where(spread > 0, spread, 1), 0)


class EvenChannelGate(nn.Module):
    """Features (N, C, h, w) -> σ(avg(F) + max(F), standardised over the channels), (N, C, 1, 1); nothing to learn."""

    def forward(self, features):
        return _standardised(features.mean((2, 3), keepdim=True) + features.amax((2, 3), keepdim=True), 1).sigmoid()


class EvenSpatialGate(nn.Module):
    """Features (N, C, h, w) -> σ(mean(F) + max(F), standardised over the positions), (N, 1, h, w)."""

    def forward(self, features):
        pooled = features.mean(1, keepdim=True) + features.amax(1, keepdim=True)  # (N, 1, h, w)
        return _standardised(pooled, (2, 3)).sigmoid()


class AttentionGate(nn.Module):
    """Features F (N, C, h, w) -> g_c = M_c(F) (N, C, 1, 1) and g_s = M_s(g_c ⊙ F) (N, 1, h, w) (AMG eq. 5-7).

    Gates lie in [0, 1]. `layer`: whose activations A are gated; `channels`: C. `gate_input`: F is A ("activations")
    or, channel by channel, W_k A_k with Grad-CAM's weights W ("weighted"). `objective`: what the gates learn (see
    training/gate.py): "cross_entropy" and "mask" have a CBAM, "none" has fixed gates without parameters, for any
    number of channels. `architecture` and `classes` are the target's. ValueError for other options, and for fewer
    channels than `reduction`.

    Notes: the paper gives neither the gates' training nor how they are combined with Grad-CAM; both are ours. The
    spatial gate has the batch norm of CBAM's authors, which eq. 7 lacks. A weighted input is as small as the head's
    weights divided by the positions, so the MLP of the channel gate sees little of it.
    """

    made_for = None  # the target that it belongs to (digests.py)

    def __init__(
        self, architecture, classes, *, layer, channels, objective="cross_entropy", gate_input="activations",
        reduction=16,
    ):  # fmt: skip
        super().__init__()
        checked_gate_input(gate_input)
        if objective not in OBJECTIVES:
            raise ValueError(f"objective {objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
        self.architecture, self.classes = architecture, tuple(map(str, classes))
        self.layer, self.channels = layer, channels
        self.objective, self.gate_input, self.reduction = objective, gate_input, reduction
        if objective == "none":
            self.channel, self.spatial = EvenChannelGate(), EvenSpatialGate()
        else:
            attention = CBAM(channels, reduction=reduction)
            self.channel, self.spatial = attention.channel, attention.spatial

    def forward(self, features):
        channel = self.channel(features)
        return channel, self.spatial(channel * features)


def checked_gate_input(gate_input):
    """`gate_input`, if it is one of GATE_INPUTS; ValueError otherwise."""
    if gate_input not in GATE_INPUTS:
        raise ValueError(f"gate_input {gate_input!r} is unknown; choose one of {', '.join(GATE_INPUTS)}")
    return gate_input


def gate_for(target, images, *, layer=None, **options):
    """A new gate for `layer` (None: `cam_layer`) of `target`, whose channels are counted on the first image.

    `options`: objective, gate_input and reduction of `AttentionGate`. Its weights follow torch's global generator.
    ValueError where the layer is unknown, or returns no map of more than one place.
    """
    layer = layer or cam_layer(target, images)
    layout_of(target, images, layer)  # an error where it has no map
    (seen,) = (each for each in probed(target, images).maps if each.name == layer)
    gate = AttentionGate(target.architecture, target.classes, layer=layer, channels=seen.channels, **options)
    gate.made_for = made_for(target)
    return gate


def gated_logits(model, layer, features, images):
    """The logits (N, K) of `model` if `layer` had returned `features` (N, C, h, w); differentiable in the features."""
    layout = layout_of(model, images, layer)

    def place(_, __, output):  # a copy, for a ReLU behind the layer may overwrite it
        return with_tensor(output, layout.with_map(tensor_of(output), features).clone())

    with observed(model, place, modules={layer: find_layer(model, layer)}):
        return unpacked(model(images))


def save_gate(gate, folder, *, made_with=None):
    """Write `gate` into `folder` (made if missing): the weights first, then the facts with their SHA-256.

    `made_with`: a JSON-able dict of what made the weights, kept in attention_gate.json for readers.
    """
    require_known(gate.architecture)  # a gate of an unknown network could serve none
    facts = {"architecture": gate.architecture, "classes": list(gate.classes)}
    facts |= {name: getattr(gate, name) for name in ("made_for", *OPTIONS)}
    stored.write(gate, folder, KIND, facts, made_with=made_with)


@stored.drawing_nothing
def load_gate(folder, *, device="cpu"):
    """The gate that `save_gate` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    facts = stored.facts(folder, KIND, ("architecture", "classes", *OPTIONS))
    gate = AttentionGate(facts["architecture"], facts["classes"], **{name: facts[name] for name in OPTIONS})
    gate.made_for = facts.get("made_for")
    return stored.read_into(gate, folder, KIND, facts).to(device)
