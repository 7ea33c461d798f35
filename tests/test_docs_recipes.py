"""docs/recipes.md, how each paper is run, names parameters and values that are allowed."""

import re
import shlex
from itertools import pairwise

import pytest
from conftest import ROOT

from xai_utils.explainers import rows_of
from xai_utils.pipeline import parameters

TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("dvc exp run")
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[6].partition("=")[2])
def test_every_switch_of_a_recipe_is_a_parameter_with_an_allowed_value(command):
    """Each -S names a key of params.yaml; the stages take the values, and the methods are known."""
    switches = [part for before, part in pairwise(command) if before == "-S"]
    assert len(switches) == command.count("-S") > 1
    values = parameters.changed(parameters.read(ROOT / "params.yaml"), switches)
    assert values["scale"] == "paper"
    for stage in parameters.STAGES:
        if stage != "remove_and_retrain":  # which may be switched off
            parameters.resolve(values, stage)
    explain = parameters.resolve(values, "explain")
    rows_of(explain["methods"], explain["rows"])


def test_each_paper_has_a_recipe():
    """And none is another's by mistake: seven commands, by data set."""
    assert re.findall(r"^## (\w+)", TEXT, re.M) == ["AKD", "FastCAM", "DGLE", "AMG", "Other"]
    assert len(COMMANDS) == 7
