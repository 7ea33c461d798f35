"""AKD: the map that a distilled surrogate of the model gives with its own answer, in one pass (networks/surrogate.py).

The map belongs to the surrogate's prediction, which is trained to be the model's; `target` is checked, and changes
nothing. A surrogate is trained for one model and its data: the stage distill_surrogate leaves two.
"""

from functools import lru_cache
from pathlib import Path

import torch

from xai_utils.networks import Surrogate, checked_target, evaluating, inference_copy, load_surrogate

SURROGATES = Path("build/surrogate")
PROBE = (1, 3, 64, 64)  # finds out which batch norm follows which convolution


@lru_cache(maxsize=4)
def _opened(folder, written, device):
    return inference_copy(load_surrogate(folder, device=device), torch.rand(PROBE, device=device))


def _surrogate_of(model, given, device):
    """The surrogate that was given, or lies in the folder that was given; ValueError where it is another model's."""
    surrogate = given
    if not isinstance(given, Surrogate):
        facts = Path(given) / "surrogate.json"
        written = facts.stat().st_mtime_ns if facts.is_file() else None
        surrogate = _opened(str(given), written, str(device))
    classes = getattr(model, "classes", None)
    if classes is not None and tuple(classes) != surrogate.classes:
        raise ValueError(
            f"the surrogate was distilled from a network of {len(surrogate.classes)} classes, and this model has "
            f"{len(classes)} or others; distil one from this model (stage distill_surrogate), or name its folder"
        )
    return surrogate


def akd(model, images, target=None, *, surrogate=SURROGATES / "akd"):
    """Attentive knowledge distillation: H(x) of the surrogate's explanation network, in [0, 1] (AKD §3.2).

    `surrogate`: a `Surrogate`, or the folder of one; λ = 1e-5 for the default one. FileNotFoundError where there is
    none, ValueError where it is another model's.
    """
    if target is not None:
        checked_target(target, images, len(getattr(model, "classes", ())))
    surrogate = _surrogate_of(model, surrogate, images.device)
    with evaluating(surrogate), torch.no_grad():
        return surrogate(images)[1].float()


def akd_unoptimised(model, images, target=None, *, surrogate=SURROGATES / "akd_unoptimised"):
    """As `akd`, with the paper's untuned λ = 1e-4: sparser maps (AKD §4.3, "Ours (unopt)")."""
    return akd(model, images, target, surrogate=surrogate)
