"""What the pipeline wrote into reports/, by name and content as dvc.lock records it, and what else lies there."""

import hashlib
import json
import os
import subprocess
import textwrap
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from xai_utils.pipeline import parameters
from xai_utils.pipeline.project import REPORTS

NUMBERS = {".json", ".tsv", ".csv"}


class Reports(NamedTuple):
    """What lies in reports/: names below it, sorted."""

    written: list[str]  # the files of which dvc.lock says that a stage made them
    others: list[str]  # all else; a folder of which nothing was written is one name, with "/" at its end


def reports(root: Path) -> Reports:
    """What lies in reports/ of the project in `root`, which holds no `links`.

    In a folder whose content is not what dvc.lock records (`outdated` says so) everything counts as written.
    """
    folder, written, others = root / REPORTS, set(), set()
    for path, (_, recorded) in _recorded(root).items():
        names = _written(root, path, recorded)
        places = (PurePosixPath(path, name) for name in (_files(root / path) if names is None else names))
        written |= {place.relative_to(REPORTS) for place in places}
    written = {place for place in written if not any(part.startswith(".") for part in place.parts)}
    above = {parent for place in written for parent in place.parents}
    for here, folders, files in os.walk(folder):
        place = PurePosixPath(Path(here).relative_to(folder))
        others |= {f"{place / name}" for name in files if place / name not in written}
        others |= {f"{place / name}/" for name in folders if place / name not in above}
        folders[:] = [name for name in folders if place / name in above]
    return Reports(sorted(map(str, written)), sorted(others))


def numbers(root: Path) -> list[str]:
    """The files of numbers among `reports`."""
    return [name for name in reports(root).written if Path(name).suffix in NUMBERS]


def links(root: Path) -> list[str]:
    """The links among what a site is made of, by their names in the project; none is followed."""
    folders = [root / REPORTS, root / "notebooks", root / "runs", root / "docs"]
    places = [place for folder in folders for place in (folder, *folder.rglob("*"))]
    return sorted(place.relative_to(root).as_posix() for place in places if place.is_symlink())


def listing(folder: Path) -> str:
    """The files of a folder, a paragraph for each folder in it, with their number and size."""
    groups = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        groups.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file)
    lines = [f"{folder.name}/ holds {_amount([file for files in groups.values() for file in files])}"]
    for place, files in groups.items():
        head = _amount(files) if place == "." else f"{printable(place)}/  {_amount(files)}"
        names = f"  {head}: {', '.join(printable(file.name) for file in files)}"
        lines += textwrap.wrap(names, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def printable(name: str) -> str:
    """A name on one line, whatever it holds."""
    return name if name.isprintable() else ascii(name)


def _amount(files):
    size = sum(file.stat().st_size for file in files)
    return f"{len(files)} files, {size / 1e6:.1f} MB" if size >= 1e5 else f"{len(files)} files, {size / 1e3:.0f} kB"


def outdated(root: Path) -> list[str]:
    """Why the reports are not those of one whole run, as far as dvc.lock knows; by content, nothing is run.

    Each report must be the file whose hash is recorded, no stage may have read what another has made anew since, and
    none may have read other data, or run with other code, than the others.
    """
    lock, stages = parameters.read(root / "dvc.lock")["stages"], parameters.read(root / "dvc.yaml")["stages"]
    problems = [f"stage {stage} has not run: dvc.lock does not know it" for stage in stages if stage not in lock]
    ran = {stage: lock[stage] for stage in stages if stage in lock}
    made = {entry["path"]: (stage, entry["md5"]) for stage, about in ran.items() for entry in about["outs"]}
    for path, (stage, recorded) in _recorded(root).items():
        if _written(root, path, recorded) is None:
            there = "is not what dvc.lock records" if (root / path).exists() else "is missing"
            problems.append(f"{path} {there}; stage {stage} makes it")
    read = {}
    for stage, about in ran.items():
        for entry in about.get("deps", []):
            maker, recorded = made.get(entry["path"], (None, None))
            if maker and entry["md5"] != recorded:
                problems.append(f"stage {stage} is older than {entry['path']}, which {maker} has made anew since")
            other, found = read.setdefault(entry["path"], (stage, entry["md5"]))
            if not maker and entry["md5"] != found:
                problems.append(f"stages {other} and {stage} ran with different versions of {entry['path']}")
    return problems


def content_hash(path: Path) -> str | None:
    """The MD5 of a file, or of a folder's files, as dvc.lock writes them; None where there is neither."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    return _listing_hash(path, _files(path)) if path.is_dir() else None


def _recorded(root):
    """The outputs in reports/ of the stages that have run: path -> (stage, hash)."""
    lock, stages = parameters.read(root / "dvc.lock")["stages"], parameters.read(root / "dvc.yaml")["stages"]
    ran = [(stage, entry) for stage in stages if stage in lock for entry in lock[stage]["outs"]]
    parts = {entry["path"]: PurePosixPath(entry["path"]).parts for _, entry in ran}
    inside = {path for path, each in parts.items() if each[0] == str(REPORTS) and ".." not in each}
    return {entry["path"]: (stage, entry["md5"]) for stage, entry in ran if entry["path"] in inside}


def _files(place):
    """The names of the files in a folder, at any depth; of a file one name, the empty one."""
    if place.is_file():
        return [""]
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def _written(root, path, recorded):
    """The names of the files of an output, as `_files` gives them; None where they are not what dvc.lock records.

    Something may have been put into a folder since: without what git does not know, its hash is the recorded one.
    """
    place = root / path
    if content_hash(place) == recorded:
        return _files(place)
    if place.is_dir() and _listing_hash(place, known := _known_to_git(root, path)) == recorded:
        return known
    return None


def _listing_hash(folder, names):
    """The hash that DVC gives to a folder with the files `names`."""
    entries = [{"md5": content_hash(folder / name), "relpath": name} for name in sorted(names)]
    return hashlib.md5(json.dumps(entries).encode()).hexdigest() + ".dir"


def _known_to_git(root, path):
    """The names of the files of a folder that git tracks and that are there; none outside of a repository."""
    command = ["git", "--literal-pathspecs", "ls-files", "-z", "--", path]
    listed = subprocess.run(command, cwd=root, capture_output=True).stdout.split(b"\0")
    tracked = {os.fsdecode(name) for name in listed}
    return [name for name in _files(root / path) if f"{path}/{name}" in tracked]
