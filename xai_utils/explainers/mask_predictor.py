"""DGLE and MGnet: maps that a trained mask predictor reads off the model's features, in one pass (DGLE §3).

A predictor is trained for one model and its data: the stage train_mask_predictor leaves three. It answers for any
class: `target` chooses what the feature filter lets pass.
"""

from functools import lru_cache
from pathlib import Path

import torch

from xai_utils.images import resize
from xai_utils.networks import MaskPredictor, class_indices, encoded, evaluating, inference_copy, load_predictor
from xai_utils.networks.targets import head_digest

PREDICTORS = Path("build/mask_predictor")


@lru_cache(maxsize=4)
def _opened(folder, written, device):
    predictor = load_predictor(folder, device=device)
    sides = [2 ** (len(predictor.channels) - place) for place in range(len(predictor.channels))]
    probe = [
        torch.rand(1, channels, side, side, device=device)
        for channels, side in zip(predictor.channels, sides, strict=True)
    ]
    predictor.generator = inference_copy(predictor.generator, probe)
    return predictor


def _predictor_for(model, given, device):
    """The predictor that was given, or lies in the folder that was given; ValueError where it is another model's."""
    predictor = given
    if not isinstance(given, MaskPredictor):
        facts = Path(given) / "mask_predictor.json"
        written = facts.stat().st_mtime_ns if facts.is_file() else None
        predictor = _opened(str(given), written, str(device))
    if head_digest(model) != predictor.head_digest:
        raise ValueError(
            f"the mask predictor was trained for another network of {len(predictor.classes)} classes than this model; "
            "train one for this model (stage train_mask_predictor), or name its folder with `predictor`"
        )
    return predictor


def _maps(model, images, target, predictor):
    predictor = _predictor_for(model, predictor, images.device)
    with evaluating(model), evaluating(predictor), torch.no_grad():
        features, logits = encoded(model, images, predictor.layers)
        maps = predictor(features, class_indices(logits, target))
        return resize(maps.float(), images.shape[-2:])


def dgle_cf(model, images, target=None, *, predictor=PREDICTORS / "dgle_cf"):
    """DGLE with the customized controller: scores sigmoid(1.5 z)^2.5, in (0, 1) (DGLE eq. 6).

    `predictor`: a `MaskPredictor`, or the folder of one. FileNotFoundError where there is none, ValueError where it
    is another model's.
    """
    return _maps(model, images, target, predictor)


def dgle_bf(model, images, target=None, *, predictor=PREDICTORS / "dgle_bf"):
    """As `dgle_cf` with the basic controller: scores max(0, z), some above 1 (DGLE eq. 5)."""
    return _maps(model, images, target, predictor)


def mgnet(model, images, target=None, *, predictor=PREDICTORS / "mgnet"):
    """As `dgle_cf` without controller: masks in [0, 1] of Dabkowski & Gal 2017, trained by their public code's loss."""
    return _maps(model, images, target, predictor)
