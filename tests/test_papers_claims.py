"""The papers' claims, decided by the paired differences of made-up scores."""

import json

import numpy as np
import pandas

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
    assert claims.of_reports(tmp_path) == []
    content = {"claims": {"<b>best</b>": {"verdict": "holds", "here": "+1"}}}
    (tmp_path / "train_attention.json").write_text(json.dumps(content))
    rows = claims.of_reports(tmp_path) + claims.faster({"akd": 1.1, "rise": 500.0})
    assert [(row["paper"], row["verdict"]) for row in rows] == [("AMG", "holds"), ("AKD", "holds")]
    assert "1.10 and 500 forward equivalents" in claims.html(rows)
    assert "&lt;b&gt;best" in claims.html(rows)
    assert claims.faster({"akd": 1.1}) == []
