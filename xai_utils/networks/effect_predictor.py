"""Effect predictors: networks that read a frozen classifier's features and answer, in one pass, what showing each place
of the image adds to the probability of a class.

features -> `FeatureFilter` (one class) -> `MaskGenerator`, EVIDENCE channels -> the class's weights -> effects at its
places, or added up over a grid's cells.

A predictor is kept in a folder as `effect_predictor.safetensors` (weights) and `effect_predictor.json` (what they are).
"""

import torch
from torch import nn
from torch.nn import functional

from xai_utils.networks import stored
from xai_utils.networks.digests import made_for
from xai_utils.networks.mask_predictor import FeatureFilter, MaskGenerator, decoded_layers

EVIDENCE = 16  # channels that all classes share; what speaks for one may speak against another
OPTIONS = ("cells", "one_size", "doublings")
KIND = "effect_predictor"  # of file: stored.py


class EffectPredictor(nn.Module):
    """Features of `layers`, classes (N,) -> effects (N, h, w): what each place adds to the class's probability.

    They add up, over the places of an image, to about what the whole image has and `nothing` (K,) has not: `nothing`
    are the probabilities where all is hidden. `cells`: the sides of the grid whose cells are the places (FastSHAP's
    players), 0: the generator's own places, whatever the image's size. Make it with `effect_predictor_of`.
    """

    made_for = None  # the target that it belongs to (digests.py)

    def __init__(self, layers, channels, classes, *, cells=0, one_size=False, doublings=0):
        super().__init__()
        self.layers, self.channels, self.classes = tuple(layers), tuple(channels), tuple(classes)
        self.cells, self.one_size, self.doublings = cells, one_size, doublings
        options = {"one_size": one_size, "doublings": doublings}
        self.filter = FeatureFilter(len(self.classes), self.channels[-1])
        self.generator = MaskGenerator(self.channels, outputs=EVIDENCE, **options)
        self.weights = nn.Embedding(len(self.classes), EVIDENCE)
        nn.init.normal_(self.weights.weight, std=EVIDENCE**-0.5)
        self.register_buffer("nothing", torch.zeros(len(self.classes)))

    def forward(self, features, classes):
        *finer, coarsest = features
        evidence = self.generator([*finer, self.filter(coarsest, classes)])
        effects = torch.einsum("nehw,ne->nhw", evidence, self.weights(classes))
        if self.cells:
            effects = functional.adaptive_avg_pool2d(effects, self.cells)
        return effects / effects[0].numel()  # so that the generator's answers stay near 1, however many places


def effect_predictor_of(target, images, *, cells=0):
    """An untrained predictor for `target` and images (N, 3, H, W) of that size, in train mode.

    Reads `decoded_layers`, and raises NotApplicable as they do. The weights follow torch's global generator.
    """
    layers, sizes = decoded_layers(target, images)
    predictor = EffectPredictor(layers, classes=target.classes, cells=cells, **sizes)
    predictor.made_for = made_for(target)
    return predictor


def save_effect_predictor(predictor, folder, *, made_with=None):
    """Write `predictor` into `folder` (made if missing): the weights first, then the facts with their SHA-256.

    `made_with`: a JSON-able dict of what made the weights, kept in effect_predictor.json for readers.
    """
    facts = {name: list(getattr(predictor, name)) for name in ("layers", "channels", "classes")}
    facts |= {name: getattr(predictor, name) for name in ("made_for", *OPTIONS)}
    stored.write(predictor, folder, KIND, facts, made_with=made_with)


@stored.drawing_nothing
def load_effect_predictor(folder, *, device="cpu"):
    """The predictor that `save_effect_predictor` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    names = ("layers", "channels", "classes")
    facts = stored.facts(folder, KIND, (*names, *OPTIONS))
    predictor = EffectPredictor(*(facts[name] for name in names), **{name: facts[name] for name in OPTIONS})
    predictor.made_for = facts.get("made_for")
    return stored.read_into(predictor, folder, KIND, facts).to(device)
