"""Sanity checks: does a map change when the network forgets, and stay when only the draws or invisible noise change?

Parameter randomisation (Adebayo et al. 2018) makes the network forget, from its output down, and compares the maps of
the same images and classes before and after. Maps are compared by Spearman's rank correlation of their raw values: the
order of the pixels is what every metric and every reader uses, it needs no normalisation, and a linear stretch of the
map is no change. (A structural similarity would depend on how maps are stretched, and rises with what is smooth.)
Max-sensitivity alone (Yeh et al. 2019) is a norm of the raw maps.

Here `explain` is a function (model, images, target) -> maps (N, H, W) that draws the same in every call; `seeded` makes
one of each method. Results are float on the CPU, one value per image. The model that is given is only read: an
`inference_copy` does as well, and is faster.
"""

from typing import NamedTuple

import torch
from torch import nn

from xai_utils.explainers import EXPLAINERS, check_options
from xai_utils.images import rank_correlation
from xai_utils.networks import answering, checked_target, class_indices, deep_copy, evaluating, logits_of
from xai_utils.networks.layers import find_layer, layer_root, makes_weights, observed
from xai_utils.networks.probe import layouts

NOISE = 0.02  # standard deviation of the noise on pixels in [0, 1]: 5 of 255 grey levels, hardly seen
SAMPLES = 2  # of images near by, of which max-sensitivity takes the worst; each costs another explanation
UNCHANGED = 0.9  # mean rank correlation from which on maps count as not changed; what reads the network is far below
BATCH = 16  # images in memory at once
CHANNELS_LAST = (nn.Linear, nn.LayerNorm)  # where they see maps, (N, h, w, C), a ConvNeXt's say


def seeded(method, **options):
    """A method of `EXPLAINERS` as a function explain(model, images, target, *, seed=0) that draws from `seed` alone.

    Each image meets the same draws, in a batch or by itself. A method that draws nothing ignores `seed`.
    """
    check_options(method, options)
    record = EXPLAINERS[method]

    def explain(model, images, target, *, seed=0):
        if record.draws == "seed":
            return record(model, images, target, **options | {"seed": seed})
        if record.draws is None:
            return record(model, images, target, **options)
        pairs = zip(images.split(1), target.split(1), strict=True)
        return torch.cat([record(model, *pair, **record.seeded(options, seed, images.device)) for pair in pairs])

    return explain


def layer_stages(model, run, images=None):
    """The layers that have parameters, from the output down: a dict name of a stage's lowest layer -> layer names.

    In the reverse order of the pass that `run()` makes; a new stage begins where the maps change their size. A ResNet
    has its head, then the layers of each spatial scale. Layers that the pass does not meet stand in the last stage.
    With `images`, of a network that takes them, sizes are those of `layouts`; else outputs are read as (N, C, h, w).
    """
    grids = None if images is None else {name: layout.grid for name, layout in layouts(model, images).items()}
    layers = {name: module for name, module in layer_root(model).named_modules() if _has_parameters(module)}
    met = {}

    def watch(name, layer, output):
        met.pop(name, None)  # a layer that is called several times counts with its last call
        if grids is not None:
            met[name] = grids.get(name)
        else:
            read = isinstance(output, torch.Tensor) and output.ndim == 4 and not isinstance(layer, CHANNELS_LAST)
            sized = read and output[0, 0].numel() > 1 and not makes_weights(name)
            met[name] = output.shape[-2:] if sized else None

    with observed(model, watch, modules=layers), evaluating(model), torch.no_grad():
        run()
    groups, scale = [[]], None
    for name, size in reversed(met.items()):
        if size not in (None, scale):  # layers without a size (a head, a gate's squeeze) go with those before them
            scale = size
            groups.append([])
        groups[-1].append(name)
    groups[-1].extend(name for name in layers if name not in met)
    return {group[-1] or "model": tuple(group) for group in groups if group}  # "": the model itself is a layer


def _has_parameters(module):
    return any(True for _ in module.parameters(recurse=False))


def untrained(model, seed=0):
    """A deep copy of `model` on the CPU, its layers drawn anew by their own `reset_parameters`, as `seed` decides.

    Batch norms forget their statistics, too. A parameter without such a scheme (ConvNeXt's layer scale, a weight
    norm's) is shuffled. torch's global generator stays as it is.
    """
    fresh = deep_copy(model).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in fresh.modules():
            versions = [(parameter, parameter._version) for parameter in module.parameters(recurse=False)]
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            for parameter in [parameter for parameter, version in versions if parameter._version == version]:
                parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].reshape(parameter.shape))
    return fresh


