"""Notebooks as chapters: mathematics without scripts, the library's code, exercises that run, a reader's function."""

import ast
import html
import inspect
import re
import shlex
import shutil

import nbformat
import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides
from inspected import HOSTILE, SIZE, make

from xai_utils import datasets
from xai_utils.networks import mask_predictor
from xai_utils.pipeline import code, mathematics, parameters, stage
from xai_utils.training import mask_predictor as training

NOTEBOOKS = stage.notebooks(ROOT / "notebooks")
CHAPTERS = {  # of the papers: stage -> equations that it tells, at least
    "distill_surrogate": ("1", "4", "5", "6", "7", "8", "9", "11"),
    "train_mask_predictor": ("1", "4", "5", "6", "7", "10"),
    "train_attention": ("1", "2", "3", "5", "6", "7", "8", "9"),
    "remove_and_retrain": ("1", "2", "3", "4", "5", "6", "7", "8", "9"),
}
EXERCISE = re.compile(r"(?m)^\s*dvc exp run ((?:-S \S+ ?)+)")


def cells(name, kind):
    return [cell.source for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells if cell.cell_type == kind]


def rendered(*sources):
    """The body of a page of these Markdown cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source) for source in sources])
    page = mathematics.Exporter(template_name="basic").from_notebook_node(notebook)[0]
    return page


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_mathematics_is_drawn_without_a_script(name):
    """Each formula of a notebook becomes MathML, whole: no dollar is left, nothing that could not be read."""
    sources = cells(name, "markdown")
    page = rendered(*sources)
    formulas = [each for each in re.findall(r"\$\$.+?\$\$|\$.+?\$", "\n".join(sources), flags=re.DOTALL)]
    assert page.count("<math") == len(formulas)
    assert "$" not in page
    assert "\\" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_numbers_equations_as_its_paper(name):
    """The number of each equation stands beside it, and behind each group of equations the code that computes them."""
    page = rendered(*cells(name, "markdown"))
    found = re.findall(r'<span class="equation"><math.*?</math><span>\((.*?)\)</span>', page)
    assert set(CHAPTERS[name]) <= set(found)
    kinds = [
        "equation" if "\\tag{" in cell.source else "code" if cell.source.startswith("code.show(") else ""
        for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells
    ]
    for number, kind in enumerate(kinds):
        if kind == "equation":
            assert next(filter(None, kinds[number + 1 :]), None) == "code", f"cell {number} shows no code"


def test_what_stands_in_a_formula_is_never_markup():
    """Tags and entities stay text, whatever LaTeX they stand in; what is no LaTeX is shown as it is."""
    for latex in (r"\text{<img src=x>}", "<b>a", r"\text{&lt;b&gt;}", r"\frac{<i>}{2"):
        shown = mathematics.mathml(latex)
        assert not re.search(r"<(img|b|i)\b", shown)
    assert mathematics.mathml(r"\left( a") == "<code>\\left( a</code>"
    assert "<mo>&#x0003C;</mo>" in mathematics.mathml("a < b")


def test_code_is_shown_as_the_library_has_it():
    """Every line stands in the file; docstrings do not; a part of a function is that part alone."""
    for function in (mask_predictor.customized_controller, mask_predictor.FeatureFilter, training.mask_task):
        shown, file = code.source(function), inspect.getsource(inspect.getmodule(function)).splitlines()
        assert set(shown.splitlines()) <= set(file)
        tree = ast.parse(shown)
        defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert defined[0].name == function.__name__
        assert not any(ast.get_docstring(node) for node in defined)
    part = code.source(training.mask_task, part="loss")
    assert part.startswith("def loss(model, batch, generator):\n    (pixels,) = batch\n")
    assert part in re.sub(r"(?m)^    ", "", code.source(training.mask_task))
    with pytest.raises(ValueError, match="mask_task defines no 'losses'; it defines loss, validate, rows"):
        code.source(training.mask_task, part="losses")


def test_shown_code_is_coloured_in_a_page(monkeypatch):
    """It is Markdown, which JupyterLab and a page colour alike; the module is named once."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda made: shown.append(made.data))
    code.show(mask_predictor.basic_controller, mask_predictor.customized_controller)
    text = shown[0]
    assert text.count("# xai_utils.networks.mask_predictor\n") == 1
    code.show(mask_predictor.FeatureFilter, mask_predictor.MaskGenerator, part="forward")
    for name in ("FeatureFilter", "MaskGenerator"):
        assert f"# xai_utils.networks.mask_predictor, {name}\ndef forward(self, features" in shown[1]
    page = rendered(text)
    assert '<span class="k">def</span>' in page
    assert page.count("def</span>") == 2


