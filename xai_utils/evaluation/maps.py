"""Maps of many images, kept as files (explanation.py makes them).

A folder of maps holds one `<method>.npy` float32 (n, S, S) per method and `explained.json` with
    split     the split of the prepared data that was explained
    indices   (n) which of its images
    targets   (n) the explained classes: those that the target predicts
    methods   row -> its options (`explainers.method_of`), in the order of the tables
    passes    method -> plain passes that its operations are worth, counted (see metrics.cost)
    engine    what made the passes without gradients, in words (networks/engine.py)
    mosaics   of which images mosaics were made, whose maps are in mosaics/<method>.npy (m, H, W): `Mosaics`
    run       of which run they are (runs.py), with a hash of the maps themselves
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from xai_utils import runs
from xai_utils.files import file_name
from xai_utils.metrics.grid_pointing import CELLS, cell_mask, explained_cell, mosaic

MOSAICS = "mosaics"  # the folder of their maps, and their record
BATCH = 64  # maps in memory at once


@dataclass(frozen=True)
class Mosaics:
    """Mosaics of explained images, numbered from 0: in each, one image is explained once more, for the same class.

    `images` holds which of the n explained images stand in each, row by row.
    """

    told: str  # how many there are, of what; or why there are none
    cells: int = CELLS  # of a side
    size: tuple[int, int] = (0, 0)  # of a mosaic, in pixels
    images: np.ndarray = field(default_factory=lambda: np.zeros((0, CELLS**2), np.int64))  # (m, cells²)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # method -> (m, H, W)

    def __len__(self):
        return len(self.images)

    @property
    def record(self):
        """What explained.json says of them, which `Mosaics` takes again."""
        return {"told": self.told, "cells": self.cells, "size": list(self.size), "images": self.images.tolist()}

    @property
    def explained(self):
        """Which of the n explained images is explained in each mosaic (m,); no image is in two."""
        return np.array([row[explained_cell(number, self.cells)] for number, row in enumerate(self.images)], np.int64)

    def masks(self, numbers):
        """Where the explained cells of some mosaics lie: bool (len(numbers), H, W)."""
        return torch.stack([cell_mask(explained_cell(each, self.cells), self.cells, self.size) for each in numbers])

    def pictures(self, split, indices, numbers):
        """Some of the mosaics, of the images `indices` (n,) of `split`: float32 (len(numbers), 3, H, W) in [0, 1]."""
        return torch.stack([mosaic(split.tensor(indices[self.images[each]]), size=self.size) for each in numbers])


@dataclass(frozen=True)
class Maps:
    """An opened folder of maps."""

    split: str
    indices: np.ndarray  # (n,)
    targets: np.ndarray  # (n,)
    methods: dict[str, dict]
    passes: dict[str, float]
    arrays: dict[str, np.ndarray]  # method -> (n, S, S)
    run: dict | None = None
    engine: str = ""
    mosaics: Mosaics = Mosaics("no mosaics: these maps were made without")


def load(folder, run=None) -> Maps:
    """Open a folder of maps; the arrays stay on disk until they are read.

    ValueError where they are damaged, or, with a `run`, of other data or of another network.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "explained.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no maps (no explained.json); run the stage explain") from None
    if run is not None:
        runs.require_same(record.get("run"), run, folder, "explain")
    record |= {name: np.asarray(record[name]) for name in ("indices", "targets")}
    mosaics = Mosaics(**record.pop(MOSAICS)) if MOSAICS in record else Maps.mosaics
    of_mosaics = _opened(folder / MOSAICS, record["methods"] if len(mosaics) else (), len(mosaics))
    mosaics = replace(mosaics, images=np.asarray(mosaics.images), arrays=of_mosaics)
    arrays = _opened(folder, record["methods"], len(record["indices"]))
    return Maps(arrays=arrays, mosaics=mosaics, **record)


def described(maps) -> dict:
    """Of the maps (n, H, W) of a method: minimum, maximum, how many are constant, and the share that is lit.

    A pixel is lit where it lies in the upper half of its map's range. BATCH maps are in memory at a time.
    """
    parts, constant, lit = [], 0, 0
    for start in range(0, len(maps), BATCH):
        part = np.asarray(maps[start : start + BATCH])
        low, high = part.min((1, 2), keepdims=True), part.max((1, 2), keepdims=True)
        parts.append((low.min(), high.max()))
        constant += int((low == high).sum())
        lit += int((2 * part > high + low).sum())
    low, high = zip(*parts, strict=True)
    return {"minimum": np.min(low), "maximum": np.max(high), "constant maps": constant, "lit": lit / maps.size}


def _opened(folder, methods, count):
    """The maps of each method, on disk; ValueError naming the file where they are not `count`."""
    arrays = {}
    for name in methods:
        file = folder / f"{file_name(name)}.npy"
        arrays[name] = np.load(file, mmap_mode="r") if file.is_file() else np.empty(0)
        if len(arrays[name]) != count:
            raise ValueError(f"{file} holds {len(arrays[name])} maps of {count}; explain again")
    return arrays
