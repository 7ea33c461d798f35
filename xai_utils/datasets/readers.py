"""Readers of published data sets, each of the layout that its archives unpack to: folder -> `on_disk.Listing`.

torchvision reads most of these too, but keeps the files' paths private, knows no boxes, and holds lists to the checksum
of the whole set; so they have readers here, which the tests hold against torchvision's. A file that is not there is a
FileNotFoundError with its path.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from xai_utils.datasets import on_disk
from xai_utils.datasets.errors import DataError, MissingData
from xai_utils.datasets.folders import LeftOut, classes_in
from xai_utils.datasets.on_disk import Listing

ANNOTATION_LEVELS = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}
BANNER = 20  # rows of copyright at the bottom of each picture of aircraft, which its authors ask to cut off
BLACKLISTS = ("*devkit*/data/*validation_blacklist.txt", "*validation_blacklist.txt")  # the same in every year


def read_cub(root):
    """CUB-200-2011: its test images are held out (AKD validates on them too); boxes are x, y, width, height."""
    classes = tuple(name for _, name in _table(root / "classes.txt", 2))
    labels, training = (dict(_table(root / f"{name}.txt", 2)) for name in ("image_class_labels", "train_test_split"))
    corners = {number: map(float, box) for number, *box in _table(root / "bounding_boxes.txt", 5)}
    splits, boxes = {"1": [], "0": []}, {}
    for number, name in _table(root / "images.txt", 2):
        file, (x, y, width, height) = f"images/{name}", corners[number]
        splits[training[number]].append((file, int(labels[number]) - 1))
        boxes[file] = np.array([[x, y, x + width, y + height]])
    return Listing(root, classes, splits["1"], splits["0"], boxes=_boxes_of(boxes))


def read_cars(root):
    """Stanford Cars: the test images are held out; the boxes' first and last pixels count from 1."""
    classes = tuple(map(str, loadmat(_there(root / "devkit/cars_meta.mat"), squeeze_me=True)["class_names"]))
    answers = [root / "cars_test_annos_withlabels.mat", root / "devkit/cars_test_annos_withlabels.mat"]
    answers = next((path for path in answers if path.is_file()), answers[0])
    splits, boxes = [], {}
    for path, folder in ((root / "devkit/cars_train_annos.mat", "cars_train"), (answers, "cars_test")):
        splits.append([])
        for row in np.atleast_1d(loadmat(_there(path), squeeze_me=True)["annotations"]):
            file = f"{folder}/{row['fname']}"
            splits[-1].append((file, int(row["class"]) - 1))
            corners = [float(row[f"bbox_{name}"]) for name in ("x1", "y1", "x2", "y2")]
            boxes[file] = np.array([corners]) - [1, 1, 0, 0]
    return Listing(root, classes, *splits, boxes=_boxes_of(boxes))


def read_aircraft(root, *, annotation_level=None):
    """FGVC-Aircraft: train and val are merged, test is held out (AKD's 6,667 and 3,333 images).

    `annotation_level`: variant (None), family or manufacturer. Boxes' first and last pixels count from 1.
    """
    level, data = annotation_level or "variant", root / "data"
    classes = tuple(name.strip() for (name,) in _table(data / f"{ANNOTATION_LEVELS[level]}.txt", 1))
    place, splits = {name: label for label, name in enumerate(classes)}, []
    for names in (("train", "val"), ("test",)):
        rows = [row for name in names for row in _table(data / f"images_{level}_{name}.txt", 2)]
        unknown = next((name for _, name in rows if name not in place), None)
        if unknown:
            raise DataError(f"{data}: {unknown!r} is not in {ANNOTATION_LEVELS[level]}.txt; unpack the set again")
        splits.append([(f"data/images/{image}.jpg", place[name]) for image, name in rows])
    rows = _table(data / "images_box.txt", 5)
    boxes = {f"data/images/{row[0]}.jpg": np.array([row[1:]], dtype=np.float64) - [1, 1, 0, 0] for row in rows}
    return Listing(root, classes, *splits, boxes=_boxes_of(boxes), banner=BANNER)


