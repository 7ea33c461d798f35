"""Predicted effects of removal: what hiding each region would do, read off the model's features in one pass.

A predictor is trained for one model and its data, by the model's answers to images with hidden regions: the stage
train_effect_predictor leaves two. It answers for all classes at once.
"""

from pathlib import Path

import torch

from xai_utils.explainers.records import Part
from xai_utils.explainers.shapley import efficient
from xai_utils.images import resize
from xai_utils.networks import class_indices, encoded, evaluating
from xai_utils.networks.effect_predictor import KIND, EffectPredictor, load_effect_predictor

PREDICTORS = Path("build/effect_predictor")
PART = Part("predictor", EffectPredictor, KIND, load_effect_predictor)


@torch.no_grad()
def predicted_effects(model, images, target, predictor):
    """What each place adds to the probability of the classes `target`, (N, h, w), and what all add, (N,); one pass.

    `predictor`: the one that predicts it, or its folder. All add the probability of the image less that of nothing.
    """
    predictor = PART.of(predictor, model, images.device)
    with evaluating(model), evaluating(predictor):
        features, logits = encoded(model, images, predictor.layers)
        own = next(predictor.parameters()).dtype  # the model's may be half precision
        classes, rows = class_indices(logits, target), torch.arange(len(images), device=images.device)
        effects = predictor([each.to(own) for each in features])[rows, classes]
        return effects.float(), logits.float().softmax(1)[rows, classes] - predictor.nothing[classes]


def predicted_values(model, images, target, predictor):
    """The Shapley values (N, g, g) that a `predictor` with cells predicts, made to add up (FastSHAP eq. 5).

    φ + (v(all) - v(none) - Σ φ) / d,   φ the predictor's answer for the class, d its number of cells
    """
    effects, gained = predicted_effects(model, images, target, predictor)
    return efficient(effects.flatten(1), gained).view_as(effects)


def fast_shap(model, images, target=None, *, predictor=PREDICTORS / "fast_shap"):
    """FastSHAP: Shapley values of a grid's cells, for the class's probability, in one pass (Jethani et al. 2022).

    map = φ + (v(all) - v(none) - Σ φ) / d,   φ the predictor's answer for the class, d its number of cells     (eq. 5)

    Signed; bilinear between the cells. `predictor`: an `EffectPredictor` with cells, or the folder of one.
    FileNotFoundError where there is none, ValueError where it is another model's.
    """
    return resize(predicted_values(model, images, target, predictor), images.shape[-2:])
