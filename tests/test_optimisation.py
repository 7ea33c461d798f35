"""Meaningful perturbation on a model that reads one patch: found, hidden, repeatable, and its terms by hand."""

import pytest
import torch
from torch import nn

from xai_utils.explainers import explain
from xai_utils.explainers.optimisation import _first_masks, _regularisation, _shifted, meaningful_perturbation
from xai_utils.images import blur
from xai_utils.networks import class_scores

SIZE, ROWS, COLUMNS = 64, slice(16, 32), slice(32, 48)


class PatchReader(nn.Module):
    """Sees stripes in one patch of 16 × 16 pixels, and nothing else: class 1 where they are strong, class 0 if not."""

    def __init__(self):
        super().__init__()
        stripes = torch.zeros(SIZE, SIZE)
        stripes[ROWS, COLUMNS] = 1 - 2.0 * (torch.arange(SIZE)[COLUMNS] % 4 < 2)
        self.weight = nn.Parameter(stripes)
        self.dropout = nn.Dropout(0.5)  # explained in train mode it would be random

    def forward(self, images):
        seen = self.dropout((images.mean(1) * self.weight).sum((1, 2))) / 128
        return torch.stack([torch.zeros_like(seen), 12 * seen - 4], 1)


def striped(count, seed=0):
    images = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    images[:, :, ROWS, COLUMNS] = 1 - (torch.arange(SIZE)[COLUMNS] % 4 < 2).float()
    return images


@pytest.fixture(scope="module")
def found():
    torch.set_num_threads(1)
    return meaningful_perturbation(PatchReader(), striped(3), torch.ones(3).long(), iterations=100)


def test_it_finds_the_patch(found):
    """Hiding the patch alone takes the class away: it holds the most salient pixels, and nothing else is salient."""
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[ROWS, COLUMNS] = True
    top = inside.flatten()[found.flatten(1).topk(256).indices]
    assert top.float().mean(1).min() > 0.8
    near = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    near[8:40, 24:56] = True  # one cell of 8 pixels around the patch
    assert found[:, inside].mean() > 0.5
    assert found[:, ~near].mean() < 0.15
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_class_is_gone_under_the_mask(found):
    """What the found mask hides was the class: its probability falls from above 0.9 to below 0.2."""
    model, images = PatchReader().eval(), striped(3)
    blended = images * (1 - found[:, None]) + blur(None, images) * found[:, None]
    with torch.no_grad():
        assert model(images).softmax(1)[:, 1].min() > 0.9
        assert model(blended).softmax(1)[:, 1].max() < 0.2


def test_images_do_not_meet(found):
    """An image's map is the same alone, in a batch and whatever the chunk; another seed shifts otherwise."""
    model, images = PatchReader(), striped(3)
    single = meaningful_perturbation(model, images[1:2], 1, iterations=100)
    torch.testing.assert_close(single, found[1:2], atol=1e-4, rtol=0)
    parts = meaningful_perturbation(model, images, 1, iterations=100, chunk=2)
    torch.testing.assert_close(parts, found, atol=1e-4, rtol=0)
    assert torch.equal(meaningful_perturbation(model, images, 1, iterations=100), found)


def test_the_model_is_left_as_it_was():
    """Mode, gradients and their requests stay; it works in inference mode and on frozen parameters."""
    model = PatchReader().train()
    with torch.inference_mode():
        explain(model, striped(1), method="meaningful_perturbation", iterations=2)
    assert model.training
    assert model.dropout.training
    assert model.weight.grad is None
    assert model.weight.requires_grad
    model.requires_grad_(False)
    assert meaningful_perturbation(model, striped(1), iterations=2).shape == (1, SIZE, SIZE)


def test_the_first_mask_is_the_smallest_circle():
    """No circle short of the patch hides it, a large one does; where all hides nothing, all is shown."""
    model, images = PatchReader().eval(), striped(2)

    def scored(pixels, classes):
        return class_scores(model(pixels), classes)

    images[1] = 0.5
    masks = _first_masks(scored, images, blur(None, images), torch.ones(2).long(), (8, 8))
    assert masks[0, 2:4, 4:6].max() < 0.3
    assert masks[0, -1, 0] > 0.5
    flat = images[1:]
    masks = _first_masks(scored, flat, blur(None, flat) + 0.1, torch.ones(1).long(), (8, 8))
    assert masks.shape == (1, 8, 8)


def test_regularisation_by_hand():
    """One cell of nine hidden costs λ1; of its three places with steps of 1 one has two of them: (2 + 2^1.5) λ2."""
    masks = torch.ones(1, 3, 3)
    masks[0, 1, 1] = 0  # steps: into it from above and from the left, out of it below and to the right (one place)
    area = _regularisation(masks, 1.0, 0.0).item()
    smoothness = _regularisation(masks, 0.0, 1.0).item()
    assert area == pytest.approx(1)
    assert smoothness == pytest.approx(1 + 1 + 2**1.5, rel=1e-4)


def test_shifts_move_the_image():
    """A shift of (down, right) - reach // 2 pixels, with the border reflected into what moves in."""
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert torch.equal(_shifted(image, (1, 1), 2), image)
    moved = _shifted(image, (2, 0), 2)
    assert torch.equal(moved[0, 0, 1:, :-1], image[0, 0, :-1, 1:])
    assert torch.equal(moved[0, 0, 0, :-1], image[0, 0, 1, 1:])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"iterations": 0}, "iterations is 0; give 1 or more"),
        ({"chunk": 0}, "chunk is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give a positive"),
        ({"area_weight": -1.0}, "area_weight is -1.0; give 0 or more"),
        ({"smoothness_weight": float("nan")}, "smoothness_weight is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"hidden": "white"}, "baseline 'white' is unknown"),
    ],
)
def test_unusable_options_are_refused(option, message):
    """Each is named before the first step."""
    with pytest.raises(ValueError, match=message):
        meaningful_perturbation(PatchReader(), striped(1), **option)
