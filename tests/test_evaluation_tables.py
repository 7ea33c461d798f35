"""Result tables: the numbers of a scored run as JSON, HTML, Markdown, beside controls and beside the papers."""

import numpy as np
import pandas
import pytest

from xai_utils.evaluation import tables
from xai_utils.evaluation.scores import score_table

METRICS = ["insertion", "deletion", "pointing_game", "mean_intensity"]


@pytest.fixture(scope="module")
def scored():
    """Eight images; grad_cam is clearly better than random on every metric, xgrad_cam a little worse than it."""
    base = np.linspace(0, 0.07, 8)
    rows = []
    for method, insertion, deletion, hits in (
        ("grad_cam", 0.8, 0.1, [1] * 8),
        ("xgrad_cam", 0.7, 0.2, [1] * 6 + [0] * 2),
        ("random", 0.3, 0.6, [0] * 8),
    ):
        about = {"image": range(8), "label": [0, 1] * 4, "target": [0, 1] * 3 + [0, 0], "method": method, "failed": 0}
        scores = {
            "insertion": insertion + base,
            "deletion": deletion + base,
            "pointing_game": hits,
            "mean_intensity": 0.5,
        }
        rows.append(pandas.DataFrame(about | scores))
    frame = pandas.concat(rows, ignore_index=True)
    table = score_table(frame, METRICS, seed=0)
    result = {
        "indices": np.arange(8),
        "targets": np.array([0, 1] * 3 + [0, 0]),
        "labels": np.array([0, 1] * 4),
        "protocol": {
            "curves": {"insertion": {"baseline": "blur", "points": 29}},
            "options": {},
            "score": "softmax probability",
        },
    }
    passes = {"grad_cam": 1.0, "xgrad_cam": 1.0, "random": 0.0}
    return (
        frame,
        table,
        tables.summarise(result, table, passes, asked=[*METRICS, "faithfulness"], confidence=0.95, seed=0),
    )


def test_the_summary_says_what_was_measured_and_how(scored):
    """Means by hand (base adds 0.035), direction, n, seed, and how often the explained class is right (7 of 8)."""
    _, _, summary = scored
    assert summary["methods"]["grad_cam"]["insertion"]["mean"] == pytest.approx(0.835)
    assert summary["methods"]["random"]["passes"] == 0
    assert [summary["metrics"][name]["arrow"] for name in METRICS] == ["↑", "↓", "↑", ""]
    assert summary["metrics"]["deletion"]["n"] == 8
    assert summary["protocol"].startswith("8 held-out images (all 8 scored by each metric), seed 0, 95% bootstrap")
    assert "right on 88% of the images" in summary["protocol"]
    assert summary["protocol"].endswith("Left out, for no image has a score: faithfulness.")
    assert summary["curves"] == {"insertion": "Removed pixels: blur; 29 points, end points included."}


