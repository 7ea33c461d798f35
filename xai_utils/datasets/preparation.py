"""Writes the prepared form of a data set (prepared.py): decoded or drawn once, at one size."""

import csv
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from xai_utils.datasets import birds, on_disk, published
from xai_utils.datasets.catalogue import PARTS, differing_parts, load_catalogue
from xai_utils.datasets.errors import CorruptImage, DataError
from xai_utils.datasets.prepared import CATALOGUE, SPLITS
from xai_utils.files import new_arrays, new_folder, write_json

GEOMETRIES = ("crop", "squash")


def prepare(
    source,
    folder,
    *,
    image_size,
    geometry="crop",
    train_per_class=None,
    validation_per_class=None,
    validation_fraction=0.2,
    inclusive_boxes=None,
    annotation_level=None,
    drop_blacklisted=False,
    skip_corrupt=False,
    seed=0,
):
    """Write the prepared form of `source` into `folder` and return its description (the content of dataset.json).

    A source with `species.yaml` is drawn: `train_per_class` and `validation_per_class` images per species. Any other
    source is a published data set (`published.LAYOUTS`) or an image folder (`on_disk`); the two numbers are then caps
    (a seeded subset of each class, or of images without labels; None: all), and `validation_fraction` is held out where
    an image folder itself holds nothing out. `inclusive_boxes`: its boxes.csv names the last pixels inside (Tiny
    ImageNet, Pascal VOC) instead of half-open boxes (None: see `csv_files.read_boxes`). `annotation_level` and
    `drop_blacklisted`: see `published.find`. Images that cannot be decoded are all named in one error, or with
    `skip_corrupt` left out and listed in the description as `skipped` (file -> why). What else lies in the source is
    counted there as `left_out` (reason -> count and first name); drawn birds have no such entry.

    geometry "crop": shorter side to round(image_size * 256 / 224), then the middle; "squash": both sides to
    image_size, proportions lost. Bilinear, antialiased. Boxes follow, clipped; a box left without area is dropped.

    Same source, options and seed: the same bytes. An earlier prepared form in `folder` is replaced, and only when the
    new one is complete; a failure (DataError for bad data, ValueError for a bad option) leaves `folder` as it was.
    """
    source, folder = Path(source), Path(folder)
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry is {geometry!r}; allowed are {', '.join(GEOMETRIES)}")
    options = {"annotation_level": annotation_level, "drop_blacklisted": drop_blacklisted}
    numbers = {"train_per_class": train_per_class, "validation_per_class": validation_per_class}
    for name, value in {"image_size": image_size, **numbers}.items():
        if (value is None and name == "image_size") or (value is not None and value < 1):
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if source.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(f"{folder} lies inside its source {source}; give a folder outside, such as build/data")
    if folder.exists() and any(folder.iterdir()) and not (folder / "dataset.json").is_file():
        raise ValueError(f"{folder} holds other files and would be replaced; give a new or empty folder")

    with new_folder(folder) as partial:
        if (source / CATALOGUE).is_file():
            if annotation_level or drop_blacklisted:
                raise ValueError(
                    f"{source} is a catalogue of birds; annotation_level and drop_blacklisted are not for it"
                )
            description = _write_birds(source, partial, image_size, numbers, seed)
        else:
            found = published.find(
                source,
                validation_fraction=validation_fraction,
                seed=seed,
                inclusive_boxes=inclusive_boxes,
                **options,
            )
            description = _write_images(found, partial, image_size, geometry, numbers, seed, skip_corrupt)
        write_json(partial / "dataset.json", description)
    return description


def bird_seed(seed, split, species, number, species_count):
    """The render seed of the `number`-th bird of a species; even for train, odd for validation: never shared.

    It does not depend on how many birds are drawn, so a larger data set begins with the same pictures.
    """
    return (seed << 32) + 2 * (number * species_count + species) + SPLITS.index(split)


def _write_birds(source, folder, size, numbers, seed):
    catalogue = load_catalogue(source / CATALOGUE)
    for name, value in numbers.items():
        if value is None:
            raise ValueError(f"{name} is None; for drawn birds give the number of images per species")
    shutil.copyfile(source / CATALOGUE, folder / CATALOGUE)
    names = list(catalogue.species)
    counts = {split: numbers[f"{split}_per_class"] * len(names) for split in SPLITS}
    arrays = _new_splits(folder, counts, size, parts=True)
    for split in SPLITS:
        wanted = [
            (name, label, bird_seed(seed, split, label, number, len(names)))
            for label, name in enumerate(names)
            for number in range(numbers[f"{split}_per_class"])
        ]

        def draw(wanted=wanted):
            for name, label, image_seed in wanted:
                bird = birds.render(catalogue, name, image_seed, size=size)
                boxes = np.array([bird.box], dtype=np.float64)
                yield f"{name}:{image_seed}", label, bird.image, boxes, bird.parts

        _write_split(folder / split, arrays[split], draw())
    differing = defaultdict(dict)
    for (a, b), parts in differing_parts(catalogue).items():
        differing[a][b] = list(parts)
    return {
        "name": source.resolve().name,
        "kind": "birds",
        "image_size": size,
        "geometry": "drawn",
        "seed": seed,
        "classes": names,
        "part_names": list(PARTS),
        "differing_parts": differing,
        "annotated_classes": names,
        "counts": counts,
        "skipped": {},
    }


