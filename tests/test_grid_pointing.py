"""The grid pointing game on maps whose shares are known by hand, and on networks whose cells cannot see each other."""

import json
import math

import numpy as np
import pytest
import torch
from recognised import project
from torch import nn

from xai_utils import datasets, networks
from xai_utils.evaluation import explanation, maps, scores
from xai_utils.explainers import explain
from xai_utils.metrics.grid_pointing import cell_mask, draw_cells, explained_cell, grid_pointing, mosaic
from xai_utils.training.distributed import Compute

SIZE = 32


def cell_masks(count, cells, size):
    """The masks of the explained cells of the first `count` mosaics."""
    return torch.stack([cell_mask(explained_cell(number, cells), cells, size) for number in range(count)])


def test_shares_by_hand():
    """Positive values of 1, 2, 4, 1 in the cells are 1/8, 2/8, …; above the minimum of -9 they hold 28, 37, 35, 37."""
    one = torch.tensor([[1.0, -9, 2, 0], [0, 0, -1, 0], [3, 1, 0, 0], [-5, 0, 1, 0]])
    masks = torch.stack([cell_mask(cell, 2, (4, 4)) for cell in range(4)])
    found = grid_pointing(None, None, None, one.expand(4, 4, 4), cell_masks=masks)
    assert found.tolist() == [1 / 8, 2 / 8, 4 / 8, 1 / 8]
    above = grid_pointing(None, None, None, one.expand(4, 4, 4), cell_masks=masks, mass="above_minimum")
    assert above.tolist() == pytest.approx([28 / 137, 37 / 137, 35 / 137, 37 / 137])


def test_what_knows_no_place_scores_chance_and_an_offset_hides_the_rest():
    """Constant, zero and negative maps have a cell's share, 1/9 of 3 x 3; without a cell there is no score.

    A map of 1 in its cell has 1, with 1 added everywhere 2/5 of 4 cells, and with mass above the minimum 1 again.
    """
    masks = cell_masks(3, 3, (6, 6))
    for value in (2.5, 0.0, -2.5):
        found = grid_pointing(None, None, None, torch.full((3, 6, 6), value), cell_masks=masks)
        assert found.tolist() == pytest.approx([1 / 9] * 3)
    assert math.isnan(grid_pointing(None, None, None, torch.ones(1, 6, 6), cell_masks=torch.zeros(1, 6, 6)))
    right = cell_masks(4, 2, (6, 6))
    given = {"cell_masks": right}
    assert grid_pointing(None, None, None, right.float(), **given).tolist() == [1] * 4
    assert grid_pointing(None, None, None, right.float() + 1, **given).tolist() == pytest.approx([2 / 5] * 4)
    assert grid_pointing(None, None, None, right.float() + 1, **given, mass="above_minimum").tolist() == [1] * 4
    assert grid_pointing(None, None, None, (~right).float(), **given).tolist() == [0] * 4
    with pytest.raises(ValueError, match="mass 'all' is unknown; choose one of positive, above_minimum"):
        grid_pointing(None, None, None, right.float(), **given, mass="all")


@pytest.mark.parametrize(("cells", "size"), [(2, None), (2, (5, 7)), (3, None), (3, (32, 32))])
def test_a_mosaic_shows_each_image_in_its_cell_alone(cells, size):
    """Images of one colour each stay so, scaled or not, row by row; masks cover each pixel once."""
    colours = torch.rand(cells**2, 3)
    made = mosaic(colours[:, :, None, None].expand(-1, -1, 6, 4), size=size)
    size = size or (6 * cells, 4 * cells)
    assert made.shape == (3, *size)
    masks = torch.stack([cell_mask(cell, cells, size) for cell in range(cells**2)])
    assert (masks.sum(0) == 1).all()
    for mask, colour in zip(masks, colours, strict=True):
        torch.testing.assert_close(made[:, mask], colour[:, None].expand(-1, int(mask.sum())))
    first, last = masks[0].nonzero()[0], masks[-1].nonzero()[-1]
    assert (first.tolist(), last.tolist()) == ([0, 0], [size[0] - 1, size[1] - 1])
    assert masks[1].nonzero()[0].tolist() == [0, size[1] // cells]


def test_a_mosaic_holds_the_pixels_themselves():
    """Unscaled, bit for bit; what is no square of images, no cell, or too small is named."""
    images = torch.rand(4, 3, 5, 6)
    made = mosaic(images)
    assert torch.equal(made, torch.cat([torch.cat(list(images[:2]), 2), torch.cat(list(images[2:]), 2)], 1))
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"a mosaic of {count} images is no square"):
            mosaic(torch.rand(count, 3, 5, 6))
    with pytest.raises(ValueError, match="cell 4 is none of 2 x 2; give 0 to 3"):
        cell_mask(4, 2, (8, 8))
    with pytest.raises(ValueError, match="1 x 8 pixels are too few for 2 x 2 cells"):
        mosaic(images, size=(1, 8))


