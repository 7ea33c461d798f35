"""The losses of attentive distillation by hand, and what its trainings may and may not change."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from xai_utils import datasets, networks
from xai_utils.explainers.surrogate import PART
from xai_utils.networks.surrogate import load_surrogate, save_surrogate
from xai_utils.training import loop
from xai_utils.training.distributed import Compute
from xai_utils.training.surrogate import (
    distillation_loss,
    explained_classes,
    explained_images,
    explanation_loss,
    explanation_task,
    fit_surrogates,
    joint_task,
    starting_surrogate,
    student_task,
)

LN2, LN3 = math.log(2), math.log(3)
EVEN, ONE_TO_THREE = [0.0, 0.0], [0.0, LN3]  # logits of the probabilities (1/2, 1/2) and (1/4, 3/4)


def test_distillation_loss_by_hand():
    """KL((1/4, 3/4) ‖ (1/2, 1/2)) and cross-entropy ln 2, mixed by α; t = 2 has its factor 4."""
    student, teacher, labels = torch.tensor([EVEN]), torch.tensor([ONE_TO_THREE]), torch.tensor([1])
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    for alpha in (0.0, 0.25, 1.0):
        found = distillation_loss(student, teacher, labels, alpha=alpha).item()
        assert found == pytest.approx(alpha * divergence + (1 - alpha) * LN2, abs=1e-6)
    third = 1 / (1 + math.sqrt(3))  # softmax(0, ln 3 / 2)
    softer = third * math.log(2 * third) + (1 - third) * math.log(2 * (1 - third))
    found = distillation_loss(student, teacher, labels, alpha=1.0, temperature=2.0).item()
    assert found == pytest.approx(4 * softer, abs=1e-6)


def test_distillation_loss_is_a_mean_over_the_batch():
    """A batch costs the mean of its images, and the hard loss is the student's, not the teacher's."""
    student, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    single = [distillation_loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(distillation_loss(student, teacher, labels), torch.stack(single).mean())
    hard = distillation_loss(student, teacher, labels, alpha=0.0)
    torch.testing.assert_close(hard, torch.nn.functional.cross_entropy(student, labels))


def test_equal_logits_cost_nothing():
    """Equal distributions have divergence 0, at any temperature; a constant added to all logits changes none."""
    logits, labels = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    assert distillation_loss(logits + 7, logits, labels, alpha=1.0, temperature=3.0).item() == pytest.approx(0)
    assert explanation_loss(logits, logits - 2, torch.ones(4, 3, 3), l1_weight=0.0).item() == pytest.approx(0)


def test_explanation_loss_by_hand():
    """KL(T(x) ‖ T(x ⊙ H)) in this direction, plus λ times the sum over the pixels, as means over two images."""
    logits, explained = torch.tensor([EVEN, ONE_TO_THREE]), torch.tensor([ONE_TO_THREE, ONE_TO_THREE])
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # of the first image; 0 of the second
    maps = torch.stack([torch.full((3, 4), 0.5), torch.full((3, 4), 0.25)])  # sums 6 and 3
    found = explanation_loss(logits, explained, maps, l1_weight=0.1).item()
    assert found == pytest.approx(divergence / 2 + 0.1 * 4.5, abs=1e-6)


def test_losses_refuse_what_has_no_meaning():
    """α outside [0, 1], t not above 0 and λ below 0 (or NaN) are named."""
    logits, labels, maps = torch.zeros(1, 2), torch.tensor([0]), torch.ones(1, 2, 2)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"alpha is {alpha}; give"):
            distillation_loss(logits, logits, labels, alpha=alpha)
    with pytest.raises(ValueError, match="temperature is 0; give a positive"):
        distillation_loss(logits, logits, labels, temperature=0)
    for weight in (-1e-5, math.nan):
        with pytest.raises(ValueError, match=f"l1_weight is {weight}; give 0"):
            explanation_loss(logits, logits, maps, l1_weight=weight)


def test_explained_images_are_products_of_normalised_images():
    """Normalising the explained image gives H ⊙ the normalised image; H = 1 keeps it and H = 0 leaves the mean."""
    images, maps = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])

    def normalised(pixels):
        return (pixels - mean[:, None, None]) / std[:, None, None]

    found = normalised(explained_images(images, maps, mean))
    torch.testing.assert_close(found, normalised(images) * maps[:, None])
    torch.testing.assert_close(explained_images(images, torch.ones(2, 4, 5), mean), images)
    assert torch.equal(explained_images(images, torch.zeros(2, 4, 5), mean), mean[:, None, None].expand(2, 3, 4, 5))


def test_classes_of_explained_images_are_read_a_few_at_a_time(folders, monkeypatch):
    """Three images in batches of two: the target's classes of the faded images, in their order."""
    monkeypatch.setattr("xai_utils.training.surrogate.EXPLAINED", 2)
    target, split = networks.load(folders / "target").eval(), datasets.load(folders / "data").validation
    indices, maps = np.array([2, 0, 1]), np.random.default_rng(0).random((3, *split.images.shape[-2:]), np.float32)
    with torch.no_grad():
        images = explained_images(split.tensor(indices), torch.from_numpy(maps), target.mean)
        expected = target(images).argmax(1)
    assert explained_classes(target, split, indices, maps).tolist() == expected.tolist()


