"""What a page knows of its `Subject`, and the asking for what it does not know yet.

Answers are kept by their content, so that a setting that was there before, or a cheap one, never explains anew.
"""

from collections import OrderedDict
from copy import deepcopy

from xai_utils.explainers import passes
from xai_utils.widgets.background import Lane
from xai_utils.widgets.subject import QUICK

KEPT = 512  # answers and pictures in memory: at 224 pixels 100 MB


class Answers:
    """The answers of one `Subject`, the last `KEPT` by key: quick maps are made at once, all else in a `Lane`.

    Its owner calls it under a lock. `done(key, answer)` and `progress(key, images)` are called in the lane's thread:
    there the owner takes that lock and keeps the answer (`keep`).
    """

    def __init__(self, subject, *, done, progress):
        self.subject, self.model = subject, subject.model  # asked by the owner only; the lane asks its own copy
        self._slow_model = deepcopy(subject.model)
        self._kept = OrderedDict()
        self.lane = Lane(done=done, progress=progress)

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

    def is_quick(self, method, options):
        """Whether nobody needs to wait for a map, or for the error in its place."""
        return method in self.subject.missing or passes(method, options) <= QUICK

    def explain(self, key, *question):
        """Keep the map of `question` (picture, class, method, options), made now, or the error to show in its place."""
        try:
            answer = self.subject.explain(self.model, *question, None)
        except Exception as error:  # a bad option must not end the page
            answer = error
        self.keep(key, answer)

    def map_task(self, *question):
        """The lane's work that makes the map of `question`."""
        return lambda look: self.subject.explain(self._slow_model, *question, look)

    def curves_task(self, *question):
        """The lane's work that makes the curves of `question` (picture, class, explanation)."""
        return lambda look: self.subject.perturbed(self._slow_model, *question, look)
