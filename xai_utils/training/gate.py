"""Training of AMG's gates (networks/attention_gate.py) on a frozen target, as a `loop.Task` of plain settings.

Only the gates learn, from the target's own answers; no label is read. Two objectives:

cross_entropy   with gated activations in their place, the target is to predict what it predicts without gates
mask            the image times the map (stretched to [0, 1]) is to keep the target's prediction, with a dim map

Settings: data (folder of prepared data), target (folder of a saved target), seed, layer (None: `cam_layer`), objective,
reduction (of the channel gate's channels), gate_input, intensity_weight (of the mean of the map, "mask" alone; 0.1),
validate (whether held-out images are scored after each epoch; True), epochs (5), batch_size (128), learning_rate
(0.01), schedule ("steps": a tenth after each of `milestones`, [4], in epochs; or "cosine"), momentum (0.9),
weight_decay (1e-4), smallest_crop. In brackets: what we train with at the paper's size, for the paper says nothing.
"""

from contextlib import nullcontext

import torch
from torch.nn import functional

from xai_utils import datasets
from xai_utils.explainers.attention_gate import gated_features, gated_maps
from xai_utils.files import files_fingerprint
from xai_utils.images import black, perturb, unit_range
from xai_utils.networks import head_gradient, targets
from xai_utils.networks.attention_gate import AttentionGate, gate_for, gated_logits
from xai_utils.networks.trunk import Trunk
from xai_utils.training import loop
from xai_utils.training.recipes import CHECKPOINTS, Teacher, sgd


def starting_gate(settings: dict) -> AttentionGate:
    """The gate before any training, in train mode.

    `settings`: data, target, seed, layer, objective, gate_input, reduction.
    """
    target, data = targets.load(settings["target"]), datasets.load(settings["data"])
    split = data.train if len(data.train) else data.validation
    options = {name: settings[name] for name in ("layer", "objective", "gate_input", "reduction")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return gate_for(target, split.tensor([0]), **options).train()


def gate_task(settings: dict) -> loop.Task:
    """The gates learn; the target stays as it is, bit by bit.

    cross_entropy: CE(z'(x), c), where z' are the logits with M_s ⊙ M_c ⊙ A in the place of A, and c = argmax z(x)
    mask: CE(z(x ⊙ L), c) + `intensity_weight` mean(L), where L is the map for c, stretched to [0, 1] and resized

    ValueError for the objective "none" and for data without training images.

    Notes: the paper does not say how its attention is trained. x ⊙ L is made of pixels: what fades becomes black.
    SGD is Nesterov's unless `nesterov` is false.
    """
    pupil = _Pupil(settings)
    validate = pupil.scores if settings.get("validate", True) else None
    return pupil.teacher.task(pupil.gate, loss=pupil.loss, validate=validate, optimizer=sgd(settings))


def fit_gate(settings: dict, *, compute, checkpoint_steps=None, log=None):
    """The trained gate in eval mode, and the history of its training; objective "none" has nothing to train."""
    gate = starting_gate(settings)
    if settings["objective"] == "none":
        return gate.eval(), []
    fitted = loop.fit(
        gate_task,
        settings,
        compute=compute,
        checkpoints=CHECKPOINTS / "train_attention",
        data_hash=files_fingerprint(settings["data"], settings["target"]),
        checkpoint_steps=checkpoint_steps,
        log=loop.named(log, f"gate on {settings['layer']}"),
    )
    gate.load_state_dict(fitted.weights)
    return gate.eval(), fitted.history


def gated_answers(target, gate, pixels, trunk=None):
    """The target's logits (N, K) behind the gates, its own prediction (N,), and the maps (N, H, W) or None.

    With the `trunk` of the target, what comes before the gated layer runs once.
    """
    with trunk.once(gate.layer, pixels) if trunk else nullcontext():
        activation, gradient, _, predicted = head_gradient(target, pixels, gate.layer)
        activation, gradient = activation.float(), gradient.float()
        channel, spatial = gate(gated_features(activation, gradient, gate.gate_input))
        if gate.objective == "cross_entropy":
            gated = spatial * (channel * activation)
            return gated_logits(target, gate.layer, gated, pixels), predicted, None
    maps = unit_range(gated_maps(activation, gradient, channel, spatial, pixels.shape[-2:]))
    return target(perturb(pixels, maps, black(None, pixels))), predicted, maps


class _Pupil:
    """The gate that learns from its teacher, and how it is judged."""

    def __init__(self, settings):
        self.gate = starting_gate(settings)
        if self.gate.objective == "none":
            raise ValueError("a gate of objective 'none' has nothing to train; choose cross_entropy or mask")
        self.intensity_weight = settings["intensity_weight"] if self.gate.objective == "mask" else 0.0
        if not self.intensity_weight >= 0:
            raise ValueError(
                f"intensity_weight is {self.intensity_weight}; give 0 (maps may be bright) or more, such as 0.1"
            )
        self.teacher = Teacher(settings, keep=[self.gate.layer])
        self.trunk = Trunk(self.teacher.target) if self.gate.objective == "cross_entropy" else None

    def loss(self, gate, batch, generator):
        logits, predicted, maps = gated_answers(self.teacher.target, gate, *batch, self.trunk)
        loss = functional.cross_entropy(logits.float(), predicted)
        means = {"train_agreement": (logits.detach().argmax(1) == predicted).float().mean()}
        if maps is None:
            return loss, means
        return loss + self.intensity_weight * maps.mean(), means | {"train_intensity": maps.mean()}

    def scores(self, gate):
        """Over the held-out images: the cross-entropy, the share that keeps its prediction, the maps' mean."""

        def rows(pixels):
            logits, predicted, maps = gated_answers(self.teacher.target, gate, pixels, self.trunk)
            losses = functional.cross_entropy(logits.float(), predicted, reduction="none")
            columns = [losses, (logits.argmax(1) == predicted).float()]
            columns += [] if maps is None else [maps.mean((1, 2))]
            return torch.stack(columns, 1)

        names = ("validation_loss", "validation_agreement", "validation_intensity")
        return dict(zip(names, self.teacher.held_out(rows).double().mean(0), strict=False))
