"""What is inspected: one network with its trained explainers, and the answers that it gives about one image.

Answers are plain data on the CPU. They are functions of their arguments and of the weights, so whoever asks twice keeps
them (`key`); which thread asks, and of which copy of the network, is the page's business.
"""

import copy
import hashlib
import inspect
import json
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from xai_utils import explainers, networks
from xai_utils.explainers import attention_gate, cam, gradients, lovi, smoe
from xai_utils.images import BASELINES, baseline, keep_top, perturb, rank_pixels
from xai_utils.metrics.cost import plain_forward
from xai_utils.metrics.perturbation import area_under_curve, perturbation_curves
from xai_utils.networks.layers import is_map, layer_root
from xai_utils.widgets.background import watched

VARIANTS = {"akd_unoptimised": "akd"}  # a method that is another one with another option: offered as that option
COUNTS = ("masks", "samples", "iterations", "steps")  # options that multiply the passes of a method
QUICK = 4  # passes that nobody needs to wait for: such maps are made at once
UNIT_ROUNDS = 3  # plain passes, whose median is the forward equivalent


class Option(NamedTuple):
    """One setting of a method: one of `choices` if there are any, else a number from `low` to `high`."""

    name: str
    default: object
    choices: tuple = ()
    low: float = 0
    high: float = 0


CHOICES = {
    "weights": tuple(lovi.WEIGHTS),
    "cam": tuple(cam.WEIGHTS),
    "statistic": tuple(smoe.STATISTICS),
    "normalisation": tuple(smoe.NORMALISATIONS),
    "over": tuple(gradients.ATTRIBUTIONS),
    "baseline": tuple(BASELINES),
    "hidden": tuple(BASELINES),
    "average_cams": (True, False),
    "composition": attention_gate.COMPOSITIONS,
}
NUMBERS = {
    "samples": (1, 2000),
    "masks": (1, 20000),
    "iterations": (1, 2000),
    "steps": (2, 500),
    "cells": (2, 16),
    "noise_fraction": (0.0, 1.0),
    "probability": (0.05, 0.95),
    "seed": (0, 2**31 - 1),
}
CONTROLLER = {"eta": (0.1, 6.0), "exponent": (0.1, 8.0)}  # of DGLE's customized controller


class Explanation(NamedTuple):
    """A map with what making it cost."""

    scores: torch.Tensor  # (S, S) float32, raw
    ranks: torch.Tensor  # (S, S) int64, 0 = most salient
    seconds: float
    passes: float  # seconds in forward equivalents


class Curves(NamedTuple):
    """Class probability along the perturbation curves, and the areas under them."""

    insertion: list[float]
    deletion: list[float]
    insertion_area: float
    deletion_area: float


