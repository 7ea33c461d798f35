"""A scratch copy of the pipeline, and its stages one by one."""

import os
import shutil
import subprocess
import sys

from conftest import ROOT
from ruamel.yaml import YAML

from xai_utils.pipeline import parameters
from xai_utils.pipeline.stage import STAGE, notebooks, stripped


def project(folder, **changes):
    """A copy of the pipeline in `folder` with some parameters changed ("section.key": value)."""
    for name in ("notebooks", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    change(folder / "params.yaml", **changes)
    return folder


def change(path, **changes):
    """Other values ("section.key": value) in the parameters at `path`, whatever they are now."""
    yaml = YAML()
    values = yaml.load(path)
    for key, value in changes.items():
        *above, last = key.split(".")
        place = values
        for part in above:
            place = place[part]
        place[last] = value
    yaml.dump(values, path)


def run(folder, *stages):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for stage in stages:
        command = [sys.executable, "-m", "xai_utils.pipeline", stage]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{stage}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def execute(folder, stage):
    """Run a stage's notebook in this process, where a test has changed something; its names as they are at the end."""
    path = notebooks(folder / "notebooks")[stage]
    space = dict(parameters.resolve(parameters.read(folder / "params.yaml"), stage))
    here = os.getcwd()
    os.chdir(folder)
    os.environ[STAGE] = stage  # as the pipeline runs it
    try:
        for cell in stripped(path).cells:
            if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
                exec(compile(cell.source, f"{path.name}, {cell.id}", "exec"), space)
    finally:
        os.chdir(here)
        del os.environ[STAGE]
    return space
