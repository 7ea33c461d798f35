"""Infidelity: zero where the map is right but for its unit, and captum's where it is not."""

import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from test_metrics import Odds, Small

from xai_utils.images import baseline
from xai_utils.metrics import infidelity
from xai_utils.metrics.infidelity import removal_falls, square_masks


def test_a_map_that_says_what_is_lost_has_none():
    """The logit is a sum over pixels: its terms, in any unit, predict each fall; a zero map leaves all of them."""
    evidence = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) + 1
    model, white = Odds(evidence.tolist()), torch.ones(1, 1, 8, 8)
    given = {"squares": 10, "side": 84, "baseline": "black", "score": "logit"}
    assert infidelity(model, white, 0, 7 * evidence.log()[None], **given).item() == pytest.approx(0, abs=1e-9)
    falls = removal_falls(model, white, torch.tensor([0]), **given)
    by_hand = [evidence.log()[mask].sum().item() for mask in square_masks((8, 8), squares=10, side=84)]
    assert falls[0].tolist() == pytest.approx(by_hand, abs=1e-5)
    lost = infidelity(model, white, 0, torch.zeros(1, 8, 8), **given)
    assert lost.item() == pytest.approx((falls**2).mean().item())
    assert 0 < infidelity(model, white, 0, evidence.flip(0)[None], **given).item() < lost.item()


def test_it_is_captums_of_a_network_that_reads_which_pixels_are_there():
    """captum perturbs the presence of pixels, all 1 in an image, by the same squares, and scales as well as can be."""
    model, images, maps = Small().eval(), torch.rand(3, 3, 16, 16), torch.randn(3, 16, 16)
    target, given = torch.tensor([0, 3, 1]), {"squares": 12, "side": 70, "baseline": "mean"}
    masks, hidden = square_masks((16, 16), squares=12, side=70), baseline("mean", model, images)

    def answer(presence):
        rows = torch.arange(3).repeat_interleave(len(presence) // 3)
        shown = hidden[rows] + presence * (images - hidden)[rows]
        return model(shown).softmax(1).gather(1, target[rows][:, None])[:, 0]

    def perturb(presence):
        gone = masks.float().repeat(3, 1, 1)[:, None]
        return gone, presence - gone

    with torch.no_grad():
        expected = captum_infidelity(
            answer, perturb, torch.ones(3, 1, 16, 16), maps[:, None], n_perturb_samples=12, normalize=True
        )
    torch.testing.assert_close(infidelity(model, images, target, maps, **given), expected, atol=1e-6, rtol=1e-4)


def test_what_is_lost_is_asked_once_for_all_maps():
    """With the falls at hand the model is not asked, and the score is the same; chunks change nothing."""
    model, images, maps = Small().eval(), torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16)
    falls = removal_falls(model, images, torch.tensor([1, 2]), squares=9, chunk=4)
    expected = infidelity(model, images, torch.tensor([1, 2]), maps, squares=9, chunk=64)
    found = infidelity(None, images, None, maps, squares=9, falls=falls)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_squares_are_drawn_inside_of_the_image():
    """A quarter of the side each, 56 of 224 pixels, whole, by the seed; what does not fit in is refused."""
    masks = square_masks((16, 16), squares=50, seed=3)
    assert masks.sum((1, 2)).tolist() == [16] * 50
    assert torch.equal(masks, square_masks((16, 16), squares=50, seed=3))
    assert not torch.equal(masks, square_masks((16, 16), squares=50, seed=4))
    with pytest.raises(ValueError, match="side is 400 at 224 pixels"):
        square_masks((16, 16), side=400)
    with pytest.raises(ValueError, match="squares is 0"):
        square_masks((16, 16), squares=0)
    with pytest.raises(ValueError, match="chunk is 0"):
        removal_falls(Small(), torch.rand(1, 3, 16, 16), None, chunk=0)
