"""AMG: Grad-CAM whose channels and positions are weighed by gates that were learned on the model's last activations.

The gates belong to one model and layer (networks/attention_gate.py); attention_training.py trains them.
"""

from functools import lru_cache
from pathlib import Path

import torch

from xai_utils.explainers.cam import WEIGHTS, weighted_maps
from xai_utils.networks import AttentionGate, cam_layer, evaluating, head_gradient, load_gate
from xai_utils.networks.attention_gate import checked_gate_input, require_same_target

GATES = Path("build/attention")
COMPOSITIONS = ("both", "channel", "spatial")


@lru_cache(maxsize=4)
def _opened(folder, written, device):
    with torch.inference_mode(False):  # a cached gate must serve every caller
        return load_gate(folder, device=device)


def gate_layer(gate=GATES / "amg") -> list[str]:
    """The layer whose activations `gate` weighs (see `amg`), in a list; empty for the gate that finds its own."""
    if gate is None:
        return []
    return [gate.layer if isinstance(gate, AttentionGate) else load_gate(gate).layer]


def _gate_of(model, given, images):
    """The gate that was given, lies in the folder that was given, or (None) needs no training; of this model."""
    architecture, classes = getattr(model, "architecture", None), getattr(model, "classes", None)
    if given is None:
        return AttentionGate(
            architecture, classes or (), layer=cam_layer(model, images), channels=None, objective="none"
        )
    gate, source = given, "the given gate"
    if not isinstance(given, AttentionGate):
        facts, source = Path(given) / "attention_gate.json", given
        written = facts.stat().st_mtime_ns if facts.is_file() else None
        gate = _opened(str(given), written, str(images.device))
    require_same_target(source, gate.architecture, gate.classes, architecture, classes)
    return gate


def gated_features(activation, gradient, gate_input):
    """What the gates read, (N, C, h, w): the activation A, or W_k A_k with Grad-CAM's weights W ("weighted")."""
    if gate_input == "activations":
        return activation
    return WEIGHTS["grad_cam"](activation.flatten(2), gradient.flatten(2))[:, :, None, None] * activation


def gated_maps(activation, gradient, channel, spatial, size):
    """relu(g_s ⊙ sum_k g_ck W_k A_k), resized: gates (N, C, 1, 1) and (N, 1, h, w) -> maps (N, H, W)."""
    weights = WEIGHTS["grad_cam"](activation.flatten(2), gradient.flatten(2)) * channel.flatten(1)  # (N, C)
    return weighted_maps(weights[:, None], activation * spatial, size)[:, 0]  # g_s >= 0 may enter the sum


def amg(model, images, target=None, *, gate=GATES / "amg", gate_input=None, composition="both"):
    """Attention-map-guided Grad-CAM: learned gates weigh Grad-CAM's channels and positions (AMG eq. 2-7).

    W_k = mean_ij g_kij,   g_c = M_c(F),   g_s = M_s(g_c ⊙ F),   map = relu(g_s ⊙ sum_k g_ck W_k A_k)

    `gate`: an `AttentionGate`, the folder of one, or None for fixed gates on `cam_layer` that need no training.
    `gate_input`: F is A ("activations") or W_k A_k ("weighted"); None is what the gate was trained with.
    `composition`: "both" gates, or in the map only the "channel" or the "spatial" one. Non-negative; Grad-CAM where
    the gates are 1, and at its cost. FileNotFoundError where there is no gate, ValueError where it is another
    model's.

    Notes: the paper prints neither the composition nor where ReLU ends; here it takes the whole sum.
    """
    if composition not in COMPOSITIONS:
        raise ValueError(f"composition {composition!r} is unknown; choose one of {', '.join(COMPOSITIONS)}")
    gate = _gate_of(model, gate, images)
    gate_input = gate.gate_input if gate_input is None else checked_gate_input(gate_input)
    activation, gradient, _, _ = head_gradient(model, images, gate.layer, target)
    activation, gradient = activation.float(), gradient.float()  # (N, C, h, w)
    if gate.channels not in (None, activation.shape[1]):
        raise ValueError(
            f"the gate is for {gate.channels} channels, and layer {gate.layer!r} of this model has "
            f"{activation.shape[1]}; train a gate on this model, or name its folder"
        )
    with evaluating(gate), torch.no_grad():
        channel, spatial = gate(gated_features(activation, gradient, gate_input))
    channel = torch.ones_like(channel) if composition == "spatial" else channel
    spatial = torch.ones_like(spatial) if composition == "channel" else spatial
    return gated_maps(activation, gradient, channel, spatial, images.shape[-2:])
