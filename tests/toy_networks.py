"""Small networks of three layouts: (N, C, h, w), (N, h, w, C), and tokens behind a class token."""

import torch
from torch import nn

from xai_utils.networks import CBAM, Target

WIDTH = 16


class Convolving(nn.Module):
    """x + a depthwise convolution and two linear layers between the channels of x (N, C, h, w)."""

    def __init__(self, width):
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.between = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 2 * width, 1), nn.GELU())
        self.back = nn.Conv2d(2 * width, width, 1)

    def forward(self, features):
        return features + self.back(self.between(self.around(features)))


class Staged(nn.Module):
    """A ConvNeXt of three stages: an eighth, a 16th and a 32nd of 64 pixels' sides."""

    def __init__(self, classes):
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in range(3):
            incoming, width = WIDTH * stage or 3, WIDTH * (stage + 1)
            halve = nn.Conv2d(incoming, width, 2 if stage else 8, stride=2 if stage else 8)
            self.stages.append(nn.Sequential(halve, Convolving(width)))
        self.head = nn.Linear(3 * WIDTH, classes)

    def forward(self, images):
        for stage in self.stages:
            images = stage(images)
        return self.head(images.mean((2, 3)))


class Merging(nn.Module):
    """(N, h, w, C) -> (N, h / 2, w / 2, C'): four places side by side become one (Swin)."""

    def __init__(self, incoming, width):
        super().__init__()
        self.reduction = nn.Linear(4 * incoming, width)

    def forward(self, features):
        corners = [features[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.reduction(torch.cat(corners, -1))


class Mixing(nn.Module):
    """x + two linear layers between the channels of its norm, of x (…, C)."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.back = nn.Linear(2 * width, width)

    def forward(self, features):
        return features + self.back(self.mlp(self.norm(features)))


class Shifted(nn.Module):
    """A Swin without attention, of three stages: maps (N, h, w, C) throughout."""

    def __init__(self, classes):
        super().__init__()
        self.embedding = nn.Conv2d(3, WIDTH, 8, stride=8)
        steps = ((nn.Identity(), WIDTH), (Merging(WIDTH, 32), 32), (Merging(32, 48), 48))
        self.stages = nn.ModuleList(nn.Sequential(merge, Mixing(width), Mixing(width)) for merge, width in steps)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, classes)

    def forward(self, images):
        features = self.embedding(images).permute(0, 2, 3, 1)
        for stage in self.stages:
            features = stage(features)
        return self.head(self.norm(features).mean((1, 2)))


class Attending(nn.Module):
    """A transformer's block on tokens (N, T, C)."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.second_norm, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.back = nn.Linear(2 * width, width)

    def forward(self, tokens):
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.back(self.mlp(self.second_norm(tokens)))


class Tokens(nn.Module):
    """A ViT of five blocks whose head reads the class token alone; patches of 8 pixels, images of 48 x 64."""

    def __init__(self, classes, *, blocks=5, grid=(6, 8)):
        super().__init__()
        self.embedding = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 1 + grid[0] * grid[1], WIDTH) * 0.1)
        self.blocks = nn.Sequential(*(Attending(WIDTH) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, images):
        patches = self.embedding(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


NETWORKS = {"staged": Staged, "shifted": Shifted, "tokens": Tokens}
SIZES = {"staged": (64, 96), "shifted": (64, 64), "tokens": (48, 64)}


def target(name):
    torch.manual_seed(1)
    return Target(NETWORKS[name](3), name, ("wren", "crow", "gull"), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)).eval()


def opened(module):
    """Every CBAM passes its input on unchanged: both gates are exactly 1 in float32."""
    for gate in module.modules():
        if isinstance(gate, CBAM):
            nn.init.constant_(gate.channel.mlp[2].bias, 50.0)
            nn.init.constant_(gate.spatial.norm.bias, 50.0)
    return module


def as_map(name, output):
    """What a layer of a network returns as (N, C, h, w), by hand."""
    if name == "staged":
        return output
    if name == "tokens":
        output = output[:, 1:].reshape(len(output), 6, 8, -1)
    return output.movedim(-1, 1)
