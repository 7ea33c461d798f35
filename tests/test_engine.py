"""An engine answers as its model does, whoever makes the pass, and says when onnxruntime does not."""

import copy
import importlib
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from xai_utils import explain, metrics
from xai_utils.evaluation.sanity import parameter_randomisation, seeded
from xai_utils.explainers import explain_many
from xai_utils.explainers.smoe import statistic_maps
from xai_utils.metrics.cost import counted_passes
from xai_utils.metrics.perturbation import perturbation_curves
from xai_utils.networks import build, captured, engine, inference_copy

module = importlib.import_module("xai_utils.networks.engine")  # the package's name for it is the function's
ROWS = {
    "grad_cam": {},
    "grad_cam_plus_plus": {},
    "xgrad_cam": {},
    "amg": {"gate": None},
    "smoe": {},
    "fastcam": {},
    "rise": {"masks": 12, "chunk": 5},
}
NETWORKS = {"small_resnet": 64, "timm:test_vit": 160, "timm:test_convnext": 64}
ONLY_COPIES = {"gradient": {}, "smoe": {"statistic": "truncated_normal_entropy"}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOLDER", tmp_path / "engine")
    return tmp_path / "engine"


@pytest.fixture
def target():
    return build("tiny_resnet", range(5)).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 48, 48)


def by_pytorch(made):
    """The sizes of the batches that PyTorch runs for an engine, a list that grows."""
    passes, seen = module.passes_of(made), []
    forward = passes.forward

    def counting(given):
        seen.append(len(given))
        return forward(given)

    passes.forward = counting
    return seen


def close(found, wanted, share=1e-4):
    return (found - wanted).abs().max() <= share * (wanted.max() - wanted.min())


@pytest.mark.parametrize("architecture", NETWORKS)
def test_maps_and_scores_are_those_without_it(architecture):
    """For a CNN, a ViT and a network whose maps are channels last; only heads run in PyTorch, once for each map."""
    target, size = build(architecture, range(5)).eval(), NETWORKS[architecture]
    images, classes = torch.rand(2, 3, size, size), torch.tensor([1, 3])
    rows = ROWS | ({"lime": {"samples": 12}} if size < 100 else {})  # superpixels take their time
    made, copied = engine(target, images), inference_copy(target, images[:1])
    maps = explain_many(made, images, classes, rows)
    wanted = explain_many(copied, images, classes, rows)
    for row in rows:
        assert close(maps[row], wanted[row], 1e-3 if row == "xgrad_cam" else 1e-4), row  # it divides by sums near 0
    seen = by_pytorch(made)
    assert torch.equal(explain_many(made, images, classes, rows)["rise"], maps["rise"])
    assert len(seen) == 3  # heads: of the three maps of one layer, of AMG's, of FastCAM's
    curves = {
        "insertion": {"pixels_per_step": 12544},
        "deletion": {"pixels_per_step": 12544},
        "faithfulness": {"steps": 4},
    }
    for measured in (partial(perturbation_curves, **curves), metrics.average_drop, metrics.percentage_in):
        found, expected = (measured(model, images, classes, wanted["grad_cam"]) for model in (made, copied))
        found, expected = (
            torch.cat([*each.values()], 1) if isinstance(each, dict) else each for each in (found, expected)
        )
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert len(seen) == 3


def test_what_needs_pytorch_runs_there(target, images):
    """Gradients of all layers, statistics before a ReLU, counted passes, a copy that forgets, changed weights."""
    made, copied = engine(target, images), inference_copy(target, images[:1])
    for method, options in ONLY_COPIES.items():
        assert torch.equal(
            explain(made, images, method=method, **options), explain(copied, images, method=method, **options)
        )
    cost = [counted_passes(model, images, lambda *given: explain(*given, method="fastcam")) for model in (made, copied)]
    assert cost[0] == cost[1] > 1
    kept = [parameter_randomisation(seeded("grad_cam"), model, images) for model in (made, copied)]
    assert all(torch.allclose(kept[0][stage], kept[1][stage], atol=1e-3) for stage in kept[1])
    assert explain(made, images, method="grad_cam").isfinite().all()
    assert type(copy.deepcopy(made).forward) is type(target.forward)
    with torch.no_grad():
        made.network.fc.bias += 1
    assert torch.allclose(made(images), target(images) + 1, atol=1e-5)


def test_explain_makes_an_engine_once_where_it_is_asked_for(target, images, monkeypatch):
    plain = explain(target, images, 1)
    assert target not in module._made
    maps = explain(target, images, 1, engine="auto")
    assert close(maps, plain)
    monkeypatch.setattr(module, "inference_copy", lambda *_, **__: pytest.fail("copied again"))
    assert torch.equal(explain(target, images, 1, engine="auto"), maps)
    with pytest.raises(ValueError, match="engine 'fast' is unknown"):
        explain(target, images, 1, engine="fast")


