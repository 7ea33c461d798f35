"""Targets of timm and transformers, and those that are built for one size of images."""

import json
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from xai_utils import networks
from xai_utils.networks import build, heads, hf_networks, inference_copy, load, replace_head, save, timm_networks
from xai_utils.networks.targets import IMAGENET_MEAN, IMAGENET_STD
from xai_utils.training.target import source_of, starting_target

HALF = pytest.approx([0.5] * 3)
FOUR = ["wren", "crow", "gull", "auk"]
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
SMALL |= {"image_size": 32, "patch_size": 8}
STAGED = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32}
KINDS = {
    "vit": SMALL,
    "swin": STAGED,
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "resnet": {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8},
    "deit": SMALL | {"architectures": ["DeiTForImageClassificationWithTeacher"]},
}


def folder_of(kind, folder, names=FOUR, mean=None, **options):
    """A folder as save_pretrained leaves it, with random weights; `mean`: with a preprocessor of that mean."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, id2label=dict(enumerate(names)), **KINDS[kind] | options)
    made = transformers.AutoModelForImageClassification.from_config(config)
    with hf_networks._quiet(transformers):
        made.save_pretrained(folder)
    if mean:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": [0.25] * 3}))
    return made.eval()


@pytest.fixture
def vit_small(monkeypatch):
    """torchvision's ViT with one block and patches of 8 pixels, under this name."""

    def made(number, *, image_size=64):
        return torchvision.models.VisionTransformer(image_size, 8, 1, 2, 16, 16, num_classes=number)

    monkeypatch.setitem(networks.ARCHITECTURES, "vit_small", made)


@pytest.mark.parametrize(("name", "extra"), [("timm:test_vit", "pipeline"), ("hf:anywhere", "transformers")])
def test_a_package_that_is_missing_is_named_with_its_extra(name, extra, monkeypatch):
    """What to install, in place of a traceback of an import."""
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'xai-utils\[{extra}\]'"):
        build(name, "ab")


@pytest.mark.parametrize(
    ("architecture", "options", "names"),
    [
        ("timm:test_vit", {"image_size": 48}, ["head"]),
        ("timm:test_convnext", {}, ["head.fc"]),
        ("timm:test_byobnet.r160_in1k", {}, ["head.fc"]),
        ("timm:levit_128s", {"image_size": 64}, ["head.linear", "head_dist.linear"]),
        ("swin_t", {}, ["head"]),
        ("vit_small", {"image_size": 32}, ["heads.head"]),
    ],
)
def test_a_target_round_trip(architecture, options, names, tmp_path, vit_small):
    """What is saved answers the same bit by bit, with its size; a new head changes itself alone."""
    size = options.get("image_size", 64)
    target, images = build(architecture, FOUR, image_size=size).eval(), torch.rand(2, 3, size, size)
    assert (target.options, heads.head_names(target.network)) == (options, names)
    save(target, tmp_path)
    again = load(tmp_path)
    other = replace_head(again, "abcdefg")
    with torch.no_grad():
        assert torch.equal(again(images), target(images))
        assert other(images).shape == (2, 7)
    assert (again.architecture, again.options, other.options) == (architecture, options, options)
    old, new = target.network.state_dict(), other.network.state_dict()
    assert {key for key in old if not torch.equal(old[key], new[key]) if old[key].shape == new[key].shape} == set()
    save(other, tmp_path)
    assert load(tmp_path).classes == tuple("abcdefg")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_round_trip(kind, tmp_path):
    """Its own logits for images that it normalised; saved and loaded without the folder; other classes, other heads."""
    given = folder_of(kind, tmp_path / "given", mean=[0.4, 0.5, 0.6])
    target = build(f"hf:{tmp_path / 'given'}", None, pretrained_from=tmp_path / "given").eval()
    images = torch.rand(2, 3, 32, 32)
    channels = [(images[:, c] - mean) / 0.25 for c, mean in enumerate((0.4, 0.5, 0.6))]
    with torch.no_grad():
        torch.testing.assert_close(target(images), given(torch.stack(channels, 1)).logits)
        assert target.classes == tuple(FOUR)
        save(target, tmp_path / "saved")
        (tmp_path / "given").rename(tmp_path / "gone")
        again = load(tmp_path / "saved")
        assert torch.equal(again(images), target(images))
        other = replace_head(again, "abcdefg")
        assert other(images).shape == (2, 7)
        save(other, tmp_path / "other")
        assert torch.equal(load(tmp_path / "other")(images), other(images))
        assert torch.allclose(inference_copy(target, images)(images), target(images), atol=1e-5)
    assert len(heads.head_names(other.network)) == (2 if kind == "deit" else 1)


