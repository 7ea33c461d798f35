"""What a run would cost on this machine, before it begins:  make plan  (python -m xai_utils.pipeline --plan)

Numbers of images, trainings and rows are those of params.yaml and of the data set, which is listed and not decoded.
What one image costs is measured, for about a minute: the stages' own trainings take a step, on noise of the image size
and with networks of random weights, and every row explains and is scored once; what only multiplies (masks, samples,
points of a curve) is extrapolated from few. Nothing is fetched, and nothing of the run is touched.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import chdir
from pathlib import Path

import torch

from xai_utils import datasets
from xai_utils.datasets import published
from xai_utils.datasets.prepared import CATALOGUE, SPLITS
from xai_utils.files import scratch_folder
from xai_utils.pipeline import parameters
from xai_utils.pipeline.costs import Amounts, Measured, Work
from xai_utils.progress import span
from xai_utils.training.distributed import Compute

DOMINATES = 0.1  # share of the hours from which a work is named
WITHOUT = {  # stage -> what leaves it, or most of it, out
    "distill_surrogate": "distill_surrogate.student.epochs=0",
    "train_mask_predictor": "train_mask_predictor.generator.epochs=0",
    "train_attention": "train_attention.networks=[] -S train_attention.variants=0",
    "train_effect_predictor": "train_effect_predictor.predictor.epochs=0",
    "explain": "explain.rows.rise=false -S explain.rows.meaningful_perturbation=false -S explain.rows.lime=false",
    "evaluate": "evaluate.pixels_per_step=1792 -S evaluate.sanity_images=0",
    "remove_and_retrain": "'remove_and_retrain.rows={}' -S 'remove_and_retrain.statistics=[]'",
}


def plan(values: dict, *, tell: Callable[[str], object] = lambda text: None) -> list[Work]:
    """All works of a run with the `values` of params.yaml, in the project's folder; see the module's docstring.

    `tell(text)` gets a line for each stage that is measured. Errors are those of the stages' own functions.
    """
    given = {stage: parameters.resolve(values, stage) for stage in parameters.STAGES}
    given["prepare_data"]["dataset"] = str(Path(given["prepare_data"]["dataset"]).resolve())
    amounts = _amounts(given["prepare_data"])
    compute = Compute(**given["explain"]["compute"]).resolved()
    before = torch.get_num_threads()
    torch.set_num_threads(compute.threads)
    weights = Path("data/weights").resolve()
    try:
        with scratch_folder("xai-plan") as folder, chdir(folder):
            Path("data").mkdir()
            if weights.is_dir():
                Path("data/weights").symlink_to(weights)
            return Measured(given, amounts, compute, tell).works()
    finally:
        torch.set_num_threads(before)


def _amounts(given) -> Amounts:
    source, caps = Path(given["dataset"]), [given[f"{split}_per_class"] for split in SPLITS]
    if (source / CATALOGUE).is_file():
        classes = len(datasets.load_catalogue(source / CATALOGUE).species)
        return Amounts(*(classes * cap for cap in caps), classes, True, None)
    names = ("validation_fraction", "inclusive_boxes", "annotation_level", "drop_blacklisted", "seed")
    found = published.find(source, **{name: given[name] for name in names})
    counts = [
        sum(min(number, cap or number) for number in Counter(label for _, label in getattr(found, split)).values())
        for split, cap in zip(SPLITS, caps, strict=True)
    ]
    first = next((file for split in SPLITS for file, _ in getattr(found, split)), None)
    return Amounts(*counts, len(found.classes), False, first and found.root / first)


def told(works: list[Work], values: dict, took: Mapping[str, float]) -> list[str]:
    """The plan in lines: a table of the stages, what dominates, and what leaves that out.

    `took`: stage -> the seconds that it took here last, at this scale, to stand beside.
    """
    total = sum(work.seconds for work in works)
    lines = [f"scale {values['scale']}, dataset {values['dataset']}, target {values['target']}", ""]
    lines.append(f"{'stage':22}{'trainings':>10}{'images':>10}{'time':>9}{'last':>9}{'disk':>9}")
    for stage in [*parameters.STAGES, None]:
        own = [work for work in works if stage in (None, work.stage)]
        trainings, images, seconds, size = (sum(numbers) for numbers in zip(*map(_numbers, own), strict=True))
        last = took.get(stage) if stage else sum(took.values())
        shown = f"{_short(images):>10}{_hours(seconds):>9}{_hours(last) if last else '':>9}{_short(size) + 'B':>9}"
        lines.append(f"{stage or 'all':22}{trainings:10}{shown}")
    heavy = sorted((work for work in works if work.seconds > DOMINATES * total), key=lambda work: -work.seconds)
    lines += ["", *(f"{w.seconds / total:4.0%} {w.stage}: {w.what} ({_hours(w.seconds)})" for w in heavy)]
    stages = dict.fromkeys(work.stage for work in heavy if work.stage in WITHOUT)
    lines += [f"less: dvc exp run -S {WITHOUT[stage]}" for stage in stages]
    return lines


def _numbers(work):
    return work.trainings, work.images, work.seconds, work.size


def _hours(seconds):
    return span(seconds) if seconds < 5400 else f"{seconds / 3600:,.3g} h"


def _short(number):
    """A number with three digits and a letter for thousands."""
    for letter in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{letter}"
        number /= 1000
    return f"{number:.3g}T"
