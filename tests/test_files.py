"""Paths that must stay inside a folder."""

from pathlib import Path

import pytest

from xai_utils.files import inside


def test_all_spellings_of_a_path_inside_are_one(tmp_path):
    """Detours and links below the folder are resolved; the folder keeps its own spelling, and nothing need exist."""
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to("real")
    (tmp_path / "real/way").symlink_to("cat")
    home = tmp_path / "home"
    for name in ("cat/0.png", "./cat//0.png", "dog/../cat/0.png", Path("cat/0.png"), "way/0.png"):
        assert inside(home, name) == home / "cat/0.png"
    assert inside(Path("here"), "x") == Path("here/x")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..", "link/x", "link", "../home/x", "{home}/x"])
def test_what_leads_out_is_refused_by_name(tmp_path, name):
    """Absolute paths, also into the folder, leading '..', also back into it, and links elsewhere."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/link").symlink_to(tmp_path)
    name = name.format(home=tmp_path / "home")
    with pytest.raises(ValueError, match=f"'{name}' leads out of .*home; give a path relative to it"):
        inside(tmp_path / "home", name)
