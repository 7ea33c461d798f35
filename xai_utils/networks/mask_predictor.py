"""DGLE's mask predictor: it reads a frozen classifier's features and answers with a map, in one pass.

features -> feature filter (one class) -> mask generator -> controller -> map. The controller gives the scores of
every image the same right-skewed distribution, so that training needs no area or smoothness term.

A predictor is kept in a folder as `mask_predictor.safetensors` (weights) and `mask_predictor.json` (what they are).
"""

import math

import torch
from scipy import integrate
from torch import nn
from torch.nn import functional

from xai_utils.networks import stored
from xai_utils.networks.activations import captured
from xai_utils.networks.answers import logits_of
from xai_utils.networks.defaults import NotApplicable, reached_scales
from xai_utils.networks.digests import made_for
from xai_utils.networks.layers import evaluating
from xai_utils.networks.probe import layout_of

SCALES = 4  # feature maps that a generator reads at most, each half as wide as the one before
HALVINGS = 2  # of the image, that a map has at least: 56×56 of 224×224, as the paper's
UPSAMPLERS = ("subpixel_blur", "subpixel", "transpose")
ETA, EXPONENT = 1.5, 2.5  # of the customized controller (DGLE §4.1)
OPTIONS = ("controller", "eta", "exponent", "upsampler")
LATER = ("one_size", "doublings", "normalisation")  # options that files of earlier versions do not tell
KIND = "mask_predictor"  # of file: stored.py


def instance_normalised(maps):
    """Each map (…, H, W) with mean 0 and variance 1: (m - mean) / sqrt(var + 1e-5), moments over its own pixels."""
    variance, mean = torch.var_mean(maps, (-2, -1), correction=0, keepdim=True)
    return (maps - mean) / torch.sqrt(variance + 1e-5)


def quantile_normalised(maps):
    """Each map (…, H, W) as normal quantiles: z = Φ⁻¹((rank - 1/2) / n), ranks of its own n pixels, ties the mean one.

    A constant map gets 0. The gradient is that of `instance_normalised`: ranks have none. Like the ranks it sees
    neither a map's offset nor its contrast, so that neither drifts in training.
    """
    flat = maps.detach().flatten(-2)
    ordered = flat.sort(-1).values
    below, upto = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    ranked = torch.special.ndtri((below + upto).double() / (2 * flat.shape[-1]))  # mean rank: (below + upto + 1) / 2
    passing = instance_normalised(maps)
    return ranked.to(maps.dtype).reshape(maps.shape) + (passing - passing.detach())


NORMALISATIONS = {"instance": instance_normalised, "quantile": quantile_normalised}


def basic_controller(maps, *, normalise=instance_normalised):
    """BF: max(0, z), z the normalised map (DGLE eq. 5). Values above 1 occur (16 % of a normal z)."""
    return normalise(maps).relu()


def customized_controller(maps, *, eta=ETA, exponent=EXPONENT, normalise=instance_normalised):
    """CF: sigmoid(η z)^h in (0, 1), z the normalised map (DGLE eq. 6). ValueError for η or h <= 0."""
    _require_positive(eta, exponent)
    return torch.sigmoid(eta * normalise(maps)) ** exponent


def customized_controller_inverse(scores, *, eta=ETA, exponent=EXPONENT):
    """The z of a score of CF in (0, 1): -ln(m^(-1/h) - 1) / η (DGLE eq. 12)."""
    _require_positive(eta, exponent)
    return -torch.log(scores ** (-1 / exponent) - 1) / eta


def controller_density(scores, *, eta=ETA, exponent=EXPONENT):
    """The density of CF's scores in (0, 1) where z is standard normal, zero elsewhere; a tensor (DGLE eq. 7).

    p(m) = 1 / (√(2π) h η m (1 - m^(1/h))) · exp(-(ln(m^(-1/h) - 1))² / (2η²))
    """
    _require_positive(eta, exponent)
    inside = (scores > 0) & (scores < 1)
    safe = torch.where(inside, scores, 0.5)
    z = customized_controller_inverse(safe, eta=eta, exponent=exponent)
    density = torch.exp(-(z**2) / 2) / (math.sqrt(2 * math.pi) * exponent * eta * safe * (1 - safe ** (1 / exponent)))
    return torch.where(inside, density, 0.0)


