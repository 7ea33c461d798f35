"""The target: what it starts from, its fine-tuning as a `loop.Task` made from plain settings, and its predictions."""

import re
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torchvision.models import ResNet50_Weights

from xai_utils import datasets
from xai_utils.files import files_fingerprint, inside
from xai_utils.networks import ARCHITECTURES, engine, stored, targets
from xai_utils.networks.architectures import COMES_WITH, HF, TIMM, require_known
from xai_utils.networks.hf_networks import configuration
from xai_utils.networks.timm_networks import imagenet
from xai_utils.training import distributed, loop
from xai_utils.training.recipes import (
    CHECKPOINTS,
    VALIDATION_BATCH,
    adamw,
    classification_loss,
    crops_of,
    learning_rate_factor,
    sgd,
)

SYNSET = re.compile(r"n\d{8}")  # ImageNet's names of classes, whose order is that of the weights trained on it
CATEGORIES = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]  # torchvision's names of ImageNet's classes
NUMBER = re.compile(r" \(\d+\)$")  # of a class that shares its name with another
WEIGHTS_FOLDER = Path("data/weights")
OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def source_of(name: str) -> tuple[str | None, Path | str | None]:
    """What params.yaml calls `target`, as (architecture, its weights); nothing is opened or fetched.

    An architecture (with the weights that it comes with, COMES_WITH, or None: random), `architecture:weights` (a file
    in data/weights, or the name of torchvision's, such as IMAGENET1K_V2), or the checkpoint data/weights/`name`
    (architecture None, its folder).
    timm's are `timm:NAME`, `timm:NAME.TAG` (its weights TAG) and either with a file; of transformers `hf:FOLDER`, a
    folder in data/weights with its weights. ValueError for what is none of them, and for a path that leaves
    data/weights.
    """
    checkpoints = sorted(path.parent.name for path in WEIGHTS_FOLDER.glob("*/target.json"))
    if name in checkpoints:
        return None, weights_of(name)
    architecture, colon, weights = _parted(name)
    if architecture.startswith(HF):
        configuration(folder := weights_of(name))
        return architecture, folder
    if (colon and not weights) or not (architecture in ARCHITECTURES or architecture.startswith(TIMM)):
        raise ValueError(
            f"no target {name!r}; checkpoints in {WEIGHTS_FOLDER}: {', '.join(checkpoints) or 'none'}; or an "
            f"architecture, or architecture:weights; architectures: {', '.join(ARCHITECTURES)}, timm:NAME, hf:FOLDER"
        )
    require_known(architecture)
    if targets.is_file_of_weights(weights):
        return architecture, weights_of(name)
    if weights:
        targets.require_published(architecture, weights)
    return architecture, weights or COMES_WITH.get(architecture)


def _parted(name):
    """(architecture, ":", what it says of the weights) of the `name` of a target; timm's TAG names weights, too."""
    if name.startswith(HF):
        return name, ":", name.removeprefix(HF)
    if not name.startswith(TIMM):
        return name.partition(":")
    architecture, colon, weights = name.removeprefix(TIMM).partition(":")
    return TIMM + architecture, colon, weights if colon else architecture.partition(".")[2]


def weights_of(name: str) -> Path:
    """Where the weights of `source_of`'s `name` lie, if they lie in data/weights: a folder or a file."""
    weights = _parted(name)[2]
    if not name.startswith(HF):
        return inside(WEIGHTS_FOLDER, weights or name)
    try:
        return inside(WEIGHTS_FOLDER, Path(weights).relative_to(WEIGHTS_FOLDER))
    except ValueError:
        raise ValueError(
            f"{name!r} names no folder in {WEIGHTS_FOLDER}/; put it there and write hf:{WEIGHTS_FOLDER}/NAME"
        ) from None


