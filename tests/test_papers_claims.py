"""The papers' claims, decided by the paired differences of made-up scores."""

import json
import re

import numpy as np
import pandas
import pytest
from conftest import ROOT

from xai_utils.explainers import EXPLAINERS
from xai_utils.metrics import METRICS
from xai_utils.papers import claims
from xai_utils.pipeline import parameters


def frame(metric="insertion", images=20, seed=0, **means):
    """Score frame of one metric: each method's mean, plus what the image adds, plus a little noise of its own."""
    generator, added = np.random.default_rng(seed), np.linspace(-0.05, 0.05, images)
    rows = []
    for name, mean in means.items():
        values = mean + added + generator.normal(0, 0.01, images)
        rows.append(pandas.DataFrame({"image": range(images), "method": name, "failed": 0, metric: values}))
    return pandas.concat(rows)


def verdicts(*frames):
    found = claims.of_runs({str(n): each for n, each in enumerate(frames)}, seed=0, resamples=200, permutations=999)
    return {row["claim"]: row["verdict"] for row in found}


WORST = "gradient methods are the least faithful"


def test_a_claim_holds_fails_or_is_undecided():
    """One rival above refutes, one that is equal leaves undecided; what was not run is left out, rivals are named."""

    def row(**means):
        [found] = claims.of_scores(frame(rise=0.7, **means), seed=0)[:1]
        assert found["claim"] == "RISE inserts best"
        return found

    best = row(grad_cam=0.6, lime=0.5)
    assert (best["verdict"], best["place"]) == ("holds", "Table 4")
    assert re.match(r"Insertion: rise − grad_cam = \+0\.\d{3} \[\+0", best["here"])
    assert "the weakest of 2: rise above grad_cam, lime" in best["here"]
    assert best["p"] == best["p_holm"] < 0.001  # of the two deletion claims there are no scores
    assert row(grad_cam=0.6, lime=0.8)["verdict"] == "fails"
    assert row(grad_cam=0.7, lime=0.5)["verdict"] == "undecided"
    assert verdicts(frame(rise=0.7)) == {}


def test_second_is_below_the_first_and_above_all_others():
    """Of three runs: above RISE it is not second, nor below its own untuned variant."""

    def verdict(**means):
        runs = [frame(seed=seed, rise=0.9, **means) for seed in range(3)]
        return verdicts(*runs)["AKD is second on insertion"]

    assert verdict(akd=0.8, akd_unoptimised=0.7, grad_cam=0.6, lime=0.5) == "holds"
    assert verdict(akd=0.8, akd_unoptimised=0.85, grad_cam=0.6, lime=0.5) == "fails"
    assert verdict(akd=0.95, akd_unoptimised=0.7, grad_cam=0.6, lime=0.5) == "fails"


def test_of_groups_every_pair_must_hold():
    """All gradient methods must lie below all others: one above the lowest other is enough to fail."""

    def verdict(**means):
        return verdicts(frame("faithfulness", grad_cam=0.5, meaningful_perturbation=0.3, **means))[WORST]

    assert verdict(gradient=0.1, smooth_grad=0.2) == "holds"
    assert verdict(gradient=0.1, smooth_grad=0.4) == "fails"


def test_one_training_is_no_verdict():
    """It says what is missing and has no p; of pairs without a trained part one may still refute; three runs decide."""
    frames = [frame(seed=seed, akd=0.8, akd_unoptimised=0.6) for seed in range(3)]
    text = "the tuned λ inserts better than the untuned"
    [row] = claims.of_scores(frames[0], seed=0)
    assert (row["claim"], row["verdict"], row["p"], row["p_holm"]) == (text, "one training", None, None)
    assert "akd − akd_unoptimised = +0.198 [" in row["here"]
    assert "a verdict on akd, akd_unoptimised needs 3 trainings, here: 1" in row["here"]
    assert verdicts(*frames[:2]) == {text: "one training"}
    assert verdicts(*frames) == {text: "holds"}
    apart = [frames[0], frames[1], frame(akd=0.5, akd_unoptimised=0.6)]
    assert verdicts(*apart) == {text: "undecided"}
    assert verdicts(frame(rise=0.5, akd=0.2, grad_cam=0.6))["RISE inserts best"] == "fails"
    assert verdicts(frame(rise=0.5, akd=0.2, grad_cam=0.4))["RISE inserts best"] == "one training"


def test_all_methods_stand_on_the_same_images():
    """An image that one method has no map or no score of counts for none: it alone would reverse the two others."""
    scores = frame(rise=0.5, lime=0.45, grad_cam=0.1)
    lost = (scores["method"] == "grad_cam") & (scores["image"] == 3)
    scores.loc[(scores["method"] == "lime") & (scores["image"] == 3), "insertion"] = 9
    for column, value in (("failed", 1), ("insertion", np.nan)):
        changed = scores.copy()
        changed.loc[lost, column] = value
        [row] = claims.of_scores(changed, seed=0)[:1]
        assert "rise − lime = +0.048 [" in row["here"]


