"""FastCAM's tables: intervals by hand, printed numbers beside recomputed ones, contradictions named, claims decided."""

import numpy as np
import pandas
import pytest
from conftest import ROOT

from xai_utils.explainers.activation_statistics import STATISTICS
from xai_utils.papers import fastcam, fastcam_claims

PUBLISHED = ROOT / "data" / "published"
IMAGES = 40
PLAIN = ("gradient", "guided_backprop", "integrated_gradients")
ROWS = ("gradient", "smoe_equal", "smoe_linear", "smoe_prior", "fastcam", "integrated_gradients", "guided_backprop")


def records(rate):
    """Records of all statistics and some methods; `rate(level, mode, row, place)` is the share of hits."""
    found = []
    for mode in fastcam.MODES:
        for level, rows, places in (
            ("layer", ("random", *(name for name in STATISTICS if name not in ("maximum", "gamma_scale"))), "abcde"),
            ("image", ("random", *ROWS), (10, 30, 50, 70, 90)),
        ):
            for row in rows:
                for place in places:
                    hits = [int(n < round(IMAGES * rate(level, mode, row, place))) for n in range(IMAGES)]
                    where = {"layer": place, "percent": None} if level == "layer" else {"layer": None, "percent": place}
                    found.append({"level": level, "mode": mode, "row": row, "repetition": 0, "hits": hits, **where})
    return found


def separated(level, mode, row, place):
    """Random is right half of the time; fastcam and smoe_scale are best, the rest a little better than random."""
    gain = {"random": 0, "fastcam": 0.4, "smoe_scale": 0.4, "smoe_prior": 0.3, "smoe_linear": 0.2}.get(row, 0.1)
    gain = 0 if row in PLAIN else gain
    return 0.5 + gain if mode == "keep" else 0.5 - gain


@pytest.fixture(scope="module")
def values():
    return fastcam.resampled(records(separated), seed=0, resamples=300)


def test_resamples_are_shared_and_centred(values):
    """The first number is the accuracy as measured; resampled ones scatter as a binomial, alike for equal hits."""
    kept = values["image", "keep", "fastcam", 10]
    assert kept.shape == (301,)
    assert kept[0] == 0.9
    assert kept[1:].mean() == pytest.approx(0.9, abs=0.01)
    assert kept[1:].std() == pytest.approx(np.sqrt(0.9 * 0.1 / IMAGES), rel=0.15)
    np.testing.assert_array_equal(kept, values["image", "keep", "fastcam", 90])
    again = fastcam.resampled(records(separated), seed=0, resamples=300)
    np.testing.assert_array_equal(kept, again["image", "keep", "fastcam", 10])


def test_records_on_other_images_are_refused():
    """A condition tested on fewer images than the others would make the joint resamples meaningless."""
    broken = records(separated)
    broken[3]["hits"] = broken[3]["hits"][:-1]
    with pytest.raises(ValueError, match="have different numbers of"):
        fastcam.resampled(broken, seed=0)


def test_tables_of_layers_by_hand(values):
    """Ours of a constant gain g: accuracy 50 +- 100 g, difference score 5 * 2 g; best and worst are found."""
    table = fastcam.accuracies(values, PUBLISHED, "layer")
    assert table.loc[("KAR", "smoe_scale"), ("a", "value")] == 90
    assert table.loc[("ROAR", "best"), ("b", "value")] == 10
    assert table.loc[("ROAR", "worst"), ("b", "value")] == 40
    assert table.loc[("KAR", "smoe_scale"), ("a", "ImageNet")] == 56.61
    low, high = table.loc[("KAR", "smoe_scale"), [("a", "low"), ("a", "high")]]
    assert 75 < low < 90 < high <= 100
    scores = fastcam.layer_scores(values, PUBLISHED, "difference")
    assert scores.index[0] == "smoe_scale"
    assert scores.loc["smoe_scale", ("ours", "value")] == pytest.approx(4)
    assert scores.loc["smoe_scale", ("ImageNet", "printed")] == 1.70
    assert scores.loc["smoe_scale", ("ImageNet", "recomputed")] == pytest.approx(1.7058)
    shares = fastcam.quartiles(values, PUBLISHED, "information")
    assert shares.loc["smoe_scale", ("top 25 %", "value")] == 100


