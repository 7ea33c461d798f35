"""FastCAM: saliency from one forward pass, combined from the statistics of five layers (Mundhenk et al. 2019).

statistic_maps   the raw statistic of each scale's layer, at the layer's size
layer_maps       the same, each normalised to [0, 1] and resized to the image: the stack (N, L, H, W)
combine          the weighted mean of the stack: the map that the explainer `smoe` gives (eq. 3)
fastcam          that map times a class activation map; `non_class` times one minus it
"""

import math

import torch

from xai_utils.explainers.activation_statistics import (
    EPSILON,
    PRE_ACTIVATION,
    STATISTICS,
    fast_smoe_scale,
    gamma_shape,
)
from xai_utils.explainers.cam import CHANNEL_WEIGHTS, weighted_maps
from xai_utils.explainers.lovi import layer_weights
from xai_utils.images import in_full_precision, interpolation_matrix, unit_range
from xai_utils.networks import (
    cam_layer,
    captured,
    class_indices,
    evaluating,
    head_gradient,
    layer_names,
    logits_of,
    pre_activations,
    scale_layers,
)
from xai_utils.networks.probe import layout_of

LARGEST_SHAPE = 18.0  # of the gamma distribution fitted to a map, as in the published code


def normal_cdf(maps):
    """Each map (N, h, w) through the normal distribution's CDF with its own mean and unbiased deviation; in [0, 1].

    S <- (1 + erf((S - mean) / (deviation sqrt 2))) / 2; a map with a deviation below 1e-12 becomes 1/2 everywhere.
    """
    maps = maps.double()
    centred = maps - maps.mean((1, 2), keepdim=True)
    deviation = (centred.square().sum((1, 2), keepdim=True) / max(1, maps[0].numel() - 1)).sqrt()
    flat = deviation < 1e-12
    return torch.special.ndtr(torch.where(flat, 0, centred / torch.where(flat, 1, deviation))).float()


def gamma_cdf(maps):
    """Each map (N, h, w) through the CDF of the gamma distribution fitted to it by maximum likelihood; in [0, 1].

    S <- P(k, S / theta) of S - min + 1e-7, k at most 18: the option of the published code, which evaluates the
    regularised incomplete gamma function P by eight terms of a series; here it is exact.
    """
    values = maps.double() - maps.double().amin((1, 2), keepdim=True) + EPSILON
    average = values.mean((1, 2), keepdim=True)
    shape = gamma_shape(average.log() - values.log().mean((1, 2), keepdim=True)).clamp(EPSILON, LARGEST_SHAPE)
    return torch.special.gammainc(shape, values * shape / average).nan_to_num(0, 0, 0).float()


NORMALISATIONS = {"normal_cdf": normal_cdf, "gamma_cdf": gamma_cdf, "unit_range": unit_range}


def _named(kind, name, choices):
    if name not in choices:
        raise ValueError(f"{kind} {name!r} is unknown; choose one of {', '.join(choices)}")
    return choices[name]


def _reducer(statistic, layers, layouts):
    """What turns a layer's output into its statistic's map; errors name the layer.

    Where the network chose the `layers` itself (None), one that is not behind a ReLU is rectified here.
    """
    function = _named("statistic", statistic, STATISTICS)

    def reduce(name, output):
        activation = layouts[name].as_map(output)
        if layers is None and statistic == "smoe_scale":
            values = fast_smoe_scale(activation)  # nearly always a ReLU's output: negative values show as NaN
            if values.isfinite().all():
                return values
        if layers is None and statistic not in PRE_ACTIVATION:
            activation = activation.clamp(min=0)  # keeps NaN
        try:
            return function(activation)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None

    return reduce


def _capturing(model, statistic, layers, images):
    """The context in which a pass leaves the maps of `layers` (None: the network's scales), and the layers' names."""
    names = scale_layers(model, images) if layers is None else tuple(layers)
    if isinstance(layers, str) or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"layers are {layers!r}; name two or more different layers, finest first, or None for the network's "
            f"{', '.join(scale_layers(model, images))} (all names: {', '.join(layer_names(model))})"
        )
    capture = pre_activations if statistic in PRE_ACTIVATION else captured
    held = {name: layout_of(model, images, name) for name in names}
    return capture(model, names, reduce=_reducer(statistic, layers, held)), names


def statistic_maps(model, images, *, statistic="smoe_scale", layers=None):
    """The raw maps of one statistic: a dict layer -> (N, h, w), finest layer first, from one pass.

    `statistic`: a name of STATISTICS. `layers` None: those that end the network's spatial scales (`scale_layers`).
    Activations are reduced as they appear, so that none is kept. ValueError naming the layer where an activation
    holds NaN, or is negative where a ReLU's output is needed.
    """
    capture, names = _capturing(model, statistic, layers, images)
    with evaluating(model), torch.inference_mode(), capture as maps:
        logits_of(model, images)
    return {name: maps[name].clone() for name in names}


