"""A dvc.lock that a kill or a full disk has cut short is put back as it was when the last stage began."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from xai_utils.pipeline import lockfile

WHOLE = """schema: '2.0'
stages:
  strip:
    cmd: python -m xai_utils.pipeline --strip
    outs:
    - path: build/notebooks
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 1234
      nfiles: 11
  figures:
    cmd: python -m xai_utils.pipeline figures
    deps:
    - path: build/data
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
    params:
      params.yaml:
        scale: smoke
        figures:
          rows: 4
    outs:
    - path: reports/figures.html
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 12
    - path: reports/index.html
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 345
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lockfile.LOCK.write_text(WHOLE)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\nno_scm = true\n")
    return tmp_path


def test_what_passes_as_whole_can_be_read_by_dvc(project):
    """Cut after any byte, the file is either taken for damaged or one that DVC accepts; most cuts are damage."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    passed = []
    for end in range(len(WHOLE) + 1):
        text = WHOLE[:end]
        lockfile.LOCK.write_text(text)
        if lockfile.is_whole(lockfile.LOCK):
            try:
                COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
            except (Invalid, YAMLError) as error:
                pytest.fail(f"{text!r} passed as whole: {error}")
            passed.append(end)
    assert passed[-1] == len(WHOLE)
    assert len(passed) < 20


@pytest.mark.parametrize("left", ["", WHOLE[:100], WHOLE[:-7]])
def test_a_cut_lock_is_put_back(project, left, capsys):
    """It is again what it was when a stage's command began; the user reads so."""
    lockfile.keep()
    lockfile.LOCK.write_text(left)
    lockfile.keep()  # a damaged one does not replace the copy
    lockfile.mend()
    assert lockfile.LOCK.read_text() == WHOLE
    assert capsys.readouterr().err == "dvc.lock was cut short: it is again as it was when the last stage began\n"


def test_a_whole_or_absent_lock_is_left_alone(project, capsys):
    """Also where there is another copy: that of an older run."""
    lockfile.keep()
    lockfile.LOCK.write_text(WHOLE.replace("345", "346"))
    lockfile.mend()
    assert "346" in lockfile.LOCK.read_text()
    lockfile.LOCK.unlink()
    lockfile.mend()
    assert not lockfile.LOCK.exists()
    assert capsys.readouterr().err == ""


def test_a_cut_lock_without_a_copy_names_the_way_out(project):
    """Git has the committed one."""
    lockfile.LOCK.write_text("")
    with pytest.raises(ValueError, match=r"^dvc.lock was cut short.*restore it with: git checkout dvc.lock$"):
        lockfile.mend()


def test_a_lock_that_another_run_writes_is_left_alone(project):
    """It looks as if it were cut short, for as long as DVC writes it."""
    from dvc.repo import Repo

    lockfile.keep()
    lockfile.LOCK.write_text("schema:")
    with Repo().lock, pytest.raises(ValueError, match=r"^dvc.lock is being written by another run"):
        lockfile.mend()
    assert lockfile.LOCK.read_text() == "schema:"


def test_the_command_of_a_stage_keeps_a_copy_and_the_check_puts_it_back(project):
    """Through the command line: DVC sets DVC_STAGE for what it runs, and `make repro` checks first."""
    command = [sys.executable, "-m", "xai_utils.pipeline"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    (project / "params.yaml").write_text("{}")
    (project / "notebooks").mkdir()
    subprocess.run([*command, "--strip"], env=environment | {"DVC_STAGE": "strip"}, check=True)
    lockfile.LOCK.write_text("schema:")
    subprocess.run([*command, "--check"], env=environment, capture_output=True)  # these parameters are no parameters
    assert lockfile.LOCK.read_text() == WHOLE
