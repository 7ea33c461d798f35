"""Average drop, increase and percentage-in on classifiers that can be scored by hand."""

import math

import pytest
import torch
from test_metrics import WHITE, Odds, Small, odds

from xai_utils.evaluation.scores import score_batch
from xai_utils.images import baseline, perturb, unit_range
from xai_utils.metrics.confidence import (
    PERCENTS,
    average_drop,
    explained_scores,
    percent_increase,
    percentage_in,
    percentage_in_scores,
    top_mask,
)


def test_average_drop_by_hand():
    """Odds 2 · 3 · 5 · 1/10 = 3: the map (1, 1/2, 0, 0) leaves 2 · √3, another hides the 1/10 and gains."""
    model = Odds([[2, 3], [5, 0.1]])
    maps = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    images = WHITE.expand(3, 1, 2, 2)
    whole, *explained = odds(3, 2 * math.sqrt(3), 30, 0.1)
    found = explained_scores(model, images, None, maps)
    torch.testing.assert_close(found[0], torch.full((3,), whole).double())
    torch.testing.assert_close(found[1], torch.tensor(explained).double())
    drops = [100 * max(0.0, whole - probability) / whole for probability in explained]
    assert drops[:2] == [0, 0]
    assert average_drop(model, images, None, maps).tolist() == pytest.approx(drops)
    assert percent_increase(model, images, None, maps).tolist() == [100, 100, 0]


def test_drops_of_known_probabilities():
    """Y = (0.8, 0.5) and O = (0.4, 0.6): drops of 50 and 0 percent, mean 25; an increase in one of two."""
    model = Odds([[2 / 3, 6], [1.5, 2 / 3]])
    images = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]], [[[0.0, 0.0], [1.0, 1.0]]]])  # odds 4 and 1
    maps = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])  # odds 2/3 and 3/2
    whole, explained = explained_scores(model, images, 0, maps)
    assert whole.tolist() == pytest.approx([0.8, 0.5])
    assert explained.tolist() == pytest.approx([0.4, 0.6])
    drops = average_drop(model, images, 0, maps)
    assert drops.tolist() == pytest.approx([50, 0])
    assert drops.mean().item() == pytest.approx(25)
    assert percent_increase(model, images, 0, maps).tolist() == [0, 100]


def test_masks_are_soft_or_the_exact_top():
    """A soft mask fades every pixel by the stretched map; `percent` keeps whole pixels; a binary map is both."""
    model = Odds([[2, 3], [5, 0.1]])
    maps = torch.tensor([[[-1.0, 1.0], [3.0, 0.0]]])  # stretched 0, 1/2, 1, 1/4
    whole, soft, half = odds(3, math.sqrt(3) * 5 * 0.1**0.25, 15)
    assert explained_scores(model, WHITE, 0, maps)[1].item() == pytest.approx(soft)
    assert explained_scores(model, WHITE, 0, maps, percent=50)[1].item() == pytest.approx(half)
    binary = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    for percent in (None, 50):
        assert explained_scores(model, WHITE, 0, binary, percent=percent)[1].item() == pytest.approx(half)
        assert average_drop(model, WHITE, 1, binary, percent=percent).item() == pytest.approx(
            100 * (half - whole) / (1 - whole)
        )


