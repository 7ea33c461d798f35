"""Makes the maps of many images: in batches, shared among processes, into a folder (maps.py)."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from xai_utils import datasets, explainers, runs
from xai_utils.files import files_fingerprint, new_arrays, new_folder, write_json
from xai_utils.metrics import cost
from xai_utils.networks import class_indices, inference_copy, logits_of, targets
from xai_utils.training import distributed

BATCH = 32  # images in memory at once; random methods draw per batch, so another number draws other maps
COUNTED = 2  # images on which passes are counted


def make_maps(settings: dict, *, compute: distributed.Compute, log=None):
    """Explain images of the held-out split with every method and write the folder of maps, whole or not at all.

    `settings`: data, target and maps (folders), images (how many; None: all), methods (name -> options), seed.
    `log(text)` gets a line per batch on the main process.
    """
    compute = compute.resolved()
    explainers.check_rows(settings["methods"])
    with new_folder(settings["maps"]) as folder:
        work = (settings | {"maps": str(folder)}, compute.device, log)
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


def _explain(settings, device, log):
    """One process's part: every world_size()-th batch, written into the rows of shared files."""
    data = datasets.load(settings["data"])
    split, methods, folder = data.validation, settings["methods"], Path(settings["maps"])
    if not len(split):
        raise ValueError(f"{settings['data']} holds out no image; raise prepare_data.validation_fraction")
    indices = split.subset(min(settings["images"] or len(split), len(split)), settings["seed"])
    first, keep = split.tensor(indices[:1]).to(device), explainers.named_layers(methods)
    model = inference_copy(targets.load(settings["target"], device), first, keep=keep)
    size = split.images.shape[-2:]
    if distributed.is_main():
        new_arrays({folder / f"{name}.npy": ((len(indices), *size), np.float32) for name in methods})
    distributed.wait_for_all()  # the files exist for every process
    arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in methods}
    starts = range(0, len(indices), BATCH)

    def explain(batches):
        """Predicted classes (1, BATCH) of one batch of images, whose maps are written."""
        start = starts[batches[0]]
        rows = slice(start, min(start + BATCH, len(indices)))
        images = split.tensor(indices[rows]).to(device)
        with torch.inference_mode():
            predicted = class_indices(logits_of(model, images))
        for name, maps in explainers.explain_many(
            model, images, predicted, _seeded(methods, settings, start, device)
        ).items():
            arrays[name][rows] = maps.cpu().numpy()
        if log and distributed.is_main():
            log(f"explained {rows.stop} of {len(indices)} images")
        return torch.nn.functional.pad(predicted.cpu(), (0, BATCH - len(predicted)))[None]

    predicted = distributed.map_in_order(explain, len(starts), batch_size=1).flatten()[: len(indices)]
    for array in arrays.values():
        array.flush()
    if distributed.is_main():
        images = split.tensor(indices[:COUNTED]).to(device)
        passes = {
            name: round(
                cost.counted_forward_equivalents(
                    model, images, partial(explainers.explain, **{"method": name} | options)
                ),
                4,
            )
            for name, options in _seeded(methods, settings, 0, device).items()
        }
        about = [methods, settings["images"], settings["seed"]]
        run = runs.identity(about, data=settings["data"], target=settings["target"])
        record = {
            "split": "validation",
            "indices": indices.tolist(),
            "targets": predicted.tolist(),
            "methods": methods,
            "passes": passes,
            "run": run | {"maps": files_fingerprint(folder)[:20]},
        }
        write_json(folder / "explained.json", record)


def _seeded(methods, settings, start, device):
    """The options of each method, with a generator for those that draw, fixed by the seed and the batch."""
    seed, records = settings["seed"] * 1_000_003 + start, {}
    for name, given in methods.items():
        method, _ = explainers.method_of(name, given)
        records[name] = explainers.explainer(method).seeded(given, seed, device)
    return records


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
