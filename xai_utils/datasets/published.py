"""Data sets in the layout in which they were published: recognised by their files, read with their own splits."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.io.matlab import MatReadError

from xai_utils.datasets import csv_files, on_disk, readers
from xai_utils.datasets.errors import DataError, MissingData
from xai_utils.datasets.folders import is_flat
from xai_utils.datasets.prepared import CATALOGUE


@dataclass(frozen=True)
class Layout:
    """One published layout: its folder has one of `marks` in it; `obtain` says what to unpack where."""

    title: str
    folder: str  # what its archives unpack to
    marks: tuple[str, ...]
    read: Callable
    obtain: str
    options: tuple[str, ...] = ()
    every_class: bool = True  # in each split


LAYOUTS = {
    "cub": Layout(
        "CUB-200-2011",
        "CUB_200_2011",
        ("train_test_split.txt", "image_class_labels.txt"),
        readers.read_cub,
        "unpack CUB_200_2011.tgz so that {root}/images.txt and {root}/images/ exist",
    ),
    "cars": Layout(
        "Stanford Cars",
        "stanford_cars",
        ("devkit/cars_meta.mat", "cars_train", "cars_test"),
        readers.read_cars,
        "unpack cars_train.tgz, cars_test.tgz and car_devkit.tgz in {root}/ and put cars_test_annos_withlabels.mat "
        "there",
    ),
    "aircraft": Layout(
        "FGVC-Aircraft",
        "fgvc-aircraft-2013b",
        ("data/images_variant_*.txt", "data/variants.txt", "data/images_box.txt"),
        readers.read_aircraft,
        "unpack fgvc-aircraft-2013b.tar.gz so that {root}/data/images/ and {root}/data/variants.txt exist",
        ("annotation_level",),
    ),
    "pets": Layout(
        "Oxford-IIIT Pet",
        "oxford-iiit-pet",
        ("annotations/trainval.txt", "annotations/trimaps", "annotations/xmls"),
        readers.read_pets,
        "unpack images.tar.gz and annotations.tar.gz in {root}/",
    ),
    "imagenet": Layout(
        "ImageNet (ILSVRC 2012)",
        "ILSVRC",
        ("Data/CLS-LOC", "Annotations/CLS-LOC", "Annotations/val", "val/ILSVRC2012_val_*", "val/n*/ILSVRC2012_val_*"),
        readers.read_imagenet,
        "unpack ILSVRC2012_img_train.tar into {root}/train/SYNSET/, ILSVRC2012_img_val.tar into {root}/val/ and "
        "ILSVRC2012_bbox_val_v3.tgz into {root}/Annotations/ (or unpack Kaggle's archive, which has them all)",
        ("drop_blacklisted",),
    ),
    "places": Layout(
        "Places365-Standard",
        "places365",
        ("categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"),
        readers.read_places,
        "unpack filelist_places365-standard.tar, train_256_places365standard.tar (into data_256/) and val_256.tar in "
        "{root}/",
    ),
    "cowc": Layout(
        "COWC (counting)",
        "cowc",
        ("COWC_*_list_64_class.txt*", "COWC_Counting_*.tbz"),
        readers.read_cowc,
        "unpack COWC_train_list_64_class.txt.bz2, COWC_test_list_64_class.txt.bz2 and every COWC_Counting_*.tbz in "
        "{root}/",
        every_class=False,  # rare counts
    ),
}


def find(root, *, validation_fraction, seed, inclusive_boxes=None, annotation_level=None, drop_blacklisted=False):
    """List the data set in `root`: one of LAYOUTS there or in the folder of its name inside, or an image folder.

    `annotation_level` (FGVC-Aircraft) and `drop_blacklisted` (ImageNet) are read_aircraft's and read_imagenet's;
    `inclusive_boxes` is `csv_files.read_boxes`', and that and `validation_fraction` with `seed` matter for image
    folders. ValueError for an option that is another data set's, MissingData, with what to unpack where, for what is
    not there, DataError for a class without images.
    """
    root = Path(root)
    options = {"annotation_level": annotation_level, "drop_blacklisted": drop_blacklisted}
    given = {name: value for name, value in options.items() if value}
    kind, place = recognised(root)
    if kind is None:
        require_no_options(root, options, "an image folder")
        try:
            found = on_disk.find_images(root, validation_fraction=validation_fraction, seed=seed)
        except DataError as error:
            raise type(error)(f"{error}{advice(root)}") from None
        files = dict(found.train + found.validation)
        boxes = csv_files.read_boxes(root, files, found.left_out, inclusive=inclusive_boxes)
        return replace(found, boxes=csv_files.checked(boxes))
    layout = LAYOUTS[kind]
    require_no_options(root, {name: options[name] for name in options if name not in layout.options}, layout.title)
    obtain = layout.obtain.format(root=place)
    try:
        found = replace(layout.read(place, **given), kind=kind)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingData(f"{error.filename} is missing, which {layout.title} needs; {obtain}") from None
    except (ValueError, TypeError, LookupError, OSError, MatReadError, NotImplementedError) as error:
        raise DataError(f"{place}: its lists are not those of {layout.title} ({error}); {obtain}") from error
    _check(found, layout, obtain)
    return found


def recognised(root):
    """(name in LAYOUTS, folder) of the published data set in `root` or in its own folder inside; (None, root)."""
    for kind, layout in LAYOUTS.items():
        for place in (root, root / layout.folder):
            if place.is_dir() and any(next(place.glob(mark), None) for mark in layout.marks):
                return kind, place
    return None, root


def without_labels(root):
    """Whether `root` holds images in one folder and nothing that tells their classes."""
    tells = (root / name for name in (csv_files.LABELS, CATALOGUE))
    return root.is_dir() and is_flat(root) and not any(map(Path.is_file, tells)) and recognised(root)[0] is None


def advice(root):
    """What to unpack where, for a `root` that is not there but is called like the folder of a published data set."""
    for layout in LAYOUTS.values():
        if Path(root).name.lower() == layout.folder.lower():
            return f"; for {layout.title}: {layout.obtain.format(root=root)}"
    return ""


def require_no_options(root, options, title):
    """ValueError where one of `options` (name -> value), which are other data sets', is given."""
    for name in (name for name in options if options[name]):
        value = options[name]
        owners = ", ".join(layout.title for layout in LAYOUTS.values() if name in layout.options)
        raise ValueError(f"{name} is {value!r}, but {root} is {title}; it is for {owners} alone, leave it out here")


def _check(found, layout, obtain):
    """The listed images exist, labels are those of classes, and each class has images in each split."""
    listed = found.train + found.validation
    wrong = next((file for file, label in listed if not 0 <= label < len(found.classes)), None)
    if wrong:
        raise DataError(f"{found.root}: {wrong} has a class that is not in the list of {len(found.classes)}; {obtain}")
    if layout.read is not readers.read_imagenet:  # whose list is what lies there
        missing = [file for file, _ in listed if not (found.root / file).is_file()]
        if missing:
            raise MissingData(
                f"{len(missing)} of the {len(listed)} images that {layout.title} lists are missing, e.g. "
                f"{found.root / missing[0]}; {obtain}"
            )
    for name, split in (("training", found.train), ("held-out", found.validation)):
        counted = Counter(label for _, label in (split if layout.every_class else listed))
        empty = [each for label, each in enumerate(found.classes) if not counted[label]]
        if empty and (split or name == "held-out"):
            raise DataError(f"{found.root}: class {empty[0]!r} has no {name} image; {obtain}")
