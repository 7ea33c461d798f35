"""Trainings of effect predictors, as `loop.Task`s made from plain settings: by regression on removed regions.

A predictor is shown an image and says what each place adds to the probability of each class; the target is shown the
same image with some places hidden, and what it answers is what the places that stay are to add up to. No label is read.

Settings of every task: data (folder of prepared data), target (folder of a saved target), seed, epochs, batch_size,
learning_rate, weight_decay, schedule ("halving" every `halve_every` epochs, "steps": a tenth after each of
`milestones`, or "cosine"), smallest_crop.
"""

import math

import torch

from xai_utils import datasets
from xai_utils.explainers.shapley import cell_masks, draw_coalitions, efficient
from xai_utils.images import mean, perturb
from xai_utils.networks import encoded, inference_copy, targets
from xai_utils.networks.effect_predictor import effect_predictor_of
from xai_utils.training import loop
from xai_utils.training.recipes import Teacher, adam
from xai_utils.training.surrogate import divergence


def surrogate_task(settings: dict) -> loop.Task:
    """A copy of the target learns to answer images with hidden cells as the target answers whole ones (FastSHAP §3.2).

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
    """A predictor learns the Shapley values of a grid's cells (FastSHAP eq. 4 and 5).

    min E (v(S) - v(none) - Σ_{i in S} φ_i)²,   S drawn by the Shapley kernel, φ the predictor's values, `efficient`

    v is the softmax probability of the judge: of the target, or of a `surrogate` in its place (a folder, or None).
    Hidden cells show the mean colour. `settings`: the common ones, cells (of a side), pairs (of coalitions, of an image
    each time), surrogate.

    Notes: the paper draws a class at random; a pass answers all, and their sum is the same loss with less noise. Of a
    pair S and the rest R the values add up to v(all) - v(none) whatever they are, so that the two squares are half of

    (v(S) - v(R) - Σ_{i in S} φ_i + Σ_{i in R} φ_i)²

    and a term without φ: this is what is minimised. What adds up needs no penalty (eq. 6).
    """
    pupil = _Pupil(settings)

    def pairs(pixels, size, generator):
        shown = draw_coalitions(len(pixels), math.prod(size), generator)[0]
        return cell_masks(shown, pixels.shape[-2:]).float(), shown.unflatten(1, size).float()

    def values(model, pixels):
        effects, gained = model(pupil.features(pixels)), pupil.judge(pixels).softmax(1) - model.nothing
        return efficient(effects.flatten(2), gained).view_as(effects)

    return pupil.task(values, pairs)


class _Pupil:
    """The predictor that learns, and whom it asks: the teacher's target for features, the `judge` for answers."""

    def __init__(self, settings):
        self.settings, self.teacher = settings, Teacher(settings)
        target, image = self.teacher.target, self.teacher.data.train.tensor([0])
        judge = settings["surrogate"]
        self.judge = target if judge is None else inference_copy(targets.load(judge), image)
        self.predictor = starting_effect_predictor(settings)
        with torch.no_grad():
            self.predictor.nothing.copy_(self.judge(mean(self.judge, image)).softmax(1)[0])

    def features(self, pixels):
        """The target's features for the predictor, without graph."""
        with torch.no_grad():
            return encoded(self.teacher.target, pixels, self.predictor.layers)[0]

    def task(self, values, pairs):
        """The task to predict what the judge's answers gain from a set of places over the rest.

        values(model, pixels) -> (N, K, h, w). pairs(pixels, (h, w), generator) -> what is shown of the pixels
        (N, H, W) and of the places (N, h, w), in [0, 1]; the other image of the pair shows what this one hides.
        """

        def errors(model, pixels, generator):
            """Of each pair what is predicted amiss, and what was to be predicted: (N, pairs, K)."""
            predicted, hidden = values(model, pixels), mean(self.judge, pixels)
            wrong, told = [], []
            for _ in range(self.settings["pairs"]):
                shown, places = pairs(pixels, predicted.shape[-2:], generator)
                with torch.no_grad():
                    both = torch.cat([perturb(pixels, each, hidden) for each in (shown, 1 - shown)])
                    first, second = self.judge(both).softmax(1).chunk(2)
                told.append(first - second)
                wrong.append(torch.einsum("nkhw,nhw->nk", predicted, 2 * places - 1) - told[-1])
            return torch.stack(wrong, 1), torch.stack(told, 1)

        def loss(model, batch, generator):
            wrong, told = errors(model, *batch, generator)
            explained = 1 - wrong.detach().square().sum() / told.square().sum()
            return wrong.square().sum(2).mean(), {"train_explained": explained}

        def validate(model):
            def rows(pixels):
                generator = torch.Generator(pixels.device).manual_seed(self.settings["seed"])
                squares = [each.square().sum((1, 2)) for each in errors(model, pixels, generator)]
                return torch.stack(squares, 1)

            wrong, told = self.teacher.held_out(rows).double().sum(0)
            return {"validation_explained": 1 - wrong / told}

        options = {"loss": loss, "validate": validate, "optimizer": adam(self.settings)}
        task = self.teacher.task(self.predictor, **options)
        task.frozen = [self.teacher.target, self.judge]
        return task


def starting_effect_predictor(settings):
    """The predictor before any training, in train mode; `settings`: data, target, seed, cells."""
    data, target = datasets.load(settings["data"]), targets.load(settings["target"])
    if not len(data.train):
        raise ValueError(f"{settings['data']} has no training image; set epochs to 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return effect_predictor_of(target, data.train.tensor([0]), cells=settings["cells"]).train()
