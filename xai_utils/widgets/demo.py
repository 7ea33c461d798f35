"""The first look:  python -m xai_utils.widgets.demo [--picture FILE]

Runs notebooks/demo.ipynb on photographs and a trained network that are installed with the library. No stage of the
pipeline need have run, no data are pulled, nothing is fetched. The page is written when the quick methods have
answered, and again, whole or not at all, when all have.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas
import torch

from xai_utils import files, plots
from xai_utils.explainers import EXPLAINERS, NotApplicable, explain, passes
from xai_utils.metrics.cost import counted_passes
from xai_utils.metrics.perturbation import area_under_curve, perturbation_curves
from xai_utils.networks import describe, evaluating
from xai_utils.pipeline import report, stage
from xai_utils.progress import span
from xai_utils.widgets.background import watched

NOTEBOOK, PAGE = Path("notebooks/demo.ipynb"), Path("reports/demo.html")
SLOW = "slow"  # the tag of the cell before which the page is written for the first time
QUICK = 50  # images through the network for one map; what takes more is made after the page is there
TOLD_EVERY = 5.0  # seconds between two lines of progress
KNOWN = 0.02  # of the work, from which on its rest is estimated
CHUNK = 16  # images in the network at once: gradients of more would take gigabytes


class Look(NamedTuple):
    """One method's answer about N images, what it is worth (N,) and what it costs for one image."""

    maps: torch.Tensor  # (N, H, W), raw
    insertion: torch.Tensor
    deletion: torch.Tensor
    passes: float  # counted, see `counted_passes`
    seconds: float


def untrained(rows):
    """The methods among `rows` (row -> options) that train nothing: those of up to QUICK passes, and the others."""
    own = {row: given for row, given in rows.items() if row in EXPLAINERS and EXPLAINERS[row].part is None}
    quick = {row: given for row, given in own.items() if passes(row, given) <= QUICK}
    return quick, {row: given for row, given in own.items() if row not in quick}


def looks(model, images, target, rows, *, steps=10, seed=0, log=None):
    """Each method's `Look` at images (N, 3, H, W) for their classes (N,): method -> Look, or the reason for none.

    `rows`: method -> options. Insertion and deletion in `steps` steps. `log(text)` is told what runs and about how
    long all of it takes yet.
    """
    protocol = {name: {"pixels_per_step": 224 * 224 / steps} for name in ("insertion", "deletion")}
    expected = {row: (len(images) + 1) * passes(row, given) + 2 * steps * len(images) for row, given in rows.items()}
    found, clock = {}, _Clock(sum(expected.values()), log or (lambda text: None))
    describe(model, images[:1])  # finds once what there is to read; no method is to pay for that
    with evaluating(model), watched(model, clock.look):
        for row, given in rows.items():
            clock.begin(EXPLAINERS[row].label)
            record = EXPLAINERS[row]
            options = {"method": row} | ({"chunk": CHUNK} if "chunk" in record.keywords else {}) | given
            counted = partial(explain, target=target[:1], **record.seeded(options, seed, images.device))
            try:
                cost = counted_passes(model, images[:1], counted)
            except NotApplicable as reason:
                found[row] = str(reason)
                clock.end(expected[row])
                continue
            begun = time.perf_counter()
            maps = explain(model, images, target, **record.seeded(options, seed, images.device))
            seconds = (time.perf_counter() - begun) / len(images)
            curves = perturbation_curves(model, images, target, maps, curves=tuple(protocol), **protocol)
            areas = (area_under_curve(curves[name]) for name in protocol)
            found[row] = Look(maps.cpu(), *areas, cost, seconds)
            clock.end(expected[row])
    return found


class _Clock:
    """Tells about how long the work of `expected` images through the network takes yet."""

    def __init__(self, expected, log):
        self.expected, self.log, self.done, self.seen = expected, log, 0, 0
        self.begun = self.told = time.monotonic()

    def begin(self, label):
        self.label, self.seen = label, 0

    def look(self, images):
        self.seen += images
        share = min(0.99, (self.done + self.seen) / self.expected)
        if time.monotonic() - self.told >= TOLD_EVERY and share >= KNOWN:
            self.told = time.monotonic()
            left = (self.told - self.begun) * (1 - share) / share
            self.log(f"{self.label}: about {span(left)} left")

    def end(self, expected):
        self.done, self.seen = self.done + expected, 0


def cards(image, found, place):
    """The cards (`drawing.gallery`) of the maps of the image at `place` among those of `found`: method -> Look."""
    return [
        (
            EXPLAINERS[row].label,
            plots.overlay(image, look.maps[place], signed=EXPLAINERS[row].signed),
            [
                ("insertion ↑", f"{look.insertion[place]:.3f}"),
                ("deletion ↓", f"{look.deletion[place]:.3f}"),
                ("passes", f"{look.passes:.1f}"),
                ("seconds", f"{look.seconds:.2f}"),
            ],
        )
        for row, look in found.items()
    ]


def table(found):
    """The means over the images of each method's scores, and its cost: a table of `found` (method -> Look)."""
    rows = {
        EXPLAINERS[row].label: {
            "insertion ↑": f"{look.insertion.mean():.3f}",
            "deletion ↓": f"{look.deletion.mean():.3f}",
            "passes": f"{look.passes:.1f}",
            "seconds": f"{look.seconds:.2f}",
        }
        for row, look in found.items()
    }
    return pandas.DataFrame(rows).T


def make(page=PAGE, given=None, *, notebook=NOTEBOOK):
    """Write `page`, first of the quick methods, then of all; None, or what went wrong and where.

    `given`: parameters of the notebook in place of its own. What is there of the page is whole at any moment.
    """

    def write():
        made = report.normalise(nbformat.read(executed, as_version=4), root=Path.cwd())
        report.render(made, page, [*stage.pages(), (page.name, report.title(made))])

    def look(cell, cell_index):
        if SLOW in cell.metadata.get("tags", []):
            write()
            stage.progress(f"open {page}: the quick methods have answered; the slow ones join them there")

    with files.scratch_folder("xai-demo") as folder:
        executed = folder / "demo.ipynb"
        failure = stage.execute("demo", notebook, executed, given or {}, on_cell_start=look)
        if failure is None:
            write()
    return failure


def main():
    stage.begin_in_utf_8()
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--picture", metavar="FILE", help="draw the maps as one picture, too (.jpg, .png)")
    chosen = parser.parse_args()
    stage.enter_project()
    PAGE.unlink(missing_ok=True)  # of an earlier run
    failure = make(given={"picture": chosen.picture} if chosen.picture else {})
    if failure is None:
        print(f"open {PAGE}")
        return
    whole = f"; {PAGE} shows the quick methods" if PAGE.is_file() else ""
    sys.exit(f"the demo stopped{failure}{whole}")


if __name__ == "__main__":
    main()
