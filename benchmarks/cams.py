"""What a class activation map costs, in forward equivalents: python benchmarks/cams.py [--json PATH]

ResNet-50 with random weights, 8 images of 224 pixels, CPU, two threads. A forward equivalent is the time of one plain
`inference_mode` pass of the same network. Each measurement follows such a pass and is divided by its time, rounds
are interleaved (A, B, C, A, B, C, ...), and the median of the ratios is shown: load that comes and goes hits all
alike. Other libraries make the same Grad-CAM on the same network in the same run. About five minutes.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from xai_utils.explainers import EXPLAINERS, cam_maps
from xai_utils.explainers.cam import WEIGHTS
from xai_utils.networks import build, inference_copy

BATCH, SIZE, THREADS, LAYER = 8, 224, 2, "layer4"
NOISY_COPIES = 3  # of smooth_grad_cam_plus_plus here, shown per pass
EACH, TOGETHER, COPIED = 1.03, 1.06, 0.80  # what we promise, in forward equivalents


def ours(model, images, target, place, limits):
    """Rows of our own maps on `model`: name -> (function, passes, promised limit)."""
    rows = {}
    for name in WEIGHTS:
        rows[f"{name}{place}"] = (lambda name=name: EXPLAINERS[name](model, images, target), 1, limits[0])
    rows[f"the three together{place}"] = (lambda: cam_maps(model, images, target, methods=list(WEIGHTS)), 1, limits[1])
    return rows


def smooth(model, images, target):
    """One row, divided by its passes: the noisy ones; the target is given, but a clean pass checks it."""
    options = {"samples": NOISY_COPIES, "chunk": BATCH, "generator": torch.Generator().manual_seed(0)}
    run = lambda: EXPLAINERS["smooth_grad_cam_plus_plus"](model, images, target, **options)  # noqa: E731
    return {"smooth_grad_cam_plus_plus, per pass": (run, NOISY_COPIES + 1, None)}


def others(model, images, target):
    """Grad-CAM of the libraries that are installed."""
    rows, layer = {}, model.network.get_submodule(LAYER)
    try:
        from captum.attr import LayerAttribution, LayerGradCam

        def captum():
            maps = LayerGradCam(model, layer).attribute(images, target=target, relu_attributions=True)
            return LayerAttribution.interpolate(maps.detach(), (SIZE, SIZE), "bilinear")

        rows[f"captum {metadata.version('captum')} LayerGradCam"] = (captum, 1, None)
    except ImportError as missing:
        print(f"not measured: {missing}", file=sys.stderr)
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def grad_cam():
            with GradCAM(model=model, target_layers=[layer]) as cam:
                return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in target])

        rows[f"grad-cam {metadata.version('grad-cam')} GradCAM"] = (grad_cam, 1, None)
    except ImportError as missing:
        print(f"not measured: {missing}", file=sys.stderr)
    try:
        from torchcam.methods import GradCAM as TorchGradCAM

        def torchcam():
            with TorchGradCAM(model, target_layer=layer) as cam:
                return torch.nn.functional.interpolate(cam(target.tolist(), model(images))[0][:, None], SIZE)

        rows[f"torchcam {metadata.version('torchcam')} GradCAM"] = (torchcam, 1, None)
    except ImportError as missing:
        print(f"not measured: {missing}", file=sys.stderr)
    return rows


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(forward, rows, rounds):
    """Ratios per row (rounds,), and the seconds of all plain passes."""
    ratios, plain = {name: [] for name in rows}, []
    for function in (forward, *(function for function, _, _ in rows.values())):
        function()  # warm up: memory, kernels, imports
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        for name, (function, passes, _) in rows.items():
            forward()  # not timed: memory that the row before has just freed makes this pass faster than others
            plain.append(seconds(forward))
            ratios[name].append(seconds(function) / passes / plain[-1])
    return ratios, plain


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the measurements there")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = build("resnet50", range(1000)).eval()
    images, target = torch.rand(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)
    copied = inference_copy(model)

    def forward():
        with torch.inference_mode():
            model(images)

    rows = ours(model, images, target, "", (EACH, TOGETHER))
    rows |= ours(copied, images, target, ", inference copy", (COPIED, COPIED))
    rows |= smooth(model, images, target) | others(model, images, target)
    ratios, plain = measure(forward, rows, arguments.rounds)

    print(f"ResNet-50, {BATCH} x {SIZE} px, {THREADS} threads, torch {torch.__version__}, {arguments.rounds} rounds")
    print(f"plain forward: median {statistics.median(plain):.3f} s, {min(plain):.3f} to {max(plain):.3f} s\n")
    print(f"{'forward equivalents':44} median    min    max  promised")
    results = []
    for name, values in ratios.items():
        limit, median = rows[name][2], statistics.median(values)
        verdict = "" if limit is None else f"<= {limit:.2f} {'kept' if median <= limit else 'NOT KEPT'}"
        print(f"{name:44} {median:6.3f} {min(values):6.3f} {max(values):6.3f}  {verdict}".rstrip())
        results.append({"name": name, "median": median, "promised": limit, "ratios": values})
    if arguments.json:
        setting = {"network": "resnet50", "batch": BATCH, "size": SIZE, "threads": THREADS, "rounds": arguments.rounds}
        machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
        facts = {"setting": setting, "versions": machine, "forward_seconds": plain, "forward_equivalents": results}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
