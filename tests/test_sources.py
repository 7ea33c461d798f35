"""Which files a piece of code depends on: exactly those behind the names that it uses."""

import importlib.util

import pytest
from conftest import ROOT

from xai_utils import sources

PACKAGE = ROOT / "xai_utils"


def names(*paths):
    return {path.relative_to(PACKAGE).as_posix() for path in paths}


def test_a_re_exported_name_leads_to_the_file_that_defines_it():
    """A package's own file does not count, neither behind `from package import name` nor behind `package.name`."""
    for text in (
        "from xai_utils.networks import captured",
        "from xai_utils import networks\nnetworks.captured(1)",
        "from xai_utils import networks as nets\ndef f():\n    return nets.captured",
        "def f():\n    from xai_utils.networks import captured",
    ):
        assert names(*sources.imported(text)) == {"networks/activations.py"}, text
    assert names(*sources.imported("from xai_utils.networks import layers")) == {"networks/layers.py"}
    assert sources.imported("import torch\nfrom pathlib import Path") == ()


def test_a_package_that_is_passed_on_counts_whole():
    """What is asked of it cannot be seen then: its own file counts, and all that it re-exports."""
    text = "from xai_utils import metrics\ngetattr(metrics, 'average_drop')"
    assert names(*sources.imported(text)) == {"metrics/__init__.py"}
    whole = names(*sources.closure(sources.imported(text)))
    assert {"metrics/confidence.py", "metrics/localisation.py", "images.py"} <= whole


def test_the_closure_follows_imports_of_imports_and_data():
    """Grad-CAM needs the pixels' and the layers' files, no other explainer; a report needs its templates."""
    found = names(*sources.closure([PACKAGE / "explainers" / "cam.py"]))
    assert {"images.py", "networks/layers.py"} <= found
    assert {name for name in found if name.startswith("explainers/")} == {"explainers/cam.py"}
    assert "pipeline/report_template" in names(*sources.closure([PACKAGE / "pipeline" / "report.py"]))
    stopped = sources.closure([PACKAGE / "explainers" / "cam.py"], stop=[PACKAGE / "networks" / "layers.py"])
    assert "networks/layers.py" in names(*stopped)


def function(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("made", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.made


def test_a_fingerprint_follows_the_source_and_not_its_place(tmp_path):
    """The same file elsewhere is the same; another text, or another import, is another."""
    text = "def made():\n    return 1\n"
    first = sources.fingerprint_of(function(tmp_path / "one" / "made.py", text))
    assert sources.fingerprint_of(function(tmp_path / "two" / "made.py", text)) == first
    others = {
        sources.fingerprint_of(function(tmp_path / "three" / "made.py", text.replace("1", "2"))),
        sources.fingerprint_of(function(tmp_path / "four" / "made.py", f"from xai_utils import files\n{text}")),
    }
    assert len(others | {first}) == 3


def test_a_function_of_a_notebook_counts_with_its_own_text():
    """An edited cell is another function; one without any text is refused."""
    made = {}
    for value in (1, 2):
        text, cell = f"def made():\n    return {value}\n", f"<cell {value}>"
        sources.inspect.linecache.cache[cell] = (len(text), None, text.splitlines(keepends=True), cell)
        space = {"__name__": "__main__"}
        exec(compile(text, cell, "exec"), space)
        made[value] = sources.fingerprint_of(space["made"])
    assert made[1] != made[2]
    space = {"__name__": "__main__"}
    exec("def made(): pass", space)
    with pytest.raises(ValueError, match="has no source that could stand for it"):
        sources.fingerprint_of(space["made"])
