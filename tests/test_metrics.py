"""Metrics on classifiers small enough to score by hand, and against loops written from their definitions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from xai_utils.images import baseline
from xai_utils.metrics import METRICS, metric
from xai_utils.metrics.localisation import (
    box_average_precision,
    break_zero_ties,
    pointing_game,
)
from xai_utils.metrics.perturbation import (
    Protocol,
    area_under_curve,
    deletion,
    faithfulness,
    faithfulness_score,
    insertion,
    perturbation_curves,
    probability_curves,
    step_counts,
)

WHITE = torch.ones(1, 1, 2, 2)


class Odds(nn.Module):
    """Two classes on one channel: the odds of class 0 are the product of odds[y, x] ** pixel[y, x]."""

    def __init__(self, odds, mean=0.5):
        super().__init__()
        self.register_buffer("evidence", torch.tensor(odds, dtype=torch.float32).log())
        self.register_buffer("mean", torch.tensor([mean]))

    def forward(self, images):
        logit = (images[:, 0] * self.evidence).sum((1, 2))
        return torch.stack([logit, torch.zeros_like(logit)], 1)


class Small(nn.Module):
    """A random network with batch statistics: a score that leaked them would depend on its batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
        )
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))

    def forward(self, images):
        return 6 * self.layers(images)


def odds(*values):
    """Odds to probabilities."""
    return [value / (1 + value) for value in values]


def test_deletion_by_hand():
    """2x2, odds 2, 3, 5, 1, deleted to black in the order 5, 3, 2, 1: odds 30, 6, 2, 1, 1; the reverse differs."""
    model = Odds([[2, 3], [5, 1]])
    best, worst = torch.tensor([[[2.0, 3.0], [4.0, 1.0]]]), torch.tensor([[[3.0, 2.0], [1.0, 4.0]]])
    curve = odds(30, 6, 2, 1, 1)
    area = (sum(curve) - (curve[0] + curve[-1]) / 2) / 4
    target = torch.tensor([0])
    options = {"deletion": {"baseline": "black"}}
    got = perturbation_curves(model, WHITE, target, best, curves=["deletion"], **options)["deletion"]
    assert got[0].tolist() == pytest.approx(curve)
    assert deletion(model, WHITE, target, best, baseline="black").tolist() == pytest.approx([area])
    reverse = odds(30, 30, 15, 5, 1)
    area = (sum(reverse) - (reverse[0] + reverse[-1]) / 2) / 4
    assert deletion(model, WHITE, target, worst, baseline="black").tolist() == pytest.approx([area])


def test_deletion_default_is_the_mean_colour():
    """Removed pixels show 0.5, so each keeps the square root of its odds: 900, 180, 60, 30, 30."""
    model = Odds([[4, 9], [25, 1]])
    maps = torch.tensor([[[2.0, 3.0], [4.0, 1.0]]])
    curve = odds(900, 180, 60, 30, 30)
    area = (sum(curve) - (curve[0] + curve[-1]) / 2) / 4
    assert deletion(model, WHITE, None, maps).tolist() == pytest.approx([area])


def test_insertion_by_hand():
    """From black, in the order 5, 3, 2, 1: odds 1, 5, 15, 30, 30; of the other class, the complement."""
    model = Odds([[2, 3], [5, 1]])
    maps = torch.tensor([[[2.0, 3.0], [4.0, 1.0]]])
    curve = odds(1, 5, 15, 30, 30)
    area = (sum(curve) - (curve[0] + curve[-1]) / 2) / 4
    got = insertion(model, WHITE.expand(2, 1, 2, 2), torch.tensor([0, 1]), maps.expand(2, 2, 2), baseline="black")
    assert got.tolist() == pytest.approx([area, 1 - area])