def read_imagenet(root, *, drop_blacklisted=False):
    """ImageNet (ILSVRC 2012): train/SYNSET/ and val/, flat or sorted by synset, at the root or in Data/CLS-LOC/.

    Boxes, and the classes of a flat val/, come from the XML files in Annotations/ (or Annotations/CLS-LOC/).
    `drop_blacklisted`: without the 1,762 validation images that the developers' kit discards (AKD: 48,238 are left).
    """
    images = root / "Data/CLS-LOC" if (root / "Data/CLS-LOC").is_dir() else root
    notes = root / "Annotations/CLS-LOC" if (root / "Annotations/CLS-LOC").is_dir() else root / "Annotations"
    left_out = LeftOut()
    train = classes_in(root, images / "train", left_out) if (images / "train").is_dir() else {}
    if any(path.is_dir() for path in _there(images / "val").iterdir()):
        validation = classes_in(root, images / "val", left_out)
        labelled = [(file, name) for name, files in validation.items() for file in files]
    else:
        files = [path.relative_to(root).as_posix() for path in sorted((images / "val").glob("*.JPEG"))]
        labelled = [(file, _synset(_there(notes / "val" / f"{Path(file).stem}.xml"))) for file in files]
    if drop_blacklisted:
        blacklist = next((path for pattern in BLACKLISTS for path in sorted(root.glob(pattern))), None)
        if blacklist is None:
            raise MissingData(
                f"{root} has no blacklist; unpack ILSVRC2014_devkit.tgz there (ILSVRC2014_devkit/data/"
                "ILSVRC2014_clsloc_validation_blacklist.txt) or set drop_blacklisted: false"
            )
        blacklisted = {int(number) for (number,) in _table(blacklist, 1)}
        labelled = [(file, name) for file, name in labelled if _number(file) not in blacklisted]
    classes = tuple(sorted(train)) or tuple(sorted({name for _, name in labelled}))
    place = {name: label for label, name in enumerate(classes)}
    unknown = next((name for _, name in labelled if name not in place), None)
    if unknown:
        raise DataError(f"{root}: class {unknown!r} is in val/ but not in train/; both need the same classes")
    held_out = dict(labelled)
    synset = held_out | {file: name for name, files in train.items() for file in files}

    def boxes(file, size):
        folder = notes / "val" if file in held_out else notes / "train" / synset[file]
        xml = folder / f"{Path(file).stem}.xml"
        return _xml_boxes(xml, size, first=0, name=synset[file]) if xml.is_file() else on_disk.no_boxes(file, size)

    train = [(file, place[name]) for name in classes for file in train.get(name, ())]
    validation = [(file, place[name]) for file, name in labelled]
    return Listing(root, classes, train, validation, boxes=boxes, left_out=left_out)


def read_places(root):
    """Places365-Standard by its lists: large or small (256) images; val is held out, for test has no labels."""
    rows = sorted(_table(root / "categories_places365.txt", 2), key=lambda row: int(row[1]))
    splits = []
    for name, folders in (
        ("places365_train_standard.txt", ("data_256", "data_256_standard", "data_large", "data_large_standard")),
        ("places365_val.txt", ("val_256", "val_large")),
    ):
        folder = next((folder for folder in folders if (root / folder).is_dir()), folders[0])
        rows_of_split = _table(root / name, 2)
        splits.append([(f"{folder}/{file.lstrip('/')}", int(label)) for file, label in rows_of_split])
    return Listing(root, tuple(name for name, _ in rows), *splits)


def read_cowc(root):
    """COWC's counting patches: the class is the number of cars seen, test patches are held out (FastCAM, Table 1)."""
    lists = [_table(root / f"COWC_{split}_list_64_class.txt", 2) for split in ("train", "test")]
    counts = sorted({int(count) for rows in lists for _, count in rows})
    place = {count: label for label, count in enumerate(counts)}
    splits = [[(file, place[int(count)]) for file, count in rows] for rows in lists]
    return Listing(root, tuple(map(str, counts)), *splits)


