"""What is inspected: one network with its trained explainers, and the answers that it gives about one image.

Answers are plain data on the CPU. They are functions of their arguments and of the weights, so whoever asks twice keeps
them (`key`); which thread asks, and of which copy of the network, is the page's business.
"""

import copy
import hashlib
import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from xai_utils import explainers, networks
from xai_utils.explainers import EXPLAINERS, passes, smoe
from xai_utils.explainers.masking import rise_and_count
from xai_utils.explainers.records import FLAG, LAYER
from xai_utils.images import baseline, keep_top, perturb, rank_pixels
from xai_utils.metrics.cost import counted_passes, plain_forward
from xai_utils.metrics.perturbation import area_under_curve, perturbation_curves
from xai_utils.networks.probe import layouts
from xai_utils.widgets.background import watched

QUICK = 4  # passes that take no time worth telling: such maps wait for no slow one
UNIT_ROUNDS = 5  # plain passes, whose shortest time is a network's unit
SEEDS = (0, 2**31 - 1)
TOLD = {  # of a method's option, what its name does not tell
    ("rise", "until"): "RISE stops as soon as the maps of the two halves of its masks have a rank correlation above "
    "this; at 1 it takes all masks."
}


class Setting(NamedTuple):
    """What a person can set of a method: one of `choices` if there are any, else a number from `low` to `high`."""

    name: str
    word: str
    default: object
    choices: tuple = ()
    low: float = 0
    high: float = 0
    told: str = ""  # a sentence for who sets it


class Explanation(NamedTuple):
    """A map with what making it cost."""

    scores: torch.Tensor  # (S, S) float32, raw
    ranks: torch.Tensor  # (S, S) int64, 0 = most salient
    seconds: float
    passes: float  # counted, see `counted_passes`
    taken: int | None = None  # masks of RISE, which may stop before it has taken all


class Curves(NamedTuple):
    """Class probability along the perturbation curves, and the areas under them."""

    insertion: list[float]
    deletion: list[float]
    insertion_area: float
    deletion_area: float


