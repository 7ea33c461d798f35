"""Two processes do what one does, and neither errors nor kills leave one of them behind."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy_tasks
from scratch import change, project

from xai_utils import datasets, networks
from xai_utils.papers import amg_variants
from xai_utils.pipeline import parameters
from xai_utils.training import distributed, loop
from xai_utils.training.gate import fit_gate


def test_two_processes_do_what_one_does(tmp_path):
    """Odd batches and counts, shared: equal weights up to rounding, the same bits after a resume, rows in order."""
    exact = {"batch_size": 9}
    counts = [0, 1, 2, 5, 8]
    noisy = {"norm": "batch", "dropout": 0.2, "loss_noise": 0.1, "optimizer": "adam"}
    several = [exact, {**exact, "micro_batch": 2}, {**noisy, "raise_in_call": 99}, {**noisy, "raise_in_call": 6}]
    found = distributed.run(toy_tasks.group_job, tmp_path, several, counts, processes=2)
    (weights, history, _), (in_parts, _, _), (batch_norm, batch_norm_history, _), (resumed, resumed_history, steps) = (
        found["fits"]
    )
    alone = toy_tasks.fit(tmp_path, exact, compute=loop.Compute("cpu"))
    for name, value in alone.weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(in_parts[name], value, rtol=1e-5, atol=1e-6)
    for row, expected in zip(history, alone.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert steps == 8  # raised in its sixth step and again in the sixth after the fourth
    assert all(torch.equal(resumed[name], value) for name, value in batch_norm.items())
    assert resumed_history == batch_norm_history
    network = toy_tasks.make_classifier({"norm": "batch"}).model.eval()
    network.load_state_dict(batch_norm)
    logits = network(toy_tasks.images()[0]).double().sum().item()
    assert batch_norm_history[-1]["logits"] == pytest.approx(logits, rel=1e-4)  # both processes scored these weights
    for count, (numbers, halves, even, mapped) in zip(counts, found["gathered"], strict=True):
        assert numbers.tolist() == list(range(count))
        assert mapped.tolist() == [10.0 * number for number in range(count)]
        assert even.tolist() == [number % 2 == 0 for number in range(count)]
        assert halves.dtype == torch.bfloat16
        assert halves.tolist() == [[float(number)] * 6 for number in range(count)]
    assert found["threads"] == 1


def test_all_processes_together_see_what_one_sees_and_read_it_once(tmp_path):
    """1, 2 and 4 processes, 0 and 4 batches ahead: the same crops to the bit, each read by the one that needs it."""
    found = {}
    for world, prefetch in ((1, 0), (1, 4), (2, 4), (4, 0)):
        folder = tmp_path / f"{world} {prefetch}"
        folder.mkdir()
        compute, settings = loop.Compute("cpu", processes=world, prefetch=prefetch), {"seed": 4, "folder": str(folder)}
        loop.fit(toy_tasks.make_recorded, settings, checkpoints=folder, data_hash="", compute=compute)
        ranks = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
        read = [sum(map(len, each["read"])) for each in ranks]
        assert sum(read) == 2 * toy_tasks.EXAMPLES
        assert max(read) <= 2 * (toy_tasks.EXAMPLES + 3 * 4) / world  # of four batches none divides evenly
        found[world, prefetch] = []
        for parts in zip(*(each["seen"] for each in ranks), strict=True):
            images, labels = (torch.zeros(sum(map(len, own)), *own[0].shape[1:]) for own in zip(*parts, strict=True))
            for rank, (some, names) in enumerate(parts):
                images[rank::world], labels[rank::world] = some, names.float()
            found[world, prefetch].append((images, labels))
    alone = found[1, 0]
    assert len({images.sum().item() for images, _ in alone}) == len(alone) == 8
    for others in found.values():
        for (images, labels), (same, names) in zip(alone, others, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, names)


def test_an_exception_in_one_process_ends_all(tmp_path):
    """The exception of rank 1 itself is raised, with its traceback, while rank 0 waits for it in vain."""
    with pytest.raises(toy_tasks.KilledHere, match="rank one is unwell") as caught:
        distributed.run(toy_tasks.raise_in_rank_one, processes=2)
    (note,) = caught.value.__notes__
    assert note.startswith("Raised in rank 1 of 2")
    assert "in raise_in_rank_one" in note


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_processes_end_with_their_parent(tmp_path):
    """After SIGKILL of the caller no spawned process goes on."""
    job = json.dumps({"do": "sleep", "folder": str(tmp_path)})
    parent = toy_tasks.start(toy_tasks.__file__, job, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.pid"))) < 2 and parent.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    children = [Path("/proc", path.stem, "stat") for path in tmp_path.glob("*.pid")]
    assert len(children) == 2

    def alive(stat):
        try:
            return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"  # a zombie has ended
        except OSError:
            return False

    while any(alive(stat) for stat in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(stat) for stat in children)


def test_torchrun_leaves_the_checkpoint_that_a_call_finds_finished(tmp_path):
    """The same training started by torchrun in two processes has the key of a call with two processes."""
    request = {
        "task": "toy_tasks:make_classifier",
        "settings": {"seed": 3, "epochs": 1},
        "compute": {"device": "cpu", "processes": 2},
        "checkpoints": str(tmp_path),
        "data_hash": "toy",
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "xai_utils.training"]
    process = toy_tasks.start(*launch, str(tmp_path / "request.json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert output.count("epoch 1 of 1") == 1
    fitted = toy_tasks.fit(tmp_path, {"epochs": 1}, compute=loop.Compute("cpu", processes=2))
    assert fitted.resumed_from == 4


def test_torchrun_trains_the_gates_that_the_notebook_asks_for(tmp_path, monkeypatch):
    """Two processes train all of train_attention as params.yaml has it; the notebook's calls find each finished."""
    project(tmp_path, scale="smoke", **{"compute.device": "cpu", "compute.processes": 2, "compute.threads": 1})
    learning = {"train_attention.networks": [], "train_attention.variants": 1}
    change(tmp_path / "params.yaml", **learning)
    monkeypatch.chdir(tmp_path)
    datasets.prepare(
        tmp_path / "data" / "birds", Path("build/data"), image_size=32, train_per_class=1, validation_per_class=1
    )
    networks.save(networks.build("tiny_resnet", datasets.load("build/data").classes).eval(), Path("build/target"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "xai_utils.training"]
    process = toy_tasks.start(*launch, "train_attention", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    given = parameters.resolve(parameters.read(), "train_attention")
    compute, said = loop.Compute(**given["compute"]), []
    target, probe = networks.load("build/target"), datasets.load("build/data").validation.tensor([0])
    asked = given["gate"] | {"data": "build/data", "target": "build/target", "seed": given["seed"]}
    asked |= {name: given[name] for name in ("objective", "gate_input", "intensity_weight", "reduction")}
    layers = networks.cam_layer(target, probe), networks.last_convolution(target, probe)
    histories = [fit_gate(asked | {"layer": layer}, compute=compute, log=said.append)[1] for layer in layers]
    amg_variants.fit_variants(asked | {"layer": layers[0]}, seeds=1, compute=compute, log=said.append)
    assert said == []
    assert [len(history) for history in histories] == [given["gate"]["epochs"]] * 2
    assert output.count("epoch 1 of 1") == 2 + 4  # two layers, and six ways of which two train nothing


def test_what_cannot_be_shared_is_said(tmp_path):
    """Lambdas in other processes, unknown devices, no threads, a wrong number of rows."""
    two = loop.Compute("cpu", processes=2)
    with pytest.raises(ValueError, match="<lambda> cannot be sent to another process"):
        distributed.run(lambda: 1, processes=2)
    with pytest.raises(ValueError, match="<lambda> cannot be sent"):
        toy_tasks.fit(tmp_path, {}, log=lambda line: None, compute=two)
    with pytest.raises(ValueError, match=r"'auto', 'cpu', 'cuda'.*tpu"):
        toy_tasks.fit(tmp_path, {}, compute=loop.Compute("tpu"))
    with pytest.raises(ValueError, match="at least 1"):
        loop.Compute(threads=0).resolved()
    with pytest.raises(ValueError, match=r"prefetch is 0 .* or more.*prefetch=-1"):
        loop.Compute(prefetch=-1).resolved()
    with pytest.raises(ValueError, match=r"micro_batch is 1 or more, or None .*micro_batch=0"):
        loop.Compute(micro_batch=0).resolved()
    with pytest.raises(ValueError, match="has 2 rows; its shard of 3 items has 3"):
        distributed.gather_in_order(torch.zeros(2), 3)
    assert list(tmp_path.iterdir()) == []
