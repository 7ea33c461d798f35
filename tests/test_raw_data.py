"""Raw inputs stay what data.dvc names: no run records a damaged folder or the reader's own images."""

import shutil
import subprocess
from pathlib import Path

from conftest import ROOT
from dvc.cli import main as dvc
from dvc.repo import Repo

from xai_utils.pipeline import raw_data, stage

STAGES = """
stages:
  prepare_data:
    cmd: cat data/birds/species.yaml data/published/table.csv > prepared
    deps: [data/birds, data/published]
    outs: [prepared]
"""


CONFIG = """
[core]
    remote = store
    analytics = false
['remote "store"']
    url = ../store
"""


def git(*arguments):
    subprocess.run(["git", *arguments], check=True)


def test_a_damaged_folder_is_named_and_never_recorded(tmp_path, monkeypatch):
    """`dvc repro` leaves data.dvc as it is beside own images, a changed and a missing file, which are named, also where
    another command recorded the folder as it is; the named commands bring all back."""
    monkeypatch.chdir(tmp_path)
    for name in ("birds/species.yaml", "published/table.csv"):
        (tmp_path / "data/raw" / name).parent.mkdir(parents=True)
        (tmp_path / "data/raw" / name).write_text(name)
        (tmp_path / "data" / name).parent.symlink_to(f"raw/{name.split('/')[0]}")
    (tmp_path / "data/.gitignore").write_text((ROOT / "data/.gitignore").read_text())
    (tmp_path / ".dvc").mkdir()
    for name, text in ((".dvc/config", CONFIG), ("data.dvc", "outs:\n- path: data/raw\n"), ("dvc.yaml", STAGES)):
        (tmp_path / name).write_text(text)
    git("init", "-q")
    assert dvc(["commit", "-q", "-f", "data.dvc"]) == dvc(["push", "-q", "data.dvc"]) == dvc(["repro", "-q"]) == 0
    git("add", "data.dvc")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "m")
    named = Path("data.dvc").read_bytes()

    Path("data/mine").mkdir()
    Path("data/mine/0.png").touch()
    Path("data/birds/species.yaml").write_text("another")
    assert dvc(["repro", "-q"]) == 0
    Path("data/published/table.csv").unlink()
    assert dvc(["repro", "-q"]) != 0
    assert Path("data.dvc").read_bytes() == named
    back = "bring back: dvc pull --force data.dvc (which undoes every change in data/raw)"
    assert raw_data.problems("data/birds") == [
        f"data/raw/published/table.csv is missing, but data.dvc lists it; {back}",
        f"data/raw/birds/species.yaml is not what data.dvc lists; {back}, or keep: dvc add data/raw",
    ]
    assert dvc(["pull", "-q", "--force", "data.dvc"]) == 0
    assert Path("data/mine/0.png").exists()

    Path("data/published/table.csv").unlink()
    assert dvc(["commit", "-q", "-f", "data.dvc"]) == 0  # as `dvc exp run` does
    (problem,) = raw_data.problems("data/birds")
    assert problem.startswith("data/raw/published/table.csv is missing, but data.dvc of the last commit lists it")
    Path("data.dvc").unlink()
    git("checkout", "-q", "data.dvc")
    assert Path("data.dvc").read_bytes() == named

    shutil.rmtree("data/raw")
    raw_data.pull()
    assert Path("data/published/table.csv").read_text() == "published/table.csv"
    assert dvc(["status", "-q", "data.dvc"]) == 0


def test_no_stage_of_ours_is_connected_with_data_dvc():
    """In DVC's graph nothing leads to data.dvc, so that no run can write it; yet stages depend on what it names."""
    graph = Repo(str(ROOT)).index.graph
    (tracked,) = (each for each in graph if each.relpath.endswith("data.dvc"))
    assert not list(graph.predecessors(tracked))
    assert {"data/birds", "data/published"} <= {str(dep.def_path) for each in graph for dep in each.deps}


def test_a_damaged_folder_stops_the_first_stage(monkeypatch, capsys):
    """Before any work, with the lines that name the files."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(raw_data, "problems", lambda dataset: [f"{dataset} misses a file"])
    assert stage.run("prepare_data") == 1
    assert "data/birds misses a file" in capsys.readouterr().err
