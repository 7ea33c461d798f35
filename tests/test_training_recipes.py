"""What the trainings share: how images are augmented, what the learning rate and the optimizers do."""

import pytest
import torch

from xai_utils.training.recipes import adamw, cropped, cropped_out, crops, learning_rate_factor, sgd


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


def packed(images):
    """Images (3, H, W) uint8 of any shapes as `Split.stored` gives them."""
    pixels = torch.cat([image.flatten(1).T for image in images])
    sizes = torch.tensor([image.shape[1:].numel() for image in images])
    shapes = [
        [*start, *image.shape[1:]] for start, image in zip((sizes.cumsum(0) - sizes)[:, None], images, strict=True)
    ]
    return pixels, torch.tensor(shapes)


def test_crops_out_of_whole_images_are_those_out_of_squares():
    """Of square images of the crops' size both ways of cropping see the same pixels, colours included."""
    images = torch.randint(0, 256, (9, 3, 24, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for options in ({}, {"colour_jitter": 0.4}, {"scale_jitter": (256, 480)}):
        numbers = crops(9, torch.Generator().manual_seed(1), smallest_crop=0.1, **options)
        options.pop("colour_jitter", None)
        torch.testing.assert_close(cropped_out(*packed(images), numbers, size=24, **options), cropped(images, numbers))


def test_crops_come_from_all_of_an_image_and_keep_proportions():
    """On a ramp of 90 x 30 pixels, crops reach both ends, and as many pixels wide as high is 3/4 to 4/3 of a square."""
    ramp = torch.stack(torch.broadcast_tensors(torch.arange(90)[None], torch.arange(30)[:, None], torch.zeros(1, 1)))
    numbers = crops(400, torch.Generator().manual_seed(0), smallest_crop=0.05)
    found = 255 * cropped_out(*packed([ramp.to(torch.uint8)] * 400), numbers, size=16)
    low, high = found.amin((2, 3)), found.amax((2, 3))
    assert low[:, 0].min() < 3
    assert high[:, 0].max() > 86
    wide, tall = ((high - low)[:, :2] * 16 / 15).T
    inside = tall < 28  # what reaches over the image's height is cut to it
    assert inside.sum() > 100
    assert ((wide / tall)[inside] > 0.74).all()
    assert ((wide / tall)[inside] < 1.36).all()


def test_scale_jitter_cuts_squares_of_the_shorter_side():
    """Of a shorter side of 448 in 224, a square of half of it: 15 of 30 pixels, wherever it lies in 90."""
    ramp = torch.stack(torch.broadcast_tensors(torch.arange(90)[None], torch.arange(30)[:, None], torch.zeros(1, 1)))
    numbers = crops(50, torch.Generator().manual_seed(0), smallest_crop=0.05, scale_jitter=(448, 448))
    found = 255 * cropped_out(*packed([ramp.to(torch.uint8)] * 50), numbers, size=15, scale_jitter=(448, 448))
    spans = (found.amax((2, 3)) - found.amin((2, 3)))[:, :2]
    torch.testing.assert_close(spans, torch.full_like(spans, 14.0), atol=0.05, rtol=0)


def test_colours_by_hand():
    """A grey image has no saturation and no contrast to lose: brightness alone acts. A factor of 0 leaves the grey."""
    numbers = torch.tensor([[1.0, 1, 1, 0.5, 0.5, 0.5, 0.3, 1.7], [1, 1, 1, 0.5, 0.5, 1, 1, 0]])
    images = torch.stack([torch.full((3, 4, 4), 0.8), torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 4, 4)])
    expected = torch.stack([torch.full((3, 4, 4), 0.4), torch.full((3, 4, 4), 0.2989)])
    torch.testing.assert_close(cropped(images, numbers), expected)


def test_an_images_crop_does_not_depend_on_the_others():
    """To the bit: each of a batch alone, in parts, or all together, with colours and whole images."""
    shapes = [(30, 40), (50, 30), (32, 32), (31, 77), (30, 30)]
    images = [torch.randint(0, 256, (3, *shape), generator=torch.Generator().manual_seed(1)) for shape in shapes]
    images = [image.to(torch.uint8) for image in images]
    numbers = crops(5, torch.Generator().manual_seed(2), smallest_crop=0.1, colour_jitter=0.4)
    together = cropped_out(*packed(images), numbers, size=28)
    for part in ([0], [1, 2], [3, 4], [4]):
        assert torch.equal(cropped_out(*packed([images[i] for i in part]), numbers[part], size=28), together[part])


def test_momentum_is_plain_where_asked():
    """w = 2, gradient 8, rate 0.1, momentum 0.5: the first plain step is 0.8, Nesterov's half as long again."""
    settings = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.0}
    for nesterov, expected in ((False, 2 - 0.8), (True, 2 - 1.2)):
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(layer.weight, 2)
        layer.weight.grad = torch.full((1, 1), 8.0)
        sgd(settings | {"nesterov": nesterov})(layer).step()
        assert layer.weight.item() == pytest.approx(expected)
