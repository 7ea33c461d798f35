"""One notebook as one stage: parameters in, live output, a normalised copy and a page out, and tidy failures."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from scratch import change

from xai_utils.metrics import METRICS
from xai_utils.pipeline import parameters, report, stage

GIVEN = parameters.resolve(parameters.read(ROOT / "params.yaml"), "figures")
PARAMETERS = [f"{name} = {value!r}" for name, value in GIVEN.items()]


def stage_of(folder, *cells, assigned=PARAMETERS):
    """A project in `folder` whose stage `figures` is a notebook of `cells`."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# A stage\n\nWhat it does.")]
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in ("\n".join(assigned), *cells)]
    notebook.cells[1].metadata["tags"] = ["parameters"]
    (folder / "notebooks").mkdir(parents=True)
    nbformat.write(notebook, folder / "notebooks" / "11_figures.ipynb")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text("stages: {figures: {outs: [build/half, reports/figures.html]}}")
    return folder


def command(folder, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {
        "args": [sys.executable, "-m", "xai_utils.pipeline", "figures"],
        "cwd": folder,
        "env": environment | {"PYTHONPATH": str(ROOT)} | variables,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "encoding": "utf-8",
    }


def run(folder, **variables):
    process = subprocess.Popen(**command(folder, **variables))
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def test_two_runs_at_two_places_are_byte_identical(tmp_path):
    """Times, ids and folders leave no trace; class names appear as text; parameters come from params.yaml."""
    cells = (
        "import os, sys, time, pandas as pd\nprint('rows', rows, time.time() > 0, object(), file=sys.stderr)",
        "print(os.getcwd(), rows)\nprint(object())",
        "pd.DataFrame({'class': ['<img src=x onerror=alert(1)>']})",
        "object()",
    )
    results = []
    for name in ("one", "another place"):
        folder = stage_of(tmp_path / name, *cells)
        change(folder / "params.yaml", **{"figures.rows": 3})
        status, out, error = run(folder)
        assert status == 0, error
        assert f"{folder} 3" in out
        page = (folder / "reports" / "figures.html").read_text()
        results.append((page, (folder / "build" / "runs" / "figures.ipynb").read_text()))
        assert not (folder / ".runs" / "figures.ipynb").exists()
    assert "&lt;img src=x onerror=alert(1)&gt;" in results[0][0]
    assert "<img src=x" not in results[0][0]
    assert "rows = 3" in re.sub(r"<[^>]+>", "", results[0][0])
    # the folder is printed by the notebook itself, and normalised to "."
    assert results[0] == results[1]
    page = results[0][0].replace(f"<script>{report.page_script()}</script>", "")
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)


def test_a_failing_stage_keeps_its_notebook_and_no_half_results(tmp_path):
    """The traceback is kept and named with its cell; what the stage had written is removed."""
    half = "from pathlib import Path\nPath('build/half').mkdir(parents=True)\nPath('build/half/a').write_text('x')"
    folder = stage_of(tmp_path / "p", half, "1 / 0")
    status, _, error = run(folder)
    assert status == 1
    assert "ZeroDivisionError: division by zero" in error
    assert re.search(r"stage figures failed in cell 4 \(1 / 0", error)
    assert ".runs/figures.ipynb" in error
    kept = nbformat.read(folder / ".runs" / "figures.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))
    assert not (folder / "build" / "half").exists()
    assert not (folder / "reports" / "figures.html").exists()


def test_wrong_parameters_stop_before_anything_runs(tmp_path):
    """An unknown key in params.yaml, or a parameter the notebook lacks, is one line and no kernel."""
    folder = stage_of(
        tmp_path / "p", "print('ran')", assigned=[line for line in PARAMETERS if not line.startswith("colour_map")]
    )
    status, out, error = run(folder)
    assert (status, out) == (1, "")
    assert error.strip() == (
        "11_figures.ipynb: its parameters cell must name exactly what params.yaml gives; "
        "missing: colour_map; too many: none"
    )
    change(folder / "params.yaml", **{"figures.opacity": 5})
    status, out, error = run(folder)
    assert (status, out) == (1, "")
    assert error.strip() == ("params.yaml: figures.opacity = 5 is not allowed; it should be less than or equal to 1")


def checked(monkeypatch):
    """What `--check` says; None where all is well."""
    monkeypatch.setattr(sys, "argv", ["xai_utils.pipeline", "--check"])
    with pytest.raises(SystemExit) as end:
        stage.main()
    return end.value.code


def test_all_stages_are_checked_before_the_first_runs(tmp_path, monkeypatch):
    """Every problem is named at once: typos in several sections, an absent data set and what it needs."""
    shutil.copytree(ROOT / "data" / "birds", tmp_path / "data" / "birds")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    wrong = {"dataset": "data/oxford-iiit-pet", "figures.opacity": 5}
    wrong |= {"explain.rows": {"rise": {"masks": 2.5}}, "evaluate.metrics": ["inserton"]}
    expected = (
        "params.yaml: figures.opacity = 5 is not allowed; it should be less than or equal to 1",
        "params.yaml: dataset = 'data/oxford-iiit-pet' is no folder; data/ holds birds; for Oxford-IIIT Pet: "
        "unpack images.tar.gz and annotations.tar.gz in data/oxford-iiit-pet/",
        "params.yaml: explain.rows.rise: rise: masks is 2.5; give a whole number, 1 to 1000000",
        f"params.yaml: evaluate.metrics: metric 'inserton' is unknown; choose among {', '.join(METRICS)}",
    )
    for changes, lines in (({"dataset": "data/birds"}, ()), (wrong, expected)):
        change(tmp_path / "params.yaml", **changes)
        assert checked(monkeypatch) == ("\n".join(lines) or None)


def test_methods_of_a_recorded_run_are_not_looked_up_again(tmp_path, monkeypatch):
    """Torch is imported only where params.yaml or the weights are not what dvc.lock records."""
    shutil.copytree(ROOT / "data" / "birds", tmp_path / "data" / "birds")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    change(tmp_path / "params.yaml", **{"dataset": "data/birds", "evaluate.metrics": ["inserton"]})
    values = parameters.read(tmp_path / "params.yaml")
    recorded = {
        name: {"params": {"params.yaml": {"scale": values["scale"], name: values[name]}}, "outs": []}
        for name in parameters.STAGES
    }
    (weights := tmp_path / "data" / "weights" / "mine.pth").parent.mkdir()
    weights.write_text("abc")
    recorded["finetune_target"]["deps"] = [{"path": "data/weights", "size": 3}]
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": recorded}) + "\n")
    assert checked(monkeypatch) is None
    weights.write_text("abcd")
    assert "metric 'inserton' is unknown" in checked(monkeypatch)
    weights.write_text("abc")
    change(tmp_path / "params.yaml", scale="smoke")
    assert "metric 'inserton' is unknown" in checked(monkeypatch)


def test_outside_of_a_project_the_command_says_so(tmp_path):
    """An installed package has no params.yaml beside it: one line instead of a traceback."""
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "xai_utils", tmp_path / "installed" / "xai_utils", ignore=hidden)
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "xai_utils.pipeline", "--check"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is in no project: no params.yaml here or above" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_is_live(tmp_path):
    """A line printed by the notebook arrives while its cell still runs."""
    wait = (
        "import time\nfrom pathlib import Path\nprint('epoch 1', flush=True)\n"
        "deadline = time.time() + 60\n"
        "while not Path('go').exists() and time.time() < deadline: time.sleep(0.05)\n"
        "assert Path('go').exists()"
    )
    folder = stage_of(tmp_path / "p", wait)
    process = subprocess.Popen(**command(folder))
    assert process.stdout.readline().strip() == "epoch 1"
    (folder / "go").touch()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error


