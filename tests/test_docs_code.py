"""The Python in README and docs/ runs as it stands: what a reader copies is what was tested."""

import contextlib
import re
import tempfile
import textwrap
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_extending import input_times_gradient, require_rules_over_the_methods, upper_half

from xai_utils import networks
from xai_utils.explainers import EXPLAINERS, Explainer, Option
from xai_utils.explainers.records import NUMBER
from xai_utils.metrics import Metric

PEERS = {"pytorch_grad_cam", "torchcam", "quantus"}  # the extra `peers`: without it their sections are skipped
RECORDS = "extending.md"  # shows entries of dicts, not programs
PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def sections(page):
    """Heading -> the Python blocks under it, padded so that their lines have the page's numbers; "" is the top."""
    found, text = {}, PAGES[page].read_text(encoding="utf-8")
    for block in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.M | re.S):
        above = re.findall(r"^## (.+)$", text[: block.start()], re.M)
        padding = "\n" * (text[: block.start()].count("\n") + 1)
        found.setdefault(above[-1] if above else "", []).append(padding + textwrap.dedent(block[2]))
    return found


def run(page, heading, names):
    """Execute the top of the page and the section in the namespace `names`, which is returned."""
    for code in sections(page).get("", []) + (sections(page)[heading] if heading else []):
        exec(compile(code, str(PAGES[page]), "exec"), names)
    return names


def given(page):
    """What a page leaves to its reader: a classifier and images, or the names of classes and a file of weights."""
    if page == "README.md":
        given = {"model": networks.build("small_resnet", "abc"), "images": torch.rand(2, 3, 64, 64)}
        given |= {"network": networks.ARCHITECTURES["small_resnet"](3)}
        return given | {"network_of_one_logit": networks.ARCHITECTURES["small_resnet"](1)}
    if page == "own-data.md":
        torch.save(networks.build("resnet50", "ab").network.state_dict(), "mine.pth")
        return {"classes": ["a", "b"]}
    return {}


@pytest.fixture
def registry():
    """Files and records that the code makes are gone after the test."""
    before = dict(EXPLAINERS)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield
    EXPLAINERS.clear()
    EXPLAINERS.update(before)


def headings(page):
    """Those of the sections with code; the top alone where no section has any."""
    return [heading for heading in sections(page) if heading] or list(sections(page))


CASES = [(page, heading) for page in PAGES if page != RECORDS for heading in headings(page)]


def test_no_code_of_a_page_is_left_out():
    """Each fence that begins Python, in README or docs/, is found as a block."""
    for page, path in PAGES.items():
        fences = path.read_text(encoding="utf-8").count("```python")
        assert sum(len(blocks) for blocks in sections(page).values()) == fences, page
    assert {"README.md", "interoperability.md"} <= {page for page, _ in CASES}


@pytest.mark.parametrize(("page", "heading"), CASES)
def test_the_code_of_a_section_runs(page, heading, registry):
    """After the code at the top of its page, and without what another section made."""
    try:
        run(page, heading, given(page))
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        pytest.skip(f"{error.name} is not installed; it is of the extra `peers`")


def test_the_method_of_interoperability_keeps_the_rules_of_ours(registry):
    """Occlusion, ten lines around captum, is checked as each method of the registry is."""
    names = run("interoperability.md", "A method of your own, or of another library", {})
    assert EXPLAINERS["occlusion"].function is names["occlusion"]
    require_rules_over_the_methods("occlusion")


def test_the_records_that_extending_shows_are_records():
    """The entries for the two registries are accepted as they stand."""
    names = {"Explainer": Explainer, "Option": Option, "NUMBER": NUMBER, "Metric": Metric, "upper_half": upper_half}
    names["gradients"] = SimpleNamespace(input_times_gradient=input_times_gradient)
    shown = [eval(f"{{{code.strip()}}}", names) for codes in sections(RECORDS).values() for code in codes]
    assert [list(each) for each in shown] == [["input_times_gradient"], ["upper_half"]]
    method, metric = shown[0]["input_times_gradient"], shown[1]["upper_half"]
    method.check("input_times_gradient", {"power": 2})
    with pytest.raises(ValueError, match="power is -1; give a number, 0 or more"):
        method.check("input_times_gradient", {"power": -1})
    assert metric.protocol((8, 8)) == "share of the map's mass in the upper half of the image"
