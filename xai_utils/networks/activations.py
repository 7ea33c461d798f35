"""The activations of named layers during a pass, and which layers end the network's spatial scales.

Hooks live only inside the `with`; the user's model is left as it was found, also after an exception.
"""

import math
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary
from torchvision import models

from xai_utils.networks.layers import evaluating, find_layer, is_map, layer_root, observed

SCALE_LAYERS = {  # the last tensor, behind its ReLU, of each of the five spatial scales (FastCAM §3)
    models.ResNet: ("relu", "layer1", "layer2", "layer3", "layer4"),
    models.GoogLeNet: ("conv1", "conv3", "inception3b", "inception4e", "inception5b"),
}


@contextmanager
def captured(model, layers, *, reduce=None):
    """The outputs of the named layers in the passes made inside the `with`: a dict name -> tensor, the last call's.

        with captured(model, ["layer3", "layer4"]) as activations, torch.no_grad():
            model(images)

    Outputs keep their graph where gradients are on, and are not copied: a layer whose output a later module
    overwrites (an in-place ReLU after a batch norm) is a RuntimeError at the end of the `with`. With `reduce`, a
    function (name, output) -> anything, its result is kept instead, and no activation outlives its layer.
    """
    activations, versions = {}, {}

    def keep(name, _, output):
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"layer {name!r} returns a {type(output).__name__}, not a tensor; choose another layer")
        if reduce is not None:
            activations[name] = reduce(name, output)
            return
        if output.is_inference():  # such tensors do not count their changes, so only a copy is safe
            output, version = output.clone(), None
        else:
            version = output._version
        activations[name], versions[name] = output, version

    with observed(model, keep, modules={name: find_layer(model, name) for name in layers}):
        yield activations
    for name, version in versions.items():
        if version is not None and activations[name]._version != version:
            raise RuntimeError(
                f"the output of layer {name!r} was overwritten in place by a later module; capture that module, or "
                "set inplace=False on it"
            )


class Rectifications(TorchFunctionMode):
    """While active, remembers what each ReLU's output was before the ReLU: `before[output]`, a detached copy.

    ReLUs are seen where they act, as modules or functions, in place or not; a concatenation of such outputs is
    followed, too (GoogLeNet). A copy lives as long as the output does.
    """

    def __init__(self):
        super().__init__()
        self.before = WeakTensorKeyDictionary()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if rectifies(function, args, kwargs):
            before = (args[0] if args else kwargs["input"]).detach().clone()
            output = function(*args, **kwargs)
            self.before[output] = before
            return output
        output = function(*args, **kwargs)
        if function in (torch.cat, torch.concat, torch.concatenate):
            parts = [self.before.get(part) for part in args[0]]
            if all(part is not None for part in parts):
                self.before[output] = torch.cat(parts, *args[1:], **kwargs)
        return output


RELUS = {functional.relu, functional.relu_, functional.relu6, torch.relu, torch.relu_, torch.Tensor.relu}
RELUS.add(torch.Tensor.relu_)


def rectifies(function, args, kwargs):
    if function in (functional.hardtanh, functional.hardtanh_):  # a ReLU6 module calls it with 0, 6
        return (args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0
    return function in RELUS


@contextmanager
def pre_activations(model, layers, *, reduce=None):
    """As `captured`, but what the layers' outputs were before the ReLU that made them; without graph.

    A layer whose output is no ReLU's has negative values: it is taken as it is. ValueError where it has none, for
    what was rectified out of sight (by a pooling's input, say) is lost.
    """
    with Rectifications() as rectifications:

        def before(name, output):
            found = rectifications.before.get(output)
            if found is None:
                if not output.amin() < 0:
                    raise ValueError(
                        f"layer {name!r} is not negative anywhere, and no ReLU made its output directly, so there is "
                        "no activation before the ReLU; name the ReLU, or a layer that ends with one"
                    )
                found = output.detach().clone()
            return found if reduce is None else reduce(name, found)

        with captured(model, layers, reduce=before) as activations:
            yield activations


def scale_layers(model, images):
    """The names of the layers that end the network's spatial scales, finest first: a tuple.

    ResNet, VGG and GoogLeNet have their five in a table (FastCAM §3). Any other model is probed with the first
    image: layers are grouped by how often the image was halved, and of each group the last one without negative
    values (a ReLU's output), else the last one, is taken. ValueError where there is only one scale.
    """
    root = layer_root(model)
    for family, names in SCALE_LAYERS.items():
        if isinstance(root, family):
            return names
    if isinstance(root, models.VGG):
        features = list(root.features)
        pools = [place for place, module in enumerate(features) if isinstance(module, nn.MaxPool2d)]
        return tuple(f"features.{place - 1}" for place in pools)
    scales = {}
    for name, (halvings, rectified) in _probed(model, images).items():
        group = scales.setdefault(halvings, {})
        group[rectified] = name
    names = [scales[halvings].get(True, scales[halvings].get(False)) for halvings in sorted(scales)]
    if len(names) < 2:
        raise ValueError(
            f"{type(root).__name__} has {len(names)} spatial scale{'s' * (len(names) != 1)} {names} for images of "
            f"{images.shape[-2]} x {images.shape[-1]} pixels; scale statistics need maps (N, C, h, w) of two sizes or "
            "more: name layers with `layers`, or give larger images"
        )
    return tuple(names)


def _probed(model, images):
    """name -> (times that the image was halved, whether nothing is negative), in the order of the last calls."""
    found, pooled = (
        {},
        (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    )  # they may enlarge a map again: no scale of its own

    def probe(name, module, output):
        if name and not isinstance(module, pooled) and is_map(output) and output.shape[1] > 1:
            shrunk = math.log2(images.shape[-2] * images.shape[-1] / (output.shape[-2] * output.shape[-1])) / 2
            found.pop(name, None)
            found[name] = max(0, round(shrunk)), bool(output.amin() >= 0)

    with observed(model, probe), evaluating(model), torch.no_grad():
        model(images[:1])
    return found
