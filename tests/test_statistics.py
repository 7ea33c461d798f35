"""Intervals, paired tests and their correction, by hand and beside the normal distribution."""

import math

import numpy as np
import pytest

from xai_utils.metrics.statistics import bootstrap_interval, decide, holm, paired_test, paired_tests, summary


def test_bootstrap_interval_is_the_normal_one_where_it_should_be():
    """For 400 normal values: close to mean +- 1.96 s / sqrt(n), around the known mean, the same for the same seed."""
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(values, seed=1)
    assert low < 3 < high
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(values, seed=1) == (low, high)
    assert bootstrap_interval(values, seed=2) != (low, high)
    inner = bootstrap_interval(values, seed=1, confidence=0.5)
    assert low < inner[0] < inner[1] < high


def test_intervals_of_hardly_any_values():
    """One value or equal values are their own interval; NaN and nothing are refused, and counted by the summary."""
    assert bootstrap_interval([2.5], seed=0) == (2.5, 2.5)
    assert bootstrap_interval([1, 1, 1], seed=0) == (1, 1)
    for values in ([], [1, math.nan]):
        with pytest.raises(ValueError, match="drop and count"):
            bootstrap_interval(values, seed=0)
    assert summary([1, math.nan, 1], seed=0) == {"mean": 1, "low": 1, "high": 1, "n": 2, "failures": 1}
    nothing = summary([math.nan], seed=0)
    assert math.isnan(nothing["mean"])
    assert (nothing["n"], nothing["failures"]) == (0, 1)


def test_paired_test_flips_signs():
    """Five differences of +1: 2 of 32 sign patterns are as extreme, p = 1/16; equal scores have p = 1."""
    a = np.array([1.0, 2, 3, 4, 5, math.nan])
    result = paired_test(a, a - 1, seed=0)
    assert result == {"difference": 1, "low": 1, "high": 1, "p": 0.0625, "n": 5}
    assert paired_test(a, a, seed=0)["p"] == 1
    noise = np.random.default_rng(0).normal(size=200)
    assert paired_test(noise + 0.5, np.zeros(200), seed=0)["p"] < 0.001
    assert paired_test([math.nan], [1], seed=0)["n"] == 0
    with pytest.raises(ValueError, match="same images"):
        paired_test([1, 2], [1], seed=0)


def test_several_rows_are_tested_as_one_by_one():
    """Rows against the same other one share their random flips, and have the numbers that each has on its own."""
    rows = np.random.default_rng(0).normal([[0.0], [0.2], [1.0]], size=(3, 30))
    for row, result in zip(rows, paired_tests(rows, np.zeros(30), seed=0), strict=True):
        assert result == pytest.approx(paired_test(row, np.zeros(30), seed=0), rel=1e-12)
    assert [result["n"] for result in paired_tests(np.zeros((2, 0)), [], seed=0)] == [0, 0]


def test_holm_by_hand():
    """(0.01, 0.04, 0.03, 0.005): sorted times 4, 3, 2, 1 and never falling is 0.03, 0.06, 0.06, 0.02; at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"0\.\.1"):
        holm([0.5, math.nan])


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.1, 1, "holds"), (-1, -0.1, "fails"), (0, 1, "undecided")])
def test_an_interval_decides(low, high, verdict):
    """Above 0 holds, below fails, touching it is undecided."""
    assert decide(low, high) == verdict
