"""The activations of named layers during a pass, and the gradient that begins at one of them.

Hooks live only inside the `with`; the user's model is left as it was found, also after an exception.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils.weak import WeakTensorKeyDictionary

from xai_utils.networks.answers import class_indices, logits_of
from xai_utils.networks.engine import passes_of
from xai_utils.networks.layers import evaluating, find_layer, observed
from xai_utils.networks.layouts import tensor_of, with_tensor
from xai_utils.networks.probe import layout_of


@contextmanager
def captured(model, layers, *, reduce=None):
    """The outputs of the named layers in the passes made inside the `with`: a dict name -> tensor, the last call's.

    Of a layer that returns several, the first.

        with captured(model, ["layer3", "layer4"]) as activations, torch.no_grad():
            model(images)

    Outputs keep their graph where gradients are on, and are not copied: a layer whose output a later module
    overwrites (an in-place ReLU after a batch norm) is a RuntimeError at the end of the `with`. With `reduce`, a
    function (name, output) -> anything, its result is kept instead, and no activation outlives its layer.
    """
    activations, versions = {}, {}

    def keep(name, _, output):
        given, output = output, tensor_of(output)
        if output is None:
            raise TypeError(f"layer {name!r} returns a {type(given).__name__}, not a tensor; choose another layer")
        if reduce is not None:
            activations[name] = reduce(name, output)
            return
        if output.is_inference():  # such tensors do not count their changes, so only a copy is safe
            output, version = output.clone(), None
        else:
            version = output._version
        activations[name], versions[name] = output, version

    if (passes := passes_of(model)) and not function_modes():  # a mode wants to see PyTorch's operations
        reading = passes.reading(keep, layers)
    else:
        reading = observed(model, keep, modules={name: find_layer(model, name) for name in layers})
    with reading:
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


class _RowsLinear(torch.autograd.Function):
    """functional.linear whose backward pass leaves out the places (rows) that have no gradient; for inputs alone."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(weight)
        ctx.dtype = inputs.dtype
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        rows, weight = gradient.flatten(0, -2), weight.to(gradient.dtype)  # autocast's may differ
        used = rows.any(1)
        found = rows.new_zeros(len(rows), weight.shape[1])
        found[used] = rows[used] @ weight
        return found.unflatten(0, gradient.shape[:-1]).to(ctx.dtype), None, None


class _SparseRows(TorchFunctionMode):
    """While active, linear layers of tokens are differentiated where there is a gradient: of the last block of a
    vision transformer whose head reads the class token, at one place of 197."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is functional.linear and torch.is_grad_enabled() and not kwargs and args[0].ndim > 2:
            inputs, weight, *bias = args
            if inputs.requires_grad:
                return _RowsLinear.apply(inputs, weight, *(bias or [None]))
        return function(*args, **kwargs)


def head_gradient(model, images, layer, target=None):
    """One pass and the gradient of each image's class logit at `layer`: everything a class activation map needs.

    Returns activation (N, C, h, w), gradient (N, C, h, w), logits (N, K) and target (N,), all without graph.
    The trunk up to the layer runs without gradients, only the head behind it is recorded and differentiated; a layer
    that is called several times counts with its last call. Neither the parameters' `grad` nor their `requires_grad`
    is touched; works inside `no_grad` and `inference_mode`, in train mode (explained as in eval mode), and with
    frozen parameters. ValueError where the layer is unknown, returns no map (`layout_of`), or does not reach the
    logits.
    """
    layout, module, leaf = layout_of(model, images, layer), find_layer(model, layer), None
    passes, known, head_alone = passes_of(model), None, nullcontext()

    def begin_graph(_, __, output):
        nonlocal leaf
        leaf = (tensor_of(output) if known is None else known).detach().requires_grad_()
        torch.set_grad_enabled(True)  # until the no_grad below ends
        return with_tensor(output, leaf.clone())  # a following in-place ReLU writes into the copy

    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        if passes and (found := passes.activation(images, layer)):
            known, head_alone = found
        with head_alone, observed(model, begin_graph, modules={layer: module}), _SparseRows():
            logits = logits_of(model, images)
        target, gradient = class_indices(logits, target).clone(), None  # the caller may be in inference mode
        if logits.requires_grad:
            with torch.enable_grad():
                score = logits.gather(1, target[:, None]).sum()  # images do not mix in eval mode
            (gradient,) = torch.autograd.grad(score, leaf, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the logits do not depend differentiably on layer {layer!r}; choose another layer")
        return layout.as_map(leaf.detach()), layout.as_map(gradient), logits.detach(), target
