"""What SMOE Scale and FastCAM cost, in time and memory: python benchmarks/fastcam.py [--json PATH]

Beside them the same formula written straight down: all five activations kept, a logarithm for every value. See
timing.py for how it is measured. About three minutes.
"""

import json
import tempfile
from pathlib import Path

import timing
import torch
from timing import Row

from xai_utils.explainers import EXPLAINERS
from xai_utils.explainers.smoe import combine, normal_cdf
from xai_utils.images import resize
from xai_utils.networks import captured, scale_layers

SMOE, FASTCAM, COPIED, MEGABYTES = 1.03, 1.05, 0.85, 1.0  # what we promise; memory per image, beyond the plain pass


def straightforward(model, images):
    """FastCAM eq. 1 and 3 without any of our care for speed."""
    layers = scale_layers(model, images)
    with torch.inference_mode(), captured(model, layers) as activations:
        model(images)
        maps = []
        for name in layers:
            x = activations[name] + 1e-7
            mean = x.mean(1)
            maps.append(resize(normal_cdf(mean * (mean.log2() - x.log2().mean(1))), images.shape[-2:]))
        return combine(torch.stack(maps, 1))


def peak_bytes(function):
    """The most memory that torch held at once during `function`, from the profiler's record of allocations."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(str(Path(folder, "trace.json")))
        events = json.loads(Path(folder, "trace.json").read_bytes())["traceEvents"]
    held = largest = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        largest = max(largest, held)
    return largest


if __name__ == "__main__":
    model, copied, images, target = timing.setting()
    rows, single = {}, images[:1]
    for name, limit in (("smoe", SMOE), ("fastcam", FASTCAM)):
        rows[name] = Row(lambda name=name: EXPLAINERS[name](model, images, target), 1, limit)
    for name in ("smoe", "fastcam"):
        rows[f"{name}, inference copy"] = Row(lambda name=name: EXPLAINERS[name](copied, images, target), 1, COPIED)
    rows["smoe, written straight down"] = Row(lambda: straightforward(model, images))
    with torch.inference_mode():
        plain = peak_bytes(lambda: model(single))
    extra = {
        "smoe": peak_bytes(lambda: EXPLAINERS["smoe"](model, single)),
        "fastcam": peak_bytes(lambda: EXPLAINERS["fastcam"](model, single)),
        "smoe, written straight down": peak_bytes(lambda: straightforward(model, single)),
    }
    megabytes = {name: round((value - plain) / 1e6, 3) for name, value in extra.items()}
    timing.run(
        __doc__, model, images, rows, further={f"megabytes per image (promised {MEGABYTES} for ours)": megabytes}
    )
