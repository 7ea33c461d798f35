"""Attentive knowledge distillation (AKD): its losses, and its trainings as `loop.Task`s made from plain settings.

A student learns to answer as a frozen target does; an explanation network learns, from the student's attention, maps
that keep the target's answer when the image is multiplied by them. First the one, then the other, or both at once.

Settings of every task: data (folder of prepared data), target (folder of a saved target), seed, epochs, batch_size,
learning_rate, schedule ("cosine", or "steps": a tenth after each of `milestones`, in epochs), momentum, weight_decay,
smallest_crop.
"""

from functools import cache, partial

import numpy as np
import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.files import file_name, files_fingerprint
from xai_utils.networks import evaluating, targets
from xai_utils.networks.digests import made_for, require_made_for
from xai_utils.networks.surrogate import OPTIONS, Surrogate, load_surrogate, save_surrogate, surrogate_of
from xai_utils.training import loop
from xai_utils.training.recipes import CHECKPOINTS, Teacher, sgd, share_equal
from xai_utils.training.target import indices_by_name, starting_target, strangers, weights_of

PAPER_PIXELS = 224 * 224  # what λ is given for
EXPLAINED = 32  # images in memory at once, with their maps


def divergence(logits, others):
    """KL(softmax(logits) ‖ softmax(others)) of logits (N, K): summed over classes, mean over the batch (AKD eq. 6)."""
    pair = others.log_softmax(1), logits.log_softmax(1)
    return functional.kl_div(*pair, reduction="batchmean", log_target=True)


