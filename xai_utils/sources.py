"""Which source files of this package a piece of code depends on: the closure of its imports, read and not run.

A name that a package only re-exports (`from xai_utils.networks import captured`, or `networks.captured` behind
`from xai_utils import networks`) leads to the file that defines it, so a comment in one explainer concerns those who
use that explainer. Imports inside functions count. A folder beside a file that the file names in a string is data that
it reads (templates). What is looked up by a computed name cannot be seen; a package that is used otherwise than by
attributes counts whole.
"""

import ast
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from xai_utils.contents import Contents, is_installed
from xai_utils.files import fingerprint, sha256

PACKAGE = Path(__file__).resolve().parent
NAME = PACKAGE.name


def closure(starts: Iterable[Path], *, stop: Iterable[Path] = ()) -> set[Path]:
    """The files in `starts`, all that they import of this package, and so on; folders of data that those read.

    What the files in `stop` import is not followed; they themselves count.
    """
    found, waiting, stop = set(), [Path(start).resolve() for start in starts], {Path(path).resolve() for path in stop}
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        if file.suffix == ".py" and file not in stop:
            text = file.read_text(encoding="utf-8")
            waiting += [*imported(text), *_data_beside(file.parent, text)]
            waiting += [] if file.is_relative_to(PACKAGE) else _own_modules(file, text)
    return found


def fingerprint_of(*functions: Callable, stop: tuple[Path, ...] = ()) -> str:
    """One hash of all that the results of `functions` depend on: the sources in their files' `closure`, and `Contents`.

    Contents and names inside the package count, the folder that the checkout lies in does not. A function of a notebook
    counts with its code and all that it reads, also other functions of the notebook and values: ValueError where it
    reads what nothing could stand for. So do partials, callable objects and what a function closes over.
    """
    contents = Contents()
    found = [contents.digest(function, name_of(function)) for function in functions]
    return fingerprint([found, _hashes(frozenset(contents.files), tuple(stop))])


def name_of(function: Callable) -> str:
    """module:name of a function, also behind a partial; of a callable object, its class's."""
    while hasattr(function, "func") and not hasattr(function, "__qualname__"):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


@cache  # what runs is what was imported, whatever happens to the files meanwhile
def _hashes(files: frozenset[Path], stop: tuple[Path, ...]) -> list:
    return sorted([_named(path), sha256(path)] for path in _files(closure(files, stop=stop)))


def _files(places):
    return {file for place in places for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()}


def _named(path: Path) -> str:
    inside = path.is_relative_to(PACKAGE)
    return path.relative_to(PACKAGE.parent).as_posix() if inside else path.name


def _module_file(dotted: str) -> Path | None:
    """The file of a module of this package; None where there is none of that name."""
    head, *rest = dotted.split(".")
    if head != NAME:
        return None
    place = PACKAGE.joinpath(*rest)
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


def _own_modules(file: Path, text: str) -> list[Path]:
    """The files that a file outside this package imports of the same author: on Python's path, or beside it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            dotted, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            above, level = node.module or "", node.level
            dotted = [above, *(f"{above}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        places = [file.parents[level - 1]] if level else [Path(entry) for entry in sys.path]
        for parts in (name.split(".") for name in dotted if name and name.split(".")[0] != NAME):
            modules = [place.joinpath(*parts) for place in places]
            files = [each for path in modules for each in (path / "__init__.py", path.with_suffix(".py"))]
            found += [each.resolve() for each in files if each.is_file() and not is_installed(each.resolve())][:1]
    return found


@cache
def imported(text: str) -> tuple[Path, ...]:
    """The files that a source text imports of this package."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names if alias.name.split(".")[0] == NAME):
                found += filter(None, [_module_file(name)])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == NAME:
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                if (file := _module_file(dotted)) is None:
                    found += _defining(node.module, alias.name)
                elif file.name == "__init__.py":
                    found += _used(tree, alias.asname or alias.name, dotted)
                else:
                    found.append(file)
    return tuple(dict.fromkeys(found))


def _used(tree, alias: str, package: str) -> list[Path]:
    """The files behind the attributes of `package`, which `tree` knows as `alias`."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == alias]
    reached = {id(node.value): node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    attributes = {reached.get(id(name)) for name in names}
    if not attributes or None in attributes:
        return [_module_file(package)]
    return [file for name in sorted(attributes) for file in _defining(package, name)]


def _defining(module: str, name: str) -> list[Path]:
    """The files that define `name` of `module`: those behind a package's re-export, else the module's own file."""
    file = _module_file(module)
    if file is None:
        return []
    if file.name != "__init__.py":
        return [file]
    if (inner := _module_file(f"{module}.{name}")) is not None:
        return [inner]
    source = _re_exports(file).get(name)
    return [file] if source is None else _defining(*source)


@cache
def _re_exports(file: Path) -> dict[str, tuple[str, str]]:
    """What a package's file takes over from its modules: name -> (module, name there)."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == NAME:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


@cache
def _data_beside(folder: Path, text: str) -> tuple[Path, ...]:
    """Folders beside a source text's file that it names: templates, say; no packages."""
    tree = ast.parse(text)
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    folders = [path for path in folder.iterdir() if path.is_dir() and path.name in names]
    return tuple(path for path in folders if not (path / "__init__.py").exists() and path.name != "__pycache__")