def layer_maps(model, images, *, statistic="smoe_scale", normalisation="normal_cdf", layers=None):
    """The stack (N, L, H, W) in [0, 1] of normalised maps, each resized to the images: what `combine` and `lovi` take.

    `normalisation`: normal_cdf (the paper's), gamma_cdf, or unit_range; it is applied at the layer's own size.
    """
    normalise = _named("normalisation", normalisation, NORMALISATIONS)
    maps = statistic_maps(model, images, statistic=statistic, layers=layers).values()
    return torch.stack([_resized([normalise(each)], images.shape[-2:], [1.0]) for each in maps], 1)


@in_full_precision
def _resized(maps, size, weights):
    """sum_l w_l resize(S_l), bilinear: maps [(N, h_l, w_l)] -> (N, H, W).

    As matrix products: resizing is linear in rows and in columns, so the sum over layers is part of the second one.
    """
    rows = [
        interpolation_matrix(each.shape[1], size[0]).to(each) * weight
        for each, weight in zip(maps, weights, strict=True)
    ]
    columns = [interpolation_matrix(each.shape[2], size[1]).to(each) for each in maps]
    tall = torch.cat([row @ each for row, each in zip(rows, maps, strict=True)], 2)  # (N, H, sum_l w_l)
    return tall @ torch.cat(columns, 1).T


def combine(maps, weights="prior", *, size=None):
    """The combined map (N, H, W): sum_l w_l S_l / sum_l w_l (FastCAM eq. 3), a convex combination.

    `maps`: a stack (N, L, H, W), or a list of maps (N, h, w), finest first, resized to `size` (None: the largest).
    `weights`: prior, linear (1, 2, ...), equal, or one number per layer (ValueError for another length or all zero).
    """
    maps = list(maps.unbind(1)) if isinstance(maps, torch.Tensor) else list(maps)
    if not maps or any(each.ndim != 3 for each in maps):
        raise ValueError(
            f"maps have shapes {[tuple(each.shape) for each in maps]}; give maps (N, h, w), or their stack"
        )
    values = layer_weights(weights, len(maps))
    size = size or max((tuple(each.shape[1:]) for each in maps), key=math.prod)
    return _resized(maps, size, (values / values.sum()).tolist())


def smoe(
    model, images, target=None, *, statistic="smoe_scale", weights="prior", normalisation="normal_cdf", layers=None
):
    """The combined map of one statistic over the network's scales, by default SMOE Scale (FastCAM eq. 1-3); in [0, 1].

    map = sum_l w_l Φ(φ_l) / sum_l w_l,   φ = μ (log2 μ - mean_k log2 x_k), μ = mean_k x_k, Φ the normal CDF

    Says what the network found worth encoding, not for which class: `target` is checked and changes nothing.
    One forward pass; `statistic`, `normalisation`, `layers` as in `layer_maps`, `weights` as in `combine`.
    """
    normalise = _named("normalisation", normalisation, NORMALISATIONS)
    capture, names = _capturing(model, statistic, layers, images)
    layer_weights(weights, len(names))  # before the pass
    with evaluating(model), torch.inference_mode(), capture as maps:
        class_indices(logits_of(model, images), target)
    return combine([normalise(maps[name].clone()) for name in names], weights, size=images.shape[-2:])


def _combined_and_cam(model, images, target, cam, layer, statistic, weights, normalisation, layers):
    """The combined map and the class activation map in [0, 1], both (N, H, W), from one pass."""
    weigh, normalise = _named("cam", cam, CHANNEL_WEIGHTS), _named("normalisation", normalisation, NORMALISATIONS)
    capture, names = _capturing(model, statistic, layers, images)
    layer_weights(weights, len(names))
    with capture as maps:
        activation, gradient, _, _ = head_gradient(model, images, layer or cam_layer(model, images), target)
    activation, gradient = activation.float(), gradient.float().flatten(2)
    low = weighted_maps(weigh(activation.flatten(2), gradient)[:, None], activation, images.shape[-2:])[:, 0]
    combined = combine([normalise(maps[name]) for name in names], weights, size=images.shape[-2:])
    return combined, unit_range(low)


def fastcam(
    model,
    images,
    target=None,
    *,
    cam="grad_cam_plus_plus",
    layer=None,
    statistic="smoe_scale",
    weights="prior",
    normalisation="normal_cdf",
    layers=None,
):
    """FastCAM: the combined map times a class activation map stretched to [0, 1] (FastCAM §3.2); in [0, 1].

    map = S ⊙ C,   S as in `smoe`, C the class activation map

    `cam`: grad_cam_plus_plus, grad_cam or xgrad_cam of `layer`; the rest as in `smoe`. One pass, and the gradient of
    the head alone.
    """
    combined, map_of_class = _combined_and_cam(
        model, images, target, cam, layer, statistic, weights, normalisation, layers
    )
    return combined * map_of_class


def non_class(
    model,
    images,
    target=None,
    *,
    cam="grad_cam_plus_plus",
    layer=None,
    statistic="smoe_scale",
    weights="prior",
    normalisation="normal_cdf",
    layers=None,
):
    """What is salient, but not for the class: the combined map times (1 - CAM); with `fastcam` it sums to `smoe`.

    map = S ⊙ (1 - C),   S and C as in `fastcam`
    """
    combined, map_of_class = _combined_and_cam(
        model, images, target, cam, layer, statistic, weights, normalisation, layers
    )
    return combined * (1 - map_of_class)
