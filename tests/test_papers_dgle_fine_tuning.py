"""DGLE's fine-tuned scores, by hand and on known curves."""

import pytest
import torch
from torch import nn

from xai_utils.papers.dgle_fine_tuning import fine_tune_scores, tuned_scores


def test_tuned_scores_by_hand():
    """q 0.2, 0.6, 0.5, 0.8, 0.8 has the running maximum 0.2, 0.6, 0.6, 0.8, 0.8: factors 0.6, 0.2, 0.2, 0, 0."""
    scores = torch.tensor([5.0, 4.0, 4.0, 2.0, 1.0])
    tuned = tuned_scores(scores, torch.tensor([0.2, 0.6, 0.5, 0.8, 0.8]))
    torch.testing.assert_close(tuned, torch.tensor([3.0, 0.8, 0.8, 0.0, 0.0]))


class Counter(nn.Module):
    """The probability of class 1 is the share of bright pixels, to be seen on a black background."""

    def forward(self, images):
        share = images.mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([torch.zeros_like(share), torch.logit(share)], 1)


def test_fine_tuning_on_a_known_curve():
    """On an image of ones q_i = i/n: r'_i = r_i (1 - i/n), at measured points and between them."""
    maps = torch.rand(2, 6, 8)
    tuned = fine_tune_scores(Counter(), torch.ones(2, 3, 6, 8), torch.ones(2).long(), maps, steps=6, hidden="black")
    order = maps.flatten(1).argsort(1, descending=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(1, 49).expand(2, -1))
    torch.testing.assert_close(tuned, maps * (1 - rank.reshape(2, 6, 8) / 48), atol=2e-5, rtol=0)


def test_fine_tuning_keeps_the_order_up_to_the_plateau():
    """Only the 24 best pixels are bright: the order among them stays, ties included, and all others fall to 0."""
    maps = torch.rand(1, 6, 8)
    maps[0, 0, :4] = 0.9
    order = maps.flatten().argsort(descending=True, stable=True)
    image = torch.zeros(48).index_fill_(0, order[:24], 1.0).reshape(1, 1, 6, 8).expand(1, 3, 6, 8)
    tuned = fine_tune_scores(Counter(), image, 1, maps, steps=48, hidden="black").flatten()
    assert (tuned[order[:23]].diff() < 0).all()
    assert tuned[order[24:]].abs().max() < 1e-5


def test_fine_tuning_refuses_what_it_cannot_tune():
    """Negative scores and no measured point are named."""
    maps = torch.zeros(2, 6, 8)
    maps[1, 0, 0] = -0.1
    with pytest.raises(ValueError, match=r"maps of images \[1\] have scores below 0"):
        fine_tune_scores(Counter(), torch.ones(2, 3, 6, 8), None, maps)
    with pytest.raises(ValueError, match="steps is 0"):
        fine_tune_scores(Counter(), torch.ones(2, 3, 6, 8), None, maps, steps=0)