@pytest.mark.parametrize(("classes", "cells"), [(2, 2), (3, 2), (4, 2), (12, 2), (12, 3)])
def test_the_explained_class_stands_in_its_cell_alone(classes, cells):
    """Whatever the number of classes; no image and no other class twice while there are others; each cell as often."""
    labels = np.arange(40) % classes
    for number in range(2 * cells**2):
        drawn = draw_cells(labels, 7, number, 3, cells=cells)
        assert drawn[number % cells**2] == 7
        assert np.count_nonzero(labels[drawn] == labels[7]) == 1
        assert len(set(drawn.tolist())) == cells**2
        counts = np.bincount(labels[drawn], minlength=classes)
        counts = np.delete(counts, labels[7])
        assert counts.max() - counts.min() <= 1
    order = [explained_cell(number, cells) for number in range(2 * cells**2)]
    assert order == [*range(cells**2)] * 2


def test_cells_are_drawn_by_seed_and_number_alone():
    """The same twice, another mosaic by another seed or number; two images fill four cells; one class makes none."""
    labels = np.arange(40) % 5
    drawn = [draw_cells(labels, 2, 4, 0).tolist() for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != draw_cells(labels, 2, 4, 1).tolist()
    assert drawn[0] != draw_cells(labels, 2, 8, 0).tolist()
    assert draw_cells([1, 0], 0, 2, 0).tolist() == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="all 3 images are of one class; a mosaic needs images of two"):
        draw_cells([1, 1, 1], 0, 0, 0)


class Disconnected(nn.Module):
    """Each cell of 2 x 2 is seen by its own copy of a network, and one is read (DiFull, Rao et al. 2022)."""

    def __init__(self, read):
        super().__init__()
        self.read = read
        self.cell = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip

    def forward(self, images):
        cells = [part for rows in images.chunk(2, 2) for part in rows.chunk(2, 3)]
        return torch.stack([self.cell(part) for part in cells])[self.read]


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
def test_where_cells_are_disconnected_all_mass_lies_in_the_cell_that_is_read(method):
    """Nothing outside can change the logit: exactly 1 where the explained cell is read, exactly 0 where another is."""
    torch.manual_seed(4)
    images = torch.stack([mosaic(torch.rand(4, 3, 12, 12)) for _ in range(4)])
    masks = cell_masks(4, 2, (24, 24))
    for cell in range(4):
        found = explain(Disconnected(cell).eval(), images, torch.tensor([0, 1, 2, 0]), method=method)
        assert (found.flatten(1).amax(1) > 0).all()
        shares = grid_pointing(None, None, None, found, cell_masks=masks)
        assert shares.tolist() == [float(cell == explained) for explained in range(4)]


def test_controls_score_chance():
    """The middle exactly, noise and edges on 60 mosaics within four standard errors of 1/4."""
    generator = torch.Generator().manual_seed(2)
    contrast = torch.rand(60, 4, 1, 1, 1, generator=generator)  # edges see that images differ
    noise = torch.rand(60, 4, 3, 16, 16, generator=generator)
    images = torch.stack([mosaic(each) for each in 0.5 + contrast * (noise - 0.5)])
    masks = cell_masks(60, 2, (32, 32))
    for method in ("random", "sobel_edges", "centred_gaussian"):
        options = {"generator": generator} if method == "random" else {}
        found = explain(Disconnected(0), images, torch.zeros(60, dtype=torch.long), method=method, **options)
        shares = grid_pointing(None, None, None, found, cell_masks=masks)
        assert shares.mean().item() == pytest.approx(0.25, abs=max(1e-6, 4 * shares.std().item() / 60**0.5))


