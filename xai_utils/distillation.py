"""Attentive knowledge distillation (AKD): its losses, and its trainings as `training.Task`s made from plain settings.

A student learns to answer as a frozen target does; an explanation network learns, from the student's attention, maps
that keep the target's answer when the image is multiplied by them. First the one, then the other, or both at once.

Settings of every task: data (folder of prepared data), target (folder of a saved target), seed, epochs, batch_size,
learning_rate, schedule ("cosine", or "steps": a tenth after each of `milestones`, in epochs), momentum, weight_decay,
smallest_crop.
"""

from functools import cache
from pathlib import Path

import torch
from torch.nn import functional

from xai_utils import datasets, distributed, networks, tasks, training
from xai_utils.networks import architectures, attention, inference, layers, surrogate, targets
from xai_utils.networks.surrogate import OPTIONS, Surrogate, load_surrogate, save_surrogate

CHECKPOINTS = tasks.CHECKPOINTS / "distill_surrogate"
CODE = (Path(__file__), tasks, datasets, architectures, attention, inference, layers, surrogate, targets)
PAPER_PIXELS = 224 * 224  # what λ is given for


def _divergence(logits, others):
    """KL(softmax(logits) ‖ softmax(others)), summed over the classes, mean over the batch."""
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
    soft = _divergence(teacher_logits / temperature, student_logits / temperature)
    return alpha * temperature**2 * soft + (1 - alpha) * functional.cross_entropy(student_logits, labels)


def explanation_loss(logits, explained_logits, maps, *, l1_weight):
    """KL(softmax(T(x)) ‖ softmax(T(x ⊙ H))) + λ Σ_pixels |H|, a mean over the batch (AKD eq. 8, 9).

    The target's logits (N, K) for the images and for the explained images, maps (N, H, W); λ is `l1_weight`.
    ValueError for λ < 0.

    Notes: eq. 9 prints the student's output; the text requires the target's. ‖H‖₁ is a sum over the pixels, not the
    mean that the paper's Table 3 reports.
    """
    _require_l1_weight(l1_weight)
    return _divergence(logits, explained_logits) + l1_weight * maps.abs().sum((1, 2)).mean()


def _require_l1_weight(l1_weight):
    if not l1_weight >= 0:
        raise ValueError(f"l1_weight is {l1_weight}; give 0 (no sparsity) or more, such as the paper's 1e-5")


def explained_images(images, maps, mean):
    """x ⊙ H as a network sees it: images (N, 3, H, W) faded by maps (N, H, W) towards the normalisation's `mean` (3,).

    mean + H (x - mean): the product of H with the normalised image, before it is normalised.
    """
    mean = mean[:, None, None]
    return mean + maps[:, None] * (images - mean)


