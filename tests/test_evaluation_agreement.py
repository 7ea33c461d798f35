"""Which metric can be believed: by hand, from scores whose order is that of the truth, its reverse, or none."""

import numpy as np
import pandas
import pytest

from xai_utils.evaluation import agreement

METHODS, IMAGES = "abcdef", 30
METRICS = ["insertion", "deletion", "average_drop", "mean_intensity", "part_truth", "grid_pointing"]


def frame(seed=0, images=IMAGES, noise=0.01, methods=(*METHODS, "random")):
    """Of six methods and a control: insertion and deletion (lower is better) in the order of part truth, average drop
    in the reverse one, grid pointing in one of its own, on every other image alone.
    """
    generator, rows = np.random.default_rng(seed), []
    for place, method in enumerate(methods):
        drawn = place / 10 + noise * generator.normal(size=(4, images))
        about = {"image": range(images), "label": 0, "target": 0, "method": method, "failed": 0, "mean_intensity": 0.5}
        scores = {"part_truth": drawn[0], "insertion": drawn[1], "deletion": 1 - drawn[2], "average_drop": drawn[3]}
        game = np.where(np.arange(images) % 2, np.nan, abs(place - 2.2))
        rows.append(pandas.DataFrame(about | scores | {"grid_pointing": game}))
    return pandas.concat(rows, ignore_index=True)


def found(*frames, controls=("random",), **given):
    return agreement.agreement(list(frames), METRICS, controls=controls, seed=0, resamples=100, **given)


def test_agreement_with_the_truth_by_hand():
    """1 where the order is the truth's, -1 where it is the reverse; what has no better direction is left out.

    |place - 2.2| over 0 … 5 has the ranks 5, 3, 1, 2, 4, 6: Spearman's correlation with 1 … 6 is 1 - 6 · 26 / 210.
    """
    result = found(frame())
    assert list(result) == ["insertion", "deletion", "average_drop", "part_truth", "grid_pointing"]
    for name, expected in (("insertion", 1), ("deletion", 1), ("average_drop", -1), ("grid_pointing", 1 - 156 / 210)):
        score = result[name]["part_truth"][agreement.OVER]
        assert list(score.values()) == pytest.approx([expected] * 3)
        assert result[name]["part_truth"][agreement.WITHIN]["mean"] == pytest.approx(expected, abs=0.02)
    assert list(result["part_truth"]) == ["grid_pointing"]
    assert result["part_truth"]["grid_pointing"][agreement.OVER]["mean"] == pytest.approx(1 - 156 / 210)


def test_within_an_image_noise_hides_the_order_that_means_have():
    """Over methods the means of many images decide; in a single image noise does, and the interval is of its mean."""
    score = found(frame(noise=0.3, images=400))["insertion"]["part_truth"]
    assert score[agreement.OVER]["mean"] > 0.9
    assert 0 < score[agreement.WITHIN]["low"] < score[agreement.WITHIN]["mean"] < score[agreement.WITHIN]["high"] < 0.6


def test_several_runs_are_pooled_with_wider_intervals():
    """Two runs that contradict each other have the mean order of both, and an interval from the one to the other."""
    other = frame(seed=1)
    other["insertion"] = -other["insertion"]
    score = found(frame(), other)["insertion"]["part_truth"][agreement.WITHIN]
    assert score["mean"] == pytest.approx(0, abs=0.02)
    assert score["low"] == pytest.approx(-1, abs=0.05)
    assert score["high"] == pytest.approx(1, abs=0.05)
    assert list(found(frame(), other.drop(columns="deletion"))) == list(found(frame().drop(columns="deletion")))


def test_what_cannot_be_said_is_left_out():
    """No truth, or too few methods to have an order: nothing; the controls are not among the methods."""
    assert found(frame().drop(columns=["part_truth", "grid_pointing"])) == {}
    assert found(frame(methods="abc")) == {}
    assert found(frame(methods="abcd"), controls="d") == {}
    assert agreement.sentences({}) == []


def test_an_order_survives_another_network_or_not():
    """The same scores again: 1; those of a network on which it is reversed: -1."""
    first, other = frame(), frame()
    other["insertion"] = 1 - other["insertion"]
    result = agreement.across([first], [other], METRICS, controls=["random"], seed=0, resamples=50)
    assert list(result["deletion"].values()) == [1, 1, 1]
    assert list(result["insertion"].values()) == [-1, -1, -1]


def test_metrics_that_agree_stand_side_by_side():
    """Symmetric, 1 on the diagonal, and the reversed one at an end."""
    matrix = agreement.between([frame()], METRICS, controls=["random"])
    assert matrix.loc["insertion", "deletion"] == pytest.approx(1)
    assert matrix.loc["insertion", "average_drop"] == pytest.approx(-1)
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.diag(matrix), 1)
    assert "average_drop" in (matrix.index[0], matrix.index[-1])


def test_the_table_and_the_sentences_say_which():
    """Sorted by the first truth; a dash where one would be held against itself; what is against the truth is named."""
    result = found(frame())
    table = agreement.table(result)
    assert list(table.index)[:2] == ["Insertion", "Deletion"]
    assert table.index[-1] == "Average drop"
    assert table.loc["Insertion", ("Part truth", "methods ↑")] == "1.00 [1.00, 1.00]"
    assert table.loc["Part truth", ("Part truth", "methods ↑")] == "–"
    said = agreement.sentences(result)
    assert said[0].startswith("Of 3 metrics 2 order the methods like part truth does, most of all `insertion`: ")
    assert said[0].endswith("against it: `average_drop`.")
    assert len(said) == 2
