"""A network's layers: their names, and the gradient that begins at one of them.

Names are those of `named_modules()`, relative to the model, or to `model.layer_root` where a wrapper has one (a
`Target` names its network's layers: "layer4"). Hooks live only inside a call or a `with`; the user's model is left
as it was found, also after an exception. Threads may share a model: `evaluating` and `observed` are the only ways to
change its mode and to hook it.
"""

import copy
import difflib
import math
import threading
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary
from torchvision import models

LAST_MAPS = {  # the last convolutional map before pooling
    models.ResNet: "layer4",
    models.GoogLeNet: "inception5b",
    models.Inception3: "Mixed_7c",
    models.MobileNetV2: "features",
    models.MobileNetV3: "features",
    models.DenseNet: "features",
    models.EfficientNet: "features",
}


def layer_root(model):
    """The module that layer names are relative to."""
    return getattr(model, "layer_root", model)


def makes_weights(name):
    """Whether a module is no layer: a parametrization, whose output are a layer's weights."""
    return "parametrizations" in name.split(".")


def _layers(model):
    """name -> module, the root ("") first."""
    return {name: module for name, module in layer_root(model).named_modules() if not makes_weights(name)}


def layer_names(model):
    """The names of all layers, in the order of their definition."""
    return [name for name in _layers(model) if name]


def find_layer(model, name):
    """The module called `name`; an unknown name is a ValueError with the nearest names."""
    layers = _layers(model)
    if name in layers and name:
        return layers[name]
    names = layer_names(model)
    close = difflib.get_close_matches(str(name), names, n=6, cutoff=0.5)
    top = [child for child, _ in layer_root(model).named_children()]
    raise ValueError(
        f"layer {name!r} is unknown; "
        + (f"close names: {', '.join(close)}; " if close else "")
        + f"top level: {', '.join(top)}; layer_names(model) lists all {len(names)}"
    )


_CHANGING = threading.Lock()  # while flags or hooks change: torch numbers hooks without a lock of its own
_EVALUATED = {}  # module that is in eval mode for an `evaluating` -> [for how many, the training flag that it had]


@contextmanager
def evaluating(model):
    """The model in eval mode, and no pass of it can write into the tensors that it is called with: it gets copies.

    Afterwards each module has the training flag that it had; where threads share the model, after the last of them.
    Every pass of a method or metric is made inside.
    """
    modules = list(model.modules())
    with _CHANGING:
        for module in modules:
            _EVALUATED.setdefault(module, [0, module.training])[0] += 1
    try:
        if any(module.training for module in modules):
            model.eval()
        with _hooked(_register_before, [(model, _copies)]):
            yield model
    finally:
        with _CHANGING:
            for module in modules:
                _EVALUATED[module][0] -= 1
                if not _EVALUATED[module][0]:
                    module.training = _EVALUATED.pop(module)[1]


def _copies(_, given):
    return tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in given)


# before the user's own hooks, which may write as well; scripted modules refuse their method, and call the hook
_register_before = partial(nn.Module.register_forward_pre_hook, prepend=True)


@contextmanager
def _hooked(register, acts):
    """Inside the `with`, the pairs (module, hook) of `acts` are registered, for passes of this thread alone."""
    thread = threading.get_ident()

    def own(act):
        return lambda *given: act(*given) if threading.get_ident() == thread else None

    with _CHANGING:
        handles = [register(module, own(act)) for module, act in acts]
    try:
        yield
    finally:
        thread = None  # a copy of the model that another thread made meanwhile keeps the hooks: they rest
        with _CHANGING:
            for handle in handles:
                handle.remove()


def deep_copy(model):
    """A deep copy of `model`, also where a module keeps a tensor that it has computed (torch.nn.utils.weight_norm)."""
    kept = [each for module in model.modules() for each in vars(module).values() if isinstance(each, torch.Tensor)]
    return copy.deepcopy(model, {id(each): each.detach().clone() for each in kept if not each.is_leaf})


def logits_of(model, images):
    """The answers (N, K) of `model`: float32 or float64 (half precision is widened), finite.

    ValueError where it returns anything else, naming what it is, or the images whose logits are NaN or infinite.
    """
    logits = model(images)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        found = type(logits).__name__
        if isinstance(logits, torch.Tensor):
            found = tuple(logits.shape) if logits.ndim != 2 else logits.dtype
        raise ValueError(f"the model returns {found}; wrap it so that it returns logits (N, K)")
    if logits.numel() and not logits.is_meta and not all(map(math.isfinite, logits.detach().aminmax())):
        broken = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"the model's logits are NaN or infinite for images {broken[:10]} of a pass; look for such numbers in its "
            "weights and, in float16, for an overflow, which float32 and bfloat16 do not have"
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def is_map(output):
    """Whether a layer's output is a map (N, C, h, w) with more than one position."""
    return isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1


@contextmanager
def observed(model, see, *, modules=None):
    """Inside the `with`, `see(name, module, output)` is called as each layer of a pass of this thread finishes.

    What it returns, unless that is None, takes the output's place. `modules`: name -> module, by default all of
    `layer_root`'s, the root itself ("") included.
    """
    modules = _layers(model) if modules is None else modules
    acts = [
        (module, lambda module, _, output, name=name: see(name, module, output)) for name, module in modules.items()
    ]
    with _hooked(lambda module, hook: module.register_forward_hook(hook), acts):
        yield


