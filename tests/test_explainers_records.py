"""The records of the methods: they name what the functions take, and refuse anything else with what is allowed."""

import math
import re

import pytest

from xai_utils.explainers import EXPLAINERS, Option
from xai_utils.explainers.records import FLAG, LAYER, LAYERS, NUMBER, WORD


@pytest.mark.parametrize("method", EXPLAINERS)
def test_a_record_is_in_step_with_its_function(method):
    """Options, the part's, `generator` and `chunk` are all keywords that there are, and the defaults are allowed."""
    record = EXPLAINERS[method]
    named = {option.name for option in record.options} | ({record.part.option} if record.part else set())
    assert set(record.keywords) - {"generator", "chunk"} == named
    record.check(method, record.keywords)
    for option in record.options:
        if option.offered is not None:
            for end in option.offered:
                option.check(method, end)
            assert option.offered[0] <= record.keywords[option.name] <= option.offered[1]
    if record.variant_of is not None:
        assert EXPLAINERS[record.variant_of].part is record.part


@pytest.mark.parametrize(
    ("option", "taken", "refused", "allowed"),
    [
        (Option("it", low=1), (1, 7), (0, 1.0, True, "1", None), "a whole number, 1 or more"),
        (Option("it", low=0, high=3), (0, 3), (-1, 4), "a whole number, 0 to 3"),
        (Option("it", NUMBER, low=0), (0, 0.5), (-0.1, math.nan, math.inf, False), "a number, 0 or more"),
        (Option("it", FLAG), (True, False), (1, "yes", None), "true or false"),
        (Option("it", WORD, choices=("a", "b"), other=(list,)), ("a", [1, 2]), ("c", 1, None), "one of a, b"),
        (Option("it", WORD, choices=("a", "b"), optional=True), ("b", None), ("", "c"), "one of a, b"),
        (Option("it", LAYER), ("layer4", None), (4, ["layer4"]), "the name of a layer"),
        (Option("it", LAYERS), (["a", "b"], ("a", "b"), None), ("a", [1, 2]), "two names of layers or more"),
    ],
)
def test_an_option_takes_its_kind_alone(option, taken, refused, allowed):
    """Values at the bounds are taken; others are refused by method, option and value, with what is allowed."""
    for value in taken:
        option.check("mine", value)
    for value in refused:
        with pytest.raises(ValueError, match=re.escape(f"mine: it is {value!r}; give {allowed}") + "$"):
            option.check("mine", value)
