"""Trainings that are killed, starved of disk, spread over processes or diverge must end as if nothing had happened."""

import importlib.util
import json
import os
import random
import resource
import subprocess
from pathlib import Path

import pretended
import pytest
import safetensors.torch
import torch
import toy_tasks
from torch import nn

from xai_utils import files
from xai_utils.training import checkpoints, loop
from xai_utils.training.recipes import sgd

SGD = {"dropout": 0.2, "loss_noise": 0.1}  # momentum, a schedule, dropout, augmentation, noise in the loss
ADAM = {**SGD, "optimizer": "adam", "rate": 0.01}
STEPS = 12  # 3 epochs of ceil(25 / 7) batches


def same(one: loop.Fitted, other: loop.Fitted) -> bool:
    equal = all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)
    return equal and one.weights.keys() == other.weights.keys() and one.history == other.history


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Trainings that ran through, by name."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken")
    return {"sgd": toy_tasks.fit(folder, SGD), "adam": toy_tasks.fit(folder, ADAM)}


def moments() -> list[tuple[str, dict]]:
    """When to die: at seeded steps, and at seeded places inside the writing of a checkpoint (4 fsyncs, 3 replaces)."""
    chance = random.Random(11)
    found = [(name, "augment", chance.randrange(1, STEPS + 1), "before") for name in ("sgd", "adam", "sgd", "adam")]
    found += [(chance.choice(["sgd", "adam"]), "fsync", chance.randrange(5, 25), when) for when in ("before", "after")]
    found += [("adam", "replace", 4, "after"), ("sgd", "replace", 6, "before"), ("sgd", "replace", 6, "after")]
    found += [("adam", "save_file", 3, "after"), ("sgd", "unlink", 2, "after"), ("sgd", "replace", 3, "before")]
    return [(name, {"at": at, "call": call, "when": when}) for name, at, call, when in found]


def test_a_killed_training_ends_with_the_bits_of_an_unbroken_one(tmp_path, unbroken):
    """SIGKILL at any step or in the midst of writing, even twice, changes no weight, no history and no file."""
    kinds = {"sgd": SGD, "adam": ADAM}
    jobs = [(str(tmp_path / str(number)), kinds[name], moment) for number, (name, moment) in enumerate(moments())]
    jobs += [(jobs[0][0], SGD, {"at": "augment", "call": 2, "when": "before"})]  # the first one dies again
    process = toy_tasks.start(toy_tasks.__file__, json.dumps({"do": "die", "jobs": jobs}), stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=100)
    assert output.split() == ["-9"] * len(jobs)  # each was killed; none ended otherwise
    resumed = []
    for number, (name, moment) in enumerate(moments()):
        fitted = toy_tasks.fit(tmp_path / str(number), kinds[name])
        assert same(fitted, unbroken[name]), (name, moment)
        assert names(fitted.folder) == {checkpoints.RECORD, checkpoints.read_record(fitted.folder)["file"]}
        resumed.append(fitted.resumed_from)
    assert sum(0 < steps < STEPS for steps in resumed) >= 8  # most had something to go on from


def test_a_finished_training_is_returned_and_not_repeated(tmp_path, unbroken, monkeypatch):
    """A second call takes no step, and the log tells of every epoch of the first one only."""
    lines = []
    first = toy_tasks.fit(tmp_path, SGD, log=lines.append)
    monkeypatch.setattr(loop, "_train", None)  # would fail if it were called
    second = toy_tasks.fit(tmp_path, SGD, log=lines.append)
    assert same(first, unbroken["sgd"])
    assert same(second, first)
    assert (first.resumed_from, second.resumed_from) == (0, STEPS)
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3"]
    assert "accuracy" in lines[0]


