"""What a run was made with: its scale, its parameters, of which files it was made, and the versions that are pinned."""

import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path

from xai_utils import runs
from xai_utils.pipeline import git, parameters

TOLD = ("torch", "torchvision", "numpy", "scikit-image")  # libraries that a page names: maps and scores depend on them
HERE = ("build/notebooks/", "xai_utils/")  # where the code lies, among what stages depend on
FORGOTTEN = ("build/notebooks", "build/runs/", "reports/")  # copies of what stands elsewhere, among what stages make


def scale(lock: dict) -> str:
    """The scale of the run, "" where no stage has run."""
    found = (about["params"]["params.yaml"]["scale"] for about in lock["stages"].values() if "params" in about)
    return next(found, "")


def received(lock: dict, stage: str, scales: list[str]) -> dict:
    """The parameters that `stage` received when it last ran, at the scale of that run."""
    recorded = dict(lock["stages"][stage]["params"]["params.yaml"])
    if "scale" not in recorded:
        raise parameters.ParameterError(
            f"dvc.lock has no scale for {stage}: an earlier version made these reports; run make repro"
        )
    for key in [key for key in recorded if "." in key]:  # of a section of which some values change no result
        section, name = key.split(".")
        recorded.setdefault(section, {})[name] = recorded.pop(key)
    run_at = recorded.pop("scale")
    return parameters.at_scale(recorded | recorded.pop(stage), run_at, scales, stage)


def lines(values: dict, prefix="") -> dict[str, str]:
    """One line per value, at whatever depth: name.name -> its text."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= lines(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def hashes(lock: dict) -> dict[str, dict[str, str]]:
    """path -> MD5 as dvc.lock records it: of the `data` that were given, of the `code`, of what was `made` of both."""
    stages = lock["stages"].values()
    outs = {entry["path"]: entry["md5"] for about in stages for entry in about["outs"]}
    deps = {entry["path"]: entry["md5"] for about in stages for entry in about.get("deps", [])}
    code = {path: md5 for path, md5 in deps.items() if path.startswith(HERE)}
    given = {path: md5 for path, md5 in deps.items() if path not in (outs | code | {"notebooks": ""})}
    made = {path: md5 for path, md5 in outs.items() if not path.startswith(FORGOTTEN)}
    return {"data": given, "made": made, "code": code}


def versions(root: Path) -> dict[str, str]:
    """The version that requirements.lock pins of each library that the pipeline asks for in pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["pipeline"]]
    pins = re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", (root / "requirements.lock").read_text(encoding="utf-8"))
    names = [re.match(r"[\w.-]+", line)[0] for line in asked]
    return {name: version for name in names for pinned, version in pins if pinned == name}


def about(scale: str) -> dict[str, str]:
    """Of which run a page of the entered project is: data, network, scale, versions, commit, as far as known."""
    found, run = {}, {}
    if Path("build/data/dataset.json").is_file():
        run = runs.identity(None, target="build/target" if Path("build/target/target.json").is_file() else None)
    found |= {head: run[part] for head, part in {"data": "data", "network": "target"}.items() if part in run}
    found["scale"] = scale
    if Path("requirements.lock").is_file():
        pinned = versions(Path())
        found["libraries"] = ", ".join(f"{name} {pinned[name]}" for name in TOLD if name in pinned)
    with suppress(git.GitError, OSError):  # no repository, or no git
        found["commit"] = git.said(Path(), "log", "-1", "--format=%h of %cs")
    return found
