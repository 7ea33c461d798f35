"""The classifiers to be explained: torchvision networks behind one wrapper that takes pixels in [0, 1].

A target is kept in a folder as `target.safetensors` (the network's weights) and `target.json` (what they are).
"""

from pathlib import Path

import torch
import torchvision
from torch import nn

from xai_utils.networks import stored
from xai_utils.networks.architectures import ARCHITECTURES, WITH_AUXILIARY_HEADS, why_unknown
from xai_utils.networks.digests import digest
from xai_utils.networks.layers import deep_copy

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's, used in their training only
KIND = "target"  # of file: stored.py


class Target(nn.Module):
    """A classifier of pixels: images (N, 3, H, W) in [0, 1] -> logits (N, K).

    It normalises with `mean` and `std` (3,) itself, so that black, mean and blur mean what they say. Holds `network`,
    `architecture` (a name of ARCHITECTURES) and `classes`, a tuple of K names. Layer names are the network's.
    ValueError for a mean or std that is not three finite numbers, std positive.
    """

    def __init__(self, network, architecture, classes, *, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.network, self.architecture, self.classes = network, architecture, tuple(map(str, classes))
        self.register_buffer("mean", _of_channels("mean", mean))
        self.register_buffer("std", _of_channels("std", std, positive=True))

    @property
    def layer_root(self):
        return self.network

    def forward(self, images):
        return self.network((images - self.mean[:, None, None]) / self.std[:, None, None])


def _of_channels(name, values, *, positive=False):
    """A copy of the mean or std (3,) of a normalisation, float32; ValueError for what cannot be one."""
    try:
        found = torch.as_tensor(values, dtype=torch.float32).clone()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    known = found.numel() == 3 and not found.is_meta
    if found.numel() != 3 or (known and not (found.isfinite().all() and (not positive or found.min() > 0))):
        given = values.tolist() if isinstance(values, torch.Tensor) else values
        raise ValueError(f"{name} is {given}; give three finite {'positive ' * positive}numbers: red, green, blue")
    return found.reshape(3)


def require_known(architecture):
    """ARCHITECTURES[architecture]; ValueError listing the names."""
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture {architecture!r} is unknown{why_unknown(architecture)}; "
            f"choose one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture]


def _head_name(network):
    """The classification head: the last linear layer in the order of definition; None where there is none."""
    return next((name for name, module in reversed([*network.named_modules()]) if isinstance(module, nn.Linear)), None)


def is_file_of_weights(source):
    """Whether `source` names a file of weights, not some of torchvision's."""
    return Path(source).suffix in stored.SUFFIXES


def published_weights(architecture, name):
    """torchvision's record of its weights `name` of `architecture`, not fetched; ValueError listing the names."""
    ours = architecture not in torchvision.models.list_models(module=torchvision.models)
    published = {} if ours else torchvision.models.get_model_weights(architecture).__members__
    if name not in published:
        raise ValueError(
            f"{architecture} has no weights {str(name)!r}; give a file ({' '.join(sorted(stored.SUFFIXES))}), or the "
            f"name of torchvision's: {', '.join(published) or 'none'}"
        )
    return published[name]


def _published(architecture, name):
    """torchvision's weights `name` of `architecture`: (state dict, their classes, mean, std); downloaded once."""
    weights = published_weights(architecture, name)
    try:
        network = torchvision.models.get_model(architecture, weights=weights, progress=False)
    except OSError as error:
        raise ConnectionError(
            f"torchvision's weights {name} of {architecture} cannot be fetched ({error}); put "
            f"{weights.url.rsplit('/', 1)[-1]} into {torch.hub.get_dir()}/checkpoints, or give a file of weights"
        ) from error
    names = weights.meta["categories"]  # two of ImageNet's stand there twice
    classes = [f"{each} ({index})" if names.count(each) > 1 else each for index, each in enumerate(names)]
    trained_centred = architecture in WITH_AUXILIARY_HEADS  # by a second normalisation inside, which ours leaves out
    about = weights.transforms()
    mean, std = ((0.5,) * 3, (0.5,) * 3) if trained_centred else (about.mean, about.std)
    return network.state_dict(), classes, mean, std


def build(architecture, classes, *, mean=None, std=None, pretrained_from=None):
    """A target of `architecture` for `classes` (names), with random weights or `pretrained_from` somewhere.

    `pretrained_from`: a file with the network's state dict (.safetensors, or .pth and the like, see
    `kept.read_tensors`), or the name of torchvision weights, such as "IMAGENET1K_V1" (downloaded). Where it knows
    another number of classes, the head stays random: fine-tune it. `classes` None: those that it knows, which for
    a file are numbered. `mean`, `std` (3,): None is what torchvision's weights were trained with, otherwise ImageNet's.
    Random weights follow torch's global generator, as in every torch network.
    """
    create = require_known(architecture)
    tensors, known, own_mean, own_std = None, None, IMAGENET_MEAN, IMAGENET_STD
    if pretrained_from is not None and is_file_of_weights(pretrained_from):
        tensors = stored.read_tensors(pretrained_from)
    elif pretrained_from is not None:
        tensors, known, own_mean, own_std = _published(architecture, pretrained_from)
    if tensors is not None:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY_HEADS)}
    if classes is None:
        classes = known or _numbered_classes(architecture, tensors, pretrained_from)
    network = create(len(classes))
    if tensors is not None:
        own, head = network.state_dict(), _head_name(network)
        keys = [key for key in own if head and key.startswith(f"{head}.") and key in tensors]
        if any(tensors[key].shape[0] != len(classes) for key in keys):
            tensors = {**tensors, **{key: own[key] for key in keys}}
        stored.fill(network, tensors, pretrained_from)
    mean, std = own_mean if mean is None else mean, own_std if std is None else std
    return Target(network, architecture, classes, mean=mean, std=std)


