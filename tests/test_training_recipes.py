"""What the trainings share: how images are augmented, what the learning rate and the optimizers do."""

import pytest
import torch

from xai_utils.training.recipes import adamw, cropped, crops, learning_rate_factor, sgd


def augmented(images, generator, **options):
    """Random crops of a batch."""
    return cropped(images, crops(len(images), generator, **options))


def test_augmented_images_stay_in_range():
    """Interpolation invents no value: shapes stay, a range stays a range, a constant stays itself."""
    images = torch.rand(64, 3, 8, 8)
    cropped = augmented(images, torch.Generator().manual_seed(0), smallest_crop=0.3)
    assert cropped.shape == images.shape
    assert images.min() <= cropped.min()
    assert cropped.max() <= images.max()
    constant = torch.full((16, 3, 8, 8), 0.25)
    assert torch.allclose(augmented(constant, torch.Generator().manual_seed(1), smallest_crop=0.1), constant)


def test_crops_cover_the_promised_share_of_the_image():
    """On a ramp from 0 to 1 the range that a crop spans is its width: the widths and heights multiply to the area."""
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)
    images = torch.cat([ramp, ramp.transpose(2, 3)], 1)
    cropped = augmented(images, torch.Generator().manual_seed(0), smallest_crop=0.5)
    width = cropped[:, 0].amax((1, 2)) - cropped[:, 0].amin((1, 2))
    height = cropped[:, 1].amax((1, 2)) - cropped[:, 1].amin((1, 2))
    assert (width * height > 0.5 * 0.8).all()  # a width above 1 is cut to 1, half a pixel is lost on each side
    assert (width * height).mean() == pytest.approx(0.72, abs=0.05)
    flipped = cropped[:, 0, 0, 0] > cropped[:, 0, 0, -1]
    assert 60 < flipped.sum() < 140


def test_augmentation_is_a_function_of_its_generator():
    """Equal seeds give equal crops, another seed others."""
    images = torch.rand(4, 3, 16, 16)
    draw = [augmented(images, torch.Generator().manual_seed(s), smallest_crop=0.5) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_learning_rates_by_hand():
    """Halving: 1, 1/2, 1/4 every 20 epochs (AKD). Steps: a tenth at each. Cosine: up, 1/2 midway, 0 at the end."""
    halving = learning_rate_factor({"schedule": "halving", "epochs": 100, "halve_every": 20})
    assert [halving(epoch) for epoch in (0, 19.9, 20, 45)] == [1, 1, 0.5, 0.25]
    steps = learning_rate_factor({"schedule": "steps", "epochs": 90, "milestones": [30, 60, 80]})
    assert [steps(epoch) for epoch in (0, 30, 60, 89)] == pytest.approx([1, 0.1, 0.01, 0.001])
    cosine = learning_rate_factor({"schedule": "cosine", "epochs": 11})
    assert [round(cosine(epoch), 6) for epoch in (0, 0.5, 1, 6, 11)] == [0, 0.5, 1, 0.5, 0]


def test_first_steps_by_hand():
    """w = 2, gradient 8, rate 0.1, decay 0.5: Nesterov adds momentum, AdamW decays apart and steps by the sign."""
    settings = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.5}
    for make, expected in ((sgd, 2 - 0.1 * 1.5 * (8 + 0.5 * 2)), (adamw, 2 * (1 - 0.1 * 0.5) - 0.1)):
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(layer.weight, 2)
        layer.weight.grad = torch.full((1, 1), 8.0)
        make(settings)(layer).step()
        assert layer.weight.item() == pytest.approx(expected)
