"""Batches read by threads while the network learns from the ones before."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def ahead(function: Callable, items: Iterable, *, count: int, begin: Callable[[], object] | None = None) -> Iterator:
    """`function(item)` of every item, in order, with the next `count` of them already being made, each by a thread.

    0 makes each when it is asked for, in the caller's thread. `begin` is what every thread does first. An exception
    comes up where its result would. `close()` ends the threads.
    """
    if count == 0:
        yield from map(function, items)
        return
    waiting, pool = deque(), ThreadPoolExecutor(count, "reading", begin)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
