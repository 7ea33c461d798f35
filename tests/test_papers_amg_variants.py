"""AMG's variants beside Grad-CAM: what is scored, and when one is said to be better."""

from functools import partial

import numpy as np
import pandas
import torch
from conftest import ROOT
from test_layers import settled

from xai_utils import datasets
from xai_utils.explainers import explain
from xai_utils.metrics import average_drop
from xai_utils.metrics.part_truth import deciding_parts
from xai_utils.networks import build, cam_layer, gate_for
from xai_utils.papers import amg_variants


def test_each_training_is_scored_on_its_own_map():
    """Two random gates and fixed ones: the drop is that of AMG's map; Grad-CAM agrees with itself, no boxes no M_I."""
    torch.manual_seed(3)
    model = settled(build("small_resnet", range(4))).eval()
    images, target = torch.rand(5, 3, 64, 64), torch.arange(5) % 4
    layer = cam_layer(model, images)
    gates = {("mask", "weighted"): [settled(gate_for(model, images, objective="mask", gate_input="weighted")).eval()
                                    for _ in range(2)]}  # fmt: skip
    gates["none", "activations"] = [gate_for(model, images, objective="none").eval()]
    masks = torch.zeros(5, 64, 64, dtype=torch.bool)
    found = amg_variants.scores_of(model, images, target, gates, layer=layer, masks=masks)
    assert list(found) == ["grad_cam", "mask, weighted", "none, activations"]
    assert list(found["grad_cam"]) == ["average_drop", "percent_increase", "percentage_in", "rank correlation"]
    assert (found["grad_cam"]["rank correlation"] == 1).all()
    for place, gate in enumerate(gates["mask", "weighted"]):
        maps = explain(model, images, target, method="amg", gate=gate)
        own = found["mask, weighted"]["average_drop"].xs(place, level="training")
        np.testing.assert_allclose(own, average_drop(model, images, target, maps), rtol=1e-4)


def test_images_scored_a_few_at_a_time_have_the_scores_of_all(monkeypatch, tmp_path):
    """Drawn birds, two in memory at once: the frames of all at once, boxes and deciding parts included."""
    datasets.prepare(ROOT / "data" / "birds", tmp_path, image_size=32, train_per_class=1, validation_per_class=1)
    data = datasets.load(tmp_path)
    torch.manual_seed(3)
    model = settled(build("small_resnet", data.classes)).eval()
    indices, target = np.arange(5), torch.arange(5) % 4
    images, layer = data.validation.tensor(indices), cam_layer(model, data.validation.tensor([0]))
    gates = {("none", "activations"): [gate_for(model, images, objective="none").eval()]}
    masks = {"masks": data.validation.box_masks(indices)}
    measure = partial(deciding_parts, threshold=0)  # an untrained network hardly minds
    masks["part_masks"] = measure(model, data, "validation", indices, target).masks
    monkeypatch.setattr(amg_variants, "BATCH", 1)  # the last digits of a map decide its ranks
    expected = amg_variants.scores_of(model, images, target, gates, layer=layer, **masks)
    monkeypatch.setattr(amg_variants, "deciding_parts", measure)
    monkeypatch.setattr(amg_variants, "HELD", 2)
    found = amg_variants.held_out_scores(model, data, indices, target, gates, layer=layer)
    assert list(found) == list(expected)
    assert "part_truth" in found["grad_cam"]
    for name, frame in expected.items():
        pandas.testing.assert_frame_equal(found[name], frame, rtol=1e-4, atol=1e-3)


def scored(**drops):
    """Frames of a variant whose drop differs from Grad-CAM's by so much in each training (rows)."""
    noise = np.random.default_rng(0).normal(0, 0.5, 40)
    frames = {}
    for name, rows in {"grad_cam": [0], **drops}.items():
        index = pandas.MultiIndex.from_product([range(len(rows)), range(40)], names=["training", "image"])
        values = np.concatenate([20 + shift + noise * (place + 1) for place, shift in enumerate(rows)])
        frames[name.replace("_weighted", ", weighted")] = pandas.DataFrame(
            {"average_drop": values, "rank correlation": 1.0}, index=index
        )
    return frames


def test_better_is_what_is_better_over_trainings_and_images():
    """Three trainings that agree are marked; two, or three that do not agree, are not; a larger drop is worse."""
    frames = scored(
        mask_weighted=[-3, -3.2, -2.9], none_weighted=[4], cross_weighted=[-3, -3], other_weighted=[-6, 5, -5]
    )
    table = amg_variants.compared(frames, seed=0, resamples=200)
    drops = table["Average drop"]
    assert drops["mask, weighted"].endswith("] ▲")
    assert drops["none, weighted"].endswith("] ▼")
    assert all(drops[name].endswith("]") for name in ("grad_cam", "cross, weighted", "other, weighted"))
    assert table["trainings"].tolist() == [1, 3, 1, 2, 3]
    assert amg_variants.in_words(table) == "Better than Grad-CAM: mask, weighted: better in Average drop"
    assert amg_variants.in_words(table.loc[["grad_cam", "none, weighted"]]).startswith("No variant is better")


def test_every_variant_is_trained_with_every_seed(monkeypatch):
    """Four ways to train with two seeds, from the settings' seed on; what is fixed is made once."""
    seen = []
    monkeypatch.setattr(amg_variants, "fit_gate", lambda settings, **_: (seen.append(settings), []))
    found = amg_variants.fit_variants({"seed": 5, "layer": "x"}, seeds=2, compute=None)
    assert {key: len(value) for key, value in found.items()} == {
        (objective, gate_input): 1 if objective == "none" else 2
        for objective in ("cross_entropy", "mask", "none")
        for gate_input in ("activations", "weighted")
    }
    assert [each["seed"] for each in seen if each["objective"] == "mask"] == [5, 6, 5, 6]
    assert len(seen) == 10