def test_the_gradient_passes_through_the_frozen_target():
    """The map's gradient is that of finite differences through the target, whose parameters get none."""
    target = networks.build("small_resnet", "ab").double().eval().requires_grad_(False)
    images, maps = torch.rand(2, 3, 32, 32).double(), torch.full((2, 32, 32), 0.6).double().requires_grad_()

    def loss(maps):
        explained = target(explained_images(images, maps, target.mean))
        return explanation_loss(target(images), explained, maps, l1_weight=1e-3)

    loss(maps).backward()
    assert all(weight.grad is None for weight in target.parameters())
    direction = torch.randn_like(maps)
    with torch.no_grad():
        slope = (loss(maps + 1e-6 * direction) - loss(maps - 1e-6 * direction)) / 2e-6
    assert slope.item() == pytest.approx((maps.grad * direction).sum().item(), rel=1e-5)
    assert ((maps.grad - 1e-3 / 2).abs() > 1e-9).float().mean() > 0.9  # λ alone would give 1e-3 / 2 everywhere


CLASSES = ("square", "cross", "blank")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Prepared data of 3 shapes at 32 pixels, 18 to train on and 9 held out, and a target with shuffled classes."""
    folder = tmp_path_factory.mktemp("distillation")
    torch.manual_seed(1)  # predicts all three classes, two of the nine images rightly
    networks.save(networks.build("small_resnet", ("cross", "blank", "square")), folder / "target")
    write_data(folder / "data")
    return folder


def write_data(folder, *, classes=CLASSES, size=32):
    source = folder.parent / f"{folder.name}-images"
    generator = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (source / name).mkdir(parents=True)
        for number in range(9):
            pixels = generator.integers(0, 60, (size, size, 3)).astype(np.uint8)
            pixels[:, label * size // len(classes) : (label + 1) * size // len(classes)] += 150
            Image.fromarray(pixels).save(source / name / f"{number}.png")
    options = {"train_per_class": 6, "validation_per_class": 3, "validation_fraction": 0.34, "seed": 0}
    datasets.prepare(source, folder, image_size=size, geometry="squash", **options)


def settings(folders, **changes):
    return {
        "data": str(folders / "data"), "target": str(folders / "target"), "seed": 0, "epochs": 2, "batch_size": 9,
        "learning_rate": 0.01, "schedule": "steps", "milestones": [1], "momentum": 0.9, "weight_decay": 1e-4,
        "smallest_crop": 0.6, "trunk": None, "attention": "cbam", "reduction": 16, "opened": False,
        "residual_attention": False, "delta_source": "last", "alpha": 0.5, "temperature": 1.0, "l1_weight": 1e-5,
        "surrogate": str(folders / "student"), **changes,
    }  # fmt: skip


def fit(make_task, settings, folder):
    return loop.fit(make_task, settings, checkpoints=folder, data_hash="")


def changed(before, after):
    """The first part of the name of all weights and buffers that differ."""
    return {key.split(".")[0] for key, tensor in before.items() if not torch.equal(tensor, after[key])}


@pytest.fixture(scope="module")
def trained(folders):
    """The student's training, and the explanation network's on top of it."""
    torch.set_num_threads(1)
    started = starting_surrogate(settings(folders))
    start = {key: tensor.clone() for key, tensor in started.state_dict().items()}
    student = fit(student_task, settings(folders), folders / "checkpoints")
    started.load_state_dict(student.weights)
    save_surrogate(started, folders / "student")
    explanation = fit(explanation_task, settings(folders, l1_weight=1e-3, learning_rate=0.1), folders / "checkpoints")
    return start, student, explanation


def test_each_training_changes_its_part_alone(folders, trained):
    """Bit for bit, batch statistics included: first the student moves, then the explanation network, jointly both."""
    target = networks.load(folders / "target").state_dict()
    start, student, explanation = trained
    assert changed(start, student.weights) == {"student"}
    assert changed(student.weights, explanation.weights) == {"explanation"}
    assert not torch.equal(start["student.stem.1.running_mean"], student.weights["student.stem.1.running_mean"])
    joint = fit(joint_task, settings(folders), folders / "checkpoints")
    assert changed(start, joint.weights) == {"student", "explanation"}
    assert changed(target, networks.load(folders / "target").state_dict()) == set()
    assert joint.history[0].keys() > {"train_accuracy", "train_intensity", "validation_agreement"}


def test_the_teacher_learns_nothing(folders, trained):
    """After a step of each task the frozen copy has its weights and statistics, is in eval mode and has no gradient."""
    for make_task in (student_task, explanation_task, joint_task):
        task = make_task(settings(folders))
        (teacher,) = task.frozen
        before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
        loss, _ = task.loss(task.model, task.batch(torch.arange(9), torch.Generator().manual_seed(0)), None)
        loss.backward()
        task.optimizer(task.model).step()
        assert changed(before, teacher.state_dict()) == set()
        assert not any(module.training for module in teacher.modules())
        assert all(weight.grad is None and not weight.requires_grad for weight in teacher.parameters())


def test_sparsity_dims_the_maps(trained):
    """A large λ lowers the mean intensity from its start near 0.88; rates follow the milestones."""
    _, student, explanation = trained
    assert explanation.history[-1]["train_intensity"] < 0.8
    assert [row["learning_rate"] for row in student.history] == pytest.approx([0.01, 0.001])


@pytest.mark.parametrize("make_task", [explanation_task, joint_task])
def test_a_training_that_is_broken_off_ends_the_same(folders, trained, tmp_path, make_task):
    """Stopped after its first epoch and started again it gives the same bits."""

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(make_task, settings(folders), checkpoints=tmp_path / "one", data_hash="", log=stop)
    broken, whole = fit(make_task, settings(folders), tmp_path / "one"), fit(make_task, settings(folders), tmp_path)
    assert broken.resumed_from == 2
    assert changed(broken.weights, whole.weights) == set()
    assert broken.history == whole.history


def test_labels_follow_the_targets_classes(folders):
    """The data's "square" is the target's class 2: labels are places among the target's classes."""
    task = student_task(settings(folders))
    _, labels = task.batch(torch.arange(18), torch.Generator().manual_seed(0))
    split = datasets.load(folders / "data").train
    assert [("cross", "blank", "square")[label] for label in labels] == [split.classes[i] for i in split.labels]


