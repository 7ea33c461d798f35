"""Gradient maps: how the class logit changes with each pixel, through captum.

Gradients are with respect to the pixels in [0, 1] that the model takes (a `Target` normalises inside, so the normalised
gradient is divided by each channel's std), of the class *logit*. Attributions are signed and per channel, (N, 3, H, W);
a map is what remains after their reduction over channels: non-negative, raw, not normalised. The parameters' gradients
are neither computed nor touched.
"""

from collections import Counter
from contextlib import contextmanager

import torch
from captum.attr import IntegratedGradients, Saliency
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from xai_utils.images import baseline as baseline_image
from xai_utils.images import noisy_copies, resize
from xai_utils.networks import NotApplicable, checked_target, class_indices, evaluating, logits_of
from xai_utils.networks.layers import observed


def _differentiable(tensor, which):
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        raise ValueError(f"{which} not depend differentiably on the images; look for no_grad or detach in the model")
    return tensor


class _ClassScore(nn.Module):
    """images (k * N, 3, H, W) -> the logit (k * N,) of each one's class, which captum differentiates.

    `target` (N,) serves all k repetitions of the batch; None is the predicted class, found in the same pass.
    """

    def __init__(self, model, target):
        super().__init__()
        self.model, self.target = model, target

    def forward(self, images):
        logits = logits_of(self.model, images)
        _differentiable(logits, "the logits do")
        target = None if self.target is None else self.target.repeat(len(images) // len(self.target))
        return logits.gather(1, class_indices(logits, target)[:, None])[:, 0]


RECTIFIERS = {  # torch's operations, below modules, functions and autograd, that let a part of what they get through
    *("relu", "threshold", "clamp", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum", "fmax", "fmin"),
    *("where", "masked_fill", "abs", "sign", "heaviside", "gt", "ge", "lt", "le"),  # … as a mask: x * (x > 0)
    *("leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "elu", "celu", "selu", "gelu", "silu", "mish"),
    *("softplus", "hardswish", "hardsigmoid", "hardshrink", "softshrink"),
}


class _Rectifications(TorchDispatchMode):
    """Counts the operations of RECTIFIERS that act while it is active, by name, wherever they are written."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = getattr(operation, "overloadpacket", operation).__name__.removesuffix("_")  # in place or not
        of_numbers = args and isinstance(args[0], torch.Tensor) and (args[0].is_floating_point() or name == "where")
        guards = name in ("clamp", "clamp_min") and _positive(*args[1:], **kwargs or {})
        self.found[name] += bool(name in RECTIFIERS and of_numbers and not guards)
        return operation(*args, **kwargs or {})


def _positive(low=None, high=None, *, min=None, max=None):
    """Whether a clamp keeps from zero alone, as before a division, which rectifies nothing."""
    low, high = low if min is None else min, high if max is None else max
    return isinstance(low, int | float) and low > 0 and high is None


class _GuidedScore(_ClassScore):
    """The class score, if all that it rectifies is rectified by `nn.ReLU` modules, which are guided.

    A gradient that loses its negative part and then meets the ReLU's own rule is g [a > 0] [g > 0].
    """

    def forward(self, images):
        calls = 0

        def guide(name, relu, rectified):
            nonlocal calls
            calls += 1
            _differentiable(rectified, "a ReLU's output does").register_hook(lambda gradient: gradient.clamp(min=0))

        relus = {name: module for name, module in self.model.named_modules() if isinstance(module, nn.ReLU)}
        with observed(self.model, guide, modules=relus), _Rectifications() as rectifications:
            score = super().forward(images)
        unseen = +(rectifications.found - Counter(relu=calls))
        if not calls or unseen:
            named = ", ".join(f"{name} {count}" for name, count in unseen.items()) or "none"
            raise NotApplicable(
                f"guided backprop changes the gradient of nn.ReLU modules, and this model calls {calls} of them and "
                f"rectifies {unseen.total()} times without ({named}); rebuild it with nn.ReLU modules, or choose the "
                "method 'gradient'"
            )
        return score


def _gradient(model, images, target, score=_ClassScore):
    return Saliency(score(model, target)).attribute(images.detach().requires_grad_(), abs=False)


def _guided_backprop(model, images, target):
    return _gradient(model, images, target, _GuidedScore)


def _integrated_gradients(model, images, target, *, steps, chunk, baseline="black"):
    options = {"n_steps": steps, "method": "riemann_right", "internal_batch_size": chunk}
    parts = [tensor.split(chunk) for tensor in (images, baseline_image(baseline, model, images), target)]
    attributions = [  # captum itself splits the steps, but never the batch
        IntegratedGradients(_ClassScore(model, classes)).attribute(pixels, start, **options)
        for pixels, start, classes in zip(*parts, strict=True)
    ]
    return torch.cat(attributions)


def _largest(attributions):
    return attributions.abs().amax(1).float()  # (N, H, W)


def _total(attributions):
    return attributions.abs().sum(1).float()  # (N, H, W)


ATTRIBUTIONS = {  # name -> signed attributions (N, 3, H, W), their reduction to maps
    "gradient": (_gradient, _largest),
    "guided_backprop": (_guided_backprop, _largest),
    "integrated_gradients": (_integrated_gradients, _total),
}


@contextmanager
def _explained(model, images, target, chunk=None):
    """The images and their classes as tensors that may enter a graph, in any mode; the model in eval mode.

    With a `chunk`, classes that are not given are predicted, so many images at a time.
    """
    with evaluating(model), torch.inference_mode(False), torch.no_grad():  # captum turns gradients on where it needs
        images = images.clone() if images.is_inference() else images.detach()
        if target is not None:
            target = checked_target(target, images)
        elif chunk is not None:
            target = torch.cat([class_indices(logits_of(model, part)) for part in images.split(chunk)])
        yield images, target


def _check_at_least(lowest, **options):
    for name, value in options.items():
        if not value >= lowest:
            raise ValueError(f"{name} is {value}; give {lowest} or more")


def gradient(model, images, target=None):
    """The gradient of the class logit with respect to the pixels in [0, 1] (Simonyan et al. 2014, §3).

    map = max_channels |dz_c / dx|

    Non-negative, (N, H, W). One pass and its backward pass.
    """
    with _explained(model, images, target) as (images, target):
        return _largest(_gradient(model, images, target))


def guided_backprop(model, images, target=None):
    """Guided backpropagation: each ReLU passes back only positive gradients (Springenberg et al. 2015, §3.4).

    Backward through relu(a): g <- g [a > 0] [g > 0],   map = max_channels |g_x|

    Non-negative, (N, H, W). Every ReLU must be an `nn.ReLU` module (in place or not, called any number of times): a
    model without one (torchvision's GoogLeNet), or one that rectifies besides (DenseNet's last, ReLU6, clamp, maximum,
    where, threshold, a mask of its own, another activation of RECTIFIERS) is a ValueError.
    """
    with _explained(model, images, target) as (images, target):
        return _largest(_guided_backprop(model, images, target))


def integrated_gradients(model, images, target=None, *, steps=25, baseline="black", chunk=16):
    """Integrated Gradients from `baseline` x' to the image (Sundararajan et al. 2017, eq. 1 and 3).

    IG = (x - x') (1/m) sum_{k=1..m} dz_c/dx at x' + (k/m) (x - x'),   map = sum_channels |IG|

    Non-negative, (N, H, W). `steps` m, 2 or more: the signed sum of IG approaches z_c(x) - z_c(x') as m grows.
    `baseline`: a name of `xai_utils.images.BASELINES` or a tensor that broadcasts to the images. `chunk` (images per
    pass) changes only the memory. The target is the image's class, all along the path.
    """
    _check_at_least(2, steps=steps)
    _check_at_least(1, chunk=chunk)
    with _explained(model, images, target, chunk) as (images, target):
        return _total(_integrated_gradients(model, images, target, steps=steps, chunk=chunk, baseline=baseline))


def _expected_gradients(model, images, target, *, samples, baselines, seed, chunk):
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(samples, 1, 1, 1, generator=generator).to(images)
    if baselines is None:
        starts = torch.rand(samples, images.shape[1], 1, 1, generator=generator).to(images)
        starts = starts.expand(-1, -1, *images.shape[-2:])
    else:
        turns = [torch.randperm(len(baselines), generator=generator) for _ in range(-(-samples // len(baselines)))]
        starts = resize(baselines[torch.cat(turns)[:samples].to(baselines.device)].to(images), images.shape[-2:])
    mean = torch.zeros_like(images, dtype=torch.promote_types(images.dtype, torch.float32))
    for items in torch.arange(len(images) * samples, device=images.device).split(chunk):
        rows, draws = items // samples, items % samples
        ways = images[rows] - starts[draws]
        found = _gradient(model, starts[draws] + shares[draws] * ways, target[rows])
        mean.index_add_(0, rows, (ways * found).to(mean.dtype), alpha=1 / samples)
    return mean


def expected_gradients(model, images, target=None, *, samples=50, baselines=None, seed=0, chunk=16):
    """Expected Gradients: integrated gradients from many baselines, images themselves, at once (Erion et al. 2021).

    EG = mean over samples of (x - x') dz_c/dx at x' + a (x - x'),   map = sum_channels |EG|

    Non-negative, (N, H, W). Each of `samples` draws a, uniform in [0, 1], and x', one of `baselines`, images in [0, 1]
    (B, 3, h, w) of any size, none again before all had their turn; None: an image of one random colour each. The stages
    give training images. `seed` decides the draws, the same for all images; `chunk` (images per pass) changes only the
    memory. The signed sum of EG approaches the mean of z_c(x) - z_c(x') as `samples` grows. It is captum's GradientShap
    without noise. The target is the image's class.
    """
    _check_at_least(1, samples=samples, chunk=chunk)
    if baselines is not None and (baselines.ndim != 4 or baselines.shape[1] != images.shape[1] or not len(baselines)):
        raise ValueError(f"baselines are {tuple(baselines.shape)}; give images (B, {images.shape[1]}, h, w)")
    with _explained(model, images, target, chunk) as (images, target):
        options = {"samples": samples, "baselines": baselines, "seed": seed, "chunk": chunk}
        return _total(_expected_gradients(model, images, target, **options))


def _smoothed(model, images, target, power, *, over, samples, noise_fraction, steps, generator, chunk):
    """Mean over noisy copies of (signed attributions of the method `over`) ** power, (N, 3, H, W)."""
    if over not in ATTRIBUTIONS:
        raise ValueError(f"over {over!r} is unknown; choose one of {', '.join(ATTRIBUTIONS)}")
    _check_at_least(1, samples=samples, chunk=chunk)
    _check_at_least(0, noise_fraction=noise_fraction)
    _check_at_least(2, steps=steps)
    attribute, _ = ATTRIBUTIONS[over]
    options = {"steps": steps, "chunk": chunk} if over == "integrated_gradients" else {}
    with _explained(model, images, target, chunk) as (images, target):
        mean = torch.zeros_like(images, dtype=torch.promote_types(images.dtype, torch.float32))
        for noisy, rows in noisy_copies(images, samples, noise_fraction, generator, chunk):
            found = attribute(model, noisy, target[rows], **options).to(mean.dtype)
            mean.index_add_(0, rows, found**power, alpha=1 / samples)
        return mean


def smooth_grad(
    model,
    images,
    target=None,
    *,
    over="gradient",
    samples=50,
    noise_fraction=0.20,
    steps=25,
    generator=None,
    chunk=16,
):
    """SmoothGrad: the mean attribution over `samples` noisy copies of each image (Smilkov et al. 2017, §3).

    map = reduction of (1/n) sum_j R(x + e_j), signed and per channel, R and its reduction over channels those of the
    method `over`: gradient, guided_backprop or integrated_gradients (from black, in `steps` steps, else unused).

    Non-negative, (N, H, W). The noise e is Gaussian with `noise_fraction` of each image's (max - min) as standard
    deviation, drawn image by image and copy by copy: `chunk` (noisy images per pass) changes only the memory, and a
    batch equals its images one after the other with the same `generator`. The target is the clean image's class.
    """
    options = {"over": over, "samples": samples, "noise_fraction": noise_fraction, "steps": steps}
    mean = _smoothed(model, images, target, 1, generator=generator, chunk=chunk, **options)
    return ATTRIBUTIONS[over][1](mean)


def smooth_grad_squared(
    model,
    images,
    target=None,
    *,
    over="gradient",
    samples=15,
    noise_fraction=0.15,
    steps=25,
    generator=None,
    chunk=16,
):
    """SmoothGrad-Squared: the mean *squared* attribution over noisy copies (Hooker et al. 2019, §4.2).

    map = sum_channels (1/n) sum_j R(x + e_j)^2, squared per channel, before the sum

    Non-negative, (N, H, W). Everything else as in `smooth_grad`; the defaults are FastCAM's (Mundhenk et al. 2019).
    """
    options = {"over": over, "samples": samples, "noise_fraction": noise_fraction, "steps": steps}
    return _smoothed(model, images, target, 2, generator=generator, chunk=chunk, **options).sum(1).float()