def parameter_randomisation(explain, model, images, target=None, *, stages=None, maps=None, seed=0, batch=BATCH):
    """How much of the maps is left while the model forgets, stage after stage: a dict stage -> rank correlation (N,).

    Cascading from the output down (Adebayo et al. 2018, §3.1): a stage's maps are those of a network in which its
    layers and all of the stages before it are as `untrained` drew them. `stages` (names -> layer names, default
    `layer_stages`) can name fewer layers. The class is that of the trained network throughout. `batch` images are
    explained at once. Costs one explanation per stage, and one more where `maps` of the model are not given.
    """
    stages = layer_stages(model, lambda: model(images[:1]), images) if stages is None else stages
    target = _explained(model, images, target, batch)
    maps = _batched(explain, model, images, target, batch) if maps is None else maps
    with torch.inference_mode(False):
        forgetting, fresh = deep_copy(model), untrained(model, seed)
    similarities = {}
    for stage, layers in stages.items():
        for name in layers:
            _forget(*(find_layer(network, name) if name else layer_root(network) for network in (forgetting, fresh)))
        similarities[stage] = rank_correlation(maps, _batched(explain, forgetting, images, target, batch))
    return similarities


def _forget(layer, fresh):
    """Give one layer, without what is inside it, the parameters and buffers of another."""
    with torch.no_grad():
        for kind in ("named_parameters", "named_buffers"):
            drawn = dict(getattr(fresh, kind)(recurse=False))
            for name, tensor in getattr(layer, kind)(recurse=False):
                tensor.copy_(drawn[name])


def seed_agreement(explain, model, images, target=None, *, maps=None, seed=1, batch=BATCH):
    """Rank correlation (N,) of the maps drawn from seed 0 (`maps`, if made already) and from `seed`; higher is better.

    `explain` takes a `seed`, as `seeded` makes it. 1 for a method that draws nothing.
    """
    target = _explained(model, images, target, batch)
    maps = _batched(explain, model, images, target, batch) if maps is None else maps
    return rank_correlation(maps, _batched(explain, model, images, target, batch, seed=seed))


def stability(explain, model, images, target=None, *, noise=NOISE, maps=None, seed=0, batch=BATCH):
    """Rank correlation (N,) of the maps of each image (`maps`, if made already) and of the same image with noise on it.

    `noise` is the standard deviation of a Gaussian, pixels stay in [0, 1]; it follows `seed`, image by image. The class
    is the clean image's. High is good only for a map that reads image and network: one that never changes has 1.
    """
    if not noise > 0:
        raise ValueError(f"noise is {noise}; give a positive standard deviation of pixels in [0, 1], such as {NOISE}")
    target = _explained(model, images, target, batch)
    maps = _batched(explain, model, images, target, batch) if maps is None else maps
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.stack([torch.randn(images.shape[1:], generator=generator) for _ in images]).to(images)
    noisy = (images + noise * shifts).clamp(0, 1)
    return rank_correlation(maps, _batched(explain, model, noisy, target, batch))


def max_sensitivity(
    explain, model, images, target=None, *, radius=NOISE, samples=SAMPLES, maps=None, seed=0, batch=BATCH
):
    """The most that the map moves when no pixel moves by more than `radius`, (N,), over its size; lower is better.

    max over y of ‖map(y) - map(x)‖ / ‖map(x)‖,   |y - x| <= radius in every pixel

    Max-sensitivity (Yeh et al. 2019, def. 2), in Euclidean norms of the raw maps; y are `samples`, uniform around each
    image (`maps`, if made already), kept in [0, 1]. They follow `seed`, image by image. The class is the clean image's.
    Low is good only for a map that reads image and network: one that never changes has 0. A map of zeros counts with
    the norm 1.
    """
    if not radius > 0:
        raise ValueError(f"radius is {radius}; give a positive distance of pixels in [0, 1], such as {NOISE}")
    if samples < 1:
        raise ValueError(f"samples is {samples}; look at one image near by or more")
    target = _explained(model, images, target, batch)
    maps = _batched(explain, model, images, target, batch) if maps is None else maps
    size, moved = maps.flatten(1).norm(dim=1), torch.zeros(len(images))
    for number in range(samples):
        generator = torch.Generator().manual_seed(seed + number)
        shifts = torch.stack([2 * torch.rand(images.shape[1:], generator=generator) - 1 for _ in images]).to(images)
        found = _batched(explain, model, (images + radius * shifts).clamp(0, 1), target, batch)
        moved = torch.maximum(moved, (found - maps).flatten(1).norm(dim=1))
    return moved / torch.where(size > 0, size, 1)


