"""What holds the repository together: one source of dependencies, clean notebooks, rooms that import downwards."""

import ast
import graphlib
import io
import json
import re
import statistics
import subprocess
import tomllib
import zipfile

import nbformat
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from xai_utils.pipeline import beside, cells, dependencies, git, kept, parameters, report, stage
from xai_utils.training.distributed import Compute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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
    asked = [each for each in asked if normal(each.name) != normal(project()["name"])]  # an extra that names another
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
    """Short cells (but for the list of parameters), no shell lines, nothing of one machine.

    Functions are the library's, but for those that the reader is to write: they stand in a cell tagged "yours".
    """
    sizes = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            lines, tags = len(cell.source.splitlines()), cell.metadata.get("tags", [])
            assert lines <= 22 or "parameters" in tags, f"{path.name}: a cell of {lines} lines"
            forbidden = r"(?m)^\s*(!|%)" if "yours" in tags else r"(?m)^\s*(def |class |!|%)"
            assert not re.search(forbidden, cell.source), f"{path.name}: {cell.source[:60]}"
            assert not re.search(r"/(home|scratch|content|Users)/", cell.source)
            sizes += [] if "parameters" in tags else [lines]
    assert statistics.median(sizes) <= 10, f"{path.name}: half of its cells are longer than 10 lines"


def test_stage_is_notebook_is_section_is_report():
    """One word for all four: dvc.yaml, notebooks/, params.yaml and the typed models name the same stages."""
    values = parameters.read(ROOT / "params.yaml")
    stages = [name for name in parameters.read(ROOT / "dvc.yaml")["stages"] if name != "strip"]
    sections = [key for key in values if key not in (*parameters.SHARED, "scale", "scales")]
    assert set(stages) == set(sections) == set(parameters.STAGES) == set(stage.notebooks(ROOT / "notebooks"))


def committed(name):
    """A file as it was committed last; the test skips outside of a checkout."""
    found = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"{name} is not committed here")
    return found.stdout


@pytest.mark.parametrize("name", parameters.STAGES)
def test_parameters_cells_are_those_of_params_yaml(name, tmp_path):
    """The committed cell is what `make notebooks` writes of the committed params.yaml: names, values, reasons."""
    path = stage.notebooks(ROOT / "notebooks")[name]
    (tmp_path / "params.yaml").write_text(committed("params.yaml"), encoding="utf-8")
    notebook = nbformat.reads(committed(f"notebooks/{path.name}"), as_version=4)
    expected = cells.source(name, tmp_path / "params.yaml")
    assert report.parameters_cell(notebook).source == expected, "run make notebooks"


@pytest.mark.parametrize("name", parameters.STAGES)
def test_a_notebook_has_the_parameters_of_its_section(name):
    """A key that was added to params.yaml, or taken away, is one of the cell, too."""
    notebook = stage.stripped(stage.notebooks(ROOT / "notebooks")[name])
    declared = {node.targets[0].id for node in ast.parse(report.parameters_cell(notebook).source).body}
    assert declared == set(parameters.resolve(parameters.read(ROOT / "params.yaml"), name))


@pytest.mark.parametrize("name", parameters.STAGES)
def test_dvc_watches_the_parameters_a_stage_receives(name):
    """A stage reruns when one of its parameters changes, and not for another stage's, or for what changes no result."""
    listed = parameters.read(ROOT / "dvc.yaml")["stages"][name]["params"]
    watched = [key for each in listed for key in ([each] if isinstance(each, str) else each["params.yaml"])]
    shared = [key for key in parameters.SHARED if key in parameters.STAGES[name].model_fields]
    if "compute" in shared:
        shared.remove("compute")
        shared += [f"compute.{key}" for key in Compute().decisive()]
    assert sorted(watched) == sorted(["scale", *shared, name])


def test_dvc_watches_the_code_that_makes_a_stage_s_results():
    """The code dependencies in dvc.yaml are those that the notebooks' imports lead to."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert dependencies.written(text, stage.notebooks(ROOT / "notebooks")) == text, "run make notebooks"


def test_dvc_writes_params_yaml_back_as_it_is(tmp_path):
    """`dvc exp run -S` changes the line of the parameter that it sets, and no other."""
    from dvc.utils.hydra import apply_overrides

    path, before = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    apply_overrides(path, ["finetune_target.halve_every=7"])
    after = path.read_text(encoding="utf-8")
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    assert [new.split("#")[0].strip() for old, new in pairs if old != new] == ["halve_every: 7"]


def imports(path):
    """(line, module) of what a file imports of the package, as dotted names that exist as files."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xai_utils":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if module_file(inner) else node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("xai_utils."))


