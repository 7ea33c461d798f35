"""The target's training: where it starts, which classes it knows, and what makes it another training."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from xai_utils import networks
from xai_utils.files import files_fingerprint
from xai_utils.training.target import indices_by_name, starting_target


def test_a_target_is_an_architecture_or_a_checkpoint(tmp_path, monkeypatch):
    """The same seed gives the same new network; a checkpoint keeps its head if it knows the classes; else the list."""
    monkeypatch.setattr("xai_utils.training.target.WEIGHTS_FOLDER", tmp_path)
    one, two = (starting_target("small_resnet", ["a", "b"], seed=3) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), two.parameters(), strict=True))
    networks.save(one, tmp_path / "mine")
    assert starting_target("mine", ["b"], seed=0).classes == ("a", "b")
    other = starting_target("mine", ["b", "c", "d"], seed=0)
    assert other.classes == ("b", "c", "d")
    assert torch.equal(other.network.conv1.weight, one.network.conv1.weight)
    with pytest.raises(ValueError, match=r"no target 'yours'; checkpoints in .*: mine; or .* architectures: alexnet, "):
        starting_target("yours", ["a"], seed=0)
    with pytest.raises(ValueError, match=r"no target 'resnet51:mine.pth'; "):
        starting_target("resnet51:mine.pth", ["a"], seed=0)


def test_a_target_is_an_architecture_with_a_file_of_weights(tmp_path, monkeypatch):
    """safetensors or a pickled state dict in data/weights: as many classes keep the head, others get a new one."""
    monkeypatch.setattr("xai_utils.training.target.WEIGHTS_FOLDER", tmp_path)
    trained = networks.build("small_resnet", "ab").network
    save_file(trained.state_dict(), tmp_path / "mine.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}},
               tmp_path / "mine.pth")  # fmt: skip
    for name in ("small_resnet:mine.safetensors", "small_resnet:mine.pth"):
        same = starting_target(name, ["wren", "auk"], seed=0, new_head=False)
        assert same.classes == ("wren", "auk")
        assert torch.equal(same.network.fc.weight, trained.fc.weight)
        other = starting_target(name, ["0", "1", "2"], seed=0)
        assert other.network.fc.weight.shape == (3, 128)
        assert torch.equal(other.network.layer4[0].conv1.weight, trained.layer4[0].conv1.weight)
        assert starting_target(name, ["0"], seed=0, new_head=False).classes == ("class 0", "class 1")
    with pytest.raises(FileNotFoundError, match=r"yours\.pth does not exist"):
        starting_target("small_resnet:yours.pth", ["a"], seed=0)
    with pytest.raises(ValueError, match=r"mine\.pth does not hold weights of "):
        starting_target("vgg11:mine.pth", ["a"], seed=0)


def test_imagenets_classes_are_known_by_name_or_as_all_synsets(monkeypatch):
    """torchvision's weights keep their head for data whose classes they name, and for the 1000 synsets in order.

    To be trained on some of them, they keep the rows of these, in the data's order.
    """
    classes = [f"name {i}" for i in range(1000)]
    classes[134] = classes[517] = "crane"
    whole = torchvision.models.resnet18(num_classes=1000)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: whole.state_dict())
    monkeypatch.setitem(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta, "categories", classes)
    name = "resnet18:IMAGENET1K_V1"
    some = starting_target(name, ["name 7", "name 3", "crane (517)"], seed=0, new_head=False)
    assert len(some.classes) == 1000
    assert indices_by_name(["name 7", "crane (517)"], some.classes).tolist() == [7, 517]
    trained = starting_target(name, ["name 7", "name 3", "crane (517)"], seed=0)
    assert trained.classes == ("name 7", "name 3", "crane (517)")
    assert torch.equal(trained.network.fc.weight, whole.fc.weight[[7, 3, 517]])
    assert torch.equal(trained.network.fc.bias, whole.fc.bias[[7, 3, 517]])
    synsets = [f"n{i:08}" for i in range(1000)]
    assert starting_target(name, synsets, seed=0, new_head=False).classes == tuple(synsets)
    assert torch.equal(starting_target(name, synsets, seed=0).network.fc.weight, whole.fc.weight)
    others = starting_target(name, [f"plant {i}" for i in range(1000)], seed=0)
    assert not torch.equal(others.network.fc.weight, whole.fc.weight)


def test_the_weights_of_a_target_count_for_its_training(tmp_path):
    """Another file of weights, or another file in a checkpoint's folder, is another training."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("1")
    (tmp_path / "file.pth").write_text("1")
    places = (tmp_path / "folder", tmp_path / "file.pth", tmp_path / "absent")
    seen = {files_fingerprint(*places)}
    for path in (tmp_path / "folder" / "x", tmp_path / "file.pth"):
        path.write_text("2")
        seen.add(files_fingerprint(*places))
    assert len(seen) == 3


def test_labels_follow_the_classes_names():
    """Class folders are matched to a checkpoint's classes by name, and a missing one is named."""
    assert indices_by_name(["c", "a"], ["a", "b", "c"]).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"does not know 1 of the data's 2 classes, e.g. 'x'"):
        indices_by_name(["a", "x"], ["a", "b"])
