"""What a model answers: its logits and its classes."""

import math

import torch


def unpacked(output):
    """The logits (N, K) in what a classifier returns: the tensor, an object's `.logits`, or the first of a tuple.

    ValueError, naming what it is and how to wrap the model, for anything else.
    """
    found = getattr(output, "logits", output)  # transformers' ModelOutput
    found = found[0] if isinstance(found, tuple | list) and found else found
    if isinstance(found, torch.Tensor) and found.ndim == 2 and found.is_floating_point():
        return found
    what = type(output).__name__
    if isinstance(found, torch.Tensor):
        inside = tuple(found.shape) if found.ndim != 2 else found.dtype
        what = f"{inside}" if found is output else f"{what} with {inside}"
    raise ValueError(
        f"the model returns {what}; wrap it so that it returns logits (N, K), one row per image, by themselves, as "
        "`.logits` or first in a tuple: (N, K, 1, 1) by torch.nn.Sequential(model, torch.nn.Flatten()), all else by a "
        "torch.nn.Module whose forward picks them from model(images)"
    )


def logits_of(model, images):
    """The answers (N, K) of `model` in one pass: float32 or float64 (half precision is widened), finite.

    Every pass whose answer is read goes through here. ValueError as in `unpacked`; for another number of rows than
    images; and, naming the images, for logits that are NaN or infinite.
    """
    logits = unpacked(model(images))
    if len(logits) != len(images):
        raise ValueError(
            f"the model returns {tuple(logits.shape)} for {len(images)} images; wrap it so that it returns logits "
            "(N, K), one row per image"
        )
    if logits.numel() and not logits.is_meta and not all(map(math.isfinite, logits.detach().aminmax())):
        broken = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"the model's logits are NaN or infinite for images {broken[:10]} of a pass; look for such numbers in its "
            "weights and, in float16, for an overflow, which float32 and bfloat16 do not have"
        )
    return logits if logits.dtype == torch.float64 else logits.float()


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