def module_file(dotted):
    place = ROOT.joinpath(*dotted.split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


def running_up(graph):
    """The imports that close a circle, "file line imports module" each: (node, node) -> such texts in `graph`.

    Floors follow from the imports themselves: a room stands above all that it imports, unless it imports what stands
    above it. Of the imports that close a circle those between two rooms with the fewest of them are named.
    """
    nodes = {}
    for above, below in graph:
        nodes.setdefault(above, set()).add(below)
    try:
        graphlib.TopologicalSorter(nodes).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]  # each imports the one before it
        steps = [(circle[place + 1], circle[place]) for place in range(len(circle) - 1)]
        return min((graph[step] for step in steps), key=len)
    return []


def test_imports_run_downwards():
    """Neither rooms nor the files inside a room import each other in a circle, also not through several."""
    rooms, files = {}, {}
    for path in sorted((ROOT / "xai_utils").rglob("*.py")):
        here = path.relative_to(ROOT).with_suffix("").parts
        if here[1:] == ("__init__",):  # it imports the library only when it is asked for a name
            continue
        for line, module in imports(path):
            text, there = f"{path.relative_to(ROOT)} line {line} imports {module}", module.split(".")
            files.setdefault((here, module_file(module).relative_to(ROOT).with_suffix("").parts), []).append(text)
            if there[1:2] not in ([], [here[1]]):
                rooms.setdefault((here[1], there[1]), []).append(text)
    assert running_up(rooms) == []
    assert running_up(files) == []


def test_an_import_that_runs_up_is_named():
    """The check above can fail: the one import from a lower room back up is what it says."""
    down = {("page", "maps"): ["a", "b"], ("maps", "images"): ["c", "d"], ("page", "images"): ["e"]}
    assert running_up(down) == []
    assert running_up(down | {("images", "page"): ["images.py line 3 imports page"]}) == [
        "images.py line 3 imports page"
    ]


def without_encoding(text):
    """The lines that read or write text as the locale would have it, and not as UTF-8."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            by_word = {word.arg for word in node.keywords} & {"encoding", "formats"}  # formats: of pictures
            modes = [part.value for part in node.args if isinstance(part, ast.Constant) and part.value is not None]
            given = {"read_text": len(node.args) > 0, "write_text": len(node.args) > 1}
            given["open"] = any(isinstance(mode, str) and "b" in mode for mode in modes)
            of_system = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "os"
            if not given.get(name, True) and not by_word and not of_system:
                yield node.lineno


def test_text_is_utf_8_in_every_locale():
    """Under the C locale Python would read our own style sheet as ASCII."""
    assert [*without_encoding("a.read_text()\nb.open()\nc.open('rb')\nd.write_text('', 'utf-8')")] == [1, 2]
    sources = {
        path: path.read_text("utf-8") for room in ("xai_utils", "benchmarks") for path in (ROOT / room).rglob("*.py")
    }
    for path in NOTEBOOKS:
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        sources[path] = "\n".join(code)
    assert {path.name: lines for path, text in sources.items() if (lines := [*without_encoding(text)])} == {}


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
        text = text.replace(f"<script>{report.page_script()}</script>", "")
        assert not re.search(r"<script|<iframe|<link|@import|src=\"(?:https?:)?//", text), page.name


def test_the_readme_shows_the_committed_results(tmp_path):
    """The tables in README.md are those that `make readme` makes of the committed reports and kept runs."""
    text = committed("README.md")
    results, runs = (report.part_of_readme(part).search(text)[1].strip() for part in report.PARTS)
    assert results == stage.headline(json.loads(committed("reports/metrics.json")))
    names = [name for name in (*kept.PARTS, "runs") if git.said(ROOT, "ls-tree", "--name-only", "HEAD", name)]
    held = git.output(ROOT, "archive", "--format=zip", "HEAD", *names)
    zipfile.ZipFile(io.BytesIO(held)).extractall(tmp_path)
    assert runs == beside.markdown(tmp_path)
    told = committed("runs/README.md")
    assert all(f"| [{name}]({name}/) | {kept.in_words(about)} |" in told for name, about in kept.kept(tmp_path).items())
