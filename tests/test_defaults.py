"""The layers that methods read of any network: they follow the image, and wrappers and compilation change nothing."""

import threading

import pytest
import torch
import torchvision
from follows import cams_show, missed, patched, settled, statistics_show
from networks_table import of_timm, of_transformers
from torch import nn

from xai_utils.explainers import cam_maps, explain
from xai_utils.explainers.activation_statistics import STATISTICS
from xai_utils.explainers.smoe import statistic_maps
from xai_utils.images import resize, unit_range
from xai_utils.networks import cam_layer, describe, evaluating, find_layer, scale_layers

METHODS = ["grad_cam", "xgrad_cam", "grad_cam_plus_plus"]


def vit(size):
    return torchvision.models.VisionTransformer(size[0], 16, 3, 4, 32, 64, num_classes=10)


def swin(size):
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2, 2], [2, 4, 8], [3, 3], num_classes=10)


def convnext(size):
    blocks = [(16, 32, 1), (32, 64, 1), (64, 96, 2), (96, None, 1)]
    blocks = [torchvision.models.convnext.CNBlockConfig(*each) for each in blocks]
    return torchvision.models.ConvNeXt(blocks, num_classes=10)


def of(name, make=of_timm):
    return lambda size: make(name, size)


NETWORKS = {  # name -> how to make it for images of a size, the layer of CAMs, how many scales or blocks
    "resnet18": (lambda size: torchvision.models.resnet18(num_classes=10), "layer4", 5),
    "mobilenet_v3_small": (lambda size: torchvision.models.mobilenet_v3_small(num_classes=10), "features", 5),
    "convnext": (convnext, "features", 4),
    "swin": (swin, "features", 3),
    "vit": (vit, "encoder.layers.encoder_layer_2.ln_1", 3),
    "timm vit": (of("test_vit"), "blocks.5.norm1", 5),
    "timm convnext": (of("test_convnext"), "stages", 4),
    "timm mambaout": (of("test_mambaout"), "stages", 5),
    "timm xcit": (of("xcit_nano_12_p16_224"), "blocks.11", 4),
    "timm distilled": (of("deit_tiny_distilled_patch16_224"), "blocks.11.norm1", 5),
    "transformers ViT": (of("ViT", of_transformers), "vit.layers.3.layernorm_before", 4),
    "transformers Swin": (of("Swin", of_transformers), "swin.encoder.layers.2", 3),
    "transformers registers": (of("Dinov2WithRegisters", of_transformers), "dinov2_with_registers.encoder.layer.3", 4),
}


def made(name, size):
    """The network and `patched` images of that size."""
    return settled(NETWORKS[name][0](size), torch.rand(4, 3, *size)), patched(*size, pictures=2)


@pytest.mark.parametrize("size", [(96, 96), (96, 128)])
@pytest.mark.parametrize("name", [*NETWORKS])
def test_layers_follow_the_image_into_each_corner(name, size):
    """What CAMs weigh and SMOE's maps change most where a texture is drawn, on squares and others."""
    if name == "vit" and size[0] != size[1]:
        pytest.skip("torchvision's ViT takes squares alone")
    model, images = made(name, size)
    _, layer, scales = NETWORKS[name]
    assert (cam_layer(model, images[0]), len(scale_layers(model, images[0]))) == (layer, scales)
    assert missed(cams_show(model, images)) == {}
    assert missed(statistics_show(model, images)) == {}


class Wrapper(nn.Module):
    """A network of a user's own class around another one."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images * 2 - 1)


@pytest.mark.parametrize("name", ["resnet18", "timm vit", "swin"])
def test_wrappers_leave_the_choice_of_layers(name):
    """In a Sequential, a user's class, DataParallel or compiled, the same layers are read, by the same names."""
    images = torch.rand(1, 3, 96, 96)
    network = NETWORKS[name][0]((96, 96)).eval()
    rows = describe(network, images).rows
    for wrapped, prefix in ((nn.Sequential(nn.Identity(), network), "1."), (Wrapper(network), "network."),
                            (nn.DataParallel(network), ""), (torch.compile(network, backend="eager"), "")):  # fmt: skip
        found = describe(wrapped, images).rows
        assert found == tuple((used, prefix + layer, *rest) for used, layer, *rest in rows)


