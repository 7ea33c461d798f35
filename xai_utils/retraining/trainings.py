"""The trainings of ROAR and KAR, one network each, and its test on the held-out images."""

import shutil
from functools import partial

import torch

from xai_utils.networks import deep_copy, stored, targets
from xai_utils.networks.layouts import Layout
from xai_utils.retraining.inputs import FOLDER, batches, images_of, masked
from xai_utils.retraining.masks import layer_masked_model
from xai_utils.training import loop
from xai_utils.training.recipes import augmentation, classification_loss, cropped, crops, learning_rate_factor, sgd
from xai_utils.training.target import indices_by_name

CHECKPOINT_SECONDS = 60.0  # most trainings at small scale are over sooner and never write one


def image_task(chosen):
    """A network of the explained one's architecture, from scratch or as that one is, on masked images.

    They are augmented after the mask.
    """
    fetch, _, classes = images_of(chosen, "train")
    if "explained" in chosen:
        return _task(targets.load(chosen["explained"]).train(), chosen)
    model = targets.build(classes=classes, **{"image_size": fetch([0]).shape[-1]} | chosen["network"])
    return _task(model, chosen)


def layer_task(chosen):
    """What lies behind a masked layer of the explained network, fine-tuned."""
    explained = targets.load(chosen["explained"])
    options = {name: chosen[name] for name in ("statistic", "share", "least", "scale")}
    options["layout"] = Layout(**chosen["layout"])
    model = layer_masked_model(explained, chosen["layer"], **options).train()
    return _task(model.freeze_trunk(images_of(chosen, "train")[0]([0])), chosen)


def _task(model, chosen):
    (stored, mask), labels = masked(chosen, "train"), _labels(model, chosen, "train")

    def read(indices):
        return labels[indices], *stored(indices)

    def augment(rows, places):
        return cropped(mask(*rows[1:]), places), rows[0]

    return loop.Task(
        model=model,
        examples=len(labels),
        read=read,
        draw=partial(crops, **augmentation(chosen)),
        augment=augment,
        loss=classification_loss,
        optimizer=sgd(chosen),
        schedule=learning_rate_factor(chosen),
        epochs=chosen["epochs"],
        batch_size=chosen["batch_size"],
    )


def _labels(model, chosen, split):
    _, labels, classes = images_of(chosen, split)
    target = getattr(model, "model", model)  # behind a masked layer
    return indices_by_name(classes, target.classes)[labels]


def _hits(model, chosen, device):
    """0 or 1 for each held-out image, masked as the training ones were."""
    (stored, mask), labels = masked(chosen, "validation"), _labels(model, chosen, "validation")
    model = deep_copy(model).eval().to(device, memory_format=torch.channels_last)
    torch.manual_seed(chosen["subset_seed"])  # random positions; a worker's global generator is its own
    with torch.inference_mode():
        images = (mask(*(part.to(device) for part in stored(rows))) for rows in batches(len(labels)))
        predicted = torch.cat([model(each).argmax(1) for each in images]).cpu()
    return (predicted == labels).int().tolist()


def retrained_on_images(chosen, path, compute):
    """The hits of a network trained on masked images."""
    return {"hits": _trained(image_task, chosen, compute)[1]}


def retrained_behind_layer(chosen, path, compute):
    """The hits of the explained network, fine-tuned behind a masked layer."""
    return {"hits": _trained(layer_task, chosen, compute)[1]}


def explained_network(chosen, path, compute):
    """The network whose maps and layers are judged, trained on whole images, and the folder that it lies in."""
    model, hits = _trained(image_task, chosen, compute)
    folder = path.with_suffix("")
    targets.save(model.cpu(), folder, made_with=chosen)
    return {"hits": hits, "folder": folder.as_posix()}


def _trained(make_task, chosen, compute):
    """The trained network and its hits."""
    fitted = loop.fit(
        make_task,
        chosen,
        checkpoints=FOLDER / "running",
        data_hash=chosen["data_hash"],
        compute=compute,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    with stored.Undrawn():
        model = make_task(chosen).model
    model.load_state_dict(fitted.weights)
    hits = _hits(model, chosen, compute.device)
    shutil.rmtree(fitted.folder)  # hundreds of checkpoints would fill a disk
    return model, hits
