"""What a function's docstring tells a reader: the first paragraph in a sentence, the second as the formula.

Methods and metrics say theirs in one place, their docstring; the glossary reads it from there.
"""

import inspect
from functools import partial


def _paragraphs(function) -> list[str]:
    function = function.func if isinstance(function, partial) else function
    return (inspect.getdoc(function) or "").split("\n\n")


def sentence(function) -> str:
    """The first paragraph, on one line."""
    return " ".join(_paragraphs(function)[0].split())


def formula(function) -> str:
    """The second paragraph, line by line; "" where there is none."""
    return "\n".join(line.strip() for line in "".join(_paragraphs(function)[1:2]).splitlines())
