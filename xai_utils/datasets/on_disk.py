"""Image folders on disk: which images there are, their boxes, and their pixels as plain RGB.

Layouts understood, one folder per class in each:
    train/ and validation/ (or val/, valid/, test/, testing/: the first of these that exists is held out)
    val/ alone (or another of these): everything is held out, nothing is trained on
    train/ (or training/) alone, or class folders directly: a seeded share of each class is held out
or, without these, a table:
    labels.csv (file and class; `synset` and `label` mean class too), files relative to the root or to images/:
    a seeded share of each class is held out; everything, where no class has two images
or images alone, in one folder, without a table: they have no labels and all are held out

The names of splits are known in any case: Val/ is val/. Images may lie deeper inside their class folder, also behind
links. What is not looked at is in `Listing.left_out` (folders.py); any other file must be an image.
`boxes.csv` (file,x0,y0,x1,y1) at the root is optional.
"""

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from xai_utils.datasets.csv_files import LABELS, read_labels
from xai_utils.datasets.errors import CorruptImage, DataError, MissingData
from xai_utils.datasets.folders import LOOSE, LeftOut, classes_in, listed, splits, unlabelled_in
from xai_utils.datasets.prepared import UNLABELLED

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def no_boxes(file, size):
    """The boxes of an image in a data set that has none."""
    return np.zeros((0, 4))


@dataclass(frozen=True)
class Listing:
    """What a data set holds: `classes` in the order of the labels, per split a list of (file below `root`, label).

    Without labels there are no `classes`, and each label is UNLABELLED.

    `boxes(file, (width, height))`: (k, 4) floats x0, y0, x1, y1, half-open, in pixels of the upright image, inside it.
    `parts(file)`: a PIL image of the image's size whose pixels are 0 or the position in `part_names` + 1.
    `banner`: rows of text at the bottom of every image, which are cut off.
    `left_out`: what else lies in the folder and is not looked at, by reason.
    """

    root: Path
    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    validation: list[tuple[str, int]]
    kind: str = "image_folder"
    boxes: Callable = no_boxes
    parts: Callable | None = None
    part_names: tuple[str, ...] = ()
    banner: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


def find_images(root, *, validation_fraction, seed):
    """List the images of `root`, see the module docstring for the layouts; opens none of them.

    `validation_fraction` in (0, 1] and `seed` matter only where the folder itself holds nothing out: each class then
    gives round(fraction * images) of its images, at least one, and keeps at least one; 1 holds everything out.
    Raises DataError for a missing or empty folder, a class without images, one class to be trained on or beside loose
    images, and splits with different classes.
    """
    root = Path(root)
    if not root.is_dir() or not any(root.iterdir()):
        beside = sorted(entry.name for entry in root.parent.iterdir()) if root.parent.is_dir() else []
        what = "is empty" if root.is_dir() else "is a file, not a folder" if root.exists() else "does not exist"
        raise MissingData(f"{root} {what}; {listed('beside it lie', beside)}: give the folder that holds the classes")
    left_out, table = LeftOut(), (root / LABELS).is_file()
    train_folder, held_out = splits(root, left_out, table=table)
    if table and (train_folder or held_out):
        left_out.note("a table that is not read, for the folders of the splits name the classes", LABELS)
    if not (table or train_folder or held_out) and (files := unlabelled_in(root, left_out)):
        return Listing(root, (), [], [(file, UNLABELLED) for file in files], left_out=left_out)
    if table and not (train_folder or held_out):
        classes = read_labels(root, left_out)
        single = all(len(files) == 1 for files in classes.values())
        train, validation = ({}, classes) if single else _split(classes, validation_fraction, seed)
    elif held_out:
        train, validation = _both(root, train_folder, held_out, left_out)
    else:
        train, validation = _split(classes_in(root, train_folder or root, left_out), validation_fraction, seed)
    classes = tuple(sorted(validation))
    if len(classes) < 2 and (any(train.values()) or LOOSE in left_out):
        raise DataError(
            f"{root} has one class only, {classes[0]!r}, and a classifier needs two; give the folder whose folders are "
            f"the classes, or write {root / LABELS} (file,class)"
        )
    labelled = [
        [(file, label) for label, name in enumerate(classes) for file in split.get(name, ())]
        for split in (train, validation)
    ]
    return Listing(root, classes, *labelled, left_out=left_out)


def _both(root, train_folder, held_out, left_out):
    """The classes of the two folders of splits, the same in both; no training where there is no folder for it."""
    validation = classes_in(root, held_out, left_out)
    if train_folder is None:
        return {}, validation
    train = classes_in(root, train_folder, left_out)
    for name in sorted(set(train) ^ set(validation)):
        present, absent = (train_folder, held_out) if name in train else (held_out, train_folder)
        raise DataError(
            f"{root}: class {name!r} is in {present.name}/ but not in {absent.name}/; both need the same classes"
        )
    return train, validation


def _split(classes, validation_fraction, seed):
    if validation_fraction == 1:
        return {}, classes
    train, validation = {}, {}
    for number, (name, files) in enumerate(classes.items()):
        held = _held_out(name, files, validation_fraction, np.random.default_rng([seed, number]))
        train[name] = [file for file in files if file not in held]
        validation[name] = sorted(held)
    return train, validation


def read_image(path):
    """Decode one image fully to an upright 8-bit RGB `PIL.Image`.

    EXIF orientation is applied; transparency is laid on white; 16-bit grey is divided by 257; CMYK, palette and grey
    are converted; of an animation the first frame counts; colour profiles are ignored.
    Raises CorruptImage for anything that does not decode to its last pixel, and for images beyond Pillow's pixel limit.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:
        raise CorruptImage(f"{path}: the file is empty (0 bytes); replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise CorruptImage(
            f"{path}: more than {limit} pixels, refused as a decompression bomb; scale it down"
        ) from error
    except Image.UnidentifiedImageError as error:
        allowed = ", ".join(FORMATS)
        raise CorruptImage(f"{path}: not a readable image; allowed are {allowed}. Convert or remove it") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise CorruptImage(f"{path}: damaged or cut off ({error}); replace or remove it") from error


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16-bit grey, in Pillow's modes I;16* or I
        grey = np.rint(np.asarray(image, dtype=np.float64) / 257)
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _held_out(name, files, fraction, generator):
    if not 0 < fraction < 1:
        raise DataError(f"validation_fraction is {fraction}; it must lie between 0, excluded, and 1, all")
    if len(files) < 2:
        raise DataError(f"class {name!r} has one image only and cannot be split; add images or a validation/ folder")
    count = min(max(round(fraction * len(files)), 1), len(files) - 1)
    return {files[index] for index in generator.permutation(len(files))[:count]}