def test_classes_and_normalisation_come_from_the_folder(tmp_path):
    """Names of config.json unless it numbers them; preprocessor_config.json, or 0.5 with a warning; no other scale."""
    folder = tmp_path / "given"
    folder_of("convnext", folder, [f"LABEL_{i}" for i in range(4)])
    with pytest.warns(UserWarning, match=r"given has no preprocessor_config\.json: mean and std are taken as 0\.5"):
        target = build(f"hf:{folder}", None, pretrained_from=folder)
    assert target.classes == ("class 0", "class 1", "class 2", "class 3")
    assert (target.mean.tolist(), target.std.tolist()) == (HALF, HALF)
    for told, mean, std in (({"do_normalize": False, "image_mean": [0.5] * 3}, [0] * 3, [1] * 3),
                            ({"rescale_factor": 1 / 255, "image_mean": [0.1] * 3}, [0.1] * 3, [0.5] * 3)):  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(told))
        target = build(f"hf:{folder}", "ab")
        assert (target.mean.tolist(), target.std.tolist()) == (pytest.approx(mean), pytest.approx(std))
    for text, message in (('{"rescale_factor": 0.00784, "rescale_offset": true}', "does not scale pixels"),
                          ('{"do_rescale": false}', "does not scale pixels"), ("[", "cannot be read")):  # fmt: skip
        (folder / "preprocessor_config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"preprocessor_config\.json {message}"):
            build(f"hf:{folder}", "ab")
        build(f"hf:{folder}", "ab", mean=[0.5] * 3, std=[0.5] * 3)


def test_what_is_no_folder_of_an_image_classifier_is_refused(tmp_path):
    """Without config.json, with a damaged or foreign one, without weights, with those of another network."""
    folder = tmp_path / "given"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"given holds no config\.json; give a folder"):
        build(f"hf:{folder}", "ab")
    for text, message in (("{", "cannot be r"), ("{}", "cannot be read"), ('{"model_type": "odd"}', "cannot be read"),
                          ('{"model_type": "bert"}', "is of 'bert', for which transformers has no image")):  # fmt: skip
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json {message}"):
            build(f"hf:{folder}", "ab")
    folder_of("vit", folder, mean=[0.5] * 3)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"given holds no model\.safetensors"):
        build(f"hf:{folder}", None, pretrained_from=folder)
    (folder / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ValueError, match="given: the weights cannot be read"):
        build(f"hf:{folder}", None, pretrained_from=folder)
    folder_of("convnext", tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"given does not hold weights of ViTForImageClassification \(missing: "):
        build(f"hf:{folder}", None, pretrained_from=folder)


def test_timm_says_classes_and_normalisation(monkeypatch):
    """The mean and std of its configuration, ImageNet's classes by name for weights with a tag, none for 21k's own."""
    assert build("timm:test_vit", "ab").mean.tolist() == HALF
    plain = build("timm:test_byobnet", "ab")
    assert (plain.mean.tolist(), plain.std.tolist()) == (pytest.approx(IMAGENET_MEAN), pytest.approx(IMAGENET_STD))
    names, *_ = timm_networks.about("test_vit.r160_in1k")
    assert (names[0], len(names)) == ("tench", 1000)
    assert timm_networks.about("vit_base_patch16_clip_224.openai")[0] is None
    whole = build("timm:test_vit", range(1000)).network.state_dict()
    given = whole, *timm_networks.about("test_vit.r160_in1k")
    monkeypatch.setattr(timm_networks, "published", lambda name, tag: given)
    twice = build("timm:test_vit.r160_in1k", None, pretrained_from="r160_in1k").classes
    assert (len(set(twice)), twice[134]) == (1000, "crane (134)")


