"""The parameters cells of the notebooks, written from params.yaml: each value at the committed scale, with its reason.

In the pipeline params.yaml decides, whatever a cell says: papermill puts its values behind the cell.
"""

import ast
import re
import textwrap
from pathlib import Path

import nbformat

from xai_utils.pipeline import parameters, report

WIDTH = 120
HEAD = "# In the pipeline params.yaml decides; `make notebooks` writes its values and reasons here."


def write(notebook: Path, stage: str, params: Path = Path("params.yaml")):
    """Replace the source of the notebook's parameters cell."""
    content = nbformat.read(notebook, as_version=4)
    cell = report.parameters_cell(content)
    if cell is None:
        raise parameters.ParameterError(f"{notebook.name}: no cell has the tag 'parameters'")
    cell.source = source(stage, params)
    report.save(content, notebook)


def source(stage: str, params: Path = Path("params.yaml")) -> str:
    """The parameters cell of `stage`: one assignment per parameter, as the formatter would lay it out."""
    reasons, lines = _reasons(params.read_text(encoding="utf-8")), [HEAD]
    for name, value in parameters.resolve(parameters.read(params), stage, written=True).items():
        place = (stage, name) if (stage, name) in reasons else (name,)
        lines += _assignment(name, value, place, reasons)
    return "\n".join(lines)


def names(source: str) -> list[str]:
    """The parameters that a parameters cell assigns, sorted; ValueError where it does anything else."""
    try:
        return sorted({node.targets[0].id for node in ast.parse(source).body})
    except (SyntaxError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the parameters cell holds more than lines of name = value ({error}); write it anew with: make notebooks"
        ) from None


def _assignment(name, value, place, reasons) -> list[str]:
    """The lines that assign one parameter, whose reason and those of what is inside it stand at `place`."""
    reason, line = reasons.get(place, ""), f"{name} = {_literal(value)}"
    inside = {key: reasons.get((*place, key), "") for key in value} if isinstance(value, dict) else {}
    if any(inside.values()) or (inside and len(line) > WIDTH):
        body = [line for key, each in value.items() for line in _item(key, each, inside[key])]
        return [*_above(reason, 0), f"{name} = {{", *body, "}"]
    if isinstance(value, list) and len(line) > WIDTH:
        return [*_above(reason, 0), f"{name} = [", *(f"    {_literal(each)}," for each in value), "]"]
    return _with_reason(line, reason, 0)


def _item(key, value, reason, depth=1) -> list[str]:
    """The lines of one entry of a dictionary."""
    indent, flat = "    " * depth, f"{_literal(key)}: {_literal(value)},"
    if isinstance(value, dict) and len(indent + flat) > WIDTH:
        body = [line for inner, each in value.items() for line in _item(inner, each, "", depth + 1)]
        return [*_above(reason, depth), f"{indent}{_literal(key)}: {{", *body, f"{indent}}},"]
    return _with_reason(f"{indent}{flat}", reason, depth)


def _literal(value) -> str:
    """A value as the formatter writes it: double quotes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _with_reason(line, reason, depth) -> list[str]:
    whole = f"{line}  # {reason}" if reason else line
    return [whole] if len(whole) <= WIDTH else [*_above(reason, depth), line]


def _above(reason, depth) -> list[str]:
    indent = "    " * depth + "# "
    return textwrap.wrap(reason, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _reasons(text: str) -> dict[tuple[str, ...], str]:
    """Keys of params.yaml from the outermost in -> the comment above that key and behind it."""
    found, path, above = {}, (), []
    for line in text.splitlines():
        key = re.match(r"( *)([\w.-]+):(.*)", line)
        if line.strip().startswith("#"):
            above.append(line.strip(" #"))
            continue
        if key:
            path = (*path[: len(key[1]) // 2], key[2])
            behind = re.search(r"\s# ?(.*)", key[3])
            found[path] = " ".join(filter(None, [*above, behind and behind[1]]))
        above = []
    return found