def test_scores_of_a_perfect_student(folders):
    """A student that is the target agrees everywhere; a map of ones has mean 1 and keeps the target's probability."""
    task = joint_task(settings(folders))
    model = task.model.eval()
    for block in model.student.stages:
        torch.nn.init.constant_(block[0].attention.channel.mlp[2].bias, 50.0)
        torch.nn.init.constant_(block[0].attention.spatial.norm.bias, 50.0)
    torch.nn.init.constant_(model.explanation.head.bias, 50.0)
    split, target = datasets.load(folders / "data").validation, networks.load(folders / "target")
    with torch.no_grad():
        probabilities = target(split.tensor(range(9))).softmax(1)
        scores = task.validate(model)
    right = [target.classes[p] == split.classes[i] for p, i in zip(probabilities.argmax(1), split.labels, strict=True)]
    assert any(right)
    assert {name: float(value) for name, value in scores.items()} == pytest.approx(
        {
            "validation_accuracy": sum(right) / 9,
            "validation_agreement": 1,
            "validation_agreement_where_right": 1,
            "validation_intensity": 1,
            "validation_probability": probabilities.amax(1).mean().item(),
        },
        rel=1e-4,
    )


def test_sparsity_is_scaled_with_the_area(folders, trained):
    """λ is meant for 224 × 224 pixels: an image of 32 × 32 pays 49 times as much per pixel."""
    losses = []
    for weight in (0.0, 1e-3):
        task = explanation_task(settings(folders, l1_weight=weight))
        torch.manual_seed(0)
        loss, means = task.loss(task.model, task.batch(torch.arange(9), torch.Generator().manual_seed(0)), None)
        losses.append(loss.item())
    assert losses[1] - losses[0] == pytest.approx(1e-3 * 224 * 224 * means["train_intensity"].item(), rel=1e-4)


def test_a_trunk_by_name(folders):
    """A named architecture starts from new weights, seeded; None is the target's own trunk; both are to train."""
    own, new, again = (starting_surrogate(settings(folders, trunk=name)) for name in (None, *["small_resnet"] * 2))
    target = networks.load(folders / "target")
    assert torch.equal(own.student.stem[0].weight, target.network.conv1.weight)
    assert not torch.equal(new.student.stem[0].weight, target.network.conv1.weight)
    assert changed(new.state_dict(), again.state_dict()) == set()
    assert new.classes == target.classes
    assert all(module.training for model in (own, new) for module in model.modules())


