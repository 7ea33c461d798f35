"""The papers' claims, decided by the paired differences of made-up scores."""

import json

import numpy as np
import pandas
import pytest

from xai_utils.papers import claims


def frame(**means):
    """Ten images; each method's insertion is its mean plus what the image adds, its M_F a hundred times that."""
    added = np.linspace(-0.05, 0.05, 10)
    rows = [
        pandas.DataFrame({"image": range(10), "method": name, "insertion": mean + added, "faithfulness": 100 * mean})
        for name, mean in means.items()
    ]
    return pandas.concat(rows)


def test_a_claim_holds_fails_or_is_undecided():
    """The best rival decides; what was not run is left out; equal scores decide nothing."""
    found = {row["claim"]: row for row in claims.of_scores(frame(rise=0.9, akd=0.8, grad_cam=0.7, lime=0.8), seed=0)}
    assert found["RISE inserts best"]["verdict"] == "holds"
    assert found["RISE inserts best"]["here"] == "Insertion: rise − akd = +0.100 [+0.100, +0.100]"
    assert found["AKD is second on insertion"]["verdict"] == "undecided"
    assert "BF points better than CF" not in found
    found = claims.of_scores(frame(rise=0.6, akd=0.8), seed=0)
    assert [row["verdict"] for row in found if row["claim"] == "RISE inserts best"] == ["fails"]


def test_of_several_the_weakest_pair_decides():
    """All gradient methods must lie below all others: one above the lowest other is enough to fail."""
    text = "gradient methods are the least faithful"

    def verdict(**means):
        return next(row["verdict"] for row in claims.of_scores(frame(**means), seed=0) if row["claim"] == text)

    assert verdict(gradient=0.1, smooth_grad=0.2, dgle_cf=0.3, grad_cam=0.5) == "holds"
    assert verdict(gradient=0.1, smooth_grad=0.4, dgle_cf=0.3, grad_cam=0.5) == "fails"


def test_other_stages_claims_and_cost_join_the_table(tmp_path):
    """FastCAM's and AMG's verdicts come from their JSON files, absent ones add nothing; names are shown as text."""
    run = {"data": "birds 1", "target": "net 2", "parameters": "3", "maps": "4"}
    assert claims.of_reports(tmp_path, run) == []
    content = {"claims": {"<b>best</b>": {"verdict": "holds", "here": "+1"}}, "run": {**run, "parameters": "another's"}}
    (tmp_path / "train_attention.json").write_text(json.dumps(content))
    rows = claims.of_reports(tmp_path, run) + claims.faster({"akd": 1.1, "rise": 500.0})
    assert [(row["paper"], row["verdict"]) for row in rows] == [("AMG", "holds"), ("AKD", "holds")]
    assert "1.10 and 500 passes" in claims.html(rows)
    assert "&lt;b&gt;best" in claims.html(rows)
    assert claims.faster({"akd": 1.1}) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"data": "birds 1", "target": "net 2"}, "data birds 1 instead of cars 1, target net 2 instead of net 3"),
        ({"data": "cars 1", "target": "net 2"}, "target net 2 instead of net 3"),
        (None, "it does not say of which, an earlier version wrote it"),
    ],
)
def test_claims_of_another_run_are_not_told(tmp_path, found, told):
    """In their place stands of which run they are, and what to run; those of this run stand beside it."""
    run = {"data": "cars 1", "target": "net 3", "maps": "4"}
    content = {"claims": {"best": {"verdict": "holds", "here": "+1"}}}
    (tmp_path / "remove_and_retrain.json").write_text(json.dumps(content | ({"run": found} if found else {})))
    (tmp_path / "train_attention.json").write_text(json.dumps(content | {"run": {"data": "cars 1", "target": "net 3"}}))
    other, own = claims.of_reports(tmp_path, run)
    assert own == {"paper": "AMG", "claim": "best", "here": "+1", "verdict": "holds"}
    here = f"remove_and_retrain.json is of another run ({told}); run the stage remove_and_retrain again"
    assert other == {"paper": "FastCAM", "claim": "all of them", "here": here, "verdict": "not of this run"}
