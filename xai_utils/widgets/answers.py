"""What a page knows of the networks that it asks, and the asking for what it does not know yet.

Answers are kept by what they answer (`Question.key`), so that a setting that was there before never explains anew, and
no answer can stand under another question.
"""

import threading
from collections import OrderedDict
from copy import deepcopy
from typing import NamedTuple

import torch

from xai_utils.explainers import passes
from xai_utils.widgets.background import Lane
from xai_utils.widgets.pictures import Picture
from xai_utils.widgets.subject import QUICK, Subject

KEPT = 512  # answers and pictures in memory: at 224 pixels 100 MB


class Asked(NamedTuple):
    """A network, an image and a class, and what the network said of the image."""

    subject: Subject
    picture: Picture
    image: str  # SHA-256 of the pixels
    target: int
    probabilities: torch.Tensor  # (K,)
    stack: tuple | str  # `Subject.stack`, or why there is none
    cells: tuple[int, ...] = ()  # of a mosaic: what the network calls the image of each cell

    @property
    def name(self):
        """The class that is explained."""
        return self.subject.classes[self.target]


class Question(NamedTuple):
    """One map that is asked for. It never changes: whatever is set on the page later is another question."""

    asked: Asked
    method: str
    options: dict

    @property
    def key(self):
        return self.asked.subject.key(self.asked.picture, self.asked.target, self.method, self.options)

    @property
    def passes(self):
        """About how many images go through the network, as far as its options tell."""
        return passes(self.method, self.options)

    @property
    def is_quick(self):
        return self.method in self.asked.subject.missing or self.passes <= QUICK


class Answers:
    """The answers to what a page asks, the last `KEPT`. What is quick and what is slow have a `Lane` each.

    Its owner calls it under a lock. `done(key, answer)` and `progress(key, images)` are called in a lane's thread:
    there the owner takes that lock and keeps the answer (`keep`).
    """

    def __init__(self, *, done, progress):
        self._kept, self._models, self._counted, self._seconds = OrderedDict(), {}, {}, {}
        self._measuring = threading.Lock()
        self.quick, self.slow = Lane(done=done, progress=progress), Lane(done=done, progress=progress)

    def keep(self, key, answer):
        self._kept[key] = answer
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def known(self, key):
        """What is known under `key`; None: nothing yet."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def once(self, key, make):
        """What `make` gives, kept under `key`."""
        if (known := self.known(key)) is None:
            self.keep(key, known := make())
        return known

    def plain_seconds(self, subject):
        """What a plain pass of a network takes, measured once; None: not yet."""
        return self._seconds.get(subject.weights)

    def want(self, quick, slow):
        """From now on these tasks (key -> work) and no others."""
        self.quick.want(quick)
        self.slow.want(slow)

    def close(self):
        self.quick.close()
        self.slow.close()

    def _model(self, subject, lane):
        """A lane's own copy of the network: methods hang hooks into it. Both are made at once, by the page's thread."""
        if subject.weights not in self._models:
            self._models[subject.weights] = deepcopy(subject.model), deepcopy(subject.model)
        return self._models[subject.weights][lane is self.slow]

    def map_task(self, question):
        """The work that makes a map; what a method's options cost is counted once, a plain pass timed once.

        What may stop early (`until`) is counted each time, for it costs as much as the image needs.
        """
        (subject, picture, _, target, *_), method, options = question
        model = self._model(subject, self.quick if question.is_quick else self.slow)
        counting = subject.weights, subject.size, method, str(options)

        def work(look):
            with self._measuring:
                if subject.weights not in self._seconds:
                    self._seconds[subject.weights] = subject.plain_seconds(model)
            known = self._counted.get(counting) if options.get("until", 1) == 1 else None
            found = subject.explain(model, picture, target, method, options, look, counted=known)
            self._counted[counting] = found.passes
            return found

        return work

    def curves_task(self, question, explanation):
        """The work that measures a map's insertion and deletion."""
        subject, picture, _, target, *_ = question.asked
        model = self._model(subject, self.slow)
        return lambda look: subject.perturbed(model, picture, target, explanation, look)

    def masked_task(self, question, explanation, share, hidden):
        """The work that asks for the class's probability where only the top `share` of the pixels is left."""
        subject, picture, _, target, *_ = question.asked
        model = self._model(subject, self.quick)

        def work(look):
            images = subject.masked(picture, explanation, share, hidden)[None]
            return subject.class_probabilities(model, images, target)[0]

        return work

    def deciding_task(self, asked):
        """The work that finds the names of the parts that decide for the class."""
        model = self._model(asked.subject, self.quick)
        return lambda look: asked.picture.deciding(model, asked.target, asked.subject.device)