def read_pets(root):
    """Oxford-IIIT Pet: test is held out; trimaps are part masks, and boxes are the published ones of the heads.

    An image without a published box, as all test images are, has the one around the animal in its trimap.
    """
    notes, splits, names = root / "annotations", [], {}
    for split in ("trainval", "test"):
        rows = _table(notes / f"{split}.txt", 4)
        splits.append([(f"images/{image}.jpg", int(label) - 1) for image, label, *_ in rows])
        names |= {int(label) - 1: image.rsplit("_", 1)[0] for image, label, *_ in rows}
    place = {label: number for number, label in enumerate(sorted(names))}
    splits = [[(file, place[label]) for file, label in split] for split in splits]
    trimaps = {file: _there(notes / "trimaps" / f"{Path(file).stem}.png") for split in splits for file, _ in split}

    def trimap(file):
        path = trimaps[file]
        try:
            with Image.open(path, formats=("PNG",)) as image:
                return np.asarray(image.convert("L"))
        except OSError as error:
            raise DataError(f"{path}: not a readable trimap ({error}); unpack annotations.tar.gz again") from error

    def boxes(file, size):
        xml = notes / "xmls" / f"{Path(file).stem}.xml"
        if xml.is_file():
            return _xml_boxes(xml, size, first=1)
        rows, columns = np.nonzero(trimap(file) != 2)
        if not len(rows):
            return on_disk.no_boxes(file, size)
        return np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=np.float64)

    def parts(file):  # 1 the animal, 2 the background, 3 the outline, where annotators may differ
        return Image.fromarray(np.array([0, 1, 0, 2], dtype=np.uint8)[trimap(file)])

    classes = tuple(names[label] for label in sorted(names))
    return Listing(root, classes, *splits, boxes=boxes, parts=parts, part_names=("animal", "outline"))


def _table(path, columns):
    """The lines of a text file as lists of `columns` words, the last of which may contain spaces."""
    rows = []
    for number, line in enumerate(_there(path).read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            rows.append(line.strip().split(maxsplit=columns - 1))
            if len(rows[-1]) != columns:
                raise DataError(f"{path} line {number}: {line!r} has not {columns} columns; unpack the set again")
    return rows


def _there(path):
    if not path.exists():
        raise FileNotFoundError(2, "is missing", str(path))
    return path


def _boxes_of(boxes):
    """Listing.boxes from a dict file -> (k, 4): cut at the image's edge, for published boxes reach a pixel beyond."""

    def cut(file, size):
        return np.clip(boxes.get(file, np.zeros((0, 4))), 0, [*size, *size])

    return cut


def _number(file):
    return int(Path(file).stem.rsplit("_", 1)[-1])


def _synset(xml):
    return _parsed(xml).findtext("object/name")


def _parsed(xml):
    try:
        return ElementTree.parse(xml)
    except ElementTree.ParseError as error:
        raise DataError(f"{xml}: not a readable annotation ({error}); unpack the annotations again") from error


def _xml_boxes(xml, size, *, first, name=None):
    """The boxes of a Pascal VOC file, of objects called `name` (None: all); `first`: the number of the first pixel.

    They are numbered in the image of the file's own size; where the image is of another one, they are scaled.
    """
    tree = _parsed(xml)
    try:
        width, height = (int(tree.findtext(f"size/{word}")) for word in ("width", "height"))
        scale = [size[0] / width, size[1] / height]
        boxes = [
            [float(each.findtext(f"bndbox/{word}")) for word in ("xmin", "ymin", "xmax", "ymax")]
            for each in tree.iter("object")
            if name in (None, each.findtext("name"))
        ]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{xml}: an annotation without size or box ({error}); unpack the annotations again") from error
    inside = np.array(boxes).reshape(-1, 4) - np.array([first, first, first - 1, first - 1])
    return np.clip(inside * [*scale, *scale], 0, [*size, *size])
