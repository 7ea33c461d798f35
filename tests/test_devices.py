"""Devices, without a GPU: each notebook and each method on a pretended one (pretended.py)."""

import numpy as np
import pretended
import pytest
import torch
from PIL import Image
from scratch import execute, project
from test_explainers import explained, generated

from xai_utils import datasets
from xai_utils.explainers import EXPLAINERS, explain
from xai_utils.networks import build, deep_copy
from xai_utils.pipeline import parameters
from xai_utils.retraining import experiment
from xai_utils.training.distributed import Compute
from xai_utils.training.target import held_out_logits

METHODS = ["akd", "dgle_cf", "amg", "grad_cam", "fastcam", "smooth_grad", "random"]  # a kind each, for the notebooks


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of seven images."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label in "ab":
        (folder / label).mkdir()
        for number in range(7):
            pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def test_a_pretended_gpu_is_strict(monkeypatch):
    """Operands of both places, arrays of what is on the GPU and generators of elsewhere are errors; moving is none."""
    network, images = torch.nn.Linear(3, 2), torch.rand(4, 3)
    with pretended.gpu(monkeypatch):
        assert network.to("cuda") is network
        assert (network.weight.device.type, images.device.type, images.cuda().device.type) == ("cuda", "cpu", "cuda")
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            network(images)
        answers = network(images.to(network.weight.device))
        answers.sum().backward()
        assert network.weight.grad.device.type == answers[0].detach().device.type == "cuda"
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(answers.detach())
        assert answers.detach().cpu().numpy().shape == (4, 2)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        assert torch.rand(2, device="cuda", generator=torch.Generator("cuda")).is_cuda
        assert answers[torch.tensor([0, 2])].is_cuda


@pytest.mark.parametrize("method", EXPLAINERS)
def test_every_method_works_where_the_images_are(method, monkeypatch):
    """On the GPU, with the network that the method brings: maps on the GPU, equal to those of the CPU."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    expected = explain(explained(method), images, method=method, **generated(method))
    with pretended.gpu(monkeypatch):
        model, options, part = deep_copy(explained(method)), generated(method), EXPLAINERS[method].part
        if part is not None:
            options[part.option] = deep_copy(options[part.option]).to("cuda")
        if "generator" in options:  # another device draws other numbers
            options["generator"] = torch.Generator("cuda").manual_seed(3)
        maps = explain(model.to("cuda"), images.to("cuda"), method=method, **options)
        assert maps.is_cuda
        assert model.mean.is_cuda
        torch.testing.assert_close(maps.cpu(), expected, rtol=1e-3, atol=1e-5)


def test_predictions_leave_the_network_where_it_is(pictures, tmp_path, monkeypatch):
    """Logits of held-out images are computed on the device, and the caller's network stays in main memory."""
    datasets.prepare(pictures, tmp_path / "data", image_size=32)
    split, network = datasets.load(tmp_path / "data").validation, build("tiny_resnet", "ab").eval()
    expected = held_out_logits(network, split, compute=Compute(device="cpu"))
    with pretended.gpu(monkeypatch):
        found = held_out_logits(network, split, compute=Compute())
        assert not any(tensor.is_cuda for tensor in (found, *network.state_dict().values()))
    torch.testing.assert_close(found, expected)


def test_every_notebook_runs_on_a_device(pictures, tmp_path, monkeypatch):
    """All stages of the pipeline on a GPU, at the smoke scale: nothing is left behind, or moved under its owner."""
    changes = {
        "compute.threads": 1,
        "target": "tiny_resnet",
        "distill_surrogate.l1_weights": {"akd": 1e-5},
        "train_mask_predictor.predictors": ["dgle_cf", "mgnet"],
        "explain.images": 2,
        "explain.methods": METHODS,
        "evaluate.sanity_images": 1,
        "train_attention.images": 2,
        "measure_speed.batch_size": 1,
        "remove_and_retrain.statistics": ["smoe_scale"],
        "remove_and_retrain.percentages": [50],
        "remove_and_retrain.rows": {"gradient": {"method": "gradient"}},
    }
    folder = project(tmp_path, dataset=str(pictures), scale="smoke", **changes)
    (folder / "reports").mkdir()
    monkeypatch.setattr(experiment, "scale_layers", lambda *_: ("layer4",))  # each layer is four trainings
    for stage in parameters.STAGES:
        with pretended.gpu(monkeypatch) as operations:
            execute(folder, stage)
        assert operations.count or stage == "prepare_data", f"{stage} computes on the CPU"
