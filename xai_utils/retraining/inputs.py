"""What the trainings of ROAR and KAR see: images of one size, masked or not, with their labels.

`chosen` are the settings of one job (`jobs`).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.images import unit_float
from xai_utils.retraining.masks import masked_images

FOLDER = Path(".checkpoints/remove_and_retrain")
BATCH = 64  # images explained or tested at once; random methods draw per batch, so another number draws other maps


def _place(chosen, split):
    count = chosen["train_images" if split == "train" else "held_out_images"]
    return chosen["data"], chosen["data_hash"], chosen["image_size"], count, split, chosen["subset_seed"]


@lru_cache(maxsize=4)
def _opened(folder, _, image_size, count, split, seed):
    """(rows -> the images as they lie there, uint8 or in [0, 1]; labels (N,); class names)."""
    data = datasets.load(folder)
    part = getattr(data, split)
    chosen = part.subset(min(count or len(part), len(part)), seed)
    labels = torch.as_tensor(part.labels[chosen])
    if image_size in (None, part.images.shape[-1]):
        return lambda rows: part.pixels(chosen[np.asarray(rows)]), labels, data.classes
    small = [
        functional.interpolate(part.tensor(chosen[rows]), image_size, mode="bilinear", antialias=True)
        for rows in batches(len(chosen))
    ]
    small = torch.cat(small)
    return lambda rows: small[rows], labels, data.classes


@lru_cache(maxsize=4)
def _mean_colour(*place):
    stored, labels, _ = _opened(*place)
    return sum(unit_float(stored(rows)).mean((2, 3)).sum(0) for rows in batches(len(labels))) / len(labels)


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
    fill = _mean_colour(*_place(chosen, "train")) if chosen["fill"] == "mean" else torch.zeros(3)
    options = {"place": chosen["place"], "keep": chosen["keep"], "fill": fill}
    return (
        lambda rows: (stored(rows), torch.from_numpy(found[np.asarray(rows)])),
        lambda images, levels: masked_images(unit_float(images), levels, **options),
    )
