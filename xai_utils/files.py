"""Files that are whole or not there, and hashes that stand for them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"  # suffix of a file that is still being written


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary_path)` make a file, bring it to the disk, then put it at `path` in one step.

    After an error or a kill `path` holds what it held before. An error leaves no temporary file; a kill may leave
    one, `path` + ".partial", which the next call replaces.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        _to_disk(partial, os.O_RDWR)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself must reach the disk too
        _to_disk(path.parent, os.O_RDONLY)


def _to_disk(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(facts) -> str:
    """20 hexadecimal digits that stand for `facts`, any value that JSON can hold (no NaN)."""
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def files_fingerprint(*places) -> str:
    """One hash of all files, and of all files in the folders, that exist."""
    digest, places = hashlib.sha256(), [Path(place) for place in places]
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    for file in sorted(files):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def inside(folder: Path, name: str | Path) -> Path:
    """`folder` / `name` without detours and links below `folder`: one path for all spellings of one place.

    ValueError for a `name` that is absolute or leaves the folder, by `..` or by a link; it need not exist.
    """
    plain = os.path.normpath(name)
    home = Path(folder).resolve()
    place = (home / plain).resolve()
    if os.path.isabs(name) or plain.split(os.sep)[0] == os.pardir or not place.is_relative_to(home):
        raise ValueError(
            f"{str(name)!r} leads out of {folder}; give a path relative to it, without leading '..' or links elsewhere"
        )
    return Path(folder) / place.relative_to(home)
