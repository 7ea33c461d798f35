"""The prepared form of a data set: arrays of one image size, written once and then read by every stage.

dataset.json            what it is: name, kind, image_size, geometry, classes, part_names, counts ...
species.yaml            birds only: the catalogue the images were drawn from
train/, validation/     images.npy uint8 (N,3,S,S) · labels.npy int64 (N,) · parts.npy uint8 (N,S,S), birds only
                        boxes.csv image,x0,y0,x1,y1 in prepared pixels · files.csv index,file (birds: species:seed)
"""

import csv
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from xai_utils.datasets import birds, on_disk
from xai_utils.datasets.catalogue import PARTS, differing_parts, load_catalogue
from xai_utils.datasets.errors import DataError

CATALOGUE = "species.yaml"
SPLITS = ("train", "validation")
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
    seed=0,
):
    """Write the prepared form of `source` into `folder` and return its description (the content of dataset.json).

    A source with `species.yaml` is drawn: `train_per_class` and `validation_per_class` images per species. Any other
    source is an image folder (see `on_disk`); the two numbers are then caps (a seeded subset of each class; None:
    all), and `validation_fraction` is held out where the folder itself holds nothing out. `inclusive_boxes`:
    its boxes.csv names the last pixels inside (Tiny ImageNet, Pascal VOC) instead of half-open boxes (None: see
    `on_disk.read_boxes`).

    geometry "crop": shorter side to round(image_size * 256 / 224), then the middle; "squash": both sides to
    image_size, proportions lost. Bilinear, antialiased. Boxes follow, clipped; a box left without area is dropped.

    Same source, options and seed: the same bytes. An earlier prepared form in `folder` is replaced, and only when the
    new one is complete; a failure (DataError for bad data, ValueError for a bad option) leaves `folder` as it was.
    """
    source, folder = Path(source), Path(folder)
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry is {geometry!r}; allowed are {', '.join(GEOMETRIES)}")
    numbers = {"train_per_class": train_per_class, "validation_per_class": validation_per_class}
    for name, value in {"image_size": image_size, **numbers}.items():
        if (value is None and name == "image_size") or (value is not None and value < 1):
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if source.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(f"{folder} lies inside its source {source}; give a folder outside, such as build/data")
    if folder.exists() and any(folder.iterdir()) and not (folder / "dataset.json").is_file():
        raise ValueError(f"{folder} holds other files and would be replaced; give a new or empty folder")

    temporary, earlier = (folder.parent / f".{folder.name}.{os.getpid()}.{word}" for word in ("partial", "earlier"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if (source / CATALOGUE).is_file():
            description = _write_birds(source, temporary, image_size, numbers, seed)
        else:
            found = on_disk.find_images(source, validation_fraction=validation_fraction, seed=seed)
            boxes = on_disk.read_boxes(source, dict(found.train + found.validation), inclusive=inclusive_boxes)
            description = _write_folder(found, boxes, temporary, image_size, geometry, numbers, seed)
        (temporary / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(earlier)
        temporary.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # there only after a failure
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
    names, counts = list(catalogue.species), {}
    for split in SPLITS:
        count = numbers[f"{split}_per_class"]
        wanted = [
            (name, label, bird_seed(seed, split, label, number, len(names)))
            for label, name in enumerate(names)
            for number in range(count)
        ]

        def draw(wanted=wanted):
            for name, _, image_seed in wanted:
                bird = birds.render(catalogue, name, image_seed, size=size)
                yield bird.image, np.array([bird.box], dtype=np.float64), bird.parts

        files = [f"{name}:{image_seed}" for name, _, image_seed in wanted]
        _write_split(folder / split, draw(), files, [label for _, label, _ in wanted], size, parts=True)
        counts[split] = len(wanted)
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
    }


def _write_folder(found, boxes, folder, size, geometry, numbers, seed):
    counts, annotated = {}, set()
    for number, split in enumerate(SPLITS):
        wanted = _capped(getattr(found, split), numbers[f"{split}_per_class"], [seed, number])

        def decode(wanted=wanted):
            for file, label in wanted:
                image = on_disk.read_image(found.root / file)
                own = boxes.get(file, np.zeros((0, 4)))
                on_disk.check_boxes(own, file, image.size)
                image, own = fit(image, own, size, geometry)
                if len(own):
                    annotated.add(label)
                yield np.asarray(image), own, None

        files, labels = [file for file, _ in wanted], [label for _, label in wanted]
        _write_split(folder / split, decode(), files, labels, size, parts=False)
        counts[split] = len(wanted)
    return {
        "name": found.root.resolve().name,
        "kind": "image_folder",
        "image_size": size,
        "geometry": geometry,
        "seed": seed,
        "classes": list(found.classes),
        "part_names": [],
        "differing_parts": {},
        "annotated_classes": [found.classes[label] for label in sorted(annotated)],
        "counts": counts,
    }


def fit(image, boxes, size, geometry):
    """Bring a PIL image to size x size and its boxes (k, 4) along; returns both, see `prepare` for the geometries.

    x' = x * width' / width - left, with width' the resized width and left = round((width' - size) / 2) cut off.
    """
    width, height = image.size
    if geometry == "squash":
        resized = (size, size)
    else:
        short = round(size * 256 / 224)
        resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (round((side - size) / 2) for side in resized)
    scale_x, scale_y = resized[0] / width, resized[1] / height
    # Only the crop is computed, out of the pixels it needs: a very long image costs no more than a square one.
    window = (left / scale_x, top / scale_y, (left + size) / scale_x, (top + size) / scale_y)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=window)
    boxes = np.clip(boxes * [scale_x, scale_y, scale_x, scale_y] - [left, top, left, top], 0, size)
    return image, boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _capped(images, cap, seed):
    if cap is None:
        return sorted(images, key=lambda image: (image[1], image[0]))
    by_label = defaultdict(list)
    for file, label in images:
        by_label[label].append((file, label))
    kept = []
    for label in sorted(by_label):
        order = np.random.default_rng([*seed, label]).permutation(len(by_label[label]))[:cap]
        kept += [by_label[label][index] for index in sorted(order)]
    return kept


def _write_split(folder, pictures, files, labels, size, *, parts):
    """Stream `pictures`, (image (S,S,3), boxes (k,4), parts (S,S) or None) one at a time, into the split's arrays."""
    folder.mkdir()
    create = np.lib.format.open_memmap
    images = create(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(files), 3, size, size))
    part_maps = None
    if parts:
        part_maps = create(folder / "parts.npy", mode="w+", dtype=np.uint8, shape=(len(files), size, size))
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("image", "x0", "y0", "x1", "y1"))
        for index, (image, boxes, part_map) in enumerate(pictures):
            images[index] = image.transpose(2, 0, 1)
            if parts:
                part_maps[index] = part_map
            rows.writerows([index, *map(repr, map(float, box))] for box in boxes)
    for array in (images, part_maps):
        if array is not None:
            array.flush()
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    with (folder / "files.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("index", "file"))
        rows.writerows(enumerate(files))


def require_prepared(folder):
    """The description in `folder`/dataset.json; DataError where `folder` is not the prepared form of a data set."""
    path = Path(folder) / "dataset.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} is not a prepared data set (no dataset.json); run the stage prepare_data") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); run the stage prepare_data again") from error