def test_any_number_and_size_of_images(target, images):
    made, seen = engine(target, images), []
    seen = by_pytorch(made)
    for shape in ((1, 3, 48, 48), (7, 3, 48, 48)):
        given = torch.rand(shape)
        assert torch.allclose(made(given), target(given), atol=1e-5)
    assert not seen
    given = torch.rand(2, 3, 64, 40)
    assert torch.allclose(made(given), target(given), atol=1e-5)
    assert seen == [3, 2]  # the new graph's probe and its tracing
    torch.set_num_threads(2)
    assert torch.allclose(made(given), target(given), atol=1e-5)


def channel_mean(name, output):
    return output.mean(1)


def test_layers_and_what_is_made_of_them_come_from_the_graph(target, images):
    plain, reduced = engine(target, images, ["layer1", "layer4"]), engine(target, images, ["layer4"], channel_mean)
    for made in (plain, reduced):
        seen = by_pytorch(made)
        logits, outputs = made(images)
        assert torch.allclose(logits, target(images), atol=1e-5)
        assert not seen
        with captured(target, ["layer1", "layer4"]) as wanted, torch.no_grad():
            target(images)
        for name, output in outputs.items():
            expected = channel_mean(name, wanted[name]) if made is reduced else wanted[name]
            assert torch.allclose(output, expected, atol=1e-5)
    assert close(explain(reduced, images), explain(target, images))
    maps, wanted = statistic_maps(plain, images), statistic_maps(target, images)
    assert all(close(maps[name], wanted[name]) for name in wanted)


class Folding(nn.Module):
    """Puts another factor on the images when it is traced; where `fails`, it cannot be exported at all."""

    def __init__(self, fails):
        super().__init__()
        self.fails, self.head = (
            fails,
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )

    def forward(self, images):
        if torch.onnx.is_in_onnx_export():
            if self.fails:
                raise TypeError("no such\noperator")
            images = images * 1.001
        return self.head(images)


@pytest.mark.parametrize(
    ("fails", "reason"), [(True, "TypeError: no such"), (False, "differ by 0.00.* of the largest")]
)
def test_a_network_that_cannot_be_exported_runs_in_pytorch_after_one_line(fails, reason, images):
    model = Folding(fails).eval()
    with pytest.warns(UserWarning, match=f"^Folding runs in PyTorch for images of 48 x 48 .*{reason}") as told:
        made = engine(model, images, choice="onnxruntime")
    assert torch.allclose(made(images), model(images), atol=1e-6)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert module.told(made).startswith("PyTorch, on the inference copy: ")


def test_an_export_that_fails_shows_no_graph(capfd):
    """small_vgg at 64 pixels: pooling 2 x 2 places to 7 x 7 has no operator; torch would print the graph."""
    with pytest.warns(UserWarning, match="adaptive_avg_pool2d"):
        engine(build("small_vgg", range(3), image_size=64).eval(), torch.rand(1, 3, 64, 64))
    print("still heard")
    assert capfd.readouterr().out == "still heard\n"


def test_without_onnxruntime(target, images, monkeypatch):
    """auto does without, in silence; who asked for it gets an error; who asked for the copy never meets it."""
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else name)
    for choice, reason in (("auto", "onnxruntime cannot be imported"), ("copy", "it was asked for")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = engine(target, images, choice=choice)
        assert module.told(made).endswith(reason)
        assert torch.equal(made(images), inference_copy(target, images[:1])(images))
    with pytest.raises(ImportError, match=r"onnxruntime cannot be imported; install the extra `pipeline`"):
        engine(target, images, choice="onnxruntime")
    with pytest.raises(ValueError, match="engine 'fast' is unknown; choose one of auto, onnxruntime, copy"):
        engine(target, images, choice="fast")


def test_an_export_is_kept_and_belongs_to_its_weights(target, images, folder, monkeypatch):
    first = engine(target, images)
    (kept,) = folder.iterdir()
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported again"))
    assert torch.equal(engine(target, images)(images), first(images))
    monkeypatch.undo()
    monkeypatch.setattr(module, "FOLDER", folder)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-100])
    assert torch.equal(engine(target, images)(images), first(images))
    assert kept.read_bytes() == whole
    other = build("tiny_resnet", range(5)).eval()
    assert torch.allclose(engine(other, images)(images), other(images), atol=1e-5)
    assert len([*folder.iterdir()]) == 2


def test_the_users_model_is_as_it_was(target, images):
    target.train()
    target.network.fc.weight.requires_grad_(False)
    before = copy.deepcopy(target)
    made = engine(target, images)
    explain_many(made, images, 1, ROWS)
    assert all(
        torch.equal(*pair) for pair in zip(target.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert [p.requires_grad for p in target.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(each.training and "forward" not in vars(each) and not each._forward_hooks for each in target.modules())
