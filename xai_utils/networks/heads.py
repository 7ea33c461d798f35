"""Heads of classifiers, the layers that give the logits: new ones, and weights for other classes or sizes."""

import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from xai_utils.networks import hf_networks, timm_networks
from xai_utils.networks.layers import deep_copy


def head_names(network):
    """The names of the layers that give the logits: what timm or transformers says, else the last linear layer.

    None where there is no linear layer. Distilled transformers have two, whose mean they answer.
    """
    found = []
    if _is_timms(network):
        found = timm_networks.heads(network)
    elif hasattr(network, "base_model_prefix"):
        found = hf_networks.heads(network)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return found or linear[-1:]


def _is_timms(network):
    return isinstance(getattr(network, "pretrained_cfg", None), dict)


def with_new_heads(network, number, *, kept=None):
    """A copy of `network` for `number` of classes: its heads are new and random, all else as it was.

    `kept`: of which class each of the new ones is, an index of the old ones (number,): the heads keep their weights.
    ValueError where a head is neither linear nor a convolution, or where there is none.
    """
    network = deep_copy(network)
    for name in (names := head_names(network)):
        old = network.get_submodule(name)
        if isinstance(old, nn.Linear):
            head = nn.Linear(old.in_features, number, bias=old.bias is not None)
        elif isinstance(old, nn.Conv2d):
            head = nn.Conv2d(old.in_channels, number, old.kernel_size, bias=old.bias is not None)
        else:
            raise ValueError(f"a {type(old).__name__} as its head {name}, not a linear layer")
        if kept is not None:
            head.load_state_dict({key: value[kept] for key, value in old.state_dict().items()})
        network.set_submodule(name, head.to(old.weight).train(old.training))
    if not names:
        raise ValueError("no linear layer to replace")
    if isinstance(getattr(network, "num_classes", None), int):  # what timm's networks say of themselves
        network.num_classes = number
    if hasattr(network, "base_model_prefix"):
        network.config.num_labels = network.num_labels = number
    return network


def fitting(network, tensors, number):
    """The state dict `tensors` with the heads of `network` in place of those for another `number` of classes, or none.

    What was trained on images of another size is resampled: by torchvision's or timm's own function.
    """
    own, tensors = network.state_dict(), dict(tensors)
    heads = tuple(f"{name}." for name in head_names(network))
    keys = [key for key in own if key.startswith(heads) and key in tensors]
    if not keys or any(tensors[key].shape[0] != number for key in keys):
        tensors |= {key: own[key] for key in own if key.startswith(heads)}
    if own.keys() == tensors.keys() and any(own[key].shape != tensors[key].shape for key in own):
        if _is_timms(network):
            return timm_networks.resampled(network, tensors)
        if isinstance(network, VisionTransformer):
            with torch.no_grad():
                return interpolate_embeddings(network.image_size, network.patch_size, tensors)
    return tensors
