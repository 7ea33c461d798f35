"""AMG's tables: counted by hand, beside the printed numbers, and what is decided of the paper's claims."""

import numpy as np
import pandas
import pytest
import torch
from conftest import ROOT
from test_layers import settled

from xai_utils import networks
from xai_utils.datasets import Split
from xai_utils.explainers import explain
from xai_utils.metrics import average_drop
from xai_utils.metrics.confidence import PERCENTS, percentage_in
from xai_utils.metrics.cost import Ratio
from xai_utils.papers import amg

PUBLISHED = ROOT / "data" / "published"
DROPS = {
    "grad_cam": 40.0,
    "grad_cam_plus_plus": 30.0,
    "smooth_grad_cam_plus_plus": 42.0,
    "xgrad_cam": 40.0,
    "amg": 50.0,
}


def scored(images=12):
    """Made-up scores on two layers and two spaces: each method's drop is its number, plus what the image adds."""
    rows = []
    for layer in ("layer4", "layer4.0.conv2"):
        for method, drop in DROPS.items():
            for space in amg.SPACES:
                for image in range(images):
                    about = {"layer": layer, "method": method, "space": space, "image": image}
                    scores = {"average_drop": drop + image, "percent_increase": 0.0}
                    scores |= {f"logit_{at}": at + (method == "amg") + image / 10 for at in PERCENTS}
                    rows.append(about | scores | {f"accuracy_{at}": 1.0 for at in PERCENTS})
    return pandas.DataFrame(rows)


def test_black_boxes_are_counted_by_hand():
    """Four images, seven classes: the right class is first, second, sixth and first: top-1 50, top-5 75, error 25."""
    logits = torch.zeros(4, 7)
    for row, place in enumerate((0, 1, 5, 0)):
        logits[row] = torch.arange(7).roll(place).neg().float()  # class 0 has rank `place`
    labels = {"small_vgg": torch.zeros(4, dtype=torch.long)}
    table = amg.black_boxes({"small_vgg": logits}, labels, PUBLISHED, seed=0)
    texts = [table.loc["small_vgg", name].split(" ")[0] for name in ("top-1", "top-5", "top-5 error")]
    assert texts == ["50.0", "75.0", "25.0"]
    assert table.loc["small_vgg", ["paper", "paper, accuracy", "paper, top-5 error"]].tolist() == [
        "VGG19",
        0.9372,
        9.21,
    ]


def test_a_network_that_the_paper_lacks_has_no_printed_number():
    """An architecture of another family stands in Table 2 without the paper's columns."""
    labels = {"densenet121": torch.zeros(2, dtype=torch.long)}
    table = amg.black_boxes({"densenet121": torch.eye(2)}, labels, PUBLISHED, seed=0)
    assert table.loc["densenet121", ["paper", "paper, accuracy"]].tolist() == ["", ""]


def test_table_3_marks_what_differs_from_grad_cam():
    """▲ where the drop is lower than Grad-CAM's on the same images, ▼ where it is higher, nothing where it is equal."""
    table = amg.drop_and_increase(scored(), PUBLISHED, seed=0)
    assert table.index.tolist() == [(layer, name) for layer in ("layer4", "layer4.0.conv2") for name in DROPS]
    cells = table.loc["layer4"]["average drop ↓", "black"]
    assert cells["grad_cam"].startswith("45.5 [")
    ends = {name: text[-1] for name, text in cells.items()}
    assert ends == {"grad_cam": "]", "grad_cam_plus_plus": "▲", "smooth_grad_cam_plus_plus": "▼", "xgrad_cam": "]",
                    "amg": "▼"}  # fmt: skip
    assert table.loc["layer4"]["average drop ↓", "paper"].tolist() == [45.27, 44.35, 44.82, 46.33, 42.52]
    assert table.loc["layer4"]["increase ↑", "black"].tolist() == ["0.0 [0.0, 26.5]"] * 5


def test_table_4_has_the_printed_rows_below_the_logits():
    """A column per share; AMG's logits are marked as higher; the other scores have no printed numbers."""
    table = amg.percentage_in(scored(), PUBLISHED, seed=0)
    assert list(table.columns) == [f"{at} %" for at in PERCENTS]
    assert table.loc[("black", "layer4", "amg"), "5 %"] == "6.55 [6.36, 6.74] ▲"
    assert table.loc[("paper", "", "amg")].tolist() == ["1.02", "1.29", "5.53", "9.52", "11.53"]
    assert len(table) == 2 * 2 * 5 + 5
    assert len(amg.percentage_in(scored(), PUBLISHED, score="accuracy", seed=0)) == 20
    with pytest.raises(ValueError, match="score 'rank' is unknown; choose one of logit, softmax, accuracy"):
        amg.percentage_in(scored(), PUBLISHED, score="rank", seed=0)


