"""What the trainings of AMG's gates minimise, and what they may and may not change."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from test_layers import settled
from torch.nn import functional

from xai_utils import datasets, networks
from xai_utils.explainers.attention_gate import amg
from xai_utils.explainers.cam import grad_cam
from xai_utils.images import unit_range
from xai_utils.networks import head_gradient, load_gate, save_gate
from xai_utils.training import loop
from xai_utils.training.distributed import Compute
from xai_utils.training.gate import fit_gate, gate_task, starting_gate

CLASSES = ("square", "cross", "blank")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Prepared data of 3 shapes at 32 pixels, 18 to train on and 9 held out, and a target with uneven statistics."""
    folder = tmp_path_factory.mktemp("attention")
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(9):
            pixels = generator.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            pixels[:, label * 10 : (label + 1) * 10] += 150
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    options = {"train_per_class": 6, "validation_per_class": 3, "validation_fraction": 0.34, "seed": 0}
    datasets.prepare(folder / "images", folder / "data", image_size=32, geometry="squash", **options)
    torch.manual_seed(3)
    networks.save(settled(networks.build("small_resnet", ("dog", "cat", "cow", "hen"))), folder / "target")
    return folder


def settings(folders, **changes):
    return {
        "data": str(folders / "data"), "target": str(folders / "target"), "seed": 0, "epochs": 2, "batch_size": 9,
        "learning_rate": 0.1, "schedule": "steps", "milestones": [1], "momentum": 0.9, "weight_decay": 1e-4,
        "smallest_crop": 0.6, "layer": None, "objective": "cross_entropy", "reduction": 16,
        "gate_input": "activations", "intensity_weight": 0.1, **changes,
    }  # fmt: skip


def fit(settings, folder, **options):
    return loop.fit(gate_task, settings, checkpoints=folder, data_hash="", **options)


def changed(before, after):
    """The names of all weights and buffers that differ."""
    return {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}


