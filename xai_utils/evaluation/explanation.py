"""Makes the maps of many images and of mosaics of them: in batches, shared among processes, into a folder (maps.py)."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from xai_utils import datasets, explainers, runs
from xai_utils.evaluation.maps import MOSAICS, Mosaics
from xai_utils.files import files_fingerprint, new_arrays, new_folder, write_json
from xai_utils.metrics import cost
from xai_utils.metrics.grid_pointing import draw_cells, mosaic
from xai_utils.networks import engine, logits_of, targets
from xai_utils.networks.engine import told
from xai_utils.progress import Progress
from xai_utils.training import distributed
from xai_utils.training.target import labels_among

BATCH = 32  # images in memory at once; random methods draw per batch, so another number draws other maps
COUNTED = 2  # images on which passes are counted


def make_maps(settings: dict, *, compute: distributed.Compute, log=None):
    """Explain images of the held-out split with every method and write the folder of maps, whole or not at all.

    `settings`: data, target and maps (folders), images (how many; None: all), methods (name -> options), seed, mosaics:
    their number, cells (of a side), and the confidence above which the network recognises an image.

    A mosaic explains one of these images once more, among images of other classes, for the grid pointing game
    (`metrics.grid_pointing`). All in it are recognised: the target classifies them right, with that probability or
    more; images without a label, and of a class that it does not know, count as what it takes them for. The explained
    ones are chosen evenly. Images keep their size, so that a mosaic is cells times as large, unless the target is built
    for images of one size (`image_size` of its options), or it or a trained network that a method brings takes none as
    large: then a mosaic has the size of one image.
    `log(text)` gets a line per batch on the main process.
    """
    compute = compute.resolved()
    explainers.check_rows(settings["methods"])
    with new_folder(settings["maps"]) as folder:
        work = (settings | {"maps": str(folder)}, compute, log)
        distributed.run(_explain, *work, processes=compute.processes, threads=compute.threads, device=compute.device)


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


def _explain(settings, compute, log):
    """One process's part: every world_size()-th batch, written into the rows of shared files."""
    with compute.casting():
        _explain_all(settings, compute, log)


def _explain_all(settings, compute, log):
    data, device = datasets.load(settings["data"]), compute.device
    split, methods, folder = data.validation, settings["methods"], Path(settings["maps"])
    if not len(split):
        raise ValueError(f"{settings['data']} holds out no image; raise prepare_data.validation_fraction")
    indices = split.subset(min(settings["images"] or len(split), len(split)), settings["seed"])
    first, keep = split.tensor(indices[:1]).to(device), explainers.named_layers(methods)
    target = targets.load(settings["target"], device)
    model = engine(target, first, choice=compute.engine, keep=keep)

    def answer(rows):
        """The predicted class of some images, and its probability (n, 2)."""
        with torch.inference_mode():
            logits = logits_of(model, split.tensor(indices[rows]).to(device))
        probability, predicted = logits.softmax(1).max(1)
        return torch.stack([predicted.double(), probability.double()], 1).cpu()

    predicted, probability = distributed.map_in_order(answer, len(indices), batch_size=BATCH).T
    predicted = predicted.long()
    write = partial(_write_maps, model=model, settings=settings, device=device)
    write(
        folder,
        lambda rows: split.tensor(indices[rows]),
        predicted,
        split.images.shape[-2:],
        log=_told(log, "images", len(indices)),
    )
    labels = labels_among(split, target.classes)[indices]
    labels = np.where(labels == datasets.UNLABELLED, predicted, labels)  # what nobody says is what the target predicts
    confidence = torch.where(predicted == torch.from_numpy(labels), probability, 0).numpy()
    size = first.shape[-2:] if "image_size" in target.options else _mosaic_size(model, first, settings)
    mosaics = _mosaics(labels, confidence, tuple(size), settings)
    if len(mosaics):
        write(
            folder / MOSAICS,
            lambda numbers: mosaics.pictures(split, indices, numbers),
            predicted[mosaics.explained],
            mosaics.size,
            batch=max(1, BATCH // mosaics.cells**2),
            begun=len(indices),
            log=_told(log, "mosaics", len(mosaics)),
        )
    if distributed.is_main():
        images = split.tensor(indices[:COUNTED]).to(device)
        passes = {
            name: round(
                cost.counted_passes(model, images, partial(explainers.explain, **{"method": name} | options)),
                4,
            )
            for name, options in _seeded(methods, settings, 0, device).items()
        }
        asked = [methods, settings["images"], settings["seed"], settings["mosaics"]]
        run = runs.identity(asked, data=settings["data"], target=settings["target"])
        record = {
            "split": "validation",
            "indices": indices.tolist(),
            "targets": predicted.tolist(),
            "methods": methods,
            "passes": passes,
            "engine": told(model),
            MOSAICS: mosaics.record,
            "run": run | {"maps": files_fingerprint(folder)[:20]},
        }
        write_json(folder / "explained.json", record)


def _told(log, pictures, total):
    """A function of how many `pictures` are done that logs it and how long the rest takes; None without `log`."""
    progress = Progress(total)
    return log and (lambda done: log(f"explained {pictures}: {progress(done)}"))


def _write_maps(folder, pictures, classes, size, *, model, settings, device, log, batch=BATCH, begun=0):
    """The maps of pictures of `size` (H, W) for their `classes` (n,), a file per method in `folder`.

    `pictures(rows)`: some of them (len(rows), 3, H, W); `begun`: how many were drawn for before, which seeds follow;
    `log(done)`: told on the main process.
    """
    methods = settings["methods"]
    if distributed.is_main():
        folder.mkdir(exist_ok=True)
        new_arrays({folder / f"{name}.npy": ((len(classes), *size), np.float32) for name in methods})
    distributed.wait_for_all()  # the files exist for every process
    arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in methods}
    starts = range(0, len(classes), batch)
    for start in (starts[place] for place in distributed.shard(len(starts))):
        rows = range(start, min(start + batch, len(classes)))
        asked = classes[start : rows.stop].to(device)
        drawn = _seeded(methods, settings, begun + start, device)
        for name, maps in explainers.explain_many(model, pictures(rows).to(device), asked, drawn).items():
            arrays[name][start : rows.stop] = maps.cpu().numpy()
        if log and distributed.is_main():
            log(rows.stop)
    for array in arrays.values():
        array.flush()
    distributed.wait_for_all()  # all maps are there


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


def _seeded(methods, settings, start, device):
    """The options of each method, with what those that draw draw from, fixed by the seed and the batch."""
    seed, seeded = settings["seed"], {}
    for name, given in methods.items():
        record = explainers.explainer(explainers.method_of(name, given)[0])
        seeded[name] = record.seeded(given, seed, device, begin=seed * 1_000_003 + start)
    return seeded


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
