"""Whole runs kept as numbers: runs/NAME/ holds what the pipeline wrote into reports/ but the pages and the pictures.

python -m xai_utils.pipeline.kept NAME [--rev REVISION | --from FOLDER] [--force]

run.json            how the run was made: revision, scale, parameters, versions, hashes; what the papers claim and
                    how it came out; the SHA-256 of each other file
scores.csv.gz       reports/scores in one table: a row per image and method
protocol.json       how those were scored, metrics.json, … : the numbers of reports/ as they are, by their names
"""

import argparse
import gzip
import hashlib
import io
import json
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xai_utils import runs
from xai_utils.files import file_name, new_folder
from xai_utils.pipeline import git, outputs, parameters, recorded
from xai_utils.pipeline.project import REPORTS, begin_in_utf_8, enter_project

FOLDER = Path("runs")
ABOUT, SCORES = "run.json", "scores.csv.gz"
TOLD = ("revision", "scale", "images", "image_size", "parameters", "versions", "hashes", "claims", "files")
MOST = 1_000_000  # bytes of a run: it lies in the history of git for good
MAPS = Path("build/maps/explained.json")
LOCKS = ("pyproject.toml", "requirements.lock")
PARTS = ("reports", "dvc.lock", "dvc.yaml", "params.yaml", *LOCKS)  # what a run is known by
CODE = (":/xai_utils", ":/notebooks", ":/dvc.yaml")
OUTSIDE = re.compile(r"(^|:)(?:(?:~|[A-Za-z]:)?[\\/]|~[\\/]|(?:[^:]*[\\/])?\.\.[\\/])(?:.*[\\/])?")


class KeptError(ValueError):
    """A run cannot be kept, or what was kept is not what lies there."""


def keep(name: str, source: Path, root: Path, *, revision: dict | None = None, force=False) -> Path:
    """Keep the run whose reports/ and params.yaml lie in `source` as runs/NAME of the project in `root`.

    Beside them dvc.lock tells what ran; where there is none, what the numbers say of which run they are must agree.
    `revision`: of which commit they are, where `source` is no checkout that tells. KeptError, and nothing is written,
    where they are not one whole run, where NAME is taken (unless `force`), or where it takes more than `MOST` bytes.
    """
    if name.endswith(".html"):
        raise KeptError(f"{name} cannot be the name of a run: on the site {FOLDER}/{name} may be another's page")
    target = root / FOLDER / file_name(name)
    if target.exists() and not force:
        raise KeptError(f"{FOLDER / name} holds a run already; choose another NAME, or replace it with FORCE=1")
    contents = collected(source, root, revision)
    sizes = {file: len(content) for file, content in contents.items()}
    if (size := sum(sizes.values())) > MOST:
        largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
        told = ", ".join(f"{file} {sizes[file] / 1e3:,.0f} kB" for file in largest)
        raise KeptError(
            f"the numbers of this run take {size / 1e3:,.0f} kB, and {MOST / 1e3:,.0f} kB may be kept; the largest: "
            f"{told}; score fewer images (explain.images) or methods"
        )
    with new_folder(target) as folder:
        for file, content in contents.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
    return target


def kept(root: Path) -> dict[str, dict]:
    """The runs that are kept in a project, by name: what run.json says of each, and its metrics.json as "summary".

    KeptError where something is missing, was changed or does not belong there.
    """
    folders = [path for path in sorted((root / FOLDER).glob("[!.]*")) if path.is_dir()]
    return {folder.name: _read(folder) for folder in folders}


def in_words(about: dict) -> str:
    """Which run one of `kept` is: how many images of what, which target, at which scale."""
    data, target = (about["summary"]["run"][name].split()[0] for name in ("data", "target"))
    shown = f"{about['images']} held-out images of {data} at {about['image_size']} pixels"
    return f"{shown}, target {target}, scale {about['scale']}"


def scores(folder: Path):
    """The scores of a kept run, as `evaluation.scores.read_scores` gives them of reports/scores."""
    import pandas

    return pandas.read_csv(folder / SCORES, dtype={"protocol": str}).drop(columns="protocol")