def copied(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def loss_of(task, images):
    return task.loss(task.model, (images,), None)


@pytest.mark.parametrize("gate_input", ["activations", "weighted"])
def test_cross_entropy_by_hand(folders, gate_input):
    """The loss is CE of fc(mean(M_s ⊙ M_c ⊙ A)) against the target's own prediction, and a mean over the images."""
    task = gate_task(settings(folders, gate_input=gate_input))
    gate, target = task.model.eval(), networks.load(folders / "target")
    torch.nn.init.constant_(gate.spatial.norm.weight, 2.0)
    images = torch.rand(4, 3, 32, 32)
    activation, gradient, logits, predicted = head_gradient(target, images, "layer4")
    read = activation * gradient.mean((2, 3), keepdim=True) if gate_input == "weighted" else activation
    channel, spatial = gate(read)
    gated = target.network.fc((spatial * channel * activation).mean((2, 3)))
    loss, means = loss_of(task, images)
    torch.testing.assert_close(loss, functional.cross_entropy(gated, predicted), rtol=1e-4, atol=1e-5)
    assert means["train_agreement"].item() == pytest.approx((gated.argmax(1) == predicted).float().mean().item())
    assert torch.equal(logits.argmax(1), predicted)
    singles = torch.stack([loss_of(task, image[None])[0] for image in images])
    torch.testing.assert_close(loss, singles.mean(), rtol=1e-4, atol=1e-5)


def test_mask_loss_by_hand(folders):
    """CE of the target for the image times its stretched map, on black, plus the weight times the maps' mean."""
    images, target = torch.rand(4, 3, 32, 32), networks.load(folders / "target")
    losses = {}
    for weight in (0.0, 0.1, 2.0):
        task = gate_task(settings(folders, objective="mask", intensity_weight=weight))
        task.model.eval()
        losses[weight], means = loss_of(task, images)
        maps = unit_range(amg(target, images, gate=task.model))
        with torch.no_grad():
            expected = functional.cross_entropy(target(images * maps[:, None]), target(images).argmax(1))
        torch.testing.assert_close(losses[weight], expected + weight * maps.mean(), rtol=1e-3, atol=1e-4)
        assert means["train_intensity"].item() == pytest.approx(maps.mean().item(), rel=1e-3)
    assert maps.mean() > 0.01


@pytest.mark.parametrize("objective", ["cross_entropy", "mask"])
def test_the_gradient_is_that_of_finite_differences(folders, objective):
    """Through head, or map, image and target: the slope along a direction in the gates' weights."""
    task = gate_task(settings(folders, objective=objective))
    gate, images = task.model.eval().double(), torch.rand(3, 3, 32, 32).double()
    task.frozen[0].double()
    torch.nn.init.constant_(gate.spatial.norm.weight, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the loss works in float32: not exact enough here
        loss_of(task, images)[0].backward()
        weights = [weight for weight in gate.parameters() if weight.grad is not None]
        assert len(weights) == len(list(gate.parameters()))
        directions = [torch.randn_like(weight) for weight in weights]
        slope = sum((weight.grad * direction).sum() for weight, direction in zip(weights, directions, strict=True))
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for weight, direction in zip(weights, directions, strict=True):
                    weight += step * direction
                values.append(loss_of(task, images)[0].item())
    assert slope.abs() > 1e-4
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope.item(), rel=1e-3)


@pytest.mark.parametrize("objective", ["cross_entropy", "mask"])
def test_only_the_gates_learn(folders, monkeypatch, objective):
    """After an optimizer's step every gate has moved; the frozen target has the same bits, statistics and eval mode."""
    plain = lambda target, *_, **__: copy.deepcopy(target).eval().requires_grad_(False)  # noqa: E731
    # it would fold the batch norms, whose statistics we watch
    monkeypatch.setattr("xai_utils.training.recipes.inference_copy", plain)
    task = gate_task(settings(folders, objective=objective))
    (target,) = task.frozen
    before, gates = copied(target), copied(task.model)
    assert "network.layer4.0.bn2.running_mean" in before
    assert task.model.training
    (images,) = task.batch(torch.arange(9), torch.Generator().manual_seed(0))
    loss, _ = loss_of(task, images)
    loss.backward()
    optimizer = task.optimizer(task.model)
    optimizer.step()
    assert changed(before, target.state_dict()) == set()
    assert not any(module.training for module in target.modules())
    assert all(weight.grad is None and not weight.requires_grad for weight in target.parameters())
    assert {name.split(".")[0] for name in changed(gates, task.model.state_dict())} == {"channel", "spatial"}
    assert "spatial.norm.running_mean" in changed(gates, task.model.state_dict())
    inside = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert inside == {id(weight) for weight in task.model.parameters()}


@pytest.mark.parametrize("objective", ["cross_entropy", "mask"])
def test_a_training_lowers_its_loss_and_leaves_the_files(folders, tmp_path, monkeypatch, objective):
    """The saved target keeps its bytes, the gate comes in eval mode, and a second call trains nothing more."""
    monkeypatch.setattr("xai_utils.training.gate.CHECKPOINTS", tmp_path)
    file = folders / "target" / "target.safetensors"
    before, lines = file.read_bytes(), []
    chosen = settings(folders, objective=objective, epochs=4, milestones=[3])
    gate, history = fit_gate(chosen, compute=Compute("cpu"), log=lines.append)
    assert file.read_bytes() == before
    assert not any(module.training for module in gate.modules())
    assert len(lines) == len(history) == 4
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    assert [row["learning_rate"] for row in history[-2:]] == pytest.approx([0.1, 0.01])
    assert changed(copied(starting_gate(chosen)), gate.state_dict()) >= {"channel.mlp.0.weight", "spatial.conv.weight"}
    again, _ = fit_gate(chosen, compute=Compute("cpu"), log=lines.append)
    assert len(lines) == 4
    assert changed(gate.state_dict(), again.state_dict()) == set()
    save_gate(gate, tmp_path / "gate", made_with=chosen)
    target, images = networks.load(folders / "target"), torch.rand(2, 3, 32, 32)
    maps = amg(target, images, gate=tmp_path / "gate")
    assert (unit_range(maps) - unit_range(grad_cam(target, images))).abs().max() > 1e-3
    assert load_gate(tmp_path / "gate").objective == objective


@pytest.mark.parametrize("objective", ["cross_entropy", "mask"])
def test_a_training_that_is_broken_off_ends_the_same(folders, tmp_path, objective):
    """Stopped in the midst of its second epoch and started again it gives the same bits and the same history."""
    chosen, calls, cross_entropy = settings(folders, objective=objective), [], functional.cross_entropy

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:  # two steps, the validation, a step, and this one
            raise KeyboardInterrupt
        return cross_entropy(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "cross_entropy", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(chosen, tmp_path / "one", checkpoint_steps=1)
    broken, whole = fit(chosen, tmp_path / "one"), fit(chosen, tmp_path)
    assert broken.resumed_from == 3
    assert changed(broken.weights, whole.weights) == set()
    assert broken.history == whole.history


def test_scores_of_gates_of_one(folders):
    """Open gates keep every prediction: agreement 1, the loss the target's own; the maps' mean is Grad-CAM's."""
    split, target = datasets.load(folders / "data").validation, networks.load(folders / "target")
    images = split.tensor(range(9))
    for objective in ("cross_entropy", "mask"):
        task = gate_task(settings(folders, objective=objective))
        gate = task.model.eval()
        torch.nn.init.constant_(gate.channel.mlp[2].bias, 50.0)
        torch.nn.init.constant_(gate.spatial.norm.bias, 50.0)
        with torch.no_grad():
            scores = {name: float(value) for name, value in task.validate(gate).items()}
            logits = target(images)
        maps = unit_range(grad_cam(target, images))
        if objective == "mask":
            with torch.no_grad():
                seen = target(images * maps[:, None])
            agreement = (seen.argmax(1) == logits.argmax(1)).float().mean().item()
            expected = {"validation_agreement": agreement, "validation_intensity": maps.mean().item()}
        else:
            seen, expected = logits, {"validation_agreement": 1}
        expected["validation_loss"] = functional.cross_entropy(seen, logits.argmax(1)).item()
        assert scores == pytest.approx(expected, rel=1e-3)


def test_nothing_to_train(folders):
    """Objective "none" gives its fixed gate with an empty history, and no task."""
    gate, history = fit_gate(settings(folders, objective="none"), compute=Compute("cpu"))
    assert history == []
    assert not list(gate.parameters())
    target, images = networks.load(folders / "target"), torch.rand(2, 3, 32, 32)
    assert torch.equal(amg(target, images, gate=gate), amg(target, images, gate=None))
    with pytest.raises(ValueError, match="objective 'none' has nothing to train; choose cross_entropy or mask"):
        gate_task(settings(folders, objective="none"))


def test_unusable_settings_are_refused(folders, tmp_path):
    """Unknown options, a negative weight, a layer without map: each is named."""
    for change, message in (
        ({"objective": "labels"}, "objective 'labels' is unknown; choose one of cross_entropy, mask, none"),
        ({"gate_input": "both"}, "gate_input 'both' is unknown"),
        ({"schedule": "linear"}, "schedule 'linear' is unknown"),
        ({"objective": "mask", "intensity_weight": -1}, "intensity_weight is -1; give 0"),
        ({"objective": "mask", "intensity_weight": float("nan")}, "intensity_weight is nan"),
        ({"layer": "avgpool"}, r"layer 'avgpool' returns \(N, 128, 1, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            gate_task(settings(folders, **change))
    assert gate_task(settings(folders, layer="layer3")).model.channels == 64