def image_size_of(name: str) -> int | None:
    """The pixels of a side that the target of `source_of`'s `name` is made for; None where nothing says so."""
    architecture, weights = source_of(name)
    if architecture is None:
        facts = stored.facts(weights, targets.KIND, ("architecture",))
        return targets.own_size(facts["architecture"], options=facts.get("options"))
    return targets.own_size(architecture, weights=weights if isinstance(weights, str) else None)


def starting_target(
    name: str, classes, *, seed: int, new_head: bool = True, image_size: int | None = None
) -> targets.Target:
    """The target before training, of the `name` that `source_of` understands.

    For training (`new_head`) what lacks one of `classes` gets a new last layer for them; of what knows them all
    (`indices_by_name`) and others besides, the last layer keeps theirs alone. A file of as many classes knows them in
    the order of their names, and so do weights that name 1000 classes in words of their own, beside 1000 synsets.
    `image_size` is for networks that are built for one; a checkpoint has its own. ValueError for random weights where
    the data tell fewer than two classes.
    """
    architecture, weights = source_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights is None:
            if len(classes) < 2:
                raise ValueError(
                    f"{name} has no weights and hence no classes, and the data tell {len(classes) or 'none'}; give a "
                    "network with weights, or images in two or more class folders"
                )
            return targets.build(architecture, classes, image_size=image_size)
        if architecture is None:
            target = targets.load(weights)
        else:
            knows = targets.has_classes(architecture, weights)
            if not (knows or new_head):
                raise ValueError(f"{name} was trained to tell no classes; train it (finetune_target.epochs > 0)")
            options = {"pretrained_from": weights, "image_size": image_size}
            target = targets.build(architecture, None if knows else classes, **options)
            ordered = targets.are_numbered(target.classes) or _are_synsets(classes)
            if len(classes) == len(target.classes) and ordered and _unknown(classes, target.classes):
                target = targets.renamed(target, classes)
        lacks = _unknown(classes, target.classes)
        if not new_head or not (lacks or 1 < len(classes) < len(target.classes)):  # of one class nothing is learnt
            return target
        kept = None if lacks else indices_by_name(classes, target.classes)
        return targets.replace_head(target, classes, kept=kept)


def indices_by_name(classes, target_classes) -> torch.Tensor:
    """For each class of the data, its index among the target's classes: of the same name, or of its synset.

    Synsets are understood where all of `classes` are some and the target's are ImageNet's 1000, in whose order they
    stand. ValueError for a class that the target does not know.
    """
    if missing := _unknown(classes, target_classes):
        raise ValueError(
            f"the target does not know {len(missing)} of the data's {len(classes)} classes, e.g. '{missing[0]}'; "
            "train it on them (finetune_target.epochs > 0) or name the class folders as the checkpoint does"
        )
    place = _places(classes, target_classes)
    return torch.tensor([place[name] for name in classes])


def labels_among(split, target_classes):
    """The labels of a `Split` as places in the target's classes, as `indices_by_name` finds them: int64 (N,).

    UNLABELLED where nobody told the label, and where the target does not know the class.
    """
    place = _places(split.classes, target_classes)
    own = np.array([place.get(name, datasets.UNLABELLED) for name in split.classes] + [datasets.UNLABELLED])
    return own[split.labels]


def strangers(classes, target_classes) -> list[str]:
    """The classes of the data that the target does not know, and the target's that the data do not have, sorted."""
    place, unknown = _places(classes, target_classes), _unknown(classes, target_classes)
    had = {place[name] for name in classes if name in place}
    return sorted(unknown + [name for index, name in enumerate(target_classes) if index not in had])


def _unknown(classes, target_classes):
    """Those of `classes` that `indices_by_name` does not find."""
    place = _places(classes, target_classes)
    return [name for name in classes if name not in place]


def _places(classes, target_classes):
    """What the data may call the target's classes -> their indices."""
    known = _are_synsets(classes) and len(target_classes) == len(imagenet()) and _are_imagenets(target_classes)
    return {name: index for index, name in enumerate(imagenet() if known else target_classes)}


