"""What would stop a stage, found before any runs: minutes of training must not end in a typo.

Values are checked by what each stage calls itself (parameters.py). Names, options, networks and weights are looked at
in preflight.py, which needs torch and hence seconds, where something is not as dvc.lock records it: what has run
knew all names.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from xai_utils.pipeline import parameters, raw_data

ANSWER = 5  # seconds in which a scheduler answers
WEIGHTS, CODE = "data/weights", "xai_utils"


class Entry(BaseModel):
    """A file or a folder as dvc.lock knows it."""

    path: str
    size: int | None = None  # bytes


class Recorded(BaseModel):
    """The last run of a stage."""

    params: dict[str, dict[str, Any]] = {}
    deps: list[Entry] = []


class Lock(BaseModel):
    """dvc.lock, as far as it is read here."""

    stages: dict[str, Recorded]


class Pipeline(BaseModel):
    """dvc.yaml, as far as it is read here."""

    stages: dict[str, dict[str, Any]]


def problems(values: dict | None = None, *, notebook: Callable[[str, dict], object] | None = None) -> list[str]:
    """All that is wrong with `values` (None: those of params.yaml), the data set and DVC's files, a line each.

    Run in the project's folder. Values are looked at for every scale, the networks at the chosen one.
    `notebook(stage, parameters)` raises what is wrong with the stage's notebook.
    """
    try:
        values = parameters.read() if values is None else values
    except ValueError as error:
        return [str(error)]
    (chosen, *others), found = _resolved(values)
    for stage, received in chosen.items():
        found += _said(notebook, stage, received) if notebook else []
    if "prepare_data" in chosen:
        found += raw_data.problems(Path(chosen["prepare_data"]["dataset"]))
        found += _said(_require_data, Path(chosen["prepare_data"]["dataset"]))
    for address in {given["compute"]["scheduler"] for given in chosen.values() if "compute" in given} - {None}:
        found += _said(_require_answer, address)
    pipeline, wrong = _opened(Path("dvc.yaml"), Pipeline)
    found += wrong
    if missing := [stage for stage in parameters.STAGES if pipeline and stage not in pipeline.stages]:
        found.append(f"dvc.yaml lacks the stages {', '.join(missing)}; restore it with: git checkout dvc.yaml")
    found += _opened(Path("dvc.lock"), Lock)[1]
    if _first_to_run(values):
        from xai_utils.pipeline import preflight  # torch

        found += [line for given in (chosen, *others) for line in preflight.names(given)]
        found += preflight.trainings(chosen)
        found += preflight.networks(chosen)
    return list(dict.fromkeys(found))


def require(stage: str):
    """ParameterError with all `problems` where `stage` is the first of a run: it is for the later ones, too."""
    if stage == _first_to_run(values := parameters.read()) and (found := problems(values)):
        raise parameters.ParameterError("\n".join(found))


def _first_to_run(values) -> str | None:
    """The first stage that has not run as it stands, as far as dvc.lock tells."""
    lock = _opened(Path("dvc.lock"), Lock)[0] or Lock(stages={})
    return next((stage for stage in parameters.STAGES if not _has_run(lock.stages.get(stage), values)), None)


def _said(function, *arguments) -> list[str]:
    """What `function` raises of these arguments, line by line."""
    try:
        function(*arguments)
    except (OSError, ValueError) as error:
        return str(error).splitlines()
    return []


def _resolved(values) -> tuple[list[dict], list[str]]:
    """What the stages receive, as far as it is right, stage -> parameters, at the chosen scale and at each other one.

    And what is wrong.
    """
    chosen, scales, given, found = values.get("scale"), values.get("scales"), [], []
    for scale in (chosen, *(each for each in (scales if isinstance(scales, list) else ()) if each != chosen)):
        given.append({})
        for stage in parameters.STAGES:
            try:
                given[-1][stage] = parameters.resolve(values | {"scale": scale}, stage)
            except ValueError as error:
                found += str(error).splitlines()
    return given, found


def _require_answer(address: str):
    """ValueError where nobody listens at a scheduler's address."""
    place = urlsplit(address)
    try:
        socket.create_connection((place.hostname, place.port), timeout=ANSWER).close()
    except OSError as error:
        raise ValueError(
            f"params.yaml: compute.scheduler = '{address}' cannot be reached ({error}); start a scheduler there "
            "(python -m dask scheduler), or leave it empty"
        ) from None


def _require_data(folder: Path):
    """ValueError where `folder` cannot hold the images."""
    if not folder.is_dir():
        from xai_utils.datasets.published import advice  # imports torch: only where it has something to say

        there = sorted(path.name for path in folder.parent.glob("*/")) if folder.parent.is_dir() else []
        raise ValueError(
            f"params.yaml: dataset = '{folder}' is no folder; "
            f"{folder.parent}/ holds {', '.join(there) or 'no folder'}{advice(folder)}"
        )
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ValueError(f"params.yaml: dataset = '{folder}' holds this project; name the folder of the images alone")
    if not any(folder.iterdir()):
        raise ValueError(f"params.yaml: dataset = '{folder}' is empty; put class folders of images into it")


def _opened(path: Path, model: type[BaseModel]):
    """A file of DVC's as a `model`, None where it is absent or damaged; and what is wrong."""
    if not path.exists():
        return None, []
    try:
        return model.model_validate(parameters.read(path)), []
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{path} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']}); restore it with: git checkout"
        return None, [f"{why} {path}"]
    except ValueError as error:
        return None, [str(error)]


def _has_run(recorded: Recorded | None, values: dict) -> bool:
    """Whether a stage has run with these values, and its code and the weights of data/ are as large as then."""
    before = recorded and recorded.params.get("params.yaml")
    return (
        bool(before)
        and all(_at(values, key) == value for key, value in before.items())
        and all(
            _size(Path(entry.path)) == entry.size for entry in recorded.deps if entry.path.startswith((WEIGHTS, CODE))
        )
    )


def _at(values: dict, key: str):
    """The value that DVC calls `key`, such as compute.device; ... where there is none."""
    for part in key.split("."):
        values = values.get(part, ...) if isinstance(values, dict) else ...
    return values


def _size(path: Path) -> int:
    """The bytes of a file or of a folder's files, without what Python compiled."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc")