def test_claims_at_several_settings_must_hold_in_all():
    """One claim in two settings, one of which refutes it; both are told."""
    claim = next(each for each in claims.CLAIMS if each.text == "RISE inserts best")
    good, bad = frame(rise=0.9, lime=0.5), frame(rise=0.4, lime=0.5)
    row = claims.row_of(claim, {"black": [good], "mean": [good]}, seed=0)
    assert row["verdict"] == "holds"
    row = claims.row_of(claim, {"black": [good], "mean": [bad]}, seed=0)
    assert row["verdict"] == "fails"
    assert re.match(r"black: rise − lime = \+0.*; mean: rise − lime = -0", row["here"])
    assert claims.row_of(claim, {"black": [frame(rise=0.9)]}, seed=0) is None


def test_cost_is_counted():
    """More passes where fewer are claimed fails, also by one rival of several; it needs no p."""
    passes = {"akd": 1.1, "rise": 500.0, "amg": 1.2, "grad_cam": 1.1, "smooth_grad_cam_plus_plus": 9.0}
    faster, slower = claims.of_passes(passes)
    assert (faster["claim"], faster["verdict"], faster["p"]) == ("AKD is faster than RISE", "holds", None)
    assert faster["here"] == "passes of a map, counted: akd 1.1; rise 500"
    assert (slower["claim"], slower["verdict"]) == ("AMG is slower than the others", "fails")
    assert claims.of_passes({"akd": 1.1}) == []


def test_other_stages_claims_join_the_table(tmp_path):
    """FastCAM's and AMG's verdicts come from their JSON files, absent ones add nothing; names are shown as text.

    A verdict without a p is of a version that took one training for enough.
    """
    run = {"data": "birds 1", "target": "net 2", "parameters": "3", "maps": "4"}
    assert claims.of_reports(tmp_path, run) == []
    text = "AMG has the highest increase"
    found = {"<b>best</b>": {"verdict": "holds", "here": "+1"}, text: {"verdict": "fails", "here": "-1", "p": 0.04}}
    content = {"claims": found, "run": {**run, "parameters": "another's"}}
    (tmp_path / "train_attention.json").write_text(json.dumps(content))
    scores = frame("faithfulness", gradient=0.1, grad_cam=0.5)
    rows = claims.of_run(scores, {"akd": 1.1, "rise": 500.0}, tmp_path, run, seed=0)
    order = [(row["paper"], row["verdict"], row["place"]) for row in rows]
    assert order == [
        ("AKD", "holds", "Table 3"),
        ("DGLE", "holds", "Table 1"),
        ("AMG", "fails", "Table 3"),
        ("AMG", "one training", ""),
    ]
    assert [row["p_holm"] for row in rows] == [None, pytest.approx(2 * rows[1]["p"]), 0.04, None]
    shown = claims.html(rows)
    assert "akd 1.1<br>rise 500" in shown
    assert "&lt;b&gt;best" in shown
    assert 'title="p &lt; 0.001, of all claims &lt; 0.001 (Holm)">holds</td>' in shown
    assert 'title="p 0.040, of all claims 0.040 (Holm)">fails</td>' in shown


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        ([], ""),
        (["one training"] * 7, "None of the 7 claims of AMG has a verdict yet: what they are about was trained once."),
        (["holds", "fails", "fails"], "Of 3 claims of AMG 1 holds and 2 fail."),
        (
            ["undecided", "one training", "not of this run", "holds"],
            "Of 4 claims of AMG 1 holds, 1 is undecided, 1 has no verdict yet (one training) and 1 is of another run.",
        ),
    ],
)
def test_verdicts_are_counted_in_a_sentence(verdicts, told):
    """Each verdict once, in the order holds, fails, undecided; what one training cannot decide is no verdict."""
    assert claims.in_words(verdicts, "AMG") == told


def test_the_list_names_what_exists():
    """Metrics and their better direction, methods, no claim twice; of scored metrics none is claimed the wrong way."""
    assert len({(claim.paper, claim.text) for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    rows = parameters.resolve(parameters.read(ROOT / "params.yaml"), "explain")["rows"]
    for claim in claims.CLAIMS:
        if claim.source == claims.SCORES:
            better = METRICS[claim.metric].higher_is_better
            assert better is None or claim.sign == (1 if better else -1), claim.text
        if claim.source != claims.RETRAINING:
            assert set(claim.methods) <= {*EXPLAINERS, *rows}, claim.text
        assert len(claim.methods) == len(set(claim.methods)), claim.text


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
    content = {"claims": {"best": {"verdict": "holds", "here": "+1", "p": None}}}
    (tmp_path / "remove_and_retrain.json").write_text(json.dumps(content | ({"run": found} if found else {})))
    (tmp_path / "train_attention.json").write_text(json.dumps(content | {"run": {"data": "cars 1", "target": "net 3"}}))
    other, own = claims.of_reports(tmp_path, run)
    assert own == {"paper": "AMG", "claim": "best", "place": "", "here": "+1", "verdict": "holds", "p": None}
    here = f"remove_and_retrain.json is of another run ({told}); run the stage remove_and_retrain again"
    row = {"paper": "FastCAM", "claim": "all of them", "place": "", "here": here}
    assert other == row | {"verdict": "not of this run", "p": None}