def test_the_list_of_what_columns_measure_follows_the_run(scored):
    """16 pixels of 64 a step are 4 steps and 5 points; settings are the run's, those of an image of 8 pixels."""
    _, _, summary = scored
    curves = {"insertion": {"baseline": "blur", "pixels_per_step": 224 * 224 // 4}, "deletion": {"baseline": "black"}}
    settings = {"curves": curves, "options": {"pointing_game": {"tolerance": 7}}, "part_threshold": 0.3}
    summary = summary | {"metrics": summary["metrics"] | {"part_truth": {"label": "Part truth"}}}
    text = tables.measured(summary, (8, 8), settings)
    assert text.count("<dt>") == len(METRICS) + 1
    assert "on the parts that decide; threshold 0.3</dd>" in text
    assert "return to the baseline; baseline blur; score softmax; 5 points, 16 of 64 pixels a step</dd>" in text
    assert "become the baseline; baseline black; " in text
    assert "a constant map misses; tolerance 7</dd>" in text


def test_best_follows_the_direction_of_the_metric(scored):
    """Highest insertion and lowest deletion are best."""
    _, _, summary = scored
    assert tables.best(summary, "insertion") == tables.best(summary, "deletion") == "grad_cam"
    assert tables.best(summary, "mean_intensity") is None  # neither direction is better


def test_html_and_markdown_show_the_same_cells(scored):
    """The best mean is bold in both, the interval stands beside it; the row of a method that a run lacks has a dash."""
    _, _, summary = scored
    score = summary["methods"]["grad_cam"]["deletion"]
    low, high = f"{score['low']:.3f}", f"{score['high']:.3f}"
    assert f"><b>0.135</b><br><small>{low} – {high}</small></td>" in tables.html(summary)
    other = summary | {"methods": {"random": summary["methods"]["random"]}}
    head, _, first, _ = tables.side_by_side(
        {"a": summary, "b": other}, ["deletion"], ["grad_cam", "random"]
    ).splitlines()
    assert head == "| method | Deletion ↓, a | Deletion ↓, b |"
    assert first == f"| `grad_cam` | **0.135** [{low}, {high}] | – |"


def test_standings_say_who_is_best_and_who_is_level_with_it(scored):
    """Insertion is apart by 0.1 for all eight images (p = 2 / 2^8); two more misses of eight are no evidence.

    The second best is judged as every other: it is marked where it is level, and only there.
    """
    frame, table, summary = scored
    found = tables.standings(frame, table, METRICS, seed=0)
    assert found["insertion"] == {"grad_cam": "best", "xgrad_cam": "", "random": ""}
    assert found["pointing_game"]["xgrad_cam"] == "level"
    assert "mean_intensity" not in found
    page = tables.html(summary, found)
    assert "0.735<br>" in page
    assert "0.750 ≈<br>" in page
    assert page.index(">Pointing game") > page.index(">Deletion") > page.index(">Insertion") > page.index(">passes")
    assert page.index(">controls, ") > page.index(">xgrad_cam<")


def test_names_in_html_are_text(scored):
    """A method or a label that looks like HTML is shown as it is written."""
    name = "<img src=x onerror=alert(1)>"
    _, _, summary = scored
    methods = {name: summary["methods"]["random"]}
    metrics = {metric: about | {"label": f"{name} {metric}"} for metric, about in summary["metrics"].items()}
    page = tables.html({"methods": methods, "metrics": metrics})
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") == 1 + len(metrics)


def test_methods_are_tested_against_the_best_control(scored):
    """Differences by hand; both methods' intervals lie apart from random's, in the better direction: ✓."""
    frame, table, _ = scored
    rows = tables.against_controls(frame, table, METRICS, controls=("random", "sobel_edges"), seed=0)
    assert rows.loc["grad_cam", ("Insertion", "over random")].startswith("+0.500 (p 0.")
    assert rows.loc["xgrad_cam", ("Deletion", "over random")].startswith("-0.400 (p 0.")
    assert all(text.endswith(" ✓") for text in rows[["Insertion", "Deletion"]].to_numpy().flat)
    assert "Mean intensity" not in rows
    assert tables.against_controls(frame, table, METRICS, controls=("sobel_edges",), seed=0).empty


def test_truth_stands_beside_what_a_map_scores_that_knows_nothing():
    """Means 0.6 and 0.2 over a chance of 0.25 are 2.4 and 0.8; the best comes first; without a metric all stay."""
    rows = {"random": [0.2, 0.1, 0.3], "grad_cam": [0.6, 0.5, 0.7]}
    columns = ["grid_pointing", "grid_pointing_low", "grid_pointing_high"]
    table = pandas.DataFrame.from_dict(rows, orient="index", columns=columns)
    told = tables.truth(table, {"grid_pointing": 0.25})
    assert told.to_numpy().tolist() == [["0.600 [0.500, 0.700]", "2.4"], ["0.200 [0.100, 0.300]", "0.8"]]
    assert list(told.columns) == [("Grid pointing", "mean ↑ (chance 0.250)"), ("Grid pointing", "times chance ↑")]
    assert list(tables.truth(table, {}).index) == ["random", "grad_cam"]
