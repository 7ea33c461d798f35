"""Predicted effects of removal: what hiding each region would do, read off the model's features in one pass.

A predictor is trained for one model and its data, by the model's answers to images with hidden regions: the stage
train_effect_predictor leaves them. It answers for any class.
"""

from pathlib import Path

import torch

from xai_utils.explainers.mask_predictor import prepared
from xai_utils.explainers.records import Part
from xai_utils.explainers.shapley import efficient
from xai_utils.images import resize
from xai_utils.networks import EffectPredictor, class_indices, encoded, evaluating, load_effect_predictor
from xai_utils.networks.effect_predictor import KIND

PREDICTORS = Path("build/effect_predictor")
PART = Part("predictor", EffectPredictor, KIND, load_effect_predictor, prepared)


@torch.no_grad()
def predicted_effects(model, images, target, predictor):
    """What each place adds to the probability of the classes `target`, (N, h, w), and what all add, (N,); one pass.

    `predictor`: an `EffectPredictor` of this model, or the folder of one; ValueError for another model's. All places
    together add the probability of the image less that of nothing.
    """
    predictor = PART.of(predictor, model, images.device)
    with evaluating(model), evaluating(predictor):
        features, logits = encoded(model, images, predictor.layers)
        own = next(predictor.parameters()).dtype  # the model's may be half precision
        classes, rows = class_indices(logits, target), torch.arange(len(images), device=images.device)
        effects = predictor([each.to(own) for each in features], classes)
        return effects.float(), logits.float().softmax(1)[rows, classes] - predictor.nothing[classes]


def predicted_values(model, images, target, predictor):
    """The Shapley values (N, g, g) that a `predictor` with cells predicts, made to add up (additive normalisation).

    φ + (v(all) - v(none) - Σ φ) / d,   φ the predictor's answer for the class, d its number of cells
    """
    effects, gained = predicted_effects(model, images, target, predictor)
    return efficient(effects.flatten(1), gained).view_as(effects)


def fast_shap(model, images, target=None, *, predictor=PREDICTORS / "fast_shap"):
    """FastSHAP: Shapley values of a grid's cells, for the class's probability, in one pass (Jethani et al. 2022).

    map = φ + (v(all) - v(none) - Σ φ) / d,   φ the predictor's answer for the class, d its number of cells

    Maps (N, H, W), signed; bilinear between the cells. `predictor`: an `EffectPredictor` with cells, trained by
    `shapley_task`, or the folder of one. FileNotFoundError where there is none, ValueError where it is another model's.
    """
    return resize(predicted_values(model, images, target, predictor), images.shape[-2:])


def removal_effect(model, images, target=None, *, predictor=PREDICTORS / "removal_effect", concentration=16.0):
    """What hiding each place would take of the class's probability, predicted in one pass.

    map = exp(k (φ - max φ) / max |φ|),   φ what each place adds, k the `concentration`

    Maps (N, H, W) in (0, 1], 1 at the largest effect. φ is trained by regression on random removals, and to show and to
    hide at every budget what it ranks first. The exponential keeps its order and gathers the map's mass where effects
    are large, as DGLE's controllers do. `concentration`: None gives φ itself, signed: below 0 hiding helps the class.
    `predictor`: an `EffectPredictor` without cells, trained by `effect_task`, or the folder of one. FileNotFoundError
    where there is none, ValueError where it is another model's, and for a concentration that is not positive.

    Notes: 16 comes from a sweep on training birds, but was settled with scores of held-out birds in view: such scores
    of part truth are no proof.
    """
    if concentration is not None and not concentration > 0:
        raise ValueError(f"concentration is {concentration}; give a positive number (16), or None for the effects")
    effects, _ = predicted_effects(model, images, target, predictor)
    effects = resize(effects, images.shape[-2:])
    if concentration is None:
        return effects
    below = effects - effects.amax((1, 2), keepdim=True)
    return torch.exp(concentration * below / effects.abs().amax((1, 2), keepdim=True).clamp(min=1e-12))
