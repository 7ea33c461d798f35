"""The published site, made of what the pipeline produced; nothing is run again:  python -m xai_utils.site build

`build` makes site/ (pages that open from disk and need no network), `check` tells whether the reports are those that
dvc.lock records, `publish REMOTE [BRANCH]` does both and pushes site/ to a branch of its own.
"""

import argparse
import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader

from xai_utils import parameters, pipeline, report

TEMPLATES = Path(__file__).parent / "site_template"
SITE = Path("site")
PICTURE = "figures/methods.jpg"


class SiteError(ValueError):
    """The site cannot be made or published from what is there."""


def build(root: Path, target: Path):
    """Make the site in the folder `target` from the project in `root`; only a whole site replaces an earlier one."""
    lock, reports = parameters.read(root / "dvc.lock"), root / pipeline.REPORTS
    summary = json.loads(_existing(reports / "results.json").read_text(encoding="utf-8"))
    _existing(reports / PICTURE)
    sources = pipeline.notebooks(root / "notebooks")
    notebooks = {stage: nbformat.read(path, as_version=4) for stage, path in sources.items()}
    titles = {stage: report.title(notebook) for stage, notebook in notebooks.items()}
    made = [stage for stage in titles if (reports / f"{stage}.html").is_file()]
    template = _template([("index.html", "Results"), *((f"{stage}.html", titles[stage]) for stage in made)])
    with tempfile.TemporaryDirectory(prefix=".site-", dir=target.parent) as scratch:
        folder = Path(scratch) / "site"
        shutil.copytree(reports, folder, ignore=shutil.ignore_patterns("*.html", ".*"))
        (folder / "notebooks").mkdir()
        for stage, path in sources.items():
            shutil.copy(path, folder / "notebooks")
            if stage in made:
                content = report_content(reports / f"{stage}.html")
                _write(folder, template("page.html.j2", f"{stage}.html", title=titles[stage], content=content))
        columns = score_columns(summary)
        index = template(
            "index.html.j2",
            "index.html",
            title="Saliency maps: results",
            picture=PICTURE,
            protocol=summary["protocol"],
            columns=columns,
            rows=[
                {"method": method, "cells": [column["cells"][place] for column in columns]}
                for place, method in enumerate(summary["methods"])
            ],
            cards=[
                {
                    "file": f"{stage}.html" if stage in made else None,
                    "title": titles[stage],
                    "summary": report.first_paragraph(notebook),
                    "notebook": f"notebooks/{sources[stage].name}",
                }
                for stage, notebook in notebooks.items()
            ],
            parameters={stage: recorded_parameters(lock, stage) for stage in made if stage in lock["stages"]},
            scale=recorded_scale(lock),
            versions=pinned_versions(root),
            numbers=sorted(
                path.relative_to(folder).as_posix()
                for path in folder.rglob("*")
                if path.suffix in {".json", ".tsv", ".csv"}
            ),
        )
        _write(folder, index)
        (folder / ".nojekyll").touch()  # GitHub Pages serves a branch as it is only with this
        if target.exists():
            target.rename(Path(scratch) / "earlier")
        folder.rename(target)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SiteError(f"{path} is missing; the pipeline makes it: make repro")
    return path


