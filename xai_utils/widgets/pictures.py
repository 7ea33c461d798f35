"""Where an image comes from that is looked at: photographs, prepared data, mosaics of either, a file, an upload."""

import shlex
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from xai_utils.datasets import DataError
from xai_utils.datasets.fitting import fit
from xai_utils.datasets.folders import SUFFIXES
from xai_utils.datasets.on_disk import FORMATS, read_image
from xai_utils.datasets.photographs import PHOTOGRAPHS, photographs
from xai_utils.metrics.grid_pointing import CELLS, explained_cell, mosaic
from xai_utils.metrics.part_truth import deciding_parts

MOST_BYTES = 8 * 2**20  # of a file; the page's connection takes messages of 64 MB (voila.json)
MOST_PIXELS = 40_000_000  # 120 MB of colours while it is decoded
THUMBNAIL = 64  # pixels a side


class Picture(NamedTuple):
    """One image as the network takes it, and what is known to be true of it."""

    pixels: torch.Tensor  # (3, S, S) in [0, 1]
    name: str  # where it comes from
    label: str | None = None  # its true class
    parts: np.ndarray | None = None  # uint8 (S, S), 0 or the position in `part_names` + 1
    part_names: tuple[str, ...] = ()
    boxes: tuple = ()  # of x0, y0, x1, y1, half-open, in pixels
    cells: torch.Tensor | None = None  # (cells², 3, S, S), the images of a mosaic, row by row
    explained: int = 0  # the cell whose class is explained first
    deciding: Callable | None = None  # (network, class, device) -> the names of the parts that decide

    def part_at(self, x, y):
        """The name of the part at a pixel and its mask (S, S), or None where there is none."""
        number = 0 if self.parts is None else int(self.parts[y, x])
        return (self.part_names[number - 1], torch.from_numpy(self.parts == number)) if number else None

    def at(self, size):
        """The same image with `size` pixels a side. Which parts decide is asked of an image as it was drawn only."""
        if (own := self.pixels.shape[-1]) == size:
            return self
        scaled = partial(functional.interpolate, size=(size, size), mode="bilinear", antialias=True)
        parts = None if self.parts is None else np.array(Image.fromarray(self.parts).resize((size, size), 0))
        return self._replace(
            pixels=scaled(self.pixels[None])[0],
            parts=parts,
            boxes=tuple(tuple(side * size / own for side in box) for box in self.boxes),
            cells=None if self.cells is None else scaled(self.cells),
            deciding=None,
        )

    def thumbnail(self):
        """It with at most THUMBNAIL pixels a side, a PIL image."""
        image = Image.fromarray((self.pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image


class Photographs:
    """The photographs that are installed (`datasets.photographs`), each in the place of a class with one image."""

    kind, word, splits = "photographs", "photograph", ("installed",)

    def __init__(self, size):
        self.size, self.classes = size, tuple(PHOTOGRAPHS)

    def count(self, split, label):
        return 1

    def picture(self, split, label, number):
        """The photograph called `label`, with its author and terms for a name."""
        return Picture(photographs([label], self.size)[0], PHOTOGRAPHS[label].credit)


class Prepared:
    """The images of a prepared data set, by split and class."""

    kind, word = "data set", "class"

    def __init__(self, data):
        self.data, self.classes = data, data.classes
        self.splits = tuple(split for split in ("validation", "train") if len(getattr(data, split)))

    def _rows(self, split, label):
        return np.flatnonzero(getattr(self.data, split).labels == self.classes.index(label))

    def count(self, split, label):
        return len(self._rows(split, label))

    def picture(self, split, label, number):
        """The `number`-th image (from 0) of a class."""
        images, row = getattr(self.data, split), int(self._rows(split, label)[number])
        drawn = self.data.catalogue is not None
        return Picture(
            images.tensor([row])[0],
            f"{self.data.description['name']}, {split} {row}",
            label,
            None if images.parts is None else np.array(images.parts[row]),
            self.data.part_names,
            tuple(tuple(box) for box in images.boxes[row].tolist()),
            deciding=partial(self._deciding, split, row) if drawn else None,
        )

    def _deciding(self, split, row, model, target, device):
        (found,) = deciding_parts(model, self.data, split, [row], [target], device=device).decides
        return tuple(name for name, decides in zip(self.data.part_names, found.tolist(), strict=True) if decides)


class Mosaics:
    """Mosaics of 2 x 2 images of a `source`: one of the class that is picked, the others of the classes after it."""

    def __init__(self, source):
        self.source, self.kind = source, f"mosaics of {source.kind}"
        self.word, self.splits, self.classes, self.count = source.word, source.splits, source.classes, source.count

    def picture(self, split, label, number):
        """The mosaic around the `number`-th image of a class, which stands in one cell after the other."""
        place, cells = self.classes.index(label), CELLS**2
        others = [each for each in self.classes[place + 1 :] + self.classes[:place] if self.count(split, each)]
        if not others:
            raise DataError(f"{split} holds images of {label} alone; a mosaic needs another class")
        names = [others[turn % len(others)] for turn in range(cells - 1)]
        explained = explained_cell(place + number)
        names.insert(explained, label)
        own = [
            self.source.picture(split, name, number if name == label else number % self.count(split, name))
            for name in names
        ]
        images = torch.stack([each.pixels for each in own])
        name = "mosaic of " + "; ".join(each.name for each in own)
        made = mosaic(images, size=images.shape[-2:])
        return Picture(made, name, own[explained].label, cells=images, explained=explained)


def within(given, folders) -> Path:
    """The path that a person gives, links followed; one that is relative counts from the first of `folders`.

    DataError where it leads out of all `folders`, whether or not there is a file.
    """
    try:
        path = Path(*folders[:1], given).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a zero byte
        raise DataError(f"{given!r} is no path of a file: {error}") from None
    if not any(path.is_relative_to(folder) for folder in folders):
        raise DataError(
            f"{given}: {path} does not lie in {' or '.join(map(str, folders)) or 'a folder that may be read'}; "
            f'upload it, or begin with make inspect FOLDERS="{shlex.quote(str(path.parent))}"'
        )
    return path


def read_picture(path, size, *, geometry="crop", name=None):
    """The image in a file, brought to `size` as prepared data are. DataError, calling the file `name`, where it is no
    image of a known format, is damaged, or is larger than MOST_BYTES or MOST_PIXELS; nothing is decoded before that.
    """
    path = Path(path)
    name = path.name if name is None else name
    if not path.is_file():
        raise DataError(f"{path} is no file; give the path of an image ({', '.join(FORMATS)})")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(
            f"{name} has {path.stat().st_size / 2**20:.1f} MB; at most {MOST_BYTES / 2**20:.0f}: scale it down"
        )
    try:
        _check_header(path, name)
        image = read_image(path)
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from None
    image, _ = fit(image, np.zeros((0, 4)), size, geometry)
    return Picture(torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()).float() / 255, name)


def read_upload(content, name, size, *, geometry="crop"):
    """As `read_picture`, of the bytes of a file that was called `name`: it is kept nowhere."""
    if len(content) > MOST_BYTES:
        raise DataError(f"{name} has {len(content) / 2**20:.1f} MB; at most {MOST_BYTES / 2**20:.0f}: scale it down")
    suffix = Path(name).suffix.lower()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{suffix if suffix in SUFFIXES else ''}"
        path.write_bytes(content)
        return read_picture(path, size, geometry=geometry, name=name)


def _check_header(path, name):
    """DataError for more than MOST_PIXELS, read from the header; what is no image is left to the decoder to say."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise DataError(
                    f"{name} has {width} x {height} pixels; at most {MOST_PIXELS / 1e6:.0f} million: scale it down"
                )
            image.verify()
    except Image.DecompressionBombError:
        raise DataError(f"{name} has far more than {MOST_PIXELS / 1e6:.0f} million pixels; scale it down") from None
    except DataError:
        raise
    except Exception:  # said better by the decoder, which also reads to the last pixel
        return
