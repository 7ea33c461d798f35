"""The prepared form of a data set, as every stage reads it: test crops of one size (preparation.py writes them).

dataset.json            what it is: name, kind, image_size, geometry, classes, part_names, counts ...
species.yaml            birds only: the catalogue the images were drawn from
train/, validation/     images.npy uint8 (N,3,S,S) · labels.npy int64 (N,) · with parts: parts.npy uint8 (N,S,S)
                        boxes.csv image,x0,y0,x1,y1 in prepared pixels · files.csv index,file (birds: species:seed)

With a `stored_size` images are stored whole, and test crops are cut when they are read. In the place of images.npy:
                        whole/ (decoding.py) · shapes.npy int64 (N,4): shard, first pixel in it, height, width
                        windows.npy float64 (N,4): what the test crop shows, left, top, right, bottom in those pixels
"""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xai_utils.datasets.birds import render
from xai_utils.datasets.catalogue import Catalogue, load_catalogue
from xai_utils.datasets.errors import DataError
from xai_utils.datasets.fitting import resized
from xai_utils.images import unit_float

CATALOGUE = "species.yaml"
SPLITS = ("train", "validation")
UNLABELLED = -1  # the label of an image whose class nobody told


def shard_file(folder, number):
    """Where the pixels of the `number`-th shard of a split's images that are stored whole lie: uint8 (P,3)."""
    return Path(folder) / "whole" / f"{number:05}.npy"