def _numbered_classes(architecture, tensors, source):
    """Names for as many classes as the head of a state dict has: the length of the last tensor of the network."""
    if tensors is None:
        raise ValueError(f"{architecture} without weights knows no classes; name them, or give pretrained_from")
    last = [*ARCHITECTURES[architecture](2).state_dict()][-1]  # RegNets cannot be made without memory (device meta)
    if last not in tensors:
        raise ValueError(f"{source} does not hold weights of {architecture} (missing: {last})")
    return [f"class {index}" for index in range(len(tensors[last]))]


def renamed(target, classes):
    """The same target under other names for its classes, as many of them."""
    made = Target(target.network, target.architecture, classes, mean=target.mean, std=target.std)
    made.training = target.training  # that of the network, which both share, stays
    return made


def replace_head(target, classes):
    """A copy of `target` for other `classes`: the last linear layer is new and random, all else as it was."""
    network = deep_copy(target.network)
    name = _head_name(network)
    if name is None:
        raise ValueError(f"{target.architecture} has no linear layer to replace; build it for the new classes instead")
    old = network.get_submodule(name)
    head = nn.Linear(old.in_features, len(classes), bias=old.bias is not None).to(old.weight).train(old.training)
    network.set_submodule(name, head)
    return Target(network, target.architecture, classes, mean=target.mean, std=target.std).train(target.training)


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
        "digest": digest(target),
    }
    stored.write(target.network, folder, KIND, facts, made_with=made_with)


@stored.drawing_nothing
def load(folder, device="cpu"):
    """The target that `save` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    names = ("architecture", "classes", "mean", "std")
    facts = stored.facts(folder, KIND, names)
    described = {name: facts[name] for name in names}
    network = require_known(described["architecture"])(len(described["classes"]))
    try:
        target = Target(network, **described)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / KIND}.json: {error}") from None
    stored.read_into(network, folder, KIND, facts)
    return target.eval().to(device)
