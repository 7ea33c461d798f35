"""Which network is which: a digest of all its weights, and what a trained part keeps of the network it belongs to."""

import hashlib
from weakref import WeakKeyDictionary

import torch

from xai_utils.networks.layers import bare

_known = WeakKeyDictionary()  # model -> (its tensors as they were, its digest)


def digest(model) -> str:
    """20 hexadecimal digits that stand for all weights and buffers of `model`, by name; a trained step changes them.

    The same on every device, in every memory format, in float64, and of a compiled or distributed model. A copy from
    `inference_copy` has its original's as long as nobody changes it. Half precision rounds weights, which makes
    another model.
    """
    model = bare(model)
    tensors = {name: value for name, value in model.state_dict(keep_vars=True).items() if torch.is_tensor(value)}
    marks = _marks([*tensors.values()])
    before, known = _known.get(model, (None, None))
    if marks == before is not None:
        return known
    found = hashlib.sha256()
    for name, value in tensors.items():
        value = value.detach().float() if value.is_floating_point() else value.detach()
        found.update(f"{name} {tuple(value.shape)}\n".encode())
        if not value.is_meta:
            found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    own = found.hexdigest()[:20]
    _known[model] = marks, getattr(model, "_copy_of", {}).get(own, own)
    return _known[model][1]


def _marks(tensors):
    """What changes when a weight does: where each lies, how often it was written; None where that is not counted.

    What writes through `tensor.data` is not counted, but trains the last layer, too: hence its first values.
    """
    if any(each.is_inference() for each in tensors):
        return None
    values = [each.detach().flatten()[0].item() for each in tensors[-4:] if each.numel() and not each.is_meta]
    return [(each.data_ptr(), each._version) for each in tensors], values


def mark_copy(copied, model):
    """Let `copied`, which computes what `model` does with other weights, have the digest of `model`; returns it."""
    copied._copy_of = {}
    copied._copy_of[digest(copied)] = digest(model)
    _known.pop(copied)
    return copied


def made_for(model) -> dict:
    """What a trained part keeps of the `model` that it is trained for: architecture, number of classes, digest."""
    model = bare(model)
    root = getattr(model, "layer_root", model)
    classes = getattr(model, "classes", None)
    return {
        "architecture": getattr(model, "architecture", type(root).__name__),
        "classes": None if classes is None else len(classes),
        "digest": digest(model),
    }


def require_made_for(part, model, source, advice):
    """ValueError, ending in the `advice`, where the `made_for` of `part`, found in `source`, is not that of `model`."""
    if not isinstance(part.made_for, dict) or "digest" not in part.made_for:
        raise ValueError(
            f"{source} does not say for which network it was trained: an earlier version wrote it, or it was never "
            f"trained; {advice}"
        )
    if part.made_for["digest"] != (own := made_for(model))["digest"]:
        raise ValueError(f"{source} was trained for {_named(part.made_for)}, not for {_named(own)}; {advice}")


def _named(about):
    classes = "" if about.get("classes") is None else f" of {about['classes']} classes"
    return f"a {about.get('architecture')}{classes} with the weights {about['digest']}"
