"""Targets, their checkpoints, their layers and the inference copy."""

import csv
import json
import math
import os
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from xai_utils.networks import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Target,
    build,
    cam_layer,
    captured,
    load,
    replace_head,
    save,
    scale_layers,
    targets,
)
from xai_utils.networks.architectures import SamePaddedConv2d
from xai_utils.training.target import starting_target


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(1)
    return build("small_resnet", ("wren", "crow", "gull")).eval()


def test_target_normalises_pixels(small):
    """A target's logits are its network's for images normalised by hand, channel by channel."""
    images = torch.rand(2, 3, 32, 32)
    channels = [(images[:, c] - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)]
    torch.testing.assert_close(small(images), small.network(torch.stack(channels, 1)))
    assert small.classes == ("wren", "crow", "gull")
    assert small.architecture == "small_resnet"


def test_small_resnet_has_the_promised_size(small):
    """At 96 pixels the last map is 6x6 and a pass costs 0.028 GMAC, counted convolution by convolution."""
    operations = []

    def count(module, _, output):
        operations.append(module.weight[0].numel() * output[0].numel())

    handles = [m.register_forward_hook(count) for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with captured(small, ["layer4"]) as activations, torch.no_grad():
        small(torch.rand(1, 3, 96, 96))
    for handle in handles:
        handle.remove()
    assert activations["layer4"].shape == (1, 128, 6, 6)
    assert sum(operations) == pytest.approx(0.0284e9, rel=0.01)


def test_tiny_resnet_has_the_promised_maps():
    """At 48 pixels its five scales are maps of 24, 12, 6, 6 and 6 pixels with 16, 16, 32, 64 and 64 channels."""
    layers = ("relu", "layer1", "layer2", "layer3", "layer4")
    model = build("tiny_resnet", range(5)).eval()
    with captured(model, layers, reduce=lambda _, output: tuple(output.shape[1:3])) as shapes, torch.no_grad():
        assert model(torch.rand(1, 3, 48, 48)).shape == (1, 5)
    assert [shapes[name] for name in layers] == [(16, 24), (16, 12), (32, 6), (64, 6), (64, 6)]


@pytest.mark.parametrize("architecture", ["small_vgg", "small_googlenet"])
def test_small_black_boxes_learn_and_have_their_family_s_layers(architecture):
    """Both answer for 96 pixels, have a map to explain and five scales, and every weight gets a gradient."""
    torch.manual_seed(0)
    network, images = ARCHITECTURES[architecture](5), torch.rand(2, 3, 96, 96)
    logits = network(images)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(weights.grad is not None for weights in network.parameters())
    assert sum(weights.numel() for weights in network.parameters()) < 1_100_000
    network.eval()
    expected = {"small_vgg": "features.18", "small_googlenet": "inception5b"}[architecture]
    assert cam_layer(network, images) == expected
    assert len(scale_layers(network, images)) == 5


@pytest.mark.parametrize(("size", "first"), [(8, 0), (7, -1)])
def test_same_padding_is_tensorflows(size, first):
    """A kernel that copies its first corner shows where sampling begins: 0 for even sizes, -1 (zero) for odd."""
    layer = SamePaddedConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 1
    image = torch.arange(1.0, size * size + 1).reshape(1, 1, size, size)
    expected = torch.zeros(1, 1, 4, 4)
    for row in range(4):
        for column in range(4):
            y, x = first + 2 * row, first + 2 * column
            expected[0, 0, row, column] = image[0, 0, y, x] if min(y, x) >= 0 else 0
    assert torch.equal(layer(image), expected)


def test_tensorflow_variant_keeps_the_state_dict():
    """tf_mobilenet_v2 loads torchvision's weights and differs in exactly its five stride-2 convolutions."""
    plain, ours = torchvision.models.mobilenet_v2(num_classes=7), ARCHITECTURES["tf_mobilenet_v2"](7)
    ours.load_state_dict(plain.state_dict())
    padded = [name for name, module in ours.named_modules() if isinstance(module, SamePaddedConv2d)]
    strided = [n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert padded == strided
    assert len(padded) == 5


def test_real_weights_classify_real_images(real):
    """The published MobileNetV2 recognises real images in the wrapper, padding and normalisation included."""
    from PIL import Image
    from torchvision.transforms import v2

    weights = next((real / "mobilenet_v2").glob("mobilenet_v2*.safetensors"))
    target = build("tf_mobilenet_v2", range(1000), mean=(0.5,) * 3, std=(0.5,) * 3, pretrained_from=weights).eval()
    prepare = v2.Compose([v2.ToImage(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)])
    with open(real / "imagenet-samples" / "labels.csv") as file:
        rows = list(csv.DictReader(file))[::7][:60]
    folder = real / "imagenet-samples" / "images"
    images = [prepare(Image.open(folder / row["file"].split("/")[-1]).convert("RGB")) for row in rows]
    with torch.inference_mode():
        predicted = torch.cat([target(torch.stack(images[i : i + 10])).argmax(1) for i in range(0, len(images), 10)])
    hits = predicted == torch.tensor([int(row["class_index"]) for row in rows])
    assert len(rows) >= 57
    assert hits.float().mean() > 0.85


def test_published_weights_by_name(monkeypatch):
    """Weights by torchvision's name fill all but a head of another size; GoogLeNet's come with mean = std = 0.5."""
    published = {name: torchvision.models.get_model(name, weights=None, num_classes=1000, **options).state_dict()
                 for name, options in (("resnet18", {}), ("googlenet", {"init_weights": False}))}  # fmt: skip
    monkeypatch.setattr(
        torchvision.models.WeightsEnum,
        "get_state_dict",
        lambda self, **_: published[type(self).__name__.removesuffix("_Weights").lower()],
    )
    target = build("resnet18", "abc", pretrained_from="IMAGENET1K_V1")
    assert torch.equal(target.network.layer4[1].conv2.weight, published["resnet18"]["layer4.1.conv2.weight"])
    assert target.network.fc.weight.shape == (3, 512)
    whole = build("googlenet", range(1000), pretrained_from="IMAGENET1K_V1")
    assert torch.equal(whole.network.fc.weight, published["googlenet"]["fc.weight"])
    assert whole.mean.tolist() == whole.std.tolist() == [0.5] * 3
    assert not whole.network.transform_input
    with pytest.raises(ValueError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        build("resnet50", "abc", pretrained_from="V3")


@pytest.mark.parametrize(
    ("architecture", "mean", "std"),
    [("efficientnet_v2_l", [0.5] * 3, [0.5] * 3), ("inception_v3", [0.5] * 3, [0.5] * 3),
     ("mobilenet_v2", IMAGENET_MEAN, IMAGENET_STD)],
)  # fmt: skip
def test_published_weights_bring_their_normalisation(monkeypatch, architecture, mean, std):
    """torchvision says what its weights were trained with; Inception's normalise a second time inside."""
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: nn.Linear(1, 1))
    _, classes, *normalisation = targets._published(architecture, "IMAGENET1K_V1")
    assert normalisation == [pytest.approx(mean), pytest.approx(std)]
    assert len(set(classes)) == 1000


def test_weights_that_cannot_be_fetched_are_named_with_the_way_out(monkeypatch, tmp_path):
    """Without a network the error names the file and the folder where torchvision looks for it."""

    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"of resnet18 cannot be fetched .*put resnet18-\w+\.pth into"):
        build("resnet18", "ab", pretrained_from="IMAGENET1K_V1")


@pytest.mark.parametrize("architecture", ["small_resnet", "regnet_x_400mf", "squeezenet1_1", "mobilenet_v2"])
def test_a_file_of_weights_tells_the_number_of_classes(architecture, tmp_path):
    """Whatever the head is, linear or a convolution: five classes are found, numbered, and their weights are loaded."""
    network = ARCHITECTURES[architecture](5)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    target = build(architecture, None, pretrained_from=tmp_path / "mine.pt")
    assert target.classes == tuple(f"class {index}" for index in range(5))
    for ours, theirs in zip(target.network.state_dict().values(), network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=f"{architecture} without weights knows no classes"):
        build(architecture, None)


def test_pickles_are_opened_without_running_code(tmp_path):
    """A pickle that holds an object, a damaged one, and one without tensors are refused; the object is not made."""
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name, message in (
        ("trap.pth", r"trap\.pth is damaged, or holds more than weights, which could run code"),
        ("cut.pth", r"cut\.pth is damaged"),
        ("empty.pt", r"empty\.pt holds no state dict"),
    ):
        with pytest.raises(ValueError, match=message):
            build("small_resnet", None, pretrained_from=tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def broken(name, change):
    """Change one tensor of a state dict."""
    return lambda tensors: tensors | {name: change(tensors[name])}


@pytest.mark.filterwarnings("ignore:.*quantize|TypedStorage:UserWarning")
@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (
            broken("layer1.0.conv1.weight", lambda t: t.index_fill(0, torch.tensor(1), math.nan)),
            "holds NaN or infinite",
        ),
        (broken("fc.bias", lambda t: t + math.inf), "fc.bias holds NaN or infinite"),
        (broken("fc.bias", lambda t: t.double() + 1e300), "fc.bias holds NaN or infinite"),
        (broken("bn1.running_var", lambda t: t - 2), "bn1.running_var holds the negative variance -1"),
        (broken("conv1.weight", lambda t: t.to(torch.int8)), "conv1.weight is torch.int8, .* not quantised"),
        (broken("fc.weight", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "fc.weight is torch.qint8"),
        (lambda tensors: tensors | {"fc._packed_params": (1, 2)}, "no state dict .* but fc._packed_params: tuple"),
    ],
)
def test_broken_weights_are_refused_when_the_target_is_opened(breaks, message, tmp_path, monkeypatch):
    """The file and its first broken tensor are named, before any stage computes with them; so with 0 epochs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/weights").mkdir(parents=True)
    tensors = ARCHITECTURES["small_resnet"](2).state_dict()
    torch.save(breaks(tensors), "data/weights/mine.pth")
    with pytest.raises(ValueError, match=rf"mine\.pth.* {message}"):
        starting_target("small_resnet:mine.pth", ["a", "b"], seed=0, new_head=False)


@pytest.mark.parametrize(("name", "values"), [("std", [0.2, 0, 0.2]), ("std", [0.2, -0.1, 0.2]), ("mean", [0.5, 0.5]),
                                              ("std", [0.2] * 4), ("mean", [0.5, math.nan, 0.5]), ("mean", "grey"),
                                              ("std", None)])  # fmt: skip
def test_a_normalisation_that_cannot_be_is_refused_when_the_target_is_opened(small, name, values, tmp_path):
    """Three finite numbers each, the std's positive: in code, and in a checkpoint, whose file is named."""
    with pytest.raises(ValueError, match=rf"{name} is .*; give three finite"):
        Target(small.network, "small_resnet", small.classes, **{name: values})
    save(small, tmp_path)
    facts = json.loads((tmp_path / "target.json").read_text())
    (tmp_path / "target.json").write_text(json.dumps(facts | {name: values}))
    with pytest.raises(ValueError, match=rf"target\.json: {name} is .*; give three finite"):
        load(tmp_path)


class Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("architecture", ["small_resnet", "mobilenet_v2", "densenet121"])
def test_replace_head(architecture):
    """A new head changes the number of classes and nothing else; the old target stays."""
    old = build(architecture, range(4))
    new = replace_head(old, ("a", "b", "c", "d", "e", "f"))
    kept = {key for key, tensor in new.network.state_dict().items() if torch.equal(
        tensor, old.network.state_dict()[key]) if tensor.shape == old.network.state_dict()[key].shape}  # fmt: skip
    changed = set(old.network.state_dict()) - kept
    assert len(changed) == 2
    assert new.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 6)
    assert old.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 4)


