"""Image folders on disk: which images there are, their boxes, and their pixels as plain RGB.

Layouts understood, one folder per class in each:
    train/ and validation/ (or val/, or test/: the first of these that exists is held out)
    val/ alone (or validation/, test/): everything is held out, nothing is trained on
    train/ alone, or class folders directly: a seeded share of each class is held out
Images may lie deeper inside their class folder. Hidden files and notes (NOT_IMAGES) are not looked at; any other file
must be an image. `boxes.csv` (file,x0,y0,x1,y1) at the root is optional.
"""

import csv
import math
import struct
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from xai_utils.datasets.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
NOT_IMAGES = {".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".html", ".ini", ".db", ".mat"}
HELD_OUT = ("validation", "val", "test")
BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds: sorted `classes`, and per split a sorted list of (file relative to the root, label)."""

    root: Path
    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    validation: list[tuple[str, int]]


def find_images(root, *, validation_fraction, seed):
    """List the images of `root`, see the module docstring for the layouts; opens none of them.

    `validation_fraction` in (0, 1) and `seed` matter only where the folder itself holds nothing out: each class then
    gives round(fraction * images) of its images, at least one, and keeps at least one.
    Raises DataError for a missing or empty folder, a class without images, and splits with different classes.
    """
    root = Path(root)
    if not root.is_dir() or not any(root.iterdir()):
        beside = sorted(entry.name for entry in root.parent.iterdir()) if root.parent.is_dir() else []
        what = "is empty" if root.is_dir() else "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; {_listed('beside it lie', beside)}: give the folder that holds the classes")
    held_out = next((name for name in HELD_OUT if (root / name).is_dir()), None)
    has_train = (root / "train").is_dir()
    if held_out:
        validation = _classes(root, root / held_out)
        train = _classes(root, root / "train") if has_train else {}
        for name in sorted(set(train) ^ set(validation)) if has_train else ():
            present, absent = ("train", held_out) if name in train else (held_out, "train")
            raise DataError(f"{root}: class {name!r} is in {present}/ but not in {absent}/; both need the same classes")
    else:
        train, validation = {}, {}
        for number, (name, files) in enumerate(_classes(root, root / "train" if has_train else root).items()):
            held = _held_out(name, files, validation_fraction, np.random.default_rng([seed, number]))
            train[name] = [file for file in files if file not in held]
            validation[name] = sorted(held)
    classes = tuple(sorted(validation))
    labelled = [
        [(file, label) for label, name in enumerate(classes) for file in split.get(name, ())]
        for split in (train, validation)
    ]
    return ImageFolder(root, classes, *labelled)


def read_boxes(root, files, *, inclusive=None):
    """The boxes of `boxes.csv` at `root`: dict file -> (k, 4) float array x0, y0, x1, y1, half-open, in pixels.

    `inclusive`: x1, y1 of the file are the last pixels inside (Tiny ImageNet, Pascal VOC); 1 is added to them. None
    finds out: a file with a box of x1 = x0 or y1 = y0 must be inclusive, since half-open that box would be empty.
    Pixels are those of the upright image (EXIF orientation applied). `files` are the images that count; rows for
    other images that exist below `root` are left out. Without the file: {}. Whether a box lies inside its image is
    checked by `check_boxes` when the image is read.
    """
    path = Path(root) / "boxes.csv"
    if not path.exists():
        return {}
    boxes, found, files = defaultdict(list), [], set(files)
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.DictReader(handle)
            missing = [column for column in BOX_COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: column '{missing[0]}' is missing; the first line must be {','.join(BOX_COLUMNS)}"
                )
            for row in rows:
                where = f"{path} line {rows.line_num}"
                file = row["file"]
                if file not in files and not (file and (path.parent / file).is_file()):
                    raise DataError(f"{where}: unknown file {file!r}; files are relative to {path.parent}, with '/'")
                box = [_number(row[column], column, where) for column in BOX_COLUMNS[1:]]
                found.append((where, file, box))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path}: not a readable UTF-8 CSV file ({error})") from error
    if inclusive is None:
        inclusive = any(x0 == x1 or y0 == y1 for _, _, (x0, y0, x1, y1) in found)
    for where, file, (x0, y0, x1, y1) in found:
        if x1 + inclusive <= x0 or y1 + inclusive <= y0:
            raise DataError(
                f"{where}: empty box {x0:g},{y0:g},{x1:g},{y1:g} of {file}; x1 > x0 and y1 > y0 are needed (where x1, "
                "y1 are the last pixels inside, set inclusive_boxes)"
            )
        if file in files:
            boxes[file].append([x0, y0, x1 + inclusive, y1 + inclusive])
    return {file: np.array(rows, dtype=np.float64) for file, rows in boxes.items()}


def check_boxes(boxes, file, size):
    """Raise DataError where a box of `boxes` (k, 4) leaves its image of `size` (width, height)."""
    width, height = size
    for box in boxes:
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
            raise DataError(
                f"boxes.csv: box {box.tolist()} of {file} lies outside its image of {width} x {height} pixels; "
                "correct the row (x0,y0,x1,y1 in pixels of the upright image, half-open)"
            )


def read_image(path):
    """Decode one image fully to an upright 8-bit RGB `PIL.Image`.

    EXIF orientation is applied; transparency is laid on white; 16-bit grey is divided by 257; CMYK, palette and grey
    are converted; of an animation the first frame counts; colour profiles are ignored.
    Raises DataError for anything that does not decode to its last pixel, and for images beyond Pillow's pixel limit.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes); replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise DataError(f"{path}: more than {limit} pixels, refused as a decompression bomb; scale it down") from error
    except Image.UnidentifiedImageError as error:
        allowed = ", ".join(FORMATS)
        raise DataError(f"{path}: not a readable image; allowed are {allowed}. Convert or remove it") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise DataError(f"{path}: damaged or cut off ({error}); replace or remove it") from error


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16-bit grey, in Pillow's modes I;16* or I
        grey = np.rint(np.asarray(image, dtype=np.float64) / 257)
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _classes(root, folder):
    """Class name -> sorted files relative to `root`, for the class folders of `folder`."""
    names = sorted(entry.name for entry in folder.iterdir())
    classes = {}
    for name in names:
        if (folder / name).is_dir() and not name.startswith("."):
            _check_name(folder / name)
            classes[name] = _images(root, folder / name)
    if not classes:
        raise DataError(f"{folder} has no class folders; {_listed('it holds', names)}: put images into folder/class/")
    return classes


def _images(root, folder):
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(root)
        if path.is_dir() or any(piece.startswith(".") for piece in path.relative_to(folder).parts):
            continue
        if path.suffix.lower() in SUFFIXES:
            _check_name(path)
            files.append(relative.as_posix())
        elif path.suffix.lower() not in NOT_IMAGES:
            allowed = " ".join(sorted(SUFFIXES))
            raise DataError(f"{path} is not an image of a known kind ({allowed}); convert it or move it away")
    if not files:
        raise DataError(f"class {folder.name!r} ({folder}) holds no image; add images or remove the folder")
    return files


def _held_out(name, files, fraction, generator):
    if not 0 < fraction < 1:
        raise DataError(f"validation_fraction is {fraction}; it must lie between 0 and 1, both excluded")
    if len(files) < 2:
        raise DataError(f"class {name!r} has one image only and cannot be split; add images or a validation/ folder")
    count = min(max(round(fraction * len(files)), 1), len(files) - 1)
    return {files[index] for index in generator.permutation(len(files))[:count]}


def _check_name(path):
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: the name is not UTF-8; rename it") from None


def _number(text, column, where):
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: column '{column}' holds {text!r}, not a number")
    return value


def _listed(lead, names):
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"{lead} {shown}" if names else f"{lead} nothing"