METHODS = {"gradient": {}, "rise": {"masks": 4}, "random": {}, "centred_gaussian": {}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return project(tmp_path_factory.mktemp("grid"), "small_resnet")


def settings(folder, name, **mosaics):
    given = {"number": 6, "cells": 2, "confidence": 0.0} | mosaics
    folders = {key: str(folder / key) for key in ("data", "target")} | {"maps": str(folder / name)}
    return folders | {"images": None, "methods": METHODS, "mosaics": given, "seed": 5}


def evaluated(folder, name, **changes):
    folders = {key: str(folder / key) for key in ("data", "target")} | {"maps": str(folder / name)}
    return scores.score_maps(folders | {"metrics": ["grid_pointing", "mean_intensity"]} | changes)


def test_mosaics_are_explained_and_scored_beside_the_images(made):
    """Six of eleven images have a score, that of the metric on the method's map of the mosaic drawn for them."""
    explanation.make_maps(settings(made, "maps"), compute=Compute())
    found, split = maps.load(made / "maps"), datasets.load(made / "data").validation
    assert found.mosaics.told == (
        "6 mosaics of 2 x 2 images, 64 x 64 pixels; 11 of 11 explained images are recognised with a probability of 0 "
        "or more (classes: 2)"
    )
    assert found.arrays["gradient"].shape == (11, SIZE, SIZE)
    assert found.mosaics.arrays["gradient"].shape == (6, 2 * SIZE, 2 * SIZE)
    pictures, masks = found.mosaics.pictures(split, found.indices, range(6)), found.mosaics.masks(range(6))
    for number, row in enumerate(found.mosaics.images):
        assert torch.equal(pictures[number], mosaic(split.tensor(found.indices[row])))
        labels = split.labels[found.indices[row]]
        assert np.count_nonzero(labels == labels[number % 4]) == 1
    model = networks.load(made / "target")
    classes = torch.from_numpy(found.targets[found.mosaics.explained])
    expected = explain(model, pictures, classes, method="gradient")
    np.testing.assert_allclose(found.mosaics.arrays["gradient"], expected, rtol=1e-3, atol=1e-5)
    result = evaluated(made, "maps")
    shares = result["scores"]["gradient"]["grid_pointing"]
    assert np.flatnonzero(~np.isnan(shares)).tolist() == found.mosaics.explained.tolist()
    wanted = grid_pointing(None, None, None, expected, cell_masks=masks)
    np.testing.assert_allclose(shares[found.mosaics.explained], wanted, rtol=1e-3)
    table = scores.score_table(scores.score_frame(result), ["grid_pointing", "mean_intensity"], seed=0)
    assert table["grid_pointing_n"].tolist() == [6] * 4
    assert table["mean_intensity_n"].tolist() == [11] * 4
    assert table.loc["centred_gaussian", "grid_pointing"] == pytest.approx(0.25)
    literal, above = (
        evaluated(made, "maps", options={"grid_pointing": {"mass": mass}})["scores"]["rise"]["grid_pointing"]
        for mass in ("positive", "above_minimum")
    )
    named = found.mosaics.explained
    assert (abs(literal - 0.25) < abs(above - 0.25))[named].all()  # RISE's maps have an offset


def test_the_run_s_seed_reaches_the_maps(made):
    """Of the same images: RISE's maps are others with another seed, the gradient's are not."""
    found = []
    for seed in (5, 6):
        asked = settings(made, "seeded", number=0) | {
            "seed": seed,
            "methods": {"rise": METHODS["rise"], "gradient": {}},
        }
        explanation.make_maps(asked, compute=Compute())
        made_with = maps.load(made / "seeded")
        order = np.argsort(made_with.indices)
        found.append({name: np.array(array[order]) for name, array in made_with.arrays.items()})
    assert np.array_equal(found[0]["gradient"], found[1]["gradient"])
    assert not np.isclose(found[0]["rise"], found[1]["rise"]).all((1, 2)).any()


def test_a_map_that_lies_in_its_cell_scores_1_although_ties_are_broken(made, tmp_path):
    """What orders zero pixels for other metrics puts no mass into other cells; a map that is broken has no score."""
    explanation.make_maps(settings(made, "maps"), compute=Compute())
    masks = maps.load(made / "maps").mosaics.masks(range(6)).numpy().astype(np.float32)
    np.save(made / "maps" / "mosaics" / "gradient.npy", masks)
    masks[1, 3, 3] = np.nan
    np.save(made / "maps" / "mosaics" / "random.npy", masks)
    found = evaluated(made, "maps", scores=str(tmp_path / "scores"))["scores"]
    shares = found["gradient"]["grid_pointing"]
    assert shares[~np.isnan(shares)].tolist() == [1] * 6
    assert np.count_nonzero(np.isnan(found["random"]["grid_pointing"])) == 5 + 1
    table = scores.score_table(scores.read_scores(tmp_path / "scores"), ["grid_pointing"], seed=0)
    assert table["grid_pointing_n"].tolist() == [5] * 4  # what one method lacks, all leave out
    (made / "maps" / "mosaics" / "rise.npy").unlink()
    with pytest.raises(ValueError, match=r"mosaics/rise\.npy holds 0 maps of 6; explain again"):
        evaluated(made, "maps")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"number": 0}, "no mosaics: explain.mosaics.number is 0"),
        (
            {"confidence": 0.999999},
            "no mosaics: 0 of 11 explained images are recognised with a probability of 0.999999 or more (classes: 0); "
            "a mosaic needs two classes: lower explain.mosaics.confidence, or raise explain.images",
        ),
    ],
)
def test_without_mosaics_the_metric_is_left_out(made, changes, told):
    """Why there are none stands in the record; all else is scored."""
    explanation.make_maps(settings(made, "none", **changes), compute=Compute())
    assert json.loads((made / "none" / "explained.json").read_text())["mosaics"]["told"] == told
    assert not (made / "none" / "mosaics").exists()
    assert list(evaluated(made, "none")["scores"]["rise"]) == ["mean_intensity"]


def test_a_network_of_one_size_sees_mosaics_of_that_size(tmp_path):
    """A ViT of 32 pixels: nine images of 10 or 11 pixels in a mosaic of 32, each in its cell."""
    folder = project(tmp_path, "timm:test_vit")
    explanation.make_maps(settings(folder, "maps", cells=3), compute=Compute())
    found = maps.load(folder / "maps").mosaics
    assert found.told.startswith("6 mosaics of 3 x 3 images, 32 x 32 pixels; 11 of 11 explained")
    assert found.arrays["gradient"].shape == (6, SIZE, SIZE)
    assert found.images.shape == (6, 9)
    values = evaluated(folder, "maps")["scores"]["centred_gaussian"]["grid_pointing"]
    assert np.count_nonzero(~np.isnan(values)) == 6
