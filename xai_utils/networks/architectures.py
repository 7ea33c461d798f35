"""Untrained classifier networks by name: torchvision's and six of ours, timm's and those of transformers.

`ARCHITECTURES[name](number_of_classes)` gives a network that takes normalised images (N, 3, H, W) and returns
logits (N, number_of_classes), and nothing else: no auxiliary heads, no normalisation of its own. What is built for one
size of images takes it as `image_size`. `require_known` knows besides `timm:NAME` and `hf:FOLDER`.
"""

from functools import partial

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, make_layers

from xai_utils.networks import efficientnet_lite, hf_networks, timm_networks

WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
OF_ONE_SIZE = ("vit_", "maxvit_")  # torchvision's that are built for one size of images
TIMM, HF = "timm:", "hf:"
COMES_WITH = {efficientnet_lite.NAME: efficientnet_lite.WEIGHTS}  # weights that are installed beside the architecture


def require_known(architecture):
    """The function that makes `architecture`, untrained, of the number of classes; ValueError listing the names.

    Its keywords besides: image_size of what is built for one size, config of transformers. No folder is opened.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    if str(architecture).startswith(TIMM):
        return timm_networks.creator(architecture.removeprefix(TIMM))
    if str(architecture).startswith(HF):
        return partial(hf_networks.network, folder=architecture.removeprefix(HF))
    raise ValueError(
        f"architecture {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}, timm:NAME or hf:FOLDER"
    )


class NarrowResNet(ResNet):
    """A ResNet-10 for small images: a 3x3 stem, pooling, then one basic block per stage of `widths` and `strides`.

    torchvision's stem and strides are made for 224 pixels; they would leave a 3x3 map of a 96-pixel image.
    """

    def __init__(self, num_classes, *, widths, strides):
        self.widths, self.strides = widths, strides
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.fc = nn.Linear(widths[-1], num_classes)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        stage = (64, 128, 256, 512).index(planes)
        if stage == 0:  # it follows the narrow stem
            self.inplanes = self.widths[0]
        return super()._make_layer(block, self.widths[stage], blocks, self.strides[stage], dilate)


class NarrowVGG(VGG):
    """A VGG with batch norm for small images: a convolution and a pooling per width, then two linear layers."""

    def __init__(self, num_classes, *, widths, hidden=256):
        with torch.device("meta"):  # torchvision's classifier alone would take half a gigabyte
            super().__init__(nn.Sequential(), num_classes, init_weights=False)
        self.features = make_layers([value for width in widths for value in (width, "M")], batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d(3)
        self.classifier = nn.Sequential(
            nn.Linear(9 * widths[-1], hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, num_classes)
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def narrow_googlenet(num_classes, *, share):
    """torchvision's GoogLeNet with 1 / `share` of its channels: the same layers, branches and names."""

    def convolution(incoming, outgoing, **options):
        return BasicConv2d(incoming if incoming == 3 else incoming // share, outgoing // share, **options)

    def inception(*channels):
        return Inception(*(channel // share for channel in channels))

    blocks = [convolution, inception, None]  # no auxiliary heads
    network = GoogLeNet(num_classes, aux_logits=False, transform_input=False, init_weights=True, blocks=blocks)
    network.fc = nn.Linear(1024 // share, num_classes)
    return network


class SamePaddedConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": just enough for ceil(size / stride), the odd pixel at the end.

    PyTorch pads both sides alike, so weights trained in TensorFlow would see every even-sized image shifted.
    """

    def forward(self, images):
        padding = []
        for axis in (1, 0):  # functional.pad begins with the last axis
            size, stride = images.shape[-2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            missing = max(0, (-(-size // stride) - 1) * stride + reach - size)
            padding += [missing // 2, missing - missing // 2]
        return self._conv_forward(functional.pad(images, padding), self.weight, self.bias)


def tf_mobilenet_v2(num_classes):
    """MobileNetV2 whose five stride-2 convolutions pad as TensorFlow does; torchvision's state-dict keys."""
    network = torchvision.models.mobilenet_v2(num_classes=num_classes)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            padded = SamePaddedConv2d(
                module.in_channels, module.out_channels, module.kernel_size, stride=2, groups=module.groups, bias=False
            )
            padded.load_state_dict(module.state_dict())
            network.set_submodule(name, padded)
    return network


def torchvision_network(num_classes, *, name):
    """torchvision's `name`, untrained: only the logits, of images that the wrapper has normalised."""
    # init_weights is those networks' default, said aloud because torchvision warns that it will change
    plain = {"aux_logits": False, "transform_input": False, "init_weights": True}
    options = plain if name in WITH_AUXILIARY_HEADS else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def torchvision_network_of_one_size(num_classes, *, name, image_size=224):
    """torchvision's `name`, untrained, for square images of one size: a ViT has a weight for each of their places."""
    sized = {"image_size": image_size} if name.startswith("vit_") else {"input_size": (image_size, image_size)}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **sized)


ARCHITECTURES = {
    name: partial(torchvision_network_of_one_size if name.startswith(OF_ONE_SIZE) else torchvision_network, name=name)
    for name in torchvision.models.list_models(module=torchvision.models)
} | {
    # near 96 pixels: maps of 48, 24, 24, 12 and 6, 0.3 M parameters, 0.028 GMAC
    "small_resnet": partial(NarrowResNet, widths=(16, 32, 64, 128), strides=(1, 1, 2, 2)),
    # near 48 pixels: maps of 24, 12, 6, 6 and 6; learns from hundreds of images in seconds
    "tiny_resnet": partial(NarrowResNet, widths=(16, 32, 64, 64), strides=(1, 2, 1, 1)),
    # beside small_resnet, two more kinds of black box for about 96 pixels
    "small_vgg": partial(NarrowVGG, widths=(16, 32, 64, 128, 256)),
    "small_googlenet": partial(narrow_googlenet, share=4),
    "tf_mobilenet_v2": tf_mobilenet_v2,
    efficientnet_lite.NAME: efficientnet_lite.network,
}
