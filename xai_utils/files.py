"""Files and folders that are whole or not there, on a disk that may be full; their names, and hashes of them.

What is still being written lies beside its place as `.NAME.01234567.partial`, locked by the process that writes it.
The system takes the lock off when that process ends, however it ends: so `sweep` knows what nobody will ever finish.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing swept
    fcntl = None

MARK = r"\.([^/]+)\.[0-9a-f]{8}\.partial"  # the name of what is still being written
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, no more of one's quota, more than a file may hold
KNOWN = Path(".checkpoints/hashes.json")  # path of a large file -> what the system says of it, its SHA-256
LARGE, SETTLED = 2**24, 3 * 10**9  # bytes; nanoseconds
NOT_SUPPORTED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
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


class DiskFull(OSError):
    """A file does not fit on its disk, into the quota or the allowed size of files."""


def write_atomically(
    path: Path, write: Callable[[Path], object], *, size: int | None = None, lasting: bool = True
) -> None:
    """Let `write(temporary_path)` make a file, bring it to the disk, then put it at `path` in one step.

    After an error or a kill `path` holds what it held before. An error leaves no temporary file; a kill may leave
    one, which the next call sweeps. `size`: the bytes that it needs, said if the disk is full (DiskFull). `lasting`:
    False does not wait for the disk, for what nobody reads after a failure of the machine.
    """
    path = Path(path)
    with writing(path, size), _partial(path, lambda partial: partial.touch(exist_ok=False)) as partial:
        write(partial)
        if lasting:
            _to_disk(partial, os.O_RDWR)
        os.replace(partial, path)
        if lasting and os.name == "posix":  # the new name itself must reach the disk too
            _to_disk(path.parent, os.O_RDONLY)


def write_text(path: Path, text: str) -> None:
    """`text` as a UTF-8 file at `path`, whole or not at all."""
    content = text.encode()
    write_atomically(path, lambda partial: partial.write_bytes(content), size=len(content))


def write_json(path: Path, content, **layout) -> None:
    """`content` as a JSON file at `path`, whole or not at all, indented by 1; `layout`: other options of json.dumps."""
    write_text(path, json.dumps(content, **{"indent": 1} | layout) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that is put at `path`, in place of what lies there, when the block has ended without an error.

    After an error or a kill `path` holds what it held before (or, between two renamings, nothing). A kill may leave a
    temporary folder, which the next call sweeps. DiskFull where the disk was full for what was written into it.
    """
    path = Path(path)
    with writing(path), partial_folder(path) as partial:
        yield partial
        with partial_folder(path) as earlier:
            if path.exists():
                path.rename(earlier / path.name)
            try:
                partial.rename(path)
            except OSError:
                if (earlier / path.name).exists():
                    (earlier / path.name).rename(path)
                raise


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`, for the block to rename; removed if that has not happened at its end."""
    with _partial(path, Path.mkdir) as partial:
        yield partial


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder of this user's own where the system keeps temporary files, by a short path; removed at the end."""
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # a socket's path has no more than 107 characters
    place = next((each for each in places if len(each) <= 60 and os.access(each, os.W_OK)), places[0])
    with _partial(Path(place, name), lambda partial: partial.mkdir(mode=0o700)) as partial:
        yield partial


def new_arrays(wanted: Mapping[Path, tuple[tuple[int, ...], type]]) -> dict:
    """New .npy files of zeros, mapped into memory, on space that is reserved for them: path -> (shape, dtype) wanted.

    DiskFull, and none of them, where there is too little for all: a page of a mapped file that finds no space later
    kills the process.
    """
    import numpy as np  # a site is made without it

    size, made = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in wanted.values()), {}
    with writing(os.path.commonpath(wanted), size):
        try:
            for path, (shape, dtype) in wanted.items():
                made[path] = np.lib.format.open_memmap(path, "w+", dtype, shape)
                _reserve(path, made[path].offset)
        except BaseException:
            made.clear()  # what is mapped keeps its space
            for path in wanted:
                path.unlink(missing_ok=True)
            raise
    return made


def _reserve(path: Path, start: int) -> None:
    """Have the disk set aside what the file holds; all from the byte `start` on is zeros."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return os.posix_fallocate(file.fileno(), 0, size)
        except AttributeError:  # macOS, Windows
            pass
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        file.seek(start)
        for place in range(start, size, 2**20):
            file.write(bytes(min(2**20, size - place)))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """While `path`, of `size` bytes, is written: whatever tells of a full disk becomes a DiskFull that names both."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if (reason := full_disk(error)) is None:
            raise
        needed = "" if size is None else f"{_megabytes(size)} are needed, "
        place = re.sub(MARK, r"\1", str(path))  # where it would have been
        raise DiskFull(f"cannot write {place} ({reason}): {needed}{free_space(Path(path).parent)}") from error


def full_disk(error: Exception | str) -> str | None:
    """Why there is no space, in the system's words, where that is what `error`, or its text, tells; None where not."""
    if re.search(r"\d+ requested and \d+ written", str(error)):  # NumPy's
        return "only a part of it was written"
    told = re.search(r"(?:Errno|os error) (\d+)\b", str(error))  # Python's own; Rust's (safetensors)
    return os.strerror(int(told[1])) if told and int(told[1]) in FULL else None


def free_space(folder: Path) -> str:
    """How much is free on the disk of `folder`, and what to do."""
    folder = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    usage = shutil.disk_usage(folder)
    return (
        f"{_megabytes(usage.free)} of {_megabytes(usage.total)} are free on its disk; free some, or raise the limit "
        "(quota, ulimit -f), and run again"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def _partial(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """What will become `path`, made empty by `make` beside it and held; removed if it is still there at the end."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        with _into(path.parent):
            sweep(path.parent, path.name)
            make(partial)
        with ExitStack() as stack:
            try:
                stack.enter_context(_locked(partial, wait=True))
                partial.stat()
            except FileNotFoundError:  # swept before it was locked
                continue
            stack.callback(_remove, partial)
            yield partial
            return


@contextmanager
def _into(folder: Path) -> Iterator[None]:
    """Make `folder` if it is missing, and say of it why nothing can be put into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise type(error)(f"cannot write into {folder}/: {error.strerror}; it must be writable") from error


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what ended processes have left half written in `folder` and below; with `name` of that, in `folder`."""
    for place, folders, files in os.walk(folder):
        marked = ((found, re.fullmatch(MARK, found)) for found in (*folders, *files))
        left = [found for found, mark in marked if mark and name in (None, mark[1])]
        for found in left:
            with suppress(OSError), _locked(Path(place, found)) as known:
                if known:
                    _remove(Path(place, found))
        folders[:] = [] if name is not None else [each for each in folders if each not in left]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Work in `folder` (made if missing) that no other process may do at the same time: BlockingIOError where one is.

    The lock ends with the process, however that ends; on a system without such locks there is none.
    """
    with _into(folder):
        pass
    with _locked(folder):
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # where nothing was put into it


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a file or folder, BlockingIOError where another process has; False where the file system has no locks."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            known = True
        except BlockingIOError:
            raise BlockingIOError(f"another process is at work in {path}; let it end, then run again") from None
        except OSError:  # some network file systems
            known = False
        yield known
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


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
    """One hash of all files, and of all files in the folders, that exist; large ones are read once (`known_sha256`)."""
    digest, places = hashlib.sha256(), [Path(place) for place in places]
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    for file in sorted(files):
        digest.update(f"{file.name} {known_sha256(file)}\n".encode())
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """The `sha256` of a file; of a large one that of last time, where the system says that it is the same since then.

    The same are device, inode, size and the times of its content's and its entry's last change, of which nobody can set
    the last; a file that was changed a moment before it was read is read again. What is known lies in KNOWN, in the
    working folder.
    """
    about = path.stat()
    if about.st_size < LARGE:
        return sha256(path)
    stamp = [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    key, known = str(path.resolve()), _known_hashes()
    if key in known and known[key][0] == stamp:
        return known[key][1]
    found = sha256(path)
    if time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns) >= SETTLED:  # before, it may change within one tick
        with suppress(OSError):  # it is no more than quicker
            write_json(KNOWN, _known_hashes() | {key: [stamp, found]})
    return found


def _known_hashes() -> dict[str, list]:
    try:
        found = json.loads(KNOWN.read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
