"""Which files a piece of code depends on: exactly those behind the names that it uses."""

import atexit
import importlib.util
import sys

import pytest
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from xai_utils import sources
from xai_utils.training import loop

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


def test_the_authors_other_modules_count(tmp_path, monkeypatch):
    """A file outside the package counts with what it imports from beside it; a library counts by its name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "__init__.py").write_text("from .deep import value\n")
    (tmp_path / "inner" / "deep.py").write_text("value = 1\n")
    text = "import torch\nfrom inner import value\ndef made():\n    return value\n"
    first = sources.fingerprint_of(function(tmp_path / "one" / "made.py", text))
    (tmp_path / "inner" / "deep.py").write_text("value = 2\n")
    sources._hashes.cache_clear()  # another process
    assert sources.fingerprint_of(function(tmp_path / "two" / "made.py", text)) != first


@pytest.fixture(scope="module")
def ipython(tmp_path_factory):
    """IPython as a kernel runs it, in this process; what it changes of Python is put back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        for name in ("displayhook", "excepthook"):
            patch.setattr(sys, name, getattr(sys, name))
        patch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        made = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
        yield made
        atexit.unregister(made.atexit_operations)
        made.atexit_operations()


@pytest.fixture
def shell(ipython):
    """Runs cells, one after the other; the names that there are then."""
    return lambda *cells: [ipython.run_cell(cell).raise_error() for cell in cells] and ipython.user_ns


CELLS = {  # what a notebook trains with, in cells, and what an edit makes of one
    "the function itself": ("def make(settings):\n    return 1", "1", "2"),
    "a function that it calls": ("def net():\n    return 1\n@@def make(settings):\n    return net()", "1", "2"),
    "a function inside it": ("def make(settings):\n    def loss():\n        return 1\n    return loss", "1", "2"),
    "a constant": ("RATE = 0.1@@def make(settings):\n    return lambda: RATE", "0.1", "0.2"),
    "a default": ("width = 1@@def make(settings, width=width):\n    return width", "1", "2"),
    "one lambda of two in a line": ("make, other = lambda settings: 1, lambda settings: 3", "1", "2"),
    "what it closes over": (
        "def outer(width):\n    def inner(settings):\n        return width\n    return inner@@make = outer(1)",
        "(1)", "(2)",
    ),
    "a decorator": (
        "import functools\ndef twice(function):\n    @functools.wraps(function)\n    def inner(settings):\n        "
        "return 2 * function(settings)\n    return inner@@@twice\ndef make(settings):\n    return 1", "2 *", "3 *",
    ),
    "a partial's argument": (
        "from functools import partial\ndef inner(settings, rate):\n    return rate@@make = partial(inner, rate=1)",
        "rate=1", "rate=2",
    ),
    "what a partial calls": (
        "from functools import partial\ndef inner(settings, rate):\n    return rate@@make = partial(inner, rate=1)",
        "return rate", "return -rate",
    ),
    "a callable object's class": (
        "class Base:\n    def __call__(self, settings):\n        return 1\nclass Made(Base):\n    pass@@make = Made()",
        "return 1", "return 2",
    ),
    "a callable object's value": (
        "class Made:\n    def __init__(self, rate):\n        self.rate = rate\n    def __call__(self, settings):\n"
        "        return self.rate@@make = Made(1)", "Made(1)", "Made(2)",
    ),
    "a network's class": (
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        return x + 1@@"
        "def make(settings):\n    return Net()", "+ 1", "- 1",
    ),
    "an array": ("import numpy\ntable = numpy.arange(3)@@def make(settings):\n    return table", "(3)", "(4)"),
    "a tensor": ("import torch\ntable = torch.ones(3)@@def make(settings):\n    return table", "ones", "zeros"),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass Rates:\n    first: float = 1.0@@rates = Rates()@@"
        "def make(settings):\n    return rates", "1.0", "2.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CELLS)
def test_an_edited_cell_is_another_function(what, shell):
    """Cells that are run again, in whatever shell, are the same; any edit of what the result depends on is another."""
    text, old, new = CELLS[what]
    assert text.count(old) == 1
    first = sources.fingerprint_of(shell(*text.split("@@"))["make"])
    assert sources.fingerprint_of(shell(*text.split("@@"))["make"]) == first
    spaced = [cell.replace("\n    return", "\n    # a comment\n    return") for cell in text.split("@@")]
    assert sources.fingerprint_of(shell("unused = 1", *spaced)["make"]) == first
    assert sources.fingerprint_of(shell(*text.replace(old, new).split("@@"))["make"]) != first


def test_a_notebook_function_counts_with_the_package(shell):
    """The files of this package that a cell imports, for the function or inside it, count as those of a file do."""
    cells = "from xai_utils.networks import captured", "def make(settings):\n    return captured"
    contents = sources.Contents()
    contents.digest(shell(*cells)["make"], "make")
    assert names(*contents.files) == {"networks/activations.py"}
    contents.digest(shell("def make(settings):\n    from xai_utils.explainers import cam")["make"], "make")
    assert "explainers/cam.py" in names(*contents.files)


def test_what_nothing_can_stand_for_is_refused(shell):
    """A lock, an open file: the error names what reads it, and the way out. A logger is its name."""
    cells = "import threading\nlock = threading.Lock()", "def make(settings):\n    return lock"
    with pytest.raises(ValueError, match=r"^lock, which __main__:make reads, is a lock, which has no source or value"):
        sources.fingerprint_of(shell(*cells)["make"])
    sources.fingerprint_of(shell("import logging\nlog = logging.getLogger('a')", "make = lambda settings: log")["make"])


def test_an_edited_cell_trains_anew(shell, tmp_path):
    """A training goes by what its notebook says now: the edited network is trained, the former one is only read."""
    network = "import toy_tasks\nfrom torch import nn\ndef last():\n    return nn.Linear(64, 3)"
    task = "def make(settings):\n    it = toy_tasks.make_classifier(settings)\n    it.model[-1] = last()\n    return it"
    options = {"checkpoints": tmp_path, "data_hash": "toy", "compute": loop.Compute("cpu")}

    def trained(*cells):
        return loop.fit(shell(*cells)["make"], {"seed": 1, "epochs": 1}, **options)

    first = trained(network, task)
    edited = trained(network.replace("3)", "3, bias=False)"), task)
    again = trained(network, task)
    assert (first.resumed_from, edited.resumed_from) == (0, 0)
    assert again.resumed_from > 0
    assert first.weights.keys() - edited.weights.keys() == {"5.bias"}
    assert all((again.weights[name] == value).all() for name, value in first.weights.items())
