"""Paths stay in their folder, and names are those of files, wherever they come from."""

import json
from pathlib import Path

import pytest

from xai_utils.evaluation import explanation, maps, scores
from xai_utils.explainers import rows_of
from xai_utils.files import file_name, inside
from xai_utils.training.distributed import Compute
from xai_utils.training.surrogate import fit_surrogates
from xai_utils.training.target import source_of, weights_of


@pytest.fixture
def folder(tmp_path):
    """A folder with a file, links to files and folders inside and outside, and a circle of links."""
    (folder := tmp_path / "folder").mkdir()
    (tmp_path / "folder.beside").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (folder / "file").touch()
    (folder / "within").symlink_to("file")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "secret").symlink_to(tmp_path / "outside" / "secret")
    (folder / "circle").symlink_to("circle")
    return folder


@pytest.mark.parametrize("name", ["file", "not/yet/there", "a..b", "...", "ü/1.png"])
def test_a_path_inside_is_the_folder_s(folder, name):
    """Also where nothing lies there yet, and where the folder itself is a link."""
    assert inside(folder, name) == folder / name
    (folder.parent / "linked").symlink_to(folder)
    assert inside(folder.parent / "linked", name) == folder.parent / "linked" / name


@pytest.mark.parametrize("name", ["file", "./file", ".//file", "a/../file", "within", Path("file")])
def test_all_spellings_of_a_path_inside_are_one(folder, name):
    """Detours and links below the folder are resolved."""
    assert inside(folder, name) == folder / "file"


@pytest.mark.parametrize(
    "name",
    ["..", "../folder.beside", "../folder/file", "a/../../b", "a/..", "/etc/passwd", "", ".", "out", "out/secret",
     "secret", "circle", "file\0"],
)  # fmt: skip
def test_a_path_that_leads_out_is_refused(folder, name):
    """Absolute, with .., by a link, none at all: the value is named, and what is allowed."""
    with pytest.raises(ValueError, match=r"is no path inside .*folder/; give one relative to it") as caught:
        inside(folder, name)
    assert repr(name) in str(caught.value)


def test_an_absolute_path_is_refused_even_inside(folder):
    """What names a place of this machine would be another one's somewhere else."""
    with pytest.raises(ValueError, match="is no path inside"):
        inside(folder, folder / "file")


def test_names_of_files():
    """Letters of any script, digits, and _ - . + but at an end; nothing that a system takes for something else."""
    for name in ("akd", "a", "rise-500", "x.y", "c++", "größe", "_", "1", "a" * 100, "console", "comet1", "nul_"):
        assert file_name(name) == name
    for name in ("", ".", "..", "a/b", "a\\b", "../up", ".a", "-a", "+a", "a.", "a b", "a\n", "a\0", "a:b", "a*",
                 "a" * 101, "con", "NUL", "Aux.txt", "com1", "LPT9.x", None, 3, ["a"]):  # fmt: skip
        with pytest.raises(ValueError, match="cannot be the name of a file; give up to 100 letters"):
            file_name(name)


EVIL = "../../evil"


def test_who_writes_or_reads_by_a_name_refuses_one_that_leaves(tmp_path, monkeypatch):
    """Maps, scores, surrogates and weights, for those too who call the library without params.yaml."""
    monkeypatch.chdir(tmp_path)
    row = {EVIL: {"method": "random"}}
    index = {"methods": [EVIL], "metrics": [], "digest": ""}
    (tmp_path / "protocol.json").write_text(json.dumps(index))
    record = {"split": "validation", "indices": [], "targets": [], "methods": row, "passes": {}}
    (tmp_path / "explained.json").write_text(json.dumps(record))
    learning = {
        name: None for name in ("alpha", "temperature", "attention", "reduction", "opened", "residual_attention")
    }
    learning |= {name: "" for name in ("data", "target", "trunk", "delta_source", "seed")}
    learning |= {"student": {}, "joint": False}
    for call in (
        lambda: rows_of("all", row),
        lambda: explanation.make_maps({"methods": row, "maps": "maps"}, compute=Compute()),
        lambda: maps.load(tmp_path),
        lambda: scores.read_scores(tmp_path),
        lambda: fit_surrogates(learning | {"l1_weights": {EVIL: 1.0}}, compute=Compute()),
    ):
        with pytest.raises(ValueError, match=f"'{EVIL}' cannot be the name of a file"):
            call()
    for call in (lambda: weights_of(EVIL), lambda: source_of(f"small_resnet:{EVIL}.pth")):
        with pytest.raises(ValueError, match=rf"'{EVIL}.*' is no path inside data/weights/"):
            call()
    assert not (tmp_path / "maps").exists()