def test_unusable_settings_are_refused(folders, trained, tmp_path):
    """Data of other classes, a surrogate of other classes, too small images, an unknown schedule: each is named."""
    write_data(tmp_path / "two", classes=("square", "cross"))
    with pytest.raises(ValueError, match=r"two have 2 classes and the target in .*target 3; only one.*'blank'"):
        student_task(settings(folders, data=str(tmp_path / "two")))
    write_data(tmp_path / "other", classes=("square", "cross", "disc"))
    with pytest.raises(ValueError, match=r"3 classes and .* 3; only one of them knows 'blank'"):
        joint_task(settings(folders, data=str(tmp_path / "other")))
    write_data(tmp_path / "small", size=16)
    with pytest.raises(ValueError, match=r"images of 16 x 16 pixels leave"):
        student_task(settings(folders, data=str(tmp_path / "small")))
    with pytest.raises(ValueError, match="schedule 'linear' is unknown; choose cosine, steps or halving"):
        student_task(settings(folders, schedule="linear"))
    with pytest.raises(ValueError, match="alpha is 2; give"):
        fit(student_task, settings(folders, alpha=2), tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="l1_weight is -1; give"):
        fit(explanation_task, settings(folders, l1_weight=-1), tmp_path / "checkpoints")
    surrogate, target = load_surrogate(folders / "student"), networks.load(folders / "target")
    target.network.fc.weight.data += 1
    PART.adopt(surrogate, target)
    save_surrogate(surrogate, tmp_path / "surrogate")
    with pytest.raises(ValueError, match=r"was trained for .*; train its student for this target first"):
        explanation_task(settings(folders, surrogate=str(tmp_path / "surrogate")))


@pytest.mark.parametrize("joint", [False, True])
def test_surrogates_of_several_weights(folders, tmp_path, monkeypatch, joint):
    """One student for all λ when staged, one for each when joint; a second call trains nothing and gives the same."""
    monkeypatch.setattr("xai_utils.training.surrogate.CHECKPOINTS", tmp_path)
    chosen = settings(folders, joint=joint, l1_weights={"dense": 0.0, "sparse": 1e-3})
    names = ("epochs", "batch_size", "learning_rate", "schedule", "milestones", "momentum", "weight_decay")
    part = {name: chosen[name] for name in (*names, "smallest_crop")}
    chosen |= {"student": part, "explanation": part}
    lines = []
    surrogates, histories = fit_surrogates(chosen, compute=Compute("cpu"), log=lines.append)
    assert list(surrogates) == ["dense", "sparse"]
    assert list(histories) == (["dense", "sparse"] if joint else ["student", "dense", "sparse"])
    one, other = (surrogates[name].student.state_dict() for name in surrogates)
    assert all(torch.equal(one[name], other[name]) for name in one) != joint
    assert not any(module.training for surrogate in surrogates.values() for module in surrogate.modules())
    said = len(lines)
    assert list(dict.fromkeys(line.split(":")[0] for line in lines)) == list(histories)
    again, _ = fit_surrogates(chosen, compute=Compute("cpu"), log=lines.append)
    assert len(lines) == said
    for name, surrogate in surrogates.items():
        weights = again[name].state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in surrogate.state_dict().items())


def own_loss(logits, explained_logits, maps, *, l1_weight):
    return explanation_loss(logits, explained_logits, maps, l1_weight=l1_weight) + maps.var()


@pytest.mark.parametrize("joint", [False, True])
def test_a_loss_of_ones_own_is_trained_beside_the_papers(folders, tmp_path, monkeypatch, joint):
    """One more surrogate, with the first λ and a key of its own; the paper's stay as they are, bit for bit."""
    monkeypatch.setattr("xai_utils.training.surrogate.CHECKPOINTS", tmp_path)
    chosen = settings(folders, joint=joint, l1_weights={"dense": 0.0})
    names = ("epochs", "batch_size", "learning_rate", "schedule", "milestones", "momentum", "weight_decay")
    part = {name: chosen[name] for name in (*names, "smallest_crop")}
    chosen |= {"student": part, "explanation": part}
    plain, _ = fit_surrogates(chosen, compute=Compute("cpu"))
    lines = []
    made, histories = fit_surrogates(chosen, loss=own_loss, compute=Compute("cpu"), log=lines.append)
    assert list(made) == ["dense", "own_loss"]
    assert list(histories) == ([] if joint else ["student"]) + ["dense", "own_loss"]
    assert {line.split(":")[0] for line in lines} == {"own_loss"}
    assert changed(plain["dense"].state_dict(), made["dense"].state_dict()) == set()
    assert changed(made["dense"].state_dict(), made["own_loss"].state_dict()) >= {"explanation"}
    with pytest.raises(ValueError, match="a training 'own_loss' exists; give your loss another name"):
        fit_surrogates(chosen | {"l1_weights": {"own_loss": 0.0}}, loss=own_loss, compute=Compute("cpu"))
