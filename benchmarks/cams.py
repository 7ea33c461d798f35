"""What a class activation map costs, beside the same map of other libraries: python benchmarks/cams.py [--json PATH]

See timing.py for how it is measured. About five minutes.
"""

from importlib import metadata

import timing
import torch
from timing import Row

from xai_utils.explainers import EXPLAINERS, cam_maps
from xai_utils.explainers.cam import CHANNEL_WEIGHTS
from xai_utils.networks import gate_for

LAYER = "layer4"
NOISY_COPIES = 3  # of smooth_grad_cam_plus_plus here, shown per pass
EACH, TOGETHER, COPIED = 1.03, 1.06, 0.80  # what we promise, times over a plain pass
GATED, GATED_COPY = 1.05, 0.85


def ours(model, images, target, place, each, together):
    """Our own maps on `model`."""
    rows = {
        f"{name}{place}": Row(lambda name=name: EXPLAINERS[name](model, images, target), 1, each)
        for name in CHANNEL_WEIGHTS
    }
    rows[f"the three together{place}"] = Row(
        lambda: cam_maps(model, images, target, methods=[*CHANNEL_WEIGHTS]), 1, together
    )
    return rows


def gated(model, copied, images, target):
    """AMG's map; what a gate costs does not depend on its weights."""
    gate = gate_for(model, images).eval()
    return {
        "amg": Row(lambda: EXPLAINERS["amg"](model, images, target, gate=gate), 1, GATED),
        "amg, inference copy": Row(lambda: EXPLAINERS["amg"](copied, images, target, gate=gate), 1, GATED_COPY),
    }


def smooth(model, images, target):
    """Divided by its passes: the noisy ones; the target is given, but a clean pass checks it."""
    options = {"samples": NOISY_COPIES, "chunk": timing.BATCH, "generator": torch.Generator().manual_seed(0)}
    run = lambda: EXPLAINERS["smooth_grad_cam_plus_plus"](model, images, target, **options)  # noqa: E731
    return {"smooth_grad_cam_plus_plus, per pass": Row(run, NOISY_COPIES + 1)}


def captums(model, images, target):
    from captum.attr import LayerAttribution, LayerGradCam

    def grad_cam():
        maps = LayerGradCam(model, model.network.get_submodule(LAYER)).attribute(
            images, target=target, relu_attributions=True
        )
        return LayerAttribution.interpolate(maps.detach(), (timing.SIZE, timing.SIZE), "bilinear")

    return {f"captum {metadata.version('captum')} LayerGradCam": Row(grad_cam)}


def grad_cams(model, images, target):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def grad_cam():
        with GradCAM(model=model, target_layers=[model.network.get_submodule(LAYER)]) as cam:
            return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in target])

    return {f"grad-cam {metadata.version('grad-cam')} GradCAM": Row(grad_cam)}


def torchcams(model, images, target):
    from torchcam.methods import GradCAM

    def grad_cam():
        with GradCAM(model, target_layer=model.network.get_submodule(LAYER)) as cam:
            return torch.nn.functional.interpolate(cam(target.tolist(), model(images))[0][:, None], timing.SIZE)

    return {f"torchcam {metadata.version('torchcam')} GradCAM": Row(grad_cam)}


if __name__ == "__main__":
    model, copied, images, target = timing.setting()
    rows = ours(model, images, target, "", EACH, TOGETHER)
    rows |= ours(copied, images, target, ", inference copy", COPIED, COPIED)
    rows |= gated(model, copied, images, target)
    rows |= smooth(model, images, target)
    for library in (captums, grad_cams, torchcams):
        rows |= timing.optional(lambda library=library: library(model, images, target))
    timing.run(__doc__, model, images, rows)
