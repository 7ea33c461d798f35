"""What each training of the project minimises, as `training.Task`s made from plain settings."""

import hashlib
import math
import re
from pathlib import Path

import torch
from torch.nn import functional

from xai_utils import datasets, distributed, training
from xai_utils.networks import architectures, targets

SYNSET = re.compile(r"n\d{8}")  # ImageNet's names of classes, whose order is that of the weights trained on it
WEIGHTS, CHECKPOINTS = Path("data/weights"), Path(".checkpoints")
VALIDATION_BATCH = 256


def starting_target(name: str, classes, *, seed: int, new_head: bool = True) -> targets.Target:
    """The target before training: what params.yaml calls `target`.

    An architecture (random weights), `architecture:weights` (the name of torchvision's, such as IMAGENET1K_V2, or a
    file in data/weights), or the checkpoint data/weights/`name`. What lacks one of `classes` gets a new last layer for
    them (ValueError, if not `new_head`); what knows them all keeps its own. A file of as many classes, and ImageNet's
    weights beside all 1000 synsets, know them in the order of their names.
    """
    checkpoints = sorted(path.parent.name for path in WEIGHTS.glob("*/target.json"))
    architecture, _, weights = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in checkpoints:
            target = targets.load(WEIGHTS / name)
        elif name in targets.ARCHITECTURES:
            return targets.build(name, classes)
        elif weights and architecture in targets.ARCHITECTURES:
            file = targets.is_file_of_weights(weights)
            target = targets.build(architecture, None, pretrained_from=WEIGHTS / weights if file else weights)
            if len(classes) == len(target.classes) and (file or all(SYNSET.fullmatch(each) for each in classes)):
                target = targets.renamed(target, classes)
        else:
            raise ValueError(
                f"no target '{name}'{architectures.why_unknown(architecture)}; checkpoints in {WEIGHTS}: "
                f"{', '.join(checkpoints) or 'none'}; or an architecture, or architecture:weights; architectures: "
                f"{', '.join(targets.ARCHITECTURES)}"
            )
        if set(classes) <= set(target.classes):
            return target
        if not new_head:
            class_indices(classes, target.classes)  # says which it does not know
        return targets.replace_head(target, classes)


def class_indices(classes, target_classes) -> torch.Tensor:
    """For each class of the data, its index among the target's classes (matched by name)."""
    missing = [name for name in classes if name not in target_classes]
    if missing:
        raise ValueError(
            f"the target does not know {len(missing)} of the data's {len(classes)} classes, e.g. '{missing[0]}'; "
            "train it on them (finetune_target.epochs > 0) or name the class folders as the checkpoint does"
        )
    place = {name: index for index, name in enumerate(target_classes)}
    return torch.tensor([place[name] for name in classes])


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


def _logits(model, split):
    """The model's logits for every image of `split`, on the CPU; the processes share the work."""
    device = next(model.parameters()).device
    return distributed.map_in_order(
        lambda indices: model(split.tensor(indices).to(device)).float().cpu(), len(split), batch_size=VALIDATION_BATCH
    )


def held_out_logits(target, split, *, compute: distributed.Compute) -> torch.Tensor:
    """The logits (N, K) of `target` for the images of `split`, on the CPU, by one process."""
    compute = compute.resolved()
    torch.set_num_threads(compute.threads)
    if not len(split):
        return torch.zeros(0, len(target.classes))
    model = targets.inference_copy(target.to(compute.device), split.tensor([0]).to(compute.device))
    with torch.inference_mode():
        return _logits(model, split)


def predictions(target, split, *, compute: distributed.Compute) -> torch.Tensor:
    """The class (N,) that `target` predicts for each image of `split`, by one process."""
    return held_out_logits(target, split, compute=compute).argmax(1)


def classification_loss(model, batch, generator):
    """Cross-entropy of (images, labels), and the accuracy."""
    images, labels = batch
    logits = model(images)
    hits = (logits.detach().argmax(1) == labels).float().mean()
    return functional.cross_entropy(logits, labels), {"train_accuracy": hits}


