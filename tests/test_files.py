"""Files and folders are whole or not there: on a full disk, after a kill, beside another process."""

import errno
import os
import re
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import ROOT
from safetensors import SafetensorError

from xai_utils import files

LIMIT = 100_000  # bytes that a file may have in `limited`


@contextmanager
def limited():
    """The system itself refuses to write more than LIMIT bytes into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill_folder(path, write):
    with files.new_folder(path) as folder:
        (folder / "first").write_text("1")
        write(folder / "second")


BIG = np.ones((300, 100))
WRITERS = {
    "text": lambda path: files.write_text(path, "x" * 2 * LIMIT),
    "json": lambda path: files.write_json(path, ["x"] * LIMIT),
    "arrays": lambda path: files.new_arrays({path: (BIG.shape, BIG.dtype)}),
    "folder of arrays": lambda path: fill_folder(path, lambda file: np.save(file.with_suffix(".npy"), BIG)),
    "folder of tables": lambda path: fill_folder(path, pandas.DataFrame(BIG).to_csv),
    "folder of mapped arrays": lambda path: fill_folder(path, WRITERS["arrays"]),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path, kind):
    """Every kind of file: the message names it, why and how much is free; no piece stays, and what was there does."""
    path = tmp_path / "results"
    if kind.startswith("folder"):
        path.mkdir()
        (path / "before").touch()
    elif kind != "arrays":  # they are made in new places alone
        path.write_text("before")
    before = [(each, each.stat().st_mtime_ns) for each in sorted(tmp_path.rglob("*"))]
    with limited(), pytest.raises(files.DiskFull) as caught:
        WRITERS[kind](path)
    reason = "only a part of it was written" if kind == "folder of arrays" else "File too large"
    assert str(caught.value).startswith(f"cannot write {path}")
    assert re.search(
        rf"\({reason}\): .*[\d,]+\.\d MB of [\d,]+\.\d MB are free on its disk; free some", str(caught.value)
    )
    if kind.endswith("arrays") and kind != "folder of arrays":
        assert "0.2 MB are needed" in str(caught.value)
    assert [(each, each.stat().st_mtime_ns) for each in sorted(tmp_path.rglob("*"))] == before


def test_space_is_reserved_for_all_arrays_before_any_is_filled(tmp_path, monkeypatch):
    """Every block of both is on the disk; where the second finds no room the first goes, too."""
    wanted = {tmp_path / f"{name}.npy": ((50, 1000), np.uint8) for name in "ab"}
    made = files.new_arrays(wanted)
    for path, array in made.items():
        assert path.stat().st_blocks * 512 >= array.nbytes
        array[:] = 7
        array.flush()
        np.save(tmp_path / "plain.npy", np.full((50, 1000), 7, np.uint8))
        assert path.read_bytes() == (tmp_path / "plain.npy").read_bytes()
    calls = []

    def second_fails(descriptor, start, size):
        calls.append(size)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", second_fails)
    with pytest.raises(files.DiskFull, match=rf"{tmp_path} \(No space left on device\): 0.1 MB are needed"):
        files.new_arrays(wanted)
    assert names(tmp_path) == ["plain.npy"]


@pytest.mark.parametrize("missing", [True, False])
def test_space_is_reserved_where_the_system_cannot_be_asked_to(tmp_path, monkeypatch, missing):
    """Without posix_fallocate, or on a file system that knows none, zeros are written: the same file, no holes."""

    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.delattr(os, "posix_fallocate") if missing else monkeypatch.setattr(os, "posix_fallocate", unknown)
    [(path, array)] = files.new_arrays({tmp_path / "a.npy": ((3, 700_000), np.float32)}).items()
    assert path.stat().st_blocks * 512 >= array.nbytes
    assert np.array_equal(np.load(path), np.zeros((3, 700_000), np.float32))
    with limited(), pytest.raises(files.DiskFull, match=r"8.4 MB are needed"):
        files.new_arrays({tmp_path / "b.npy": ((3, 700_000), np.float32)})
    assert names(tmp_path) == ["a.npy"]


def test_a_full_disk_is_known_by_what_each_library_says():
    """Python's number, a quota, Rust's words, NumPy's; and nothing else."""
    said = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("8000 requested and 1024 written"),
    ]
    full = "No space left on device"
    reasons = [full, "Disk quota exceeded", full, "only a part of it was written"]
    assert [files.full_disk(error) for error in said] == reasons
    assert [files.full_disk(error) for error in (OSError(errno.EACCES, "no"), ValueError("28"))] == [None, None]


