"""Trainings of effect predictors, as `loop.Task`s made from plain settings: by regression on removed regions.

A predictor is shown an image and says what each place adds to the probability of a class; the target is shown the same
image with some places hidden, and what it answers is what the places that stay are to add up to. No label is read.

Settings of every task: data (folder of prepared data), target (folder of a saved target), seed, epochs, batch_size,
learning_rate, weight_decay, schedule ("halving" every `halve_every` epochs, "steps": a tenth after each of
`milestones`, or "cosine"), smallest_crop.
"""

import math
from functools import partial

import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.explainers.masking import rise_masks
from xai_utils.explainers.shapley import cell_masks, draw_coalitions, efficient
from xai_utils.files import files_fingerprint
from xai_utils.images import blur, mean, perturb, resize
from xai_utils.networks import encoded, inference_copy, targets
from xai_utils.networks.effect_predictor import effect_predictor_of
from xai_utils.training import loop
from xai_utils.training.recipes import CHECKPOINTS, Teacher, adam
from xai_utils.training.surrogate import divergence

DENSITIES = (0.1, 0.9)  # of what soft masks show
BUDGETS = (0.05, 0.95)  # shares of the pixels that are shown first
STEEPNESS = 4.0  # of the edge between shown and hidden, in standard deviations of an image's effects
LEAST = 1e-4  # probability that is left: a loss of 9 at most


def surrogate_task(settings: dict) -> loop.Task:
    """A copy of the target learns to answer images with hidden cells as the target answers whole ones (FastSHAP).

    min KL(softmax(z_T(x)) ‖ softmax(z(x_S))),   S of 0 to d cells, each number as probable, hidden ones the mean colour

    A target that was never shown hidden regions may answer them with anything; the surrogate answers with what is left
    to know. `settings`: the common ones, and cells, of a side.
    """
    teacher, model, cells = Teacher(settings), targets.load(settings["target"]).train(), settings["cells"]

    def hidden(pixels, generator):
        drawn = torch.rand(2, len(pixels), cells**2, generator=generator, device=pixels.device)
        sizes = (drawn[0, :, :1] * (cells**2 + 1)).long()
        coalitions = drawn[1].argsort(1).argsort(1) < sizes
        return perturb(pixels, cell_masks(coalitions, pixels.shape[-2:]), mean(teacher.target, pixels))

    def loss(model, batch, generator):
        (pixels,) = batch
        answers, answered = teacher.ask(pixels), model(hidden(pixels, generator))
        agreed = (answered.detach().argmax(1) == answers.argmax(1)).float().mean()
        return divergence(answers, answered), {"train_agreement": agreed}

    def validate(model):
        def rows(pixels):
            answers = teacher.ask(pixels).argmax(1)
            generator = torch.Generator(pixels.device).manual_seed(settings["seed"])
            asked = (pixels, hidden(pixels, generator))
            return torch.stack([model(each).argmax(1) == answers for each in asked], 1)

        whole, masked = teacher.held_out(rows).mean(0)
        return {"validation_agreement": whole, "validation_agreement_hidden": masked}

    return teacher.task(model, loss=loss, validate=validate, optimizer=adam(settings))


def shapley_task(settings: dict) -> loop.Task:
    """A predictor learns the Shapley values of a grid's cells (FastSHAP).

    min E (v(S) - v(none) - Σ_{i in S} φ_i)²,   S drawn by the Shapley kernel, φ the predictor's values, `efficient`

    v is the softmax probability, of a class drawn uniformly for each image, of the judge: of the target, or of a
    `surrogate` in its place (a folder, or None). Hidden cells show the mean colour. `settings`: the common ones, cells
    (of a side), pairs (of coalitions, of an image each time), surrogate.

    Notes: of a pair S and the rest R the values add up to v(all) - v(none) whatever they are, so that the two squares
    are half of

    (v(S) - v(R) - Σ_{i in S} φ_i + Σ_{i in R} φ_i)²

    and a term without φ: this is what is minimised. What adds up needs no penalty for the gap.
    """
    pupil = _Pupil(settings)

    def masks(pixels, size, generator):
        shown = draw_coalitions(len(pixels), math.prod(size), generator)[0]
        return cell_masks(shown, pixels.shape[-2:]).float(), shown.unflatten(1, size).float()

    def predict(model, pixels, generator):
        features, predicted = pupil.ask(pixels)
        classes = torch.randint(pupil.classes, predicted.shape, generator=generator, device=pixels.device)
        effects, whole = model(features, classes), pupil.judge(pixels).softmax(1)
        gained = whole.gather(1, classes[:, None])[:, 0] - model.nothing[classes]
        return efficient(effects.flatten(1), gained).view_as(effects)[:, None], classes[:, None]

    return pupil.task(predict, masks)


