"""What a function is made of: its code, and all that it reads which stands in no file.

A function of a file is its name, for the file says the rest. One of a notebook is its compiled code, its defaults, what
it closes over, and the values of the global names that it reads, down to files and plain values. So an edited cell is
another function, whatever it is called, and so is the same text beside another constant.
"""

import copyreg
import dis
import functools
import hashlib
import importlib
import sys
import sysconfig
import types
from pathlib import Path

from xai_utils.files import fingerprint

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
WITHOUT_CODE = (
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType),
    *(types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType),
)
OF_EVERY_CLASS = {  # attributes that say nothing of what a class does
    *("__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate_func__"),
    *("__annotations_cache__", "__firstlineno__", "__static_attributes__", "_abc_impl"),
}
PACKAGE = Path(__file__).resolve().parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def is_installed(file: Path) -> bool:
    """Whether a file belongs to Python or to an installed distribution, whose version is pinned; this package never."""
    libraries = "site-packages" in file.parts or any(file.is_relative_to(folder) for folder in LIBRARIES)
    return libraries and not file.is_relative_to(PACKAGE)


class Contents:
    """`digest(value, name)` stands for a function or a value; `files` are those that it came upon on the way.

    Equal contents have equal digests in every process of one version of Python. Libraries count by name.
    """

    def __init__(self):
        self.files, self._known, self._open = set(), {}, []

    def digest(self, value, name: str) -> str:
        """ValueError, saying what `name` is, where neither code nor plain values could stand for it."""
        if type(value) in ATOMS:
            return f"{type(value).__name__} {value!r}"
        if id(value) in self._open:  # a function that calls itself
            return f"within {self._open.index(id(value))}"
        if id(value) not in self._known:
            self._open.append(id(value))
            found = fingerprint(self._facts(value, name))
            self._open.pop()
            self._known[id(value)] = found, value  # kept alive, so that its id stays its own
        return self._known[id(value)][0]

    def _digests(self, values, name):
        return [self.digest(each, name) for each in values]

    def _facts(self, value, name):
        kind = type(value).__name__
        if type(value) in (list, tuple):
            return [kind, self._digests(value, name)]
        if type(value) in (set, frozenset):
            return [kind, sorted(self._digests(value, name))]
        if type(value) in (dict, types.MappingProxyType):
            return [kind, self._digests(value.keys(), name), self._digests(value.values(), name)]
        if isinstance(value, types.ModuleType):
            return self._of_module(value)
        if isinstance(value, types.FunctionType):
            return self._of_function(value, name)
        if isinstance(value, types.CodeType):
            return self._of_code(value, name)
        if isinstance(value, type):
            return self._of_class(value, name)
        if isinstance(value, WITHOUT_CODE):
            return [kind, getattr(value, "__module__", None), value.__qualname__]
        if isinstance(value, property):
            return [kind, self._digests((value.fget, value.fset, value.fdel), name)]
        if isinstance(value, staticmethod | classmethod | functools._lru_cache_wrapper):
            return [kind, self.digest(value.__wrapped__, name)]
        return _numbers(value) or self._of_object(value, name)

    def _in_a_file(self, file) -> bool:
        """Whether there is such a file, which then stands for what it defines."""
        if not file or not Path(file).is_file():
            return False
        if not is_installed(file := Path(file).resolve()):
            self.files.add(file)
        return True

    def _of_module(self, module):
        self._in_a_file(getattr(module, "__file__", None))
        return ["module", module.__name__]

    def _of_function(self, function, name):
        code, space = function.__code__, function.__globals__
        cells = [_inside(cell) for cell in function.__closure__ or ()]
        found = ["function", function.__qualname__, self._digests(cells, f"what {name} closes over")]
        file = space.get("__file__") or ""
        in_a_file = Path(file).name == Path(code.co_filename).name and self._in_a_file(file)
        if not in_a_file or "<locals>" in function.__qualname__:  # else the file says them
            given = function.__defaults__, function.__kwdefaults__, vars(function)
            found.append(self._digests(given, f"a default of {name}"))
        if in_a_file:
            return found
        read = {each: space[each] for each in sorted(_read_names(code)) if each in space}
        values = [self.digest(value, f"{each}, which {name} reads,") for each, value in read.items()]
        return [*found, list(read), values, self.digest(code, name)]

    def _of_code(self, code, name):
        for dotted in _imported(code):
            try:
                self._of_module(importlib.import_module(dotted))
            except ImportError:  # what a module holds, or what is not there
                continue
        names = [list(each) for each in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)]
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        text = [code.co_code.hex(), code.co_exceptiontable.hex()]
        return ["code", text, names, counts, self._digests(code.co_consts, name)]

    def _of_class(self, made, name):
        found, head = ["class", made.__module__, made.__qualname__], made.__module__.split(".")[0]
        if made.__module__ != "__main__":
            file = getattr(sys.modules.get(made.__module__), "__file__", None)
            top = getattr(sys.modules.get(head), "__file__", None)
            library = head in sys.stdlib_module_names or (top and is_installed(Path(top).resolve()))
            if self._in_a_file(file) or library:
                return found
        bases = self._digests((type(made), *made.__bases__), f"a base of {name}")
        inside = {key: value for key, value in vars(made).items() if key not in OF_EVERY_CLASS}
        values = [self.digest(value, f"{made.__qualname__}.{key}") for key, value in inside.items()]
        return [*found, bases, list(inside), values]

    def _of_object(self, value, name):
        """What `copy` and `pickle` would make it from."""
        try:
            reduced = copyreg.dispatch_table.get(type(value), lambda each: each.__reduce_ex__(2))(value)
        except Exception as error:
            raise ValueError(
                f"{name} is a {type(value).__name__}, which has no source or value that could stand for it; make it "
                "inside the function from the settings, or define it in a file that can be imported"
            ) from error
        if isinstance(reduced, str):
            return ["named", type(value).__module__, reduced]
        made, given, state, *items = (*reduced, None, None, None)[:5]
        items = [None if each is None else list(each) for each in items]  # of a list or a dict of its own kind
        return ["object", self._digests((type(value), made, given, state, items), name)]


def _read_names(code) -> set[str]:
    """The global names that a code object reads, also in the functions inside it."""
    found = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_read_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _imported(code) -> list[str]:
    """The dotted names of what a code object imports itself: "a" and "a.b" of `from a import b`."""
    found, module = [], ""
    for each in dis.get_instructions(code):
        if each.opname == "IMPORT_NAME":
            found.append(module := each.argval)
        elif each.opname == "IMPORT_FROM":
            found.append(f"{module}.{each.argval}")
    return found


def _inside(cell):
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _numbers(value):
    """Type, shape and hash of a tensor or an array; None for anything else."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        values = numpy.ascontiguousarray(value)
    else:
        return None
    return ["numbers", str(value.dtype), list(value.shape), hashlib.sha256(values).hexdigest()]
