"""Makes the maps of many images and of mosaics of them: in batches, which workers share, into a folder (maps.py)."""

from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from xai_utils import datasets, explainers, runs
from xai_utils.evaluation.batches import batches, write_arrays
from xai_utils.evaluation.maps import MOSAICS, Mosaics
from xai_utils.files import files_fingerprint, new_arrays, new_folder, partial_folder, write_json
from xai_utils.metrics import cost
from xai_utils.metrics.grid_pointing import draw_cells, mosaic
from xai_utils.networks import engine, logits_of, targets
from xai_utils.networks.engine import told
from xai_utils.progress import Progress
from xai_utils.training.distributed import Compute
from xai_utils.training.target import labels_among
from xai_utils.training.workers import Opened, workers

BATCH = 32  # images in memory at once; random methods draw per batch, so another number draws other maps
COUNTED = 2  # images on which passes are counted


def make_maps(settings: dict, *, compute: Compute, log=None):
    """Explain images of the held-out split with every method and write the folder of maps, whole or not at all.

    `settings`: data, target and maps (folders), images (how many; None: all), methods (name -> options), seed, mosaics:
    their number, cells (of a side), and the confidence above which the network recognises an image.

    A mosaic explains one of these images once more, among images of other classes, for the grid pointing game
    (`metrics.grid_pointing`). All in it are recognised: the target classifies them right, with that probability or
    more; images without a label, and of a class that it does not know, count as what it takes them for. The explained
    ones are chosen evenly. Images keep their size, so that a mosaic is cells times as large, unless the target is built
    for images of one size (`image_size` of its options), or it or a trained network that a method brings takes none as
    large: then a mosaic has the size of one image.
    Each batch is a job of `training.workers`: however many work, and where, the maps are the same. `log(text)` gets a
    line per batch.
    """
    compute = compute.resolved()
    explainers.check_rows(settings["methods"])
    with new_folder(settings["maps"]) as folder:
        record = _explain(settings, compute, folder, log)
        asked = [settings[name] for name in ("methods", "images", "seed", "mosaics")]
        run = runs.identity(asked, data=settings["data"], target=settings["target"])
        run["maps"] = files_fingerprint(folder)[:20]
        write_json(folder / "explained.json", record | {"run": run})


def not_applicable(target: str, data: str, methods: dict) -> dict[str, list[str]]:
    """Why methods cannot explain this kind of network (guided backprop without ReLU modules): reason -> their rows."""
    split, found = datasets.load(data).validation, {}
    model = targets.load(target)
    for row, options in methods.items():
        method, own = explainers.method_of(row, options)
        if explainers.explainer(method).may_not_apply and len(split):
            try:
                explainers.explain(model, split.tensor([0]), method=method, **own)
            except explainers.NotApplicable as error:
                found.setdefault(str(error), []).append(row)
    return found


