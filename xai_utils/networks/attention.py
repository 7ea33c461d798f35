"""Attention modules: gates in [0, 1] that a network learns to put on its own activations.

Both modules take features (N, C, h, w) and return them gated, attention ⊙ features, of the same shape; the residual
form is the caller's sum, features + gated. `ATTENTION[name](channels)` makes one. Its gates begin near 1/2 or,
`opened`, at σ(3) = 0.95: a pretrained network answers as before then, where two halves would let a quarter through.
"""

import torch
from torch import nn

OPENED = 3.0  # what stands under the sigmoid of a gate that begins opened


def _reduced(channels, reduction):
    """The width of a bottleneck; ValueError where `reduction` leaves nothing of `channels`."""
    if channels < reduction:
        raise ValueError(
            f"{channels} channels cannot be reduced by {reduction}; give at least {reduction} channels or a smaller "
            "reduction"
        )
    return channels // reduction


class ChannelGate(nn.Module):
    """CBAM's channel gate: features (N, C, h, w) -> gate (N, C, 1, 1) in [0, 1] (Woo et al. 2018, eq. 2).

    M_c(F) = σ(W_1 relu(W_0 avg(F)) + W_1 relu(W_0 max(F))), averages and maxima over the positions, one MLP with
    biases for both.
    """

    def __init__(self, channels, *, reduction=16, opened=False):
        super().__init__()
        hidden = _reduced(channels, reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        if opened:
            nn.init.constant_(self.mlp[-1].bias, OPENED / 2)  # added twice

    def forward(self, features):
        gate = self.mlp(features.mean((2, 3))) + self.mlp(features.amax((2, 3)))  # (N, C)
        return gate.sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """CBAM's spatial gate: features (N, C, h, w) -> gate (N, 1, h, w) in [0, 1] (Woo et al. 2018, eq. 3).

    M_s(F) = σ(BN(conv7×7([max(F); mean(F)]))), maxima and means over the channels, no bias. The batch norm is the
    authors' code's; it begins with weight 0, as there: the gate starts as a constant, not as noise.
    """

    def __init__(self, *, opened=False):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)
        nn.init.zeros_(self.norm.weight)
        if opened:
            nn.init.constant_(self.norm.bias, OPENED)

    def forward(self, features):
        pooled = torch.cat([features.amax(1, keepdim=True), features.mean(1, keepdim=True)], 1)  # (N, 2, h, w)
        return self.norm(self.conv(pooled)).sigmoid()


class CBAM(nn.Module):
    """Convolutional block attention: F (N, C, h, w) -> M_s(F') ⊙ F' with F' = M_c(F) ⊙ F (Woo et al. 2018, eq. 1).

    The attention is the product of `channel`'s and `spatial`'s gates. ValueError for fewer channels than `reduction`.
    """

    def __init__(self, channels, *, reduction=16, opened=False):
        super().__init__()
        self.channel = ChannelGate(channels, reduction=reduction, opened=opened)
        self.spatial = SpatialGate(opened=opened)

    def forward(self, features):
        gated = self.channel(features) * features
        return self.spatial(gated) * gated


class BAM(nn.Module):
    """Bottleneck attention: F (N, C, h, w) -> σ(M_c(F) + M_s(F)) ⊙ F (Park et al. 2018, eq. 1-4).

    M_c (N, C, 1, 1) is an MLP of the mean over the positions; M_s (N, 1, h, w) reduces the channels by 1×1, looks
    around with two 3×3 convolutions of dilation 4, and ends in a 1×1. ValueError for fewer channels than `reduction`.

    Notes: as in the authors' code a batch norm and a ReLU follow each hidden layer, and none the last; the branches
    are added, as in the paper (the code multiplies). The paper's F + σ(…) ⊙ F is the residual form.
    """

    def __init__(self, channels, *, reduction=16, dilation=4, opened=False):
        super().__init__()
        hidden = _reduced(channels, reduction)
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )  # fmt: skip
        layers = [nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU()]
        for _ in range(2):
            around = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            layers += [around, nn.BatchNorm2d(hidden), nn.ReLU()]
        self.spatial = nn.Sequential(*layers, nn.Conv2d(hidden, 1, 1))
        if opened:
            for last in (self.channel[-1], self.spatial[-1]):
                nn.init.constant_(last.bias, OPENED / 2)  # the two are added

    def forward(self, features):
        return (self.channel(features) + self.spatial(features)).sigmoid() * features


ATTENTION = {"cbam": CBAM, "bam": BAM}
