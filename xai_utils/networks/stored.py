"""Networks on disk: a folder with `<kind>.safetensors` (weights) and `<kind>.json` (what they are, their SHA-256)."""

import json
import pickle
import sys
import threading
from functools import wraps
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from xai_utils.files import sha256, write_atomically, write_json

PICKLED = {".pth", ".pt", ".bin", ".ckpt"}
SUFFIXES = {".safetensors"} | PICKLED  # of files of weights
STAGES = {  # kind of network -> the stage of the pipeline that trains it
    "target": "finetune_target",
    "surrogate": "distill_surrogate",
    "mask_predictor": "train_mask_predictor",
    "attention_gate": "train_attention",
    "effect_predictor": "train_effect_predictor",
}


def _files(folder, kind):
    return Path(folder) / f"{kind}.json", Path(folder) / f"{kind}.safetensors"


def write(module, folder, kind, facts, *, made_with=None):
    """Write the weights of `module` into `folder` (made if missing), then the `facts` (a dict) with their SHA-256.

    `made_with`: a JSON-able dict of what made the weights (parameters, data hash), kept in the facts for readers.
    """
    facts_file, weights = _files(folder, kind)
    weights.parent.mkdir(parents=True, exist_ok=True)
    tensors, places = {}, set()
    for key, tensor in module.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        shared = tensor.untyped_storage().data_ptr() in places  # as tied weights are, which the format refuses
        tensors[key] = tensor.clone() if shared else tensor
        places.add(tensor.untyped_storage().data_ptr())
    write_tensors(tensors, weights)
    facts = facts | {"made_with": made_with or {}, "versions": _versions(module), "sha256": sha256(weights)}
    write_json(facts_file, facts)


def _versions(module):
    """The versions of the libraries that the modules of a network come from, and of PyTorch's own two."""
    found = {type(each).__module__.partition(".")[0] for each in module.modules()} | {"torch", "torchvision"}
    known = {name: getattr(sys.modules.get(name), "__version__", None) for name in sorted(found)}
    return {name: version for name, version in known.items() if version is not None}


def facts(folder, kind, names):
    """The facts that `write` left, a dict with at least `names`.

    FileNotFoundError where a file is missing; ValueError, naming the file, where it is corrupt.
    """
    noun = kind.replace("_", " ")
    for file in _files(folder, kind):
        if not file.is_file():
            place, way = Path(folder).absolute(), f"`dvc repro {STAGES[kind]}` trains it"
            raise FileNotFoundError(f"{place} holds no {noun}: {file.name} is missing; {way}")
    file = _files(folder, kind)[0]
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {name: found[name] for name in (*names, "sha256")} | found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is corrupt ({type(error).__name__}: {error}); save the {noun} again") from error


_DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_}
_OPENING = threading.Lock()  # torch's global generator is put back for one thread at a time


class Undrawn(TorchFunctionMode):
    """Networks that are built in it leave their parameters as memory was: for those that are filled from a file next.

    Random weights take longer to draw than to read.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("tensor")
        fills = function in _DRAWS or getattr(function, "__module__", None) == nn.init.__name__
        return given if fills and isinstance(given, nn.Parameter) else function(*args, **kwargs)


def drawing_nothing(opener):
    """The function `opener`, without what building a network draws from torch's global generator."""

    @wraps(opener)
    def opened(*given, **options):
        with _OPENING, torch.random.fork_rng(devices=[]), Undrawn():
            return opener(*given, **options)

    return opened


def read_into(module, folder, kind, facts):
    """`module` in eval mode with the weights of `folder`, whose `facts` were read.

    ValueError, naming the file, where they are corrupt or do not fit.
    """
    facts_file, weights = _files(folder, kind)
    if sha256(weights) != facts["sha256"]:
        raise ValueError(
            f"{weights} is corrupt or belongs to another {facts_file.name} (SHA-256 differs); save it again"
        )
    return fill(module, read_tensors(weights), weights).eval()


def write_tensors(tensors, path):
    """Write tensors of main memory by name into a .safetensors file at `path`, whole or not at all."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_atomically(path, lambda partial: safetensors.torch.save_file(tensors, partial), size=size)


def read_tensors(path):
    """The tensors of a file of weights, by name: .safetensors, or a state dict saved by torch (PICKLED).

    Pickles are opened with `weights_only`, which runs no code; a state dict under `state_dict` or `model` is taken out,
    and the prefix of distributed training, `module.`, taken off. FileNotFoundError, or ValueError where it is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .safetensors file of weights, or a state dict in .pth")
    if path.suffix in PICKLED:
        return _unpickled(path)
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch or save it again") from error


def _unpickled(path):
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is damaged, or holds more than weights, which could run code ({first}); where you trust it, save "
            "its tensors alone: torch.save(model.state_dict(), path)"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    odd = [] if isinstance(found, dict) else [type(found).__name__]
    odd = odd or [
        f"{name}: {type(each).__name__}" for name, each in found.items() if not isinstance(each, torch.Tensor)
    ]
    if odd:
        raise ValueError(
            f"{path} holds no state dict (names of tensors) but {odd[0]}; save one of a network that is not quantised: "
            "torch.save(model.state_dict(), path)"
        )
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def fill(network, tensors, source):
    """Load `tensors` into `network`; half precision is widened.

    ValueError with the first key that does not fit, or that no network can answer with: NaN, infinite values, whole
    numbers where weights belong (quantised), a negative variance.
    """
    own, tensors = network.state_dict(), dict(tensors)
    for key in [key for key in own if key in tensors]:
        if own[key].is_floating_point() != tensors[key].is_floating_point():
            raise ValueError(
                f"{source}: {key} is {tensors[key].dtype}, and {type(network).__name__} needs {own[key].dtype}; give "
                "weights that are not quantised"
            )
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
    for key, tensor in tensors.items():
        tensors[key] = tensor = tensor.to(own[key].dtype)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source}: {key} holds NaN or infinite values; give weights of a training that went well")
        if key.endswith("running_var") and tensor.amin() < 0:
            raise ValueError(f"{source}: {key} holds the negative variance {tensor.amin():.4g}; save the network again")
    network.load_state_dict(tensors)
    return network