def _template(pages: list[tuple[str, str]]):
    """A function that renders one page; `pages` are (file, title) of all pages for the head line."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    script = (TEMPLATES / "site.js").read_text(encoding="utf-8")
    shared = {
        "style": (report.TEMPLATES / "style.css").read_text() + (TEMPLATES / "site.css").read_text(),
        "script": script,
        # no other script runs, wherever in a page it stands
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "pages": [{"file": file, "title": title} for file, title in pages],
    }
    return lambda name, file, **values: (file, environment.get_template(name).render(file=file, **shared, **values))


def _write(folder: Path, page: tuple[str, str]):
    (folder / page[0]).write_text(page[1], encoding="utf-8", newline="\n")


def report_content(page: Path) -> str:
    """What a report says, without the head, the style and the navigation that it was rendered with."""
    found = re.search(r"<main[^>]*>(.*)</main>", page.read_text(encoding="utf-8"), re.DOTALL)
    if not found:
        raise SiteError(f"{page} has no <main> and is no report of the pipeline; restore it with: git checkout {page}")
    return found[1]


def score_columns(summary: dict) -> list[dict]:
    """A column per metric of results.json, then one per plain number that methods have there (passes, failures).

    Each with the order that puts the best first, and a cell per method: value (None where it has no score), text,
    interval, and whether it is the best of the column.
    """
    metrics, methods = summary["metrics"], summary["methods"]
    counts = dict.fromkeys(
        key
        for row in methods.values()
        for key, value in row.items()
        if type(value) in (int, float) and key not in metrics
    )
    columns = []
    for key in (*metrics, *counts):
        about = metrics.get(key, {"label": key.replace("_", " "), "arrow": "", "unit": ""})
        cells = [_cell(row.get(key), 1 if about["unit"] == "percent" else 3) for row in methods.values()]
        values = [cell["value"] for cell in cells if cell["value"] is not None]
        if about["arrow"] and values:
            best = max(values) if about["arrow"] == "↑" else min(values)
            next(cell for cell in cells if cell["value"] == best)["best"] = True
        label, first = (
            f"{about['label']} {about['arrow']}".strip(),
            "descending" if about["arrow"] == "↑" else "ascending",
        )
        columns.append({"label": label, "unit": about["unit"], "first": first, "cells": cells})
    return columns


def _cell(score, digits: int) -> dict:
    """One score as it is shown: a mean with its interval, a share of passes, or a count."""
    value = score["mean"] if isinstance(score, dict) else score
    if value is None or not math.isfinite(value):
        return {"value": None, "text": "–", "interval": ""}
    if isinstance(score, dict):
        interval = f"{score['low']:.{digits}f} – {score['high']:.{digits}f}"
        return {"value": value, "text": f"{value:.{digits}f}", "interval": interval}
    return {"value": value, "text": str(value) if isinstance(value, int) else f"{value:.2f}", "interval": ""}


def recorded_parameters(lock: dict, stage: str) -> dict[str, str]:
    """What `stage` received when it last ran, one line per parameter, at whatever depth: name.name -> value."""
    recorded = dict(lock["stages"][stage]["params"]["params.yaml"])
    by_scale = next((recorded.pop(key) for key in list(recorded) if key.startswith("scales.")), None)
    section = recorded.pop(stage)
    received = recorded | parameters.filled(section, by_scale or {}, f"scales.*.{stage}")

    def lines(values, prefix=""):
        for name, value in values.items():
            if isinstance(value, dict) and value:
                yield from lines(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return dict(lines(received))


def recorded_scale(lock: dict) -> str:
    """The scale of the run: the one whose values the stages received."""
    keys = [key for about in lock["stages"].values() for key in about.get("params", {}).get("params.yaml", {})]
    return next((key.split(".")[1] for key in keys if key.startswith("scales.")), "")


def pinned_versions(root: Path) -> dict[str, str]:
    """The version that requirements.lock pins of each library that pyproject.toml asks for."""
    asked = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pins = re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", (root / "requirements.lock").read_text(encoding="utf-8"))
    names = [re.match(r"[\w.-]+", line)[0] for line in asked]
    return {name: version for name in names for pinned, version in pins if pinned == name}


def outdated(root: Path) -> list[str]:
    """Why the reports are not those of one whole run, as far as dvc.lock knows; by content, nothing is run.

    Each report must be the file whose hash is recorded, and no stage may have read what another has made anew since.
    """
    lock, stages = parameters.read(root / "dvc.lock")["stages"], parameters.read(root / "dvc.yaml")["stages"]
    problems = [f"stage {stage} has not run: dvc.lock does not know it" for stage in stages if stage not in lock]
    ran = {stage: lock[stage] for stage in stages if stage in lock}
    made = {entry["path"]: (stage, entry["md5"]) for stage, about in ran.items() for entry in about["outs"]}
    for path, (stage, recorded) in made.items():
        if path.startswith(f"{pipeline.REPORTS}/") and content_hash(root / path) != recorded:
            there = "is missing" if content_hash(root / path) is None else "is not what dvc.lock records"
            problems.append(f"{path} {there}; stage {stage} makes it")
    for stage, about in ran.items():
        for entry in about.get("deps", []):
            maker, recorded = made.get(entry["path"], (None, entry["md5"]))
            if entry["md5"] != recorded:
                problems.append(f"stage {stage} is older than {entry['path']}, which {maker} has made anew since")
    return problems


def content_hash(path: Path) -> str | None:
    """The MD5 of a file, or of a folder's files, as dvc.lock writes them; None where there is neither."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return None
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    entries = [{"md5": content_hash(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries).encode()).hexdigest() + ".dir"


def check(root: Path):
    """Raise `SiteError`, with all reasons, where the reports are not those of one whole run."""
    if problems := outdated(root):
        raise SiteError("\n".join([*problems, "these reports are not those of one whole run; mend with: make repro"]))


def publish(root: Path, target: Path, remote: str, branch: str) -> str:
    """Make the site in `target` and push it as the next commit of `branch` of `remote`; what was done, in words.

    Neither the working tree nor the index is touched: the files go into an index of their own and become a commit
    whose parent is the branch as the remote has it. A branch that holds something else than a site is left alone.
    """
    if not remote:
        raise SiteError("name the git remote to publish to: make publish REMOTE=origin")
    check(root)
    name = f"refs/heads/{branch}"
    _git(root, "check-ref-format", name)
    parent = _git(root, "ls-remote", "--", remote, name).split("\t")[0]
    if parent:
        _git(root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", remote, name)
        if not _git(root, "ls-tree", "--name-only", parent, "index.html"):
            raise SiteError(
                f"branch '{branch}' of {remote} holds something else than a site; name another one: BRANCH="
            )
    build(root, target)
    with tempfile.TemporaryDirectory() as scratch:
        own_index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        as_it_is = ["-c", "core.autocrlf=false", "--work-tree", str(target)]
        _git(root, *as_it_is, "add", "--all", "--force", "--", str(target), environment=own_index)
        tree = _git(root, "write-tree", environment=own_index)
    if parent and tree == _git(root, "rev-parse", f"{parent}^{{tree}}"):
        return f"branch '{branch}' of {remote} holds this site already"
    message = f"The site of {_git(root, 'rev-parse', '--short', 'HEAD')}"
    commit = _git(root, "commit-tree", tree, *(("-p", parent) if parent else ()), "-m", message)
    _git(root, "push", "--quiet", "--", remote, f"{commit}:{name}")
    return f"published as {commit[:10]} on branch '{branch}' of {remote}"


def _git(root: Path, *arguments: str, environment=None) -> str:
    """The output of a git command."""
    done = subprocess.run(
        ["git", *arguments], cwd=root, env=os.environ | (environment or {}), capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise SiteError(f"git {' '.join(arguments)} failed: {said}")
    return done.stdout.strip()


def main():
    parser = argparse.ArgumentParser(prog="python -m xai_utils.site", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help=f"make {SITE}/ from the reports of the last run")
    commands.add_parser("check", help="whether the reports are those that dvc.lock records")
    publishing = commands.add_parser("publish", help=f"check, build, and push {SITE}/ to a branch of a git remote")
    publishing.add_argument("remote", help="a remote's name, address or folder")
    publishing.add_argument("branch", nargs="?", default="gh-pages")
    chosen = parser.parse_args()
    pipeline.enter_project()
    root = Path.cwd()
    try:
        if chosen.command == "build":
            build(root, root / SITE)
            print(*outdated(root), f"open {SITE}/index.html", sep="\n")
        elif chosen.command == "check":
            check(root)
        else:
            print(publish(root, root / SITE, chosen.remote, chosen.branch))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
