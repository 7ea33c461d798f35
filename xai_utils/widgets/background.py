"""Work beside the page: a thread whose network passes are counted and can be cancelled."""

import threading
import time
from collections.abc import Callable, Hashable
from contextlib import contextmanager

CLOSED_WITHIN = 10.0  # seconds, for a thread that is in no pass
TOLD_EVERY = 0.1  # seconds between two reports of progress: more would only keep the page busy


class Cancelled(Exception):
    """Raised inside a pass of a network whose result nobody waits for any more."""


@contextmanager
def watched(model, look: Callable[[int], None]):
    """Before each pass of `model` inside the `with`, `look(images of that pass)` is called and may raise `Cancelled`.

    A hook serves every method, for all of them ask the network; the model is left as it was found.
    """
    handle = model.register_forward_pre_hook(lambda _, inputs: look(len(inputs[0])))
    try:
        yield
    finally:
        handle.remove()


class Lane:
    """One thread that does the wanted tasks in their order, and drops what nobody wants any more.

    A task is a function `work(look) -> result` that passes `look` on to `watched`. `done(key, result)` gets what it
    returns, or the exception that it raises; `progress(key, images)` gets the images that went through the network so
    far. Both are called in the lane's thread. A cancelled task calls neither.
    """

    def __init__(self, *, done, progress):
        self._done, self._progress = done, progress
        self._change = threading.Condition()
        self._waiting: dict[Hashable, Callable] = {}
        self._running, self._unwanted, self._closed = None, False, False
        self._seen, self._told = 0, 0.0
        self._thread = threading.Thread(target=self._work, name="explaining", daemon=True)
        self._thread.start()

    def want(self, tasks: dict[Hashable, Callable]):
        """From now on these `tasks` (key -> work) and no others; one that runs already goes on."""
        with self._change:
            tasks = {} if self._closed else tasks  # the owner may ask while it is told the last result
            self._unwanted = self._unwanted or self._running not in tasks
            self._waiting = {key: work for key, work in tasks.items() if key != self._running or self._unwanted}
            self._change.notify_all()

    @property
    def running(self):
        """The key of the task that runs and is still wanted, or None."""
        with self._change:
            return None if self._unwanted else self._running

    def wait(self, timeout: float) -> bool:
        """Until there is nothing more to do; whether that came within `timeout` seconds."""
        with self._change:
            return self._change.wait_for(lambda: not self._waiting and self._running is None, timeout)

    def close(self):
        """Drop all tasks and end the thread, at its next pass: Python must not end while it is in one."""
        with self._change:
            self._closed = True
            self.want({})
        self._thread.join(CLOSED_WITHIN)

    def _look(self, images):
        if self._unwanted:
            raise Cancelled
        self._seen += images
        if time.monotonic() - self._told >= TOLD_EVERY:
            self._told = time.monotonic()
            self._progress(self._running, self._seen)

    def _work(self):
        while True:
            with self._change:
                self._running = None
                self._change.notify_all()
                self._change.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._running = next(iter(self._waiting))
                work = self._waiting.pop(self._running)
                self._unwanted, self._seen, self._told = False, 0, time.monotonic()
            try:
                result = work(self._look)
            except Cancelled:
                continue
            except Exception as error:
                result = error
            self._done(self._running, result)
