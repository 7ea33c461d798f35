"""Training of AMG's gates (networks/attention_gate.py) on a frozen target, as a `training.Task` of plain settings.

Only the gates learn, from the target's own answers; no label is read. Two objectives:

cross_entropy   with gated activations in their place, the target is to predict what it predicts without gates
mask            the image times the map (stretched to [0, 1]) is to keep the target's prediction, with a dim map

Settings: data (folder of prepared data), target (folder of a saved target), seed, layer (None: `cam_layer`), objective,
gate_input, intensity_weight (of the mean of the map, "mask" alone; 0.1), epochs (5), batch_size (128), learning_rate
(0.01), schedule ("steps": a tenth after each of `milestones`, [4], in epochs; or "cosine"), momentum (0.9),
weight_decay (1e-4), smallest_crop. In brackets: what we train with at the paper's size, for the paper says nothing.
"""

from pathlib import Path

import torch
from torch.nn import functional

from xai_utils import datasets, distributed, images, networks, tasks, training
from xai_utils.explainers import attention_gate as explainer
from xai_utils.explainers import cam
from xai_utils.networks import architectures, attention, attention_gate, inference, layers, targets

CHECKPOINTS = tasks.CHECKPOINTS / "train_attention"
CODE = (
    Path(__file__), tasks, datasets, images, explainer, cam, architectures, attention, attention_gate, inference,
    layers, targets,
)  # fmt: skip


def starting_gate(settings: dict) -> networks.AttentionGate:
    """The gate before any training, in train mode; `settings`: data, target, seed, layer, objective, gate_input."""
    target, data = targets.load(settings["target"]), datasets.load(settings["data"])
    split = data.train if len(data.train) else data.validation
    options = {name: settings[name] for name in ("layer", "objective", "gate_input")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return attention_gate.gate_for(target, split.tensor([0]), **options).train()


def gate_task(settings: dict) -> training.Task:
    """The gates learn; the target stays as it is, bit by bit.

    cross_entropy: CE(z'(x), c), where z' are the logits with M_s ⊙ M_c ⊙ A in the place of A, and c = argmax z(x)
    mask: CE(z(x ⊙ L), c) + `intensity_weight` mean(L), where L is the map for c, stretched to [0, 1] and resized

    ValueError for the objective "none" and for data without training images.

    Notes: the paper does not say how its attention is trained. x ⊙ L is made of pixels: what fades becomes black.
    SGD is Nesterov's, as in all trainings here.
    """
    lesson = _Lesson(settings)

    def batch(indices, generator):
        crops = lesson.data.train.tensor(indices)
        return (tasks.augmented(crops, generator, smallest_crop=settings["smallest_crop"]),)

    return training.Task(
        model=lesson.gate,
        examples=len(lesson.data.train),
        batch=batch,
        loss=lesson.loss,
        validate=lesson.scores if len(lesson.data.validation) else None,
        optimizer=tasks.sgd(settings),
        schedule=tasks.learning_rate_factor(settings),
        frozen=[lesson.target],
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
    )


def fit_gate(settings: dict, *, compute, checkpoint_steps=None, log=None):
    """The trained gate in eval mode, and the history of its training; objective "none" has nothing to train."""
    gate = starting_gate(settings)
    if settings["objective"] == "none":
        return gate.eval(), []
    fitted = training.fit(
        gate_task,
        settings,
        compute=compute,
        checkpoints=CHECKPOINTS,
        code=CODE,
        data_hash=tasks.files_fingerprint(settings["data"], settings["target"]),
        checkpoint_steps=checkpoint_steps,
        log=log,
    )
    gate.load_state_dict(fitted.weights)
    return gate.eval(), fitted.history


class _Lesson:
    """The data, the frozen target, the gate that learns, and how it is judged."""

    def __init__(self, settings):
        self.gate, self.data = starting_gate(settings), datasets.load(settings["data"])
        if self.gate.objective == "none":
            raise ValueError("a gate of objective 'none' has nothing to train; choose cross_entropy or mask")
        if not len(self.data.train):
            raise ValueError(f"{settings['data']} has no training image; prepare some, or choose objective 'none'")
        self.intensity_weight = settings["intensity_weight"] if self.gate.objective == "mask" else 0.0
        if not self.intensity_weight >= 0:
            raise ValueError(
                f"intensity_weight is {self.intensity_weight}; give 0 (maps may be bright) or more, such as 0.1"
            )
        image = self.data.train.tensor([0])
        target = targets.load(settings["target"])
        self.target = networks.inference_copy(target, image, keep=[self.gate.layer])

    def answers(self, gate, pixels):
        """The target's logits (N, K) behind the gates, its own prediction (N,), and the maps (N, H, W) or None."""
        activation, gradient, _, predicted = layers.head_gradient(self.target, pixels, gate.layer)
        activation, gradient = activation.float(), gradient.float()
        channel, spatial = gate(explainer.gated_features(activation, gradient, gate.gate_input))
        if gate.objective == "cross_entropy":
            gated = spatial * (channel * activation)
            return attention_gate.gated_logits(self.target, gate.layer, gated, pixels), predicted, None
        maps = explainer.gated_maps(activation, gradient, channel, spatial, pixels.shape[-2:])
        maps = images.unit_range(maps)
        return self.target(images.perturb(pixels, maps, images.black(None, pixels))), predicted, maps

    def loss(self, gate, batch, generator):
        logits, predicted, maps = self.answers(gate, *batch)
        loss = functional.cross_entropy(logits.float(), predicted)
        means = {"train_agreement": (logits.detach().argmax(1) == predicted).float().mean()}
        if maps is None:
            return loss, means
        return loss + self.intensity_weight * maps.mean(), means | {"train_intensity": maps.mean()}

    def scores(self, gate):
        """Over the held-out images: the cross-entropy, the share that keeps its prediction, the maps' mean."""
        split, device = self.data.validation, next(gate.parameters()).device

        def rows(indices):
            logits, predicted, maps = self.answers(gate, split.tensor(indices).to(device))
            losses = functional.cross_entropy(logits.float(), predicted, reduction="none")
            columns = [losses, (logits.argmax(1) == predicted).float()]
            columns += [] if maps is None else [maps.mean((1, 2))]
            return torch.stack(columns, 1).cpu()

        table = distributed.map_in_order(rows, len(split), batch_size=tasks.VALIDATION_BATCH)
        names = ("validation_loss", "validation_agreement", "validation_intensity")
        return dict(zip(names, table.double().mean(0), strict=False))