def test_timm_s_published_weights_by_their_tag(monkeypatch):
    """They fill all but a head of another size, and name their classes; without a network the way out is said."""
    import timm

    create, whole = timm.create_model, timm.create_model("test_vit", img_size=160)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: (
        whole if pretrained else create(name, **options)))  # fmt: skip
    assert source_of("timm:test_vit.r160_in1k") == ("timm:test_vit.r160_in1k", "r160_in1k")
    some = starting_target("timm:test_vit.r160_in1k", ["tench", "goldfish"], seed=0, new_head=False, image_size=160)
    assert torch.equal(some.network.head.weight, whole.head.weight)
    others = starting_target("timm:test_vit.r160_in1k", FOUR, seed=0, image_size=160)
    assert others.network.head.weight.shape == (4, 64)
    assert torch.equal(others.network.pos_embed, whole.pos_embed)

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", unreachable)
    way = r"cannot be fetched \(no route\); fetch them elsewhere \(https:.*in1k: .*:test_vit\.r160_in1k:FILE"
    with pytest.raises(ConnectionError, match=rf"timm's weights test_vit\.r160_in1k {way}"):
        starting_target("timm:test_vit.r160_in1k", FOUR, seed=0)


def test_weights_without_classes_start_a_training(tmp_path, monkeypatch):
    """A head is added to what timm says was trained without one; it explains nothing before it is trained."""
    import timm

    monkeypatch.setattr("xai_utils.training.target.WEIGHTS_FOLDER", tmp_path)
    whole = timm.create_model("convnextv2_atto.fcmae", num_classes=0).state_dict()
    monkeypatch.setattr(timm_networks, "published", lambda name, tag: (whole, None, (0.5,) * 3, (0.5,) * 3))
    torch.save(whole, tmp_path / "mine.pth")
    for name in ("timm:convnextv2_atto.fcmae", "timm:convnextv2_atto.fcmae:mine.pth"):
        target = starting_target(name, FOUR, seed=0)
        assert (target.classes, target.network.head.fc.weight.shape) == (tuple(FOUR), (4, 320))
        assert torch.equal(target.network.stem[0].weight, whole["stem.0.weight"])
        with pytest.raises(ValueError, match=r"convnextv2_atto\.fcmae.* was trained to tell no classes; train it"):
            starting_target(name, FOUR, seed=0, new_head=False)
    with pytest.raises(
        ValueError, match=r"mine\.pth does not hold weights of timm:convnextv2_atto \(missing: head\.fc"
    ):
        starting_target("timm:convnextv2_atto:mine.pth", FOUR, seed=0)


def test_a_file_of_timm_s_weights(tmp_path, monkeypatch):
    """In timm's own names, with classes by name where a tag says them; those of another network are refused."""
    monkeypatch.setattr("xai_utils.training.target.WEIGHTS_FOLDER", tmp_path)
    trained = build("timm:test_convnext", range(1000)).network
    save_file(trained.state_dict(), tmp_path / "mine.safetensors")
    for name, first in (("timm:test_convnext", "class 0"), ("timm:test_convnext.r160_in1k", "tench")):
        assert source_of(f"{name}:mine.safetensors") == (name, tmp_path / "mine.safetensors")
        target = build(name, None, pretrained_from=tmp_path / "mine.safetensors")
        assert (target.classes[0], target.mean.tolist()) == (first, HALF)
        assert torch.equal(target.network.head.fc.weight, trained.head.fc.weight)
    own = starting_target("timm:test_convnext:mine.safetensors", FOUR, seed=0)
    assert torch.equal(own.network.stem[0].weight, trained.stem[0].weight)
    assert own.classes == tuple(FOUR)
    with pytest.raises(
        ValueError, match=r"mine\.safetensors does not hold weights of timm:test_vit \(missing: head\.bias"
    ):
        starting_target("timm:test_vit:mine.safetensors", FOUR, seed=0)


