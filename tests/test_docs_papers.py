"""docs/papers.md, the register of what the papers say and what we decided, names code that exists."""

import importlib
import re

import pytest
from conftest import ROOT

from xai_utils.papers.claims import CLAIMS

PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if line.startswith("|") and "`" in line]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES]
NUMBERED = [row for row in ROWS if re.fullmatch(r"[AFDG]\d+", row[0])]
NAMES = sorted({name for row in ROWS for name in re.findall(r"`([\w.]+)`", row[-1])})


def resolved(name):
    """The object xai_utils.`name`: the longest prefix that is a module, then attributes."""
    parts = ["xai_utils", *name.split(".")]
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):
                continue
            raise
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_code_that_the_register_names_exists(name):
    """Each name in a last column is one of the package's: a function that moves takes its row along."""
    assert resolved(name) is not None


def test_the_register_is_complete_and_in_order():
    """Every row has its five cells, a decision and a place in the code; the rows of a paper are numbered through."""
    for row in NUMBERED:
        assert len(row) == 5, row[0]
        assert row[3], f"{row[0]} decides nothing"
        assert re.findall(r"`[\w.]+`", row[4]), f"{row[0]} says not where"
    for paper in "AFDG":
        numbers = [int(row[0][1:]) for row in NUMBERED if row[0][0] == paper]
        assert numbers == list(range(1, len(numbers) + 1)), paper
        assert len(numbers) >= 12


def test_a_name_that_does_not_exist_is_found():
    """The check above can fail: an unknown module, an unknown function, an unknown attribute of a class."""
    for name in ("explainers.cams.grad_cam", "explainers.cam.grad_cams", "networks.Target.forwards", "nothing"):
        with pytest.raises((ModuleNotFoundError, AttributeError)):
            resolved(name)


def test_the_claims_of_the_page_are_those_of_the_code():
    """Line by line, in the same order: what is tested is what is listed."""
    table = PAGE.split("| paper | claim | place |")[1].splitlines()[2:]
    assert table == [f"| {' | '.join(claim.told)} |" for claim in CLAIMS]
