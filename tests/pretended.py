"""A GPU that is not there: what code puts on "cuda" stays in main memory, and mixing the two places is an error.

It shows, on any machine, a network that was moved under its owner's hands, a batch that was left behind, an array made
from a tensor that is still on the GPU. A tensor's place is its storage's, as in torch: views, `data` and gradients
follow. It does not show what a real device computes, or has no operation for.
"""

from contextlib import contextmanager

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# these read one place and write the other
ANYWHERE = ("aten::copy_", "aten::_to_copy", "aten::_foreach_copy_", "aten::_has_compatible_shallow_copy_type")
PLACED = set()  # StorageWeakRef of each storage on the GPU


def on_gpu(tensor):
    return StorageWeakRef(tensor.untyped_storage()) in PLACED


def _put(tensor, gpu):
    reference = StorageWeakRef(tensor.untyped_storage())
    (PLACED.add if gpu else PLACED.discard)(reference)
    if gpu and len(PLACED) % 4096 == 0:
        PLACED.difference_update([each for each in PLACED if each.expired()])
    return tensor


class _Operations(TorchDispatchMode):
    """Below autograd, so in backward passes as well: no operation has operands of both places; results follow them."""

    count = 0  # of those on the GPU

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation.name().split(".")[0]
        with torch._C.DisableTorchFunction():
            tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
            places = [(each, on_gpu(each)) for each in tensors]
            gpu = any(placed for _, placed in places)
            if name.startswith(
                ("aten::index", "aten::_unsafe_index")
            ):  # places in a tensor on the GPU may be told from main memory
                strangers = gpu and not places[0][1]
            else:
                strangers = gpu and name not in ANYWHERE and any(each.ndim and not placed for each, placed in places)
            if strangers:
                raise RuntimeError(f"{operation.name()}: expected all tensors to be on the same device")
            result = operation(*args, **kwargs)
            self.count += gpu
            if gpu and name not in ANYWHERE:
                for each in tree_leaves(result):
                    if isinstance(each, torch.Tensor):
                        _put(each, True)
            elif name == "aten::_to_copy":
                _put(result, gpu)
        return result


class _Requests(TorchFunctionMode):
    """What names a device: made on the CPU, and put where it was asked for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if function == torch.Tensor.device.__get__:
            return GPU if on_gpu(first) else CPU
        if function in (torch.Tensor.is_cuda.__get__, torch.Tensor.is_cpu.__get__):
            return on_gpu(first) == (function == torch.Tensor.is_cuda.__get__)
        if function in (torch.Tensor.numpy, torch.Tensor.__array__) and on_gpu(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        asked = kwargs.get("device")
        if asked is None and function in (torch.Tensor.new_tensor, torch.Tensor.__deepcopy__):
            asked = GPU if on_gpu(first) else CPU
        if function in (torch.Tensor.cpu, torch.Tensor.cuda):
            asked, function = CPU if function is torch.Tensor.cpu else GPU, torch.Tensor.to
            args, kwargs = (first, CPU), {}
        elif function is torch.Tensor.to:
            others = [each for each in (*args[1:], *kwargs.values()) if isinstance(each, str | torch.device)]
            others += [GPU if on_gpu(each) else CPU for each in args[1:] if isinstance(each, torch.Tensor)]
            asked = others[0] if others else None
            args = tree_map_only(str | torch.device, lambda _: CPU, args)
        generator = kwargs.get("generator")
        if generator is not None and asked is not None and generator.device.type != torch.device(asked).type:
            raise RuntimeError(f"expected a {asked} generator, and found one of {generator.device}")
        if "device" in kwargs:
            kwargs["device"] = CPU
        result = function(*args, **kwargs)
        if asked is not None and isinstance(result, torch.Tensor):
            gpu = torch.device(asked).type == "cuda"
            if on_gpu(result) != gpu:
                shared = [each for each in tree_leaves(args) if isinstance(each, torch.Tensor)]
                same = any(each.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for each in shared)
                result = _put(result.clone() if same else result, gpu)
        return result


class _Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self):
        return self.place


@contextmanager
def gpu(monkeypatch):
    """Inside the `with`, torch finds a GPU, on which `Compute(device="auto")` computes; gives the `_Operations`."""
    found = {"is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "a pretended GPU",
             "is_bf16_supported": False, "synchronize": None, "set_device": None, "manual_seed": None,
             "get_rng_state": None, "set_rng_state": None}  # fmt: skip
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)  # optimizers ask for its stream
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with _Operations() as operations, _Requests():
        yield operations
