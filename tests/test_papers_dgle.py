"""DGLE's tables against its printed numbers, and the numbers behind its figures against closed forms."""

import numpy as np
import pandas
import pytest
import torch
from conftest import ROOT

from xai_utils.datasets import Split
from xai_utils.explainers import CONTROLS, explain
from xai_utils.metrics.localisation import box_average_precision, break_zero_ties
from xai_utils.networks import build, encoded
from xai_utils.networks.mask_predictor import controller_moments, customized_controller, predictor_of
from xai_utils.papers import dgle

PUBLISHED = ROOT / "data" / "published"


def test_tables_hold_this_run_beside_the_printed_numbers():
    """Grad-CAM's 69.71, 77.56 and 76.72 stand beside ours; the pointing game's mean over classes has its interval."""
    score = {"mean": 70.0, "low": 60.04, "high": 80.06}
    hits = {"mean": 0.5, "low": 0.4, "high": 0.75}
    results = {"methods": {"grad_cam": {"faithfulness": score, "box_average_precision": score, "pointing_game": hits}}}
    results["methods"] |= {"dgle_cf": {"faithfulness": score}, "smoe": {"faithfulness": score}}
    ends = {"": 0.625, "_low": 0.51, "_high": 0.74}
    by_category = pandas.DataFrame({f"pointing_game_by_category{end}": {"grad_cam": ends[end]} for end in ends})
    table = dgle.beside_print(results, by_category, PUBLISHED)
    assert list(table.index) == ["dgle_cf", "grad_cam"]
    assert table.loc["grad_cam"].tolist() == [
        "70.0 [60.0, 80.1]", "69.71", "70.0 [60.0, 80.1]", "77.56", "62.5 [51.0, 74.0]", "76.72",
    ]  # fmt: skip
    assert table.loc["dgle_cf", ("Faithfulness M_F", "paper")] == "71.35"
    assert table.loc["dgle_cf", ("Pointing game", "paper")] == ""
    printed = pandas.read_csv(PUBLISHED / "dgle_tables_1_2_3.csv")
    assert set(dgle.METHODS.values()) == set(printed["method"])
    assert dgle.beside_print({"methods": {}}, pandas.DataFrame(), PUBLISHED).empty


def test_densities_are_those_of_figure_2():
    """Four panels of five lines; h = 1 is symmetric about 1/2; nothing above 6 is drawn."""
    panels = dgle.densities()
    assert [len(lines) for lines in panels.values()] == [5] * 4
    at, density = panels["(a) h = 1"]["η = 1"]
    np.testing.assert_allclose(density, density[::-1], rtol=1e-9)
    assert density.sum() * (at[1] - at[0]) == pytest.approx(1, abs=0.01)
    assert np.nanmax([line for lines in panels.values() for _, line in lines.values()]) <= 6


def test_a_normal_map_has_the_promised_distribution():
    """CF of normal noise has eq. 7's moments and a small distance; of two equal halves it has another shape."""
    noise = torch.randn(4, 120, 120, generator=torch.Generator().manual_seed(0))
    halves = torch.cat([torch.zeros(1, 60, 120), torch.ones(1, 60, 120)], 1)
    scores = {"noise": customized_controller(noise), "halves": customized_controller(halves)}
    found, _ = dgle.distribution([scores], eta=1.5, exponent=2.5)
    assert list(found.columns) == ["noise", "halves", "eq. 7"]
    promised = controller_moments()
    for name, tolerance in {
        "mean": 0.003,
        "std": 0.003,
        "skewness": 0.03,
        "median": 0.005,
        "above_half": 0.005,
    }.items():
        assert found.loc[name, "noise"] == pytest.approx(promised[name], abs=tolerance)
        assert found.loc[name, "eq. 7"] == promised[name]
    distances = found.loc["kolmogorov_smirnov"]
    assert distances["noise"] < 0.012
    assert distances["halves"] == pytest.approx(0.3413, abs=1e-3)  # Φ(1) - 1/2
    assert distances["eq. 7"] == 0


