"""Files that are whole or not there, names that stay in their folder, and hashes that stand for files."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"  # suffix of a file that is still being written
FILE_NAME = re.compile(r"\w(?:[\w.+-]{0,98}[\w+-])?")
DEVICES = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")  # no files on Windows, whatever the suffix


def inside(folder: Path, name: str | Path) -> Path:
    """`folder` / `name` without detours and links below `folder`: one path for all spellings of one place.

    ValueError for a `name` that is absolute or not below the folder, by `..` or by a link; it need not exist.
    """
    home, plain = Path(folder).resolve(), os.path.normpath(name)
    try:
        place = (home / plain).resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, or a name that no file can have
        place = home
    if os.path.isabs(name) or plain.split(os.sep)[0] == os.pardir or home not in place.parents:
        raise ValueError(
            f"{str(name)!r} is no path inside {folder}/; give one relative to it, not above it by .. or a link"
        )
    return Path(folder) / place.relative_to(home)


def file_name(name: str) -> str:
    """`name`, where a file can be called so on every system; ValueError where it cannot, or is no text."""
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name) or DEVICES.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a file; give up to 100 letters, digits and _ - . +, not one of the last "
            "three first, no . last, and no name of a device (con, nul, …)"
        )
    return name


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