def starting_surrogate(settings: dict) -> Surrogate:
    """The surrogate before any training, in train mode.

    `settings`: target, seed, attention, residual_attention, delta_source (the options of `Surrogate`), and trunk: a
    ResNet's name for random weights, a checkpoint's in data/weights for pretrained ones, or None for a copy of the
    target. Its head is new unless it knows exactly the target's classes.
    """
    trunk = target = targets.load(settings["target"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        if settings["trunk"] is not None:
            trunk = tasks.starting_target(settings["trunk"], target.classes, seed=settings["seed"])
            if trunk.classes != target.classes:
                trunk = targets.replace_head(trunk, target.classes)
        return Surrogate(trunk, **_only(settings, *OPTIONS)).train()


def student_task(settings: dict) -> training.Task:
    """The student learns the target's answers and the labels; the explanation network waits (AKD eq. 4).

    `settings`: the common ones, those of `starting_surrogate`, alpha, temperature.
    """
    lesson = _Lesson(settings, starting_surrogate(settings))

    def loss(model, batch, generator):
        images, labels = batch
        logits = model.classify(images)
        distilled = distillation_loss(logits, lesson.ask(images), labels, **_only(settings, "alpha", "temperature"))
        return distilled, {"train_accuracy": _share_equal(logits, labels)}

    return lesson.task(loss, lesson.student_scores, lesson.surrogate.student)


def explanation_task(settings: dict) -> training.Task:
    """The explanation network learns the maps; student and target stay as they are, bit by bit (AKD eq. 8).

    `settings`: the common ones, surrogate (folder of the surrogate whose student is trained), and l1_weight: λ for
    images of 224 × 224 pixels, scaled up for fewer pixels so that a full map costs the same.
    """
    classes = targets.load(settings["target"]).classes
    pupil = load_surrogate(settings["surrogate"], classes=classes).requires_grad_(False)  # all in eval mode
    pupil.explanation.train().requires_grad_(True)
    lesson = _Lesson(settings, pupil)

    def loss(model, batch, generator):
        images, _ = batch
        _, maps = model(images)
        return lesson.explain(images, maps, lesson.ask(images))

    return lesson.task(loss, lesson.explanation_scores, pupil.explanation)


def joint_task(settings: dict) -> training.Task:
    """Student and explanation network learn at once (AKD eq. 11): the sum of the other tasks' losses.

    `settings`: those of `student_task`, and l1_weight as in `explanation_task`.
    """
    lesson = _Lesson(settings, starting_surrogate(settings))

    def loss(model, batch, generator):
        images, labels = batch
        (logits, maps), answers = model(images), lesson.ask(images)
        distilled = distillation_loss(logits, answers, labels, **_only(settings, "alpha", "temperature"))
        explained, means = lesson.explain(images, maps, answers)
        return distilled + explained, {"train_accuracy": _share_equal(logits, labels), **means}

    def validate(model):
        return lesson.student_scores(model) | lesson.explanation_scores(model)

    return lesson.task(loss, validate, lesson.surrogate)


def fit_surrogates(settings: dict, *, compute, checkpoint_steps=None, log=None):
    """The surrogates in eval mode, by name, and the histories of their trainings, by name.

    `settings`: data, target, seed, those of `starting_surrogate`, alpha, temperature, joint, l1_weights (name -> λ),
    and for `student` and `explanation` each epochs, batch_size, learning_rate, schedule, milestones, momentum,
    weight_decay, smallest_crop. Staged, one student serves all λ; `joint`, each λ has its own, trained by the
    student's schedule.
    """
    common = _only(settings, "data", "target", "seed")
    lesson = common | settings["student"]
    lesson |= _only(settings, "trunk", "alpha", "temperature", *OPTIONS)
    trunk = [tasks.weights_of(settings["trunk"])] if settings["trunk"] else []

    def fit(make_task, chosen, *folders):
        fitted = training.fit(
            make_task,
            chosen,
            compute=compute,
            checkpoints=CHECKPOINTS,
            code=CODE,
            data_hash=tasks.files_fingerprint(settings["data"], settings["target"], *trunk, *folders),
            checkpoint_steps=checkpoint_steps,
            log=log,
        )
        learned = starting_surrogate(lesson)
        learned.load_state_dict(fitted.weights)
        return learned.eval(), fitted

    weights = settings["l1_weights"]
    if settings["joint"]:
        results = {name: fit(joint_task, lesson | {"l1_weight": weight}) for name, weight in weights.items()}
        return {name: pair[0] for name, pair in results.items()}, {
            name: pair[1].history for name, pair in results.items()
        }
    student, fitted = fit(student_task, lesson)
    surrogates, histories = {}, {"student": fitted.history}
    folder = fitted.folder.with_name(f"{fitted.key}.student")
    save_surrogate(student, folder, made_with=lesson)
    for name, weight in weights.items():
        chosen = common | settings["explanation"] | {"surrogate": folder.as_posix(), "l1_weight": weight}
        surrogates[name], fitted = fit(explanation_task, chosen, folder)
        histories[name] = fitted.history
    return surrogates, histories


def _only(settings, *names):
    return {name: settings[name] for name in names}


def _share_equal(logits, labels):
    return (logits.detach().argmax(1) == labels).float().mean()


class _Lesson:
    """What the tasks share: the data, the frozen teacher, the surrogate that learns, and how it is judged."""

    def __init__(self, settings, surrogate):
        self.settings, self.surrogate = settings, surrogate
        self.data = data = datasets.load(settings["data"])
        target = targets.load(settings["target"])
        if strangers := sorted({*data.classes} ^ {*target.classes}):
            raise ValueError(
                f"the data in {settings['data']} have {len(data.classes)} classes and the target in "
                f"{settings['target']} {len(target.classes)}; only one of them knows {strangers[0]!r}: fine-tune a "
                "target on these data first"
            )
        if not len(data.train):
            raise ValueError(f"{settings['data']} has no training image; prepare some")
        place = tasks.class_indices(data.classes, surrogate.classes)
        self.train_labels = place[torch.as_tensor(data.train.labels)]
        self.validation_labels = place[torch.as_tensor(data.validation.labels)]
        surrogate.to(memory_format=torch.channels_last)
        image = data.train.tensor([0])
        with networks.evaluating(surrogate), torch.no_grad():
            surrogate.classify(image)  # too small an image is refused here, not in the midst of the training
        self.teacher = networks.inference_copy(target, image)
        _require_l1_weight(l1_weight := settings.get("l1_weight", 0.0))
        self.l1_weight = l1_weight * PAPER_PIXELS / image[0, 0].numel()
        self.expected = cache(lambda: self.held_out(self.teacher).argmax(1))  # (N,) the same after every epoch

    def task(self, loss, validate, trained):
        """The task whose optimizer is over the parameters of the module `trained`."""
        settings = self.settings

        def batch(indices, generator):
            images = self.data.train.tensor(indices)
            images = tasks.augmented(images, generator, smallest_crop=settings["smallest_crop"])
            return images, self.train_labels[indices]

        return training.Task(
            model=self.surrogate,
            examples=len(self.train_labels),
            batch=batch,
            loss=loss,
            validate=validate if len(self.data.validation) else None,
            optimizer=lambda _: tasks.sgd(settings)(trained),
            schedule=tasks.learning_rate_factor(settings),
            frozen=[self.teacher],
            **_only(settings, "epochs", "batch_size"),
        )

    def ask(self, images):
        """The teacher's logits (N, K), without graph."""
        with torch.no_grad():
            return self.teacher(images)

    def explain(self, images, maps, answers):
        """The explanation loss of `maps`, and what to log of it."""
        explained = self.teacher(explained_images(images, maps, self.teacher.mean))
        means = {"train_divergence": _divergence(answers, explained), "train_intensity": maps.mean()}
        return explanation_loss(answers, explained, maps, l1_weight=self.l1_weight), means

    def held_out(self, function):
        """The rows of `function(images) -> (n, k)` for the held-out images, on the CPU; shared by the processes."""
        split, device = self.data.validation, self.teacher.mean.device
        return distributed.map_in_order(
            lambda indices: function(split.tensor(indices).to(device)).float().cpu(),
            len(split),
            batch_size=tasks.VALIDATION_BATCH,
        )

    def student_scores(self, model):
        """Shares of the held-out images: answered rightly; as the target does; so where the target is right."""
        expected, labels = self.expected(), self.validation_labels
        predicted = self.held_out(model.classify).argmax(1)
        agreed, right = (predicted == expected).double(), expected == labels
        return {
            "validation_accuracy": (predicted == labels).double().mean(),
            "validation_agreement": agreed.mean(),
            "validation_agreement_where_right": agreed[right].mean(),
        }

    def explanation_scores(self, model):
        """Over the held-out images: the maps' mean, and the target's probability of its own answer to x ⊙ H."""

        def explained(images):
            _, maps = model(images)
            probabilities = self.teacher(explained_images(images, maps, self.teacher.mean)).softmax(1)
            return torch.cat([maps.mean((1, 2))[:, None], probabilities], 1)

        rows = self.held_out(explained)
        return {
            "validation_intensity": rows[:, 0].mean(),
            "validation_probability": rows[:, 1:].gather(1, self.expected()[:, None]).mean(),
        }
