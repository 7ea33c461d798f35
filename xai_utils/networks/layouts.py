"""How a layer's output holds a map of the image: in one of three layouts. Which it is, a probe tells (probe.py)."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """How an output holds a map: `kind`, `grid` (h, w) and, of tokens, how many come before the grid's (`prefix`).

    "channels first" (N, C, h, w), "channels last" (N, h, w, C) or "tokens" (N, prefix + h w, C).
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    def as_map(self, output):
        """The map (N, C, h, w) in an output of this layout, a view; without the tokens before the grid's."""
        if self.kind == "channels first":
            return output
        if self.kind == "tokens":
            output = output[:, self.prefix :].unflatten(1, self.grid)
        return output.permute(0, 3, 1, 2)

    def with_map(self, output, features):
        """An output of this layout with features (N, C, h, w) as its map; tokens before the grid's are `output`'s."""
        if self.kind == "channels first":
            return features
        placed = features.permute(0, 2, 3, 1)
        return torch.cat([output[:, : self.prefix], placed.flatten(1, 2)], 1) if self.kind == "tokens" else placed

    def may_hold(self, shape):
        """Whether an output of `shape` has more than one place so, and no single channel that a gate's axis gives."""
        return math.prod(self.grid) > 1 and (self.kind == "channels first" or self.channels(shape) > 1)

    def channels(self, shape):
        """C of an output of `shape` (without N)."""
        return shape[0] if self.kind == "channels first" else shape[-1]

    def __str__(self):
        return {
            "channels first": "(N, C, h, w)",
            "channels last": "(N, h, w, C)",
            "tokens": f"(N, {self.prefix} + h·w, C)" if self.prefix else "(N, h·w, C)",
        }[self.kind]


def tensor_of(output):
    """The tensor that a layer returns, or the first of several (attention returns its weights, too); else None."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def with_tensor(output, tensor):
    """What a layer returned, with another tensor in the place of `tensor_of`'s."""
    if isinstance(output, torch.Tensor):
        return tensor
    return getattr(type(output), "_make", type(output))([tensor, *output[1:]])
