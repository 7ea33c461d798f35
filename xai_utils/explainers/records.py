"""What is known of a method beside its function: its names, its options, the trained network that it brings."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from xai_utils.networks.answers import SCORES, answering
from xai_utils.networks.digests import made_for, require_made_for
from xai_utils.networks.stored import STAGES

WHOLE, NUMBER, FLAG, WORD, LAYER, LAYERS, IMAGES = "whole number", "number", "flag", "word", "layer", "layers", "images"


@dataclass(frozen=True)
class Option:
    """A keyword of a method that a person may set.

    `kind`: WHOLE and NUMBER from `low` to `high` (None: open), FLAG, WORD (one of `choices`), LAYER (the name of one of
    the model's, or None), LAYERS (several) or IMAGES (a tensor, from code). `other`: types that the function takes
    besides, from code (a tensor for a named baseline). `offered`: the range of a slider; `word`: what a person reads,
    "" for the name in words; `multiplies`: the passes of a map grow with it; `optional`: None is allowed.
    """

    name: str
    kind: str = WHOLE
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    other: tuple = ()
    offered: tuple[float, float] | None = None
    word: str = ""
    multiplies: bool = False
    optional: bool = False

    @property
    def is_offered(self) -> bool:
        """Whether a page lets a person set it."""
        return self.offered is not None or self.kind in (FLAG, LAYER) or (self.kind == WORD and not self.optional)

    @property
    def allowed(self) -> str:
        """What may be given, in words."""
        if self.kind in (WHOLE, NUMBER):
            least = "" if self.low is None else f", {self.low:.10g} or more"
            return f"a {self.kind}" + (least if self.high is None else f", {self.low:.10g} to {self.high:.10g}")
        return {
            FLAG: "true or false",
            WORD: f"one of {', '.join(map(str, self.choices))}",
            LAYER: "the name of a layer",
            LAYERS: "two names of layers or more",
            IMAGES: "images (B, 3, h, w) in [0, 1], a tensor, from code",
        }[self.kind]

    def check(self, method: str, value):
        """ValueError naming the option, the value and what is allowed."""
        if (value is None and (self.optional or self.kind in (LAYER, LAYERS))) or isinstance(value, self.other):
            return
        fits = {
            WHOLE: isinstance(value, int) and not isinstance(value, bool),
            NUMBER: isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf,
            FLAG: isinstance(value, bool),
            WORD: isinstance(value, str) and value in self.choices,
            LAYER: isinstance(value, str),
            LAYERS: isinstance(value, list | tuple) and all(isinstance(name, str) for name in value),
            IMAGES: isinstance(value, torch.Tensor),
        }[self.kind]
        if fits and self.kind in (WHOLE, NUMBER):
            fits = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        if not fits:
            raise ValueError(f"{method}: {self.name} is {value!r}; give {self.allowed}")


@dataclass(frozen=True)
class Part:
    """A trained network that a method needs beside the model.

    `option`: the method's keyword that takes the network or its folder; `network`: its class; `kind`: of its files
    (networks/stored.py); `load(folder, device=)`. It belongs to one model, and keeps whose it is (networks/digests.py).
    """

    option: str
    network: type
    kind: str
    load: Callable
    prepared: Callable = lambda network: network  # what is done once after opening: an inference copy
    layers: Callable = lambda network: ()  # names of layers of the model that it reads
    word: str = ""  # what tells several of them apart for a person, "" where a method has one
    label: Callable = lambda network, folder: folder.name  # this one's value of it
    settings: Callable = lambda network: ()  # options that are attributes of the network
    without: str = ""  # what the option's None does, where it is allowed

    @property
    def stage(self) -> str:
        """The stage of the pipeline that trains it."""
        return STAGES[self.kind]

    @property
    def optional(self) -> bool:
        """Whether the method knows a way without one, None."""
        return bool(self.without)

    @property
    def _instead(self) -> str:
        told = f"or pass `{self.option}`: another folder, or the network itself ({self.network.__name__})"
        return f"{told}; {self.option}=None {self.without}" if self.without else told

    def check(self, value, method=""):
        """ValueError for what is neither such a network nor the path of a folder; it says what to train or to pass."""
        if not isinstance(value, self.network | str | Path) and not (value is None and self.optional):
            given = value if isinstance(value, int | float | None) else type(value).__name__
            advice = f"train one (`dvc repro {self.stage}`), {self._instead}"
            raise ValueError(f"{f'{method}: ' if method else ''}{self.option} is {given}; {advice}")

    def read(self, folder, device="cpu"):
        """The network in `folder`, as it was saved; FileNotFoundError and ValueError say what to train or to pass."""
        self.check(folder)
        try:
            return self.load(folder, device=device)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, {self._instead}") from None

    def of(self, given, model, device):
        """The network that is given, or lies in the folder that is given, opened once; of this model."""
        network, source = given, f"the given {self.kind.replace('_', ' ')}"
        if not isinstance(given, self.network):
            self.check(given)
            facts, source = Path(given) / f"{self.kind}.json", given
            written = facts.stat().st_mtime_ns if facts.is_file() else None
            network = _opened(self, str(Path(given).resolve()), written, str(device))
        self.require(network, model, source)
        return network

    def require(self, network, model, source):
        """ValueError where the network, found in `source`, was trained for another model; it says what to train."""
        advice = f"train one for this model (stage {self.stage}), or name its folder with `{self.option}`"
        require_made_for(network, model, source, advice)

    def adopt(self, network, model):
        """Make the network accept `model`, whatever it was trained for."""
        network.made_for = made_for(model)


@lru_cache(maxsize=16)
def _opened(part, folder, written, device):
    with torch.inference_mode(False):  # a cached network must serve every caller
        return part.prepared(part.read(folder, device))


@dataclass(frozen=True)
class Explainer:
    """One method: `function(model, images, target, **options) -> maps`, and what others must know of it.

    `label`, `paper` and `equation` are for readers. Keywords of the function are its `options`, the option of its
    `part`, and `generator` (it draws) and `chunk` (memory), which every method has alike. It is called as its function,
    and takes a `score` whatever the method: functions that score classes have the keyword, others explain the logit,
    and need one for a model of a single logit alone (`networks.answering`).
    """

    function: Callable
    label: str
    paper: str
    equation: str = ""
    options: tuple[Option, ...] = ()
    part: Part | None = None
    variant_of: str | None = None  # a method that is this one with another part
    signed: bool = False  # its maps tell for and against the class: below 0 is against
    may_not_apply: bool = False  # it raises NotApplicable for some kinds of network
    together: Callable | None = None  # (model, images, target, methods=names, **options): several in one pass

    def __call__(self, model, images, target=None, *, score="softmax", **options):
        own = {"score": score} if "score" in self.keywords else {}
        with answering(model, score):
            return self.function(model, images, target, **own, **options)

    @cached_property
    def keywords(self) -> dict:
        """The function's keywords: name -> default."""
        parameters = inspect.signature(self.function).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    @property
    def draws(self) -> str | None:
        """By which keyword the method takes its random numbers: "generator", "seed", or None: it draws nothing."""
        return next((name for name in ("generator", "seed") if name in self.keywords), None)

    def check(self, method: str, options: dict):
        """ValueError for an option that `method`, this one, does not have, or a value that it does not take."""
        for name, value in options.items():
            if name not in self.keywords and name != SCORE.name:
                known = ", ".join(self.keywords) or "none"
                raise ValueError(f"{method} has no option {name!r}; its options: {known}")
            if (option := self.option(name)) is not None:
                option.check(method, value)
            elif self.part is not None and name == self.part.option:
                self.part.check(value, method)
            elif not isinstance(value, torch.Generator | None):
                raise ValueError(f"{method}: {name} is {value!r}; give a torch.Generator, from code")

    def option(self, name: str) -> Option | None:
        """The record of one option; None for the part and what every method has alike."""
        known = (*self.options, CHUNK, SCORE)
        return next((option for option in known if option.name == name), None)

    def seeded(self, options: dict, seed: int, device="cpu", *, begin: int | None = None) -> dict:
        """`options` and what the method draws from: `seed`, unless they name one, or a generator.

        From a seed each image meets the same draws. A generator goes on from image to image: it begins at `begin`
        (None: at `seed`), which is to be another for each batch.
        """
        if self.draws == "seed":
            return {"seed": seed} | options
        if self.draws is None:
            return options
        return options | {"generator": torch.Generator(device).manual_seed(seed if begin is None else begin)}

    def brought(self, options: dict):
        """The trained network of the method's part, or its folder, given these options; None where it needs none."""
        return None if self.part is None else options.get(self.part.option, self.keywords[self.part.option])

    def layers(self, options: dict) -> list[str]:
        """The layers that the method reads by name, given these options."""
        names = [options["layer"]] if options.get("layer") else []
        names += options.get("layers") or []
        if (given := self.brought(options)) is not None:
            network = given if isinstance(given, self.part.network) else self.part.read(given)
            names += self.part.layers(network)
        return names


CHUNK = Option("chunk", low=1, high=1_000_000)
SCORE = Option("score", WORD, choices=tuple(SCORES))