def test_tables_of_images_by_hand(values):
    """KAR is five times the accuracy, ROAR minus five times, SUM both; printed numbers stand beside them."""
    totals = fastcam.totals(values, PUBLISHED, passes={"random": 0, "fastcam": 1.2})
    assert totals.loc["fastcam", "passes"].tolist() == [1.2, "Fast"]
    assert totals.loc["fastcam", ("resolution", "printed")] == "Fine"
    assert "1.20<br><small>Fast</small>" in fastcam.html(totals, digits=2)
    assert totals.index[0] == "fastcam"
    assert totals.loc["fastcam", ("KAR", "value")] == pytest.approx(4.5)
    assert totals.loc["fastcam", ("ROAR", "value")] == pytest.approx(-0.5)
    assert totals.loc["random", ("SUM", "value")] == pytest.approx(0)
    table = fastcam.accuracies(values, PUBLISHED, "image")
    assert table.loc[("KAR", "random"), ("10 %", "paper")] == 63.53


def test_the_papers_contradictions_are_named(values):
    """Six cells of Table 1 (and what they spoil in the average), 17 of Table 7, two sums of Table 2; no others."""
    words = fastcam.contradictions(fastcam.layer_scores(values, PUBLISHED, "difference"))
    named = {row for row, text in words.items() if "ImageNet" in text}
    assert len(named) == 7  # SMOE Scale's 1.7058 is printed as 1.70: a rounding, not a row that slipped
    assert "ImageNet: 1.46, not 1.0855" in words["log_normal_mean"]
    assert not any(fastcam.contradictions(fastcam.layer_scores(values, PUBLISHED, "information")))
    assert not any(fastcam.contradictions(fastcam.quartiles(values, PUBLISHED, "information")))
    quartiles = fastcam.contradictions(fastcam.quartiles(values, PUBLISHED, "difference"))
    assert sum(text.count("not") for text in quartiles) == 17
    sums = fastcam.contradictions(fastcam.totals(values, PUBLISHED)).dropna()
    assert {row for row, text in sums.items() if text} == {"integrated_gradients", "guided_backprop"}
    page = fastcam.html(fastcam.totals(values, PUBLISHED), digits=2)
    assert "SUM: 0.03, not 0.0395" in page


def test_rows_named_by_the_user_are_text_in_html(values):
    """A row of params.yaml may be called anything: in tables and claims it is shown as it is written."""
    name = "a <b>; c"
    renamed = fastcam.accuracies(values, PUBLISHED, "image").rename(index={"fastcam": name})
    claimed = pandas.DataFrame(
        {"here": [f"{name} 1.00; best"], "paper": "", "verdict": "holds", "p": 0.5}, index=[name]
    )
    for page in (fastcam.html(renamed, digits=1), fastcam_claims.html(claimed)):
        assert "<b>" not in page
        assert "a &lt;b&gt;" in page
    assert "a &lt;b&gt;<br>c 1.00<br>best" in fastcam_claims.html(claimed)


def test_failure_cases_stand_beside_the_papers(values):
    """Equal gains leave nobody in the bottom quartile here; the paper's Shannon entropy is there 4 times of 15."""
    table = fastcam.failures(values, PUBLISHED)
    assert table.loc["shannon_entropy", ("difference", "bottom quartile")] == "0 of 5 / 4 of 15"
    assert table.loc["shannon_entropy", ("information", "0 or less")] == "0 of 5 / 2 of 15"


def test_table_3_is_computed():
    """SMOE Scale, mean and deviation of the paper's examples agree with print to its rounding."""
    table = fastcam.smoe_examples(PUBLISHED)
    assert len(table) == 7
    for column in table.columns.unique(0):
        np.testing.assert_allclose(table[column, "value"], table[column, "printed"], atol=5.1e-4)