def _are_synsets(classes):
    return len(classes) > 0 and all(SYNSET.fullmatch(each) for each in classes)


def _are_imagenets(classes):
    """Whether they are called as timm or torchvision calls ImageNet's, by one or all of their words, in this order."""
    given = [NUMBER.sub("", name.split(",")[0]) for name in classes]
    return given in ([*imagenet().values()], CATEGORIES)


def _logits(model, split):
    """The model's logits for every image of `split`, on the CPU; the processes share the work."""
    device = next(model.parameters()).device
    return distributed.map_in_order(
        lambda indices: model(split.tensor(indices, device)).float().cpu(), len(split), batch_size=VALIDATION_BATCH
    )


def held_out_logits(target, split, *, compute: distributed.Compute) -> torch.Tensor:
    """The logits (N, K) of `target` for the images of `split`, on the CPU, by one process; `target` is not moved."""
    compute = compute.resolved()
    torch.set_num_threads(compute.threads)
    if not len(split):
        return torch.zeros(0, len(target.classes))
    model = engine(target, split.tensor([0]).to(target.mean.device), choice=compute.engine).to(compute.device)
    with torch.inference_mode():
        return _logits(model, split)


def predictions(target, split, *, compute: distributed.Compute) -> torch.Tensor:
    """The class (N,) that `target` predicts for each image of `split`, by one process."""
    return held_out_logits(target, split, compute=compute).argmax(1)


def _starting(settings, data, **options):
    size = data.description["image_size"]
    return starting_target(settings["target"], data.classes, seed=settings["seed"], image_size=size, **options)


def target_task(settings: dict) -> loop.Task:
    """Cross-entropy on the labels (AKD §4: the target T is fine-tuned on the fine-grained classes).

    `settings`: data (folder of prepared data), target, seed, epochs, batch_size, learning_rate, schedule, halve_every,
    momentum, weight_decay, smallest_crop, and optimizer (a name of OPTIMIZERS; without one sgd).
    """
    data = datasets.load(settings["data"])
    target = _starting(settings, data)
    place = indices_by_name(data.classes, target.classes)
    train_labels = place[torch.as_tensor(data.train.labels)]
    validation_labels = place[torch.as_tensor(data.validation.labels)]

    def validate(model):
        logits = _logits(model, data.validation)
        hits = (logits.argmax(1) == validation_labels).double()
        return {
            "validation_loss": functional.cross_entropy(logits.double(), validation_labels).item(),
            "validation_accuracy": hits.mean().item(),
        }

    return loop.Task(
        model=target,
        examples=len(train_labels),
        **crops_of(data.train, train_labels, settings),
        loss=classification_loss,
        validate=validate if len(data.validation) else None,
        optimizer=OPTIMIZERS[settings.get("optimizer", "sgd")](settings),
        schedule=learning_rate_factor(settings),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
    )


def fit_target(settings: dict, *, compute, checkpoint_steps=None, log=None) -> tuple[targets.Target, list[dict]]:
    """The trained target in eval mode, and the history of its training.

    0 epochs take it as it comes, also where it knows other classes than the data's (`labels_among`).
    """
    data = datasets.load(settings["data"])
    trains = settings["epochs"] > 0
    if trains and not len(data.train):
        raise ValueError(f"{settings['data']} has no training image; set the epochs (finetune_target.epochs) to 0")
    target = _starting(settings, data, new_head=trains)
    if settings["epochs"] == 0:
        return target.eval(), []
    fitted = loop.fit(
        target_task,
        settings,
        compute=compute,
        checkpoints=CHECKPOINTS / "finetune_target",
        data_hash=files_fingerprint(settings["data"], weights_of(settings["target"])),
        checkpoint_steps=checkpoint_steps,
        log=loop.named(log, settings["target"]),
    )
    target.load_state_dict(fitted.weights)
    return target.eval(), fitted.history
