"""A report on one's own images and network, in minutes:  make report IMAGES=folder TARGET=network

The stages that look at data, network, maps and scores run in a workspace of their own, build/reports/NAME/, on
params.yaml with a few values changed: all images are held out, nothing is trained, and there are as many methods and
points of curves as a processor manages in minutes. The pipeline's own run, its build/, reports/ and dvc.lock, stays as
it is. A stage whose parameters, code and inputs are those of the last time does not run again.
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from xai_utils import files
from xai_utils.pipeline import parameters, stage, workspaces

PLACE = Path("build/reports")
STAGES = ("prepare_data", "finetune_target", "explain", "evaluate")
SIZE = 224  # pixels of a side, for networks that do not say theirs
LIMIT, LIMIT_OF_ALL = 100, 20  # images: for the cheap methods, for all
MOSAICS = 8  # of the grid pointing game, each as much work as four images
REPEATED = 16  # a cheap method repeats its pass at most so often in params.yaml: with gradients 33 passes
ROWS, COLUMNS = 5, 8  # of the front page's picture
CHANGED = {  # what params.yaml says, but for:
    "prepare_data": {
        "stored_size": None,  # for trainings
        "train_per_class": 1,  # where a data set has a split for training
        "validation_fraction": 1.0,
        "annotation_level": None,
        "drop_blacklisted": False,
    },
    "finetune_target": {"epochs": 0},
    "evaluate": {
        "pixels_per_step": 8363,  # a sixth of the image: 7 points
        "insertion_baseline": "rise_blur",  # of which photographs, unlike the drawn birds, leave little
        "infidelity_squares": 16,
        "chunk": 32,  # of 224 pixels; more take gigabytes
        "sanity_images": 6,
    },
}
FEWER = {  # half of params.yaml's, where cheap
    "integrated_gradients": {"steps": 8},
    "expected_gradients": {"samples": 8},
    "smooth_grad": {"samples": 8},
}
COSTLY = ("faithfulness", "faithfulness_offset", "road", "percent_increase", "percentage_in")  # metrics left out
CALLED = {
    "target": "TARGET",
    "prepare_data.image_size": "SIZE",
    "explain.images": "LIMIT",
    "explain.methods": "METHODS",
}


class ReportError(ValueError):
    """What was asked for cannot be reported on; names the variable, its value, and what is allowed."""


def make(
    images, target, *, name=None, methods=None, limit=None, size=None, tell: Callable[[str], object] = print
) -> Path:
    """Make the report of a folder of `images` and return its front page.

    `target` as in params.yaml, or with the path of a checkpoint or of a file of weights; `methods` None (cheap ones),
    "all" or a list; `limit` images; `size` pixels of a side. `tell(text)` gets a line at the beginning, and those of
    the result. ValueError or OSError for what is wrong, before anything is written that stays.
    """
    images = _folder(images)
    target, weights = _placed(target)
    name = files.file_name(name or _file_name_of(f"{images.name}-{target}"))
    base, project, place = parameters.read(), Path.cwd(), PLACE / name
    fresh = not place.exists()
    with files.partial_folder(place) as workspace:
        workspaces.link(workspace, project, weights=weights, stages=STAGES)
        with chdir(workspace):
            values, inputs, about = _planned(base, images, target, methods, limit, size)
            _check(values)
        with (workspace / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(values, file)
        if fresh:
            workspace.rename(place)
        else:
            workspaces.link(place, project, weights=weights, stages=STAGES)
            os.replace(workspace / "params.yaml", place / "params.yaml")
    tell(f"{about}, in {place}/")
    with chdir(place), files.held(stage.FAILED):
        if failed := workspaces.run(values, inputs, told="report"):
            raise ReportError(f"no report, for the stage {failed} failed; the same command goes on from there")
        for sentence in _front_page(about):
            tell(sentence.replace("`", ""))
    return place / stage.REPORTS / "index.html"


def _folder(images) -> Path:
    folder = Path(images).expanduser()
    if not str(images) or not folder.is_dir():
        what = "names no folder" if not str(images) else "is a file" if folder.is_file() else "is no folder"
        raise ReportError(f"IMAGES={images} {what}; give a folder of images, with or without class folders")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ReportError(f"IMAGES={images} holds this project; give the folder of the images alone")
    return folder.resolve()


def _placed(target: str) -> tuple[str, Path | None]:
    """What `target` is called in the workspace, and the folder that is data/weights there (None: the project's)."""
    head, _, last = target.rpartition(":")
    path = Path(last).expanduser().resolve()
    if not target:
        raise ReportError(
            "TARGET= names no network; give one with weights, such as efficientnet_lite0, or a checkpoint"
        )
    if path.is_dir() and head == "hf":
        return f"hf:data/weights/{path.name}", path.parent
    if path.is_dir() and not head and (path / "target.json").is_file():
        return path.name, path.parent
    if path.is_file() and not head:
        raise ReportError(f"TARGET={target} is a file alone; write its architecture before it: resnet50:{target}")
    if path.is_file():
        return f"{head}:{path.name}", path.parent
    return target, None


def _file_name_of(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-._+")[:100].rstrip("-._+") or "report"


def _planned(base, images, target, methods, limit, size) -> tuple[dict, dict, str]:
    """The workspace's params.yaml; stage -> a hash of the inputs that are not in it; what is done, in words.

    Run in the workspace: networks are looked for in its data/weights.
    """
    found, values = _listed(images, base["seed"]), base | {"scale": "default", "dataset": str(images), "target": target}
    for section, changed in CHANGED.items():
        values[section] = base[section] | changed
    limit = limit or (LIMIT_OF_ALL if methods == "all" else LIMIT)
    total, cap = len(found.validation), _per_class(Counter(label for _, label in found.validation), limit)
    size = size or _size_of(target, found.classes) or SIZE
    values["prepare_data"] |= {"image_size": size, "validation_per_class": cap}
    mosaics = base["explain"]["mosaics"] | {"number": MOSAICS}
    values["explain"] = base["explain"] | {"images": limit, "methods": "all", "mosaics": mosaics}
    if methods != "all":
        values["explain"]["methods"] = _methods(values, methods)
    if methods is None:
        rows = base["explain"]["rows"]
        values["explain"]["rows"] = rows | {row: rows[row] | fewer for row, fewer in FEWER.items() if rows.get(row)}
    values["evaluate"]["metrics"] = _metrics()
    known = [(file, (found.root / file).stat()) for file, _ in found.validation]
    inputs = {
        "prepare_data": [(file, about.st_size, about.st_mtime_ns) for file, about in known],
        "finetune_target": files.files_fingerprint("data/weights") if _own_weights(target) else target,
    }
    which = f"{limit} of {total} images (chosen by seed {base['seed']})" if limit < total else f"all {total} images"
    of_classes = f"{len(found.classes)} classes" if found.classes else "no labels"
    return values, inputs, f"{which} of {images.name}, {of_classes}, {target}, {size} pixels"


def _listed(images: Path, seed: int):
    """The images of a folder, all held out."""
    from xai_utils.datasets import DataError, published

    try:
        found = published.find(images, validation_fraction=1.0, seed=seed)
    except DataError as error:
        raise ReportError(f"IMAGES: {error}") from error
    return found


def _size_of(target: str, classes) -> int | None:
    """The pixels of a side that `target` is made for; ReportError where there is no such network with classes."""
    from xai_utils.training.target import image_size_of, source_of, starting_target

    try:
        if not isinstance(source_of(target)[1], str):  # published weights are fetched by the stage
            starting_target(target, classes, seed=0, new_head=False)
        return image_size_of(target)
    except (ValueError, OSError) as error:
        raise ReportError(f"TARGET: {error}") from error


def _own_weights(target: str) -> bool:
    """Whether `target` names weights of its own, files in data/weights."""
    from xai_utils.training.target import source_of

    return isinstance(source_of(target)[1], Path)


def _per_class(counts: Counter, limit: int) -> int:
    """The smallest cap on the images of a class that leaves `limit` images, or all."""
    most = max(counts.values())
    return next((cap for cap in range(1, most) if sum(min(n, cap) for n in counts.values()) >= limit), most)


def _methods(values: dict, asked: list | None) -> list[str]:
    """The rows that are `asked` for (None: the cheap methods), and the controls."""
    from xai_utils.explainers import CONTROLS, EXPLAINERS, rows_of

    if asked is not None:
        return list(dict.fromkeys((*asked, *CONTROLS)))
    rows, kept = parameters.resolve(values, "explain")["rows"], []
    for method, options in rows_of("all", rows).items():
        if method not in EXPLAINERS:
            continue
        record = EXPLAINERS[method]
        repeats = next((each.name for each in record.options if each.multiplies), None)
        passes = (record.keywords | options)[repeats] if repeats else 1
        if record.part is None and passes <= REPEATED:  # what has a part is trained, and here nothing is
            kept.append(method)
    return kept


def _metrics() -> list[str]:
    from xai_utils.metrics import METRICS

    return [name for name in METRICS if name not in COSTLY]


def _check(values: dict):
    """ReportError with a line for all that would stop a stage: parameters, methods, the network, images."""
    from xai_utils.datasets import DataError, prepare
    from xai_utils.pipeline import preflight

    try:
        given = {each: parameters.resolve(values, each) for each in STAGES}
    except ValueError as error:
        lines = str(error).splitlines()
    else:
        lines = preflight.names(given) or preflight.networks(given)
    if not lines:
        settings = dict(given["prepare_data"])
        try:
            prepare(settings.pop("dataset"), "tried", **settings)
        except DataError as error:
            lines = [f"IMAGES: {line}" for line in str(error).splitlines()]
        shutil.rmtree("tried", ignore_errors=True)
    for key, variable in CALLED.items():
        lines = [line.replace(f"params.yaml: {key}", variable) for line in lines]
    if lines:
        raise ReportError("\n".join(lines))


def _front_page(about: str) -> list[str]:
    """Write the workspace's front page; what it says of the methods, in sentences."""
    from xai_utils import datasets, plots
    from xai_utils.evaluation import maps
    from xai_utils.pipeline import front

    summary, made = json.loads((stage.REPORTS / "metrics.json").read_bytes()), maps.load("build/maps")
    split, classes = datasets.load("build/data").validation, json.loads(Path("build/target/target.json").read_bytes())
    advice = summary["trust"] or {"level": [], "sentences": []}
    columns = list(dict.fromkeys((*advice["level"], *made.arrays)))[:COLUMNS]
    places = [round(place) for place in np.linspace(0, len(made.indices) - 1, min(ROWS, len(made.indices)))]
    grid = plots.method_grid(
        split.images[made.indices[places]],
        {row: made.arrays[row][places] for row in columns},
        [classes["classes"][label] for label in made.targets[places]],
    )
    plots.save(grid, front.PICTURE)
    front.write(stage.notebooks(), f"{about[0].upper()}{about[1:]}.")
    return advice["sentences"]


def main():
    stage.begin_in_utf_8()
    parser = argparse.ArgumentParser(
        prog="python -m xai_utils.pipeline.own_report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("images", metavar="IMAGES")
    parser.add_argument("target", metavar="TARGET")
    for name, told in {
        "name": "of the report",
        "methods": "all, or names",
        "limit": "images",
        "size": "pixels",
    }.items():
        parser.add_argument(f"--{name}", default="", metavar=name.upper(), help=told)
    given = vars(parser.parse_args())
    try:
        stage.enter_project()
        stage.live()
        numbers = {name: _whole(name, given[name]) for name in ("limit", "size")}
        methods = given["methods"].replace(",", " ").split() or None
        options = {"name": given["name"] or None, "methods": "all" if methods == ["all"] else methods} | numbers
        page = make(given["images"], given["target"], **options, tell=lambda text: print(text, flush=True))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"open {page}")


def _whole(name: str, text: str) -> int | None:
    if text and not (text.isdecimal() and int(text)):
        raise ReportError(f"{name.upper()}={text} is no whole number above 0")
    return int(text) if text else None


if __name__ == "__main__":
    main()
