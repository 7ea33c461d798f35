"""Which method to trust: by hand, from scores whose order is known."""

from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from xai_utils.evaluation import trust

CONTROLS = ("random", "edges")
RANDOM = np.random.default_rng(0)


def frame_of(scores: dict, images=20):
    """Scores (insertion, deletion) of methods, each with noise of its own for every image."""
    rows = []
    for method, (insertion, deletion) in scores.items():
        noise = RANDOM.normal(scale=0.02, size=(2, images))
        about = {"image": range(images), "label": -1, "target": 0, "method": method, "failed": 0}
        rows.append(pandas.DataFrame(about | {"insertion": insertion + noise[0], "deletion": deletion + noise[1]}))
    return pandas.concat(rows, ignore_index=True)


SCORES = {
    "good": (0.9, 0.1),
    "twin": (0.9, 0.1),
    "fair": (0.7, 0.2),
    "half": (0.9, 0.5),  # no better than the controls on deletion
    "blind": (0.95, 0.05),  # whose maps do not follow the network
    "random": (0.4, 0.5),
    "edges": (0.5, 0.4),
}
PASSES = {"good": 33.0, "twin": 2.0, "fair": 1.0, "half": 1.0, "blind": 1.0}


def checks(**verdicts):
    found = {name: SimpleNamespace(verdict="depends on the model") for name in PASSES}
    return found | {name: SimpleNamespace(verdict=verdict) for name, verdict in verdicts.items()}


def advice(scores=SCORES, images=20, checked=None):
    checked = checks(blind="does not depend on the model") if checked is None else checked
    return trust.of_run(frame_of(scores, images), PASSES, checked, controls=CONTROLS, seed=0, resamples=200)


def test_what_beats_every_control_and_follows_the_network_is_trusted():
    """The best and its equal are level, the worse one is below; the cheap one of the two is named; the rest is out."""
    found = advice()
    assert set(found.level) == {"good", "twin"}
    assert found.cheapest == "twin"
    assert found.table["standing"].to_dict() == {
        found.level[0]: "best",
        found.level[1]: "level with the best",
        "fair": "below the best",
        "half": "not above every control",
        "blind": "does not follow the network",
    }
    assert found.table.loc["half", ["insertion", "deletion"]].tolist() == [2, 0]
    said = trust.sentences(found)
    assert 2 <= len(said) <= 4
    assert said[0].startswith(f"On these 20 images `{found.level[0]}` explains this network best")
    assert "`twin` is the cheapest, 2 passes a map" in said[1]
    assert said[2].startswith("Not to be trusted: 1 of 5 methods is not above every control (`half`); `blind` makes")


def test_a_method_alone_that_passes_is_named_with_its_cost():
    """Without an equal there is no cheaper one to name."""
    said = trust.sentences(advice({name: SCORES[name] for name in ("fair", "half", *CONTROLS)}))
    assert said[1] == "It costs 1 pass a map; no other method passes."


def test_nothing_is_trusted_where_nothing_beats_the_controls():
    """Said outright; with few images also that they cannot show more, and how many could."""
    found = advice({"half": SCORES["half"], "random": SCORES["random"], "edges": SCORES["edges"]})
    assert (found.level, found.cheapest) == ([], None)
    assert trust.sentences(found)[0].startswith("On these 20 images none of the 1 methods can be trusted")
    few = trust.sentences(advice(images=5))
    assert few[0].startswith("On these 5 images none of the 5 methods can be trusted")
    assert few[1] == "5 images are too few for 5 comparisons: 8 are the least that can show a difference."
    assert advice(images=8).level


def test_what_was_not_checked_is_said_and_not_held_against_a_method():
    """Without sanity checks a blind method may be the best; the page says that nothing was checked."""
    found = advice(checked={})
    assert found.level == ["blind"]
    assert trust.sentences(found)[-1] == "Whether maps follow the network was not checked (sanity_images is 0)."


def test_what_is_missing_is_named():
    """No advice without both curves, a control and a method."""
    with pytest.raises(ValueError, match="deletion was not scored"):
        trust.of_run(frame_of(SCORES).drop(columns="deletion"), PASSES, {}, controls=CONTROLS, seed=0)
    with pytest.raises(ValueError, match="a control was not scored"):
        trust.of_run(frame_of(SCORES), PASSES | {name: 0 for name in CONTROLS}, {}, controls=(), seed=0)


def test_names_appear_as_text():
    """A row's name is no markup, and at most ten rows are shown."""
    names = {f"<b>{number}": SCORES["fair"] for number in range(12)}
    passes = dict.fromkeys(names, 1.0)
    frame = frame_of(names | {name: SCORES[name] for name in CONTROLS})
    page = trust.html(trust.of_run(frame, passes, {}, controls=CONTROLS, seed=0, resamples=200))
    assert "<b>" not in page
    assert page.count("<tr>") == 11
    assert "2 more methods stand below." in page
