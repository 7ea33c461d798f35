"""The classifiers to be explained: torchvision networks behind one wrapper that takes pixels in [0, 1].

A target is kept in a folder as `target.safetensors` (the network's weights) and `target.json` (what they are).
"""

import copy
import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import nn

from xai_utils.checkpoints import write_atomically
from xai_utils.networks.activations import captured
from xai_utils.networks.architectures import ARCHITECTURES, WITH_AUXILIARY_HEADS
from xai_utils.networks.inference import inference_copy
from xai_utils.networks.layers import cam_layer, evaluating, find_layer, head_gradient, layer_names

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
WEIGHTS_FILE, FACTS_FILE = "target.safetensors", "target.json"


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


def _builder(architecture):
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]


def _head_name(network):
    """The classification head: the last linear layer in the order of definition; None where there is none."""
    return next((name for name, module in reversed([*network.named_modules()]) if isinstance(module, nn.Linear)), None)


def _fill(network, tensors, source):
    """Load `tensors` into `network`; ValueError with the first key that does not fit. Half precision is widened."""
    own = network.state_dict()
    differing = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    problems = {
        "missing": next((key for key in own if key not in tensors), None),
        "unexpected": next((key for key in tensors if key not in own), None),
        "of another shape": next(
            (f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}" for key in differing), None
        ),
    }
    if any(problems.values()):
        listed = "; ".join(f"{word}: {key}" for word, key in problems.items() if key)
        raise ValueError(f"{source} does not hold weights of {type(network).__name__} ({listed})")
    network.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in tensors.items()})
    return network


def _read_tensors(path):
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; give a .safetensors file of weights") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch or save it again") from error


def _pretrained(architecture, source):
    """State dict of torchvision's weights called `source` ("IMAGENET1K_V1"), or of the .safetensors file there."""
    if str(source).endswith(".safetensors"):
        return _read_tensors(source)
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
    network = _builder(architecture)(len(classes))
    centred = False
    if pretrained_from is not None:
        centred = architecture in WITH_AUXILIARY_HEADS and not str(pretrained_from).endswith(".safetensors")
        tensors, own, head = _pretrained(architecture, pretrained_from), network.state_dict(), _head_name(network)
        keys = [key for key in own if head and key.startswith(f"{head}.") and key in tensors]
        if any(tensors[key].shape[0] != len(classes) for key in keys):
            tensors = {**tensors, **{key: own[key] for key in keys}}
        _fill(network, tensors, pretrained_from)
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


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(target, folder, *, made_with=None):
    """Write `target` into `folder` (made if missing): the weights first, then the facts with the weights' SHA-256.

    `made_with`: a JSON-able dict of what made the weights (parameters, data hash), kept in target.json for readers.
    """
    _builder(target.architecture)  # what could not be loaded again is not saved
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in target.network.state_dict().items()}
    write_atomically(folder / WEIGHTS_FILE, lambda path: safetensors.torch.save_file(tensors, path))
    facts = {
        "architecture": target.architecture,
        "classes": list(target.classes),
        "mean": target.mean.tolist(),
        "std": target.std.tolist(),
        "made_with": made_with or {},
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "sha256": _digest(folder / WEIGHTS_FILE),
    }
    write_atomically(folder / FACTS_FILE, lambda path: path.write_text(json.dumps(facts, indent=1) + "\n"))


def load(folder, device="cpu"):
    """The target that `save` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    weights, facts_file = Path(folder) / WEIGHTS_FILE, Path(folder) / FACTS_FILE
    for file in (facts_file, weights):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no target: {file.name} is missing; write one with save(target, …)")
    try:
        facts = json.loads(facts_file.read_text())
        described = {key: facts[key] for key in ("architecture", "classes", "mean", "std")}
        expected = facts["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{facts_file} is corrupt ({type(error).__name__}: {error}); save the target again") from error
    network = _builder(described["architecture"])(len(described["classes"]))
    if _digest(weights) != expected:
        raise ValueError(f"{weights} is corrupt or belongs to another {FACTS_FILE} (SHA-256 differs); save it again")
    return Target(_fill(network, _read_tensors(weights), weights), **described).eval().to(device)
