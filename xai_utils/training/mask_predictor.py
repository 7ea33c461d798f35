"""DGLE's trainings, as `loop.Task`s made from plain settings: the feature filter, then predictors that share it.

No label is read: the class of an image is the one that the frozen target predicts for it.

Settings of every task: data (folder of prepared data), target (folder of a saved target), seed, epochs, batch_size,
learning_rate, weight_decay, schedule ("halving" every `halve_every` epochs, "steps": a tenth after each of
`milestones`, or "cosine"), smallest_crop, and those of OPTIONS.
"""

from functools import partial

import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.files import files_fingerprint
from xai_utils.images import baseline, perturb, random_backgrounds, resize, scaled_length
from xai_utils.networks import targets
from xai_utils.networks.mask_predictor import encoded, load_predictor, predictor_of, save_predictor
from xai_utils.training import loop
from xai_utils.training.recipes import CHECKPOINTS, Teacher, adam

OPTIONS = ("upsampler", "normalisation", "eta", "exponent")  # of the predictors
CONTROLLER_OF = {"dgle_bf": "basic", "dgle_cf": "customized", "mgnet": "mgnet"}  # predictor -> controller
FILTER_LOSSES = ("logit_mean", "sigmoid_mean")
FAKE_FILTER, FAKE_MGNET = 0.5, 0.3  # shares of images that are asked for a class they do not show
NOISE = 0.015  # standard deviation of the noise on the images, for pixels in [0, 1]


def filter_loss(evidence, real, *, kind="logit_mean"):
    """Does the image show the class? Cross-entropy of the evidence (N, h, w) against `real` (N,) bool (DGLE §3.1).

    "logit_mean": of the mean evidence, a logit (Dabkowski & Gal's code); "sigmoid_mean": of the mean probability, as
    DGLE words it. ValueError for another kind.
    """
    if kind == "logit_mean":
        return functional.binary_cross_entropy_with_logits(evidence.mean((1, 2)), real.to(evidence))
    if kind == "sigmoid_mean":
        probability = evidence.float().sigmoid().mean((1, 2))
        with torch.autocast(evidence.device.type, enabled=False):  # which refuses this loss in half precision
            return functional.binary_cross_entropy(probability, real.to(probability))
    raise ValueError(f"filter_loss {kind!r} is unknown; choose one of {', '.join(FILTER_LOSSES)}")


def roughness(maps):
    """Σ of squared steps between neighbours, and 0.3 Σ of squared border values, halved: (N,) (Dabkowski & Gal's code).

    The border's length is that at 224 pixels; squared steps of a smooth map add up alike at every size.
    """
    steps = maps.diff(dim=1).square().sum((1, 2)) + maps.diff(dim=2).square().sum((1, 2))
    edges = (maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1])
    border = sum(edge.square().sum(1) for edge in edges) / scaled_length(1, maps.shape[-2:])
    return (steps + 0.3 * border) / 2


def mgnet_loss(maps, preserved, destroyed, classes, real, *, area=8.0, area_power=0.3, smoothness=0.005, preserve=0.3):
    """Destroy + `area` mean((M + 0.0005)^`area_power`) + `smoothness` S + `preserve` P, a mean over the batch.

    The loss of Dabkowski & Gal's public code, which DGLE compares itself with as MGnet; S is the `roughness`.

    `maps` (N, H, W) in [0, 1]; logits (N, K) of the image where the map keeps it, and where the map hides it; classes
    asked for (N,); `real` (N,) bool: the image shows that class. Hinges compare its logit with the largest other one:
    the kept image is to lead by 1 and the hidden one to fall behind by 5; for a class not shown, both the other way.
    """

    def lead(logits):
        own = logits.gather(1, classes[:, None])[:, 0]
        return own - logits.scatter(1, classes[:, None], -torch.inf).amax(1)

    sign = torch.where(real, 1.0, -1.0)
    keeps = functional.relu(1 - sign * lead(preserved)).mean()
    margin = torch.where(real, 5.0, 1.0)
    loses = functional.relu(margin + sign * lead(destroyed)).mean()
    lit = ((maps + 0.0005) ** area_power).mean()
    return loses + area * lit + smoothness * roughness(maps).mean() + preserve * keeps


