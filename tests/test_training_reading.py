"""Threads read ahead, in order, no further than they are asked to, and end with their reader."""

import threading

import pytest

from xai_utils.training.reading import ahead


@pytest.mark.parametrize("count", [0, 1, 4])
def test_so_many_are_begun_before_they_are_wanted(count):
    """Results come in the order of their items; those of the next `count` are being made, and no further ones."""
    taken = []
    items = (taken.append(number) or number for number in range(9))
    made = ahead(lambda number: 10 * number, items, count=count)
    for number in range(9):
        assert next(made) == 10 * number
        assert len(taken) == min(number + 1 + count, 9)
    assert next(made, "no more") == "no more"


def test_threads_work_while_their_reader_does():
    """The second is made before it is asked for; each thread begins as told."""
    made, begun = threading.Event(), []
    results = ahead(lambda number: number and made.set(), range(2), count=1, begin=lambda: begun.append(1))
    next(results)
    assert made.wait(timeout=60)
    assert begun == [1]


@pytest.mark.parametrize("count", [0, 2])
def test_an_exception_comes_where_its_result_would(count):
    """What was made before it is not lost, and no thread goes on."""
    before = threading.active_count()
    results = ahead(lambda number: 1 / (3 - number), range(9), count=count)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before
    results = ahead(str, range(9), count=count)
    next(results)
    results.close()
    assert threading.active_count() == before