def sgd(settings: dict):
    """Nesterov's gradient descent over the parameters that require a gradient, as `training.Task` wants it made."""
    return lambda model: torch.optim.SGD(
        [weights for weights in model.parameters() if weights.requires_grad],
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        nesterov=settings["momentum"] > 0,
    )


def adam(settings: dict):
    """Adam over the parameters that require a gradient, as `training.Task` wants it made."""
    return lambda model: torch.optim.Adam(
        [weights for weights in model.parameters() if weights.requires_grad],
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
    )


def target_task(settings: dict) -> training.Task:
    """Cross-entropy on the labels (AKD §4: the target T is fine-tuned on the fine-grained classes).

    `settings`: data (folder of prepared data), target, seed, epochs, batch_size, learning_rate, schedule, halve_every,
    momentum, weight_decay, smallest_crop.
    """
    data = datasets.load(settings["data"])
    target = starting_target(settings["target"], data.classes, seed=settings["seed"])
    target.to(memory_format=torch.channels_last)  # convolutions run 1.5 times as fast, on CPUs too
    place = class_indices(data.classes, target.classes)
    train_labels = place[torch.as_tensor(data.train.labels)]
    validation_labels = place[torch.as_tensor(data.validation.labels)]

    def batch(indices, generator):
        images = data.train.tensor(indices)
        return augmented(images, generator, smallest_crop=settings["smallest_crop"]), train_labels[indices]

    def validate(model):
        logits = _logits(model, data.validation)
        hits = (logits.argmax(1) == validation_labels).double()
        return {
            "validation_loss": functional.cross_entropy(logits.double(), validation_labels).item(),
            "validation_accuracy": hits.mean().item(),
        }

    return training.Task(
        model=target,
        examples=len(train_labels),
        batch=batch,
        loss=classification_loss,
        validate=validate if len(data.validation) else None,
        optimizer=sgd(settings),
        schedule=learning_rate_factor(settings),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
    )


def fit_target(settings: dict, *, compute, checkpoint_steps=None, log=None) -> tuple[targets.Target, list[dict]]:
    """The trained target in eval mode, and the history of its training; 0 epochs take it as it comes."""
    data = datasets.load(settings["data"])
    trains = settings["epochs"] > 0
    target = starting_target(settings["target"], data.classes, seed=settings["seed"], new_head=trains)
    if settings["epochs"] == 0:
        return target.eval(), []
    if not len(data.train):
        raise ValueError(f"{settings['data']} has no training image; set finetune_target.epochs to 0")
    fitted = training.fit(
        target_task,
        settings,
        compute=compute,
        checkpoints=CHECKPOINTS / "finetune_target",
        code=[Path(__file__), datasets, architectures, targets],
        data_hash=files_fingerprint(settings["data"], weights_of(settings["target"])),
        checkpoint_steps=checkpoint_steps,
        log=log,
    )
    target.load_state_dict(fitted.weights)
    return target.eval(), fitted.history


def weights_of(name: str) -> Path:
    """Where the weights of `starting_target`'s `name` lie, if they lie in data/weights: a folder or a file."""
    return WEIGHTS / name.rpartition(":")[2]


def files_fingerprint(*places) -> str:
    """One hash of all files, and of all files in the folders, that exist."""
    digest, places = hashlib.sha256(), [Path(place) for place in places]
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    for file in sorted(files):
        with file.open("rb") as handle:
            digest.update(f"{file.name} {hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def learning_rate_factor(settings: dict):
    """progress in epochs -> factor of the learning rate.

    `halving` (AKD §4), `steps` (a tenth from each milestone on) or `cosine` after one warm-up epoch.
    """
    epochs = settings["epochs"]
    if settings["schedule"] == "halving":
        return lambda epoch: 0.5 ** (epoch // settings["halve_every"])
    if settings["schedule"] == "steps":
        return training.step_decay(settings["milestones"])
    if settings["schedule"] != "cosine":
        raise ValueError(f"schedule {settings['schedule']!r} is unknown; choose cosine, steps or halving")
    warm = min(1.0, epochs / 4)
    return lambda epoch: (
        min(epoch / warm, 1.0) * 0.5 * (1 + math.cos(math.pi * max(0.0, epoch - warm) / (epochs - warm)))
    )
