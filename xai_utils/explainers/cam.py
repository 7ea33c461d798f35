"""Class activation maps: channels of a convolutional map, weighted by what the class thinks of them.

All of them need one pass and one gradient, so `cam_maps` makes several from the same pass. They differ only in the
weight of a channel, a function of activation A and gradient g = dz_c / dA of the class *logit*, both (N, C, h * w).
Maps are raw: after the ReLU, resized to the images, not normalised. `layer` None is the network's `cam_layer`.
"""

import torch

from xai_utils.images import in_full_precision, noisy_copies, resize, unit_range
from xai_utils.networks import cam_layer, class_indices, evaluating, head_gradient, logits_of

XGRAD_EPSILON = 1e-7  # keeps a channel that is silent everywhere from dividing by zero


def _grad_cam_weights(activation, gradient):
    return gradient.mean(-1)  # (N, C)


def _xgrad_cam_weights(activation, gradient):
    return (gradient * activation).sum(-1) / (activation.sum(-1) + XGRAD_EPSILON)  # (N, C)


def _grad_cam_plus_plus_weights(activation, gradient):
    # alpha * relu(g) with alpha = g^2 / (2 g^2 + S g^3) is relu(g) / (2 + S g): nothing underflows, no epsilon needed
    positive = gradient.relu()
    return (positive / (positive * activation.sum(-1, keepdim=True) + 2)).sum(-1)  # (N, C)


CHANNEL_WEIGHTS = {
    "grad_cam": _grad_cam_weights,
    "grad_cam_plus_plus": _grad_cam_plus_plus_weights,
    "xgrad_cam": _xgrad_cam_weights,
}


@in_full_precision
def weighted_maps(weights, activation, size):
    """relu(sum_k w_k A_k), resized: weights (N, M, C), activation (N, C, h, w) -> maps (N, M, H, W)."""
    low = torch.bmm(weights, activation.flatten(2)).relu()  # (N, M, h * w)
    return resize(low.unflatten(2, activation.shape[2:]), size)


def cam_maps(model, images, target=None, *, methods, layer=None):
    """Several of grad_cam, grad_cam_plus_plus and xgrad_cam from one pass: a dict name -> maps (N, H, W).

    Costs one forward pass and the backward pass of what lies behind `layer`, however many `methods` are named.
    """
    unknown = [name for name in methods if name not in CHANNEL_WEIGHTS]
    if unknown or not methods:
        raise ValueError(f"methods {list(methods)} must name one or more of {', '.join(CHANNEL_WEIGHTS)}")
    layer = layer or cam_layer(model, images)
    activation, gradient, _, _ = head_gradient(model, images, layer, target)
    activation, gradient = activation.float(), gradient.float().flatten(2)  # (N, C, h, w), (N, C, h * w)
    weights = torch.stack([CHANNEL_WEIGHTS[name](activation.flatten(2), gradient) for name in methods], 1)  # (N, M, C)
    return dict(zip(methods, weighted_maps(weights, activation, images.shape[-2:]).unbind(1), strict=True))


def grad_cam(model, images, target=None, *, layer=None):
    """Grad-CAM: weight each channel by its mean gradient (Selvaraju et al. 2017, eq. 1-2).

    w_k = mean_ij g_kij,   map = relu(sum_k w_k A_k)

    Non-negative; zero where the class has no positive evidence.
    """
    return cam_maps(model, images, target, methods=["grad_cam"], layer=layer)["grad_cam"]


def grad_cam_plus_plus(model, images, target=None, *, layer=None):
    """Grad-CAM++: weight each channel by its positive gradients, each with its own share (Chattopadhay et al. 2018).

    alpha_kij = g_kij^2 / (2 g_kij^2 + (sum_ab A_kab) g_kij^3), 0 where g_kij = 0             (eq. 19)
    w_k = sum_ij alpha_kij relu(g_kij),   map = relu(sum_k w_k A_k)                             (eq. 5, 7)

    Eq. 19 assumes the score exp(z_c); its factor exp(z_c) is the same for the whole map and left out, it would
    overflow. The sum over A stands outside the cube, as in the paper; some implementations cube inside the sum.
    Non-negative for layers behind a ReLU. Before a ReLU the denominator can cancel and single channels dominate.
    """
    return cam_maps(model, images, target, methods=["grad_cam_plus_plus"], layer=layer)["grad_cam_plus_plus"]


