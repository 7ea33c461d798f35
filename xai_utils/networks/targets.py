"""The classifiers to be explained: torchvision networks behind one wrapper that takes pixels in [0, 1].

A target is kept in a folder as `target.safetensors` (the network's weights) and `target.json` (what they are).
"""

import copy
import hashlib

import torch
import torchvision
from torch import nn

from xai_utils.networks import kept
from xai_utils.networks.activations import captured
from xai_utils.networks.architectures import ARCHITECTURES, WITH_AUXILIARY_HEADS
from xai_utils.networks.inference import inference_copy
from xai_utils.networks.layers import cam_layer, evaluating, find_layer, head_gradient, layer_names, layer_root

__all__ = [
    "ARCHITECTURES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Target",
    "build",
    "cam_layer",
    "captured",
    "evaluating",
    "find_layer",
    "head_gradient",
    "inference_copy",
    "layer_names",
    "load",
    "replace_head",
    "save",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's, used in their training only
KIND = "target"  # of file: kept.py


class Target(nn.Module):
    """A classifier of pixels: images (N, 3, H, W) in [0, 1] -> logits (N, K).

    It normalises with `mean` and `std` (3,) itself, so that black, mean and blur mean what they say. Holds `network`,
    `architecture` (a name of ARCHITECTURES) and `classes`, a tuple of K names. Layer names are the network's.
    """

    def __init__(self, network, architecture, classes, *, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.network, self.architecture, self.classes = network, architecture, tuple(map(str, classes))
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(3).clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(3).clone())

    @property
    def layer_root(self):
        return self.network

    def forward(self, images):
        return self.network((images - self.mean[:, None, None]) / self.std[:, None, None])


def require_known(architecture):
    """ARCHITECTURES[architecture]; ValueError listing the names."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]


def _head_name(network):
    """The classification head: the last linear layer in the order of definition; None where there is none."""
    return next((name for name, module in reversed([*network.named_modules()]) if isinstance(module, nn.Linear)), None)


def _pretrained(architecture, source):
    """State dict of torchvision's weights called `source` ("IMAGENET1K_V1"), or of the .safetensors file there."""
    if str(source).endswith(".safetensors"):
        return kept.read_tensors(source)
    ours = architecture not in torchvision.models.list_models(module=torchvision.models)
    published = {} if ours else torchvision.models.get_model_weights(architecture).__members__
    if source not in published:
        raise ValueError(
            f"{architecture} has no weights {str(source)!r}; give a .safetensors file, or the name of torchvision's: "
            f"{', '.join(published) or 'none'}"
        )
    tensors = torchvision.models.get_model(architecture, weights=published[source]).state_dict()
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY_HEADS)}


def build(architecture, classes, *, mean=None, std=None, pretrained_from=None):
    """A target of `architecture` for `classes` (names), with random weights or `pretrained_from` somewhere.

    `pretrained_from`: a .safetensors file with the network's state dict, or the name of torchvision weights, such as
    "IMAGENET1K_V1" (downloaded). Where it knows another number of classes, the head stays random: fine-tune it.
    `mean`, `std` (3,): None is ImageNet's, or 0.5 for torchvision's GoogLeNet and Inception weights, which were
    trained so. Random weights follow torch's global generator, as in every torch network.
    """
    network = require_known(architecture)(len(classes))
    centred = False
    if pretrained_from is not None:
        centred = architecture in WITH_AUXILIARY_HEADS and not str(pretrained_from).endswith(".safetensors")
        tensors, own, head = _pretrained(architecture, pretrained_from), network.state_dict(), _head_name(network)
        keys = [key for key in own if head and key.startswith(f"{head}.") and key in tensors]
        if any(tensors[key].shape[0] != len(classes) for key in keys):
            tensors = {**tensors, **{key: own[key] for key in keys}}
        kept.fill(network, tensors, pretrained_from)
    mean = ((0.5,) * 3 if centred else IMAGENET_MEAN) if mean is None else mean
    std = ((0.5,) * 3 if centred else IMAGENET_STD) if std is None else std
    return Target(network, architecture, classes, mean=mean, std=std)


def replace_head(target, classes):
    """A copy of `target` for other `classes`: the last linear layer is new and random, all else as it was."""
    network = copy.deepcopy(target.network)
    name = _head_name(network)
    if name is None:
        raise ValueError(f"{target.architecture} has no linear layer to replace; build it for the new classes instead")
    old = network.get_submodule(name)
    head = nn.Linear(old.in_features, len(classes), bias=old.bias is not None).to(old.weight).train(old.training)
    network.set_submodule(name, head)
    return Target(network, target.architecture, classes, mean=target.mean, std=target.std).train(target.training)


def head_digest(target):
    """SHA-256 of the first class's weights in the last linear layer, which tells trained networks apart.

    An inference copy has the same; "" for a network without a linear layer.
    """
    root = layer_root(target)
    name = _head_name(root)
    if name is None:
        return ""
    weights = root.get_submodule(name).weight[0].detach().cpu().contiguous()
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def save(target, folder, *, made_with=None):
    """Write `target` into `folder` (made if missing): the weights first, then the facts with the weights' SHA-256.

    `made_with`: a JSON-able dict of what made the weights (parameters, data hash), kept in target.json for readers.
    """
    require_known(target.architecture)  # what could not be loaded again is not saved
    facts = {
        "architecture": target.architecture,
        "classes": list(target.classes),
        "mean": target.mean.tolist(),
        "std": target.std.tolist(),
    }
    kept.write(target.network, folder, KIND, facts, made_with=made_with)


def load(folder, device="cpu"):
    """The target that `save` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    names = ("architecture", "classes", "mean", "std")
    facts = kept.facts(folder, KIND, names)
    described = {name: facts[name] for name in names}
    network = require_known(described["architecture"])(len(described["classes"]))
    return Target(kept.read_into(network, folder, KIND, facts), **described).eval().to(device)