def test_replace_head_without_a_linear_layer():
    """A network whose head is a convolution is refused by name."""
    with pytest.raises(ValueError, match="squeezenet1_1 has no linear layer"):
        replace_head(build("squeezenet1_1", "ab"), "abc")


def test_checkpoint_round_trip(small, tmp_path):
    """A loaded target gives the same logits bit by bit, knows its classes, and nothing else lies in the folder."""
    save(small, tmp_path / "new" / "target", made_with={"epochs": 3})
    again = load(tmp_path / "new" / "target")
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(again(images), small(images))
    assert (again.classes, again.architecture, again.training) == (small.classes, "small_resnet", False)
    assert sorted(os.listdir(tmp_path / "new" / "target")) == ["target.json", "target.safetensors"]
    assert json.loads((tmp_path / "new" / "target" / "target.json").read_text())["made_with"] == {"epochs": 3}


def test_failed_save_leaves_the_old_checkpoint(small, tmp_path, monkeypatch):
    """A save that breaks while the weights are written leaves the old target loadable and no stray file."""
    save(small, tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save(small, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["target.json", "target.safetensors"]
    assert load(tmp_path).classes == small.classes


def test_checkpoint_errors(small, tmp_path):
    """Each broken checkpoint is refused with the file, the value or the key that is wrong."""
    with pytest.raises(FileNotFoundError, match=r"holds no target: target\.json is missing"):
        load(tmp_path / "nowhere")
    save(small, tmp_path)
    facts_file, weights = tmp_path / "target.json", tmp_path / "target.safetensors"
    facts, whole = json.loads(facts_file.read_text()), weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"target\.safetensors is corrupt"):
        load(tmp_path)
    weights.write_bytes(whole)
    facts_file.write_text(json.dumps(facts | {"architecture": "resnet19"}))
    with pytest.raises(ValueError, match=r"'resnet19' is unknown.*resnet18.*small_resnet"):
        load(tmp_path)
    facts_file.write_text(json.dumps(facts | {"architecture": "mobilenet_v3_small"}))
    with pytest.raises(ValueError, match=r"missing: features\.0\.0\.weight; unexpected: bn1\."):
        load(tmp_path)
    facts_file.write_text(json.dumps(facts | {"classes": ["wren", "crow"]}))
    with pytest.raises(ValueError, match=r"of another shape: fc\.weight \(3, 128\) instead of \(2, 128\)"):
        load(tmp_path)
    for broken in ('{"architecture": ', "{}", "[]"):
        facts_file.write_text(broken)
        with pytest.raises(ValueError, match=r"target\.json is corrupt"):
            load(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is not a readable"):
        build("small_resnet", "abc", pretrained_from=tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="'my_net' is unknown"):
        save(Target(nn.Identity(), "my_net", "ab"), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
