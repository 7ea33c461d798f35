"""What a model answers: its logits, its classes, and the score of a class that maps explain and metrics follow."""

import math
from contextlib import contextmanager

import torch

from xai_utils.networks.layers import bare, observed

SCORES = {  # of a class, from logits (N, K): name -> function -> (N, K)
    "softmax": lambda logits: logits.softmax(1),  # the probability, where one class of K is right
    "sigmoid": torch.sigmoid,  # the probability, where each class is right or not (labels of their own, or one logit)
    "logit": lambda logits: logits,
}


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
    """The answers (N, K) of `model` in one pass: float32 or float64 (half precision is widened), finite, K > 1.

    Every pass whose answer is read goes through here. ValueError as in `unpacked`; for another number of rows than
    images; for one logit, unless it answers for two classes (`answering`); and, naming the images, for logits
    that are NaN or infinite.
    """
    logits = unpacked(model(images))
    if len(logits) != len(images):
        raise ValueError(
            f"the model returns {tuple(logits.shape)} for {len(images)} images; wrap it so that it returns logits "
            "(N, K), one row per image"
        )
    if logits.shape[1] == 1:
        raise ValueError(
            'the model returns one logit per image, of which softmax makes 1; give score="sigmoid" (or "logit") to '
            'explain and to metrics, or call others inside networks.answering(model, "sigmoid"): class 1 has the '
            "logit, class 0 its negative"
        )
    if logits.numel() and not logits.is_meta and not all(map(math.isfinite, logits.detach().aminmax())):
        broken = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"the model's logits are NaN or infinite for images {broken[:10]} of a pass; look for such numbers in its "
            "weights and, in float16, for an overflow, which float32 and bfloat16 do not have"
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def checked_score(score):
    """`score`, if it is one of SCORES; ValueError listing them."""
    if not isinstance(score, str) or score not in SCORES:
        raise ValueError(f"score {score!r} is unknown; choose one of {', '.join(SCORES)}")
    return score


@contextmanager
def answering(model, *scores):
    """Inside the `with`, a model of one logit z per image answers (-z, z), where `scores`, of SCORES, lack "softmax".

    So class 1 is the logit's, class 0 the other one, for targets, predictions, scores and gradients alike; the sigmoid
    of (-z, z) is the softmax of (0, z). Models of several logits answer as they are, and so does any where softmax is
    asked for: `logits_of` refuses one logit.
    """

    def for_both(_, __, output):
        logits = unpacked(output)
        return torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else None

    if "softmax" in map(checked_score, scores):
        yield
    else:
        with observed(model, for_both, modules={"": model, "bare": bare(model)}):  # methods may call either
            yield


def class_scores(logits, classes, score="softmax"):
    """The score (N,) of each row's class: one of SCORES of logits (N, K) at classes (N,)."""
    return SCORES[checked_score(score)](logits).gather(1, classes[:, None])[:, 0]


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