def test_faithfulness_by_hand():
    """On 4 pixels the top i/32 are 0 (i < 4), 1, 2, 3 (8 each) and 4 (i > 27) pixels; both variants."""
    model = Odds([[2, 3], [5, 1]])
    maps = torch.tensor([[[2.0, 3.0], [4.0, 1.0]]])
    q = odds(1, 5, 15, 30, 30)
    total = 3 * q[0] + 8 * q[1] + 8 * q[2] + 8 * q[3] + 5 * q[4]
    expected = 100 * total / 32 / (q[4] - q[0])
    assert faithfulness(model, WHITE, None, maps, baseline="black").tolist() == pytest.approx([expected])
    expected = 100 * (total - 32 * q[0]) / 32 / (q[4] - q[0])
    got = faithfulness(model, WHITE, None, maps, baseline="black", variant="offset")
    assert got.tolist() == pytest.approx([expected])


def test_faithfulness_of_a_ramp_and_of_a_small_gap():
    """q_i = i/32 scores 51.5625 in both variants; a gap below 0.05, or downwards, has no score."""
    ramp = torch.arange(33)[None] / 32
    assert faithfulness_score(ramp).tolist() == [51.5625]
    assert faithfulness_score(ramp, variant="offset").tolist() == [51.5625]
    assert faithfulness_score(torch.cat([0.04 * ramp, 1 - ramp, 0.06 * ramp])).isnan().tolist() == [True, True, False]
    assert not faithfulness_score(0.04 * ramp, min_gap=0).isnan().any()
    with pytest.raises(ValueError, match="'paper' or 'offset'"):
        faithfulness_score(ramp, variant="both")


def test_area_under_curve_vector():
    """(0, 0.5, 0.9, 1) has 0.633333; a constant curve has its height at any number of steps."""
    assert area_under_curve(torch.tensor([[0, 0.5, 0.9, 1]])).tolist() == pytest.approx([0.6333333])
    for points in (2, 29, 225):
        assert area_under_curve(torch.full((1, points), 0.25)).tolist() == [0.25]
    with pytest.raises(ValueError, match="end points"):
        area_under_curve(torch.ones(1, 1))


def test_step_counts():
    """50176 pixels: 224 a step are 225 points, 1792 are 29, and as many at any size; the last step may be short."""
    assert len(step_counts(50176, 224)) == 225
    assert len(step_counts(50176, 1792)) == 29
    assert len(step_counts(96 * 96, 1792 * (96 / 224) ** 2)) == 29
    assert step_counts(10, 4) == (0, 4, 8, 10)
    assert step_counts(3, 0.02) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="pixels_per_step is 0"):
        step_counts(10, 0)


def test_curves_equal_a_loop_and_share_batches_freely():
    """All three curves, with their default baselines, equal one image at a time; chunks 1, 7 and 500 agree."""
    model = Small().eval()
    images, maps = torch.rand(3, 3, 16, 16), torch.rand(3, 16, 16)
    target = torch.tensor([0, 3, 1])
    whole = {"pixels_per_step": 224 * 224 / 8}  # 8 steps at any size
    options = {"insertion": whole, "deletion": whole}
    curves = perturbation_curves(model, images, target, maps, chunk=500, **options)
    assert {name: tuple(curve.shape) for name, curve in curves.items()} == {
        "insertion": (3, 9),
        "deletion": (3, 9),
        "faithfulness": (3, 33),
    }
    for index in range(3):
        order = np.argsort(-maps[index].flatten().numpy(), kind="stable")
        for name, start, end in [
            ("insertion", baseline("rise_blur", model, images), images),
            ("deletion", images, baseline("mean", model, images)),
            ("faithfulness", baseline("blur", model, images), images),
        ]:
            steps = curves[name].shape[1] - 1
            for step in range(steps + 1):
                picture = start[index].flatten(1).clone()
                changed = order[: 256 * step // steps]
                picture[:, changed] = end[index].flatten(1)[:, changed]
                with torch.no_grad():
                    expected = model(picture.reshape(1, 3, 16, 16)).softmax(1)[0, target[index]]
                assert float(curves[name][index, step]) == pytest.approx(float(expected), abs=2e-6)
    for chunk in (1, 7):
        again = perturbation_curves(model, images, target, maps, chunk=chunk, **options)
        for name, curve in curves.items():
            assert torch.allclose(again[name], curve, atol=2e-6)


def test_points_that_show_the_same_are_asked_once():
    """16 steps of insertion are half of M_F's, deletion begins with the image: 49 pictures an image, not 67 points.

    With another baseline, given as pixels, only the image is shared; the curves stay what they are alone.
    """
    model, images, maps = Small().eval(), torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16)
    target, seen = torch.tensor([0, 2]), []
    sixteenth = {"pixels_per_step": 224 * 224 / 16}
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    for substrate, pictures in (("blur", 33 + 16), (torch.rand(2, 3, 16, 16), 33 + 16 + 16)):
        options = {"insertion": sixteenth | {"baseline": substrate}, "deletion": sixteenth}
        seen.clear()
        curves = perturbation_curves(model, images, target, maps, **options)
        assert sum(seen[1:]) == 2 * pictures  # the first asks how many classes there are
        for name, curve in curves.items():
            alone = perturbation_curves(model, images, target, maps, curves=[name], **options)[name]
            torch.testing.assert_close(curve, alone, atol=2e-6, rtol=0)
    handle.remove()


