"""A notebook that a person runs: it reads what the pipeline made and writes into a place of its own.

The working folder becomes build/by-hand/STAGE, where links lead to all that a stage reads, so the cells need not know
who runs them, and nothing that the pipeline made or that git and DVC watch changes. JupyterLab saves a notebook of
notebooks/ as the source that it is; what it shows is kept beside the results.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import nbformat

from xai_utils.files import write_text
from xai_utils.pipeline import cells, dependencies, parameters, report

PLACE = Path("build/by-hand")
MADE = ("build/", "reports/")  # what stages write into
_overrides: dict[str, list[str]] = {}  # stage, begun in this process -> what makes its values the pipeline's


def begin(stage: str, names: dict) -> None:
    """Make build/by-hand/STAGE, emptied by the first call of a process, the working folder; say what that means.

    `names`: those of the notebook; its parameters in them are checked, and given, as params.yaml's are. The working
    folder is the project's root. FileNotFoundError naming what an earlier stage has not made yet.
    """
    raw, about = parameters.read(), parameters.read("dvc.yaml")["stages"]
    given = parameters.resolve(raw, stage, written=True)
    tried = {name: names[name] for name in given if name in names}
    names.update(parameters.checked(tried, stage, source="the parameters cell"))
    if Path(names.get("dataset", "")).parts[:1] == ("..",):  # beside the project, not beside the scratch folder
        names["dataset"] = str(Path(names["dataset"]).resolve())
    read = [path for path in about[stage]["deps"] if path.startswith(MADE) and not path.startswith("build/notebooks/")]
    for path in read:
        if not Path(path).exists():
            maker = next(name for name, described in about.items() if path in dependencies.outputs(described))
            raise FileNotFoundError(f"{path} is missing; the stage {maker} makes it: dvc repro {maker}")
    scratch = Path.cwd() / PLACE / stage
    if stage not in _overrides:
        shutil.rmtree(scratch, ignore_errors=True)
    for path in dependencies.outputs(about[stage]):
        (scratch / path).parent.mkdir(parents=True, exist_ok=True)
    for path in [*_inputs(), *read]:
        link = scratch / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path.cwd() / path)
    _overrides[stage] = overrides(tried, raw, stage)
    os.chdir(scratch)
    print(f"Run by hand: its results go to {PLACE / stage}/, what the pipeline made stays.\n{_advice(stage)}")


def end() -> None:
    """Say where the results are, and what makes them the pipeline's."""
    if (stage := Path.cwd().name) not in _overrides:
        raise RuntimeError("this notebook has not begun: run its cells from the first on")
    print(f"Results of this run by hand: {PLACE / stage}/\n{_advice(stage)}")


def _advice(stage: str) -> str:
    if not _overrides[stage]:
        return f"Its parameters are those of params.yaml, with which the pipeline runs it: dvc repro {stage}"
    told = " ".join(f"-S {shlex.quote(each)}" for each in _overrides[stage])
    return f"The pipeline runs with these parameters by: dvc exp run {told}"


def _inputs() -> list[str]:
    """The project's folders that no stage writes into, and that of the checkpoints, which all trainings share."""
    Path(".checkpoints").mkdir(exist_ok=True)
    shown = [path.name for path in Path().iterdir() if path.is_dir() and not path.name.startswith(".")]
    return [".checkpoints", *(name for name in shown if f"{name}/" not in (*MADE, "site/"))]


def overrides(tried: dict, raw: dict, stage: str) -> list[str]:
    """What `dvc exp run -S` needs so that params.yaml, which says `raw`, gives `stage` the parameters `tried`.

    Of a value by scale, that of the chosen scale is set: hydra replaces no mapping by a list.
    """
    found = []
    for name, value in parameters.resolve(raw, stage, written=True).items():
        inside, path = (raw, name) if name in parameters.SHARED else (raw[stage], f"{stage}.{name}")
        found += _differences(path, tried[name], value, inside.get(name, ...), raw)
    return found


def _differences(path: str, tried, given, there, raw: dict) -> list[str]:
    """Overrides for the value at `path` of params.yaml, where `there` stands (...: nothing), to be `tried`."""
    if tried == given and isinstance(tried, bool) == isinstance(given, bool):
        return []
    if isinstance(there, dict) and any(name in raw["scales"] for name in there):
        path, there = f"{path}.{raw['scale']}", there.get(raw["scale"], ...)
    if isinstance(tried, dict) and isinstance(given, dict) and isinstance(there, dict):
        found = [f"~{path}.{name}" for name in given if name not in tried]
        for name, value in tried.items():
            found += _differences(f"{path}.{name}", value, given.get(name, ...), there.get(name, ...), raw)
        return found
    return [f"{'+' if there is ... else ''}{path}={_in_hydra(tried)}"]


def _in_hydra(value) -> str:
    """A value in the grammar of hydra's overrides, which DVC reads."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_in_hydra(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_hydra, value)) + "]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w/.-]*", value) and value not in ("null", "true", "false", "nan", "inf")
        return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)


def keep_source(model: dict, path: str, contents_manager, **_) -> None:
    """JupyterLab's pre_save_hook: a notebook of notebooks/ is saved as source, its parameters cell as it was.

    With its outputs and values it goes to build/by-hand/NAME.ipynb, to be read and run there. A parameters cell that
    assigns other names than before is a change of the source, and saved as such.
    """
    place = Path(contents_manager.root_dir, path.lstrip("/")).resolve()
    project = place.parent.parent
    if model["type"] != "notebook" or place.parent.name != "notebooks" or not (project / "params.yaml").is_file():
        return
    shown = nbformat.writes(nbformat.from_dict(model["content"]))
    source = report.strip(nbformat.reads(shown, as_version=4))
    cell, before = report.parameters_cell(source), place.is_file() and report.parameters_cell(nbformat.read(place, 4))
    if cell and before and _same_names(cell.source, before.source):
        cell.source = before.source
    model["content"] = source
    copy = project / PLACE / f"{place.stem.lstrip('0123456789_')}.ipynb"
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_text(copy, shown.replace("](../", "](../../") + "\n")  # links of its texts: the copy lies one folder deeper


def _same_names(source: str, before: str) -> bool:
    try:
        return cells.names(source) == cells.names(before)
    except ValueError:  # half written, or more than values: no change of the source
        return True
