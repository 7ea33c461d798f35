"""Part truth on networks that look at known parts, and on maps whose mass and ranks are known by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xai_utils import datasets
from xai_utils.evaluation.scores import score_batch
from xai_utils.metrics import METRICS
from xai_utils.metrics.part_truth import area_share, deciding_parts, part_truth, part_truth_top

SPECIES = Path(__file__).resolve().parent.parent / "data" / "birds"
SIZE = 48


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds") / "data"
    datasets.prepare(SPECIES, folder, image_size=SIZE, train_per_class=1, validation_per_class=2, seed=3)
    return datasets.load(folder)


class Looks(nn.Module):
    """Class 0 as long as the pixels under `mask` (H, W) look on average as in `image` (3, H, W), class 1 otherwise."""

    def __init__(self, image, mask):
        super().__init__()
        self.register_buffer("image", image)
        self.register_buffer("mask", mask)

    def forward(self, images):
        change = ((images - self.image).abs().amax(1) * self.mask).sum((1, 2)) / self.mask.sum()
        return torch.stack([torch.full_like(change, 5), 60 * change], 1)


@pytest.mark.parametrize("split", datasets.SPLITS)
def test_a_bird_drawn_again_is_the_prepared_image(birds, split):
    """Without a change, every image and part map of both splits comes out of the generator exactly as preparation."""
    own = getattr(birds, split)
    for index in range(len(own)):
        again = birds.render_again(split, index)
        assert np.array_equal(again.image.transpose(2, 0, 1), own.images[index])
        assert np.array_equal(again.parts, own.parts[index])


def test_other_looks_are_each_look_once(birds):
    """Every look of the catalogue but the species' own occurs once, in the catalogue's order."""
    species = birds.catalogue.species
    for name, looks in species.items():
        for part in birds.part_names:
            others = birds.catalogue.other_looks(name, part)
            found = [species[other][part] for other in others]
            assert len(found) == len(set(found))
            assert {*found, looks[part]} == {each[part] for each in species.values()}
            assert list(others) == sorted(others, key=list(species).index)


class LooksInOneLogit(Looks):
    """As Looks, which of the two in one logit."""

    def forward(self, images):
        return super().forward(images).diff(dim=1)


def test_parts_decide_by_the_sigmoid_of_one_logit_as_by_the_softmax_of_two(birds):
    """The same probabilities, drops and parts; by softmax one logit says nothing."""
    image, mask = birds.validation.tensor([5])[0], birds.validation.part_masks([5], "wing")[0]
    two = deciding_parts(Looks(image, mask), birds, "validation", [5])
    one = deciding_parts(LooksInOneLogit(image, mask), birds, "validation", [5], score="sigmoid")
    assert two.decides.any()
    for each, other in zip(one, two, strict=True):
        torch.testing.assert_close(each, other, equal_nan=True)
    with pytest.raises(ValueError, match='give score="sigmoid"'):
        deciding_parts(LooksInOneLogit(image, mask), birds, "validation", [5])


@pytest.mark.parametrize("part", ["beak", "wing", "tail"])
def test_the_part_that_a_network_looks_at_decides(birds, part):
    """A network that reads one part's pixels is decided by that part alone; a map of just that part scores 1."""
    for index in (0, 5, 17):
        image, mask = birds.validation.tensor([index])[0], birds.validation.part_masks([index], part)
        found = deciding_parts(Looks(image, mask[0]), birds, "validation", [index], chunk=7)
        assert found.target.tolist() == [0]
        assert found.score.item() == pytest.approx(1 / (1 + math.exp(-5)))
        assert [birds.part_names[place] for place in found.decides[0].nonzero()] == [part]
        assert torch.equal(found.masks, mask)
        for metric in (part_truth, part_truth_top):
            assert metric(None, None, None, mask.float(), part_masks=found.masks).item() == 1