def test_mask_spaces():
    """Hidden pixels are 0 on black and 0.5 on the mean: zero in pixel space, and zero once normalised."""
    model, maps = Odds([[4, 9], [25, 1]]), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    black, grey = odds(4, 4 * 3 * 5)
    for name, expected in (("black", black), ("mean", grey), (torch.tensor(0.5), grey)):
        whole, explained = explained_scores(model, WHITE, None, maps, baseline=name)
        assert whole.item() == pytest.approx(900 / 901)
        assert explained.item() == pytest.approx(expected)
        found = percentage_in_scores(model, WHITE, None, maps, percents=(25,), baseline=name)
        assert found["softmax"].item() == pytest.approx(expected)
    small, images, masks = Small().eval(), torch.rand(2, 3, 12, 12), torch.rand(2, 12, 12)
    mean, std = small.mean[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    faded = (images - mean) / std * unit_range(masks)[:, None] * std + mean  # the product in normalised space
    torch.testing.assert_close(perturb(images, unit_range(masks), baseline("mean", small, images)), faded)
    with torch.no_grad():
        expected = small(faded).softmax(1)[:, 1].double()
    torch.testing.assert_close(explained_scores(small, images, 1, masks, baseline="mean")[1], expected)


def test_percentage_in_by_hand():
    """The top 1, 2 and 3 of 4 pixels: logits ln 5, ln 15, ln 30 of class 0; class 1 has none and is not predicted."""
    model = Odds([[2, 3], [5, 0.1]])
    maps = torch.tensor([[[2.0, 3.0], [4.0, 1.0]]]).expand(2, 2, 2)
    found = percentage_in_scores(
        model, WHITE.expand(2, 1, 2, 2), torch.tensor([0, 1]), maps, percents=(0, 25, 50, 75, 100)
    )
    product = [1, 5, 15, 30, 3]
    assert found["logit"][0].tolist() == pytest.approx([math.log(value) for value in product], abs=1e-6)
    assert found["logit"][1].tolist() == [0] * 5
    assert found["softmax"][0].tolist() == pytest.approx(odds(*product))
    assert found["softmax"][1].tolist() == pytest.approx([1 - value for value in odds(*product)])
    assert found["accuracy"].tolist() == [[1] * 5, [0] * 5]  # of equal logits the first class is predicted
    assert percentage_in(model, WHITE, 0, maps[:1], percent=50).item() == pytest.approx(15 / 16)
    assert percentage_in(model, WHITE, 0, maps[:1], percent=50, score="logit").item() == pytest.approx(math.log(15))


def test_all_pixels_are_the_image_itself():
    """At 100 percent every score is the unmasked one, exactly: no drop, and no increase out of rounding."""
    model = Small().eval()
    images, maps = torch.rand(5, 3, 12, 12), torch.rand(5, 12, 12)
    with torch.no_grad():
        logits = model(images)
    classes = torch.tensor([0, 1, 2, 3, 0])
    for name in ("black", "mean"):
        found = percentage_in_scores(model, images, classes, maps, percents=(100,), baseline=name)
        assert torch.equal(found["logit"][:, 0], logits.gather(1, classes[:, None])[:, 0])
        torch.testing.assert_close(found["softmax"][:, 0], logits.softmax(1).gather(1, classes[:, None])[:, 0])
        assert torch.equal(found["accuracy"][:, 0], (logits.argmax(1) == classes).float())
        assert percentage_in_scores(model, images, None, maps, percents=(100,))["accuracy"].eq(1).all()
        for metric in (average_drop, percent_increase):
            assert metric(model, images, None, maps, percent=100, baseline=name, chunk=2).eq(0).all()


def test_masks_hold_the_exact_number_of_pixels():
    """round(q · N) pixels whatever the ties, the first ones of a constant map; the papers' five shares by default."""
    maps = torch.zeros(1, 7, 9)
    assert [int(top_mask(maps, percent).sum()) for percent in PERCENTS] == [3, 6, 13, 16, 32]
    assert top_mask(maps, 5).flatten()[:3].all()
    scores = percentage_in_scores(Small(), torch.rand(2, 3, 7, 9), None, maps.expand(2, 7, 9))
    assert all(score.shape == (2, 5) and score.dtype == torch.float32 for score in scores.values())


def test_a_constant_map_shows_nothing():
    """Stretched it is 0 everywhere, so O is the probability of the black image."""
    model = Odds([[2, 3], [5, 0.1]])
    assert average_drop(model, WHITE, None, torch.ones(1, 2, 2)).item() == pytest.approx(100 * (0.75 - 0.5) / 0.75)


def test_a_probability_near_zero_has_a_drop():
    """From e^-60 to e^-70 is a drop of 1 - e^-10: no guard swallows it; from an exact 0 nothing can drop."""
    model = Odds([[math.exp(35), math.exp(35)], [math.exp(-10), 1]])
    maps = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert average_drop(model, WHITE, 1, maps).item() == pytest.approx(100 * (1 - math.exp(-10)))
    model.evidence *= 100
    assert average_drop(model, WHITE, 1, maps).item() == 0


def test_evaluation_scores_them():
    """Beside a curve and without annotated objects, in batches of any size; a broken map has no score."""
    model, images, maps = Small().eval(), torch.rand(3, 3, 12, 12), torch.rand(3, 12, 12)
    names = ["average_drop", "percent_increase", "percentage_in", "mean_intensity", "deletion"]
    broken = maps.clone()
    broken[1, 0, 0] = torch.nan
    scores, _ = score_batch(
        model, images, None, broken, metrics=names, chunk=2, options={"percentage_in": {"percent": 50}}
    )
    expected = percentage_in(model, images, None, maps, percent=50)
    torch.testing.assert_close(scores["percentage_in"][[0, 2]], expected[[0, 2]])
    assert all(score[1].isnan() and score[[0, 2]].isfinite().all() for score in scores.values())


def test_bad_input_is_named():
    """Images that are not pixels, other maps, classes, shares, scores, baselines and chunks are named."""
    model, images, maps = Small().train(), torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8)
    for metric in (average_drop, percent_increase, percentage_in):
        for arguments, options, message in (
            ((images * 2, None, maps), {}, r"images reach from .* give pixels in \[0, 1\]"),
            ((images - 0.5, None, maps), {}, r"images reach from -0"),
            ((images * math.nan, None, maps), {}, "images reach from nan"),
            ((images, None, maps[:1]), {}, r"maps are \(1, 8, 8\) and images \(2, 3, 8, 8\)"),
            ((images, 4, maps), {}, r"target 4 is not a class of this model; give 0\.\.3"),
            ((images, -1, maps), {}, r"target -1 is not a class"),
            ((images, None, maps), {"percent": 101}, "percent is 101; give a share"),
            ((images, None, maps), {"percent": math.nan}, "percent is nan"),
            ((images, None, maps), {"baseline": "white"}, "baseline 'white' is unknown; choose one of black, mean"),
            ((images, None, maps), {"chunk": 0}, "chunk is 0"),
            ((images, None, maps * math.nan), {"percent": 5}, "contain NaN"),
        ):
            with pytest.raises(ValueError, match=message):
                metric(model, *arguments, **options)
    with pytest.raises(ValueError, match="score 'rank' is unknown; choose one of softmax, sigmoid, logit, accuracy"):
        percentage_in(model, images, None, maps, score="rank")
    assert all(module.training for module in model.modules())
