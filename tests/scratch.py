"""A scratch copy of the pipeline, and its stages one by one."""

import os
import shutil
import subprocess
import sys

from conftest import ROOT
from ruamel.yaml import YAML


def project(folder, **changes):
    """A copy of the pipeline in `folder` with some parameters changed ("section.key": value)."""
    for name in ("notebooks", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    for key, value in changes.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    yaml.dump(values, folder / "params.yaml")
    return folder


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