def _write_images(found, folder, size, geometry, numbers, seed, skip_corrupt):
    counts, annotated, corrupt = {}, set(), {}
    chosen = {
        split: _capped(getattr(found, split), numbers[f"{split}_per_class"], [seed, number])
        for number, split in enumerate(SPLITS)
    }
    sizes = {split: len(wanted) for split, wanted in chosen.items()}
    arrays = _new_splits(folder, sizes, size, parts=found.parts is not None)
    for split, wanted in chosen.items():

        def decode(wanted=wanted):
            for file, label in wanted:
                try:
                    image, boxes, parts = _decoded(found, file, size, geometry)
                except CorruptImage as error:
                    corrupt[file] = str(error)
                    continue
                if len(boxes):
                    annotated.add(label)
                yield file, label, image, boxes, parts

        labels = _write_split(folder / split, arrays[split], decode())
        counts[split] = len(labels)
        for label in sorted({label for _, label in wanted} - set(labels)) if skip_corrupt else ():
            raise DataError(f"class {found.classes[label]!r}: none of its images for {split} is readable; replace them")
    if corrupt and not skip_corrupt:
        shown = "\n".join(list(corrupt.values())[:10])
        more = f"\n… and {len(corrupt) - 10} more" if len(corrupt) > 10 else ""
        raise CorruptImage(f"{shown}{more}\n{len(corrupt)} corrupt in all; or leave them out with skip_corrupt: true")
    return {
        "name": found.root.resolve().name,
        "kind": found.kind,
        "image_size": size,
        "geometry": geometry,
        "seed": seed,
        "classes": list(found.classes),
        "part_names": list(found.part_names),
        "differing_parts": {},
        "annotated_classes": [found.classes[label] for label in sorted(annotated)],
        "counts": counts,
        "skipped": corrupt,
        "left_out": found.left_out.summary(),
    }


def _decoded(found, file, size, geometry):
    """Image (S,S,3) uint8, boxes (k,4) and parts (S,S) uint8 or None of one file; CorruptImage if it cannot be read."""
    image = on_disk.read_image(found.root / file)
    boxes, parts = found.boxes(file, image.size), None
    if found.parts is not None:
        mask = found.parts(file)
        if mask.size != image.size:
            raise DataError(
                f"{found.root / file} has {image.size} pixels and its mask {mask.size}; replace one of them"
            )
        parts = np.asarray(_fitted(mask, size, geometry, found.banner, Image.Resampling.NEAREST))
    image, boxes = fit(image, boxes, size, geometry, banner=found.banner)
    return np.asarray(image), boxes, parts


def fit(image, boxes, size, geometry, *, banner=0):
    """Bring a PIL image to size x size and its boxes (k, 4) along; returns both, see `prepare` for the geometries.

    `banner` rows at the bottom are cut off before. x' = x * width' / width - left, with width' the resized width and
    left = round((width' - size) / 2) cut off.
    """
    (scale_x, scale_y), (left, top) = _frame(image.width, image.height - banner, size, geometry)
    image = _fitted(image, size, geometry, banner, Image.Resampling.BILINEAR)
    boxes = np.clip(boxes * [scale_x, scale_y, scale_x, scale_y] - [left, top, left, top], 0, size)
    return image, boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _frame(width, height, size, geometry):
    """(scale_x, scale_y) of the resizing and the (left, top) that the crop then cuts off."""
    if geometry == "squash":
        resized = (size, size)
    else:
        short = round(size * 256 / 224)
        resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    return (resized[0] / width, resized[1] / height), tuple(round((side - size) / 2) for side in resized)


def _fitted(image, size, geometry, banner, resampling):
    (scale_x, scale_y), (left, top) = _frame(image.width, image.height - banner, size, geometry)
    # Only the crop is computed, out of the pixels it needs: a very long image costs no more than a square one.
    window = (left / scale_x, top / scale_y, (left + size) / scale_x, (top + size) / scale_y)
    return image.resize((size, size), resampling, box=window)


def _capped(images, cap, seed):
    if cap is None:
        return sorted(images, key=lambda image: (image[1], image[0]))
    by_label = defaultdict(list)
    for file, label in images:
        by_label[label].append((file, label))
    kept = []
    for label in sorted(by_label):
        order = np.random.default_rng([*seed, max(label, 0)]).permutation(len(by_label[label]))[:cap]
        kept += [by_label[label][index] for index in sorted(order)]
    return kept


def _new_splits(folder, counts, size, *, parts):
    """The arrays of all splits, before any picture is made: split -> name -> array of `counts[split]` pictures."""
    shapes = {"images": (3, size, size)} | ({"parts": (size, size)} if parts else {})
    for split in counts:
        (folder / split).mkdir()
    wanted = {
        folder / split / f"{name}.npy": ((count, *shape), np.uint8)
        for split, count in counts.items()
        for name, shape in shapes.items()
    }
    made = new_arrays(wanted)
    return {split: {name: made[folder / split / f"{name}.npy"] for name in shapes} for split in counts}


def _write_split(folder, arrays, pictures):
    """Stream `pictures`, at most as many as the split's `arrays` are long, into them; returns their labels.

    A picture is (file, label, image (S,S,3), boxes (k,4), parts (S,S) or None); one at a time is in memory.
    """
    files, labels = [], []
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("image", "x0", "y0", "x1", "y1"))
        for index, (file, label, image, boxes, part_map) in enumerate(pictures):
            arrays["images"][index] = image.transpose(2, 0, 1)
            if "parts" in arrays:
                arrays["parts"][index] = part_map
            rows.writerows([index, *map(repr, map(float, box))] for box in boxes)
            files.append(file)
            labels.append(label)
    for name, array in arrays.items():
        array.flush()
        if len(files) < len(array):  # some were left out
            np.save(folder / f"{name}.shorter.npy", array[: len(files)])
            (folder / f"{name}.shorter.npy").replace(folder / f"{name}.npy")
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    with (folder / "files.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("index", "file"))
        rows.writerows(enumerate(files))
    return labels
