"""What Grad-CAM of transformers costs, beside grad-cam: python benchmarks/transformer_cams.py [--json PATH]

torchvision's ViT-B/16 and Swin-T with random weights; each row's unit is a plain pass of its own network. See timing.py
for how it is measured. About five minutes.
"""

from importlib import metadata

import timing
import torch
import torchvision
from timing import Row

from xai_utils.explainers import EXPLAINERS
from xai_utils.networks import cam_layer, find_layer

NETWORKS = ("vit_b_16", "swin_t")
PROMISED = 1.10  # what we promise, the time over a plain pass


def as_map(output):
    """(N, 1 + 14 * 14, C) of ViT-B/16 or (N, 7, 7, C) of Swin-T -> (N, C, h, w)."""
    if output.ndim == 3:
        output = output[:, 1:].unflatten(1, (14, 14))
    return output.permute(0, 3, 1, 2)


def grad_cams(name, model, images, target, forward):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = find_layer(model, cam_layer(model, images))

    def grad_cam():
        with GradCAM(model=model, target_layers=[layer], reshape_transform=as_map) as cam:
            return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in target])

    return {f"{name}, grad-cam {metadata.version('grad-cam')} GradCAM": Row(grad_cam, forward=forward)}


def compared(name, model, images, target):
    """Our Grad-CAM of `model`, and grad-cam's of the same layer."""

    def forward():
        with torch.inference_mode():
            model(images)

    ours = Row(lambda: EXPLAINERS["grad_cam"](model, images, target), 1, PROMISED, forward)
    rows = {f"{name}, grad_cam": ours}
    return rows | timing.optional(lambda: grad_cams(name, model, images, target, forward))


if __name__ == "__main__":
    torch.set_num_threads(timing.THREADS)
    torch.manual_seed(0)
    images, target = torch.rand(timing.BATCH, 3, timing.SIZE, timing.SIZE), torch.arange(timing.BATCH)
    models = {name: torchvision.models.get_model(name).eval() for name in NETWORKS}
    for model in models.values():  # torchvision's ViT begins with a head of zeros
        torch.nn.init.trunc_normal_([each for each in model.modules() if isinstance(each, torch.nn.Linear)][-1].weight)
    rows = {}
    for name, model in models.items():
        rows |= compared(name, model, images, target)
    timing.run(__doc__, model, images, rows, network=" and ".join(NETWORKS))
