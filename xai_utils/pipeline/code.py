"""The library's own source in a chapter: under an equation the code that computes it, as it is now, never a copy."""

import ast
import inspect
import textwrap


def show(*functions, part: str = ""):
    """Show the source of `functions` (or classes) without their docstrings; `part`: only what is defined by that name.

    Where they stand is said above them, once for those of one module.
    """
    from IPython.display import Markdown, display

    lines, place = [], ""
    for function in functions:
        before, place = place, f"# {function.__module__}" + (f", {function.__qualname__}" if part else "")
        lines += [*([place] if place != before else []), source(function, part=part), ""]
    display(Markdown("```python\n" + "\n".join(lines).rstrip() + "\n```"))


def source(function, *, part: str = "") -> str:
    """What a function or class is made of, without docstrings; `part`: the function or class of that name inside it.

    ValueError where it has no such part.
    """
    text = textwrap.dedent(inspect.getsource(function))
    lines, found = text.splitlines(), ast.parse(text).body[0]
    if part:
        inside = [node for node in ast.walk(found) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        named = {node.name: node for node in inside if node is not found}
        if part not in named:
            raise ValueError(f"{function.__qualname__} defines no {part!r}; it defines {', '.join(named) or 'nothing'}")
        found = named[part]
    first = min([found.lineno, *(each.lineno for each in found.decorator_list)])
    left_out = set()
    for node in ast.walk(found):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            behind = node.body[0].end_lineno
            left_out.update(range(node.body[0].lineno, behind + (not lines[behind].strip()) + 1))
    kept = [lines[number - 1] for number in range(first, found.end_lineno + 1) if number not in left_out]
    return textwrap.dedent("\n".join(kept))
