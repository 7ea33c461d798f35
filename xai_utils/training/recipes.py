"""What the trainings share: crops, optimizers, schedules, and the frozen target as a teacher."""

import math
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.images import REFERENCE_SIZE, unit_float
from xai_utils.networks import inference_copy, targets
from xai_utils.training import distributed, loop

CHECKPOINTS = Path(".checkpoints")
VALIDATION_BATCH = 256


def crops(count, generator, *, smallest_crop: float, scale_jitter=(), colour_jitter: float = 0.0):
    """What random crops of `count` images are made from, on the CPU: (count, 5), or with colours (count, 8).

    Area, aspect, side (-1: flipped, half of them) and the place of the centre in x and y, from 0 to 1. Random resized
    crops have an area of `smallest_crop` to 1 of the image and an aspect of 3/4 to 4/3. With `scale_jitter` (a, b)
    crops are squares instead, of an image whose shorter side has a to b pixels where networks see 224 (He et al. 2016:
    256 to 480); the area is then in squares of the shorter side. With a `colour_jitter` j > 0 factors of brightness,
    contrast and saturation from 1 - j to 1 + j follow. Whole batches at a time: the same bits in every process.
    """
    draw = torch.rand(5, count, generator=generator)
    area, aspect = smallest_crop + (1 - smallest_crop) * draw[0], torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    if scale_jitter:
        low, high = scale_jitter
        area, aspect = (REFERENCE_SIZE / (low + (high - low) * draw[0])) ** 2, torch.ones(count)
    numbers = [area, aspect, torch.where(draw[2] < 0.5, -1.0, 1.0), draw[3], draw[4]]
    if colour_jitter:
        numbers += (1 + colour_jitter * (2 * torch.rand(3, count, generator=generator) - 1)).unbind()
    return torch.stack(numbers, 1)


def cropped(images, numbers):
    """The crops that `numbers` of `crops` make of square images (N, C, H, W), enlarged to their size.

    uint8 or in [0, 1]; float32 in [0, 1]. Bilinear, on the device of both. Each image's are the same bits whatever the
    others are (on the CPU).
    """
    images = unit_float(images)
    height, width = images.shape[2:]
    places = _places(numbers, torch.ones_like(numbers[:, 0]))
    x = places[:, 0, None] * _centres(width, places) + places[:, 2, None]  # (N, W)
    y = places[:, 1, None] * _centres(height, places) + places[:, 3, None]
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)  # (N, H, W, 2)
    return _coloured(functional.grid_sample(images, grid, padding_mode="border", align_corners=False), numbers)


def cropped_out(pixels, shapes, numbers, *, size: int, scale_jitter=()):
    """The crops (N, 3, `size`, `size`) that `numbers` of `crops` make of images of any shapes, as `cropped` does.

    `pixels` uint8 (P, 3) and `shapes` (N, 3) are what `Split.stored` gives of images stored whole. Where a crop is
    larger than `size` it is reduced without antialiasing, at most by what the stored size is above `size`.
    """
    start, height, width = shapes[:, :, None, None].unbind(1)  # (N, 1, 1)
    ratio = (shapes[:, 2] / shapes[:, 1]).to(numbers)  # correctly rounded, as all operations here: equal in processes
    if scale_jitter:  # areas of squares of the shorter side, as shares of the image
        numbers = torch.cat([numbers[:, :1] * torch.minimum(ratio, 1 / ratio)[:, None], numbers[:, 1:]], 1)
    places = _places(numbers, ratio)
    x, right, of_right = _neighbours(places[:, 0, None] * _centres(size, places) + places[:, 2, None], width[:, 0])
    y, below, of_below = _neighbours(places[:, 1, None] * _centres(size, places) + places[:, 3, None], height[:, 0])

    def rows(y):
        left = pixels[start + y[:, :, None] * width + x[:, None]].float()  # (N, size, size, 3)
        return left + of_right[:, None, :, None] * (pixels[start + y[:, :, None] * width + right[:, None]] - left)

    above = rows(y)
    images = (above + of_below[:, :, None, None] * (rows(below) - above)) / 255
    return _coloured(images.permute(0, 3, 1, 2), numbers)


def _places(numbers, ratio):
    """Where crops of images whose width is `ratio` (N,) times their height lie, inside them: (N, 4).

    Width, height, and x and y of the centre, on axes from -1 to 1, as shares of half the image; flipped ones have a
    negative width.
    """
    area, aspect, side = numbers[:, 0], numbers[:, 1], numbers[:, 2]
    width = torch.sqrt(area * aspect / ratio).clamp(max=1)
    height = torch.sqrt(area / aspect * ratio).clamp(max=1)
    x, y = ((2 * place - 1) * (1 - length) for place, length in zip(numbers.T[3:5], (width, height), strict=True))
    return torch.stack([side * width, height, x, y], 1)


def _neighbours(places, length):
    """Of places (N, S) on an axis from -1 to 1 of `length` (N, 1) pixels: the pixels on both sides, the second's share.

    Beyond the outermost centres the outermost pixel counts.
    """
    places = ((places + 1) * length - 1) / 2
    first = places.floor()
    return (*((each.long().clamp(min=0).minimum(length - 1)) for each in (first, first + 1)), places - first)


def _coloured(images, numbers):
    """Images (N, 3, H, W) in [0, 1] times brightness, then blended with their mean grey, then with their grey.

    Those are the steps of torchvision's ColorJitter, in this order; without such factors in `numbers` nothing happens.
    """
    if numbers.shape[1] == 5:
        return images
    brightness, contrast, saturation = numbers[:, 5:, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 1)
    mean = _grey(images).mean((1, 2, 3), dtype=torch.float64, keepdim=True).float()  # the same bits in each process
    images = (mean + contrast * (images - mean)).clamp(0, 1)
    grey = _grey(images)
    return (grey + saturation * (images - grey)).clamp(0, 1)