@dataclass(frozen=True)
class Subject:
    """A network that infers, the explainers trained for it, and the settings of the pipeline that made them.

    `parts`: method -> label -> the trained network that it brings (`Part`); `missing`: method -> why it cannot answer;
    `notices`: what a reader of the maps must know; `sources`: where images come from beside files and uploads;
    `folders`: those from which files may be read, without links in their paths.
    """

    model: torch.nn.Module
    size: int
    device: str = "cpu"
    geometry: str = "crop"
    parts: dict = field(default_factory=dict)
    missing: dict = field(default_factory=dict)
    notices: tuple = ()
    sources: tuple = ()
    folders: tuple = ()
    defaults: dict = field(default_factory=dict)  # method -> options, as the pipeline's scale has them
    curves: dict = field(default_factory=dict)  # curve -> options of its protocol
    seed: int = 0
    weights: str = ""  # digests of all networks above

    @property
    def classes(self):
        return self.model.classes

    @property
    def about(self):
        """Who answers, of how many classes, and what was done to an image of a file or an upload."""
        short, size = round(self.size * 256 / 224), f"{self.size} × {self.size}"
        cropped = {
            "crop": f"scaled until its shorter side has {short} pixels, and the {size} in the middle are cut out of it",
            "squash": f"squeezed to {size} pixels, whatever its shape",
        }
        classes = len(self.classes)
        return f"{self.model.architecture} answers; it knows {classes} classes. An image is {cropped[self.geometry]}."

    @property
    def methods(self):
        """All methods that can be picked, those that lack their network included."""
        return [method for method, record in EXPLAINERS.items() if record.variant_of is None]

    def settings(self, method) -> list[Setting]:
        """What can be set, with the pipeline's values as defaults."""
        record, given, found = EXPLAINERS[method], self.defaults.get(method, {}), []
        for name, default in record.keywords.items():
            option = record.option(name)
            if record.part is not None and name == record.part.option:
                found += self._of_part(method, record.part)
            elif name in ("seed", "generator"):
                found.append(Setting("seed", "seed", self.seed, low=SEEDS[0], high=SEEDS[1]))
            elif option is not None and option.is_offered:
                word = option.word or spoken(name)
                if option.kind == LAYER:
                    found.append(Setting(name, word, "default", ("default", *self._layers())))
                    continue
                choices = (True, False) if option.kind == FLAG else option.choices
                low, high = option.offered or (0, 0)
                told = TOLD.get((method, name), "")
                found.append(Setting(name, word, given.get(name, default), choices, low, high, told))
        return found

    def _of_part(self, method, part):
        """Which of several networks, and what can be changed of the only one."""
        networks_by_label = self.parts.get(method, {})
        if not networks_by_label:
            return []
        if part.word:
            return [Setting(part.option, part.word, next(iter(networks_by_label)), tuple(networks_by_label))]
        (network,) = networks_by_label.values()
        return [
            Setting(each.name, each.word, getattr(network, each.name), low=each.offered[0], high=each.offered[1])
            for each in part.settings(network)
        ]

    def _layers(self):
        """Names of layers with a map, blocks of blocks at most (layer4.0), wherever the outermost stand."""
        found = layouts(self.model, torch.zeros(1, 3, self.size, self.size, device=self.device))
        outermost = min((name.count(".") for name in found), default=0)
        return [name for name in found if name.count(".") < outermost + 2]

    def key(self, picture, target, method, options):
        """What a map depends on, and nothing else: pixels, class, method (as it is now), options, weights."""
        given = json.dumps([int(target), method, options, self.weights], sort_keys=True)
        content = hashlib.sha256(picture.pixels.numpy().tobytes() + given.encode()).hexdigest()
        return EXPLAINERS[method].function, content

    def _batch(self, picture):
        return picture.pixels[None].to(self.device)

    @torch.inference_mode()
    def probabilities(self, model, picture):
        """The softmax probabilities (K,) of an image."""
        return networks.logits_of(model, self._batch(picture)).softmax(1)[0].cpu()

    @torch.inference_mode()
    def class_probabilities(self, model, images, target):
        """The class probability of several images (n, 3, S, S), a list."""
        return networks.logits_of(model, images.to(self.device)).softmax(1)[:, int(target)].tolist()

    @torch.inference_mode()
    def classes_of(self, model, images):
        """The classes that the network gives several images (n, 3, S, S), places in `classes`."""
        return tuple(networks.logits_of(model, images.to(self.device)).argmax(1).tolist())

    def stack(self, model, picture):
        """The SMOE Scale of each spatial scale: layer names, and the stack (L, S, S) in [0, 1]."""
        images = self._batch(picture)
        return networks.scale_layers(model, images), smoe.layer_maps(model, images)[0].cpu()

    def plain_seconds(self, model) -> float:
        """What a plain pass of one image takes: the shortest of UNIT_ROUNDS, for a busy machine only adds to it."""
        images = torch.zeros(1, 3, self.size, self.size, device=self.device)
        return min(self._timed(lambda: plain_forward(model, images))[1] for _ in range(UNIT_ROUNDS))

    def _timed(self, work):
        """What `work` gives and the seconds that it takes."""
        synchronise = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        synchronise()
        begun = time.perf_counter()
        result = work()
        synchronise()
        return result, time.perf_counter() - begun

    def explain(self, model, picture, target, method, options, look=None, *, counted=None) -> Explanation:
        """One map, its time and its passes: `counted` before, on any image, or now. `look` watches the passes.

        ValueError naming the stage where the method's network is missing, and whatever the method refuses.
        """
        if method in self.missing:
            raise ValueError(self.missing[method])
        images, found = self._batch(picture), []

        def explained(*_):
            given = self._arguments(method, options)
            make = partial(_map_and_count, model, images, int(target), method, given)
            found.append(self._timed(make))

        quick = passes(method, options) <= QUICK
        with watched(model, look or (lambda _: None)):
            if counted is None:
                if quick:
                    explained()  # what is found once, such as the layers to read, is no cost of a map
                counted = counted_passes(model, images, explained)
                if quick:  # whose time the counting would lengthen
                    explained()
            else:
                explained()
        (scores, taken), seconds = found[-1]
        return Explanation(scores, rank_pixels(scores[None])[0], seconds, counted, taken)

    def _arguments(self, method, options):
        """The options as the method's function takes them."""
        record, given = EXPLAINERS[method], dict(options)
        if given.get("layer") == "default":
            del given["layer"]
        if record.part is not None:
            networks_by_label = self.parts[method]
            network = networks_by_label[given.pop(record.part.option, next(iter(networks_by_label)))]
            changed = {each.name: given.pop(each.name) for each in record.part.settings(network) if each.name in given}
            given[record.part.option] = copy.copy(network)  # shares its weights
            vars(given[record.part.option]).update(changed)
        return record.seeded(given, given.pop("seed", 0), self.device)

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


def _map_and_count(model, images, target, method, options):
    """The map (S, S) of an image, and how many masks RISE took for it; None: the method is another."""
    if method == "rise":
        maps, taken = rise_and_count(model, images, target, **EXPLAINERS[method].keywords | options)
        return maps[0].cpu(), int(taken)
    return explainers.explain(model, images, target, method=method, **options)[0].cpu(), None


def spoken(name):
    """A method's or option's name as words."""
    return str(name).replace("_", " ").replace(" plus plus", "++")
