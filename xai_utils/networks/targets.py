"""The classifiers to be explained: networks by name behind one wrapper that takes pixels in [0, 1].

A target is kept in a folder as `target.safetensors` (the network's weights) and `target.json` (what they are).
"""

import inspect
from pathlib import Path

import torch
import torchvision
from torch import nn

from xai_utils.networks import efficientnet_lite, hf_networks, stored, timm_networks
from xai_utils.networks.answers import unpacked
from xai_utils.networks.architectures import COMES_WITH, HF, TIMM, WITH_AUXILIARY_HEADS, require_known
from xai_utils.networks.digests import digest
from xai_utils.networks.heads import fitting, head_names, with_new_heads

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's, used in their training only
KIND = "target"  # of file: stored.py


class Target(nn.Module):
    """A classifier of pixels: images (N, 3, H, W) in [0, 1] -> logits (N, K).

    It normalises with `mean` and `std` (3,) itself, so that black, mean and blur mean what they say. Holds `network`,
    any module whose answer `unpacked` takes, `architecture` (any words; for what is saved a name that `require_known`
    knows), `options` (what `build` needs besides to make another such network) and `classes`, a tuple of K names, of
    two for one logit. Layer names are the network's. ValueError for a mean or std that is not three finite numbers,
    std positive.
    """

    __jit_unused_properties__ = ("layer_root",)

    def __init__(self, network, architecture, classes, *, mean=IMAGENET_MEAN, std=IMAGENET_STD, options=None):
        super().__init__()
        self.options = dict(options or {})
        self.network, self.architecture, self.classes = network, architecture, tuple(map(str, classes))
        self.register_buffer("mean", _of_channels("mean", mean))
        self.register_buffer("std", _of_channels("std", std, positive=True))

    @property
    def layer_root(self):
        return self.network

    def forward(self, images):
        answer = self.network((images - self.mean[:, None, None]) / self.std[:, None, None])
        if not torch.jit.is_scripting():  # a scripted network returns a tensor
            answer = unpacked(answer)
        return answer


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


def is_file_of_weights(source):
    """Whether `source` names a file of weights, not some of torchvision's."""
    return Path(source).suffix in stored.SUFFIXES


def require_published(architecture, name):
    """ValueError listing the names where no weights of `architecture` are published as `name`."""
    if architecture.startswith(TIMM):
        timm_networks.configuration(f"{architecture.removeprefix(TIMM).partition('.')[0]}.{name}")
    elif name != COMES_WITH.get(architecture):
        _record(architecture, name)


def has_classes(architecture, source):
    """Whether weights that `build` takes were trained to tell classes: what timm says of a TAG's, else yes."""
    name, _, tag = architecture.removeprefix(TIMM).partition(".")
    tag = tag if is_file_of_weights(source) else source
    return not (architecture.startswith(TIMM) and tag) or timm_networks.configuration(f"{name}.{tag}").num_classes > 0


def own_size(architecture, *, weights=None, options=None):
    """The pixels of a side that a network is made for: its `options`', timm's, transformers', torchvision's; or None.

    `weights`: the name of published ones.
    """
    if size := (options or {}).get("image_size"):
        return size
    if architecture.startswith(TIMM):
        return timm_networks.configuration(architecture.removeprefix(TIMM)).input_size[-1]
    if architecture.startswith(HF):
        config = (options or {}).get("config") or hf_networks.configuration(architecture.removeprefix(HF))
        return size if isinstance(size := config.get("image_size"), int) else None
    published = weights and architecture in torchvision.models.list_models(module=torchvision.models)
    return _record(architecture, weights).transforms().crop_size[0] if published else None


def _record(architecture, name):
    """torchvision's record of its weights `name` of `architecture`, not fetched; ValueError listing the names."""
    ours = architecture not in torchvision.models.list_models(module=torchvision.models)
    published = {} if ours else torchvision.models.get_model_weights(architecture).__members__
    if name not in published:
        raise ValueError(
            f"{architecture} has no weights {str(name)!r}; give a file ({' '.join(sorted(stored.SUFFIXES))}), or the "
            f"name of published ones: {', '.join(published) or COMES_WITH.get(architecture, 'none')}"
        )
    return published[name]


def _published(architecture, name):
    """torchvision's weights `name` of `architecture`: (state dict, their classes, mean, std); downloaded once."""
    weights = _record(architecture, name)
    try:
        network = torchvision.models.get_model(architecture, weights=weights, progress=False)
    except OSError as error:
        raise ConnectionError(
            f"torchvision's weights {name} of {architecture} cannot be fetched ({error}); put "
            f"{weights.url.rsplit('/', 1)[-1]} into {torch.hub.get_dir()}/checkpoints, or give a file of weights"
        ) from error
    classes = _told_apart(weights.meta["categories"])
    trained_centred = architecture in WITH_AUXILIARY_HEADS  # by a second normalisation inside, which ours leaves out
    about = weights.transforms()
    mean, std = ((0.5,) * 3, (0.5,) * 3) if trained_centred else (about.mean, about.std)
    return network.state_dict(), classes, mean, std


def _told_apart(classes):
    """Names of classes with their number where a name stands there twice, as two of ImageNet's do."""
    return [f"{each} ({index})" if classes.count(each) > 1 else each for index, each in enumerate(classes)]


