"""The published site, made of what the pipeline produced; nothing is run again.

    python -m xai_utils.pipeline.site build

`build` makes site/ (pages that open from disk and need no network), `check` tells whether the reports are those that
dvc.lock records, `publish REMOTE [BRANCH]` does both and pushes site/ to a branch of its own.
"""

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader

from xai_utils.files import new_folder
from xai_utils.pipeline import explore, git, kept, outputs, parameters, recorded, report, terminal
from xai_utils.pipeline import stage as pipeline
from xai_utils.pipeline.project import REPORTS, begin_in_utf_8, enter_project

TEMPLATES = Path(__file__).parent / "site_template"
SITE = Path("site")
COMPARED, COMPARISON = Path("build/compare.html"), "Runs side by side"  # `compare` writes it
FRONT = "index.html"  # of the reports and of the site
DOCS = "docs"  # reports link to it, from reports/
GLOSSARY = ("glossary.html", "Glossary")  # of the reports; it has no notebook


class SiteError(ValueError):
    """The site cannot be made or published from what is there."""


def build(root: Path, target: Path, tell=lambda text: None):
    """Make the site in the folder `target` from the project in `root`; only a whole site replaces an earlier one.

    It holds what the pipeline wrote; `tell` is called with what that is, and with what else lies in reports/.
    """
    _refuse_links(root)
    reports, sources = root / REPORTS, pipeline.notebooks(root / "notebooks")
    notebooks, found = {stage: pipeline.stripped(path) for stage, path in sources.items()}, outputs.reports(root)
    if FRONT not in found.written:
        raise SiteError(f"no stage wrote {reports / FRONT}; the pipeline makes it: make repro")
    made = {stage: f"{stage}.html" for stage in notebooks if f"{stage}.html" in found.written}
    titles = {file: report.title(notebooks[stage]) for stage, file in made.items()}
    titles |= dict([GLOSSARY] if GLOSSARY[0] in found.written else [])
    shown_pages = list(titles)
    explored = explore.values(reports) if {str(explore.RECORD), "metrics.json"} <= set(found.written) else None
    titles |= {explore.FILE: explore.TITLE} if explored else {}
    runs = {f"runs/{name}.html": about | {"name": name} for name, about in kept.kept(root).items()}
    compared = _comparison(root, tell)
    if compared:
        titles |= {COMPARED.name: COMPARISON}
    page = renderer({FRONT: "Results"} | titles | {file: about["name"] for file, about in runs.items()})
    with new_folder(target) as folder:
        (folder / "notebooks").mkdir()
        copied = [name for name in found.written if not name.endswith(".html")]
        for name in copied:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(reports / name, folder / name)
        numbers = [name for name in copied if Path(name).suffix in outputs.NUMBERS]
        for stage, path in sources.items():
            nbformat.write(notebooks[stage], folder / "notebooks" / path.name)
        shutil.copytree(root / DOCS, folder / DOCS)
        for file in shown_pages:
            text = page("page.html.j2", file, title=titles[file], content=report_content(reports / file))
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
        if explored:
            data = json.dumps(explored, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
            text = page("explore.html.j2", explore.FILE, title=explore.TITLE, data=data, **_with_vega())
            (folder / explore.FILE).write_text(text, encoding="utf-8", newline="\n")
        if compared:
            text = page("page.html.j2", COMPARED.name, title=COMPARISON, content=compared)
            (folder / COMPARED.name).write_text(text, encoding="utf-8", newline="\n")
        for file, about in runs.items():
            shutil.copytree(root / kept.FOLDER / about["name"], folder / kept.FOLDER / about["name"])
            text = page("run.html.j2", file, **_run(root / kept.FOLDER / about["name"], about))
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
        others = [{"file": file, "title": about["name"], "told": kept.in_words(about)} for file, about in runs.items()]
        if compared:
            others.insert(
                0, {"file": COMPARED.name, "title": COMPARISON, "told": "The papers' tables, scores and claims"}
            )
        taken = {"numbers": numbers, "notebooks": [f"notebooks/{path.name}" for path in sources.values()]}
        values = {"content": report_content(reports / FRONT), "kept": others} | taken | _circumstances(root, made)
        text = page("index.html.j2", FRONT, title="Saliency maps: results", **values)
        (folder / FRONT).write_text(text, encoding="utf-8", newline="\n")
        (folder / ".nojekyll").touch()  # GitHub Pages serves a branch as it is only with this
    tell(outputs.listing(target))
    if others := [outputs.printable(f"{REPORTS}/{name}") for name in found.others]:
        tell(f"left out, for no stage wrote it: {', '.join(others)}")


def _comparison(root: Path, tell) -> str:
    """What the page that `compare` made says; "" where there is none, or one of other runs than are kept now."""
    file = root / COMPARED
    content = report_content(file) if file.is_file() else ""
    for name, digest in re.findall(r'data-run="([^" ]+) (\w+)"', content):
        if kept.digest(root / kept.FOLDER / name) != digest:
            tell(f"left out: {COMPARED} is of another run {name} than is kept now; make it anew with: make compare")
            return ""
    return content


def renderer(titles: dict[str, str]):
    """A function that renders a template to the page of a file; `titles` are those of all files in the head line."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    script = _script("site.js")
    shared = {
        "style": "".join(path.read_text("utf-8") for path in (report.TEMPLATES / "style.css", TEMPLATES / "site.css")),
        "script": script,
        # no other script runs, wherever in a page it stands
        "script_hash": report.script_hash(script),
        "pages": [{"file": file, "title": title} for file, title in titles.items()],
    }

    def page(template, file, **values):
        up = "../" * file.count("/")  # from its folder to the site's
        return environment.get_template(template).render(file=file, up=up, **shared | values)

    return page


def _script(*files: str) -> str:
    """The script of all pages, and those of the site's own `files` behind it."""
    return report.page_script() + "".join((TEMPLATES / file).read_text(encoding="utf-8") for file in files)


def _with_vega() -> dict:
    """The script of a page that draws with Vega, which lies beside, and what the page's policy calls it."""
    script = _script("site.js", "vega.js", "explore.js")
    return {"script": script, "script_hash": report.script_hash(script)}


def shown(summary: dict) -> dict:
    """The table of scores of a metrics.json, as the templates show it."""
    columns = score_columns(summary)
    rows = [
        {"method": method, "cells": [column["cells"][place] for column in columns]}
        for place, method in enumerate(summary["methods"])
    ]
    return {"columns": columns, "rows": rows, "protocol": summary["protocol"]}


def _run(folder: Path, about: dict) -> dict:
    """What the page of a kept run shows."""
    summary, given = about["summary"], about["parameters"]
    main = {name: metric for name, metric in summary["metrics"].items() if name in pipeline.HEADLINE}
    scored = json.loads((folder / "protocol.json").read_bytes())
    return {
        "title": about["name"],
        "about": about,
        "told": kept.in_words(about),
        "headlines": terminal.headlines(folder)[:-1],  # the last names a page of reports/
        "main": shown(summary | {"metrics": main}),
        "all": shown(summary),
        "protocol": recorded.lines(scored["protocol"] | {"intervals": given["evaluate"]["intervals"]}),
        "parameters": {stage: recorded.lines(values) for stage, values in given.items()},
        "identity": recorded.lines(about["revision"] | summary["run"] | {"scores": scored["digest"]}),
        "numbers": [f"{folder.name}/{name}" for name in (kept.ABOUT, *about["files"])],
    }


def _circumstances(root: Path, made) -> dict:
    """What the front page shows of the run's settings: parameters of the stages that were `made`, scale, versions."""
    lock, scales = parameters.read(root / "dvc.lock"), parameters.read(root / "params.yaml")["scales"]
    ran = [stage for stage in made if stage in lock["stages"]]
    received = {stage: recorded.lines(recorded.received(lock, stage, scales)) for stage in ran}
    return {"parameters": received, "scale": recorded.scale(lock), "versions": recorded.versions(root)}


def report_content(page: Path) -> str:
    """What a report says, without the head, the style and the navigation that it was rendered with."""
    found = re.search(r"<main[^>]*>(.*)</main>", page.read_text(encoding="utf-8"), re.DOTALL)
    if not found:
        raise SiteError(f"{page} has no <main> and is no report of the pipeline; restore it with: git checkout {page}")
    return found[1].replace(f'href="../{DOCS}/', f'href="{DOCS}/')


def score_columns(summary: dict) -> list[dict]:
    """A column per metric of metrics.json, then one per plain number that methods have there (passes, failures).

    Each with the order that puts the best first, and a cell per method: value (None where it has no score), text,
    interval, and whether it is the best of the column.
    """
    metrics, methods = summary["metrics"], summary["methods"]
    numbers = [key for row in methods.values() for key, value in row.items() if type(value) in (int, float)]
    counts = [key for key in dict.fromkeys(numbers) if key not in metrics]
    columns = []
    for key in (*metrics, *counts):
        about = metrics.get(key, {"label": key.replace("_", " "), "arrow": "", "unit": ""})
        cells = [cell(row.get(key), 1 if about["unit"] == "percent" else 3) for row in methods.values()]
        values = [cell["value"] for cell in cells if cell["value"] is not None]
        if about["arrow"] and values:
            best = max(values) if about["arrow"] == "↑" else min(values)
            next(cell for cell in cells if cell["value"] == best)["best"] = True
        label = "\N{NO-BREAK SPACE}".join(filter(None, (about["label"], about["arrow"])))
        first = "descending" if about["arrow"] == "↑" else "ascending"
        columns.append({"label": label, "unit": about["unit"], "first": first, "cells": cells})
    return columns


def cell(score, digits: int) -> dict:
    """One score as it is shown: a mean with its interval if it has one, a share of passes, or a count."""
    value = score["mean"] if isinstance(score, dict) else score
    if value is None or not math.isfinite(value):
        return {"value": None, "text": "–", "interval": ""}
    if isinstance(score, dict):
        interval = f"{score['low']:.{digits}f} – {score['high']:.{digits}f}" if "low" in score else ""
        return {"value": value, "text": f"{value:.{digits}f}", "interval": interval}
    return {"value": value, "text": str(value) if isinstance(value, int) else f"{value:.2f}", "interval": ""}


def check(root: Path):
    """Raise `SiteError`, with all reasons, where the reports are not those of one whole run, or hold links.

    `kept.KeptError` where a kept run is not as it was kept.
    """
    _refuse_links(root)
    kept.kept(root)
    if problems := outputs.outdated(root):
        raise SiteError("\n".join([*problems, "these reports are not those of one whole run; mend with: make repro"]))


def _refuse_links(root):
    if found := outputs.links(root):
        names = ", ".join(map(outputs.printable, found))
        raise SiteError(f"the site follows no link; remove it, or put what it leads to in its place: {names}")


def publish(root: Path, target: Path, remote: str, branch: str, tell=lambda text: None) -> str:
    """Make the site in `target` and push it as the next commit of `branch` of `remote`; what was done, in words.

    Before anything is pushed, `tell` is called with what goes, as by `build`.

    Neither the working tree nor the index is touched: the files go into an index of their own and become a commit
    whose parent is the branch as the remote has it. A branch that holds something else than a site is left alone.
    """
    if not remote:
        raise SiteError("name the git remote to publish to: make publish REMOTE=origin")
    check(root)
    name = f"refs/heads/{branch}"
    git.said(root, "check-ref-format", name)
    parent = git.said(root, "ls-remote", "--", remote, name).split("\t")[0]
    if parent:
        git.said(root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", remote, name)
        if not git.said(root, "ls-tree", "--name-only", parent, "index.html"):
            raise SiteError(f"branch '{branch}' of {remote} holds something else than a site; choose another BRANCH")
    build(root, target, tell)
    with tempfile.TemporaryDirectory() as scratch:
        own_index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        as_it_is = ["-c", "core.autocrlf=false", "--work-tree", str(target.resolve())]
        git.said(root, *as_it_is, "add", "--all", "--force", "--", str(target.resolve()), environment=own_index)
        tree = git.said(root, "write-tree", environment=own_index)
    if parent and tree == git.said(root, "rev-parse", f"{parent}^{{tree}}"):
        return f"branch '{branch}' of {remote} holds this site already"
    message = f"The site of {git.said(root, 'rev-parse', '--short', 'HEAD')}"
    commit = git.said(root, "commit-tree", tree, *(("-p", parent) if parent else ()), "-m", message)
    git.said(root, "push", "--quiet", "--", remote, f"{commit}:{name}")
    return f"published as {commit[:10]} on branch '{branch}' of {remote}"


def main():
    begin_in_utf_8()
    parser = argparse.ArgumentParser(prog="python -m xai_utils.pipeline.site", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help=f"make {SITE}/ from the reports of the last run")
    commands.add_parser("check", help="whether the reports are those that dvc.lock records")
    publishing = commands.add_parser("publish", help=f"check, build, and push {SITE}/ to a branch of a git remote")
    publishing.add_argument("remote", help="a remote's name, address or folder")
    publishing.add_argument("branch", nargs="?", default="gh-pages")
    chosen = parser.parse_args()
    root = Path()
    try:
        enter_project()
        if chosen.command == "build":
            build(root, root / SITE, print)
            for problem in outputs.outdated(root):
                print(problem, file=sys.stderr)
            print(f"open {SITE}/index.html")
        elif chosen.command == "check":
            check(root)
        else:
            print(publish(root, root / SITE, chosen.remote, chosen.branch, print))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
