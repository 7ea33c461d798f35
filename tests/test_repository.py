"""What holds the repository together: one source of dependencies, clean notebooks, rooms that import downwards."""

import ast
import json
import re
import subprocess
import tomllib

import nbformat
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from xai_utils import parameters, pipeline, report

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FLOORS = [
    {"images", "distributed", "checkpoints", "parameters"},
    {"datasets", "networks"},
    {"training", "tasks"},
    {"distillation", "mask_prediction"},
    {"explainers", "metrics"},
    {"attention_training"},
    {
        "maps",
        "evaluation",
        "tables",
        "fastcam_tables",
        "fastcam_claims",
        "akd_tables",
        "amg_tables",
        "claims",
        "dgle_tables",
        "sanity_tables",
        "schematics",
        "plots",
        "report",
    },
    {"pipeline"},
    {"site", "widgets"},
]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    """Package -> its pinned versions (markers may split one by Python version)."""
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if "==" in line:
            name, version = line.split(";")[0].strip().split("==")
            found.setdefault(normal(name), []).append(version)
    return found


def test_the_lock_pins_every_dependency_and_no_address():
    """pyproject.toml is the source: each requirement is pinned, satisfied and nothing names an index."""
    from packaging.requirements import Requirement

    extras = project()["optional-dependencies"]
    asked = [Requirement(line) for line in [*project()["dependencies"], *(r for e in extras.values() for r in e)]]
    assert "://" not in (ROOT / "requirements.lock").read_text()
    for requirement in asked:
        versions = pins().get(normal(requirement.name))
        assert versions, f"{requirement.name} is not in requirements.lock; run make lock"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: run make lock"


def test_conda_follows_the_lock():
    """environment.yml repeats no version: it asks for Python as pyproject.toml does and for the lock."""
    environment = YAML(typ="safe").load(ROOT / "environment.yml")
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert [name for name in conda if not name.startswith("python=")] == ["pip", "make"]
    assert project()["requires-python"] == ">=" + next(n for n in conda if n.startswith("python=")).split("=")[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    """A committed notebook is exactly what `python -m xai_utils.pipeline --strip` makes of it."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), f"{path.name} holds outputs; clear them before committing"
        assert cell.get("execution_count") is None
    assert notebook == report.strip(nbformat.read(path, as_version=4))
    nbformat.validate(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_read_like_a_chapter(path):
    """Short cells (but for the list of parameters), no function definitions, no shell lines, nothing of one machine."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            lines = len(cell.source.splitlines())
            assert lines <= 22 or "parameters" in cell.metadata.get("tags", []), f"{path.name}: a cell of {lines} lines"
            assert not re.search(r"(?m)^\s*(def |class |!|%)", cell.source), f"{path.name}: {cell.source[:60]}"
            assert not re.search(r"/(home|scratch|content|Users)/", cell.source)


def test_stage_is_notebook_is_section_is_report():
    """One word for all four: dvc.yaml, notebooks/, params.yaml and the typed models name the same stages."""
    values = parameters.read(ROOT / "params.yaml")
    stages = [stage for stage in parameters.read(ROOT / "dvc.yaml")["stages"] if stage != "strip"]
    sections = [key for key in values if key not in (*parameters.SHARED, "scale", "scales")]
    assert set(stages) == set(sections) == set(parameters.STAGES) == set(pipeline.notebooks(ROOT / "notebooks"))
    assert all(set(scale) == set(sections) for scale in values["scales"].values())


@pytest.mark.parametrize("stage", parameters.STAGES)
def test_a_notebook_opened_by_hand_starts_with_the_default_parameters(stage):
    """The parameters cell holds exactly what the pipeline would give at the committed settings, as literals."""
    notebook = nbformat.read(pipeline.notebooks(ROOT / "notebooks")[stage], as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert values == parameters.resolve(parameters.read(ROOT / "params.yaml"), stage)


@pytest.mark.parametrize("stage", parameters.STAGES)
def test_dvc_watches_the_parameters_a_stage_receives(stage):
    """A stage reruns when one of its parameters changes, and not for another stage's."""
    watched = parameters.read(ROOT / "dvc.yaml")["stages"][stage]["params"]
    shared = [key for key in parameters.SHARED if key in parameters.STAGES[stage].model_fields]
    assert sorted(watched) == sorted([*shared, stage, "scales.${scale}." + stage])


@pytest.mark.parametrize("path", sorted((ROOT / "xai_utils").rglob("*.py")), ids=lambda path: path.stem)
def test_a_room_imports_only_from_lower_floors(path):
    """The direction of imports that the design fixes."""
    parts = path.relative_to(ROOT / "xai_utils").with_suffix("").parts
    if parts == ("__init__",):
        return
    floor = next(number for number, rooms in enumerate(FLOORS) if parts[0] in rooms)
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xai_utils"):
            rest = node.module.split(".")[1:]
            names = [rest[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("xai_utils.")]
        for name in names:
            there = next(number for number, rooms in enumerate(FLOORS) if name in rooms)
            assert name == parts[0] or there <= floor, f"{path.name} (floor {floor}) imports {name} (floor {there})"


def test_committed_text_names_no_machine_and_no_registry():
    """Reports, locks and sources carry no path of the machine that made them and no package host."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    paths = re.compile(r"(?<![\w.])/(?:" + "|".join(["home", "root", "work", "tmp", "Users"]) + r")/\w")
    hosts = re.compile("|".join(["py" r"pi\.org", "python" r"hosted\.org", "registry" r"\.npm"]))
    for name in listed.stdout.split("\0"):
        file = ROOT / name
        if file.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".lock", ".ipynb", ".json", ".html", ".csv", ".tsv"}:
            text = file.read_text(encoding="utf-8")
            assert not hosts.search(text), f"{name} names a package host"
            assert not paths.search(text), f"{name} holds {paths.search(text).group()}"


def test_reports_are_small_and_need_no_network():
    """The committed pages open from disk: no script but the sorting one, no address to fetch, at most 8 MB in all."""
    files = [path for path in (ROOT / "reports").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    for page in (ROOT / "reports").glob("*.html"):
        text = re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", page.read_text(encoding="utf-8"))
        assert "default-src 'none'" in text
        text = text.replace(f"<script>{report.sorting_script()}</script>", "")
        assert not re.search(r"<script|<iframe|<link|@import|(?:src|href)=\"(?:https?:)?//", text), page.name


def test_the_readme_shows_the_committed_results():
    """The table in README.md is the one `make readme` makes of the committed reports."""

    def committed(name):
        return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True)

    results, readme = committed("reports/metrics.json"), committed("README.md")
    if results.returncode or readme.returncode:
        pytest.skip("not a git checkout with committed results")
    block = readme.stdout.split(report.RESULTS_START)[1].split(report.RESULTS_END)[0].strip()
    assert block == pipeline.headline(json.loads(results.stdout))
