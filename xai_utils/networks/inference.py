"""A copy of a model that only infers, faster: batch norms in the convolutions, blocks of pixels, channels last."""

import math
import warnings
from collections import Counter, OrderedDict
from contextlib import contextmanager

import torch
from torch import nn
from torch.backends import cudnn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from xai_utils.networks.answers import unpacked
from xai_utils.networks.digests import mark_copy
from xai_utils.networks.layers import bare, deep_copy, evaluating, find_layer

TOLERANCE = 1e-4  # of the largest logit: rounding of a refactored product, far below any real difference


def _foldable(model, images, kept):
    """Name of batch norm -> convolution, where the norm's input is that convolution's output, each called once."""
    produced, calls, pairs = {}, Counter(), {}

    def remember(convolution, _, output):
        calls[convolution] += 1
        produced[id(output)] = (convolution, output)  # the tensor is kept alive, so its id stays its own

    def pairing(name):
        def pair(norm, inputs):
            calls[norm] += 1
            pairs[name] = (norm, produced.get(id(inputs[0]), (None, None))[0])

        return pair

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module not in kept and "weight" in module._parameters:
            handles.append(module.register_forward_hook(remember))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(pairing(name)))
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    single = {name: conv for name, (norm, conv) in pairs.items() if conv and calls[norm] == calls[conv] == 1}
    return single, logits


def _fold(model, pairs):
    for name, convolution in pairs.items():
        norm = model.get_submodule(name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # the name stays, so hooks by name still work; norms of timm rectify, too
        rest = {"act": norm.act} if isinstance(getattr(norm, "act", None), nn.Module) else {}
        model.set_submodule(name, nn.Sequential(OrderedDict(rest)).eval())
    return model


class BlockConvolution(nn.Conv2d):
    """A convolution of stride s as one of stride 1 over blocks of s x s pixels (space to depth), up to rounding.

    The three channels of an image fill no vector of a processor; its blocks have s * s as many. The kernel grows to
    whole blocks with zeros.
    """

    def __init__(self, convolution):
        shape = convolution.in_channels, convolution.out_channels, convolution.kernel_size
        super().__init__(*shape, stride=convolution.stride, padding=convolution.padding, device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, images):
        if torch.onnx.is_in_onnx_export():  # a graph is to hold the convolution
            return super().forward(images)
        kernel, stride, before = self.kernel_size[0], self.stride[0], self.padding[0]
        spare = -kernel % stride
        below, right = (  # as far as the last place of the grown kernel reaches; below 0 is what no place reads
            (size + 2 * before - kernel) // stride * stride + kernel + spare - before - size
            for size in images.shape[2:]
        )
        blocks = functional.pixel_unshuffle(functional.pad(images, (before, right, before, below)), stride)
        weight = functional.pixel_unshuffle(functional.pad(self.weight, (0, spare, 0, spare)), stride)
        return functional.conv2d(blocks, weight, self.bias)


def _over_blocks(model):
    """Let plain strided convolutions of pictures, the same along both axes, work on blocks; returns `model`."""
    for name, module in list(model.named_modules()):
        plain = type(module) is nn.Conv2d and "weight" in module._parameters and module.padding_mode == "zeros"
        if not plain or module.in_channels != 3 or module.groups != 1 or isinstance(module.padding, str):
            continue
        square = all(down == along for down, along in (module.kernel_size, module.stride, module.padding))
        if square and module.stride[0] > 1 and module.dilation == (1, 1):
            model.set_submodule(name, BlockConvolution(module).eval())
    return model


def _difference(outputs, expected):
    """How far two outputs of a model, tensors or tuples of them, are apart, over the largest value of the second.

    Of any other output (transformers' ModelOutput) the logits are compared.
    """
    if isinstance(expected, tuple | list):
        pairs = zip(outputs, expected, strict=True)
        found = [_difference(*pair) for pair in pairs if pair[1] is not None]
        return max(found, key=lambda each: (math.isnan(each), each), default=0.0)
    if not isinstance(expected, torch.Tensor):
        outputs, expected = unpacked(outputs), unpacked(expected)
    apart, largest = (each.abs().max().item() for each in (outputs - expected, expected))
    return 0.0 if apart == 0 else apart / largest if largest else math.inf


@contextmanager
def _in_full_precision(device):
    """No autocast on a device, and no TensorFloat-32 in convolutions and matrix products; afterwards as it was."""
    matrices = torch.backends.cuda.matmul
    before = matrices.allow_tf32
    matrices.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False), cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
            yield
    finally:
        matrices.allow_tf32 = before


def inference_copy(model, images=None, *, keep=()):
    """A deep copy of `model` in eval mode, frozen, with the same logits and maps up to rounding, and faster.

    Each batch norm that follows a convolution becomes part of it (scale and shift of a convolution are again a
    convolution), a strided convolution of the pixels works on blocks of them, and all weights are stored channels
    last, which CPU and GPU convolutions prefer. Make it once, use it for many maps. `images` (N, 3, H, W) is the probe
    that shows which norm follows which convolution (default: one noise image of 224 pixels). It is asked in full
    precision: no autocast, no TensorFloat-32. If its logits differ by more than 1e-4 of the largest, a warning says so,
    and convolutions and norms stay as they are. The copy counts as the model where a trained part asks for which
    network it was made (digests.py).

    A folded convolution returns what its batch norm returned; name convolutions in `keep` (layer names) whose own
    output you want to hook.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{type(model).__name__} is scripted or traced; copy the module that it was made of")
    with torch.inference_mode(False), torch.no_grad():

        def frozen_copy():
            return deep_copy(bare(model)).eval().requires_grad_(False)

        faster = frozen_copy()
        if images is None:
            parameter = next(faster.parameters(), torch.zeros(()))
            images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(parameter)
        # autocast and a GPU's TensorFloat-32 round more coarsely than TOLERANCE
        with evaluating(faster), _in_full_precision(next(iter(images)).device):  # of one or several inputs
            pairs, expected = _foldable(faster, images, [find_layer(faster, name) for name in keep])
            apart = _difference(_over_blocks(_fold(faster, pairs))(images), expected)
        if not apart <= TOLERANCE:  # "not": NaN, too
            warnings.warn(
                f"{type(bare(model)).__name__} is copied as it is, with batch norms behind its convolutions: without "
                f"them logits differ by {apart:.1g} of the largest, where {TOLERANCE:g} is allowed",
                stacklevel=2,
            )
            faster = frozen_copy()
        return mark_copy(faster.to(memory_format=torch.channels_last), model)
