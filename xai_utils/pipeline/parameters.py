"""The parameters of each stage, of params.yaml at the chosen scale, checked before anything runs.

A stage's notebook receives the keys of its own section and those shared keys that its class (sections.py) declares.
At any depth {default: 16, paper: 100} is a value by scale: the chosen scale's, or, where it is not named, that of those
that the scale is LIKE, or the default's.
"""

import copy
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from ruamel.yaml import YAML

from xai_utils.pipeline.sections import SHARED, STAGES, Stage

LIKE = {"rehearsal": ("smoke", "paper")}  # a scale -> those whose values it takes, in this order, where it is not named
DEEPEST, MOST, LARGEST = 20, 100_000, 2**63  # keys above a value, values with those behind aliases, a whole number


class ParameterError(ValueError):
    """A parameter is missing, unknown, of the wrong type or out of range: one line for each."""


def read(path="params.yaml") -> dict:
    """params.yaml as DVC reads it (YAML 1.2: 1e-3 is a number, yes is a string); ParameterError for anything else.

    The values are mappings with words as keys, lists, words, numbers, true, false and null.
    """
    try:
        values = YAML(typ="safe").load(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        why = f"cannot be read ({error.strerror}); restore it with: git checkout {path}"
    except UnicodeDecodeError as error:
        why = f"is no text in UTF-8 (byte {error.object[error.start]:#x} at position {error.start}); save it as UTF-8"
    except RecursionError:
        why = f"holds values below more than {DEEPEST} keys; none lies so deep"
    except Exception as error:  # besides YAMLError, ruamel lets through what int(), a date or a tag stumbles over
        mark = getattr(error, "problem_mark", None)
        text = " ".join((getattr(error, "problem", None) or str(error) or type(error).__name__).split())
        text = "".join(sign if sign.isprintable() else "?" for sign in text)
        why = f"is no YAML: {text}{f', line {mark.line + 1}' if mark else ''}"
    else:
        why = _why_not_plain(values)
    if why:
        raise ParameterError(f"{path} {why}")
    return values


def changed(values: dict, assignments: Iterable[str]) -> dict:
    """`values` with others, each "section.key=value" as of `dvc exp run -S`; ParameterError for an unknown key."""
    values = copy.deepcopy(values)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *above, last = name.split(".")
        place = values
        for key in above:
            place = place.get(key) if isinstance(place, dict) else None
        if not equals or not isinstance(place, dict) or (last not in place and above[-1:] != ["rows"]):
            raise ParameterError(f"{assignment}: give section.key=value, with a key of params.yaml")
        place[last] = YAML(typ="safe").load(text)
    return values


def _why_not_plain(values) -> str:
    """What is wrong with `values` as those of a YAML file of ours, "" where nothing is."""
    if not isinstance(values, dict):
        return f"is {'empty' if values is None else f'a {type(values).__name__}'}; it needs keys with values"
    waiting, count = [((), values)], 0
    while waiting:
        place, value = waiting.pop()
        count, name = count + 1, _joined(place)
        if count > MOST or len(place) > DEEPEST:
            return f"holds too much: more than {MOST} values, or values below more than {DEEPEST} keys, in {name}"
        if isinstance(value, dict):
            if strangers := [key for key in value if not isinstance(key, str)]:
                where = f" in {name}" if name else ""
                return f"has the key {_shown(strangers[0])}{where}; keys are words: put it into quotes"
            waiting += [((*place, key), each) for key, each in value.items()]
        elif isinstance(value, list):
            waiting += [((*place, str(number)), each) for number, each in enumerate(value)]
        elif not isinstance(value, str | int | float | None):
            return f"has a {type(value).__name__} for {name}; give a word, a number, true, false, a list or a mapping"
        elif isinstance(value, int) and abs(value) >= LARGEST:
            return f"has a number of more than 18 digits for {name}; give a smaller one"
        elif isinstance(value, float) and not math.isfinite(value):
            return f"has {value} for {name}; give a finite number"
    return ""


def resolve(values: dict, stage: str, *, written: bool = False) -> dict:
    """What the notebook of `stage` receives: its section and its shared keys, with the values of the chosen scale.

    `written`: as a person writes them, "all" for all images.
    """
    if stage not in STAGES:
        raise ParameterError(f"no stage '{stage}'; there are {', '.join(STAGES)}")
    known = (*SHARED, "scale", "scales", *STAGES)
    if unknown := [_joined([key]) for key in values if key not in known]:
        allowed = ", ".join(sorted(known))
        raise ParameterError("\n".join(f"params.yaml: unknown key '{key}'; allowed are {allowed}" for key in unknown))
    scale, scales = values.get("scale"), values.get("scales")
    if not isinstance(scales, list) or "default" not in scales or not all(isinstance(name, str) for name in scales):
        raise ParameterError(
            f"params.yaml: scales = {_shown(scales)} is not allowed; list the names of scales, default among them"
        )
    if scale not in scales:
        raise ParameterError(
            f"params.yaml: scale = {_shown(scale)} is not allowed; it must be one of {', '.join(scales)}"
        )
    model, section = STAGES[stage], values.get(stage)
    if not isinstance(section, dict):
        raise ParameterError(
            f"params.yaml: {stage} = {_shown(section)} is not allowed; it holds the keys {', '.join(_keys(model))}"
        )
    given = {key: values[key] for key in SHARED if key in model.model_fields and key in values}
    given = {key: at_scale(value, scale, scales, key) for key, value in given.items()}
    given |= {key: at_scale(value, scale, scales, f"{stage}.{key}") for key, value in section.items()}
    return checked(given, stage, written=written)


def checked(given: dict, stage: str, *, source="params.yaml", written=False) -> dict:
    """`given`, all parameters of `stage`, as its notebook receives them; ParameterError with a line for each problem.

    The lines begin with `source`.
    """
    model = STAGES[stage]
    try:
        return model.model_validate(given).model_dump(mode="json" if written else "python")
    except ValidationError as error:
        lines = (f"{source}: {_line(problem, stage, model)}" for problem in error.errors())
        raise ParameterError("\n".join(lines)) from None


def at_scale(value, scale: str, scales: list[str], where: str):
    """`value` with each value by scale, at any depth, replaced by that of `scale`."""
    if not isinstance(value, dict):
        return value
    if not any(name in scales for name in value):
        return {key: at_scale(each, scale, scales, f"{where}.{_joined([key])}") for key, each in value.items()}
    if strangers := [name for name in value if name not in scales]:
        raise ParameterError(
            f"params.yaml: {where}.{_joined(strangers[:1])} is the value of no scale; there are {', '.join(scales)}"
        )
    named = next((name for name in (scale, *LIKE.get(scale, ()), "default") if name in value), None)
    if named is None:
        raise ParameterError(f"params.yaml: {where} has no value for the scale '{scale}'; give it one, or a default")
    return at_scale(value[named], scale, scales, where)


def _line(problem: dict, stage: str, model: type[Stage]) -> str:
    """One problem in one line: key, value, what is allowed."""
    kind, value = problem["type"], problem["input"]
    path = [str(part) for part in problem["loc"]]
    is_key, path = path[-1:] == ["[key]"], path[:-2] if path[-1:] == ["[key]"] else path
    name = _joined(path if path and path[0] in SHARED else [stage, *path])
    if kind == "missing":
        return f"{name} is missing; a value is needed there"
    if kind == "extra_forbidden":
        return f"unknown key '{name}'; allowed are {', '.join(_keys(model, path[:-1]))}"
    if kind == "value_error":
        expected = str(problem["ctx"]["error"])
        if is_key:  # which it names
            return f"{name}: {expected}"
    elif kind == "model_type":
        expected = f"it holds the keys {', '.join(_keys(model, path))}"
    else:
        expected = f"it {problem['msg'].removeprefix('Input ').removeprefix('String ')}"
    if value is None:
        return f"{name} is empty; {expected if kind == 'value_error' else 'a value is needed there'}"
    return f"{name} = {_shown(value)} is not allowed; {expected}"


def _keys(model, path=()) -> list[str]:
    """The keys of a section, or of what lies at `path` in it."""
    for part in path:
        model = model.model_fields[part].annotation if hasattr(model, "model_fields") else get_args(model)[-1]
    return [key for key in model.model_fields if key not in SHARED]


def _joined(path) -> str:
    """The place of a value, `a.b.c`; what could be misread stands in quotes."""
    return ".".join(str(part) if re.fullmatch(r"[\w.+-]+", str(part)) else _shown(part) for part in path)


def _shown(value) -> str:
    """A value as a line has room for it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]} …"
