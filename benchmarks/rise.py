"""What RISE costs per mask, and the memory of its masks: python benchmarks/rise.py [--json PATH]

The time is divided by the passes: the masks, and one clean pass that checks the target. The memory is what torch holds
at once for 8000 masks at 224 pixels, measured with a network that costs nothing. See timing.py for how it is measured.
About six minutes.
"""

import timing
import torch
from fastcam import peak_bytes
from timing import Row
from torch import nn

from xai_utils.explainers import EXPLAINERS

MASKS, ALL_MASKS = 12, 8000
COPIED, GIGABYTES = 0.80, 1.0  # what we promise


class Free(nn.Module):
    """A network that only looks at three pixels."""

    mean = torch.tensor([0.5, 0.5, 0.5])

    def forward(self, images):
        return images[:, :, 100, 100]


def rise(model, images, target, place="", promised=None):
    """All images of the batch share the masks."""
    explain = lambda: EXPLAINERS["rise"](model, images, target, masks=MASKS)  # noqa: E731
    return {f"rise{place}, per mask": Row(explain, MASKS + 1, promised)}


if __name__ == "__main__":
    model, copied, images, target = timing.setting()
    held = peak_bytes(lambda: EXPLAINERS["rise"](Free(), images[:1], 0, masks=ALL_MASKS))
    gigabytes = {f"gigabytes for {ALL_MASKS} masks (promised {GIGABYTES})": round(held / 1e9, 3)}
    rows = rise(model, images, target) | rise(copied, images, target, ", inference copy", COPIED)
    timing.run(__doc__, model, images, rows, further=gigabytes)
