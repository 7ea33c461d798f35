"""Notebooks run by a person: what the pipeline made stays, and the values that were tried can become the pipeline's."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, free_port
from inspected import make
from jupyter_server.services.contents.largefilemanager import LargeFileManager

from xai_utils.files import files_fingerprint
from xai_utils.pipeline import by_hand, parameters, stage

PATIENCE = 150  # seconds: a page begins with a kernel that imports torch, on a machine that may be busy
NOTEBOOK = "notebooks/02_finetune_target.ipynb"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project whose target is made; the working folder, and the pipeline runs nothing."""
    folder = make(tmp_path / "p")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", dirs_exist_ok=True)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "data/weights").mkdir(parents=True)
    (folder / "reports").mkdir()
    (folder / "reports/finetune_target.json").write_text("{}")
    monkeypatch.chdir(folder)
    monkeypatch.delenv(stage.STAGE, raising=False)
    monkeypatch.setattr(by_hand, "_overrides", {})
    return folder


def kept(folder):
    """One hash of all that the pipeline and its user have there."""
    made = (folder / name for name in ("build/data", "build/target", "reports"))
    return files_fingerprint(*made, *folder.glob("notebooks/*.ipynb"))


def run(folder, **changes):
    """The cells of the notebook, run in this process with other values; what they print comes through stdout."""
    space = parameters.resolve(parameters.read(folder / "params.yaml"), "finetune_target", written=True) | changes
    cells = stage.stripped(folder / NOTEBOOK).cells
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        if "parameters" not in cell.metadata.get("tags", []):
            exec(compile(cell.source, cell.id, "exec"), space)


def test_a_run_by_hand_changes_nothing_that_the_pipeline_made(project, capsys):
    """The results are in build/by-hand/STAGE, and the command that makes them the pipeline's is printed twice."""
    before = kept(project)
    run(project, epochs=2)
    assert kept(project) == before
    assert json.loads((project / "build/by-hand/finetune_target/reports/finetune_target.json").read_text())["images"]
    assert (project / "build/by-hand/finetune_target/build/target/target.safetensors").is_file()
    said = capsys.readouterr().out
    assert said.count("build/by-hand/finetune_target/") == 2
    assert said.count("dvc exp run -S finetune_target.epochs.smoke=2\n") == 2


def test_the_same_values_are_run_by_repro(project, capsys, monkeypatch):
    """Where nothing differs there is nothing to set; in the pipeline neither call says anything or moves away."""
    given = parameters.resolve(parameters.read(), "finetune_target", written=True)
    stage.begin("finetune_target", dict(given))
    stage.begin("finetune_target", dict(given))  # a cell that is run again
    assert Path.cwd() == project / "build/by-hand/finetune_target"
    assert capsys.readouterr().out.endswith("the pipeline runs it: dvc repro finetune_target\n")
    monkeypatch.setenv(stage.STAGE, "finetune_target")
    stage.begin("finetune_target", {})
    stage.end()
    assert (Path.cwd(), capsys.readouterr().out) == (project, "")


def test_values_are_given_as_the_pipeline_gives_them(project):
    """ "all" images are None for the code; what is not allowed is one line, before any work."""
    names = parameters.resolve(parameters.read(), "prepare_data", written=True) | {"train_per_class": "all"}
    stage.begin("prepare_data", names)
    assert names["train_per_class"] is None
    with pytest.raises(parameters.ParameterError, match=r"^the parameters cell: prepare_data.image_size = 7 is not"):
        stage.begin("prepare_data", names | {"image_size": 7})


def test_a_data_set_beside_the_project_is_that_of_the_cell(project):
    """A path that leaves the project is one of the project's folder, not of the scratch folder."""
    names = parameters.resolve(parameters.read(), "prepare_data", written=True) | {"dataset": "../birds of mine"}
    stage.begin("prepare_data", names)
    assert names["dataset"] == str(project.parent / "birds of mine")


def test_a_notebook_that_has_not_begun_cannot_end(project):
    """The last cell run first is told so."""
    with pytest.raises(RuntimeError, match="has not begun: run its cells from the first on"):
        stage.end()


