"""What the trainings of ROAR and KAR see: images of one size, masked or not, with their labels.

`chosen` are the settings of one job (`jobs`).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.retraining.masks import masked_images

FOLDER = Path(".checkpoints/remove_and_retrain")
BATCH = 64  # images explained or tested at once; random methods draw per batch, so another number draws other maps


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
        for rows in batches(len(chosen))
    ]
    small = torch.cat(small)
    return lambda rows: small[rows], labels, data.classes


def images_of(chosen, split):
    """(rows -> images (n, 3, S, S), labels (N,), class names) of a split as the settings want it."""
    count = chosen["train_images" if split == "train" else "held_out_images"]
    return _opened(chosen["data"], chosen["data_hash"], chosen["image_size"], count, split, chosen["subset_seed"])


def batches(count):
    return torch.arange(count).split(BATCH)


def masked(chosen, split):
    """rows -> images (n, 3, S, S), masked as a training at the image level wants them."""
    fetch, _, _ = images_of(chosen, split)
    if chosen.get("levels") is None:
        return fetch
    found, fill = np.load(FOLDER / "levels" / chosen["levels"] / f"{split}.npy", mmap_mode="r"), torch.zeros(3)
    if chosen["fill"] == "mean":
        fetch_train, train_labels, _ = images_of(chosen, "train")
        fill = sum(fetch_train(rows).mean((2, 3)).sum(0) for rows in batches(len(train_labels))) / len(train_labels)
    options = {"keep": chosen["keep"], "fill": fill}
    return lambda rows: masked_images(fetch(rows), found[np.asarray(rows)], chosen["place"], **options)
