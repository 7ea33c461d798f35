"""What jobs that share many images have in common: which rows are whose, and the file that each leaves."""

import numpy as np

from xai_utils.files import write_atomically


def batches(count: int, size: int) -> list[slice]:
    """The rows 0 … `count` - 1 in slices of `size`, the last of them shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def write_arrays(path, arrays: dict) -> None:
    """Arrays by name in an .npz file at `path`, whole or not at all; not kept beyond a crash: it is read and gone."""

    def save(partial):
        with partial.open("wb") as file:  # savez puts .npz behind the name of a path
            np.savez(file, **arrays)

    write_atomically(path, save, lasting=False)
