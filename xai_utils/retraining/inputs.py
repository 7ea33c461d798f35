"""What the trainings of ROAR and KAR see: images of one size, masked or not, with their labels.

`chosen` are the settings of one job (`jobs`).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.files import files_fingerprint, new_arrays, partial_folder
from xai_utils.images import unit_float
from xai_utils.retraining.masks import masked_images

FOLDER = Path(".checkpoints/remove_and_retrain")
COUNT = {"train": "train_images", "validation": "held_out_images"}  # of a split, in the settings
BATCH = 64  # images explained or tested at once; random methods draw per batch, so another number draws other maps


def shared_images(chosen, path, compute):
    """What all trainings share, read once for them: where images of another size than the data's lie, and their colour.

    `images`: a folder in FOLDER / "images" whose name stands for its content, or None where the data have the size that
    is asked for; `colour`: the mean of the training images. Both are computed on the device.
    """
    data, images = datasets.load(chosen["data"]), None
    if chosen["image_size"] not in (None, data.train.images.shape[-1]):
        images = _resized(data, chosen, path, compute)
    stored, labels, _ = _opened(*_place(chosen | {"images": images}, "train"))
    parts = (unit_float(stored(rows).to(compute.device)) for rows in batches(len(labels)))
    return {"images": images, "colour": (sum(part.mean((2, 3)).sum(0) for part in parts) / len(labels)).tolist()}


def _resized(data, chosen, path, compute):
    """The name of the folder with the images of both splits, float32, in the size that is asked for."""
    size = chosen["image_size"]
    splits = {}
    for split in datasets.SPLITS:
        part = getattr(data, split)
        splits[split] = part, _subset(part, chosen[COUNT[split]], chosen["subset_seed"])
    with partial_folder(path.with_suffix("")) as folder:
        files = {split: folder / f"{split}.npy" for split in splits}
        arrays = new_arrays(
            {files[split]: ((len(rows), 3, size, size), np.float32) for split, (_, rows) in splits.items()}
        )
        for split, (part, rows) in splits.items():
            for places in batches(len(rows)):
                images = part.tensor(rows[places.numpy()], compute.device)
                small = functional.interpolate(images, size, mode="bilinear", antialias=True)
                arrays[files[split]][places] = small.cpu().numpy()
            arrays[files[split]].flush()
        return kept_by_content(folder, path.parent)


def kept_by_content(folder, place):
    """Put a finished folder into `place` under a name that stands for its content, and return the name."""
    content = files_fingerprint(folder)[:20]
    if not (place / content).exists():
        folder.rename(place / content)
    return content


def _subset(part, count, seed):
    """Which images of a split are taken, of each class as many."""
    return part.subset(min(count or len(part), len(part)), seed)


def _place(chosen, split):
    return *(chosen[name] for name in ("data", "data_hash", "images", COUNT[split])), split, chosen["subset_seed"]


@lru_cache(maxsize=4)
def _opened(folder, _, images, count, split, seed):
    """(rows -> the images as they lie there, uint8 or in [0, 1]; labels (N,); class names)."""
    data = datasets.load(folder)
    part = getattr(data, split)
    chosen = _subset(part, count, seed)
    labels = torch.as_tensor(part.labels[chosen])
    if images is None:
        return lambda rows: part.pixels(chosen[np.asarray(rows)]), labels, data.classes
    small = np.load(FOLDER / "images" / images / f"{split}.npy", mmap_mode="r")
    return lambda rows: torch.from_numpy(small[np.asarray(rows)]), labels, data.classes


def images_of(chosen, split):
    """(rows -> images (n, 3, S, S), labels (N,), class names) of a split as the settings want it."""
    stored, labels, classes = _opened(*_place(chosen, split))
    return lambda rows: unit_float(stored(rows)), labels, classes


def batches(count):
    return torch.arange(count).split(BATCH)


def masked(chosen, split):
    """What a training at the image level sees, in two steps.

    (rows -> what lies on the disk of them, CPU tensors; those, on any device -> images (n, 3, S, S), masked).
    """
    stored, _, _ = _opened(*_place(chosen, split))
    if chosen.get("levels") is None:
        return lambda rows: (stored(rows),), unit_float
    found = np.load(FOLDER / "levels" / chosen["levels"] / f"{split}.npy", mmap_mode="r")
    options = {"place": chosen["place"], "keep": chosen["keep"], "fill": torch.tensor(chosen["fill"])}
    return (
        lambda rows: (stored(rows), torch.from_numpy(found[np.asarray(rows)])),
        lambda images, levels: masked_images(unit_float(images), levels, **options),
    )