def test_a_killed_kernel_is_a_failed_stage(tmp_path):
    """A kernel that dies (out of memory, say) is reported, and nothing is left that looks finished."""
    folder = stage_of(tmp_path / "p", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    status, _, error = run(folder)
    assert status == 1
    assert "stage figures failed" in error
    assert "DeadKernelError" in error
    assert not (folder / "reports" / "figures.html").exists()


def test_a_checkout_that_cannot_be_written_is_named(tmp_path):
    """The folder that cannot be written stands in the message, before a kernel starts."""
    folder = stage_of(tmp_path / "p", "print('ran')")
    (folder / ".runs").write_text("a file in the way")
    status, out, error = run(folder)
    assert (status, out) == (1, "")
    assert "cannot write into .runs/" in error


def test_a_stage_runs_wherever_it_is(tmp_path):
    """In a folder of any name, under the C locale and without a home; what killed runs left is gone, sockets too."""
    print_both = "print('×', __import__('pathlib').Path('notebooks').resolve())"
    folder = stage_of(tmp_path / "sp ace ü#%41[x](y)&", print_both)
    places = ("build", "build/a", ".checkpoints/b", "reports", ".runs")
    left = [folder / place / ".name.01234567.partial" for place in places]
    for path in left:
        path.mkdir(parents=True)
        (path / "half").touch()
    (short := Path(tempfile.mkdtemp(dir="/tmp")) / ".xai-kernel.01234567.partial").mkdir()
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, out, error = run(folder, **locale, HOME="/proc/nothing", TMPDIR=str(short.parent))
    assert (status, out) == (0, f"× {folder}/notebooks\n"), error
    assert "<pre>× notebooks\n</pre>" in (folder / "reports" / "figures.html").read_text("utf-8")
    assert not any(path.exists() for path in left)
    assert list(short.parent.glob(".xai-*")) == []
    shutil.rmtree(short.parent)
    assert run(folder, TMPDIR=str(tmp_path / ("long" * 30)))[0] == 0
    assert not [path for path in folder.iterdir() if path.is_socket()]


def test_a_full_disk_is_said_of_whatever_a_notebook_writes():
    """How much is free stands under the last lines of the cell; under those of other errors it does not."""
    [line] = stage._space("[Errno 28] No space left on device")
    assert re.match(r"No space left on device: [\d,.]+ MB of [\d,.]+ MB are free on its disk", line)
    assert stage._space("[Errno 2] No such file") == []


def test_a_saved_notebook_is_stripped_to_the_same_source(tmp_path):
    """Outputs, counts and ids of a notebook saved after a look at it do not reach the copy that stages depend on."""
    folder = stage_of(tmp_path / "p", "1 + 1")
    path = folder / "notebooks" / "11_figures.ipynb"
    stage.strip_all(folder / "notebooks", folder / "clean")
    before = (folder / "clean" / "11_figures.ipynb").read_bytes()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="2")]
    notebook.cells[2].execution_count = 7
    notebook.cells[2].id = "abcdef"
    notebook.metadata["language_info"] = {"name": "python", "version": "3.99"}
    nbformat.write(notebook, path)
    stage.strip_all(folder / "notebooks", folder / "clean")
    assert (folder / "clean" / "11_figures.ipynb").read_bytes() == before
    path.write_text("not json")
    with pytest.raises(ValueError, match=r"11_figures.ipynb is no notebook"):
        stage.strip_all(folder / "notebooks", folder / "clean")
