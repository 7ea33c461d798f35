"""Which method to use when: the rows that are chosen, and what each says."""

import math

import numpy as np
import pandas

from xai_utils.evaluation import guide
from xai_utils.evaluation.trust import BELOW, BEST, LEVEL, OVERALL, WEAK


def summary(standings, part_truth):
    """As metrics.json: `standings` method -> (standing, overall, passes), in the order of trust."""
    table = {
        name: {"overall": overall, "low": overall - 0.1, "high": overall + 0.1, "passes": passes, "standing": standing}
        for name, (standing, overall, passes) in standings.items()
    }
    level = [name for name, (standing, *_) in standings.items() if standing in (BEST, LEVEL)]
    cheapest = min(level, key=lambda name: table[name]["passes"])
    score = lambda mean: {"mean": mean, "low": mean, "high": mean}  # noqa: E731
    methods = {name: {"part_truth": score(part_truth.get(name, 0.1)), "insertion": score(0.5)} for name in standings}
    metrics = {name: {"label": name.replace("_", " ").capitalize()} for name in ("insertion", "part_truth")}
    return {"metrics": metrics, "methods": methods, "trust": {"level": level, "cheapest": cheapest, "table": table}}


STANDINGS = {
    "rise": (BEST, 0.9, 500.0),
    "lime": (LEVEL, 0.88, 300.0),
    "gradient": (LEVEL, 0.87, 2.0),
    "akd": (BELOW, 0.8, 1.2),
    "grad_cam": (BELOW, 0.7, 1.0),
    "smooth_grad": (WEAK, 0.2, 33.0),
}


def test_rows_are_the_best_the_cheapest_as_good_the_truest_and_the_papers():
    """LIME, which is none of them, comes last of ten; every row says how good, how near to the truth, how dear."""
    found = guide.rows(summary(STANDINGS, {"akd": 0.4, "lime": math.nan}))
    assert [row["method"] for row in found] == list(STANDINGS)
    assert found[0] == {
        "method": "rise",
        "faithfulness": "0.900 [0.800, 1.000]",
        "part truth": "0.100 [0.100, 0.100]",
        "passes": "500",
        "when to use": "the most faithful here; many passes, nothing to train",
    }
    said = {row["method"]: row["when to use"] for row in found}
    assert said["gradient"] == "as faithful as the best; a gradient, nothing to train"
    assert said["akd"] == "better than every control; best part truth; one pass, once trained"
    assert said["grad_cam"] == "better than every control; one pass, nothing to train"
    assert said["smooth_grad"].startswith("not above every control")


def test_ten_rows_are_enough():
    """Of fifteen rivals those that nothing speaks for are left out, the papers' methods stay."""
    many = STANDINGS | {f"other_{number}": (BELOW, 0.5, 9.0) for number in range(15)} | {"amg": (BELOW, 0.4, 1.0)}
    methods = [row["method"] for row in guide.rows(summary(many, {"other_7": 0.9}))]
    assert len(methods) == guide.ROWS
    assert {"rise", "gradient", "other_7", "akd", "amg", "grad_cam"} < set(methods)


def test_a_truth_that_no_method_was_scored_by_has_no_best():
    """All rows stand there all the same."""
    found = guide.rows(summary(STANDINGS, dict.fromkeys(STANDINGS, math.nan)))
    assert [row["method"] for row in found] == list(STANDINGS)
    assert not any("best part truth" in row["when to use"] for row in found)


def test_without_trust_there_is_no_guide():
    """Nothing was decided: no row, no table."""
    given = summary(STANDINGS, {}) | {"trust": None}
    assert guide.rows(given) == []
    assert guide.markdown([]) == ""


def test_markdown_has_the_cells_of_the_rows():
    """A head, a line, the rows, names as code."""
    found = guide.rows(summary(STANDINGS, {}))
    head, _, first, *rest = guide.markdown(found).splitlines()
    assert head == "| method | faithfulness | part truth | passes | when to use |"
    assert first.startswith("| `rise` | 0.900 [0.800, 1.000] |")
    assert len(rest) == len(found) - 1


def test_headlines_are_few():
    """The means of the methods that a reader asks for first, of the metrics that were scored."""
    assert guide.headlines(summary(STANDINGS, {"akd": 0.4})) == {
        "insertion": {"rise": 0.5, "akd": 0.5, "grad_cam": 0.5},
        "part_truth": {"rise": 0.1, "akd": 0.4, "grad_cam": 0.1},
    }
    assert len(guide.METRICS) * len(guide.METHODS) <= 40


def test_what_is_nearest_to_the_truth_is_said_beside_chance():
    """After what trust says; nothing of a truth that no method was scored by."""
    told = summary(STANDINGS | {"random": (WEAK, 0.0, 0.0)}, {"akd": 0.4, "lime": math.nan, "random": 0.05})
    told["trust"]["sentences"] = ["RISE is best."]
    assert guide.findings(told) == [
        "RISE is best.",
        "Nearest to the truth, by part truth: `akd` 0.400 (`random` 0.050).",
    ]
    assert guide.findings(summary(STANDINGS, dict.fromkeys(STANDINGS, math.nan)) | {"trust": None}) == []


def frame(seed=0, **insertions):
    """Scores of 20 images: insertion of each method as given, with noise; no deletion; a random control above all."""
    generator, rows = np.random.default_rng(seed), []
    for method, insertion in (insertions | {"random": 0.99}).items():
        about = {"image": range(20), "label": 0, "target": 0, "method": method, "failed": 0, "deletion": 0.0}
        rows.append(pandas.DataFrame(about | {"insertion": insertion + 0.01 * generator.normal(size=20)}))
    return pandas.concat(rows, ignore_index=True)


def test_each_cost_has_its_best_method_and_how_far_it_is_from_the_best():
    """Of several of one cost the best; a row is as its method, a trained one's second pass is no gradient's.

    Two seeds that agree decide as one does; needs without scores have no row, and the control takes no part.
    """
    insertions = {"rise": 0.9, "lime": 0.8, "gradient": 0.9, "grad_cam": 0.6, "smoe": 0.5, "mine": 0.7, "akd": 0.4}
    passes = {"rise": 500, "lime": 300, "gradient": 2, "grad_cam": 1, "smoe": 1.1, "mine": 1.2, "akd": 1.6}
    given = {"methods": {"mine": {"method": "amg"}}, "passes": passes, "controls": ["random"], "resamples": 200}
    for frames in ([frame(**insertions)], [frame(seed, **insertions) for seed in range(2)]):
        found = guide.decisions(frames, seed=0, **given)
        assert list(found) == [OVERALL]
        cells = found[OVERALL]
        assert {cost: cell["method"] for cost, cell in cells.items() if cost not in (guide.MANY, guide.GRADIENT)} == {
            guide.TRAINED: "mine",
            guide.ONE: "grad_cam",
        }
        assert {cells[cost]["standing"] for cost in (guide.MANY, guide.GRADIENT)} == {BEST, LEVEL}
        assert cells[guide.TRAINED]["standing"] == cells[guide.ONE]["standing"] == BELOW
        assert abs(cells[guide.ONE]["difference"] + 0.3) < 0.02
    table = guide.decision_table(found)
    assert list(table.columns) == list(guide.COSTS)
    assert table.loc[guide.NEEDS[OVERALL], guide.ONE].startswith("`grad_cam` 0.6")
    assert table.loc[guide.NEEDS[OVERALL], guide.ONE].endswith(")")
    assert guide.decided(None, OVERALL) == "–"
    assert guide.decisions([frame()], seed=0, **given) == {}
