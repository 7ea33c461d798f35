"""Raw inputs against the .dvc files that name them: nothing is computed from a damaged folder, nor recorded as it is.

DVC takes what lies in a tracked folder for its new content as soon as a stage depends on that folder. The stages depend
on links to data/raw instead (data/birds, data/published), which DVC does not connect with data.dvc; so `dvc repro`
never writes data.dvc, and what changed is found here.
"""

import json
import subprocess
import sys
from pathlib import Path

RAW = "data/raw"
SHOWN = 5  # names in a message; the rest is counted


def problems(dataset) -> list[str]:
    """What is missing or changed in data/raw, or in `dataset` if a .dvc file beside it names that: a line for each.

    Missing is also what Git's last commit of the .dvc file lists, for `dvc exp run` records folders as they are.
    """
    tracked = {RAW: "data.dvc", str(dataset): f"{dataset}.dvc"}
    tracked = {folder: name for folder, name in tracked.items() if Path(name).is_file()}
    if not tracked or not Path(".dvc").is_dir():
        return []
    done = _dvc("data", "status", "--granular", "--json", *tracked)
    if done.returncode:
        return [f"{', '.join(tracked.values())}: cannot be compared with what lies there: {done.stderr.strip()}"]
    status = json.loads(done.stdout)
    lines = []
    for folder, name in tracked.items():
        changes = {
            (when, how): sorted(file for file in files if file.startswith(f"{folder}/") and not file.endswith("/"))
            for when in ("uncommitted", "committed")
            for how, files in status.get(when, {}).items()
        }
        missing, changed = (changes.get(("uncommitted", how), []) for how in ("deleted", "modified"))
        unlisted = [file for file in changes.get(("committed", "deleted"), []) if not Path(file).exists()]
        back = f"dvc pull --force {name} (which undoes every change in {folder})" if changed else f"dvc pull {name}"
        if missing:
            lines.append(f"{_named(missing)} missing, but {name} lists it; bring back: {back}")
        if changed:
            lines.append(f"{_named(changed)} not what {name} lists; bring back: {back}, or keep: dvc add {folder}")
        if unlisted:  # rm, for after `dvc exp run` Git may take the changed file for the committed one
            lines.append(
                f"{_named(unlisted)} missing, but {name} of the last commit lists it; bring back: "
                f"rm {name} && git checkout {name} && dvc pull {name}, or leave out: git add {name} && git commit"
            )
    return lines


def pull():
    """Fetch data/raw where the whole folder is missing, as in a fresh clone; there is nothing to overwrite."""
    if Path("data.dvc").is_file() and not Path(RAW).exists():
        done = _dvc("pull", "--quiet", "data.dvc")
        if done.returncode:
            raise FileNotFoundError(f"{RAW} is missing and dvc pull data.dvc failed: {done.stderr.strip()}")


def _dvc(*arguments):
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True)


def _named(files):
    rest = len(files) - SHOWN
    are = "is" if len(files) == 1 else "are"
    return ", ".join(files[:SHOWN]) + (f" and {rest} more" if rest > 0 else "") + f" {are}"
