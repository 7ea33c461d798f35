"""What the worker processes of ROAR and KAR do: explain images, train one network, test it.

A job gets its settings (JSON), the path of its result and the `Compute` of one training, and returns the result (JSON).
Its settings are those of `metrics.retraining` that matter to it, with data_hash (of the data's files), subset_seed and
    levels, place, keep             image level: where the maps lie (None: no mask), and as in `masked_images`
    explained, sha256               layer level and maps: folder of the explained network, and its weights' hash
    layer, statistic, share, least, scale     layer level: as in `layer_masked_model`
"""

import inspect
import json
import shutil
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from xai_utils import checkpoints, datasets, explainers, images, tasks, training
from xai_utils.explainers import activation_statistics
from xai_utils.metrics import retraining_masks
from xai_utils.metrics.retraining_masks import layer_masked_model, masked_images
from xai_utils.networks import activations, architectures, inference, inference_copy, layers, targets

FOLDER = Path(".checkpoints/remove_and_retrain")
BATCH = 64  # images explained or tested at once; random methods draw per batch, so another number draws other maps
CHECKPOINT_SECONDS = 60.0  # most trainings at small scale are over sooner and never write one
CODE = (Path(__file__), retraining_masks, tasks, datasets, images)
CODE += (activations, architectures, inference, layers, targets)


def work(path, kind, chosen, compute):
    """Do a job of `KINDS` and leave its result at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = KINDS[kind][0](chosen, path, compute)
    checkpoints.write_atomically(path, lambda partial: partial.write_text(json.dumps(result), encoding="utf-8"))


@lru_cache(maxsize=4)
def _opened(folder, _, image_size, count, split, seed):
    data = datasets.load(folder)
    part = getattr(data, split)
    chosen = part.subset(min(count or len(part), len(part)), seed)
    labels = torch.as_tensor(part.labels[chosen])
    if image_size in (None, part.images.shape[-1]):
        return lambda rows: part.tensor(chosen[np.asarray(rows)]), labels, data.classes
    small = [
        functional.interpolate(part.tensor(chosen[rows]), image_size, mode="bilinear", antialias=True)
        for rows in _batches(len(chosen))
    ]
    small = torch.cat(small)
    return lambda rows: small[rows], labels, data.classes


def images_of(chosen, split):
    """(rows -> images (n, 3, S, S), labels (N,), class names) of a split as the settings want it."""
    count = chosen["train_images" if split == "train" else "held_out_images"]
    return _opened(chosen["data"], chosen["data_hash"], chosen["image_size"], count, split, chosen["subset_seed"])


def _batches(count):
    return torch.arange(count).split(BATCH)


def _masked(chosen, split):
    """rows -> images (n, 3, S, S), masked as a training at the image level wants them."""
    fetch, _, _ = images_of(chosen, split)
    if chosen.get("levels") is None:
        return fetch
    found, fill = np.load(FOLDER / "levels" / chosen["levels"] / f"{split}.npy", mmap_mode="r"), torch.zeros(3)
    if chosen["fill"] == "mean":
        fetch_train, train_labels, _ = images_of(chosen, "train")
        fill = sum(fetch_train(rows).mean((2, 3)).sum(0) for rows in _batches(len(train_labels))) / len(train_labels)
    options = {"keep": chosen["keep"], "fill": fill}
    return lambda rows: masked_images(fetch(rows), found[np.asarray(rows)], chosen["place"], **options)


def image_task(chosen):
    """A network of the explained one's architecture, from scratch, on masked images; augmented after the mask."""
    model = targets.build(chosen["architecture"], images_of(chosen, "train")[2])
    return _task(model.to(memory_format=torch.channels_last), chosen)


def layer_task(chosen):
    """What lies behind a masked layer of the explained network, fine-tuned."""
    explained = targets.load(chosen["explained"]).to(memory_format=torch.channels_last)
    options = {name: chosen[name] for name in ("statistic", "share", "least", "scale")}
    model = layer_masked_model(explained, chosen["layer"], **options).train()
    return _task(model.freeze_trunk(images_of(chosen, "train")[0]([0])), chosen)


