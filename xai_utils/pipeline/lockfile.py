"""dvc.lock as it was when the last stage began: DVC writes it in place, and a kill or a full disk may cut it short."""

import contextlib
import sys
from pathlib import Path

from xai_utils.files import write_atomically
from xai_utils.pipeline import parameters

LOCK, KEPT = Path("dvc.lock"), Path(".runs/dvc.lock")


def keep():
    """Copy dvc.lock, if it is whole; a stage's command does so when it begins, and DVC writes when it has ended."""
    with contextlib.suppress(OSError):  # a disk that is full or read-only is told of by the stage
        if is_whole(LOCK):
            KEPT.parent.mkdir(exist_ok=True)
            write_atomically(KEPT, lambda path: path.write_bytes(LOCK.read_bytes()))


def mend():
    """Put the copy in place of a dvc.lock that was cut short: what ran until then is not run again."""
    if not LOCK.exists() or is_whole(LOCK):
        return
    from dvc.lock import LockError  # seconds, only where there is something to mend
    from dvc.repo import Repo

    try:
        with Repo().lock:  # else another run may be writing it
            _put_back()
    except LockError:
        raise ValueError(f"{LOCK} is being written by another run; wait for its end") from None


def _put_back():
    if is_whole(LOCK):
        return
    if not is_whole(KEPT):
        raise ValueError(f"{LOCK} was cut short, and {KEPT} is no copy of it; restore it with: git checkout {LOCK}")
    write_atomically(LOCK, lambda path: path.write_bytes(KEPT.read_bytes()))
    print(f"{LOCK} was cut short: it is again as it was when the last stage began", file=sys.stderr)


def is_whole(lock: Path) -> bool:
    """Whether every line and every entry is there; the outs are the last that DVC writes of a stage."""
    try:
        if not lock.read_bytes().endswith(b"\n"):
            return False
        stages = parameters.read(lock)["stages"]
        return all(out["path"] and out["md5"] for about in stages.values() for out in about["outs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
