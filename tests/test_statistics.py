"""Intervals, paired tests and their correction, by hand and beside the normal distribution."""

import math

import numpy as np
import pytest
from scipy import stats

from xai_utils.metrics.statistics import (
    bootstrap_interval,
    decide,
    decide_all,
    holm,
    paired_test,
    paired_tests,
    summary,
)


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


def test_hits_have_the_exact_interval():
    """None of 8: the bound solves (1 - p)^8 = 0.025; in percent it is a hundredfold; what is no hit is refused."""
    high = 1 - 0.025 ** (1 / 8)
    none = summary([0.0] * 8, seed=0, hit=1)
    assert (none["mean"], none["low"], none["high"]) == pytest.approx((0, 0, high))
    every = summary([100.0] * 8 + [math.nan], seed=0, hit=100)
    assert (every["low"], every["high"], every["failures"]) == pytest.approx((100 * (1 - high), 100, 1))
    with pytest.raises(ValueError, match=r"hits are 0 or 1, and 0\.5 is among the values"):
        summary([0, 0.5], seed=0, hit=1)


def test_the_mean_over_categories_and_its_interval():
    """Hits (1, 1, 1, 0) of one category and (0) of another: 0.375, not 0.6; NaN images do not count."""
    hits, categories = [1, 1, 1, 0, 0, math.nan, math.nan], list("aaaabbc")
    found = summary(hits, seed=0, categories=categories)
    assert found["mean"] == pytest.approx(0.375)
    assert (found["n"], found["failures"]) == (5, 2)
    assert found["low"] < 0.375 < found["high"] <= 0.5  # b's only image is drawn every time
    assert math.isnan(summary([math.nan], seed=0, categories=["a"])["mean"])
    assert bootstrap_interval([1, 1, 0, 0], categories=list("aabb"), seed=0) == (0.5, 0.5)
    with pytest.raises(ValueError, match="5 values and 4 categories"):
        bootstrap_interval([0, 1, 0, 1, 0], categories=list("aabb"), seed=0)


def test_the_interval_over_categories_is_that_of_its_mean():
    """Of categories of 200 and 50 normal values: ± 1.96 sqrt(s₁²/200 + s₂²/50) / 2, and by a loop that draws itself."""
    noise = np.random.default_rng(0)
    samples = [noise.normal(0, 1, 200), noise.normal(5, 3, 50)]
    values, categories = np.concatenate(samples), np.repeat([4, 2], [200, 50])
    middle = np.mean([sample.mean() for sample in samples])
    half = 1.96 * math.sqrt(sum(sample.var() / len(sample) for sample in samples)) / 2
    low, high = bootstrap_interval(values, categories=categories, seed=1)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.1 * half)
    drawn = [np.mean([noise.choice(sample, len(sample)).mean() for sample in samples]) for _ in range(4000)]
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.1 * half)


def test_paired_test_flips_signs():
    """Five differences 1 to 5: 2 of 32 sign patterns are as extreme, p = 1/16; equal scores have p = 1."""
    a = np.array([1.0, 2, 3, 4, 5, math.nan])
    result = paired_test(a, np.zeros(6), seed=0)
    assert (result["difference"], result["p"], result["n"]) == (3, 0.0625, 5)
    assert paired_test(a, a, seed=0) == {"difference": 0, "low": 0, "high": 0, "p": 1, "n": 5}
    noise = np.random.default_rng(0).normal(size=200)
    assert paired_test(noise + 0.5, np.zeros(200), seed=0)["p"] < 0.001
    assert paired_test([math.nan], [1], seed=0)["n"] == 0
    with pytest.raises(ValueError, match="same images"):
        paired_test([1, 2], [1], seed=0)


def test_hits_are_tested_by_mcnemar():
    """Of 30 images 9 are hit by one method alone and 2 by the other alone: twice the tail of Binomial(11, 1/2)."""
    a = np.array([1.0] * 9 + [0] * 2 + [1] * 19)
    b = np.array([0.0] * 9 + [1] * 2 + [1] * 19)
    tail = sum(math.comb(11, k) for k in range(3)) / 2**11
    assert paired_test(a, b, seed=0)["p"] == pytest.approx(2 * tail)
    assert paired_test(100 * b, 100 * a, seed=0)["p"] == pytest.approx(2 * tail)