@dataclass(frozen=True)
class Subject:
    """A network that infers, the explainers trained for it, and the settings of the pipeline that made them.

    `surrogates`: λ as text -> AKD's network; `predictors`: DGLE's by method; `gates`: layer -> AMG's; `missing`: method
    -> why it cannot answer; `notices`: what a reader of the maps must know; `source`: where images come from (None:
    files and uploads only).
    """

    model: torch.nn.Module
    size: int
    device: str = "cpu"
    geometry: str = "crop"
    surrogates: dict = field(default_factory=dict)
    predictors: dict = field(default_factory=dict)
    gates: dict = field(default_factory=dict)
    missing: dict = field(default_factory=dict)
    notices: tuple = ()
    source: object = None
    defaults: dict = field(default_factory=dict)  # method -> options, as the pipeline's scale has them
    curves: dict = field(default_factory=dict)  # curve -> options of its protocol
    seed: int = 0
    weights: str = ""  # SHA-256 over all networks above

    @property
    def classes(self):
        return self.model.classes

    @property
    def methods(self):
        """All methods that can be picked, those that lack their network included."""
        return [method for method in explainers.EXPLAINERS if method not in VARIANTS]

    def options(self, method) -> list[Option]:
        """What can be set, with the pipeline's values as defaults."""
        given, found = self.defaults.get(method, {}), []
        for name, parameter in inspect.signature(explainers.EXPLAINERS[method]).parameters.items():
            default = given.get(name, parameter.default)
            if name == "layer":
                found.append(Option(name, "default", ("default", *self._layers())))
            elif name == "surrogate" and self.surrogates:
                found.append(Option("lambda", next(iter(self.surrogates)), tuple(self.surrogates)))
            elif name == "gate" and self.gates:
                found.append(Option("gate", next(iter(self.gates)), tuple(self.gates)))
            elif name == "predictor" and getattr(self.predictors.get(method), "controller", None) == "customized":
                made = self.predictors[method]
                found += [
                    Option(each, getattr(made, each), low=low, high=high) for each, (low, high) in CONTROLLER.items()
                ]
            elif name in ("seed", "generator"):
                found.append(Option("seed", self.seed, low=NUMBERS["seed"][0], high=NUMBERS["seed"][1]))
            elif name in CHOICES:
                found.append(Option(name, default, CHOICES[name]))
            elif name in NUMBERS:
                low, high = NUMBERS[name]
                found.append(Option(name, default, low=low, high=high))
        return found

    def _layers(self):
        """Names of layers with a map, blocks of blocks at most (layer4.0)."""
        found, handles = [], []
        for name, module in layer_root(self.model).named_modules():
            if name and name.count(".") < 2:

                def keep(_, __, output, name=name):
                    if is_map(output) and name not in found:
                        found.append(name)

                handles.append(module.register_forward_hook(keep))
        try:
            plain_forward(self.model, torch.zeros(1, 3, self.size, self.size, device=self.device))
        finally:
            for handle in handles:
                handle.remove()
        return found

    def key(self, picture, target, method, options):
        """What a map depends on, and nothing else: pixels, class, method, options, weights."""
        given = json.dumps([int(target), method, options, self.weights], sort_keys=True)
        return hashlib.sha256(picture.pixels.numpy().tobytes() + given.encode()).hexdigest()

    def _batch(self, picture):
        return picture.pixels[None].to(self.device)

    def probabilities(self, model, picture):
        """The softmax probabilities (K,) of an image."""
        return plain_forward(model, self._batch(picture)).softmax(1)[0].cpu()

    def scores(self, model, images, target):
        """The class probability of several images (n, 3, S, S), a list."""
        return plain_forward(model, images.to(self.device)).softmax(1)[:, int(target)].tolist()

    def layer_maps(self, model, picture):
        """The SMOE Scale of each spatial scale: layer names, and the stack (L, S, S) in [0, 1]."""
        images = self._batch(picture)
        return networks.scale_layers(model, images), smoe.layer_maps(model, images)[0].cpu()

    def explain(self, model, picture, target, method, options, look=None) -> Explanation:
        """One map; what is quick is timed twice and counts with the shorter time. `look` watches the passes.

        ValueError naming the stage where the method's network is missing, and whatever the method refuses.
        """
        if method in self.missing:
            raise ValueError(self.missing[method])
        images, synchronise = self._batch(picture), torch.cuda.synchronize if self.device == "cuda" else lambda: None

        def timed(work):
            synchronise()
            begun = time.perf_counter()
            result = work()
            synchronise()
            return result, time.perf_counter() - begun

        def explained():
            given = self._arguments(method, options)
            return explainers.explain(model, images, int(target), method=method, **given)[0].cpu()

        with watched(model, look or (lambda _: None)):
            scores, seconds = timed(explained)
            if passes(method, options) <= QUICK:
                seconds = min(seconds, timed(explained)[1])
            unit = statistics.median(timed(lambda: plain_forward(model, images))[1] for _ in range(UNIT_ROUNDS))
        return Explanation(scores, rank_pixels(scores[None])[0], seconds, seconds / unit)

    def _arguments(self, method, options):
        """The options as the method's function takes them."""
        given = {name: value for name, value in options.items() if name not in (*CONTROLLER, "lambda", "seed")}
        if given.get("layer") == "default":
            del given["layer"]
        known = inspect.signature(explainers.EXPLAINERS[method]).parameters
        if "surrogate" in known:
            given["surrogate"] = self.surrogates[options["lambda"]]
        if "predictor" in known:
            given["predictor"] = copy.copy(self.predictors[method])  # shares its weights
            vars(given["predictor"]).update({name: options[name] for name in CONTROLLER if name in options})
        if "gate" in known:
            given["gate"] = self.gates[options["gate"]]
        if "generator" in known:
            given["generator"] = torch.Generator(self.device).manual_seed(options["seed"])
        elif "seed" in known:
            given["seed"] = options["seed"]
        return given

    def perturbed(self, model, picture, target, explanation, look=None) -> Curves:
        """Insertion and deletion along the map, as the stage evaluate measures them."""
        images = self._batch(picture)
        with watched(model, look or (lambda _: None)):
            found = perturbation_curves(
                model, images, int(target), explanation.scores[None], curves=("insertion", "deletion"), **self.curves
            )
        areas = [float(area_under_curve(found[name])[0]) for name in ("insertion", "deletion")]
        return Curves(*(found[name][0].tolist() for name in ("insertion", "deletion")), *areas)

    def masked(self, picture, explanation, share, hidden):
        """The image (3, S, S) with its most salient `share` of pixels; the others show the baseline `hidden`."""
        keep = keep_top(explanation.ranks[None], round(share * explanation.ranks.numel()))
        images = picture.pixels[None]
        return perturb(images, keep, baseline(hidden, self.model, images))[0]


def passes(method, options) -> int:
    """About how many images go through the network for one map."""
    counts = {name: options[name] for name in COUNTS if name in options}
    if options.get("over", "integrated_gradients") != "integrated_gradients":
        counts.pop("steps", None)  # which only that one takes
    return math.prod(counts.values())