def _explained(model, images, target, batch):
    if target is not None:
        return checked_target(target, images)
    with evaluating(model), torch.no_grad(), answering(model):  # one logit's sign decides, whatever the score
        return torch.cat([class_indices(logits_of(model, part)) for part in images.split(batch)])


def _batched(explain, model, images, target, batch, **options):
    parts = zip(images.split(batch), target.split(batch), strict=True)
    return torch.cat([explain(model, *part, **options).detach().cpu() for part in parts])


def own_network(method, options, device="cpu"):
    """The network that a learned method brings beside the target, a copy in eval mode; None for other methods.

    `options` of the method name a network or its folder; FileNotFoundError where there is none.
    """
    record = EXPLAINERS[method]
    if (given := record.brought(options)) is None:
        return None
    return (deep_copy(given) if isinstance(given, nn.Module) else record.part.read(given, device)).eval()


def reading(method, own, options):
    """A learned method with the network `own`, whatever the target has forgotten: an `explain` for the checks.

    A method may refuse another target than its network's own. That a target has forgotten is the very question here,
    so `own` (changed by this) is made to accept the one it is to read.
    """
    part = EXPLAINERS[method].part
    function = seeded(method, **options | {part.option: own})

    def explain(model, images, target, *, seed=0):
        part.adopt(own, model)
        return function(model, images, target, seed=seed)

    return explain


class Sanity(NamedTuple):
    """The checks of one method: rank correlations of maps before and after, (N,) each."""

    cascade: dict[str, torch.Tensor]  # the target's stages, from the logits down; nothing else forgets
    own: dict[str, torch.Tensor]  # a learned method's own stages, from the map down; the target forgets nothing
    everything: torch.Tensor  # all layers of the target and of the method's own network
    seeds: torch.Tensor | None  # another seed; None for a method that draws nothing
    noise: torch.Tensor  # noise on the image
    sensitivity: torch.Tensor  # max-sensitivity: no correlation, but a relative distance

    @property
    def target(self):
        """All of the target's layers forgotten: the end of the cascade, (N,)."""
        return list(self.cascade.values())[-1]

    @property
    def verdict(self):
        """What the maps depend on, in words; a mean rank correlation of UNCHANGED or more is no change."""
        if self.everything.nanmean() >= UNCHANGED:
            return "does not depend on the model"
        if self.target.nanmean() >= UNCHANGED:
            return "depends on its own network alone"
        return "depends on the model"


def sanity(
    method,
    model,
    images,
    target=None,
    *,
    options=None,
    cascade=True,
    noise=NOISE,
    samples=SAMPLES,
    seed=0,
    batch=BATCH,
):
    """All checks of one method of `EXPLAINERS` with its `options` (a dict), on the same images and classes: a `Sanity`.

    `noise` is the standard deviation of `stability` and the radius of `max_sensitivity`. Costs two explanations, one
    for each of its `samples`, one per stage (a ResNet has 5; without `cascade` all layers forget at once, as one stage
    "all"), and one for a method that draws; for a learned one, one per stage of its own network and one more.
    """
    options, target = options or {}, _explained(model, images, target, batch)
    check_options(method, options)
    own = own_network(method, options, images.device)
    explain = seeded(method, **options) if own is None else reading(method, own, options)
    maps = _batched(explain, model, images, target, batch)

    def forget(explain, network, run, cascade=cascade):
        stages = layer_stages(network, run, images if network is model else None)
        stages = stages if cascade else {"all": sum(stages.values(), ())}
        return parameter_randomisation(
            explain, network, images, target, stages=stages, maps=maps, seed=seed, batch=batch
        )

    def classify():
        return model(images[:1])

    of_target, of_own = forget(explain, model, classify), {}
    everything = list(of_target.values())[-1]
    if own is not None:

        def explain_by(network, images, target):  # the other way round: the target stays
            return reading(method, network, options)(model, images, target)

        of_own = forget(explain_by, own, lambda: explain(model, images[:1], target[:1]))
        fresh = untrained(own, seed).to(images.device)
        everything = forget(reading(method, fresh, options), model, classify, cascade=False)["all"]
    changed, near = {"maps": maps, "batch": batch}, {"radius": noise, "samples": samples, "seed": seed}
    return Sanity(
        cascade=of_target,
        own=of_own,
        everything=everything,
        seeds=seed_agreement(explain, model, images, target, seed=seed + 1, **changed)
        if EXPLAINERS[method].draws
        else None,
        noise=stability(explain, model, images, target, noise=noise, seed=seed, **changed),
        sensitivity=max_sensitivity(explain, model, images, target, **near, **changed),
    )