def distillation_loss(student_logits, teacher_logits, labels, *, alpha=0.5, temperature=1.0):
    """α t² KL(softmax(z_T/t) ‖ softmax(z_S/t)) + (1 - α) CE(z_S, label), a mean over the batch (AKD eq. 4-7).

    Logits (N, K), labels (N,). ValueError for α outside [0, 1] and t that is not positive.

    Notes: eq. 7 prints the teacher's output in the hard loss, which would be constant; the student's is meant.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give the soft loss's share, 0 to 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a positive number (1: plain probabilities)")
    soft = divergence(teacher_logits / temperature, student_logits / temperature)
    return alpha * temperature**2 * soft + (1 - alpha) * functional.cross_entropy(student_logits, labels)


def explanation_loss(logits, explained_logits, maps, *, l1_weight):
    """KL(softmax(T(x)) ‖ softmax(T(x ⊙ H))) + λ Σ_pixels |H|, a mean over the batch (AKD eq. 8, 9).

    The target's logits (N, K) for the images and for the explained images, maps (N, H, W); λ is `l1_weight`.
    ValueError for λ < 0.

    Notes: eq. 9 prints the student's output; the text requires the target's. ‖H‖₁ is a sum over the pixels, not the
    mean that the paper's Table 3 reports.
    """
    _require_l1_weight(l1_weight)
    return divergence(logits, explained_logits) + l1_weight * maps.abs().sum((1, 2)).mean()


def _require_l1_weight(l1_weight):
    if not l1_weight >= 0:
        raise ValueError(f"l1_weight is {l1_weight}; give 0 (no sparsity) or more, such as the paper's 1e-5")


def explained_images(images, maps, mean):
    """x ⊙ H as a network sees it: images (N, 3, H, W) faded by maps (N, H, W) towards the normalisation's `mean` (3,).

    mean + H (x - mean): the product of H with the normalised image, before it is normalised.
    """
    mean = mean[:, None, None]
    return mean + maps[:, None] * (images - mean)


def explained_classes(target, split, indices, maps):
    """The class (N,) of each image `indices` (N,) of a `Split` times its map, of `maps` (N, H, W), to the target.

    EXPLAINED of them at a time; the maps may lie on disk.
    """
    found = []
    with torch.inference_mode():
        for start in range(0, len(indices), EXPLAINED):
            rows = slice(start, start + EXPLAINED)
            images, part = split.tensor(indices[rows]), torch.from_numpy(np.array(maps[rows]))
            found.append(target(explained_images(images, part, target.mean)).argmax(1))
    return torch.cat(found)


def starting_surrogate(settings: dict) -> Surrogate:
    """The surrogate before any training, in train mode.

    `settings`: data, target, seed, attention, reduction, opened, residual_attention, delta_source (as of `Surrogate`),
    and trunk: an architecture for random weights, a checkpoint's name in data/weights for pretrained ones, or None for
    a copy of the target. Its head is new unless it knows the target's classes. NotApplicable where the trunk has too
    few stages.
    """
    trunk = target = targets.load(settings["target"])
    data = datasets.load(settings["data"])
    split = data.train if len(data.train) else data.validation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        if settings["trunk"] is not None:
            options = {"seed": settings["seed"], "image_size": data.description["image_size"]}
            trunk = starting_target(settings["trunk"], target.classes, **options)
            if trunk.classes != target.classes:  # in another order, or by synset
                kept = indices_by_name(target.classes, trunk.classes)
                trunk = targets.replace_head(trunk, target.classes, kept=kept)
        surrogate = surrogate_of(trunk, split.tensor([0]), **_only(settings, *OPTIONS)).train()
    surrogate.made_for = made_for(target)
    return surrogate


def student_task(settings: dict) -> loop.Task:
    """The student learns the target's answers and the labels; the explanation network waits (AKD eq. 4).

    `settings`: the common ones, those of `starting_surrogate`, alpha, temperature.
    """
    pupil = _Pupil(settings, starting_surrogate(settings))

    def loss(model, batch, generator):
        images, labels = batch
        logits, answers = model.classify(images), pupil.teacher.ask(images)
        distilled = distillation_loss(logits, answers, labels, **_only(settings, "alpha", "temperature"))
        return distilled, {"train_accuracy": share_equal(logits, labels)}

    return pupil.task(loss, pupil.student_scores, pupil.surrogate.student)


def explanation_task(settings: dict, *, loss=explanation_loss) -> loop.Task:
    """The explanation network learns the maps; student and target stay as they are, bit by bit (AKD eq. 8).

    `settings`: the common ones, surrogate (folder of the surrogate whose student is trained), and l1_weight: λ for
    images of 224 × 224 pixels, scaled up for fewer pixels so that a full map costs the same. `loss`: a function of
    your own that takes what `explanation_loss` takes, in its place.
    """
    surrogate = load_surrogate(settings["surrogate"]).requires_grad_(False)  # all in eval mode
    target, advice = targets.load(settings["target"]), "train its student for this target first"
    require_made_for(surrogate, target, settings["surrogate"], advice)
    surrogate.explanation.train().requires_grad_(True)
    pupil = _Pupil(settings, surrogate)

    def explained(model, batch, generator):
        images, _ = batch
        _, maps = model(images)
        return pupil.explain(images, maps, pupil.teacher.ask(images), loss)

    return pupil.task(explained, pupil.explanation_scores, surrogate.explanation)


def joint_task(settings: dict, *, loss=explanation_loss) -> loop.Task:
    """Student and explanation network learn at once (AKD eq. 11): the sum of the other tasks' losses.

    `settings`: those of `student_task`, and l1_weight as in `explanation_task`; so is `loss`.
    """
    pupil = _Pupil(settings, starting_surrogate(settings))

    def joint(model, batch, generator):
        images, labels = batch
        (logits, maps), answers = model(images), pupil.teacher.ask(images)
        distilled = distillation_loss(logits, answers, labels, **_only(settings, "alpha", "temperature"))
        explained, means = pupil.explain(images, maps, answers, loss)
        return distilled + explained, {"train_accuracy": share_equal(logits, labels), **means}

    def validate(model):
        return pupil.student_scores(model) | pupil.explanation_scores(model)

    return pupil.task(joint, validate, pupil.surrogate)


def fit_surrogates(settings: dict, *, loss=None, compute, checkpoint_steps=None, log=None):
    """The surrogates in eval mode, by name, and the histories of their trainings, by name.

    `settings`: data, target, seed, those of `starting_surrogate`, alpha, temperature, joint, l1_weights (name -> λ),
    and for `student` and `explanation` each epochs, batch_size, learning_rate, schedule, milestones, momentum,
    weight_decay, smallest_crop. Staged, one student serves all λ; `joint`, each λ has its own, trained by the
    student's schedule. ValueError for a name that cannot be a file's. `loss`: a function of your own in the place of
    `explanation_loss`: one more explanation network, of the function's name, is trained with it and the first λ. Its
    code, and what that reads, is part of the training's key. ValueError where the name is taken, or several processes
    could not import the function.
    """
    common = _only(settings, "data", "target", "seed")
    student_settings = common | settings["student"]
    student_settings |= _only(settings, "trunk", "alpha", "temperature", *OPTIONS)
    trunk = [weights_of(settings["trunk"])] if settings["trunk"] else []

    def fit(name, make_task, chosen, *folders):
        fitted = loop.fit(
            make_task,
            chosen,
            compute=compute,
            checkpoints=CHECKPOINTS / "distill_surrogate",
            data_hash=files_fingerprint(settings["data"], settings["target"], *trunk, *folders),
            checkpoint_steps=checkpoint_steps,
            log=loop.named(log, name),
        )
        learned = starting_surrogate(student_settings)
        learned.load_state_dict(fitted.weights)
        return learned.eval(), fitted

    make_task = joint_task if settings["joint"] else explanation_task
    tasks = {file_name(name): (weight, make_task) for name, weight in settings["l1_weights"].items()}
    if loss is not None:
        if loss.__name__ in ("student", *tasks):
            raise ValueError(f"a training {loss.__name__!r} exists; give your loss another name")
        tasks[loss.__name__] = next(iter(settings["l1_weights"].values())), partial(make_task, loss=loss)
    if settings["joint"]:
        surrogates, histories = {}, {}
        for name, (weight, make_task) in tasks.items():
            surrogates[name], fitted = fit(name, make_task, student_settings | {"l1_weight": weight})
            histories[name] = fitted.history
        return surrogates, histories
    student, fitted = fit("student", student_task, student_settings)
    surrogates, histories = {}, {"student": fitted.history}
    folder = fitted.folder.with_name(f"{fitted.key}.student")
    save_surrogate(student, folder, made_with=student_settings)
    for name, (weight, make_task) in tasks.items():
        chosen = common | settings["explanation"] | {"surrogate": folder.as_posix(), "l1_weight": weight}
        surrogates[name], fitted = fit(name, make_task, chosen, folder)
        histories[name] = fitted.history
    return surrogates, histories


def _only(settings, *names):
    return {name: settings[name] for name in names}


class _Pupil:
    """The surrogate that learns from its teacher, and how it is judged."""

    def __init__(self, settings, surrogate):
        self.settings, self.surrogate, self.teacher = settings, surrogate, Teacher(settings)
        data, target = self.teacher.data, self.teacher.target
        if alone := strangers(data.classes, target.classes):
            raise ValueError(
                f"the data in {settings['data']} have {len(data.classes)} classes and the target in "
                f"{settings['target']} {len(target.classes)}; only one of them knows {alone[0]!r}: fine-tune a "
                "target on these data first"
            )
        place = indices_by_name(data.classes, surrogate.classes)
        self.train_labels = place[torch.as_tensor(data.train.labels)]
        self.validation_labels = place[torch.as_tensor(data.validation.labels)]
        image = data.train.tensor([0])
        with evaluating(surrogate), torch.no_grad():
            surrogate.classify(image)  # too small an image is refused here, not in the midst of the training
        _require_l1_weight(l1_weight := settings.get("l1_weight", 0.0))
        self.l1_weight = l1_weight * PAPER_PIXELS / image[0, 0].numel()
        self.expected = cache(lambda: self.teacher.held_out(self.teacher.target).argmax(1))  # (N,) always the same

    def task(self, loss, validate, trained):
        """The task whose optimizer is over the parameters of the module `trained`."""
        optimizer = sgd(self.settings)
        options = {"loss": loss, "validate": validate, "optimizer": lambda _: optimizer(trained)}
        return self.teacher.task(self.surrogate, labels=self.train_labels, **options)

    def explained(self, images, maps):
        """The target's logits for the images times their maps."""
        target = self.teacher.target
        return target(explained_images(images, maps, target.mean))

    def explain(self, images, maps, answers, loss):
        """The explanation `loss` of `maps`, and what to log of it."""
        explained = self.explained(images, maps)
        means = {"train_divergence": divergence(answers, explained), "train_intensity": maps.mean()}
        return loss(answers, explained, maps, l1_weight=self.l1_weight), means

    def student_scores(self, model):
        """Shares of the held-out images: answered rightly; as the target does; so where the target is right."""
        expected, labels = self.expected(), self.validation_labels
        predicted = self.teacher.held_out(model.classify).argmax(1)
        agreed, right = (predicted == expected).double(), expected == labels
        return {
            "validation_accuracy": (predicted == labels).double().mean(),
            "validation_agreement": agreed.mean(),
            "validation_agreement_where_right": agreed[right].mean(),
        }

    def explanation_scores(self, model):
        """Over the held-out images: the maps' mean, and the target's probability of its own answer to x ⊙ H."""

        def rows(images):
            _, maps = model(images)
            return torch.cat([maps.mean((1, 2))[:, None], self.explained(images, maps).softmax(1)], 1)

        found = self.teacher.held_out(rows)
        return {
            "validation_intensity": found[:, 0].mean(),
            "validation_probability": found[:, 1:].gather(1, self.expected()[:, None]).mean(),
        }