def decided(rate, repetitions=3, unmasked=1.0, chance=0.1):
    """The claims where `rate` gives the accuracies under masks, alike in every repetition, and `unmasked` without."""
    masked = [each | {"repetition": number} for each in records(rate) for number in range(repetitions)]
    hits = [int(n < IMAGES * unmasked) for n in range(IMAGES)]
    plain = {"mode": "none", "row": "none", "percent": None, "repetition": 0, "hits": hits}
    places = {(each["level"], each["layer"]): None for each in masked}
    given = [{"level": level, "layer": layer, **plain} for level, layer in places] + masked
    resampled = fastcam.resampled(masked, seed=0, resamples=600)
    return fastcam_claims.claims(resampled, given, PUBLISHED, chance=chance), given


def test_claims_are_decided_by_intervals():
    """Separated accuracies uphold the paper's claims; equal ones decide nothing; reversed ones refute."""
    found, _ = decided(separated)
    assert found["verdict"].to_dict() == {
        "SMOE Scale has the highest difference score": "holds",
        "SMOE Scale has the highest information score": "holds",
        "only SMOE Scale and Shannon entropy never score 0 or less": "fails",
        "FastCAM has the highest SUM": "holds",
        "smoe_prior is not below smoe_linear in SUM": "holds",
        "smoe_linear is not below smoe_equal in SUM": "holds",
        "gradients without SmoothGrad² score like random in SUM": "undecided",  # equality is never shown
    }
    equal = decided(lambda *_: 0.5)[0]["verdict"]
    assert equal.pop("only SMOE Scale and Shannon entropy never score 0 or less") == "fails"
    assert set(equal) == {"undecided"}
    verdicts = decided(lambda *key: 1 - separated(*key))[0]["verdict"]
    assert verdicts["FastCAM has the highest SUM"] == "fails"
    assert verdicts["smoe_prior is not below smoe_linear in SUM"] == "fails"


def test_rivals_and_the_weakest_pair_are_named():
    """Of all rivals of FastCAM SMOE Scale with prior weights comes nearest: 5 percentages, twice 0.4 - 0.3 each."""
    found, _ = decided(separated)
    ours = found.loc["FastCAM has the highest SUM", "here"]
    assert ours.startswith("fastcam − smoe_prior = +1.00 [")
    assert "the weakest of 7: fastcam above random, gradient, guided_backprop" in ours


def test_networks_that_were_trained_once_decide_nothing():
    """One repetition gives the numbers, no p, and says what is missing."""
    found, _ = decided(separated, repetitions=1)
    assert set(found["verdict"]) == {"one training"}
    assert found["p"].isna().all()
    assert found["here"].str.endswith("a verdict needs 3 repetitions of each training, here: 1").all()


def test_masks_that_leak_the_class_decide_nothing():
    """Half is right without masks, all with FastCAM's map alone: it is said how often, and nothing is concluded; the
    same where all networks guess.
    """
    found, given = decided(lambda *key: {0.9: 1.0}.get(separated(*key), separated(*key)), unmasked=0.5)
    beside = fastcam_claims.beside_unmasked(given, chance=0.1)
    assert (beside.loc["image", "unmasked"], beside.loc["image", "cells"]) == (0.5, 80)
    # KAR at five percentages of fastcam, smoe_prior, smoe_linear and smoe_equal, by 20, 12, 8 and 4 of 40 images: of
    # 80 cells 10 are further off than smoe_prior's, whose p is 70 * 2 / 2^12 = 0.034; smoe_linear's is 2 / 2^8 at least
    assert (beside.loc["image", "above"], beside.loc["image", "significantly above"]) == (20, 10)
    assert set(found["verdict"]) == {"no verdict"}
    text = "masks leak the class: unmasked 0.50 lies below 20 of 80 masked cells, below 10 significantly; fastcam"
    assert found.loc["FastCAM has the highest SUM", "here"].startswith(text)
    assert fastcam_claims.in_words(beside).count("No claim about") == 2
    guessing, given = decided(lambda *_: 0.1, unmasked=0.1)
    assert set(guessing["verdict"]) == {"no verdict"}
    assert guessing["here"].str.startswith("accuracies are within chance (0.10): 0.10 without masks, 80 of 80").any()


