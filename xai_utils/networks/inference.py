"""A copy of a model that only infers, faster: batch norms folded into convolutions, channels last."""

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from xai_utils.networks.layers import find_layer

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
        model.set_submodule(name, nn.Identity().eval())  # the name stays, so hooks by name still work
    return model


def _same(outputs, expected):
    """Whether two outputs of a model, tensors or tuples of them, agree up to rounding; NaN agrees with nothing."""
    if isinstance(expected, tuple):
        return all(_same(*pair) for pair in zip(outputs, expected, strict=True))
    return bool((outputs - expected).abs().max() <= TOLERANCE * expected.abs().max())


def inference_copy(model, images=None, *, keep=()):
    """A deep copy of `model` in eval mode, frozen, with the same logits and maps up to rounding, and faster.

    Each batch norm that follows a convolution becomes part of it (scale and shift of a convolution are again a
    convolution), and all weights are stored channels last, which CPU and GPU convolutions prefer. Make it once, use
    it for many maps. `images` (N, 3, H, W) is the probe that shows which norm follows which convolution (default:
    one noise image of 224 pixels). If the probe's logits differ by more than 1e-4 of the largest, nothing is folded.

    A folded convolution returns what its batch norm returned; name convolutions in `keep` (layer names) whose own
    output you want to hook.
    """
    with torch.inference_mode(False), torch.no_grad():

        def frozen_copy():
            return copy.deepcopy(model).eval().requires_grad_(False)

        faster = frozen_copy()
        if images is None:
            parameter = next(faster.parameters(), torch.zeros(()))
            images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(parameter)
        pairs, expected = _foldable(faster, images, [find_layer(faster, name) for name in keep])
        if not _same(_fold(faster, pairs)(images), expected):
            faster = frozen_copy()
        return faster.to(memory_format=torch.channels_last)