def digest(folder: Path) -> str:
    """What tells a kept run from any other, for run.json has the hashes of its other files; "" where there is none."""
    file = folder / ABOUT
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def described(source: Path, root: Path, revision: dict | None = None) -> dict:
    """What run.json says of the run in `source`, but for the files: plain JSON. `root`: where the code and git are."""
    from xai_utils.evaluation.scores import read_scores
    from xai_utils.papers import claims

    summary = json.loads((source / REPORTS / "metrics.json").read_bytes())
    scale, given, hashes = _made_with(source)
    prepared, evaluated = given["prepare_data"], given["evaluate"]
    frame = read_scores(source / REPORTS / "scores", summary["run"])
    passes = {name: row["passes"] for name, row in summary["methods"].items()}
    given_run = frame, passes, source / REPORTS, summary["run"]
    told = claims.of_run(*given_run, seed=evaluated["seed"], **evaluated["intervals"])
    pinned = source if all((source / name).is_file() for name in LOCKS) else root
    return {
        "revision": revision or _revision(source),
        "scale": scale,
        "images": int(frame["image"].nunique()),
        "image_size": prepared["image_size"],
        "parameters": _without_places(given),
        "versions": {"python": platform.python_version()} | recorded.versions(pinned),
        "hashes": _without_places(hashes),
        "claims": told,
    }


def _made_with(source):
    """The scale, the parameters of each stage that ran, and the hashes of files, which dvc.lock alone knows."""
    values, lock = parameters.read(source / "params.yaml"), source / "dvc.lock"
    if lock.is_file():
        lock = parameters.read(lock)
        ran = [stage for stage in parameters.STAGES if stage in lock["stages"]]
        given = {stage: recorded.received(lock, stage, values["scales"]) for stage in ran}
        return recorded.scale(lock), given, recorded.hashes(lock)
    ran = [stage for stage in parameters.STAGES if (source / REPORTS / f"{stage}.html").is_file()]
    return values["scale"], {stage: parameters.resolve(values, stage, written=True) for stage in ran}, {}