def test_the_drop_is_the_largest_of_all_looks(birds):
    """Drops and masks equal a loop over looks and parts; a given class is explained, right or wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 15 * 15, 12)).train()
    indices, target = [3, 20], torch.tensor([4, 11])
    found = deciding_parts(model, birds, "validation", indices, target, threshold=0.01)
    assert model.training
    assert found.target.tolist() == [4, 11]
    for row, index in enumerate(indices):
        species = birds.classes[birds.validation.labels[index]]
        expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for place, part in enumerate(birds.part_names):
            left = []
            for other in birds.classes:
                if birds.catalogue.species[other][part] != birds.catalogue.species[species][part]:
                    picture = birds.render_again("validation", index, swap={part: other}).image
                    with torch.no_grad():
                        logits = model(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255)
                    left.append(logits.softmax(1)[0, target[row]].item())
            before = found.score[row].item()
            assert found.drops[row, place].item() == pytest.approx(before - min(left), abs=1e-6)
            if before - min(left) > 0.01 * before:
                expected |= birds.validation.part_masks([index], part)[0]
        assert torch.equal(found.masks[row], expected)
    again = deciding_parts(model, birds, "validation", indices, target, threshold=0.01, chunk=5)
    torch.testing.assert_close(again.drops, found.drops, atol=1e-6, rtol=0)


def test_only_drawn_data_have_part_truth(birds, tmp_path):
    """An image folder is refused with its name, as is a threshold that is no share."""
    for name in ("one", "two"):
        (tmp_path / "set" / "validation" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "validation" / name / "a.png")
    datasets.prepare(tmp_path / "set", tmp_path / "data", image_size=8)
    with pytest.raises(ValueError, match="image_folder data, whose parts cannot be changed"):
        deciding_parts(None, datasets.load(tmp_path / "data"), "validation", [0])
    with pytest.raises(ValueError, match="threshold is 1"):
        deciding_parts(None, birds, "validation", [0], threshold=1)


def test_mass_and_top_by_hand():
    """Of mass 0, 1, 2, 5 above the minimum the mask holds 1 + 5 of 8; of its two top pixels (5, 2) one."""
    maps = torch.tensor([[[-3.0, -2.0], [-1.0, 2.0]]])
    masks = torch.tensor([[[False, True], [False, True]]])
    assert part_truth(None, None, None, maps, part_masks=masks).tolist() == [0.75]
    assert part_truth_top(None, None, None, maps, part_masks=masks).tolist() == [0.5]
    perfect = masks.float() * 7
    assert part_truth(None, None, None, perfect, part_masks=masks).tolist() == [1]
    assert part_truth_top(None, None, None, perfect, part_masks=masks).tolist() == [1]
    assert part_truth(None, None, None, -perfect, part_masks=masks).tolist() == [0]


def test_a_constant_map_scores_chance_and_no_part_scores_nothing():
    """A constant map gets the parts' share of the image, wherever they lie; where no part decides there is NaN."""
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, :1], masks[1, 3:] = True, True
    for metric in (part_truth, part_truth_top):
        scores = metric(None, None, None, torch.full((3, 4, 5), 2.5), part_masks=masks)
        assert scores.tolist() == pytest.approx([0.25, 0.25, math.nan], nan_ok=True)
    assert area_share(masks).tolist() == [0.25, 0.25, 0]
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        part_truth(None, None, None, torch.zeros(3, 4, 4), part_masks=masks)


def test_a_map_that_knows_nothing_scores_chance_on_average():
    """Uniform noise has the parts' share of mass and of top pixels, within four standard errors."""
    masks = torch.zeros(40, 32, 32, dtype=torch.bool)
    masks[:, 4:12, 4:20] = True
    maps = torch.rand(40, 32, 32)
    for metric in (part_truth, part_truth_top):
        scores = metric(None, None, None, maps, part_masks=masks)
        assert scores.mean().item() == pytest.approx(0.125, abs=4 * scores.std().item() / 40**0.5)


def test_part_truth_is_scored_beside_the_other_metrics():
    """`score_batch` hands the parts' masks to these metrics and the boxes' to the others."""
    maps, boxes = torch.rand(2, 6, 6), torch.ones(2, 6, 6, dtype=torch.bool)
    parts = torch.zeros(2, 6, 6, dtype=torch.bool)
    parts[:, 2] = True
    names = ["pointing_game", "part_truth", "part_truth_top", "mean_intensity"]
    scores, _ = score_batch(None, None, None, maps, metrics=names, masks=boxes, part_masks=parts)
    assert scores["pointing_game"].tolist() == [1, 1]
    assert torch.equal(scores["part_truth"], METRICS["part_truth"].function(None, None, None, maps, part_masks=parts))
    assert ((scores["part_truth_top"] * 6) % 1 < 1e-5).all()
