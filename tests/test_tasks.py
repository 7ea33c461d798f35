"""The target's training: where it starts, how it is augmented, what its learning rate does."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from xai_utils import networks, tasks


def test_augmented_images_stay_in_range():
    """Interpolation and reflection invent no value: shapes stay, a range stays a range, a constant stays itself."""
    images = torch.rand(64, 3, 8, 8)
    cropped = tasks.augmented(images, torch.Generator().manual_seed(0), smallest_crop=0.3)
    assert cropped.shape == images.shape
    assert images.min() <= cropped.min()
    assert cropped.max() <= images.max()
    constant = torch.full((16, 3, 8, 8), 0.25)
    assert torch.allclose(tasks.augmented(constant, torch.Generator().manual_seed(1), smallest_crop=0.1), constant)


def test_crops_cover_the_promised_share_of_the_image():
    """On a ramp from 0 to 1 the range that a crop spans is its width: the widths and heights multiply to the area."""
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)
    images = torch.cat([ramp, ramp.transpose(2, 3)], 1)
    cropped = tasks.augmented(images, torch.Generator().manual_seed(0), smallest_crop=0.5)
    width = cropped[:, 0].amax((1, 2)) - cropped[:, 0].amin((1, 2))
    height = cropped[:, 1].amax((1, 2)) - cropped[:, 1].amin((1, 2))
    assert (width * height > 0.5 * 0.8).all()  # a width above 1 is cut to 1, half a pixel is lost on each side
    assert (width * height).mean() == pytest.approx(0.72, abs=0.05)
    flipped = cropped[:, 0, 0, 0] > cropped[:, 0, 0, -1]
    assert 60 < flipped.sum() < 140


def test_augmentation_is_a_function_of_its_generator():
    """Equal seeds give equal crops, another seed others."""
    images = torch.rand(4, 3, 16, 16)
    draw = [tasks.augmented(images, torch.Generator().manual_seed(s), smallest_crop=0.5) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_learning_rates_by_hand():
    """Halving: 1, 1/2, 1/4 every 20 epochs (AKD). Steps: a tenth at each. Cosine: up, 1/2 midway, 0 at the end."""
    halving = tasks.learning_rate_factor({"schedule": "halving", "epochs": 100, "halve_every": 20})
    assert [halving(epoch) for epoch in (0, 19.9, 20, 45)] == [1, 1, 0.5, 0.25]
    steps = tasks.learning_rate_factor({"schedule": "steps", "epochs": 90, "milestones": [30, 60, 80]})
    assert [steps(epoch) for epoch in (0, 30, 60, 89)] == pytest.approx([1, 0.1, 0.01, 0.001])
    cosine = tasks.learning_rate_factor({"schedule": "cosine", "epochs": 11})
    assert [round(cosine(epoch), 6) for epoch in (0, 0.5, 1, 6, 11)] == [0, 0.5, 1, 0.5, 0]


def test_a_target_is_an_architecture_or_a_checkpoint(tmp_path, monkeypatch):
    """The same seed gives the same new network; a checkpoint keeps its head if it knows the classes; else the list."""
    monkeypatch.setattr(tasks, "WEIGHTS", tmp_path)
    one, two = (tasks.starting_target("small_resnet", ["a", "b"], seed=3) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), two.parameters(), strict=True))
    networks.save(one, tmp_path / "mine")
    assert tasks.starting_target("mine", ["b"], seed=0).classes == ("a", "b")
    other = tasks.starting_target("mine", ["b", "c", "d"], seed=0)
    assert other.classes == ("b", "c", "d")
    assert torch.equal(other.network.conv1.weight, one.network.conv1.weight)
    with pytest.raises(ValueError, match=r"no target 'yours'; checkpoints in .*: mine; or .* architectures: alexnet, "):
        tasks.starting_target("yours", ["a"], seed=0)
    with pytest.raises(ValueError, match=r"no target 'vit_b_16' \(vit_b_16 works on tokens"):
        tasks.starting_target("vit_b_16", ["a"], seed=0)
    with pytest.raises(ValueError, match=r"no target 'resnet51:mine.pth'; "):
        tasks.starting_target("resnet51:mine.pth", ["a"], seed=0)


def test_a_target_is_an_architecture_with_a_file_of_weights(tmp_path, monkeypatch):
    """safetensors or a pickled state dict in data/weights: as many classes keep the head, others get a new one."""
    monkeypatch.setattr(tasks, "WEIGHTS", tmp_path)
    trained = networks.build("small_resnet", "ab").network
    save_file(trained.state_dict(), tmp_path / "mine.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}},
               tmp_path / "mine.pth")  # fmt: skip
    for name in ("small_resnet:mine.safetensors", "small_resnet:mine.pth"):
        same = tasks.starting_target(name, ["wren", "auk"], seed=0, new_head=False)
        assert same.classes == ("wren", "auk")
        assert torch.equal(same.network.fc.weight, trained.fc.weight)
        other = tasks.starting_target(name, ["0", "1", "2"], seed=0)
        assert other.network.fc.weight.shape == (3, 128)
        assert torch.equal(other.network.layer4[0].conv1.weight, trained.layer4[0].conv1.weight)
        with pytest.raises(ValueError, match=r"does not know 1 of the data's 1 classes, e\.g\. '0'; train it"):
            tasks.starting_target(name, ["0"], seed=0, new_head=False)
    with pytest.raises(FileNotFoundError, match=r"yours\.pth does not exist"):
        tasks.starting_target("small_resnet:yours.pth", ["a"], seed=0)
    with pytest.raises(ValueError, match=r"mine\.pth does not hold weights of "):
        tasks.starting_target("vgg11:mine.pth", ["a"], seed=0)


def test_imagenets_classes_are_known_by_name_or_as_all_synsets(monkeypatch):
    """torchvision's weights keep their head for data whose classes they name, and for the 1000 synsets in order."""
    classes = [f"name {i}" for i in range(1000)]
    classes[134] = classes[517] = "crane"
    whole = torchvision.models.resnet18(num_classes=1000)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: whole.state_dict())
    monkeypatch.setitem(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta, "categories", classes)
    name = "resnet18:IMAGENET1K_V1"
    some = tasks.starting_target(name, ["name 7", "name 3", "crane (517)"], seed=0, new_head=False)
    assert len(some.classes) == 1000
    assert tasks.class_indices(["name 7", "crane (517)"], some.classes).tolist() == [7, 517]
    synsets = [f"n{i:08}" for i in range(1000)]
    assert tasks.starting_target(name, synsets, seed=0, new_head=False).classes == tuple(synsets)
    assert torch.equal(tasks.starting_target(name, synsets, seed=0).network.fc.weight, whole.fc.weight)
    others = tasks.starting_target(name, [f"plant {i}" for i in range(1000)], seed=0)
    assert not torch.equal(others.network.fc.weight, whole.fc.weight)


def test_the_weights_of_a_target_count_for_its_training(tmp_path):
    """Another file of weights, or another file in a checkpoint's folder, is another training."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("1")
    (tmp_path / "file.pth").write_text("1")
    places = (tmp_path / "folder", tmp_path / "file.pth", tmp_path / "absent")
    seen = {tasks.files_fingerprint(*places)}
    for path in (tmp_path / "folder" / "x", tmp_path / "file.pth"):
        path.write_text("2")
        seen.add(tasks.files_fingerprint(*places))
    assert len(seen) == 3


def test_labels_follow_the_classes_names():
    """Class folders are matched to a checkpoint's classes by name, and a missing one is named."""
    assert tasks.class_indices(["c", "a"], ["a", "b", "c"]).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"does not know 1 of the data's 2 classes, e.g. 'x'"):
        tasks.class_indices(["a", "x"], ["a", "b"])