def test_a_training_that_another_process_is_at_is_refused(tmp_path):
    """Its files are left alone; when the other has ended the training goes on."""
    folder = toy_tasks.fit(tmp_path, SGD).folder
    (folder / "not-yet-recorded.safetensors").touch()
    with files.held(folder), pytest.raises(BlockingIOError, match=f"another process is at work in {folder}"):
        toy_tasks.fit(tmp_path, SGD)
    assert len(names(folder)) == 3
    toy_tasks.fit(tmp_path, SGD)
    assert len(names(folder)) == 2


def test_short_epochs_share_a_checkpoint(tmp_path, unbroken):
    """Within `checkpoint_seconds` no epoch writes one, so a kill loses them; the finished one is always written."""
    with pytest.raises(toy_tasks.KilledHere):
        toy_tasks.fit(tmp_path, {**SGD, "raise_in_call": STEPS}, checkpoint_steps=None, checkpoint_seconds=1e6)
    assert [checkpoints.read_record(folder) for folder in tmp_path.iterdir()] in ([], [None])
    assert same(toy_tasks.fit(tmp_path, SGD, checkpoint_steps=None, checkpoint_seconds=1e6), unbroken["sgd"])


def test_the_learning_curve_is_a_table_of_the_history(tmp_path, unbroken):
    """The rates follow the schedule exactly and the TSV reads back as the history."""
    history = unbroken["sgd"].history
    assert [row["learning_rate"] for row in history] == [0.05, 0.025, 0.0125]
    loop.write_curves(history, tmp_path / "curves.tsv")
    head, *rows = [line.split("\t") for line in (tmp_path / "curves.tsv").read_text().splitlines()]
    assert head == ["epoch", "learning_rate", "train_loss", "train_accuracy", "gradient_norm", "accuracy", "logits"]
    assert [[float(value) for value in row] for row in rows] == [[row[name] for name in head] for row in history]
    assert names(tmp_path) == {"curves.tsv"}


@pytest.mark.parametrize("place", ["fsync", "replace", "save_file", "write_bytes", "limit"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, unbroken, place):
    """Whatever part of writing fails, the error names the folder, no piece stays, and training goes on later."""
    with pytest.raises(toy_tasks.KilledHere):
        toy_tasks.fit(tmp_path, {**SGD, "raise_in_call": 6})
    (folder,) = tmp_path.iterdir()
    kept = names(folder)
    assert len(kept) == 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    owner = {"fsync": os, "replace": os, "save_file": safetensors.torch, "write_bytes": Path}.get(place)
    with monkeypatch.context() as patch:
        if owner is None:  # the kernel itself refuses to write more
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        else:
            patch.setattr(owner, place, toy_tasks.disk_full)
        try:
            with pytest.raises(checkpoints.CheckpointError, match="cannot write the checkpoint") as caught:
                toy_tasks.fit(tmp_path, {**SGD, "raise_in_call": 6})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(folder) in str(caught.value)
    assert names(folder) == kept
    fitted = toy_tasks.fit(tmp_path, {**SGD, "raise_in_call": 99})  # another key: the weights do not depend on it
    assert same(fitted, unbroken["sgd"])
    with pytest.raises(toy_tasks.KilledHere):  # six steps on from the fourth
        toy_tasks.fit(tmp_path, {**SGD, "raise_in_call": 6})
    again = toy_tasks.fit(tmp_path, {**SGD, "raise_in_call": 6})
    assert again.resumed_from == 8
    assert same(again, unbroken["sgd"])


def test_a_loss_that_is_no_number_stops_the_training(tmp_path, unbroken):
    """The error names epoch, step and loss; the checkpoint before it is whole and training can go on from it."""
    with pytest.raises(loop.DivergenceError, match=r"loss is nan at epoch 2, step 2 of 4 .*after step 4 is kept"):
        toy_tasks.fit(tmp_path, {**SGD, "nan_in_call": 6})
    (folder,) = tmp_path.iterdir()
    tensors, record = checkpoints.load(folder)
    assert record["progress"]["steps_done"] == 4
    assert all(value.isfinite().all() for value in tensors.values())
    with pytest.raises(loop.DivergenceError, match=r"epoch 3, step 2 of 4 .step 10 in all.*after step 8 is kept"):
        toy_tasks.fit(tmp_path, {**SGD, "nan_in_call": 6})  # goes on, and the sixth call is now the tenth step's
    fitted = toy_tasks.fit(tmp_path, {**SGD, "nan_in_call": 6})
    assert fitted.resumed_from == 8
    assert same(fitted, unbroken["sgd"])


def test_damaged_checkpoints_are_named(tmp_path):
    """A tensor file that is cut, changed or gone, and a record that is cut, are named with the way out."""
    with pytest.raises(toy_tasks.KilledHere):
        toy_tasks.fit(tmp_path, {"raise_in_call": 6})
    (folder,) = tmp_path.iterdir()
    record = folder / checkpoints.RECORD
    tensors = folder / checkpoints.read_record(folder)["file"]
    for path in (tensors, record):
        whole = path.read_bytes()
        for harmed in (whole[:-9], whole[:-1] + b"?", b""):
            path.write_bytes(harmed)
            with pytest.raises(checkpoints.CheckpointError, match="Delete the folder") as caught:
                toy_tasks.fit(tmp_path, {"raise_in_call": 6})
            assert str(path) in str(caught.value)
        path.write_bytes(whole)
    tensors.unlink()
    with pytest.raises(checkpoints.CheckpointError, match="damaged"):
        toy_tasks.fit(tmp_path, {"raise_in_call": 6})


def test_a_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch):
    """If code outside of the key changed the model, the error says so instead of training on."""
    with pytest.raises(toy_tasks.KilledHere):
        toy_tasks.fit(tmp_path, {"raise_in_call": 6})
    monkeypatch.setattr(toy_tasks, "EXTRA", 2)
    with pytest.raises(checkpoints.CheckpointError, match=r"does not fit the model.*toy_tasks:make_classifier"):
        toy_tasks.fit(tmp_path, {"raise_in_call": 6})


