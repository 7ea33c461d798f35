"""AKD's tables: ours beside the printed numbers, with what a run lacks left out."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from xai_utils.datasets import Split
from xai_utils.papers import akd

PUBLISHED = ROOT / "data" / "published"


def score(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


RESULTS = {
    "methods": {
        "akd": {"insertion": score(0.9), "deletion": score(0.2), "mean_intensity": score(0.1)},
        "grad_cam": {"insertion": score(0.8), "deletion": score(0.3), "mean_intensity": score(0.4)},
    }
}


def test_data_sets_of_this_run_stand_above_the_papers():
    """Twelve classes of 2 and 1 images here; ImageNet and the five fine-grained sets of the paper."""
    data = SimpleNamespace(classes=("a",) * 12, train=range(24), validation=range(12), description={"name": "birds"})
    table = akd.data_sets(data, PUBLISHED)
    assert table.loc["this run: birds"].tolist() == [12, 24, 12, ""]
    assert table.loc["ImageNet", "train"] == 1281167
    assert len(table) == 7


def test_accuracies_by_hand():
    """Three hits of four are 0.75 with an interval; the printed top-1 of both networks stands beside."""
    table = akd.accuracies({"target": [1, 1, 1, 0], "student": [1, 1, 0, 0]}, [1, 1, 1, 1], PUBLISHED, seed=0)
    assert table.loc["target", "this run"].startswith("0.750 [0.")
    assert table.loc["student", "this run"].startswith("0.500 [")
    assert table.loc["agreement", "this run"] == "1.000 [0.398, 1.000]"  # 0.025^(1/4)
    assert table.loc["student", "CUB-200"] == 0.84
    assert table.loc["agreement", "CUB-200"] == ""


def test_speeds_by_hand():
    """Frames per second and intensity of what was measured; the ratio to RISE where RISE was, with the printed 814."""
    measured = {"methods": {"plain pass": {"frames per second": 80}, "akd": {"frames per second": 40}}}
    table = akd.speeds(measured, RESULTS, PUBLISHED)
    assert list(table.index) == ["plain pass", "akd"]
    assert table.loc["plain pass", ("mean intensity", "this run")] == 1
    assert table.loc["akd"].tolist() == [40, 24.4, 0.1, 0.189]
    measured["methods"]["rise"] = {"frames per second": 0.1}
    ratios = akd.speeds(measured, RESULTS, PUBLISHED).loc["akd / rise", "frames per second"]
    assert ratios.tolist() == pytest.approx([400, 814])


def test_insertion_and_deletion_stand_beside_six_data_sets():
    """Insertion first, the methods in the paper's order, only those of this run."""
    table = akd.perturbation(RESULTS, PUBLISHED)
    assert list(table.index) == [
        ("insertion", "akd"), ("insertion", "grad_cam"), ("deletion", "akd"), ("deletion", "grad_cam")
    ]  # fmt: skip
    assert table.loc[("insertion", "akd"), "this run"] == "0.900 [0.890, 0.910]"
    assert table.loc[("deletion", "grad_cam"), "Aircraft-M"] == 0.1735
    assert akd.perturbation({"methods": {}}, PUBLISHED).empty


def test_failure_cases_by_hand():
    """Of the two large objects the lower score comes first; one image changes its class."""
    cases = akd.failure_cases([0.9, 0.2, 0.5, 0.1], [9, 8, 1, 1], [0, 1, 2, 3], [0, 1, 0, 3])
    assert cases["low insertion"].tolist() == [1, 0]
    assert cases["another class"].tolist() == [2]
    assert not len(akd.failure_cases([0.5], [1], [0], [0])["another class"])
    assert isinstance(cases["another class"], np.ndarray)


def test_notes_follow_from_the_printed_table():
    """The relative gains of the tuned λ and the equal deletions are those of Table 4."""
    table = akd.printed_table(PUBLISHED, "table4_insertion_deletion").set_index(["method", "metric"])
    gains = 100 * (table.loc[("Ours", "ins")] / table.loc[("Ours_unopt", "ins")] - 1)
    assert gains.astype(float).round(1).tolist() == [8.2, 3.5, 1.5, 0.2, 1.1, 1.2]
    worse = table.loc[("Ours", "del")] > table.loc[("Ours_unopt", "del")]
    assert list(worse[worse].index) == ["CUB-200", "Aircraft-V", "Aircraft-F"]
    assert table.loc[("Ours", "del"), "ImageNet"] == table.loc[("Ours_unopt", "del"), "ImageNet"] == 0.1211


def test_box_areas_are_read_a_few_at_a_time(monkeypatch):
    """A quarter, nothing, and the half of an image of 8 pixels, in batches of two."""
    monkeypatch.setattr(akd, "BATCH", 2)
    boxes = [np.array([[0.0, 0, 4, 4]]), np.empty((0, 4)), np.array([[0.0, 0, 8, 4]])]
    pixels = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    split = Split(pixels, np.zeros(3, dtype=np.int64), boxes, None, list("abc"), ("bird",), ())
    assert akd.box_areas(split, np.array([0, 1, 2])).tolist() == [0.25, 0, 0.5]
