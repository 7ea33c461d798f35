"""DGLE and MGnet: maps that a trained mask predictor reads off the model's features, in one pass (DGLE §3).

A predictor is trained for one model and its data: the stage train_mask_predictor leaves three. It answers for any
class: `target` chooses what the feature filter lets pass.
"""

from pathlib import Path

import torch

from xai_utils.explainers.records import NUMBER, Option, Part
from xai_utils.images import resize
from xai_utils.networks import MaskPredictor, class_indices, encoded, evaluating, inference_copy, load_predictor
from xai_utils.networks.mask_predictor import KIND

PREDICTORS = Path("build/mask_predictor")
CONTROLLER = (  # of DGLE's customized controller
    Option("eta", NUMBER, low=0, offered=(0.1, 6.0), word="η"),
    Option("exponent", NUMBER, low=0, offered=(0.1, 8.0), word="h"),
)


def prepared(predictor):
    """The predictor with its generator as an inference copy, for feature maps of its kind of sizes."""
    device, noise = next(predictor.parameters()).device, torch.Generator().manual_seed(0)
    number = len(predictor.channels)
    sides = [4] * number if predictor.one_size else [2 ** (number - place) for place in range(number)]
    shapes = [(1, channels, side, side) for channels, side in zip(predictor.channels, sides, strict=True)]
    probe = [torch.rand(shape, generator=noise).to(device) for shape in shapes]
    predictor.generator = inference_copy(predictor.generator, probe)
    return predictor


PART = Part(
    "predictor",
    MaskPredictor,
    KIND,
    load_predictor,
    prepared,
    settings=lambda predictor: CONTROLLER if predictor.controller == "customized" else (),
)


def predicted_maps(model, images, target, predictor):
    """The maps (N, H, W) of a `predictor` (or of the one in that folder) for the classes `target`, in one pass."""
    predictor = PART.of(predictor, model, images.device)
    with evaluating(model), evaluating(predictor), torch.no_grad():
        features, logits = encoded(model, images, predictor.layers)
        own = next(predictor.parameters()).dtype  # the model's may be half precision
        maps = predictor([each.to(own) for each in features], class_indices(logits, target))
        return resize(maps.float(), images.shape[-2:])


def dgle_cf(model, images, target=None, *, predictor=PREDICTORS / "dgle_cf"):
    """DGLE with the customized controller: scores sigmoid(1.5 z)^2.5, in (0, 1) (DGLE eq. 6).

    map = sigmoid(η z)^h,   z the generator's normalised output for the class, η = 1.5, h = 2.5

    `predictor`: a `MaskPredictor`, or the folder of one. FileNotFoundError where there is none, ValueError where it
    is another model's.
    """
    return predicted_maps(model, images, target, predictor)


def dgle_bf(model, images, target=None, *, predictor=PREDICTORS / "dgle_bf"):
    """As `dgle_cf` with the basic controller: scores max(0, z), some above 1 (DGLE eq. 5).

    map = max(0, z),   z the generator's normalised output for the class
    """
    return predicted_maps(model, images, target, predictor)


def mgnet(model, images, target=None, *, predictor=PREDICTORS / "mgnet"):
    """As `dgle_cf` without controller: masks in [0, 1] of Dabkowski & Gal 2017, trained by their public code's loss.

    map = m,   trained to minimise λ1 TV(m) + λ2 mean(m^p) - log p_c(Φ(x, m)) + λ3 p_c(Φ(x, 1 - m))^λ4
    """
    return predicted_maps(model, images, target, predictor)
