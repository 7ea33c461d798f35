"""The parameters of each stage, of params.yaml at the chosen scale, checked before anything runs.

A stage's notebook receives the keys of its own section and those shared keys that its class (sections.py) declares.
At any depth {default: 16, paper: 100} is a value by scale: the chosen scale's, or the default's where it is not
named.
"""

from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from xai_utils.pipeline.sections import SHARED, STAGES, Stage


class ParameterError(ValueError):
    """A parameter is missing, unknown, of the wrong type or out of range."""


def read(path="params.yaml") -> dict:
    """params.yaml as DVC reads it (YAML 1.2: 1e-3 is a number, yes is a string)."""
    try:
        values = YAML(typ="safe").load(Path(path))
    except YAMLError as error:
        raise ParameterError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{path} is empty; it needs the keys {', '.join((*SHARED, 'scale', *STAGES, 'scales'))}")
    return values


def resolve(values: dict, stage: str, *, written: bool = False) -> dict:
    """What the notebook of `stage` receives: its section and its shared keys, with the values of the chosen scale.

    `written`: as a person writes them, "all" for all images.
    """
    if stage not in STAGES:
        raise ParameterError(f"no stage '{stage}'; there are {', '.join(STAGES)}")
    known = (*SHARED, "scale", "scales", *STAGES)
    for key in values:
        if key not in known:
            raise ParameterError(f"params.yaml: unknown key '{key}'; allowed are {', '.join(sorted(known))}")
    scale, scales = values.get("scale"), values.get("scales")
    if not isinstance(scales, list) or "default" not in scales:
        raise ParameterError(
            f"params.yaml: scales is a {type(scales).__name__} that is not allowed; list the names of scales, default "
            "among them"
        )
    if scale not in scales:
        raise ParameterError(f"params.yaml: scale = {scale!r} is not allowed; it must be one of {', '.join(scales)}")
    model, section = STAGES[stage], values.get(stage) or {}
    if not isinstance(section, dict):
        raise ParameterError(f"params.yaml: {stage} = {section!r} is not allowed; it holds the keys of the stage")
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
        return model(**given).model_dump(mode="json" if written else "python")
    except ValidationError as error:
        lines = (f"{source}: {_line(problem, stage, model)}" for problem in error.errors())
        raise ParameterError("\n".join(lines)) from None


def at_scale(value, scale: str, scales: list[str], where: str):
    """`value` with each value by scale, at any depth, replaced by that of `scale`."""
    if not isinstance(value, dict):
        return value
    if not any(name in scales for name in value):
        return {key: at_scale(each, scale, scales, f"{where}.{key}") for key, each in value.items()}
    if strangers := [name for name in value if name not in scales]:
        raise ParameterError(
            f"params.yaml: {where}.{strangers[0]} is the value of no scale; there are {', '.join(scales)}"
        )
    if scale not in value and "default" not in value:
        raise ParameterError(f"params.yaml: {where} has no value for the scale '{scale}'; give it one, or a default")
    return at_scale(value.get(scale, value.get("default")), scale, scales, where)


def _line(problem: dict, stage: str, model: type[Stage]) -> str:
    """One problem in one line: key, value, what is allowed."""
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path if path and path[0] in SHARED else [stage, *path])
    if problem["type"] == "missing":
        return f"{name} is missing; a value is needed there"
    if problem["type"] == "extra_forbidden":
        for part in path[:-1]:
            model = model.model_fields[part].annotation
        fields = [key for key in model.model_fields if key not in SHARED]
        return f"unknown key '{name}'; allowed are {', '.join(fields)}"
    if problem["type"] == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    if problem["input"] is None:
        return f"{name} is empty; a value is needed there"
    expected = problem["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{name} = {problem['input']!r} is not allowed; it {expected}"