def controller_moments(*, eta=ETA, exponent=EXPONENT):
    """mean, std, skewness, median and share above 1/2 of CF's scores where z is standard normal: a dict."""
    _require_positive(eta, exponent)

    def expected(function):
        def integrand(z):
            score = (1 + math.exp(-eta * z)) ** -exponent
            return function(score) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return integrate.quad(integrand, -12, 12)[0]

    mean = expected(lambda score: score)
    variance = expected(lambda score: (score - mean) ** 2)
    half = float(customized_controller_inverse(torch.tensor(0.5, dtype=torch.float64), eta=eta, exponent=exponent))
    return {
        "mean": mean,
        "std": math.sqrt(variance),
        "skewness": expected(lambda score: (score - mean) ** 3) / variance**1.5,
        "median": 0.5**exponent,
        "above_half": math.erfc(half / math.sqrt(2)) / 2,
    }


def _require_positive(eta, exponent):
    for name, value in (("eta", eta), ("exponent", exponent)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; the customized controller needs a positive number (1.5 and 2.5)")


def two_channel_mask(logits):
    """MGnet's map of the generator's two channels (N, 2, h, w): |a| / (|a| + |b| + 1e-8), in [0, 1]."""
    first, second = logits.abs().unbind(1)
    return first / (first + second + 1e-8)


CONTROLLERS = {"basic": basic_controller, "customized": customized_controller, "mgnet": two_channel_mask}


class FeatureFilter(nn.Module):
    """Fades the places of a feature map (N, C, h, w) that do not speak for a class: X sigmoid(X·E_c) (DGLE eq. 10).

    One embedding E_c (C,) per class, N(0, 1/√C) at first. `confidence` is taken off X·E_c (Dabkowski & Gal's demo: 6).
    """

    def __init__(self, classes, channels):
        super().__init__()
        self.embedding = nn.Embedding(classes, channels)
        nn.init.normal_(self.embedding.weight, std=channels**-0.5)

    def evidence(self, features, classes):
        """X·E_c at each place, (N, h, w)."""
        return torch.einsum("nchw,nc->nhw", features, self.embedding(classes))

    def forward(self, features, classes, *, confidence=0.0):
        return features * torch.sigmoid(self.evidence(features, classes) - confidence)[:, None]


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with batch norm through a quarter of `outgoing`, and a shortcut around them."""

    def __init__(self, incoming, outgoing):
        super().__init__()
        narrow = max(1, outgoing // 4)
        self.branch = nn.Sequential(
            *(nn.Conv2d(incoming, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()),
            *(nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()),
            *(nn.Conv2d(narrow, outgoing, 1, bias=False), nn.BatchNorm2d(outgoing)),
        )
        self.shortcut = nn.Conv2d(incoming, outgoing, 1) if incoming != outgoing else nn.Identity()

    def forward(self, features):
        return functional.relu(self.branch(features) + self.shortcut(features))


def _mixer(incoming, outgoing):
    convolution = nn.Conv2d(incoming, outgoing, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outgoing), nn.ReLU())


def _upsampler(kind, incoming, outgoing):
    if kind == "transpose":
        convolution = nn.ConvTranspose2d(incoming, outgoing, 4, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outgoing), nn.ReLU())
    convolution = nn.Conv2d(incoming, 4 * outgoing, 3, padding=1, bias=False)
    with torch.no_grad():  # the four pixels of a place begin equal, or the map begins as a checkerboard
        convolution.weight.copy_(convolution.weight[::4].repeat_interleave(4, 0))
    blur = (nn.ReplicationPad2d((1, 0, 1, 0)), nn.AvgPool2d(2, stride=1)) if kind == "subpixel_blur" else ()
    return nn.Sequential(convolution, nn.BatchNorm2d(4 * outgoing), nn.ReLU(), nn.PixelShuffle(2), *blur)


class MaskGenerator(nn.Module):
    """Feature maps, finest first, -> (N, outputs, h, w) of the finest one's size (DGLE §3.2; four, 7×7 -> 56×56).

    A block for each map but the coarsest, twice as large as the one before: upsample, join the next finer feature map,
    bottleneck. Widths are a quarter of the joining map's `channels`. Of maps of `one_size` (a transformer's) blocks do
    not upsample: a 3×3 convolution stands there. `doublings`: blocks that upsample behind these, where no map joins;
    each halves the width.

    `upsampler`: "subpixel", a pixel shuffle, as the public code of Dabkowski & Gal; with two outputs 20,961,922
    parameters for a ResNet-50. Its four filters of a place drift apart in training and leave a grid in the maps.
    "subpixel_blur", the default: every pixel becomes the mean of a 2×2 box, in which each filter has one (Sugawara et
    al. 2018). "transpose", a transposed convolution, as DGLE words it; it draws a grid, too.
    """

    def __init__(self, channels, *, outputs=1, upsampler="subpixel_blur", one_size=False, doublings=0):
        super().__init__()
        if upsampler not in UPSAMPLERS:
            raise ValueError(f"upsampler {upsampler!r} is unknown; choose one of {', '.join(UPSAMPLERS)}")
        self.upsamplers, self.bottlenecks, incoming = nn.ModuleList(), nn.ModuleList(), channels[-1]
        for joining in reversed(channels[:-1]):
            width = max(1, joining // 4)
            self.upsamplers.append(_mixer(incoming, width) if one_size else _upsampler(upsampler, incoming, width))
            self.bottlenecks.append(Bottleneck(width + joining, width))
            incoming = width
        self.enlarging = nn.ModuleList()
        for _ in range(doublings):
            width = max(1, incoming // 2)
            self.enlarging.append(nn.Sequential(_upsampler(upsampler, incoming, width), Bottleneck(width, width)))
            incoming = width
        self.head = nn.Conv2d(incoming, outputs, 1)

    def forward(self, features):
        *finer, decoded = features
        for upsampler, bottleneck, joining in zip(self.upsamplers, self.bottlenecks, reversed(finer), strict=True):
            decoded = upsampler(decoded)
            if decoded.shape[-2:] != joining.shape[-2:]:  # sizes that do not halve evenly
                decoded = functional.interpolate(decoded, joining.shape[-2:], mode="bilinear", align_corners=False)
            decoded = bottleneck(torch.cat([decoded, joining], 1))
        for enlarge in self.enlarging:
            decoded = enlarge(decoded)
        return self.head(decoded)


class MaskPredictor(nn.Module):
    """Feature filter, generator and controller: features of `layers`, classes (N,) -> map (N, h, w), raw.

    Its layers, channels, classes and the sizes of its maps (`one_size`, `doublings`, as MaskGenerator takes them) are
    those of a target and images' size: make it with `predictor_of`. `controller` is a name of CONTROLLERS ("basic":
    scores from 0, some above 1; "customized" and "mgnet": in [0, 1]), or a function of your own, from what the
    generator answers (N, h, w) to scores from 0 (N, h, w), differentiable; such a predictor cannot be saved.
    `normalisation`: one of NORMALISATIONS, what the first two do first ("instance": the paper's; "quantile":
    their scores follow eq. 7 whatever the generator answers).
    """

    made_for = None  # the target that it belongs to (digests.py)

    def __init__(
        self, layers, channels, classes, *, controller, eta=ETA, exponent=EXPONENT, upsampler="subpixel_blur",
        normalisation="instance", one_size=False, doublings=0,
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (
            ("controller", controller, CONTROLLERS),
            ("normalisation", normalisation, NORMALISATIONS),
        ):
            if value not in known and not (name == "controller" and callable(value)):
                raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
        _require_positive(eta, exponent)
        self.layers, self.channels, self.classes = tuple(layers), tuple(channels), tuple(classes)
        self.controller, self.eta, self.exponent, self.upsampler = controller, eta, exponent, upsampler
        self.normalisation, self.one_size, self.doublings = normalisation, one_size, doublings
        self.filter = FeatureFilter(len(self.classes), self.channels[-1])
        options = {"upsampler": upsampler, "one_size": one_size, "doublings": doublings}
        self.generator = MaskGenerator(self.channels, outputs=2 if controller == "mgnet" else 1, **options)

    def uncontrolled(self, features, classes):
        """What the generator answers, (N, 1 or 2, h, w): the controller makes the map of it."""
        *finer, coarsest = features
        return self.generator([*finer, self.filter(coarsest, classes)])

    def forward(self, features, classes):
        raw, normalise = self.uncontrolled(features, classes), NORMALISATIONS[self.normalisation]
        if self.controller == "mgnet":
            return two_channel_mask(raw)
        if callable(self.controller):
            return self.controller(raw[:, 0])
        if self.controller == "basic":
            return basic_controller(raw[:, 0], normalise=normalise)
        return customized_controller(raw[:, 0], eta=self.eta, exponent=self.exponent, normalise=normalise)


def encoded(model, images, layers):
    """One pass: the maps (N, C, h, w) of `layers` (a list, in their order) and the logits (N, K)."""
    held = {name: layout_of(model, images, name) for name in layers}
    with captured(model, layers, reduce=lambda name, output: held[name].as_map(output).clone()) as maps:
        logits = logits_of(model, images)  # copies, for a ReLU behind a layer may overwrite its output (DenseNet)
    return [maps[name] for name in layers], logits


def decoded_layers(target, images):
    """What a `MaskGenerator` reads of `target` for images (N, 3, H, W) of that size: names of layers, and its options.

    The layers end the four coarsest scales, or fewer where the target has fewer; of a network of one scale, they are
    the last four of `scale_layers`. What the logits do not depend on is not read. Doublings follow until the map has a
    quarter of the image's sides. The options are channels, one_size and doublings. NotApplicable where the target has
    no two such maps.
    """
    with evaluating(target), torch.no_grad():
        features, _ = encoded(target, images[:1], names := list(reached_scales(target, images)))
    places = {features[place].shape[-2:]: place for place in range(len(names))}  # of equal size, the last one
    one_size = len(places) == 1
    places = (range(len(names)) if one_size else list(places.values()))[-SCALES:]
    if len(places) < 2:
        raise NotApplicable(
            f"a mask generator reads two feature maps or more, and {target.architecture} has {len(places)} that the "
            f"logits depend on for images of {images.shape[-2]} x {images.shape[-1]} pixels ({', '.join(names)}); "
            "choose another network, or larger images"
        )
    layers, channels = [names[place] for place in places], [features[place].shape[1] for place in places]
    pixels = images[0, 0].numel() / features[places[0]][0, 0].numel()
    doublings = max(0, round(math.log2(pixels) / 2) - HALVINGS)
    return layers, {"channels": channels, "one_size": one_size, "doublings": doublings}


def predictor_of(target, images, **options):
    """An untrained predictor for `target` and images (N, 3, H, W) of that size, in train mode.

    Reads `decoded_layers`, and raises NotApplicable as they do; the options are MaskPredictor's. The weights follow
    torch's global generator.
    """
    layers, sizes = decoded_layers(target, images)
    predictor = MaskPredictor(layers, classes=target.classes, **sizes, **options)
    predictor.made_for = made_for(target)
    return predictor


def save_predictor(predictor, folder, *, made_with=None):
    """Write `predictor` into `folder` (made if missing): the weights first, then the facts with their SHA-256.

    `made_with`: a JSON-able dict of what made the weights, kept in mask_predictor.json for readers. ValueError for one
    whose controller is a function: no file could say which.
    """
    if callable(predictor.controller):
        raise ValueError("the controller of this predictor is a function, which no file can hold; use it as it is")
    facts = {name: list(getattr(predictor, name)) for name in ("layers", "channels", "classes")}
    facts |= {name: getattr(predictor, name) for name in ("made_for", *OPTIONS, *LATER)}
    stored.write(predictor, folder, KIND, facts, made_with=made_with)


@stored.drawing_nothing
def load_predictor(folder, *, device="cpu"):
    """The predictor that `save_predictor` wrote into `folder`, in eval mode on `device`.

    FileNotFoundError where there is none; ValueError, naming the file, where it is corrupt or does not fit.
    """
    names = ("layers", "channels", "classes")
    facts = stored.facts(folder, KIND, (*names, *OPTIONS))
    options = {name: facts[name] for name in (*OPTIONS, *LATER) if name in facts}
    predictor = MaskPredictor(*(facts[name] for name in names), **options)
    predictor.made_for = facts.get("made_for")
    return stored.read_into(predictor, folder, KIND, facts).to(device)