def _task(model, chosen):
    fetch, labels = _masked(chosen, "train"), _labels(model, chosen, "train")

    def batch(indices, generator):
        return tasks.augmented(fetch(indices), generator, smallest_crop=chosen["smallest_crop"]), labels[indices]

    return training.Task(
        model=model,
        examples=len(labels),
        batch=batch,
        loss=tasks.classification_loss,
        optimizer=tasks.sgd(chosen),
        schedule=tasks.learning_rate_factor(chosen),
        epochs=chosen["epochs"],
        batch_size=chosen["batch_size"],
    )


def _labels(model, chosen, split):
    _, labels, classes = images_of(chosen, split)
    target = getattr(model, "model", model)  # behind a masked layer
    return tasks.class_indices(classes, target.classes)[labels]


def _hits(model, chosen, device):
    """0 or 1 for each held-out image, masked as the training ones were."""
    fetch, labels, model = _masked(chosen, "validation"), _labels(model, chosen, "validation"), model.eval().to(device)
    torch.manual_seed(chosen["subset_seed"])  # random positions; a worker's global generator is its own
    with torch.inference_mode():
        predicted = torch.cat([model(fetch(rows).to(device)).argmax(1).cpu() for rows in _batches(len(labels))])
    return (predicted == labels).int().tolist()


def _train(chosen, path, compute, *, make_task):
    fitted = training.fit(
        make_task,
        chosen,
        checkpoints=FOLDER / "running",
        data_hash=chosen["data_hash"],
        code=CODE,
        compute=compute,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    model = make_task(chosen).model
    model.load_state_dict(fitted.weights)
    result = {"hits": _hits(model, chosen, compute.device)}
    if path.parent.name == "explained":
        targets.save(model.cpu(), path.with_suffix(""), made_with=chosen)
        result["folder"] = path.with_suffix("").as_posix()
    shutil.rmtree(fitted.folder)  # hundreds of checkpoints would fill a disk
    return result


def _plain(chosen, path, compute):
    return {"hits": _hits(targets.load(chosen["explained"]), chosen, compute.device)}


def _explain(chosen, path, compute):
    """Levels of all images of both splits, as files under a name that stands for their content."""
    model = targets.load(chosen["explained"], compute.device)
    model = inference_copy(model, images_of(chosen, "train")[0]([0]).to(compute.device))
    options = dict(chosen["row"])
    method = options.pop("method")
    draws = "generator" in inspect.signature(explainers.EXPLAINERS[method]).parameters
    temporary = path.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for number, split in enumerate(datasets.SPLITS):
        fetch, labels, _ = images_of(chosen, split)
        file, size = temporary / f"{split}.npy", fetch([0]).shape[-2:]
        array = np.lib.format.open_memmap(file, "w+", np.uint8, (len(labels), *size))
        for rows in _batches(len(labels)):
            if draws:
                seed = 1_000_003 * chosen["seed"] + 2 * int(rows[0]) + number
                options["generator"] = torch.Generator(compute.device).manual_seed(seed)
            maps = explainers.explain(model, fetch(rows).to(compute.device), method=method, **options)
            array[rows] = retraining_masks.levels(maps.cpu(), chosen["percentages"]).numpy()
        array.flush()
    content = tasks.files_fingerprint(temporary)[:20]
    if (path.parent / content).exists():
        shutil.rmtree(temporary)
    else:
        temporary.rename(path.parent / content)
    return {"levels": content}


KINDS = {  # what is made -> function, and the code that its result depends on
    "explained": (partial(_train, make_task=image_task), CODE),
    "plain": (_plain, CODE),
    "image": (partial(_train, make_task=image_task), CODE),
    "layer": (partial(_train, make_task=layer_task), (*CODE, activation_statistics)),
    "levels": (_explain, (*CODE, "xai_utils.explainers")),
}