@pytest.mark.parametrize("in_place", [False, True])
def test_maps_of_a_compiled_model_are_the_models(in_place):
    """By torch.compile or the model's own compile, before and after its first call; it goes on as compiled."""
    torch.manual_seed(0)
    model, passes = settled(vit((32, 32)), torch.rand(2, 3, 32, 32)), []
    images = torch.rand(2, 3, 32, 32)

    def backend(graph, inputs):
        passes.append(graph)
        return graph.forward

    methods = ("grad_cam", "fastcam")
    expected = {method: explain(model, images, method=method) for method in methods}
    compiled = model if in_place else torch.compile(model, backend=backend)
    if in_place:
        model.compile(backend=backend)
    for warm in (False, True):
        if warm:
            compiled(images)
            assert passes
        for method in methods:
            assert torch.equal(explain(compiled, images, method=method), expected[method])
    made = len(passes)
    torch.compiler.reset()
    compiled(images)
    assert len(passes) > made


def test_two_threads_give_the_stance_back():
    """While one of two explanations of a compiled model lasts, it runs as written; afterwards torch compiles again."""
    calls, begun, ended = [], threading.Event(), threading.Event()

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    model = nn.Linear(3, 2).eval()
    model.compile(backend=backend)

    def other():
        with evaluating(model):
            begun.set()
            ended.wait(10)

    thread = threading.Thread(target=other)
    with evaluating(model):
        thread.start()
        assert begun.wait(10)
    with torch.no_grad(), evaluating(model):
        model(torch.rand(1, 3))
    assert calls == []
    ended.set()
    thread.join()
    model(torch.rand(1, 3))
    assert len(calls) == 1


@pytest.mark.parametrize("statistic", [*STATISTICS])
def test_each_statistic_has_maps_of_tokens(statistic):
    """All eleven are finite, and of the grid, on the tokens of a transformer."""
    model, images = made("timm vit", (96, 128))
    maps = statistic_maps(model, images[0], statistic=statistic)
    assert {tuple(each.shape) for each in maps.values()} == {(2, 6, 8)}
    assert all(each.isfinite().all() and each.std() > 0 for each in maps.values())
    assert explain(model, images[0], method="smoe", statistic=statistic).std() > 0


@pytest.mark.parametrize("name", ["resnet18", "convnext", "swin", "timm vit"])
def test_maps_agree_with_grad_cam_and_torchcam(name):
    """The same layer, its output turned into a map by the reader's hand, gives the same maps, up to their range.

    The head is scaled up as in test_cam.py; torchcam, which reads (N, C, h, w) alone, where that is the layer's.
    """
    library = pytest.importorskip("pytorch_grad_cam")
    torchcam = pytest.importorskip("torchcam.methods")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = made(name, (96, 96))
    images, target = images[1], torch.tensor([3, 0])
    with torch.no_grad():
        [module for module in model.modules() if isinstance(module, nn.Linear)][-1].weight.mul_(3000)
    layer, reshape = cam_layer(model, images), None
    if name == "swin":
        reshape = lambda output: output.permute(0, 3, 1, 2)  # noqa: E731
    elif name == "timm vit":
        reshape = lambda output: output[:, 1:].reshape(-1, 6, 6, output.shape[-1]).permute(0, 3, 1, 2)  # noqa: E731
    classes = [library.GradCAM, library.XGradCAM, library.GradCAMPlusPlus]
    for (method, maps), by in zip(cam_maps(model, images, target, methods=METHODS).items(), classes, strict=True):
        with by(model=model, target_layers=[find_layer(model, layer)], reshape_transform=reshape) as cam:
            theirs = cam(input_tensor=images, targets=[ClassifierOutputTarget(int(each)) for each in target])
        model.zero_grad()
        assert maps.amax((1, 2)).max() > 0
        assert (unit_range(maps) - torch.from_numpy(theirs)).abs().max() < 1e-4, method
    if reshape is None:
        with torchcam.GradCAM(model, target_layer=find_layer(model, layer)) as cam:
            (coarse,) = cam(target.tolist(), model(images))
        low = cam_maps(model, images, target, methods=["grad_cam"])["grad_cam"]
        assert (unit_range(low) - unit_range(resize(coarse.float(), (96, 96)))).abs().max() < 1e-4
