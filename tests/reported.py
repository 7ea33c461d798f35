"""A project whose pipeline has run, as far as a site needs it."""

import json
import shutil

from conftest import ROOT
from ruamel.yaml import YAML

PARTS = ("reports", "notebooks", "docs", "dvc.lock", "dvc.yaml", "params.yaml", "pyproject.toml", "requirements.lock")


def project(folder):
    """A copy of what the site is made of."""
    folder.mkdir(parents=True)
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def change(path, edit):
    """Read the JSON or YAML file `path`, let `edit` change the value, write it."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))
    else:
        yaml = YAML()
        value = yaml.load(path)
        edit(value)
        yaml.dump(value, path)
