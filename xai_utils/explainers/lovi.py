"""Layer Ordered Visualisation of Information: which layer saw what, in the colours of one picture (FastCAM §2.3)."""

from typing import NamedTuple

import numpy as np
import torch

LAYER_WEIGHTS = {  # of the scales, finest first
    "prior": (0.18, 0.15, 0.37, 0.40, 0.72),  # constants of the paper; their derivation is not recoverable
    "linear": (1.0, 2.0, 3.0, 4.0, 5.0),
    "equal": (1.0, 1.0, 1.0, 1.0, 1.0),
}


class Lovi(NamedTuple):
    """hue (N, H, W) in degrees, 300 (violet) the first layer, 0 (red) the last; saturation, value in [0, 1]."""

    hue: torch.Tensor
    saturation: torch.Tensor
    value: torch.Tensor

    @property
    def rgb(self):
        """The picture (N, 3, H, W) in [0, 1]."""
        return hsv_to_rgb(*self)


def hsv_to_rgb(hue, saturation, value):
    """Hue in degrees, saturation and value in [0, 1], each (N, H, W) -> (N, 3, H, W) in [0, 1]."""
    sector = (torch.tensor([5.0, 3.0, 1.0], device=hue.device)[:, None, None] + hue[:, None] / 60) % 6  # (N, 3, H, W)
    missing = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * missing)


def _checked_stack(stack):
    if not isinstance(stack, torch.Tensor) or stack.ndim != 4 or stack.shape[1] < 2:
        shape = tuple(stack.shape) if isinstance(stack, torch.Tensor) else type(stack).__name__
        raise ValueError(f"the stack is {shape}; give the maps of two layers or more, (N, L, H, W), as layer_maps does")
    if not stack.amin() >= 0:
        raise ValueError(f"the stack reaches down to {stack.amin().item():.4g}; normalise its maps to [0, 1] first")
    return stack.float()


def saturation_of(stack):
    """1 where one layer alone is salient, 0 where all are equally: eq. 6; stack (N, L, H, W) -> (N, H, W)."""
    layers, largest = stack.shape[1], stack.amax(1)
    share = stack.sum(1) / (layers * torch.where(largest > 0, largest, 1))
    return torch.where(largest > 0, (1 - (share - 1 / layers) / (1 - 1 / layers)).clamp(0, 1), 0)


def lovi(stack, *, range_normalise=True):
    """The LOVI picture of maps (N, L, H, W) in [0, 1], first layer first (FastCAM eq. 4-7).

    position c_l = 1 - l / (L - 1), l = 0 ... L - 1;   hue = 300 degrees * sum_l c_l S_l / sum_l S_l
    saturation = 1 - (sum_l S_l / (L max_l S_l) - 1/L) / (1 - 1/L);   value = max_l S_l

    `range_normalise` stretches each image's whole stack to [0, 1] first, as the published code does. Hue, saturation
    and value are 0 where no layer is salient.
    """
    stack = _checked_stack(stack)
    if range_normalise:
        low = stack.amin((1, 2, 3), keepdim=True)
        span = stack.amax((1, 2, 3), keepdim=True) - low
        stack = torch.where(span > 0, (stack - low) / torch.where(span > 0, span, 1), 0)
    positions = torch.linspace(1, 0, stack.shape[1], device=stack.device)[:, None, None]
    total = stack.sum(1)
    hue = 300 * torch.where(total > 0, (positions * stack).sum(1) / torch.where(total > 0, total, 1), 0)
    return Lovi(hue, saturation_of(stack), stack.amax(1))


def lovi_heat_map(stack, weights="prior"):
    """The companion heat map (N, 3, H, W): blue to red for the combined map, pale where the layers agree.

    value = sum_l w_l S_l / sum_l w_l over its maximum;  hue = 240 degrees * (1 - value);
    saturation = LOVI's of the weighted stack, to the power 1 / e (published code, not in the paper)
    """
    stack = _checked_stack(stack)
    weights = layer_weights(weights, stack.shape[1]).to(stack)[:, None, None]
    combined = (weights * stack).sum(1)
    largest = combined.amax((1, 2), keepdim=True)
    value = torch.where(largest > 0, combined / torch.where(largest > 0, largest, 1), 0)
    return hsv_to_rgb(240 * (1 - value), saturation_of(weights * stack) ** (1 / torch.e), value)


def layer_weights(weights, layers):
    """Weights (L,) float64 of L layers: a name of LAYER_WEIGHTS, or one number each, none negative, not all zero.

    Named weights are made for any number: the five of "prior" are interpolated linearly between first and last layer.
    """
    if isinstance(weights, str):
        if weights not in LAYER_WEIGHTS:
            raise ValueError(
                f"weights {weights!r} are unknown; choose {', '.join(LAYER_WEIGHTS)}, or give {layers} numbers"
            )
        prior = np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, 5), LAYER_WEIGHTS["prior"])
        named = {"prior": prior.tolist(), "linear": range(1, layers + 1), "equal": [1] * layers}
        weights = list(named[weights])
    values = torch.as_tensor(weights, dtype=torch.float64)
    if values.shape != (layers,):
        raise ValueError(f"weights {weights} have shape {tuple(values.shape)}; give one for each of {layers} layers")
    if not (values.isfinite().all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError(f"weights {values.tolist()} must be finite, not negative, and not all zero")
    return values