def test_the_key_changes_with_everything_that_the_weights_depend_on(tmp_path):
    """Settings, seed, data, code, threads and precision make another training; prefetch and the folder do not."""

    def written(place, imports=""):
        """The task, defined in a module of its own in a folder."""
        file = tmp_path / place / "task.py"
        file.parent.mkdir()
        file.write_text(f"import toy_tasks\n{imports}\n\ndef make(s):\n    return toy_tasks.make_classifier(s)\n")
        spec = importlib.util.spec_from_file_location("task", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.make

    here = written("here")

    def key(settings=None, data="d", task=here, **compute):
        settings = {"seed": 1, "epochs": 1, **(settings or {})}
        options = {"data_hash": data, "compute": loop.Compute("cpu", **compute)}
        return loop.fit(task, settings, checkpoints=tmp_path / "all", **options).key

    changed = [key(), key({"seed": 2}), key({"rate": 0.1}), key(data="e"), key(threads=2), key(precision="bfloat16")]
    changed += [key(task=written("edited", "WIDTH = 1")), key(task=written("more", "from xai_utils import plots"))]
    assert len(set(changed)) == len(changed)
    assert key(prefetch=0) == key()
    assert key(task=written("elsewhere")) == key() == key({"epochs": 1})


class Sums(nn.Module):
    """<weight, x>, for losses that can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.dropped = nn.Dropout(0.5).eval()  # stays in eval mode

    def forward(self, rows):
        return self.dropped(rows) @ self.weight


SEEN = []


def make_sums(settings: dict) -> loop.Task:
    values = torch.arange(10.0)[:, None] * torch.tensor([3.0, 4.0])  # (10, 2)
    teacher = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1))

    def read(indices):
        return values[indices], indices

    def draw(count, generator):
        return torch.rand(count, 1, generator=generator)

    def augment(rows, numbers):
        SEEN.append((rows[1].tolist(), numbers[0].item()))
        return rows[:1]

    def loss(model, rows, generator):
        assert model.training
        assert not model.dropped.training
        assert not teacher.training
        assert not any(weight.requires_grad for weight in teacher.parameters())
        return model(rows[0]).mean(), {"value": rows[0][:, 0].mean()}

    def validate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"norm": model.weight.norm()}

    return loop.Task(
        model=Sums(), examples=10, read=read, draw=draw, augment=augment, loss=loss, epochs=2,
        batch_size=settings.get("batch_size", 4),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=settings["rate"]),
        validate=validate, frozen=[teacher],
    )  # fmt: skip


def sums(folder: Path, **settings) -> loop.Fitted:
    SEEN.clear()
    return loop.fit(make_sums, {"seed": 0, **settings}, checkpoints=folder, data_hash="")


def test_steps_and_means_by_hand(tmp_path):
    """Batches are even and cover each epoch once; means are over examples."""
    before = torch.random.get_rng_state()
    still = sums(tmp_path, rate=0.0)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random numbers are left alone
    assert [len(batch) for batch, _ in SEEN] == [4, 3, 3] * 2
    orders = [[index for batch, _ in SEEN[start : start + 3] for index in batch] for start in (0, 3)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    assert len({number for _, number in SEEN}) == 6  # fresh random numbers in every step
    assert [row["value"] for row in still.history] == pytest.approx([13.5, 13.5])  # 3 x the mean of 0 ... 9
    assert [row["train_loss"] for row in still.history] == [0.0, 0.0]
    free = sums(tmp_path, rate=1.0)
    means = [sum(batch) / len(batch) for batch, _ in SEEN]
    assert free.weights["weight"].tolist() == pytest.approx([-3.0 * sum(means), -4.0 * sum(means)])
    assert free.history[-1]["norm"] == pytest.approx(5.0 * sum(means))


def test_one_look_tells_of_all_steps_since_the_last(tmp_path, monkeypatch, unbroken):
    """How often losses are fetched from the device changes no mean of the history, and no resumed training's."""
    for steps in (1, 3):
        monkeypatch.setattr(loop, "LOOK_STEPS", steps)
        with pytest.raises(toy_tasks.KilledHere):
            toy_tasks.fit(tmp_path / str(steps), {**SGD, "raise_in_call": 8})
        fitted = toy_tasks.fit(tmp_path / str(steps), {**SGD, "raise_in_call": 99})
        assert same(fitted, unbroken["sgd"])
        assert same(toy_tasks.fit(tmp_path / str(steps), {**SGD, "raise_in_call": 8}), unbroken["sgd"])


@pytest.mark.parametrize("options", [{"micro_batch": 3}, {"compile": True}], ids=["micro_batch", "compile"])
def test_parts_and_compiled_losses_follow_the_same_gradient(tmp_path, monkeypatch, options):
    """Without batch norm weights and means are those of whole batches and of plain code, up to rounding."""
    compiled, make = [], torch.compile
    # traced and differentiated as always; only the last step, which takes a compiler a minute, is left out
    monkeypatch.setattr(torch, "compile", lambda it, **_: compiled.append(it) or make(it, backend="aot_eager"))
    plain, other = (toy_tasks.fit(tmp_path, {}, compute=loop.Compute("cpu", **each)) for each in ({}, options))
    assert other.key != plain.key
    assert len(compiled) == ("compile" in options)
    for name, value in plain.weights.items():
        torch.testing.assert_close(other.weights[name], value, rtol=1e-4, atol=1e-6)
    for row, expected in zip(other.history, plain.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_batch_norm_sees_the_parts_of_a_batch(tmp_path):
    """Batches of 7, 6, 6 and 6 in parts of 3: 3 + 2 + 2 + 2 statistics an epoch."""
    fitted = toy_tasks.fit(tmp_path, {"norm": "batch"}, compute=loop.Compute("cpu", micro_batch=3))
    assert fitted.weights["1.num_batches_tracked"].item() == 3 * (3 + 2 + 2 + 2)


def make_convolution(settings: dict) -> loop.Task:
    model, teacher = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    LAYOUTS.clear()

    def loss(model, rows, generator):
        made = model(rows[0])
        LAYOUTS.extend(each.is_contiguous(memory_format=torch.channels_last) for each in (model.weight, made))
        return (made - teacher(rows[0])).square().mean(), {}

    return loop.Task(
        model=model, examples=2, read=lambda indices: (torch.ones(len(indices), 3, 5, 5),), loss=loss, epochs=1,
        batch_size=2, optimizer=sgd({"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}), frozen=[teacher],
    )  # fmt: skip


LAYOUTS = []


def test_networks_learn_in_channels_last(tmp_path, monkeypatch):
    """Weights and what they make; on a GPU the optimizer is fused, and ends with the weights of a plain one."""
    made, optimizers = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda own: made.append(own.defaults["fused"]) or optimizers(own))
    plain = loop.fit(make_convolution, {"seed": 0}, checkpoints=tmp_path, data_hash="", compute=loop.Compute("cpu"))
    assert LAYOUTS == [True, True]
    with pretended.gpu(monkeypatch):
        fused = loop.fit(make_convolution, {"seed": 0}, checkpoints=tmp_path, data_hash="")
    assert made == [False, True]
    for name, value in plain.weights.items():
        torch.testing.assert_close(fused.weights[name], value)


def test_weights_that_overflow_are_not_saved(tmp_path):
    """A step to infinity is noticed before the checkpoint is written, although its loss was finite."""
    with pytest.raises(loop.DivergenceError, match=r"holds numbers that are not finite.*none was written yet"):
        sums(tmp_path, rate=1e38, batch_size=10)  # a gradient of (13.5, 18), one step an epoch
    assert list(tmp_path.iterdir()) == []


def test_tied_and_wide_tensors_survive_a_checkpoint(tmp_path):
    """Shared storage, every common type and a nested optimizer state come back equal, and no old file stays."""
    tied = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": tied, "b": tied, "c": tied.T, "d": torch.tensor([True]), "e": torch.tensor(7, dtype=torch.int64)}
    state = {"state": {0: {"step": torch.tensor(3.0), "none": None}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    found, plain = checkpoints.flatten(state, "optimizer")
    checkpoints.save(tmp_path, {**tensors, **found}, {"optimizer": plain, "run": 1})
    checkpoints.save(tmp_path, {**tensors, **found, "a": tied + 1}, {"optimizer": plain, "run": 2})
    loaded, record = checkpoints.load(tmp_path)
    assert record["run"] == 2
    assert len(names(tmp_path)) == 2
    assert torch.equal(loaded["a"], tied + 1)
    assert all(torch.equal(loaded[name], tensors[name]) for name in "bcde")
    back = checkpoints.unflatten(record["optimizer"], loaded)
    assert back == {"state": {0: {"step": torch.tensor(3.0), "none": None}}, "param_groups": [{"betas": [0.9, 0.999]}]}
    assert checkpoints.load(tmp_path / "nowhere") is None


def test_settings_that_cannot_be_used_are_refused(tmp_path):
    """No seed, a value outside of JSON, no epoch: each is named and nothing is written."""
    with pytest.raises(ValueError, match='integer "seed"'):
        toy_tasks.fit(tmp_path, {"seed": None})
    with pytest.raises(ValueError, match=r"JSON.*not JSON serializable"):
        toy_tasks.fit(tmp_path, {"rate": torch.ones(2)})
    with pytest.raises(ValueError, match=r"at least 1; got.*'epochs': 0"):
        toy_tasks.fit(tmp_path, {"epochs": 0})
    assert list(tmp_path.iterdir()) == []