def effect_task(settings: dict) -> loop.Task:
    """A predictor learns what removing each of its own places does: how much, by regression; in which order, by showing
    and hiding what it ranks first.

    min E Σ_c (v_c(x ⊙ m) - v_c(x ⊙ (1 - m)) - Σ_u φ_u (2 m_u - 1))² + `order_weight` E `order_loss`

    v are the target's softmax probabilities, c the class that it predicts and another one, drawn; m `soft_masks` of
    `grains`; hidden pixels show the mean colour. The second term sees neither scale nor offset of φ, which the first
    gives. `settings`: the common ones, grains (cells of a side), pairs (of masks, of an image each time), order_weight.
    """
    pupil = _Pupil(settings | {"cells": 0, "surrogate": None})
    target, weight = pupil.teacher.target, settings["order_weight"]

    def masks(pixels, size, generator):
        shown = soft_masks(len(pixels), pixels.shape[-2:], grains=settings["grains"], generator=generator)
        return shown, functional.adaptive_avg_pool2d(shown[:, None], size)[:, 0]

    def predict(model, pixels, generator):
        features, predicted = pupil.ask(pixels)
        steps = torch.randint(1, pupil.classes, predicted.shape, generator=generator, device=pixels.device)
        classes = torch.stack([predicted, (predicted + steps) % pupil.classes], 1)
        effects = model([each.repeat_interleave(2, 0) for each in features], classes.flatten())
        return effects.unflatten(0, classes.shape), classes

    def order(effects, classes, pixels, generator):
        """The loss of the order of the predicted class's effects, the first of each image."""
        kept = budget_masks(resize(effects[:, 0], pixels.shape[-2:]), generator)
        shown = target(perturb(pixels, kept, blur(None, pixels)))
        hidden = target(perturb(pixels, 1 - kept, mean(target, pixels)))
        return weight * order_loss(shown, hidden, classes[:, 0])

    return pupil.task(predict, masks, order if weight else None)


def soft_masks(number, size, *, grains, generator):
    """RISE's masks (number, H, W) in [0, 1] of one of `grains` cells a side, each of a density of its own.

    The grain is drawn once, the density uniformly in DENSITIES, the cells with that probability, then the shift.
    """
    draw = partial(torch.rand, generator=generator, device=generator.device)
    cells, (low, high) = grains[int(draw(1) * len(grains))], DENSITIES
    grids = (draw(number, cells, cells) < low + (high - low) * draw(number, 1, 1)).float()
    cell = torch.tensor([math.ceil(side / cells) for side in size], device=generator.device)
    return rise_masks(grids, (draw(number, 2) * cell).long().minimum(cell - 1), size)


def budget_masks(effects, generator):
    """Masks (N, H, W) in (0, 1) that show the pixels of the largest `effects` (N, H, W), a share drawn in BUDGETS.

    σ(STEEPNESS (φ - φ_q) / std φ),   φ_q the effect of which a share q of the pixels have more

    Neither what is added to an image's effects nor what multiplies them changes its mask.
    """
    flat, (low, high) = effects.flatten(1), BUDGETS
    shares = low + (high - low) * torch.rand(len(flat), 1, generator=generator, device=flat.device)
    places = (shares * flat.shape[1]).long()
    edges = flat.detach().sort(1, descending=True).values.gather(1, places)
    spread = flat.std(1, keepdim=True) + 1e-12
    return torch.sigmoid(STEEPNESS * (flat - edges) / spread).view_as(effects)


def order_loss(shown, hidden, classes):
    """CE of the class where the first pixels are shown, and -ln(1 - p) of it where they are hidden; a mean.

    Logits (N, K) of the two images, classes (N,). Over all budgets these are insertion and deletion, as logarithms.
    """
    left = hidden.softmax(1).gather(1, classes[:, None])[:, 0]
    return functional.cross_entropy(shown, classes) - torch.log1p(-left.clamp(max=1 - LEAST)).mean()