@pytest.mark.parametrize(
    ("architecture", "side", "key"), [("timm:test_vit", 16, "pos_embed"), ("vit_small", 8, "encoder.pos_embedding")]
)
def test_weights_of_another_size_are_resampled(architecture, side, key, tmp_path, vit_small):
    """Positions of 2 x 2 patches become those of 4 x 4 around the same mean; a constant grid stays constant."""
    trained = build(architecture, "ab", image_size=2 * side).network
    with torch.no_grad():
        trained.get_parameter(key).fill_(0.25)
    torch.save(trained.state_dict(), tmp_path / "mine.pth")
    target = build(architecture, None, pretrained_from=tmp_path / "mine.pth", image_size=4 * side)
    found = target.network.get_parameter(key)
    assert found.shape == (1, 1 + 16, trained.get_parameter(key).shape[-1])
    torch.testing.assert_close(found, torch.full_like(found, 0.25))
    assert target.options == {"image_size": 4 * side}
    assert target(torch.rand(1, 3, 4 * side, 4 * side)).shape == (1, 2)


def test_names_that_are_none(tmp_path):
    """Close names, tags, sizes that do not divide, and what is still saved for no one."""
    for name, message in (
        ("timm:test_vitt", "timm has no network 'test_vitt'; close names: test_vit"),
        ("timm:test_vit.in1k", "timm has no weights 'in1k' of test_vit; it has: r160_in1k"),
        ("vit_b_33", r"architecture 'vit_b_33' is unknown; .*vit_b_32.* timm:NAME or hf:FOLDER"),
    ):
        with pytest.raises(ValueError, match=message):
            build(name, "ab")
        with pytest.raises(ValueError, match=message):
            save(networks.Target(nn.Identity(), name, "ab"), tmp_path / "mine")
    with pytest.raises(ValueError, match=r"vit_b_32 cannot be built for images of 40 pixels \(Input shape indivisible"):
        build("vit_b_32", "ab", image_size=40)


def test_every_network_of_torchvision_is_known():
    """Also those of tokens and of channels last; a ViT for the size of its images."""
    with torch.device("meta"):
        assert networks.ARCHITECTURES["vit_b_16"](3, image_size=64).encoder.pos_embedding.shape == (1, 1 + 4 * 4, 768)
    assert set(torchvision.models.list_models(module=torchvision.models)) < set(networks.ARCHITECTURES)


def test_an_inference_copy_folds_norms_that_rectify_too():
    """timm's BatchNormAct2d: no norm is left, the activation stays, also by its name."""
    torch.manual_seed(0)
    target, images = build("timm:test_byobnet", "ab").eval(), torch.rand(2, 3, 64, 64)
    for module in target.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    copied = inference_copy(target, images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert isinstance(copied.network.stem.bn.act, nn.Module)
    with torch.no_grad():
        torch.testing.assert_close(copied(images), target(images), atol=1e-5, rtol=1e-4)


def test_tied_weights_are_saved_and_loaded(tmp_path, monkeypatch):
    """Two layers of one weight, which safetensors refuses: both are written, and both are one again."""

    def tied(number):
        network = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, number))
        network[2].weight = network[1].weight
        return network

    monkeypatch.setitem(networks.ARCHITECTURES, "tied", tied)
    target, images = build("tied", "ab"), torch.rand(1, 3, 4, 4)
    save(target, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again(images), target(images))
    assert again.network[2].weight is again.network[1].weight
