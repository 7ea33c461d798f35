"""What the trainings share: crops, optimizers, schedules, and the frozen target as a teacher."""

import math
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.images import unit_float
from xai_utils.networks import inference_copy, targets
from xai_utils.training import distributed, loop

CHECKPOINTS = Path(".checkpoints")
VALIDATION_BATCH = 256


def crops(count, generator, *, smallest_crop: float):
    """Where random resized crops (area `smallest_crop` to 1, aspect 3/4 to 4/3, half of them flipped) lie: (count, 4).

    Width, height, and x and y of the centre, on axes from -1 to 1, as shares of half the image; flipped ones have a
    negative width. They stay inside the image. On the CPU, whole batches at a time: the same bits in every process.
    """
    draw = torch.rand(5, count, generator=generator)
    area = smallest_crop + (1 - smallest_crop) * draw[0]
    aspect = torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    width = torch.sqrt(area * aspect).clamp(max=1)
    height = torch.sqrt(area / aspect).clamp(max=1)
    x, y = ((2 * place - 1) * (1 - side) for place, side in zip(draw[3:], (width, height), strict=True))
    return torch.stack([torch.where(draw[2] < 0.5, -width, width), height, x, y], 1)


def cropped(images, places):
    """The crops `places` (N, 4) of images (N, C, H, W), enlarged to their size; uint8 or in [0, 1], float32 in [0, 1].

    Bilinear, on the device of both. Each image's are the same bits whatever the others are (on the CPU).
    """
    images = unit_float(images)
    height, width = images.shape[2:]
    x = places[:, 0, None] * _centres(width, places) + places[:, 2, None]  # (N, W)
    y = places[:, 1, None] * _centres(height, places) + places[:, 3, None]
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)  # (N, H, W, 2)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def crops_of(split, labels, settings):
    """read, draw and augment of `loop.Task`: random crops of a split's images and, if given, their `labels` (N,)."""

    def read(indices):
        return split.pixels(indices), *(() if labels is None else (labels[indices],))

    def augment(rows, places):
        return cropped(rows[0], places), *rows[1:]

    return {"read": read, "draw": partial(crops, smallest_crop=settings["smallest_crop"]), "augment": augment}


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
    """Nesterov's gradient descent over the parameters that require a gradient, as `loop.Task` wants it made."""
    return _made(torch.optim.SGD, settings, momentum=settings["momentum"], nesterov=settings["momentum"] > 0)


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
