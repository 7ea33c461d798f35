"""What the trainings share: crops, optimizers, schedules, and the frozen target as a teacher."""

import math
from pathlib import Path

import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.networks import inference_copy, targets
from xai_utils.training import distributed, loop

CHECKPOINTS = Path(".checkpoints")
VALIDATION_BATCH = 256


def augmented(images, generator, *, smallest_crop: float):
    """Random resized crops (area `smallest_crop` to 1, aspect 3/4 to 4/3) and horizontal flips of a batch.

    One grid for the whole batch; crops stay inside the image.
    """
    draw = torch.rand(5, len(images), generator=generator)
    area = smallest_crop + (1 - smallest_crop) * draw[0]
    aspect = torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    width = torch.sqrt(area * aspect).clamp(max=1)  # as a share of the image's
    height = torch.sqrt(area / aspect).clamp(max=1)
    flip = torch.where(draw[2] < 0.5, -1, 1)
    x = _read_at(images.shape[3], width * flip, draw[3])
    y = _read_at(images.shape[2], height, draw[4])
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)  # (N, H, W, 2)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _read_at(pixels, share, place):
    """Where along an axis from -1 to 1 the `pixels` of each crop are read: (N, pixels).

    `share` (N,) of the axis, negative to read backwards; `place` (N,) from 0, at its start, to 1, at its end.
    """
    centres = (2 * torch.arange(pixels) + 1) / pixels - 1
    return share[:, None] * centres + ((2 * place - 1) * (1 - share.abs()))[:, None]


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
    return lambda model: torch.optim.SGD(
        [weights for weights in model.parameters() if weights.requires_grad],
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        nesterov=settings["momentum"] > 0,
    )


def adam(settings: dict):
    """Adam over the parameters that require a gradient, as `loop.Task` wants it made."""
    return lambda model: torch.optim.Adam(
        [weights for weights in model.parameters() if weights.requires_grad],
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
    )


def adamw(settings: dict):
    """Adam with decoupled weight decay over the parameters that require a gradient, as transformers are trained."""
    return lambda model: torch.optim.AdamW(
        [weights for weights in model.parameters() if weights.requires_grad],
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
    )


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

    def crops(self, indices, generator):
        """Random crops (n, 3, S, S) of training images."""
        return augmented(self.data.train.tensor(indices), generator, smallest_crop=self.settings["smallest_crop"])

    def ask(self, images):
        """The target's logits (N, K), without graph."""
        with torch.no_grad():
            return self.target(images)

    def held_out(self, function):
        """The rows of `function(images) -> (n, k)` for the held-out images, on the CPU; shared by the processes."""
        split, device = self.data.validation, self.target.mean.device
        return distributed.map_in_order(
            lambda indices: function(split.tensor(indices).to(device)).float().cpu(),
            len(split),
            batch_size=VALIDATION_BATCH,
        )

    def task(self, model, *, batch, loss, validate, optimizer) -> loop.Task:
        """The task of a pupil; `batch`, `loss`, `validate`, `optimizer` as in `loop.Task`."""
        return loop.Task(
            model=model,
            examples=len(self.data.train),
            batch=batch,
            loss=loss,
            validate=validate if len(self.data.validation) else None,
            optimizer=optimizer,
            schedule=learning_rate_factor(self.settings),
            frozen=[self.target],
            epochs=self.settings["epochs"],
            batch_size=self.settings["batch_size"],
        )
