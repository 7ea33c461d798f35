"""The trained methods on networks that are no ResNets: from the training to the map, as the stages do it."""

import numpy as np
import pytest
import torch
import toy_networks
from PIL import Image

from xai_utils import datasets, networks
from xai_utils.evaluation.sanity import sanity
from xai_utils.explainers import explain_many
from xai_utils.training.distributed import Compute
from xai_utils.training.gate import fit_gate
from xai_utils.training.mask_predictor import fit_predictors
from xai_utils.training.surrogate import fit_surrogates

SIZE = 64
COMPUTE = Compute("cpu", threads=1)
LEARNING = {
    "epochs": 1, "batch_size": 8, "learning_rate": 0.01, "schedule": "steps", "milestones": [1], "halve_every": 1,
    "momentum": 0.9, "weight_decay": 1e-4, "smallest_crop": 0.6,
}  # fmt: skip


class Square(toy_networks.Tokens):
    """A ViT for images of 64 pixels."""

    def __init__(self, classes):
        super().__init__(classes, grid=(8, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight pictures of noise to learn from, four held out."""
    folder, generator = tmp_path_factory.mktemp("backbones"), np.random.default_rng(0)
    for name in ("wren", "crow"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    options = {"train_per_class": 4, "validation_per_class": 2, "validation_fraction": 0.34, "seed": 0}
    datasets.prepare(folder / "images", folder / "data", image_size=SIZE, geometry="squash", **options)
    return folder / "data"


@pytest.mark.parametrize(
    ("name", "network"), [("staged", toy_networks.Staged), ("shifted", toy_networks.Shifted), ("square", Square)]
)
def test_surrogate_predictor_and_gate_are_trained_and_explain(name, network, data, tmp_path, monkeypatch):
    """One epoch of each changes it, is read from its folder again, and leaves maps that differ between the images."""
    monkeypatch.setitem(networks.ARCHITECTURES, name, network)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    target = networks.Target(network(2), name, ("wren", "crow")).eval()
    networks.save(target, "target")
    common = {"data": str(data), "target": "target", "seed": 0, "reduction": 4}
    surrogates, _ = fit_surrogates(
        common
        | {"trunk": None, "attention": "cbam", "opened": True, "residual_attention": False, "delta_source": "last",
           "joint": False, "alpha": 0.5, "temperature": 1.0, "l1_weights": {"akd": 1e-5},
           "student": LEARNING, "explanation": LEARNING},
        compute=COMPUTE,
    )  # fmt: skip
    predictors, _ = fit_predictors(
        common
        | {"predictors": ["dgle_cf"], "upsampler": "subpixel_blur", "normalisation": "instance",
           "eta": 1.5, "exponent": 2.5, "mgnet": {}, "filter_loss": "logit_mean", "filter": LEARNING,
           "generator": LEARNING},
        compute=COMPUTE,
    )  # fmt: skip
    chosen = {"layer": None, "objective": "cross_entropy", "gate_input": "activations", "intensity_weight": 0.1}
    gate, history = fit_gate(common | LEARNING | chosen, compute=COMPUTE)
    assert history[-1]["validation_loss"] > 0
    networks.save_surrogate(surrogates["akd"], "akd")
    networks.save_predictor(predictors["dgle_cf"], "dgle_cf")
    networks.save_gate(gate, "amg")
    changed = surrogates["akd"].student.attention[0].spatial.norm.weight, gate.spatial.norm.weight
    assert all(weight.item() != 0 for weight in changed)  # each begins with 0
    images = torch.rand(2, 3, SIZE, SIZE)
    asked = {"akd": {"surrogate": "akd"}, "dgle_cf": {"predictor": "dgle_cf"}, "amg": {"gate": "amg"}}
    found = explain_many(target, images, None, asked)
    for maps in found.values():
        assert maps.shape == (2, SIZE, SIZE)
        assert maps.isfinite().all()
        assert not torch.equal(maps[0], maps[1])
    checked = sanity("akd", target, images, options=asked["akd"])
    assert list(checked.own)  # the student's own layers forget, too