def test_images_count_alike_however_they_are_batched():
    """Means over five images in one batch and in three; the histogram's bins add up to 1, at their middles."""
    random = np.random.default_rng(0)
    maps = random.random((5, 20, 20))
    whole, lines = dgle.distribution([{"cf": maps}], eta=1.5, exponent=2.5, bins=10)
    parts, same = dgle.distribution([{"cf": each} for each in np.split(maps, [2, 4])], eta=1.5, exponent=2.5, bins=10)
    pandas.testing.assert_frame_equal(whole, parts)
    assert whole.loc["mean", "cf"] == pytest.approx(maps.mean())
    centres, counts = lines["cf"]
    np.testing.assert_array_equal(counts, same["cf"][1])
    np.testing.assert_allclose(counts, np.histogram(maps, bins=10, range=(0, 1), density=True)[0])
    assert centres[0] == pytest.approx(0.05)
    assert counts.mean() == pytest.approx(1)


def test_scores_of_held_out_images_are_those_of_the_maps(monkeypatch):
    """What CF's distribution is measured on, two images at a time, are the maps that the predictor draws."""
    monkeypatch.setattr(dgle, "SCORED", 2)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 48, 48), dtype=np.uint8)
    split = Split(pixels, np.zeros(3, dtype=np.int64), [np.empty((0, 4))] * 3, None, list("abc"), ("bird",), ())
    torch.manual_seed(0)
    target = build("small_resnet", range(4)).eval()
    predictor = predictor_of(target, split.tensor([0]), controller="customized").eval()
    law = {"eta": predictor.eta, "exponent": predictor.exponent}
    batches = list(dgle.held_out_scores(target, predictor, split, **law))
    assert [len(each["instance"]) for each in batches] == [2, 1]
    with torch.no_grad():
        features, logits = encoded(target, split.tensor(range(3)), predictor.layers)
        expected = predictor(features, logits.argmax(1))
    torch.testing.assert_close(torch.cat([each["instance"] for each in batches]), expected)


def test_equal_moments_unequal_shape():
    """Figure 1(a): both lines have CF's mean, up to the normal's tail below 0."""
    lines = dgle.skewed()
    assert list(lines) == ["normal, skewness 0", "CF, skewness 0.85"]
    at, density = lines["CF, skewness 0.85"]
    assert np.average(at, weights=density) == pytest.approx(0.2727, abs=0.02)  # a coarse sum


def test_tuning_lines_by_hand():
    """Scores over their largest; after tuning 3 · 0.5, 2 · 0.25 and 1 · 0, over the largest of them."""
    lines = dgle.tuning_lines([3.0, 2.0, 1.0], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(lines["score"][1], [1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(lines["fine-tuned score"][1], [1, 1 / 3, 0], atol=1e-12)
    np.testing.assert_allclose(lines["probability"][0], [1 / 3, 2 / 3, 1])


def test_localisation_scores_the_images_that_have_a_box():
    """M_I of a predictor's maps and the controls', over boxed images alone; a centred box is the Gaussian's."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 48, 48), dtype=np.uint8)
    boxes = [np.array([[16.0, 16, 32, 32]]), np.empty((0, 4)), np.array([[0.0, 0, 48, 24]])]
    split = Split(pixels, np.zeros(3, dtype=np.int64), boxes, None, list("abc"), ("bird",), ())
    torch.manual_seed(0)
    target = build("small_resnet", range(4)).eval()
    predictor = predictor_of(target, split.tensor([0]), controller="basic").eval()
    table = dgle.localisation(target, split, np.array([0, 1, 2]), {"dgle_bf": predictor}, seed=0)
    assert list(table.index) == ["dgle_bf", *CONTROLS]
    assert table["n"].tolist() == [2] * 4
    maps = break_zero_ties(explain(target, split.tensor([0, 2]), method="dgle_bf", predictor=predictor))
    expected = box_average_precision(None, None, None, maps, masks=split.box_masks([0, 2])).mean()
    assert table.loc["dgle_bf", "mean"] == pytest.approx(expected.item())
    assert table.loc["centred_gaussian", "high"] > 95 > table.loc["random", "high"]
    assert dgle.localisation(target, split, np.array([1]), {}, seed=0).empty