class WholeImages:
    """Images that are stored whole; by their places, as of an array, their test crops uint8 (N,3,S,S).

    `shapes` (N,4), `windows` (N,4) and the `folder` of whole/ are those of the prepared form; `size` is S.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder, shapes, windows, size):
        self.shapes, self.windows, self.shape = shapes, windows, (len(shapes), 3, size, size)
        numbers = np.unique(shapes[:, 0]).tolist()
        self._shards = {number: np.load(shard_file(folder, number), mmap_mode="r") for number in numbers}

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, places):
        if isinstance(places, int | np.integer):
            return self._crop(range(len(self))[places])
        places = np.arange(len(self))[places].ravel()
        crops = [self._crop(place) for place in places]
        return np.stack(crops) if crops else np.zeros((0, *self.shape[1:]), np.uint8)

    def whole(self, place):
        """All of an image: uint8 (H,W,3), where it lies."""
        shard, start, height, width = self.shapes[place].tolist()
        return self._shards[shard][start : start + height * width].reshape(height, width, 3)

    def _crop(self, place):
        size, (left, top, right, bottom) = self.shape[-1], self.windows[place].tolist()
        whole = self.whole(place)
        if (right - left, bottom - top, left % 1, top % 1) == (size, size, 0, 0):
            crop = whole[int(top) : int(bottom), int(left) : int(right)]
        else:
            crop = np.asarray(resized(Image.fromarray(whole), size, (left, top, right, bottom)))
        return crop.transpose(2, 0, 1)


@dataclass(frozen=True)
class Split:
    """One split; images and part maps stay on disk until they are asked for.

    `images` uint8 (N,3,S,S), the test crops, WholeImages where they are stored whole; `labels` int64 (N,), places in
    `classes`, all of them UNLABELLED where `classes` is empty; `boxes` N float arrays (k,4) of x0, y0, x1, y1,
    half-open, in pixels of `images`; `parts` uint8 (N,S,S), 0 or the position in `part_names` + 1, None where the data
    have no parts; `files` N source files, for birds `species:seed`. Arrays of `indices` below are any integer sequence.
    """

    images: np.ndarray | WholeImages
    labels: np.ndarray
    boxes: list[np.ndarray] = field(repr=False)
    parts: np.ndarray | None
    files: list[str] = field(repr=False)
    classes: tuple[str, ...]
    part_names: tuple[str, ...]

    def __len__(self):
        return len(self.labels)

    def pixels(self, indices):
        """The test crops of the images at `indices`: uint8 (n,3,S,S)."""
        return torch.from_numpy(self.images[np.asarray(indices, dtype=np.int64)])

    def stored(self, indices):
        """All that is stored of the images at `indices`, for trainings to crop: a tuple of CPU tensors.

        Of images stored whole two: their pixels uint8 (P,3), row after row and one image after the other, and where in
        them each begins, its height and its width, int64 (n,3). Else one, of `pixels`.
        """
        if not isinstance(self.images, WholeImages):
            return (self.pixels(indices),)
        places = np.asarray(indices, dtype=np.int64)
        height, width = self.images.shapes[places, 2:].T
        start = np.cumsum(height * width) - height * width
        pixels = np.empty((int((height * width).sum()), 3), np.uint8)
        for first, place in zip(start, places, strict=True):
            whole = self.images.whole(place)
            pixels[first : first + whole.shape[0] * whole.shape[1]] = whole.reshape(-1, 3)
        return torch.from_numpy(pixels), torch.from_numpy(np.stack([start, height, width], 1))

    def tensor(self, indices, device=None):
        """The test crops at `indices`: float32 (n,3,S,S) in [0,1], made on the `device`, by default the CPU."""
        return unit_float(self.pixels(indices).to(device))

    def subset(self, count, seed):
        """`count` different indices, sorted, int64: as many of each class as there are (± 1), chosen by `seed`."""
        if not 1 <= count <= len(self):
            raise ValueError(f"a subset of {count} images was asked for; this split has {len(self)}, ask for 1 to that")
        generator = np.random.default_rng(seed)
        order, labels = generator.permutation(len(self)), np.maximum(self.labels, 0)  # without labels: one class
        classes = generator.permutation(max(len(self.classes), 1))
        turn = np.zeros(len(self), dtype=np.int64)  # an image's place in the queue of its class
        queued = order[labels[order].argsort(kind="stable")]  # class after class
        _, starts, lengths = np.unique(labels[queued], return_index=True, return_counts=True)
        turn[queued] = np.arange(len(self)) - np.repeat(starts, lengths)
        ranked = np.lexsort((classes.argsort()[labels], turn))  # first of every class, then second, ...
        return np.sort(ranked[:count])

    def box_masks(self, indices):
        """Union of each image's boxes: bool (n,S,S), true where a pixel's centre lies inside (none: all false)."""
        indices, size = np.asarray(indices, dtype=np.int64), self.images.shape[-1]
        masks, centres = torch.zeros(len(indices), size, size, dtype=torch.bool), torch.arange(size) + 0.5
        for mask, index in zip(masks, indices, strict=True):
            for x0, y0, x1, y1 in self.boxes[index].tolist():
                rows, columns = (centres >= y0) & (centres < y1), (centres >= x0) & (centres < x1)
                mask |= rows[:, None] & columns[None, :]
        return masks

    def part_masks(self, indices, part):
        """Where `part` is seen: bool (n,S,S). Raises ValueError for data without parts and for an unknown part."""
        if part not in self.part_names:
            allowed = ", ".join(self.part_names) or "none: these data carry no part maps"
            raise ValueError(f"unknown part {part!r}; the parts are {allowed}")
        chosen = self.parts[np.asarray(indices, dtype=np.int64)]
        return torch.from_numpy(chosen == self.part_names.index(part) + 1)


@dataclass(frozen=True)
class Data:
    """A prepared data set: two splits, `description` (its dataset.json), and for birds the `catalogue` they show."""

    folder: Path
    train: Split
    validation: Split
    description: dict = field(repr=False)
    catalogue: Catalogue | None = field(repr=False)

    @property
    def classes(self):
        return tuple(self.description["classes"])

    @property
    def part_names(self):
        return tuple(self.description["part_names"])

    def render_again(self, split, index, *, without=None, swap=None):
        """Draw bird `index` of `split` ("train" or "validation") once more; `without` and `swap` as in `render`."""
        if self.catalogue is None:
            raise ValueError(f"{self.folder} holds {self.description['kind']} data; only birds can be drawn again")
        species, seed = getattr(self, split).files[index].rsplit(":", 1)
        return render(self.catalogue, species, int(seed), size=self.train.images.shape[-1], without=without, swap=swap)


def load(folder):
    """Open a prepared data set; returns Data. Raises DataError where `folder` is not one, or is damaged."""
    folder = Path(folder)
    description = require_prepared(folder)
    try:
        catalogue = load_catalogue(folder / CATALOGUE) if description["kind"] == "birds" else None
        return Data(folder, *(_load_split(folder / split, description) for split in SPLITS), description, catalogue)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder}: the prepared data are damaged ({error}); run the stage prepare_data again"
        ) from error


def require_prepared(folder):
    """The description in `folder`/dataset.json; DataError where `folder` is not the prepared form of a data set."""
    path = Path(folder) / "dataset.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} is not a prepared data set (no dataset.json); run the stage prepare_data") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); run the stage prepare_data again") from error


def _load_split(folder, description):
    labels = np.load(folder / "labels.npy")
    if description.get("stored_size"):
        shapes, windows = np.load(folder / "shapes.npy"), np.load(folder / "windows.npy")
        images = WholeImages(folder, shapes, windows, description["image_size"])
    else:
        images = np.load(folder / "images.npy", mmap_mode="r")
    parts = np.load(folder / "parts.npy", mmap_mode="r") if description["part_names"] else None
    files = [row["file"] for row in _rows(folder / "files.csv")]
    if not len(images) == len(labels) == len(files) == description["counts"][folder.name]:
        raise ValueError(f"{folder.name}: {len(images)} images, {len(labels)} labels, {len(files)} file names")
    boxes = [[] for _ in files]
    for row in _rows(folder / "boxes.csv"):
        boxes[int(row["image"])].append([float(row[column]) for column in ("x0", "y0", "x1", "y1")])
    boxes = [np.array(own, dtype=np.float64).reshape(-1, 4) for own in boxes]
    return Split(images, labels, boxes, parts, files, tuple(description["classes"]), tuple(description["part_names"]))


def _rows(path):
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