def xgrad_cam(model, images, target=None, *, layer=None):
    """XGrad-CAM: weight each channel by its activation-weighted gradient (Fu et al. 2020, eq. 9).

    w_k = sum_ij g_kij A_kij / (sum_ij A_kij + 1e-7),   map = relu(sum_k w_k A_k)

    Non-negative. On a network that ends in global average pooling it equals Grad-CAM (constant gradients).
    """
    return cam_maps(model, images, target, methods=["xgrad_cam"], layer=layer)["xgrad_cam"]


def smooth_grad_cam_plus_plus(
    model,
    images,
    target=None,
    *,
    layer=None,
    samples=25,
    noise_fraction=0.15,
    average_cams=True,
    generator=None,
    chunk=16,
):
    """Smooth Grad-CAM++: Grad-CAM++ over `samples` noisy copies of each image (Omeiza et al. 2019).

    D_p = mean g^p over the copies,   alpha = D_2 / (2 D_2 + sum_ab A_ab D_3), 0 where D_2 = 0
    w_k = sum_ij alpha relu(D_1),   map = relu(sum_k w_k A_k)

    average_cams=True: not so, but the mean of the copies' Grad-CAM++ maps, each stretched to [0, 1] first; in [0, 1].
    average_cams=False: the paper's formula, above, with A of the clean image.
    The noise is Gaussian with `noise_fraction` of each image's (max - min) as standard deviation. It is drawn image
    by image and copy by copy, so that `chunk` (noisy images per pass) changes only the memory, and a batch equals
    its images one after the other with the same `generator`. The target is the clean image's class.

    Notes: the paper prints D1 in alpha's numerator, which would not reduce to Grad-CAM++ without noise; the numerator
    is D2 here. On networks that end in global average pooling the formula equals Grad-CAM++, for their gradients do
    not depend on the image; averaging the maps does not.
    """
    for name, value in (("samples", samples), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    if noise_fraction < 0:
        raise ValueError(f"noise_fraction is {noise_fraction}; give 0 or more")
    size, layer = images.shape[-2:], layer or cam_layer(model, images)
    if average_cams:
        with evaluating(model), torch.no_grad():
            target = class_indices(logits_of(model, images), target)
        total = images.new_zeros(len(images), *size, dtype=torch.float32)  # (N, H, W)
    else:
        clean, _, _, target = head_gradient(model, images, layer, target)
        clean = clean.float()  # (N, C, h, w)
        moments = [torch.zeros_like(clean) for _ in range(3)]
    for noisy, rows in noisy_copies(images, samples, noise_fraction, generator, chunk):
        activation, gradient, _, _ = head_gradient(model, noisy, layer, target[rows])
        activation, gradient = activation.float(), gradient.float()
        if average_cams:
            weights = _grad_cam_plus_plus_weights(activation.flatten(2), gradient.flatten(2))[:, None]  # (n, 1, C)
            total.index_add_(0, rows, unit_range(weighted_maps(weights, activation, size)[:, 0]))
        else:
            for power, moment in enumerate(moments, start=1):
                moment.index_add_(0, rows, gradient**power)
    if average_cams:
        return total / samples
    first, second, third = (moment.flatten(2) / samples for moment in moments)
    denominator = 2 * second + clean.flatten(2).sum(-1, keepdim=True) * third
    alpha = torch.where(second > 0, second / torch.where(second > 0, denominator, 1), 0)
    return weighted_maps((alpha * first.relu()).sum(-1)[:, None], clean, size)[:, 0]