class _Enlarged(TorchFunctionMode):
    """While active, remembers maps that pooling or interpolation made larger: `made(output)`.

    They show no more places than what they were made from (AlexNet pools a single one into 6 x 6 at 64 pixels).
    """

    FUNCTIONS = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d, functional.interpolate)

    def __init__(self):
        super().__init__()
        self.outputs = WeakTensorKeyDictionary()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function in self.FUNCTIONS and isinstance(output, torch.Tensor):
            before = args[0] if args else kwargs["input"]
            self.outputs[output] = output[0, 0].numel() > before[0, 0].numel()
        return output

    def made(self, output):
        return self.outputs.get(output, False)


def cam_layer(model, images):
    """The name of the layer that class activation maps explain by default: the last convolutional map.

    torchvision's families have theirs in a table (VGG: the last ReLU before the last pooling). Any other model is
    probed with the first image: the module that finishes last with an output (N, C, h, w), h * w > 1, that is no
    smaller map made larger. ValueError where there is none.
    """
    root = layer_root(model)
    for family, name in LAST_MAPS.items():
        if isinstance(root, family):
            return name
    if isinstance(root, models.VGG):
        return f"features.{max(i for i, module in enumerate(root.features) if isinstance(module, nn.ReLU))}"
    return _last_map(model, images, lambda name, module: name != "", "layer")


def last_convolution(model, images):
    """The name of the convolution that runs last, before its norm and ReLU; those of ResNets' shortcuts do not count.

    ResNet-50: layer4.2.conv3. Where the network ends in branches (GoogLeNet) it is the last one's, and sees a part of
    the channels.
    """
    return _last_map(
        model, images, lambda name, module: isinstance(module, nn.Conv2d) and "downsample" not in name, "convolution"
    )


def _last_map(model, images, counts, kind):
    """The name of the module that finishes last with an output (N, C, h, w), h * w > 1, of those that count."""
    root, found, enlarged = layer_root(model), [], _Enlarged()

    def see(name, module, output):
        if counts(name, module) and is_map(output) and not enlarged.made(output):
            found.append(name)

    with observed(model, see), evaluating(model), torch.no_grad(), enlarged:
        model(images[:1])
    if not found:
        raise ValueError(
            f"no {kind} of {type(root).__name__} returns a map (N, C, h, w) with h * w > 1 for images of shape "
            f"{tuple(images.shape)}; name one with `layer`, or give larger images"
        )
    return found[-1]


def checked_target(target, images, classes=None):
    """`target` as class indices (N,) on the device of `images` (N, …); an int serves all images.

    ValueError for another shape, for numbers that are not whole, and for classes outside 0..classes-1.
    """
    try:
        target = torch.as_tensor(target, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"target is {target!r} ({error}); give whole class indices (torch.long)") from error
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise ValueError(f"target is {target.dtype}; give whole class indices (torch.long)")
    target = target.long()  # narrower whole numbers could not be compared with the number of classes
    if target.ndim == 0:
        target = target.expand(len(images))
    if target.shape != images.shape[:1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; give one class index per image: ({len(images)},)")
    outside = target[(target < 0) | (target >= (classes or torch.iinfo(torch.long).max))]
    if len(outside):
        allowed = f"0..{classes - 1}" if classes else "0 or more"
        raise ValueError(f"target {int(outside[0])} is not a class of this model; give {allowed}")
    return target


def class_indices(logits, target=None):
    """`target` as class indices (N,), checked against `logits` (N, K); None is the predicted class."""
    return logits.argmax(1) if target is None else checked_target(target, logits, logits.shape[1])


def head_gradient(model, images, layer, target=None):
    """One pass and the gradient of each image's class logit at `layer`: everything a class activation map needs.

    Returns activation (N, C, h, w), gradient (N, C, h, w), logits (N, K) and target (N,), all without graph.
    The trunk up to the layer runs without gradients, only the head behind it is recorded and differentiated; a layer
    that is called several times counts with its last call. Neither the parameters' `grad` nor their `requires_grad`
    is touched; works inside `no_grad` and `inference_mode`, in train mode (explained as in eval mode), and with
    frozen parameters. ValueError where the layer is unknown, has no map (N, C, h, w), or does not reach the logits.
    """
    module, leaf = find_layer(model, layer), None

    def begin_graph(_, __, output):
        nonlocal leaf
        if not is_map(output):
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(
                f"layer {layer!r} returns {shape}, not a map (N, C, h, w) with h * w > 1; choose a convolutional "
                f"layer (default: cam_layer) or larger images than {tuple(images.shape[-2:])}"
            )
        leaf = output.detach().requires_grad_()
        torch.set_grad_enabled(True)  # until the no_grad below ends
        return leaf.clone()  # a following in-place ReLU writes into the copy

    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        with observed(model, begin_graph, modules={layer: module}):
            logits = logits_of(model, images)
        if leaf is None:
            raise ValueError(f"layer {layer!r} is not run by the model's forward pass; choose another layer")
        target, gradient = class_indices(logits, target).clone(), None  # the caller may be in inference mode
        if logits.requires_grad:
            with torch.enable_grad():
                score = logits.gather(1, target[:, None]).sum()  # images do not mix in eval mode
            (gradient,) = torch.autograd.grad(score, leaf, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the logits do not depend differentiably on layer {layer!r}; choose another layer")
        return leaf.detach(), gradient, logits.detach(), target