def test_claims_are_told_of_every_setting():
    """The rival that is worst for AMG stands for each space and layer; a gate that was trained once decides nothing."""
    found = {row["claim"]: row for row in amg.claims(scored(), seed=0)}
    assert len(found) == 7
    drop = found["AMG has the lowest average drop"]
    assert (drop["verdict"], drop["p"], drop["place"]) == ("one training", None, "Table 3")
    for setting in ("black, layer4", "mean, layer4", "black, layer4.0.conv2", "mean, layer4.0.conv2"):
        assert f"{setting}: amg − grad_cam_plus_plus = +20.0 [" in drop["here"]
    assert "amg − grad_cam = +1.000 [" in found["AMG has the highest logit with 5 % in"]["here"]
    without = scored()
    assert amg.claims(without[without["method"] != "amg"], seed=0) == []


def test_scores_are_the_metrics_of_the_same_maps():
    """Maps of a layer are the explainers', and a table's numbers the metrics', in both spaces; a gate adds a row."""
    torch.manual_seed(0)
    model = settled(networks.build("small_resnet", range(3)))
    images, target = torch.rand(3, 3, 48, 48), torch.tensor([0, 1, 2])
    convolution = networks.last_convolution(model, images)
    assert convolution == "layer4.0.conv2"
    gates = {"layer4": networks.gate_for(model, images).eval(), convolution: None}
    maps = amg.maps_of_family(model, images, target, gates, smooth_samples=2, seed=0)
    assert ("layer4", "amg") in maps
    assert (convolution, "amg") not in maps
    expected = explain(model, images, target, method="xgrad_cam", layer=convolution)
    torch.testing.assert_close(maps[convolution, "xgrad_cam"], expected)
    frame = amg.confidence_scores(model, images, target, maps)
    assert len(frame) == 9 * 2 * 3
    rows = frame[(frame.layer == convolution) & (frame.method == "xgrad_cam") & (frame.space == "mean")]
    for name, values in {
        "average_drop": average_drop(model, images, target, expected, baseline="mean"),
        "logit_20": percentage_in(model, images, target, expected, percent=20, score="logit", baseline="mean"),
    }.items():
        assert rows[name].tolist() == pytest.approx(values.tolist(), rel=1e-4, abs=1e-4)


def test_images_scored_a_few_at_a_time_have_the_scores_of_all(monkeypatch):
    """Five held-out images, two in memory at once: the same rows in the same order, noise of the same seeds."""
    torch.manual_seed(0)
    model = settled(networks.build("small_resnet", range(3)))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 48, 48), dtype=np.uint8)
    split = Split(pixels, np.zeros(6, dtype=np.int64), [np.empty((0, 4))] * 6, None, list("abcdef"), ("bird",), ())
    indices, target = np.array([0, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 0, 1])
    gates, options = {"layer4": None, "layer4.0.conv2": None}, {"smooth_samples": 2, "seed": 4}
    monkeypatch.setattr(amg, "BATCH", 1)
    whole = amg.maps_of_family(model, split.tensor(indices), target, gates, **options)
    expected = amg.confidence_scores(model, split.tensor(indices), target, whole)
    monkeypatch.setattr(amg, "HELD", 2)
    found = amg.held_out_scores(model, split, indices, target, gates, **options)
    pandas.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-3)


def test_pairs_coincide_behind_global_pooling_and_nowhere_else():
    """On layer4 Grad-CAM = XGrad-CAM and Grad-CAM++ = Smooth Grad-CAM++ (formula); on its last convolution neither."""
    torch.manual_seed(0)
    model = settled(networks.build("small_resnet", range(3)))
    images, target = torch.rand(3, 3, 48, 48), torch.tensor([0, 1, 2])
    gates = {"layer4": None, "layer4.0.conv2": None}
    maps = amg.maps_of_family(model, images, target, gates, smooth_samples=2, seed=0, average_cams=False)
    table = amg.differences(maps).map(float)
    for pair in ("grad_cam, xgrad_cam", "grad_cam_plus_plus, smooth_grad_cam_plus_plus"):
        assert table.loc[pair, "layer4"] < 1e-4
        assert table.loc[pair, "layer4.0.conv2"] > 1e-2


def test_amg_is_slower_only_where_no_round_says_otherwise():
    """Ranges of the rounds that overlap tell nothing apart; what was not timed is not named."""
    times = {"amg": Ratio(1.1, 1.05, 1.2), "grad_cam": Ratio(1.0, 0.95, 1.04), "xgrad_cam": Ratio(1.0, 0.9, 1.06)}
    times |= {"grad_cam_plus_plus": Ratio(1.5, 1.3, 1.6), "rise": Ratio(500, 490, 510)}
    told = amg.is_slower(times)
    assert told == "AMG is slower than grad_cam; faster than grad_cam_plus_plus; not apart from xgrad_cam"
    assert amg.is_slower({"grad_cam": times["grad_cam"]}) == "AMG was not timed"
