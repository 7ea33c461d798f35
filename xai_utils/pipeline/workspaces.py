"""A workspace: a folder where some stages run as in the project, and leave the project's own run as it is.

Its params.yaml is its own; data, notebooks and docs are links to the project's.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from xai_utils import files
from xai_utils.pipeline import dependencies, parameters, stage

DONE = stage.FAILED / "done.json"  # of a workspace: stage -> what it was made from


def link(workspace: Path, project: Path, *, weights: Path | None = None, stages: Iterable[str] = parameters.STAGES):
    """Lead from the workspace to what the `stages` read and their pages name.

    `weights`: the folder that is data/weights there, None: the project's.
    """
    links = {f"data/{path.name}": path for path in (project / "data").iterdir() if path.name != "weights"}
    links |= {"data/weights": weights or project / "data" / "weights", "docs": project / "docs"}
    sources = stage.notebooks(project / "notebooks")
    links |= {f"notebooks/{sources[each].name}": sources[each] for each in stages}
    for name, path in links.items():
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).unlink(missing_ok=True)
        (workspace / name).symlink_to(path)


def run(values: dict, inputs: dict, *, told: str, finished: Callable[[str], object] = lambda stage: None) -> str | None:
    """Run the stages that are not done as they stand, in this workspace, by the order of the pipeline; which failed.

    `values`: of its params.yaml; `inputs`: stage -> what stands for those inputs that are not in it; `told`: the scale,
    as the terminal shows it; `finished(stage)` is called behind each that has run. A stage is done where its
    parameters, code, inputs and those of the stages before are.
    """
    sources = stage.notebooks()
    described = {each: about for each, about in _pipeline()["stages"].items() if each in sources}
    try:
        done = json.loads(DONE.read_bytes())
    except (OSError, ValueError):
        done = {}
    before, kept = None, {}
    for each in _in_order(described):
        given = parameters.resolve(values, each, written=True)
        code = files.files_fingerprint(*(stage.ROOT / path for path in dependencies.of_notebook(sources[each])))
        before = files.fingerprint([before, given, stage.stripped(sources[each]), code, inputs.get(each)])
        outputs = dependencies.outputs(described[each])
        if done.get(each) != before or not all(Path(path).exists() for path in outputs):
            files.write_json(DONE, kept)
            stage.remove_outputs(described[each])
            if stage.perform(each, sources[each], parameters.resolve(values, each), told, described):
                return each
            finished(each)
        kept[each] = before
        files.write_json(DONE, kept)
    return None


def _pipeline():
    return parameters.read(stage.ROOT / "dvc.yaml")


def _in_order(described) -> list[str]:
    """The stages, each behind those whose outputs it reads."""
    found = []

    def add(name):
        deps = set(described[name].get("deps", []))
        for other, about in described.items():
            if other != name and deps & set(dependencies.outputs(about)):
                add(other)
        if name not in found:
            found.append(name)

    for name in described:
        add(name)
    return found
