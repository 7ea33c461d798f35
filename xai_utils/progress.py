"""How far a work is, and about how long the rest takes: text for whoever logs it."""

import time


def span(seconds: float) -> str:
    """A duration in words, as exact as an estimate is."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


class Progress:
    """A work of `total` equal parts that begins now; called with the parts done: "3 of 9, about 40 s left"."""

    def __init__(self, total: int):
        self.total, self.begun = total, time.monotonic()

    def __call__(self, done: int) -> str:
        rest = (time.monotonic() - self.begun) / done * (self.total - done)
        return f"{done} of {self.total}" + (f", about {span(rest)} left" if done < self.total else "")