def test_a_batch_scores_like_its_images_and_leaves_the_model_alone():
    """Batch = singles for every metric; flags, buffers and gradients of a model in train mode stay as they were."""
    model = Small().train()
    model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images, maps = torch.rand(3, 3, 12, 20), torch.rand(3, 12, 20)
    masks = torch.rand(3, 12, 20) > 0.7
    for name, chosen in METRICS.items():
        parts = (slice(None), [0], [1], [2])
        extra = [{chosen.needs: masks[part]} if chosen.needs.endswith("masks") else {} for part in parts]
        together = chosen.function(model, images, None, maps, **extra[0])
        single = [chosen.function(model, images[[i]], None, maps[[i]], **extra[i + 1]) for i in range(3)]
        assert together.shape == (3,), name
        assert together.device.type == "cpu", name
        assert torch.allclose(together, torch.cat(single), atol=1e-3, equal_nan=True), name
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_takes_the_maps_of_any_library(name):
    """An array (N, 1, H, W) of halves scores like the tensor; channels, and too few or too many maps, are refused."""
    model, images, chosen = Small().eval(), torch.rand(2, 3, 12, 12), METRICS[name]
    maps, masks = torch.rand(3, 12, 12).half(), torch.rand(2, 12, 12) > 0.7
    extra = {chosen.needs: masks} if chosen.needs.endswith("masks") else {}
    expected = chosen.function(model, images, None, maps[:2].float(), **extra)
    found = chosen.function(model, images, None, maps[:2, None].numpy(), **extra)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    for wrong, message in ((maps, r"\(3, 12, 12\)"), (maps[:1], r"\(1, 12, 12\)"), (images, "reduce the channels")):
        with pytest.raises(ValueError, match=message):
            chosen.function(model, images, None, wrong, **extra)


def test_perturbation_errors_say_what_is_allowed():
    """Unknown curves, directions, chunks and classes are refused with the choices."""
    model, maps, ranks = Odds([[2, 3], [5, 1]]), torch.rand(1, 2, 2), torch.arange(4).reshape(1, 2, 2)
    with pytest.raises(ValueError, match="insertion, deletion, faithfulness"):
        perturbation_curves(model, WHITE, None, maps, curves=["removal"])
    with pytest.raises(ValueError, match="'insert' or 'delete'"):
        probability_curves(model, WHITE, None, ranks, [Protocol("mine", (0, 4), "black", "swap")])
    with pytest.raises(ValueError, match="chunk is 0"):
        probability_curves(model, WHITE, None, ranks, [Protocol("mine", (0, 4), "black", "insert")], chunk=0)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        deletion(model, WHITE, torch.tensor([2]), maps)


def test_metric_table_is_complete():
    """Every metric has a label, a direction and a protocol; an unknown name lists them all."""
    for name, chosen in METRICS.items():
        assert all([chosen.label, chosen.protocol, chosen.unit]), name
        assert chosen.needs in ("model", "falls", "maps", "masks", "part_masks", "cell_masks"), name
        directions = {"deletion": False, "infidelity": False, "average_drop": False, "mean_intensity": None}
        assert chosen.higher_is_better is directions.get(name, True), name
        assert (chosen.curve is None) == (chosen.curve_score is None), name
    with pytest.raises(ValueError, match="insertion, deletion, faithfulness"):
        metric("inserton")