def test_what_an_earlier_stage_has_not_made_is_named(project):
    """A stage whose inputs are missing says which stage makes them."""
    names = parameters.resolve(parameters.read(), "evaluate", written=True)
    with pytest.raises(FileNotFoundError, match="build/attention is missing; the stage train_attention makes it: dvc"):
        stage.begin("evaluate", names)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("prepare_data", {"dataset": "data/my images", "seed": 3, "train_per_class": "all"}),
        ("finetune_target", {"epochs": 0, "checkpoint_steps": 5, "learning_rate": 1e-5}),
        ("distill_surrogate", {"l1_weights": {"akd": 0.5, "third": 1e-6}, "joint": True}),
        ("train_attention", {"networks": ["small_vgg", "it's: odd"], "checkpoint_steps": 2}),
        ("explain", {"methods": ["grad_cam", "rise"], "rows": {"rise": {"masks": 7}, "mine": {"method": "smoe"}}}),
        ("explain", {"rows": {"lime": False, "rise": None}}),
        ("remove_and_retrain", {"percentages": [10, 20], "image_size": None}),
    ],
)
@pytest.mark.parametrize("scale", ["default", "real"])
def test_the_printed_command_gives_the_values_that_were_tried(name, changes, scale, tmp_path):
    """DVC, given the overrides, writes a params.yaml that resolves to the values of the cell."""
    from dvc.utils.hydra import apply_overrides

    path = shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(path, [f"scale={scale}"])
    raw = parameters.read(path)
    tried = parameters.resolve(raw, name, written=True) | changes
    apply_overrides(path, by_hand.overrides(tried, raw, name))
    assert parameters.resolve(parameters.read(path), name) == parameters.checked(tried, name)


def test_a_saved_notebook_stays_the_source(project):
    """Outputs and values that were tried are saved in build/by-hand; other cells are saved where they are."""
    place, before = project / NOTEBOOK, (project / NOTEBOOK).read_bytes()
    manager = LargeFileManager(root_dir=str(project), pre_save_hook="xai_utils.pipeline.by_hand.keep_source")
    shown = nbformat.read(place, 4)
    shown.cells[2].source = shown.cells[2].source.replace("epochs = ", "epochs = 1")
    shown.cells[-1].outputs = [nbformat.v4.new_output("stream", text="done\n")]
    shown.cells[-1].execution_count = 9
    manager.save({"type": "notebook", "format": "json", "content": shown}, NOTEBOOK)
    assert place.read_bytes() == before
    copy = nbformat.read(project / "build/by-hand/finetune_target.ipynb", 4)
    assert "](../../reports/finetune_target.html)" in "".join(cell.source for cell in copy.cells)
    assert "epochs = 1" in copy.cells[2].source
    assert copy.cells[-1].outputs[0].text == "done\n"
    shown.cells[2].source = "epochs = ("
    shown.cells[3].source += "\n# a change of the source"
    manager.save({"type": "notebook", "format": "json", "content": shown}, NOTEBOOK)
    saved = nbformat.read(place, 4)
    assert saved.cells[2].source == nbformat.reads(before.decode(), 4).cells[2].source
    assert saved.cells[3].source.endswith("# a change of the source")


def test_in_jupyterlab_nothing_of_the_pipeline_changes(project, browser, tmp_path):
    """A real JupyterLab in a real browser: a value is edited, all cells run, and the notebook is saved."""
    asked = ["make", "-n", "--no-print-directory", "lab"]
    command = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = shlex.split(command.strip().splitlines()[-1])
    assert command[0] == "jupyter"
    port, before = free_port(), kept(project)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    own = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")  # no one's open tabs
    environment |= dict.fromkeys(own, str(tmp_path / "jupyter"))
    options = ["--no-browser", f"--port={port}", "--allow-root", "--IdentityProvider.token=t"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", *command[1:], *options],
        env=environment | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token=t")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Control+End")
        page.keyboard.type("\nepochs = 2")
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
        page.get_by_text("Results of this run by hand: build/by-hand/finetune_target/").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("Control+s")
        copy = project / "build/by-hand/finetune_target.ipynb"
        while not (copy.is_file() and "-S finetune_target.epochs.smoke=2" in copy.read_text()):
            assert time.monotonic() < deadline
            page.wait_for_timeout(100)
        page.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert kept(project) == before
