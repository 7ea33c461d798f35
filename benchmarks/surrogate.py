"""What a self-explaining surrogate costs: python benchmarks/surrogate.py [--json PATH]

AKD's student with its explanation network, logits and map together, against the plain target. See timing.py for how it
is measured. About two minutes.
"""

import timing
import torch
from timing import Row

from xai_utils.networks import Surrogate, inference_copy

TOGETHER = 1.5  # what we promise; AKD's own frames per second give 3.4


def both(surrogate, images):
    """One pass: logits and maps."""
    with torch.inference_mode():
        return surrogate(images)


if __name__ == "__main__":
    model, copied, images, _ = timing.setting()
    surrogate = Surrogate(model).eval()
    folded = inference_copy(surrogate, images[:1])
    rows = {
        "student and explanation network": Row(lambda: both(surrogate, images), 1, TOGETHER),
        "student and explanation network, inference copy": Row(lambda: both(folded, images), 1, TOGETHER),
        "target, inference copy": Row(lambda: both(copied, images)),
    }
    timing.run(__doc__, model, images, rows)
