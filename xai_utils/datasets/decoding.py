"""Decodes the images of a split, shard by shard, by several processes; what is done is kept for a run that goes on.

images.npy      uint8 (N,3,S,S): the test crops, where nothing else is stored
whole/00000.npy uint8 (P,3): the pixels of a shard's images, each whole, row after row, one image after the other
shards/         what is known of each shard that is done: of which files it was made, their sizes or why there is none
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from xai_utils.datasets import on_disk
from xai_utils.datasets.errors import CorruptImage
from xai_utils.datasets.fitting import resized, stored_shape, window
from xai_utils.datasets.prepared import shard_file
from xai_utils.files import fingerprint, write_atomically, write_json
from xai_utils.processes import die_with
from xai_utils.progress import Progress

SHARD = 512  # images: some 130 MB, whole, at 256 pixels


@dataclass(frozen=True)
class Form:
    """What is kept of an image: the test crop alone, or all of it with its shorter side at `stored_size`."""

    image_size: int
    geometry: str
    stored_size: int | None = None
    banner: int = 0  # rows at the bottom that are cut off

    def pixels(self, image):
        """uint8 (H,W,3) of an upright PIL image."""
        width, height = image.width, image.height - self.banner
        if self.stored_size is None:
            image = resized(image, self.image_size, window(width, height, self.image_size, self.geometry))
        else:
            shape = stored_shape(width, height, self.stored_size)
            image = image.resize(shape, Image.Resampling.BILINEAR, box=(0, 0, width, height))
        return np.asarray(image)


def decode(
    root: Path,
    files: Sequence[str],
    folder: Path,
    form: Form,
    *,
    processes: int = 1,
    log: Callable[[str], object] | None = None,
) -> list[tuple[int, int] | str]:
    """Decode the `files` below `root` into `folder`; of each its upright (width, height), or why it is not readable.

    Without a stored size the folder's images.npy is there and as long as `files`. A shard that an earlier call has
    done, of the same files (by size and time of change) and in the same form, is not done again. Neither the number of
    `processes` nor such a call changes a byte. `log` gets a line whenever a shard is done.
    """
    root, folder, told, progress = Path(root), Path(folder), {}, Progress(len(files))
    shards = {start: files[start : start + SHARD] for start in range(0, len(files), SHARD)}
    for start, own in shards.items():
        made_from = fingerprint([asdict(form), start, [_stamp(root, file) for file in own]])
        found = _done(folder, start, made_from, whole=form.stored_size is not None)
        shards[start] = own, made_from
        if found is not None:
            told[start] = found

    def finish(start, sizes):
        told[start] = sizes
        write_json(_record(folder, start), {"made_from": shards[start][1], "images": sizes})
        if log is not None:
            log(f"decoded images: {progress(sum(map(len, told.values())))}")

    waiting = [(start, own) for start, (own, _) in shards.items() if start not in told]
    if processes == 1 or len(waiting) < 2:
        for start, own in waiting:
            finish(start, _decode_shard(root, own, folder, form, start))
    else:
        begin = {"mp_context": get_context("spawn"), "initializer": die_with, "initargs": (os.getpid(),)}
        with ProcessPoolExecutor(min(processes, len(waiting)), **begin) as pool:
            jobs = {pool.submit(_decode_shard, root, own, folder, form, start): start for start, own in waiting}
            try:
                for job in as_completed(jobs):
                    finish(jobs[job], job.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [each if isinstance(each, str) else tuple(each) for start in shards for each in told[start]]


def _record(folder, start):
    return folder / "shards" / f"{start // SHARD:05}.json"


def _stamp(root, file):
    about = (root / file).stat()
    return [file, about.st_size, about.st_mtime_ns]


def _done(folder, start, made_from, *, whole):
    """What is known of a shard that is done; None where it is not, or not of these files in this form."""
    try:
        record = json.loads(_record(folder, start).read_bytes())
    except (OSError, ValueError):
        return None
    there = not whole or shard_file(folder, start // SHARD).is_file()
    return record["images"] if record["made_from"] == made_from and there else None


def _decode_shard(root, files, folder, form, start):
    """Decode some files, whose first is the `start`-th of the split; their sizes, or why they are not readable."""
    whole, told = [], []
    rows = None if form.stored_size else np.lib.format.open_memmap(folder / "images.npy", "r+")
    for place, file in enumerate(files, start):
        try:
            image = on_disk.read_image(root / file)
        except CorruptImage as error:
            told.append(str(error))
            continue
        told.append(image.size)
        pixels = form.pixels(image)
        if rows is None:
            whole.append(pixels.reshape(-1, 3))
        else:
            rows[place] = pixels.transpose(2, 0, 1)
    if rows is not None:
        rows.flush()
        return told
    pixels = np.concatenate([*whole, np.zeros((0, 3), np.uint8)])

    def save(partial):
        with partial.open("wb") as file:  # numpy would add .npy to a name
            np.save(file, pixels)

    write_atomically(shard_file(folder, start // SHARD), save, size=pixels.nbytes)
    return told
