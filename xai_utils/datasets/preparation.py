"""Writes the prepared form of a data set (prepared.py): decoded or drawn once, at one size."""

import csv
import functools
import shutil
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from xai_utils.datasets import birds, decoding, published
from xai_utils.datasets.catalogue import PARTS, differing_parts, load_catalogue
from xai_utils.datasets.errors import CorruptImage, DataError
from xai_utils.datasets.fitting import GEOMETRIES, fit_boxes, resized, stored_shape, window
from xai_utils.datasets.prepared import CATALOGUE, SPLITS, UNLABELLED
from xai_utils.files import fingerprint, held, new_arrays, new_folder, write_json
from xai_utils.progress import Progress


def prepare(
    source,
    folder,
    *,
    image_size,
    geometry="crop",
    stored_size=None,
    train_per_class=None,
    validation_per_class=None,
    validation_fraction=0.2,
    inclusive_boxes=None,
    annotation_level=None,
    drop_blacklisted=False,
    skip_corrupt=False,
    seed=0,
    processes=1,
    kept=None,
    log=None,
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

    `stored_size`: images are stored whole, their shorter side that long (from image_size on); what a training crops is
    cut out of all of that, and the test crop when it is read. Without it the test crop alone is stored, and training
    crops are parts of it. Drawn birds are drawn at image_size, whatever it says.

    `processes` decode, which changes no byte. `kept`: a folder where what is decoded lies until all of it is, so that a
    call that was stopped goes on; `log` gets a line for every few hundred images.

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
    if stored_size is not None and stored_size < image_size:
        raise ValueError(
            f"stored_size is {stored_size}; give {image_size} (image_size) or more, or None: the test crop"
        )
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
            description = _write_birds(source, partial, image_size, numbers, seed, log)
        else:
            found = published.find(
                source,
                validation_fraction=validation_fraction,
                seed=seed,
                inclusive_boxes=inclusive_boxes,
                **options,
            )
            form = decoding.Form(image_size, geometry, stored_size, found.banner)
            place = kept and Path(kept) / fingerprint([str(source.resolve()), asdict(form), seed, numbers])
            decode = functools.partial(decoding.decode, found.root, form=form, processes=processes, log=log)
            with held(place) if place else nullcontext():
                description = _write_images(found, partial, form, place, decode, numbers, seed, skip_corrupt)
        write_json(partial / "dataset.json", description)
    return description


def bird_seed(seed, split, species, number, species_count):
    """The render seed of the `number`-th bird of a species; even for train, odd for validation: never shared.

    It does not depend on how many birds are drawn, so a larger data set begins with the same pictures.
    """
    return (seed << 32) + 2 * (number * species_count + species) + SPLITS.index(split)


def _write_birds(source, folder, size, numbers, seed, log):
    catalogue = load_catalogue(source / CATALOGUE)
    for name, value in numbers.items():
        if value is None:
            raise ValueError(f"{name} is None; for drawn birds give the number of images per species")
    shutil.copyfile(source / CATALOGUE, folder / CATALOGUE)
    names = list(catalogue.species)
    counts = {split: numbers[f"{split}_per_class"] * len(names) for split in SPLITS}
    arrays = _new_splits(folder, counts, size)
    for split in SPLITS:
        wanted = [
            (name, label, bird_seed(seed, split, label, number, len(names)))
            for label, name in enumerate(names)
            for number in range(numbers[f"{split}_per_class"])
        ]
        boxes, progress = [], Progress(len(wanted))
        for index, (name, _, image_seed) in enumerate(wanted):
            bird = birds.render(catalogue, name, image_seed, size=size)
            arrays[split]["images"][index] = bird.image.transpose(2, 0, 1)
            arrays[split]["parts"][index] = bird.parts
            boxes.append(np.array([bird.box], dtype=np.float64))
            if log is not None and (index + 1) % decoding.SHARD == 0:
                log(f"drawn birds, {split}: {progress(index + 1)}")
        for array in arrays[split].values():
            array.flush()
        files = [f"{name}:{image_seed}" for name, _, image_seed in wanted]
        _write_tables(folder / split, files, [label for _, label, _ in wanted], boxes)
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


def _write_images(found, folder, form, kept, decode, numbers, seed, skip_corrupt):
    counts, annotated, corrupt = {}, set(), {}
    chosen = {
        split: _capped(getattr(found, split), numbers[f"{split}_per_class"], [seed, number])
        for number, split in enumerate(SPLITS)
    }
    places = {split: (kept or folder) / split for split in SPLITS}
    parts = _reserve(folder, places, {split: len(wanted) for split, wanted in chosen.items()}, form, found.parts)
    for split, wanted in chosen.items():
        sizes = decode([file for file, _ in wanted], places[split])
        readable = [place for place, size in enumerate(sizes) if not isinstance(size, str)]
        corrupt |= {file: why for (file, _), why in zip(wanted, sizes, strict=True) if isinstance(why, str)}
        labels = [wanted[place][1] for place in readable]
        for label in sorted({label for _, label in wanted} - set(labels)) if skip_corrupt else ():
            raise DataError(f"class {found.classes[label]!r}: none of its images for {split} is readable; replace them")
        if corrupt and not skip_corrupt:
            continue  # all of them are named, and nothing is written
        boxes = [_boxes(found, wanted[place][0], sizes[place], form) for place in readable]
        annotated |= {label for label, own in zip(labels, boxes, strict=True) if len(own)}
        for row, place in enumerate(readable) if parts else ():
            parts[split][row] = _parts(found, wanted[place][0], sizes[place], form)
        _write_pixels(places[split], folder / split, sizes, readable, form)
        _shorten(folder / split / "parts.npy", parts and parts[split], len(readable))
        _write_tables(folder / split, [wanted[place][0] for place in readable], labels, boxes)
        counts[split] = len(labels)
    if corrupt and not skip_corrupt:
        shown = "\n".join(list(corrupt.values())[:10])
        more = f"\n… and {len(corrupt) - 10} more" if len(corrupt) > 10 else ""
        raise CorruptImage(f"{shown}{more}\n{len(corrupt)} corrupt in all; or leave them out with skip_corrupt: true")
    if kept:
        shutil.rmtree(kept)
    return {
        "name": found.root.resolve().name,
        "kind": found.kind,
        "image_size": form.image_size,
        "geometry": form.geometry,
        "seed": seed,
        "classes": list(found.classes),
        "part_names": list(found.part_names),
        "differing_parts": {},
        "annotated_classes": [found.classes[label] for label in sorted(annotated - {UNLABELLED})],
        "counts": counts,
        "skipped": corrupt,
        "left_out": found.left_out.summary(),
    } | ({"stored_size": form.stored_size} if form.stored_size else {})


def _reserve(folder, places, counts, form, parts):
    """Make the folders and arrays of all splits, before any image is decoded; the part maps (N,S,S) of each split."""
    wanted, size = {}, form.image_size
    for split, count in counts.items():
        (folder / split).mkdir()
        places[split].mkdir(parents=True, exist_ok=True)
        if form.stored_size is None and not _has_rows(places[split] / "images.npy", count):
            wanted[places[split] / "images.npy"] = (count, 3, size, size), np.uint8
        if parts:
            wanted[folder / split / "parts.npy"] = (count, size, size), np.uint8
    for split in counts:
        if places[split] / "images.npy" in wanted:  # it holds nothing of what was done
            shutil.rmtree(places[split] / "shards", ignore_errors=True)
    made = new_arrays(wanted) if wanted else {}
    return {split: made[folder / split / "parts.npy"] for split in counts} if parts else {}


def _has_rows(path, count):
    try:
        return len(np.load(path, mmap_mode="r")) == count
    except (OSError, ValueError, EOFError):
        return False


def _boxes(found, file, size, form):
    return fit_boxes(found.boxes(file, size), size, form.image_size, form.geometry, banner=form.banner)


def _parts(found, file, size, form):
    """The part map (S,S) of the test crop of an image of `size` (width, height)."""
    mask = found.parts(file)
    if mask.size != size:
        raise DataError(f"{found.root / file} has {size} pixels and its mask {mask.size}; replace one of them")
    part = window(size[0], size[1] - form.banner, form.image_size, form.geometry)
    return np.asarray(resized(mask, form.image_size, part, Image.Resampling.NEAREST))


def _write_pixels(place, folder, sizes, readable, form):
    """Move what `decode` has made in `place` into the split's folder; with whole images say where each lies."""
    shutil.rmtree(place / "shards", ignore_errors=True)
    if form.stored_size is None:
        _shorten(place / "images.npy", np.load(place / "images.npy", mmap_mode="r"), len(readable), readable)
        _move(place / "images.npy", folder / "images.npy")
        return
    shapes, windows, start = np.zeros((len(readable), 4), np.int64), np.zeros((len(readable), 4)), {}
    for row, index in enumerate(readable):
        width, height = sizes[index][0], sizes[index][1] - form.banner
        stored, shard = stored_shape(width, height, form.stored_size), index // decoding.SHARD
        shapes[row] = shard, start.get(shard, 0), stored[1], stored[0]
        start[shard] = start.get(shard, 0) + stored[0] * stored[1]
        scale = np.tile(np.divide(stored, (width, height)), 2)
        windows[row] = np.multiply(window(width, height, form.image_size, form.geometry), scale)
    np.save(folder / "shapes.npy", shapes)
    np.save(folder / "windows.npy", windows.round(6))  # whole numbers where nothing is to be resized
    (place / "whole").mkdir(exist_ok=True)
    _move(place / "whole", folder / "whole")


def _move(source, target):
    if source != target:
        shutil.move(source, target)


def _shorten(path, array, count, rows=None):
    """Write the array at `path` again with its `rows`, by default the first `count`, where those are fewer."""
    if array is not None and len(array) and count < len(array):
        np.save(path.with_suffix(".shorter.npy"), array[:count] if rows is None else array[rows])
        path.with_suffix(".shorter.npy").replace(path)


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


def _new_splits(folder, counts, size):
    """The arrays of drawn birds, before any is drawn: split -> name -> array of `counts[split]` pictures."""
    shapes = {"images": (3, size, size), "parts": (size, size)}
    for split in counts:
        (folder / split).mkdir()
    wanted = {
        folder / split / f"{name}.npy": ((count, *shape), np.uint8)
        for split, count in counts.items()
        for name, shape in shapes.items()
    }
    made = new_arrays(wanted)
    return {split: {name: made[folder / split / f"{name}.npy"] for name in shapes} for split in counts}


def _write_tables(folder, files, labels, boxes):
    """What a split's images are: their `files`, `labels`, and `boxes` (k,4) of each."""
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("image", "x0", "y0", "x1", "y1"))
        for index, own in enumerate(boxes):
            rows.writerows([index, *map(repr, map(float, box))] for box in own)
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    with (folder / "files.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("index", "file"))
        rows.writerows(enumerate(files))
