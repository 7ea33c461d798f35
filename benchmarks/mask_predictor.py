"""What a mask predictor's map costs, and meaningful perturbation: python benchmarks/mask_predictor.py [--json PATH]

DGLE's map is one pass of the target with the generator behind it. Meaningful perturbation is measured per iteration,
all images at once and one after the other. See timing.py for how it is measured. About four minutes.
"""

import timing
import torch
from timing import Row

from xai_utils.explainers import explain
from xai_utils.networks import inference_copy, predictor_of

PASS = 1.6  # what we promise, in forward equivalents
ITERATIONS = 2


def perturbed(model, images, target):
    """A short run of meaningful perturbation, with the circles that it begins with."""
    return explain(model, images, target, method="meaningful_perturbation", iterations=ITERATIONS)


if __name__ == "__main__":
    model, copied, images, target = timing.setting()
    predictor = predictor_of(model, images, controller="customized").eval()
    folded = predictor_of(copied, images, controller="customized").eval()
    folded.load_state_dict(predictor.state_dict())
    with torch.no_grad():
        probe = [torch.rand(1, channels, 56 >> place, 56 >> place) for place, channels in enumerate(folded.channels)]
        folded.generator = inference_copy(folded.generator, probe)

    def singly():
        for place in range(len(images)):
            perturbed(copied, images[place : place + 1], target[place : place + 1])

    rows = {
        "dgle_cf": Row(lambda: explain(model, images, target, method="dgle_cf", predictor=predictor), 1, PASS),
        "dgle_cf, inference copies": Row(
            lambda: explain(copied, images, target, method="dgle_cf", predictor=folded), 1, PASS
        ),
        "meaningful perturbation, per iteration": Row(lambda: perturbed(copied, images, target), ITERATIONS),
        "meaningful perturbation, image by image": Row(singly, ITERATIONS),
    }
    timing.run(__doc__, model, images, rows)
