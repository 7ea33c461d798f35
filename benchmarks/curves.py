"""What insertion, deletion and M_F cost per point of a curve: python benchmarks/curves.py [--json PATH]

Insertion and deletion together, ranking, blurring and a partial last batch included, divided by the points of both:
curves of 9 points; longer ones share their ranking among more. M_F has its 33. See timing.py for how it is measured.
About ten minutes.
"""

import timing
import torch
from timing import Row

from xai_utils.metrics.perturbation import faithfulness, perturbation_curves, step_counts

PIXELS_PER_STEP = 6272  # an eighth of the image
STEPS = 32  # of M_F
COPIED = 0.80  # what we promise, the time of a point over a plain pass


def both(model, images, target, maps, place="", promised=None):
    """Insertion and deletion with one ranking."""
    steps = {"pixels_per_step": PIXELS_PER_STEP}
    options = {"curves": ("insertion", "deletion"), "insertion": steps, "deletion": steps}
    points = 2 * len(step_counts(timing.SIZE**2, PIXELS_PER_STEP))
    curves = lambda: perturbation_curves(model, images, target, maps, **options)  # noqa: E731
    return {f"insertion and deletion{place}, per point": Row(curves, points, promised)}


if __name__ == "__main__":
    model, copied, images, target = timing.setting()
    maps = torch.rand(timing.BATCH, timing.SIZE, timing.SIZE)
    rows = both(model, images, target, maps) | both(copied, images, target, maps, ", inference copy", COPIED)
    rows["M_F, inference copy, per point"] = Row(
        lambda: faithfulness(copied, images, target, maps, steps=STEPS), STEPS + 1, COPIED
    )
    timing.run(__doc__, model, images, rows)