def test_a_long_source_shows_its_first_lines():
    """The rest stands in a fold that says how many lines; each line is there once, in order; a short one is whole."""
    most = mathematics.SHOWN + mathematics.FOLDED
    for lines in (most, most - 1):
        source = "\n".join(f"text = 'a < {number}'  # {number}" for number in range(lines))
        page = rendered(f"```python\n{source}\n```")
        parts = [html.unescape(re.sub("<[^>]+>", "", part)) for part in re.findall(r"(?s)<pre>(.*?)</pre>", page)]
        shown = source.splitlines()
        folds = [shown[: mathematics.SHOWN], shown[mathematics.SHOWN :]] if lines == most else [shown]
        assert [part.strip().splitlines() for part in parts] == folds
        assert page.count(f"<details><summary>{mathematics.FOLDED} more lines</summary><pre>") == len(folds) - 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_exercises_are_accepted(name, tmp_path):
    """Each `dvc exp run -S …` of a notebook changes params.yaml, and every stage takes the parameters."""
    exercises = EXERCISE.findall("\n".join(cells(name, "markdown")))
    assert len(exercises) >= (2 if name in CHAPTERS else 0)
    before = parameters.read(ROOT / "params.yaml")
    for number, exercise in enumerate(exercises):
        path = tmp_path / f"{number}.yaml"
        shutil.copy(ROOT / "params.yaml", path)
        given = [word for word in shlex.split(exercise) if word != "-S"]
        apply_overrides(path, given)
        values = parameters.read(path)
        assert values != before, exercise
        for each in parameters.STAGES:
            parameters.resolve(values, each)


YOURS = {  # stage -> the line that puts the reader's function in, the name of the table with its row
    "distill_surrogate": ("loss = None", "loss = my_loss", "rows"),
    "train_mask_predictor": ("controller = None", "controller = my_controller", "placed"),
}


@pytest.mark.parametrize("name", YOURS)
def test_a_readers_function_is_a_row_beside_the_papers(name, tmp_path, monkeypatch):
    """The example of a chapter, switched on: it trains, is a row of the tables, and is not kept as the paper's is."""
    off, on, table = YOURS[name]
    folder = make(tmp_path / "p")
    boxes = [f"{HOSTILE}/{number}.png,8,8,24,24" for number in range(4)]
    (folder / "images/boxes.csv").write_text("\n".join(["file,x0,y0,x1,y1", *boxes]))
    shutil.rmtree(folder / "build/data")
    datasets.prepare(folder / "images", folder / "build/data", image_size=SIZE, geometry="squash")
    (folder / "reports").mkdir()
    (folder / "data").mkdir()
    (folder / "data/published").symlink_to(ROOT / "data/published")
    monkeypatch.chdir(folder)
    monkeypatch.setenv(stage.STAGE, name)
    space = dict(parameters.resolve(parameters.read(), name))
    for cell in stage.stripped(NOTEBOOKS[name]).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "parameters" not in tags:
            source = cell.source
            if "yours" in tags:
                assert f"\n{off}" in source
                source = source.replace(f"\n{off}", f"\n{on}")
            exec(compile(source, cell.id, "exec"), space)
    mine = on.split()[-1]
    assert mine in space["last"]
    assert mine in space[table].index
    assert not list(folder.glob(f"build/*/{mine}"))