def test_what_was_not_run_is_neither_decided_nor_drawn(tmp_path):
    """Claims of a level that is switched off say so and which switch it is; the other level's are decided as ever."""
    whole, given = decided(separated)
    for left in ("layer", "image", None):
        kept = [record for record in given if record["level"] == left]
        values = fastcam.resampled([record for record in kept if record["mode"] != "none"], seed=0, resamples=300)
        found = fastcam_claims.claims(values, kept, PUBLISHED, chance=0.1)
        assert list(found.index) == list(whole.index)
        for claim, row in found.iterrows():
            level = "image" if "SUM" in claim else "layer"
            if level != left:
                assert row[["here", "verdict"]].tolist() == [fastcam_claims.OFF[level], "not run"]
                assert pandas.isna(row["p"])
            else:
                assert row["verdict"] == whole.loc[claim, "verdict"]
        fastcam.write_records(tmp_path / "records.tsv", kept)
        assert fastcam.read_records(tmp_path / "records.tsv") == kept
        assert list(fastcam_claims.beside_unmasked(kept, chance=0.1).index) == [left][: left is not None]
    assert fastcam_claims.saturated([], chance=0.1) == ""
    assert fastcam_claims.in_words(fastcam_claims.beside_unmasked([], chance=0.1)) == ""


def test_records_are_read_as_they_were_written(tmp_path):
    """All that decides a claim: conditions of both levels, networks without masks, repetitions, hits."""
    _, given = decided(separated, repetitions=2)
    given += [
        {"level": "image", "mode": "none", "row": "NA", "layer": None, "percent": None, "repetition": 1, "hits": [0, 1]}
    ]
    fastcam.write_records(tmp_path / "records.tsv", given)
    assert fastcam.read_records(tmp_path / "records.tsv") == given


def test_flat_curves_are_told():
    """fastcam keeps what is enough at 10 %, a row that rises and random masks do not; half removed leaves chance."""

    def rate(level, mode, row, place):
        if mode == "keep":
            return 0.9 if row == "fastcam" else 0.4 + place / 200 if level == "image" else 0.5
        return 0.1 if row == "fastcam" else 0.5

    rows = [record for record in records(rate) if record["row"] in ("random", "fastcam", "gradient")]
    assert fastcam_claims.saturated(rows, chance=0.1) == (
        "KAR rises from 10 % to 90 % kept for 2 of 3 rows (random, gradient): what the others mark is enough at 10 %. "
        "ROAR is within chance at 50 % removed for 1 of 3 rows."
    )
    assert fastcam_claims.saturated([record for record in rows if record["level"] == "layer"], chance=0.1) == ""
    guess = {"level": "image", "mode": "none", "row": "none", "layer": None, "percent": None, "repetition": 0}
    assert fastcam_claims.saturated([*rows, guess | {"hits": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]}], chance=0.1) == ""


def test_a_network_without_masks_that_was_unlucky_once_is_no_leak():
    """Below the masked one on 20 of 40 images, in one repetition of three: significant over images, not over both."""
    shares = [("none", 0.4), ("none", 0.9), ("none", 0.9), *[("keep", 0.9)] * 3]
    rows = [
        {"level": "image", "mode": mode, "row": "random", "layer": None, "percent": 10 if mode == "keep" else None}
        | {"repetition": number % 3, "hits": [int(image < round(IMAGES * share)) for image in range(IMAGES)]}
        for number, (mode, share) in enumerate(shares)
    ]
    found = fastcam_claims.beside_unmasked(rows, chance=0.1).loc["image"]
    assert (found["above"], found["significantly above"]) == (1, 0)
    alone = fastcam_claims.beside_unmasked([rows[0], rows[3]], chance=0.1).loc["image"]
    assert alone["significantly above"] == 1


def test_repetitions_that_part_decide_nothing():
    """FastCAM above all in two repetitions, far below in the third: Student's test over the three leaves it open."""
    masked = [
        each | {"repetition": number}
        for number, rate in enumerate((separated, separated, lambda *key: 1 - separated(*key)))
        for each in records(rate)
    ]
    values = fastcam.resampled(masked, seed=0, resamples=300)
    found = fastcam_claims.claims(values, masked, PUBLISHED, chance=0.1)
    assert found.loc["FastCAM has the highest SUM", "verdict"] == "undecided"