def fit_effect_predictors(settings: dict, *, compute, checkpoint_steps=None, log=None):
    """The predictors in eval mode, by name, and the histories of their trainings and the surrogate's, by name.

    `settings`: data, target, seed, cells (name -> FastSHAP's cells of a side), order_weights (name -> `order_weight` of
    our predictors), grains, pairs, and for `surrogate` and `predictor` each epochs, batch_size, learning_rate,
    weight_decay, schedule, halve_every, milestones, smallest_crop. FastSHAP's learn from one surrogate of the first's
    cells, or, where it has no epochs, from the target.
    """
    common = {name: settings[name] for name in ("data", "target", "seed")}

    def fit(name, make_task, chosen, *folders):
        return loop.fit(
            make_task,
            chosen,
            compute=compute,
            checkpoints=CHECKPOINTS / "train_effect_predictor",
            data_hash=files_fingerprint(settings["data"], settings["target"], *folders),
            checkpoint_steps=checkpoint_steps,
            log=loop.named(log, name),
        )

    histories, predictors, judges = {}, {}, []
    if settings["surrogate"]["epochs"] and settings["cells"]:
        chosen = common | settings["surrogate"] | {"cells": next(iter(settings["cells"].values()))}
        fitted = fit("surrogate", surrogate_task, chosen)
        surrogate = targets.load(settings["target"])
        surrogate.load_state_dict(fitted.weights)
        judges = [fitted.folder.with_name(f"{fitted.key}.surrogate")]
        targets.save(surrogate.eval(), judges[0], made_with=chosen)
        histories["surrogate"] = fitted.history
    learned = common | settings["predictor"] | {"pairs": settings["pairs"]}
    judged, ours = {"surrogate": judges[0].as_posix() if judges else None}, {"grains": settings["grains"]}
    asked = {name: (shapley_task, judged | {"cells": each}, judges) for name, each in settings["cells"].items()}
    for name, weight in settings["order_weights"].items():
        asked[name] = (effect_task, ours | {"order_weight": weight}, [])
    for name, (make_task, chosen, read) in asked.items():
        fitted = fit(name, make_task, learned | chosen, *read)
        predictors[name] = starting_effect_predictor(common | {"cells": 0} | chosen).eval()
        predictors[name].load_state_dict(fitted.weights)
        histories[name] = fitted.history
    return predictors, histories


def starting_effect_predictor(settings):
    """The predictor before any training, in train mode; `settings`: data, target, seed, cells."""
    data, target = datasets.load(settings["data"]), targets.load(settings["target"])
    if not len(data.train):
        raise ValueError(f"{settings['data']} has no training image; set predictor.epochs to 0")
    if len(target.classes) < 2:
        raise ValueError(f"the target in {settings['target']} knows one class only; hiding changes nothing of it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return effect_predictor_of(target, data.train.tensor([0]), cells=settings["cells"]).train()


class _Pupil:
    """The predictor that learns, and whom it asks: the teacher's target for features, the `judge` for answers."""

    def __init__(self, settings):
        self.settings, self.teacher = settings, Teacher(settings)
        target, image = self.teacher.target, self.teacher.data.train.tensor([0])
        judge = settings["surrogate"]
        self.judge = target if judge is None else inference_copy(targets.load(judge), image)
        self.predictor, self.classes = starting_effect_predictor(settings), len(target.classes)
        with torch.no_grad():
            self.predictor.nothing.copy_(self.judge(mean(self.judge, image)).softmax(1)[0])

    def ask(self, pixels):
        """The target's features for the predictor, and the classes (N,) that it predicts; without graph."""
        with torch.no_grad():
            features, logits = encoded(self.teacher.target, pixels, self.predictor.layers)
        return features, logits.argmax(1)

    def errors(self, effects, classes, pixels, masks, generator):
        """What `effects` (N, A, h, w) of A classes say amiss of pairs of masks, and what is right: (N, pairs, A)."""
        hidden, wrong, told = mean(self.judge, pixels), [], []
        for _ in range(self.settings["pairs"]):
            shown, places = masks(pixels, effects.shape[-2:], generator)
            with torch.no_grad():
                both = torch.cat([perturb(pixels, each, hidden) for each in (shown, 1 - shown)])
                first, second = self.judge(both).softmax(1).chunk(2)
            told.append((first - second).gather(1, classes))
            wrong.append(torch.einsum("nahw,nhw->na", effects, 2 * places - 1) - told[-1])
        return torch.stack(wrong, 1), torch.stack(told, 1)

    def task(self, predict, masks, further=None):
        """The task to predict what the judge's answers gain from the places that a mask shows over those that it hides.

        predict(model, pixels, generator) -> effects (N, A, h, w), classes (N, A). masks(pixels, (h, w), generator) ->
        what is shown of the pixels (N, H, W) and of the places (N, h, w), in [0, 1]. `further`(effects, classes,
        pixels, generator): a loss beside the squares.
        """

        def loss(model, batch, generator):
            (pixels,) = batch
            effects, classes = predict(model, pixels, generator)
            wrong, _ = self.errors(effects, classes, pixels, masks, generator)
            squares = wrong.square().sum(2).mean()
            more = further(effects, classes, pixels, generator) if further else squares.new_zeros(())
            return squares + more, {"train_squares": squares, "train_order": more}

        def validate(model):
            def rows(pixels):
                generator = torch.Generator(pixels.device).manual_seed(self.settings["seed"])
                found = self.errors(*predict(model, pixels, generator), pixels, masks, generator)
                return torch.stack([each.square().sum((1, 2)) for each in found], 1)

            wrong, told = self.teacher.held_out(rows).double().sum(0)
            return {"validation_explained": 1 - wrong / told}

        options = {"loss": loss, "validate": validate, "optimizer": adam(self.settings)}
        task = self.teacher.task(self.predictor, **options)
        task.frozen = [self.teacher.target, self.judge]
        return task