def _explain(settings, compute, folder, log):
    """Fill `folder` with maps; what is said of them."""
    split, indices = _chosen(settings)
    with partial_folder(folder / "parts") as parts, workers(compute) as done:
        ask = partial(done, opened=Opened(_Subject, (settings, compute)))
        answers = sorted(ask(_answers, [(rows,) for rows in batches(len(indices), BATCH)]), key=itemgetter(0))
        predicted, probability = np.concatenate([answer for _, answer in answers]).T
        predicted = predicted.astype(np.int64)
        [(_, subject)] = ask(_described, [()])
        write = partial(_write_maps, list(settings["methods"]), parts, ask)
        jobs = [(rows, predicted[rows], rows.start) for rows in batches(len(indices), BATCH)]
        write(folder, split.images.shape[-2:], jobs, _told(log, "images", len(indices)))
        labels = labels_among(split, subject["classes"])[indices]
        labels = np.where(labels == datasets.UNLABELLED, predicted, labels)  # what nobody says is what is predicted
        mosaics = _mosaics(labels, np.where(predicted == labels, probability, 0), subject["size"], settings)
        if len(mosaics):
            shares, classes = batches(len(mosaics), max(1, BATCH // mosaics.cells**2)), predicted[mosaics.explained]
            jobs = [(rows, classes[rows], len(indices) + rows.start, mosaics) for rows in shares]
            write(folder / MOSAICS, mosaics.size, jobs, _told(log, "mosaics", len(mosaics)))
    return {
        "split": "validation",
        "indices": indices.tolist(),
        "targets": predicted.tolist(),
        "methods": settings["methods"],
        "passes": subject["passes"],
        "engine": subject["engine"],
        MOSAICS: mosaics.record,
    }


def _chosen(settings):
    """The images to choose from, a Split, and which of them are explained (n,)."""
    split = datasets.load(settings["data"]).validation
    if not len(split):
        raise ValueError(f"{settings['data']} holds out no image; raise prepare_data.validation_fraction")
    return split, split.subset(min(settings["images"] or len(split), len(split)), settings["seed"])


class _Subject:
    """What a process explains, which it opens once: images, and the network with what makes its passes."""

    def __init__(self, settings, compute):
        self.settings, self.compute, data = settings, compute, datasets.load(settings["data"])
        self.split, self.indices = _chosen(settings)
        self.methods = with_baselines(settings["methods"], data, settings["seed"])
        keep = explainers.named_layers(settings["methods"])
        self.target = targets.load(settings["target"], compute.device)
        with compute.casting():
            self.model = engine(self.target, self.images(slice(1)), choice=compute.engine, keep=keep)

    def images(self, rows):
        """Some of the explained images, on the device: float32 (n, 3, S, S) in [0, 1]."""
        return self.split.tensor(self.indices[rows]).to(self.compute.device)


def _answers(subject, rows):
    """The predicted class of some images, and its probability (n, 2)."""
    with torch.inference_mode(), subject.compute.casting():
        probability, predicted = logits_of(subject.model, subject.images(rows)).softmax(1).max(1)
    return torch.stack([predicted.double(), probability.double()], 1).cpu().numpy()


def _described(subject):
    """What is said of the network: its classes, passes of each method, engine, and the size (H, W) of its mosaics."""
    images, drawn = subject.images(slice(COUNTED)), _seeded(subject, 0)
    with subject.compute.casting():
        explainers.explain_many(subject.model, images[:1], methods=drawn)  # what methods find out once is not counted
        size = images.shape[-2:]
        if "image_size" not in subject.target.options:
            size = _mosaic_size(subject.model, images[:1], subject.settings)
        passes = {
            name: cost.counted_passes(subject.model, images, partial(explainers.explain, **{"method": name} | given))
            for name, given in drawn.items()
        }
    return {
        "classes": subject.target.classes,
        "passes": {name: round(counted, 4) for name, counted in passes.items()},
        "engine": told(subject.model),
        "size": tuple(size),
    }


def _make(subject, parts, rows, classes, begun, mosaics=None):
    """Explain images, or mosaics, for their `classes` (n,) into a file of `parts`, which it returns.

    `begun`: how many were drawn for before, which seeds follow.
    """
    device = subject.compute.device
    with subject.compute.casting():
        if mosaics is None:
            pictures = subject.images(rows)
        else:
            pictures = mosaics.pictures(subject.split, subject.indices, range(rows.start, rows.stop)).to(device)
        asked = torch.from_numpy(classes).to(device)
        maps = explainers.explain_many(subject.model, pictures, asked, _seeded(subject, begun))
    file = parts / f"{begun}.npz"
    maps = {name: made.cpu().numpy() for name, made in maps.items()}
    write_arrays(file, maps)
    return file


def _write_maps(methods, parts, ask, folder, size, jobs, log):
    """What jobs of `_make` leave in `parts`, maps of `size` (H, W), as a file per method in `folder`.

    Each job has a file of its own: pages of one that several machines map into memory would overwrite each other's.
    """
    folder.mkdir(exist_ok=True)
    count = jobs[-1][0].stop
    arrays, made = new_arrays({folder / f"{name}.npy": ((count, *size), np.float32) for name in methods}), 0
    for place, file in ask(_make, [(parts, *job) for job in jobs]):
        rows = jobs[place][0]
        with np.load(file) as maps:
            for name, array in zip(methods, arrays.values(), strict=True):
                array[rows] = maps[name]
        file.unlink()
        made += rows.stop - rows.start
        if log:
            log(made)
    for array in arrays.values():
        array.flush()


def _told(log, pictures, total):
    """A function of how many `pictures` are done that logs it and how long the rest takes; None without `log`."""
    progress = Progress(total)
    return log and (lambda done: log(f"explained {pictures}: {progress(done)}"))


def _mosaics(labels, confidence, size, settings) -> Mosaics:
    """What stands in mosaics of `size` (H, W), of images with `labels` (n,) and the probability (n,) of those labels.

    The probability is 0 where another class is predicted.
    """
    number, cells, least = (settings["mosaics"][name] for name in ("number", "cells", "confidence"))
    usable = np.flatnonzero((confidence > 0) & (confidence >= least))
    classes = len(np.unique(labels[usable]))
    told = (
        f"{len(usable)} of {len(labels)} explained images are recognised with a probability of {least:g} or more "
        f"(classes: {classes})"
    )
    if not number:
        return Mosaics("no mosaics: explain.mosaics.number is 0")
    if classes < 2:
        cure = "a mosaic needs two classes: lower explain.mosaics.confidence, or raise explain.images"
        return Mosaics(f"no mosaics: {told}; {cure}")
    explained = np.linspace(0, len(usable) - 1, min(number, len(usable))).astype(int)  # evenly: the classes, too
    draw = partial(draw_cells, labels[usable], seed=settings["seed"], cells=cells)
    drawn = np.stack([draw(place, each) for each, place in enumerate(explained)])
    told = f"{len(drawn)} mosaics of {cells} x {cells} images, {size[0]} x {size[1]} pixels; {told}"
    return Mosaics(told, cells, size, images=usable[drawn])


def _mosaic_size(model, image, settings):
    """(H, W) of mosaics: of so many images as they are, or of one (1, 3, H, W) where some network takes no others."""
    large = mosaic(image.expand(settings["mosaics"]["cells"] ** 2, -1, -1, -1))[None]
    try:
        with torch.inference_mode():
            logits_of(model, large)
        for row, options in settings["methods"].items():
            if explainers.explainer(explainers.method_of(row, options)[0]).part is not None:
                explainers.explain_many(model, large, methods={row: options})
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError):  # whatever a network says of a size that it does not take
        return image.shape[-2:]
    return large.shape[-2:]


def _seeded(subject, start):
    """The options of each method, with what those that draw draw from, fixed by the seed and the batch."""
    seed, seeded = subject.settings["seed"], {}
    for name, given in subject.methods.items():
        record = explainers.explainer(explainers.method_of(name, given)[0])
        seeded[name] = record.seeded(given, seed, subject.compute.device, begin=seed * 1_000_003 + start)
    return seeded


def with_baselines(methods: dict, data, seed: int) -> dict:
    """`methods`, row -> options, in which those that start from other images and name none have some of `data`.

    As many of the training images as they sample, or of the held-out ones where nothing is there to train on.
    """
    split, found = data.train if len(data.train) else data.validation, dict(methods)
    for row, options in methods.items():
        method, own = explainers.method_of(row, options)
        keywords = explainers.explainer(method).keywords
        if "baselines" in keywords and own.get("baselines") is None:
            samples = (keywords | own)["samples"]
            places = np.random.default_rng(seed).permutation(len(split))[:samples]
            found[row] = options | {"baselines": split.tensor(np.sort(places))}
    return found


def without_part(methods: dict) -> dict[str, str]:
    """The rows whose method needs a trained network that the pipeline has not made: row -> what to run."""
    found = {}
    for row, options in methods.items():
        method, own = explainers.method_of(row, options)
        record = explainers.explainer(method)
        given = record.brought(own)
        if isinstance(given, str | Path) and not Path(given).is_dir():
            found[row] = f"{given} is made by the stage {record.part.stage}"
    return found