@pytest.mark.parametrize(("images", "verdict"), [(1, "undecided"), (5, "undecided"), (6, "holds"), (60, "holds")])
def test_equal_differences_have_a_width(images, verdict):
    """N times the same difference c: p = 2 / 2^N, and the interval ends at c (2 · 0.025^(1/N) - 1), not at c."""
    test = paired_test(np.full(images, 0.3), np.zeros(images), seed=0)
    assert test["p"] == pytest.approx(min(1, 2 / 2**images))
    assert (test["low"], test["high"]) == pytest.approx((0.3 * (2 * 0.025 ** (1 / images) - 1), 0.3))
    assert decide(test) == verdict
    mirrored = paired_test(np.zeros(images), np.full(images, 0.3), seed=0)
    assert (mirrored["low"], mirrored["high"]) == (-test["high"], -test["low"])


def test_runs_are_a_source_of_chance():
    """Three runs that part by more than their mean decide nothing, however many images; alike ones decide as one."""
    images = np.random.default_rng(0).normal(0, 0.1, 60)
    alike = paired_test(1 + np.stack([images] * 3), np.zeros((3, 60)), seed=0)
    assert alike == paired_test(1 + images, np.zeros(60), seed=0)
    apart = paired_test(np.array([[0.2], [1.0], [1.8]]) + images, np.zeros((3, 60)), seed=0)
    assert apart["low"] > 0  # of every resample all runs may be the lowest, and that one lies above 0
    # the images add next to nothing: Student's t of the three means, 1.0 / (0.8 / √3), two degrees of freedom
    assert apart["p"] == pytest.approx(2 * stats.t.sf(math.sqrt(3) / 0.8, 2), rel=0.02)
    assert decide(apart) == "undecided"
    missing = paired_test([[1, math.nan, 3], [1.5, 2, 3]], np.zeros((2, 3)), seed=0)
    assert missing["n"] == 2


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


def case(difference, p, end=0.1):
    """A test whose interval reaches from twice the difference to `end` times it: below 0 to the other side."""
    low, high = sorted((2 * difference, end * difference))
    return {"difference": difference, "low": low, "high": high, "p": p}


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        (case(1, 0.01), "holds"),
        (case(-1, 0.01), "fails"),
        (case(1, 0.06), "undecided"),  # the interval alone
        (case(1, 0.01, -0.1), "undecided"),  # the test alone
        (case(1, 0.01, 0), "undecided"),  # the interval touches 0
        (case(math.nan, math.nan), "undecided"),
    ],
)
def test_interval_and_test_must_agree(test, verdict):
    """Both on the claimed side hold, both on the other fail."""
    assert decide(test) == verdict


def test_all_of_several_hold_or_one_fails():
    """Holding needs each at 5 %, its p is the largest; failing needs one below 5 % after Holm, here p times 3."""
    good, weak = case(1, 0.001), case(1, 0.04)
    assert decide_all([good, weak, weak]) == ("holds", 0.04)
    assert decide_all([good, weak, case(1, 0.2, -0.1)]) == ("undecided", 0.2)
    assert decide_all([weak, weak, case(-1, 0.01)]) == ("fails", pytest.approx(0.03))
    assert decide_all([weak, weak, case(-1, 0.02)]) == ("undecided", pytest.approx(0.06))


def test_nine_equal_methods_are_seldom_told_apart():
    """Is A the best of nine equal methods? At most 5 % of 400 runs of 60 images decide it, where the interval to the
    best rival alone decides more than 8 %; half a standard deviation of the differences is found in most of 200 runs.

    Differences are normal, so Student's test and interval stand in for the slower resampling.
    """
    generator, found, alone = np.random.default_rng(0), [], []
    for run in range(600):
        scores = generator.normal(size=(9, 60))
        scores[0] += math.sqrt(0.5) * (run >= 400)  # the difference of two has the standard deviation √2
        differences = scores[0] - scores[1:]
        student = stats.ttest_1samp(differences, 0, axis=1)
        parts = (differences.mean(1), *student.confidence_interval(), student.pvalue)
        tests = [
            dict(zip(("difference", "low", "high", "p"), map(float, one), strict=True))
            for one in zip(*parts, strict=True)
        ]
        found.append(decide_all(tests)[0])
        rival = min(tests, key=lambda test: test["difference"])
        alone.append(rival["low"] > 0 or rival["high"] < 0)
    assert sum(verdict != "undecided" for verdict in found[:400]) <= 20
    assert sum(alone[:400]) > 32
    assert found[400:].count("holds") > 100
