"""What a mask predictor's map costs: python benchmarks/mask_predictor.py [--json PATH]

DGLE's map is one pass of the target with the generator behind it. See timing.py for how it is measured. About a minute.
"""

import timing
import torch
from timing import Row

from xai_utils.explainers import explain
from xai_utils.networks import inference_copy, predictor_of

PASS = 1.6  # what we promise, the time over a plain pass


if __name__ == "__main__":
    model, copied, images, target = timing.setting()
    predictor = predictor_of(model, images, controller="customized").eval()
    folded = predictor_of(copied, images, controller="customized").eval()
    folded.load_state_dict(predictor.state_dict())
    with torch.no_grad():
        probe = [torch.rand(1, channels, 56 >> place, 56 >> place) for place, channels in enumerate(folded.channels)]
        folded.generator = inference_copy(folded.generator, probe)

    rows = {
        "dgle_cf": Row(lambda: explain(model, images, target, method="dgle_cf", predictor=predictor), 1, PASS),
        "dgle_cf, inference copies": Row(
            lambda: explain(copied, images, target, method="dgle_cf", predictor=folded), 1, PASS
        ),
    }
    timing.run(__doc__, model, images, rows)
