"""What each stage makes, and what it depends on of this package: what its notebook imports, and all that follows.

The runner shows results and does not make them, so no stage depends on it.
"""

import json
import re
from pathlib import Path

from xai_utils import sources

ROOM = sources.PACKAGE.name
RUNNER = Path(__file__).with_name("stage.py")


def of_notebook(notebook: Path) -> list[str]:
    """The files and folders below the project's root that a notebook's results depend on, sorted.

    A folder stands for its source files where all of them count.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = sources.closure(sources.imported(code), stop=[RUNNER]) - {RUNNER}
    for folder in sorted({path.parent for path in found}):
        files = {path for path in folder.glob("*.py") if path.name != "__init__.py"}
        if folder != sources.PACKAGE and files <= found:
            found = {path for path in found if path.parent != folder} | {folder}
    return sorted(path.relative_to(sources.PACKAGE.parent).as_posix() for path in found)


def outputs(about: dict) -> list[str]:
    """The paths of what a stage of dvc.yaml makes."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in about.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def written(text: str, notebooks: dict[str, Path]) -> str:
    """dvc.yaml with the dependencies on this package of each stage written anew; all else stays as it is."""
    for stage, notebook in notebooks.items():
        block = re.search(rf"(?ms)^  {stage}:.*?^    deps:\n(?P<deps>(?:      - [^\n]*\n)+)", text)
        others = [line for line in block["deps"].splitlines() if not line.strip().startswith(f"- {ROOM}/")]
        lines = [*others, *(f"      - {path}" for path in of_notebook(notebook))]
        start, end = block.span("deps")
        text = text[:start] + "".join(f"{line}\n" for line in lines) + text[end:]
    return text