def _selected(predicted, classes, share, generator):
    """The classes (N,) to ask for, a `share` of them uniform among the wrong ones, and which of them are real."""
    draw = torch.rand(2, len(predicted), generator=generator, device=predicted.device)
    real = draw[0] >= share
    others = (predicted + 1 + (draw[1] * (classes - 1)).long().clamp(max=classes - 2)) % classes
    return torch.where(real, predicted, others), real


def filter_task(settings: dict) -> loop.Task:
    """The feature filter learns which places speak for a class (DGLE eq. 10).

    `settings`: the common ones, and filter_loss, a name of FILTER_LOSSES.
    """
    pupil = _Pupil(settings)
    kind = settings["filter_loss"]
    filter_loss(torch.zeros(1, 1, 1), torch.ones(1, dtype=torch.bool), kind=kind)  # an unknown kind is refused now

    def judge(model, pixels, generator):
        features, predicted = pupil.ask(pixels)
        classes, real = _selected(predicted, pupil.classes, FAKE_FILTER, generator)
        evidence = model.evidence(features[-1], classes)
        return evidence, real, ((evidence.mean((1, 2)) > 0) == real).float()

    def loss(model, batch, generator):
        evidence, real, hits = judge(model, *batch, generator)
        return filter_loss(evidence, real, kind=kind), {"train_accuracy": hits.mean()}

    def validate(model):
        def hits(pixels):
            generator = torch.Generator(pixels.device).manual_seed(settings["seed"])
            return judge(model, pixels, generator)[-1][:, None]

        return {"validation_accuracy": pupil.teacher.held_out(hits).mean()}

    return pupil.task(pupil.predictor.filter, loss, validate)


def mask_task(settings: dict, *, controller=None) -> loop.Task:
    """A generator learns maps; the filter and the target stay as they are, bit by bit (DGLE eq. 4; MGnet §5.9).

    `settings`: the common ones, controller, mgnet (weights of its loss, for that controller), and predictor: folder of
    a predictor whose filter is trained. All controllers learn by the cross-entropy of the target's answer to what the
    map keeps, also a function of your own (`controller`, as MaskPredictor takes it, in the place of the one that
    `settings` name); "mgnet" alone by `mgnet_loss` with the weights of `mgnet`.
    """
    controller = controller or settings["controller"]
    pupil = _Pupil(settings, controller=controller)
    predictor = pupil.predictor
    trained = load_predictor(settings["predictor"])
    predictor.filter.load_state_dict(trained.filter.state_dict())
    predictor.filter.requires_grad_(False)
    target, distilled = pupil.teacher.target, controller != "mgnet"

    def loss(model, batch, generator):
        (pixels,) = batch
        features, predicted = pupil.ask(pixels)
        share = 0.0 if distilled else FAKE_MGNET
        classes, real = _selected(predicted, pupil.classes, share, generator)
        maps = resize(model(features, classes), pixels.shape[-2:])
        kept = maps + (maps.clamp(0, 1) - maps).detach()  # scores above 1 show no more, but go on competing
        noise = torch.randn(pixels.shape, generator=generator, device=pixels.device)
        noisy = (pixels + NOISE * noise).clamp(0, 1)
        hidden = random_backgrounds(noisy, generator)
        preserved = target(perturb(noisy, kept, hidden))
        means = {"train_accuracy": (preserved.argmax(1) == predicted).float().mean(), "train_intensity": kept.mean()}
        if distilled:
            return functional.cross_entropy(preserved, predicted), means
        destroyed = target(perturb(noisy, 1 - kept, hidden))
        return mgnet_loss(kept, preserved, destroyed, classes, real, **settings["mgnet"]), means

    def validate(model):
        def rows(pixels):
            features, predicted = pupil.ask(pixels)
            raw = model(features, predicted)
            maps = resize(raw, pixels.shape[-2:]).clamp(0, 1)
            shown = target(perturb(pixels, maps, baseline("blur", target, pixels))).softmax(1)
            kept = shown.gather(1, predicted[:, None])[:, 0]
            return torch.stack([kept, maps.mean((1, 2)), skewness(raw)], 1)

        kept, intensity, skewed = pupil.teacher.held_out(rows).mean(0)
        return {"validation_probability": kept, "validation_intensity": intensity, "validation_skewness": skewed}

    return pupil.task(predictor, loss, validate)