def test_average_precision_vector():
    """Relevance (1, 0, 1, 1, 0) in rank order scores 80.55556; no object gives NaN, only object gives 100."""
    maps = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 1.0]]]).expand(3, 1, 5)
    masks = torch.tensor([[[1, 0, 1, 1, 0]], [[0, 0, 0, 0, 0]], [[1, 1, 1, 1, 1]]]).bool()
    scores = box_average_precision(None, None, None, maps, masks=masks)
    assert scores.tolist() == pytest.approx([80.55556, math.nan, 100], nan_ok=True)
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        box_average_precision(None, None, None, maps, masks=masks[:, :, :4])


def test_average_precision_equals_the_sum_over_ranks():
    """Random maps with many ties: sum_i P_i (R_i - R_{i-1}) in stable order, one rank after the other."""
    maps, masks = torch.randint(4, (2, 6, 5)).float(), torch.rand(2, 6, 5) > 0.6
    for index, score in enumerate(box_average_precision(None, None, None, maps, masks=masks)):
        order = np.argsort(-maps[index].flatten().numpy(), kind="stable")
        relevant, hits, total, recall = masks[index].flatten()[order].tolist(), 0, 0.0, 0.0
        for rank, positive in enumerate(relevant, start=1):
            hits += positive
            total += hits / rank * (hits / sum(relevant) - recall)
            recall = hits / sum(relevant)
        assert float(score) == pytest.approx(100 * total, rel=1e-5)


def test_pointing_game_takes_the_first_maximum():
    """The first of two equal maxima decides; a constant map misses even where all is object; no object is NaN."""
    maps = torch.zeros(5, 2, 3)
    maps[:, 0, 2] = maps[:, 1, 0] = 1
    maps[2] = 0.5
    masks = torch.zeros(5, 2, 3, dtype=torch.bool)
    masks[0, 0, 2] = masks[1, 1, 0] = True
    masks[2:4] = True
    scores = pointing_game(None, None, None, maps, masks=masks)
    assert scores.tolist() == pytest.approx([1, 0, 0, 1, math.nan], nan_ok=True)


def test_pointing_tolerance_is_a_euclidean_distance_at_224():
    """At 112 pixels a tolerance of 10 accepts 5 pixels: (3, 4) away hits, (4, 4) away misses, with 0 both miss."""
    maps, masks = torch.zeros(2, 112, 112), torch.zeros(2, 112, 112, dtype=torch.bool)
    maps[:, 50, 60] = 1
    masks[0, 53, 64] = masks[1, 54, 64] = True
    assert pointing_game(None, None, None, maps, masks=masks, tolerance=10).tolist() == [1, 0]
    assert pointing_game(None, None, None, maps, masks=masks).tolist() == [0, 0]
    with pytest.raises(ValueError, match="tolerance is -1"):
        pointing_game(None, None, None, maps, masks=masks, tolerance=-1)


def test_zero_ties_are_broken_by_nearness():
    """Of the zero pixels of a one-pixel map the nearer rank first; the order of the rest and constants stay."""
    maps = torch.zeros(3, 32, 32)
    maps[0, 20, 25] = 1
    maps[1] = 0.1
    maps[2] = torch.randperm(1024).reshape(32, 32).float()
    moved = break_zero_ties(maps)
    assert moved[0, 20, 24] > moved[0, 20, 23] > moved[0, 20, 22] > 0
    assert moved[0].argmax() == maps[0].argmax()
    assert torch.equal(moved[1], maps[1])
    assert torch.equal(moved[2].flatten().argsort(), maps[2].flatten().argsort())
    assert torch.allclose(moved, maps, rtol=2e-4, atol=1e-4 * 1024)


def test_mean_intensity_by_hand():
    """A ramp from -1 to 3 has mean 1/2 once stretched, one bright pixel of four 1/4, a constant map nothing."""
    maps = torch.tensor([[[-1.0, 3.0], [-1.0, 3.0]], [[0.0, 5.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 2.0]]])
    assert METRICS["mean_intensity"].function(None, None, None, maps).tolist() == [0.5, 0.25, 0]
