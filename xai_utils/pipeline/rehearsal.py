"""A rehearsal of the papers' scale:  make rehearse [DATASET=folder] [TARGET=network]

Every stage and row of the scale `paper` runs with its networks at its image size, its schedules cut to a step and its
numbers of images to a handful, in a workspace of its own, build/rehearsal/NAME/: what would stop a run after a week
stops it here, in minutes. The pipeline's own run stays as it is. The same command goes on behind a stage that failed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from ruamel.yaml import YAML

from xai_utils import files
from xai_utils.pipeline import parameters, preflight, stage, workspaces
from xai_utils.progress import span

PLACE = Path("build/rehearsal")
SCALE, TARGET = "rehearsal", "resnet50"  # the papers' network


def rehearse(
    dataset: str | None = None, target: str | None = None, *, tell: Callable[[str], object] = print
) -> dict[str, float]:
    """Rehearse params.yaml as it stands, on its data set or another; stage -> the seconds that it took.

    `target`: what is explained, by default ResNet-50 with random weights. `tell(text)` gets a line at the beginning.
    ValueError with a line for all that is wrong beforehand; RuntimeError naming the stage that failed.
    """
    base, project = parameters.read(), Path.cwd()
    folder = Path(dataset or base["dataset"]).expanduser()
    values = base | {"scale": SCALE, "target": target or TARGET, "dataset": str(project / folder)}
    given = {each: parameters.resolve(values, each) for each in parameters.STAGES}
    said = [line for told in (preflight.names, preflight.trainings, preflight.networks) for line in told(given)]
    if said or not folder.is_dir():
        raise ValueError("\n".join(said) or f"DATASET={dataset} is no folder; give a data set, such as data/birds")
    place = PLACE / files.file_name(folder.name)
    with files.partial_folder(place) as workspace:
        workspaces.link(workspace, project)
        with (workspace / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(values, file)
        if place.exists():
            workspaces.link(place, project)
            os.replace(workspace / "params.yaml", place / "params.yaml")
        else:
            workspace.rename(place)
    tell(f"the papers' scale on a handful of images of {folder.name}, {values['target']}, in {place}/")
    begun, took = time.monotonic(), {}

    def finished(name):
        nonlocal begun
        took[name], begun = time.monotonic() - begun, time.monotonic()

    with chdir(place), files.held(stage.FAILED):
        known = _stamps(folder if folder.is_absolute() else project / folder)
        if failed := workspaces.run(values, {"prepare_data": known}, told=SCALE, finished=finished):
            raise RuntimeError(f"the stage {failed} failed; mend it, and the same command goes on from there")
    return took


def _stamps(folder: Path) -> list:
    """What tells whether the files of a data set are the same: names, sizes, times of change."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path), about.st_size, about.st_mtime_ns) for path in found for about in [path.stat()]]


def main():
    stage.begin_in_utf_8()
    parser = argparse.ArgumentParser(prog="python -m xai_utils.pipeline.rehearsal", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="", help="a folder (default: params.yaml's)")
    parser.add_argument("--target", default="", help=f"a network (default: {TARGET}, random weights)")
    given = parser.parse_args()
    try:
        stage.enter_project()
        stage.live()
        took = rehearse(given.dataset or None, given.target or None, tell=lambda text: print(text, flush=True))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    each = ", ".join(f"{name} {span(seconds)}" for name, seconds in took.items())
    print(f"{len(took)} stages ran in {span(sum(took.values()))}{': ' if took else ''}{each}")


if __name__ == "__main__":
    main()