def collected(source: Path, root: Path, revision: dict | None = None) -> dict[str, bytes]:
    """The files of a kept run by name, run.json the last; arguments and errors as those of `keep`."""
    _require_whole(source)
    reports = source / REPORTS
    index = json.loads((reports / "scores" / "protocol.json").read_bytes())
    of_images = {f"scores/{method}.csv": method for method in index["methods"]}
    try:
        about = described(source, root, revision)
    except KeyError as error:
        raise KeptError(f"this run does not say what {error} was: an earlier version made it; run it again") from None
    files = {name: (reports / name).read_bytes() for name in _numbers(source) if name not in of_images}
    files["protocol.json"] = files.pop("scores/protocol.json")
    tables = [(reports / name).read_bytes() for name in of_images]
    head = tables[0].partition(b"\n")[0] + b"\n"
    table = head + b"".join(each.removeprefix(head) for each in tables)
    files[SCORES] = gzip.compress(table, mtime=0)  # no time stamp: the same run gives the same bytes
    files = dict(sorted(files.items()))
    about["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return files | {ABOUT: (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()}


def _numbers(source):
    """The files of numbers in reports/: those that stages wrote, where dvc.lock tells."""
    if (source / "dvc.lock").is_file():
        return outputs.numbers(source)
    reports = source / REPORTS
    found = (path.relative_to(reports).as_posix() for path in reports.rglob("*") if path.suffix in outputs.NUMBERS)
    return sorted(found)


def _require_whole(source):
    reports = source / REPORTS
    for file in (source / "params.yaml", reports / "metrics.json", reports / "scores" / "protocol.json"):
        if not file.is_file():
            raise KeptError(f"{file} is missing: there is no run of the pipeline in {source}; make repro makes one")
    locked = (source / "dvc.lock").is_file()
    problems = [f"{name} is a link" for name in outputs.links(source) if Path(name).is_relative_to(REPORTS)]
    if not problems and locked:
        problems = outputs.outdated(source)
    if not problems:
        ours = json.loads((reports / "metrics.json").read_bytes()).get("run", {})
        asked = [REPORTS / name for name in _numbers(source) if name.endswith(".json")]
        # without DVC, maps may have been made anew since they were scored
        asked += [MAPS] if not locked and (source / MAPS).is_file() else []
        for name in asked:
            found = json.loads((source / name).read_bytes())
            if told := runs.difference(found["run"], ours) if "run" in found else "":
                problems.append(f"{name} is of another run than {REPORTS}/metrics.json: {told}")
    if problems:
        raise KeptError("\n".join([*problems, "these reports are not those of one whole run; mend with: make repro"]))


def _read(folder):
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        files, summary = [about[key] for key in TOLD][-1], json.loads((folder / "metrics.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{ABOUT} lacks {error}" if isinstance(error, KeyError) else error
        raise KeptError(f"{folder} is no kept run ({why}); restore it with git, or keep it again") from None
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {ABOUT}
    problems = [f"{name} is missing" for name in files if name not in there]
    problems += [f"{outputs.printable(name)} does not belong there" for name in sorted(there - set(files))]
    for name in sorted(there & set(files)):
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != files[name]:
            problems.append(f"{name} is not what was kept")
    if problems:
        raise KeptError(f"{folder}: {', '.join(problems)}; restore it with git, or keep it again")
    return about | {"summary": summary}


def _without_places(value):
    """`value` with "…/" for the folders in which data or weights lie outside of the project: they are nobody's."""
    if isinstance(value, dict):
        return {_without_places(key): _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return OUTSIDE.sub(r"\1…/", value.rstrip("\\/")) if isinstance(value, str) else value


def _revision(folder):
    """The commit that is checked out in a folder, and what of the code differs from it; {} where git knows none."""
    try:
        commit = git.said(folder, "rev-parse", "--verify", "HEAD")
        git.said(folder, "cat-file", "-e", "HEAD:dvc.yaml")  # it may lie in somebody's other repository
        changed = git.said(folder, "status", "--porcelain", "--untracked-files=no", "--", *CODE).splitlines()
    except git.GitError:
        return {}
    names = sorted(line.split(maxsplit=1)[1] for line in changed)
    return {"commit": commit} | ({"changed since": names} if names else {})


@contextmanager
def checked_out(root: Path, name: str) -> Iterator[tuple[Path, dict]]:
    """A folder with what a kept run is made of, as git holds it at a revision or in an experiment of DVC; and which."""
    about = _commit(root, name)
    held = set(git.said(root, "ls-tree", "--name-only", about["commit"]).splitlines())
    parts = [part for part in PARTS if part in held]
    if not {"reports", "dvc.lock"} <= held:
        raise KeptError(f"the revision {name!r} holds no reports/ with a dvc.lock; keep one that does")
    with tempfile.TemporaryDirectory() as scratch:
        packed = git.output(root, "archive", "--format=zip", about["commit"], "--", *parts)
        zipfile.ZipFile(io.BytesIO(packed)).extractall(scratch)  # a link becomes a file, which is not what was recorded
        yield Path(scratch), about


def _commit(root, name):
    """Which commit `name` means: a revision of git, or the name of one experiment."""
    try:
        return {"commit": git.said(root, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}")}
    except git.GitError:
        listed = git.said(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    # refs/exps/AB/CDEF…/NAME: ABCDEF… is the commit that the experiment is based on
    known = [(commit, ref.split("/")) for commit, ref in map(str.split, listed)]
    found = {commit: "".join(ref[2:-1]) for commit, ref in known if ref[-1] == name and ref[2] != "exec"}
    if not found:
        raise KeptError(
            f"REV={name} is neither a revision of git nor the name of an experiment here; "
            "git log and dvc exp show list them"
        )
    if len(found) > 1:
        raise KeptError(f"REV={name} is the name of {len(found)} experiments; give a commit: {', '.join(found)}")
    [(commit, based_on)] = found.items()
    return {"commit": commit, "experiment": name, "based_on": based_on}


def main():
    begin_in_utf_8()
    parser = argparse.ArgumentParser(prog="python -m xai_utils.pipeline.kept", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the folder of runs/ and of its page")
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--rev", help="of git, or the name of an experiment of DVC, instead of the last run here")
    of.add_argument("--from", dest="folder", type=Path, help="another folder with reports/ and params.yaml")
    parser.add_argument("--force", action="store_true", help="replace what is kept under this name")
    chosen = parser.parse_args()
    folder = chosen.folder and chosen.folder.resolve()
    try:
        if not chosen.name:
            raise KeptError("name the run: make keep NAME=pets")
        enter_project()
        root = Path.cwd()
        if chosen.rev:
            with checked_out(root, chosen.rev) as (scratch, revision):
                target = keep(chosen.name, scratch, root, revision=revision, force=chosen.force)
        else:
            target = keep(chosen.name, folder or root, root, force=chosen.force)
        print(outputs.listing(target))
        print(f"kept as {target.relative_to(root)}; commit it, then make readme and make site show it")
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
