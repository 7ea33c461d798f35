"""AKD: the map that a distilled surrogate of the model gives with its own answer, in one pass (networks/surrogate.py).

The map belongs to the surrogate's prediction, which is trained to be the model's; `target` is checked, and changes
nothing. A surrogate is trained for one model and its data: the stage distill_surrogate leaves two.
"""

import json
from pathlib import Path

import torch

from xai_utils.explainers.records import Part
from xai_utils.networks import Surrogate, checked_target, evaluating, inference_copy, load_surrogate
from xai_utils.networks.surrogate import KIND

SURROGATES = Path("build/surrogate")
PROBE = (64, 64)  # pixels of noise, which finds out which batch norm of a ResNet follows which convolution


def _prepared(surrogate):
    noise = torch.rand(1, 3, *(surrogate.image_size or PROBE), generator=torch.Generator().manual_seed(0))
    return inference_copy(surrogate, noise.to(surrogate.mean.device))


def _lambda(surrogate, folder):
    """λ as text, by which a person tells surrogates apart; the folder's name where it is not known."""
    made_with = json.loads((folder / f"{KIND}.json").read_bytes()).get("made_with") or {}
    weight = made_with.get("l1_weights", {}).get(folder.name)
    return folder.name if weight is None else f"{weight:g}"


PART = Part("surrogate", Surrogate, KIND, load_surrogate, _prepared, word="λ", label=_lambda)


def akd(model, images, target=None, *, surrogate=SURROGATES / "akd"):
    """Attentive knowledge distillation: H(x) of the surrogate's explanation network, in [0, 1] (AKD §3.4).

    map = H(x) = E(Δ),   Δ_l = att_l ⊙ f_l - f_l of the attentive student's last stages

    `surrogate`: a `Surrogate`, or the folder of one; λ = 1e-5 for the default one. FileNotFoundError where there is
    none, ValueError where it is another model's.
    """
    if target is not None:
        checked_target(target, images, len(getattr(model, "classes", ())))
    surrogate = PART.of(surrogate, model, images.device)
    with evaluating(surrogate), torch.no_grad():
        return surrogate(images.to(surrogate.mean.dtype))[1].float()


def akd_unoptimised(model, images, target=None, *, surrogate=SURROGATES / "akd_unoptimised"):
    """As `akd`, with the paper's untuned λ = 1e-4: sparser maps (AKD §4.3, "Ours (unopt)").

    map = H(x),   trained with λ ‖H(x)‖₁ of λ = 1e-4 in the loss
    """
    return akd(model, images, target, surrogate=surrogate)
