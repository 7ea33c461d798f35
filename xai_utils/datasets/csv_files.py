"""The two tables that may lie beside images: labels.csv (file, class) and boxes.csv (file, x0, y0, x1, y1).

A file may be spelled as one likes (./cat//0.png), but not lead out of the folder: `_file_of`.
"""

import contextlib
import csv
import math
import posixpath
from collections import defaultdict
from pathlib import Path

import numpy as np

from xai_utils.datasets.errors import DataError
from xai_utils.datasets.folders import SUFFIXES, real_path, walk
from xai_utils.files import inside

LABELS, BOXES = "labels.csv", "boxes.csv"
CLASS_COLUMNS = ("class", "synset", "label")  # the first of these that is there
BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")


def read_labels(root, left_out):
    """The classes of labels.csv at `root`: dict class -> sorted files relative to `root`, in the order of the names.

    Files of the table are relative to `root` or to its images/. DataError names the line of a mistake. Images that the
    table does not name go into `left_out` (folders.LeftOut).
    """
    path, place, lines, places = Path(root) / LABELS, {}, {}, {}
    with _reading(path) as rows:
        column = next((name for name in CLASS_COLUMNS if name in (rows.fieldnames or ())), None)
        if column is None or "file" not in rows.fieldnames:
            raise DataError(f"{path}: the first line must name the columns file and class; it names {rows.fieldnames}")
        for row in rows:
            where, file, name = f"{path} line {rows.line_num}", row["file"], row[column]
            found = _file_of(root, file, where)
            if not name:
                raise DataError(f"{where}: {file} has no class; fill the column '{column}'")
            before = lines.setdefault(real_path(path.parent / found, places), rows.line_num)
            if before != rows.line_num:
                raise DataError(
                    f"{where}: {file} stands there for the second time (line {before}); an image has one class"
                )
            place[found] = name
    if not place:
        raise DataError(f"{path} lists no image; write one line for each")
    for image in walk(path.parent, path.parent, left_out):
        if image.suffix.lower() in SUFFIXES and real_path(image, places) not in lines:
            left_out.note(f"an image that {LABELS} does not name", image.relative_to(root).as_posix())
    classes = {name: [] for name in sorted(set(place.values()))}
    for file in sorted(place):
        classes[place[file]].append(file)
    return classes


def read_boxes(root, files, left_out, *, inclusive=None):
    """The boxes of `boxes.csv` at `root`: dict file -> (k, 4) float array x0, y0, x1, y1, half-open, in pixels.

    `inclusive`: x1, y1 of the file are the last pixels inside (Tiny ImageNet, Pascal VOC); 1 is added to them. None
    finds out: a file with a box of x1 = x0 or y1 = y0 must be inclusive, since half-open that box would be empty.
    Pixels are those of the upright image (EXIF orientation applied). `files` are the images that count; rows for
    other images below `root` go into `left_out` (folders.LeftOut). Without the file: {}. DataError names the line of a
    mistake; boxes within [0, 1] are taken for shares of the image and refused. Whether a box lies inside its image
    shows when the image is read: `checked`.
    """
    path = Path(root) / BOXES
    if not path.exists():
        return {}
    boxes, found, lines = defaultdict(list), [], {}
    places, real = {}, {}  # links are resolved where a row is no image as it is spelled
    with _reading(path) as rows:
        missing = [column for column in BOX_COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: column '{missing[0]}' is missing; the first line must be {','.join(BOX_COLUMNS)}")
        for row in rows:
            where = f"{path} line {rows.line_num}"
            file = _file_of(root, row["file"], where)
            if file not in files:
                real = real or {real_path(path.parent / each, places): each for each in files}
                file = real.get(real_path(path.parent / file, places), file)
            box = [_number(row[column], column, where) for column in BOX_COLUMNS[1:]]
            before = lines.setdefault((file, *box), rows.line_num)
            if before != rows.line_num:
                raise DataError(f"{where}: the box of line {before} of {file} once more; remove one of them")
            found.append((where, file, box))
    if found and all(0 <= value <= 1 for _, _, box in found for value in box):
        raise DataError(
            f"{path}: all boxes lie within 0 and 1, as if they were shares of the image's width and height; give "
            "pixels (x0 and x1 times the width, y0 and y1 times the height)"
        )
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
        else:
            left_out.note(f"a row of {BOXES} for an image that is not used", file)
    return {file: np.array(rows, dtype=np.float64) for file, rows in boxes.items()}


def _file_of(root, file, where):
    """The image that a row means, relative to `root`; DataError for one that is not there, or not below `root`."""
    root, name = Path(root), posixpath.normpath(file or ".")
    if posixpath.isabs(name) or name.split("/")[0] == "..":
        try:
            inside(root, file)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
    for found in (name, f"images/{name}") if Path(name).suffix.lower() in SUFFIXES else ():
        if (root / found).is_file():
            return found
    raise DataError(f"{where}: unknown file {file!r}; files are images, relative to {root} or to its images/, with '/'")


def checked(boxes):
    """`Listing.boxes` from a dict file -> (k, 4); it raises DataError where a box leaves its image."""

    def of(file, size):
        own, (width, height) = boxes.get(file, np.zeros((0, 4))), size
        for box in own:
            if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
                raise DataError(
                    f"{BOXES}: box {box.tolist()} of {file} lies outside its image of {width} x {height} pixels; "
                    "correct the row (x0,y0,x1,y1 in pixels of the upright image, half-open)"
                )
        return own

    return of


@contextlib.contextmanager
def _reading(path):
    """The rows of a CSV file with a header, dicts; DataError where it is not readable."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            yield csv.DictReader(handle)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path}: not a readable UTF-8 CSV file ({error})") from error


def _number(text, column, where):
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: column '{column}' holds {text!r}, not a number")
    return value