def build(architecture, classes, *, mean=None, std=None, pretrained_from=None, image_size=None, config=None):
    """A target of `architecture` for `classes` (names), with random weights or `pretrained_from` somewhere.

    `architecture`: a name of ARCHITECTURES, `timm:NAME` (or NAME.TAG), or `hf:FOLDER`. `pretrained_from`: a file with
    the network's state dict (.safetensors, or .pth and the like, see `stored.read_tensors`), the name of torchvision's
    or timm's weights, such as "IMAGENET1K_V2" (downloaded), "IMAGENET1K" for efficientnet_lite0 (installed with the
    extra `pipeline`), or the FOLDER of transformers. Where it knows another number of classes, or none (DINO), the head
    stays random: fine-tune it. `classes` None: those that it knows; for a file they are numbered, unless a TAG of
    timm's says more. `mean`, `std` (3,): None is what torchvision's weights were trained with, what timm or
    preprocessor_config.json says, efficientnet_lite0's own, otherwise ImageNet's. `image_size`: the pixels of a
    side, for what is built for one size, such as a ViT (None: its own); others take any. Weights of another size are
    resampled as torchvision or timm does it. `config`: of transformers, in place of the folder's (`Target.options`).
    Random weights follow torch's global generator, as in every torch network.
    """
    taken = inspect.signature(require_known(architecture)).parameters
    if architecture.startswith(HF) and config is None:
        config = hf_networks.configuration(architecture.removeprefix(HF))
    given = {"image_size": image_size, "config": config}
    options = {name: value for name, value in given.items() if value is not None and name in taken}
    tensors, known, own_mean, own_std = _given(architecture, pretrained_from)
    if architecture.startswith(HF) and (mean is None or std is None):
        own_mean, own_std = hf_networks.normalisation(architecture.removeprefix(HF))
    if classes is None:
        numbered = _numbered_classes(architecture, options, tensors, pretrained_from)
        classes = _told_apart(known) if known and len(known) == len(numbered) else numbered
    network = _made(architecture, len(classes), options)
    if tensors is not None:
        stored.fill(network, fitting(network, tensors, len(classes)), pretrained_from)
    mean, std = own_mean if mean is None else mean, own_std if std is None else std
    return Target(network, architecture, classes, mean=mean, std=std, options=options)


def _given(architecture, source):
    """(state dict, its classes, mean, std) of what `build` is to start from; None for what is not known."""
    name = architecture.removeprefix(TIMM) if architecture.startswith(TIMM) else None
    known, mean, std = timm_networks.about(name) if name else (None, IMAGENET_MEAN, IMAGENET_STD)
    if architecture == efficientnet_lite.NAME:
        mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
    if source is None:
        return None, None, mean, std
    if is_file_of_weights(source):
        tensors = stored.read_tensors(source)
        ours = {key: tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY_HEADS)}
        return ours, known if name and "." in name else None, mean, std
    if architecture.startswith(HF):
        return hf_networks.weights(source), hf_networks.classes(source), mean, std
    if name:
        return timm_networks.published(name.partition(".")[0], source)
    if source == COMES_WITH.get(architecture):
        return efficientnet_lite.published()
    tensors, *about = _published(architecture, source)
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(AUXILIARY_HEADS)}, *about


def _made(architecture, number, options):
    """The untrained network; ValueError where it cannot be built so."""
    try:
        return require_known(architecture)(number, **options)
    except (AssertionError, TypeError, AttributeError, RuntimeError) as error:
        size = f" for images of {options['image_size']} pixels" if "image_size" in options else ""
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{architecture} cannot be built{size} ({first}); choose another size or network") from error


def _numbered_classes(architecture, options, tensors, source):
    """Names for as many classes as the head of a state dict has: the length of its last tensor."""
    if tensors is None:
        raise ValueError(f"{architecture} without weights knows no classes; name them, or give pretrained_from")
    network = _made(architecture, 2, options)  # RegNets cannot be made without memory (device meta)
    heads = tuple(f"{name}." for name in head_names(network))
    last = [key for key in network.state_dict() if not heads or key.startswith(heads)][-1]
    if last not in tensors:
        raise ValueError(f"{source} does not hold weights of {architecture} (missing: {last})")
    return [f"class {index}" for index in range(len(tensors[last]))]


def are_numbered(classes):
    """Whether the names of `classes` only count them, as `build` does for a file of weights."""
    return list(classes) == [f"class {index}" for index in range(len(classes))]


def renamed(target, classes):
    """The same target under other names for its classes, as many of them."""
    return _like(target, target.network, classes)


def replace_head(target, classes, *, kept=None):
    """A copy of `target` for other `classes`: the layers that give the logits are new and random, all else as was.

    `kept`: for each of `classes` the index of the target's class that it is; the new layers keep those weights.
    """
    try:
        network = with_new_heads(target.network, len(classes), kept=kept)
    except ValueError as error:
        raise ValueError(f"{target.architecture} has {error}; build it for the new classes instead") from None
    return _like(target, network, classes)


def _like(target, network, classes):
    made = Target(network, target.architecture, classes, mean=target.mean, std=target.std, options=target.options)
    made.training = target.training  # the network's modules keep theirs
    return made


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
        "options": target.options,
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
    described = {name: facts[name] for name in names} | {"options": facts.get("options", {})}
    network = _made(described["architecture"], len(described["classes"]), described["options"])
    try:
        target = Target(network, **described)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / KIND}.json: {error}") from None
    stored.read_into(network, folder, KIND, facts)
    return target.eval().to(device)