def skewness(maps):
    """The third standardised moment of each map's values, (N,); 0 for a constant map."""
    flat = maps.flatten(1).double()
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    return torch.where(variance > 0, centred.pow(3).mean(1) / variance.clamp(min=1e-300) ** 1.5, 0)


def fit_predictors(settings: dict, *, controller=None, compute, checkpoint_steps=None, log=None):
    """The predictors in eval mode, by name, and the histories of their trainings and the filter's, by name.

    `settings`: data, target, seed, predictors (of CONTROLLER_OF), those of OPTIONS, filter_loss, mgnet, and for
    `filter` and `generator` each epochs, batch_size, learning_rate, weight_decay, schedule, halve_every, milestones,
    smallest_crop. All predictors stand on one filter. `controller`: a function of your own, as MaskPredictor takes it:
    one more predictor, of the function's name, is trained with it. Its code, and what that reads, is part of the
    training's key. ValueError where the name is taken, or several processes could not import the function.
    """
    if controller is not None and controller.__name__ in CONTROLLER_OF:
        raise ValueError(f"a predictor {controller.__name__!r} exists; give your controller another name")
    unknown = [name for name in settings["predictors"] if name not in CONTROLLER_OF]
    if unknown:
        raise ValueError(f"predictor {unknown[0]!r} is unknown; choose among {', '.join(CONTROLLER_OF)}")
    common = {name: settings[name] for name in ("data", "target", "seed", *OPTIONS)}

    def fit(name, make_task, chosen, *folders):
        return loop.fit(
            make_task,
            chosen,
            compute=compute,
            checkpoints=CHECKPOINTS / "train_mask_predictor",
            data_hash=files_fingerprint(settings["data"], settings["target"], *folders),
            checkpoint_steps=checkpoint_steps,
            log=loop.named(log, name),
        )

    filter_settings = common | settings["filter"] | {"filter_loss": settings["filter_loss"]}
    fitted = fit("filter", filter_task, filter_settings)
    histories, predictors = {"filter": fitted.history}, {}
    start = starting_predictor(common, controller="customized")
    start.filter.load_state_dict(fitted.weights)
    folder = fitted.folder.with_name(f"{fitted.key}.filter")
    save_predictor(start, folder, made_with=filter_settings)
    learned = common | settings["generator"] | {"predictor": folder.as_posix()}
    for name in settings["predictors"]:
        chosen = learned | {"controller": CONTROLLER_OF[name]}
        chosen |= {"mgnet": settings["mgnet"]} if name == "mgnet" else {}
        fitted = fit(name, mask_task, chosen, folder)
        predictors[name] = _trained(common, CONTROLLER_OF[name], fitted.weights)
        histories[name] = fitted.history
    if controller is not None:
        name = controller.__name__
        fitted = fit(name, partial(mask_task, controller=controller), learned, folder)
        predictors[name], histories[name] = _trained(common, controller, fitted.weights), fitted.history
    return predictors, histories


def _trained(settings, controller, weights):
    """The predictor with trained weights, in eval mode."""
    predictor = starting_predictor(settings, controller=controller)
    predictor.load_state_dict(weights)
    return predictor.eval()


def starting_predictor(settings, *, controller):
    """The predictor before any training, in train mode; `settings`: data, target, seed and OPTIONS."""
    data, target = datasets.load(settings["data"]), targets.load(settings["target"])
    if not len(data.train):
        raise ValueError(f"{settings['data']} has no training image; set generator.epochs to 0")
    if len(target.classes) < 2:
        raise ValueError(f"the target in {settings['target']} knows one class only; a filter needs two to tell apart")
    options = {name: settings[name] for name in OPTIONS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return predictor_of(target, data.train.tensor([0]), controller=controller, **options).train()


class _Pupil:
    """The predictor that learns from its teacher."""

    def __init__(self, settings, controller="customized"):
        self.settings = settings
        self.predictor = starting_predictor(settings, controller=controller)
        self.teacher = Teacher(settings)
        self.classes = len(self.teacher.target.classes)

    def task(self, model, loss, validate):
        """The task whose optimizer is over those parameters of `model` that are not frozen."""
        return self.teacher.task(model, loss=loss, validate=validate, optimizer=adam(self.settings))

    def ask(self, pixels):
        """The target's features for the predictor, and the classes (N,) that it predicts; without graph."""
        with torch.no_grad():
            features, logits = encoded(self.teacher.target, pixels, self.predictor.layers)
        return features, logits.argmax(1)
