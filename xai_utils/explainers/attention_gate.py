"""AMG: Grad-CAM whose channels and positions are weighed by gates that were learned on the model's last activations.

The gates belong to one model and layer (networks/attention_gate.py); training/gate.py trains them.
"""

from pathlib import Path

import torch

from xai_utils.explainers.cam import CHANNEL_WEIGHTS, weighted_maps
from xai_utils.explainers.records import Part
from xai_utils.networks import AttentionGate, cam_layer, evaluating, head_gradient, load_gate
from xai_utils.networks.attention_gate import KIND, checked_gate_input

GATES = Path("build/attention")
COMPOSITIONS = ("both", "channel", "spatial")


PART = Part(
    "gate",
    AttentionGate,
    KIND,
    load_gate,
    layers=lambda gate: [gate.layer],
    word="gate",
    label=lambda gate, folder: gate.layer,
    without="takes fixed gates, which need no training",
)


def _fixed_gate(model, images):
    """The gate that needs no training, on the model's `cam_layer`."""
    architecture, classes = getattr(model, "architecture", None), getattr(model, "classes", None)
    return AttentionGate(architecture, classes or (), layer=cam_layer(model, images), channels=None, objective="none")


def gated_features(activation, gradient, gate_input):
    """What the gates read, (N, C, h, w): the activation A, or W_k A_k with Grad-CAM's weights W ("weighted")."""
    if gate_input == "activations":
        return activation
    return CHANNEL_WEIGHTS["grad_cam"](activation.flatten(2), gradient.flatten(2))[:, :, None, None] * activation


def gated_maps(activation, gradient, channel, spatial, size):
    """relu(g_s ⊙ sum_k g_ck W_k A_k), resized: gates (N, C, 1, 1) and (N, 1, h, w) -> maps (N, H, W)."""
    weights = CHANNEL_WEIGHTS["grad_cam"](activation.flatten(2), gradient.flatten(2)) * channel.flatten(1)  # (N, C)
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
    gate = _fixed_gate(model, images) if gate is None else PART.of(gate, model, images.device)
    gate_input = gate.gate_input if gate_input is None else checked_gate_input(gate_input)
    activation, gradient, _, _ = head_gradient(model, images, gate.layer, target)
    activation, gradient = activation.float(), gradient.float()  # (N, C, h, w)
    if gate.channels not in (None, activation.shape[1]):
        raise ValueError(
            f"the gate is for {gate.channels} channels, and layer {gate.layer!r} of this model has "
            f"{activation.shape[1]}; train a gate on this model, or name its folder"
        )
    with evaluating(gate), torch.no_grad():
        own = next(gate.parameters(), activation).dtype
        channel, spatial = gate(gated_features(activation, gradient, gate_input).to(own))
    channel = torch.ones_like(channel) if composition == "spatial" else channel
    spatial = torch.ones_like(spatial) if composition == "channel" else spatial
    return gated_maps(activation, gradient, channel, spatial, images.shape[-2:]).float()