def _grey(images):
    red, green, blue = images.split(1, 1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue  # (N, 1, H, W)


def augmentation(settings):
    """The options of `crops` among the `settings` of a training; without colour and scale jitter there are none."""
    return {name: settings[name] for name in ("smallest_crop", "scale_jitter", "colour_jitter") if name in settings}


def crops_of(split, labels, settings):
    """read, draw and augment of `loop.Task`: random crops of a split's images and, if given, their `labels` (N,).

    Of images that are stored whole (`Split.stored`) the crops are parts of all of it.
    """
    options, told = augmentation(settings), [] if labels is None else [labels]

    def read(indices):
        return *(each[indices] for each in told), *split.stored(indices)

    def augment(rows, numbers):
        labels, stored = rows[: len(told)], rows[len(told) :]
        if len(stored) == 1:
            return cropped(*stored, numbers), *labels
        size, jitter = split.images.shape[-1], options.get("scale_jitter", ())
        return cropped_out(*stored, numbers, size=size, scale_jitter=jitter), *labels

    return {"read": read, "draw": partial(crops, **options), "augment": augment}


def _centres(pixels, like):
    """Where the centres of so many pixels lie on an axis from -1 to 1."""
    return (2 * torch.arange(pixels, device=like.device, dtype=like.dtype) + 1) / pixels - 1


def classification_loss(model, batch, generator):
    """Cross-entropy of (images, labels), and the accuracy."""
    images, labels = batch
    logits = model(images)
    return functional.cross_entropy(logits, labels), {"train_accuracy": share_equal(logits, labels)}


def share_equal(logits, labels):
    """How many of the logits (N, K) are largest at their label (N,): a share, without graph."""
    return (logits.detach().argmax(1) == labels).float().mean()


def sgd(settings: dict):
    """Gradient descent over the parameters that require a gradient, as `loop.Task` wants it made.

    Its momentum is Nesterov's, plain where `settings` say nesterov: False.
    """
    nesterov = settings.get("nesterov", True) and settings["momentum"] > 0
    return _made(torch.optim.SGD, settings, momentum=settings["momentum"], nesterov=nesterov)


def adam(settings: dict):
    """Adam over the parameters that require a gradient, as `loop.Task` wants it made."""
    return _made(torch.optim.Adam, settings)


def adamw(settings: dict):
    """Adam with decoupled weight decay over the parameters that require a gradient, as transformers are trained."""
    return _made(torch.optim.AdamW, settings)


def _made(kind, settings, **options):
    options |= {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"]}

    def make(model):
        weights = [each for each in model.parameters() if each.requires_grad]
        # not on CPUs, where torch 2.15 mixes up a channels-last weight and a gradient in another layout
        return kind(weights, fused=any(each.is_cuda for each in weights), **options)

    return make


def learning_rate_factor(settings: dict):
    """progress in epochs -> factor of the learning rate.

    `halving` (AKD §4), `steps` (a tenth from each milestone on) or `cosine` after one warm-up epoch.
    """
    epochs = settings["epochs"]
    if settings["schedule"] == "halving":
        return lambda epoch: 0.5 ** (epoch // settings["halve_every"])
    if settings["schedule"] == "steps":
        return loop.step_decay(settings["milestones"])
    if settings["schedule"] != "cosine":
        raise ValueError(f"schedule {settings['schedule']!r} is unknown; choose cosine, steps or halving")
    warm = min(1.0, epochs / 4)
    return lambda epoch: (
        min(epoch / warm, 1.0) * 0.5 * (1 + math.cos(math.pi * max(0.0, epoch - warm) / (epochs - warm)))
    )


class Teacher:
    """The frozen target as a teacher: the prepared `data`, the `target`'s inference copy, and the tasks of its pupils.

    `settings`: data (folder of prepared data), target (folder of a saved target), epochs, batch_size, smallest_crop and
    those of `learning_rate_factor`. `keep`: layers that `inference_copy` leaves unfolded. ValueError for data without
    training images.
    """

    def __init__(self, settings, *, keep=()):
        self.settings, self.data = settings, datasets.load(settings["data"])
        if not len(self.data.train):
            raise ValueError(f"{settings['data']} has no training image; set the epochs of this stage to 0")
        self.target = inference_copy(targets.load(settings["target"]), self.data.train.tensor([0]), keep=keep)

    def ask(self, images):
        """The target's logits (N, K), without graph."""
        with torch.no_grad():
            return self.target(images)

    def held_out(self, function):
        """The rows of `function(images) -> (n, k)` for the held-out images, on the CPU; shared by the processes."""
        split, device = self.data.validation, self.target.mean.device
        return distributed.map_in_order(
            lambda indices: function(split.tensor(indices, device)).float().cpu(),
            len(split),
            batch_size=VALIDATION_BATCH,
        )

    def task(self, model, *, loss, validate, optimizer, labels=None) -> loop.Task:
        """The task of a pupil on crops of the images and, if given, their `labels` (N,); the rest as in `loop.Task`."""
        return loop.Task(
            model=model,
            examples=len(self.data.train),
            **crops_of(self.data.train, labels, self.settings),
            loss=loss,
            validate=validate if len(self.data.validation) else None,
            optimizer=optimizer,
            schedule=learning_rate_factor(self.settings),
            frozen=[self.target],
            epochs=self.settings["epochs"],
            batch_size=self.settings["batch_size"],
        )