@pytest.fixture
def short_path():
    """A folder with a path so short that sockets fit into it, as in that of the system's temporary files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


WORKER = """
import sys, time
from pathlib import Path
from xai_utils import files
here = Path(sys.argv[1])
with files.held(here / "work"), files.new_folder(here / "deep" / "made") as folder, files.scratch_folder("xai-test"):
    (folder / "half").touch()
    files.write_atomically(here / "file", lambda path: (print("begun", flush=True), time.sleep(60)))
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(short_path):
    """The same names, the same folder: only the end of the process makes leftovers of them, and frees its work."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(short_path / "deep")}
    (short_path / "deep").mkdir()
    command = [sys.executable, "-c", WORKER, str(short_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"

    def partial():
        return sorted(path.name.split(".")[1] for path in short_path.rglob(".*.partial"))

    files.sweep(short_path)
    files.write_text(short_path / "file", "ours")
    assert partial() == ["file", "made", "xai-test"]
    work = short_path / "work"
    with pytest.raises(BlockingIOError, match=rf"another process is at work in {work}; let it end"), files.held(work):
        pytest.fail("two at once")
    process.kill()
    process.wait()
    with files.new_folder(short_path / "deep" / "made"):  # its own leftover goes by itself, and no other's
        assert len(partial()) == 3
    assert partial() == ["file", "xai-test"]
    files.sweep(short_path)
    assert partial() == []
    with files.held(work):
        assert names(short_path) == ["deep", "file", "work"]
    assert (short_path / "file").read_text() == "ours"
    assert not work.exists()  # nothing was put into it


def test_a_name_that_only_looks_like_a_leftover_is_left_alone(tmp_path):
    """What the names of ours never are: without a dot in front, without the eight digits."""
    for name in ("a.01234567.partial", ".a.partial", ".a.0123456g.partial", ".a.01234567.partial.npy"):
        (tmp_path / name).touch()
    (tmp_path / ".a.01234567.partial").mkdir()
    files.sweep(tmp_path)
    assert len(names(tmp_path)) == 4


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """A read-only checkout: one line with the folder and the system's reason."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    for write in (
        lambda: files.write_text(tmp_path / "there" / "file", ""),
        lambda: fill_folder(tmp_path / "there", ""),
    ):
        with pytest.raises(OSError, match=r"cannot write into .*: Read-only file system; it must be writable$"):
            write()


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    """The hash is that of the content: of a new file, of one read before, of one of the same size and time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "LARGE", 10)
    path, read = tmp_path / "large", []
    of_content = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path) or of_content(path))
    path.write_bytes(b"a" * 20)
    assert files.known_sha256(path) == files.known_sha256(path) == of_content(path)
    assert len(read) == 2  # it was changed a moment before
    monkeypatch.setattr(files, "SETTLED", 0)
    assert files.known_sha256(path) == files.known_sha256(path) == of_content(path)
    assert len(read) == 3
    about = path.stat()
    path.write_bytes(b"b" * 20)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert files.known_sha256(path) == of_content(path)
    other = tmp_path / "other"
    other.write_bytes(b"c" * 20)
    os.replace(other, path)
    assert files.known_sha256(path) == of_content(path)
    files.KNOWN.write_text("damaged")
    assert files.known_sha256(path) == of_content(path)
    small = tmp_path / "small"
    for content in (b"1", b"2"):
        small.write_bytes(content)
        assert files.known_sha256(small) == of_content(small)
