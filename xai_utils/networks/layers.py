"""A network's layers: their names, the mode that they are explained in, and what is seen of them during a pass.

Names are those of `named_modules()`, relative to the model, or to `model.layer_root` where a wrapper has one (a
`Target` names its network's layers: "layer4"). Hooks live only inside a call or a `with`; the user's model is left
as it was found, also after an exception. Threads may share a model: `evaluating` and `observed` are the only ways to
change its mode and to hook it.
"""

import copy
import difflib
import threading
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

COMPILED = "_orig_mod"  # where torch.compile keeps the module that it was given


def bare(model):
    """The module inside torch.compile, DataParallel and DistributedDataParallel, whose layers run where hooks are."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif COMPILED in getattr(model, "_modules", ()):
            model = model._modules[COMPILED]
        else:
            return model


def layer_root(model):
    """The module that layer names are relative to."""
    model = bare(model)
    return bare(getattr(model, "layer_root", model))


def makes_weights(name):
    """Whether a module is no layer: a parametrization, whose output are a layer's weights."""
    return "parametrizations" in name.split(".")


def named_layers(model):
    """name -> module, the root ("") first; compiled or not, a layer has the same name."""
    return {
        ".".join(part for part in name.split(".") if part != COMPILED): module
        for name, module in layer_root(model).named_modules()
        if not makes_weights(name)
    }


def layer_names(model):
    """The names of all layers, in the order of their definition."""
    return [name for name in named_layers(model) if name]


def find_layer(model, name):
    """The module called `name`; an unknown name is a ValueError with the nearest names."""
    layers = named_layers(model)
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
    Every pass of a method or metric is made inside. What was compiled runs as it was written, or no hook would be met.
    """
    modules = [module for module in model.modules() if hasattr(module, "training")]  # torch.jit.freeze takes it away
    compiled = any(COMPILED in module._modules or module._compiled_call_impl is not None for module in modules)
    with _CHANGING:
        if compiled:
            _run_eagerly()
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
            if compiled:
                _compile_again()


_EAGERLY = []  # for each `evaluating` of a compiled model: what ends the first one's stance, which is the process's


def _run_eagerly():
    _EAGERLY.append(None if _EAGERLY else torch.compiler.set_stance("force_eager"))


def _compile_again():
    """The last `evaluating` to end gives torch.compile its stance back."""
    stance = _EAGERLY.pop(1 if len(_EAGERLY) > 1 else 0)
    if stance is not None:
        stance.__exit__(None, None, None)


def _copies(_, given):
    return tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in given)


# before the user's own hooks, which may write as well; scripted modules refuse their own methods, and call the hooks
_register_before = partial(nn.Module.register_forward_pre_hook, prepend=True)
_register_after = nn.Module.register_forward_hook


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


@contextmanager
def observed(model, see, *, modules=None):
    """Inside the `with`, `see(name, module, output)` is called as each layer of a pass of this thread finishes.

    What it returns, unless that is None, takes the output's place. `modules`: name -> module, by default all of
    `layer_root`'s, the root itself ("") included. ValueError for modules inside a scripted or traced one.
    """
    modules = named_layers(model) if modules is None else modules
    if any(isinstance(module, torch.jit.ScriptModule) and module is not model for module in modules.values()):
        raise ValueError(  # torch.jit.script's refuse hooks, torch.jit.trace's take them and never call them
            f"{type(model).__name__} is scripted or traced (torch.jit), and its layers run no hooks: explain the "
            "module that it was made of, or choose a method that reads no layers, such as rise, lime or gradient"
        )
    acts = [
        (module, lambda module, _, output, name=name: see(name, module, output)) for name, module in modules.items()
    ]
    with _hooked(_register_after, acts):
        yield
