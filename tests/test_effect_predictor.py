"""Shapley values by hand and by regression, predictors of what removal does, and that they learn it."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xai_utils import datasets, networks
from xai_utils.explainers.effect_predictor import fast_shap, predicted_values, removal_effect
from xai_utils.explainers.shapley import (
    all_coalitions,
    cell_masks,
    draw_coalitions,
    efficient,
    grid_values,
    shapley_values,
    size_law,
)
from xai_utils.images import perturb
from xai_utils.networks.architectures import ARCHITECTURES
from xai_utils.networks.effect_predictor import load_effect_predictor, save_effect_predictor
from xai_utils.papers import removal
from xai_utils.training import loop
from xai_utils.training.distributed import Compute
from xai_utils.training.effect_predictor import (
    budget_masks,
    effect_task,
    fit_effect_predictors,
    order_loss,
    shapley_task,
    soft_masks,
    starting_effect_predictor,
    surrogate_task,
)
from xai_utils.training.surrogate import divergence

LEARNING = ("epochs", "batch_size", "learning_rate", "weight_decay", "schedule", "smallest_crop")
SIZE, WEIGHTS = 32, (3.0, 0.0, -2.0)  # of red, green and blue


def averages(channels):
    """A convolution that halves a map by means of 2 × 2 places, as a pooling does, which would be no layer to read."""
    layer = nn.Conv2d(channels, channels, 2, stride=2, groups=channels, bias=False)
    nn.init.constant_(layer.weight, 0.25)
    return layer


class ColourReader(nn.Module):
    """Two classes: the mean red speaks for the first, blue against it; four scales that show the image."""

    def __init__(self, num_classes):
        super().__init__()
        self.scale1, self.scale2, self.scale3, self.scale4 = (averages(12) for _ in range(4))
        self.fc = nn.Linear(3, num_classes)
        nn.init.constant_(self.fc.bias, 0)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([WEIGHTS, [-each for each in WEIGHTS]]))

    def forward(self, images):
        features = torch.cat([images.relu(), (-images).relu()], 1).repeat(1, 2, 1, 1)
        last = self.scale4(self.scale3(self.scale2(self.scale1(features))))
        return self.fc((last[:, :3] - last[:, 3:6]).mean((2, 3)))


def test_shapley_values_are_the_mean_gain_over_all_orders():
    """Of every order in which three players may come, the mean of what each adds; they add up to all less none."""
    worths = torch.rand(8, 2, dtype=torch.float64)
    orders, found = [*permutations(range(3))], torch.zeros(3, 2, dtype=torch.float64)
    for order in orders:
        for place, player in enumerate(order):
            before = sum(1 << each for each in order[:place])
            found[player] += (worths[before | 1 << player] - worths[before]) / len(orders)
    torch.testing.assert_close(shapley_values(worths), found)
    torch.testing.assert_close(shapley_values(worths).sum(0), worths[-1] - worths[0])


def test_the_glove_game_by_hand():
    """One left glove and two right ones, a pair is worth 1: the left one's owner gets 2/3, the others 1/6 each."""
    worths = torch.tensor([float(coalition[0] and coalition[1:].any()) for coalition in all_coalitions(3)])
    assert shapley_values(worths).tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_the_kernel_s_least_squares_are_the_shapley_values():
    """Weighted by `size_law`, the best fit that adds up is exact for any game (Charnes et al. 1988)."""
    players, worths = 4, torch.rand(16, dtype=torch.float64)
    shown = all_coalitions(players)[1:-1].double()  # (14, 4)
    sizes, law = shown.sum(1).long(), size_law(players)
    weight = law[sizes - 1] / torch.tensor([math.comb(players, size) for size in sizes])
    gained, told = worths[-1] - worths[0], worths[1:-1] - worths[0]
    equations, ones = (shown.T * weight) @ shown, torch.ones(4, 1, dtype=torch.float64)
    system = torch.cat([torch.cat([equations, ones], 1), torch.cat([ones.T, torch.zeros(1, 1)], 1)])
    fitted = torch.linalg.solve(system, torch.cat([shown.T @ (weight * told), gained[None]]))[:4]
    torch.testing.assert_close(fitted, shapley_values(worths))


def test_drawn_coalitions_follow_the_law_in_pairs():
    """Sizes as often as the kernel says, every player alike; the second of a pair is what the first lacks."""
    generator = torch.Generator().manual_seed(0)
    first, second = draw_coalitions(20_000, 5, generator)
    assert torch.equal(first, ~second)
    share = torch.bincount(first.sum(1), minlength=6) / 20_000
    assert share[[0, 5]].tolist() == [0, 0]
    torch.testing.assert_close(share[1:5].double(), size_law(5), atol=0.01, rtol=0)
    torch.testing.assert_close(first.float().mean(0), torch.full((5,), 0.5), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="a game of 1 players has no coalition to draw; give 2 or more"):
        draw_coalitions(1, 1)


def test_cells_of_a_grid_cover_the_image():
    """Each pixel is of one cell, row by row, whether or not the cells divide the sides; no other number is a grid."""
    masks = cell_masks(torch.eye(9, dtype=torch.bool), (7, 10))  # (9, 7, 10)
    assert torch.equal(masks.sum(0), torch.ones(7, 10, dtype=torch.long))
    assert masks[5].nonzero().tolist() == [[y, x] for y in (3, 4) for x in (7, 8, 9)]
    with pytest.raises(ValueError, match="8 players are no square grid"):
        cell_masks(torch.ones(8, dtype=torch.bool), (7, 10))


def test_efficient_values_add_up():
    """1, 2 and 3 are to be 9: each gets one more."""
    assert efficient(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(9.0)).tolist() == [2, 3, 4]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Prepared images of coloured quadrants, 240 to train on and 20 held out, and the target that reads them."""
    folder, source = tmp_path_factory.mktemp("effects"), tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (source / name).mkdir()
        for number in range(130):
            pixels = noise.integers(20, 236, (2, 2, 3)).repeat(SIZE // 2, 0).repeat(SIZE // 2, 1)
            Image.fromarray(pixels.astype(np.uint8)).save(source / name / f"{number}.png")
    options = {"train_per_class": 120, "validation_per_class": 10, "validation_fraction": 0.08, "seed": 0}
    datasets.prepare(source, folder / "data", image_size=SIZE, geometry="squash", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "colour_reader", ColourReader)
        networks.save(networks.build("colour_reader", ("a", "b")), folder / "target")
        yield folder


def settings(folders, **changes):
    return {
        "data": str(folders / "data"), "target": str(folders / "target"), "seed": 0, "epochs": 16, "batch_size": 16,
        "learning_rate": 0.01, "weight_decay": 0.0, "schedule": "cosine", "smallest_crop": 1.0, "cells": 2,
        "pairs": 2, "surrogate": None, **changes,
    }  # fmt: skip


def fit(make_task, chosen, folder):
    return loop.fit(make_task, chosen, checkpoints=folder, data_hash="")


def test_exact_values_of_an_image_by_hand(folders):
    """A quadrant of the mean colour is worth nothing; one cell alone the whole gain; the four add up to it."""
    target, images = networks.load(folders / "target").eval(), torch.rand(3, 3, SIZE, SIZE)
    images[:, :, SIZE // 2 :, : SIZE // 2] = target.mean[:, None, None]
    values, gained = grid_values(target, images, 0, cells=2)
    assert values[:, 1, 0].abs().max() < 1e-6
    torch.testing.assert_close(values.sum((1, 2)), gained)
    with torch.no_grad():
        nothing = target(target.mean[:, None, None].expand(1, 3, SIZE, SIZE)).softmax(1)[:, 0]
        whole = target(images).softmax(1)[:, 0]
    torch.testing.assert_close(gained, (whole - nothing).double())
    torch.testing.assert_close(grid_values(target, images, 0, cells=1)[0].flatten(), gained)
    with pytest.raises(ValueError, match="an exact game has 1 to 16 players"):
        grid_values(target, images, cells=5)


def test_learned_values_are_the_exact_ones(folders, tmp_path):
    """After training, one pass says of held-out images what 16 passes do; how much is explained only grows."""
    chosen = settings(folders)
    target, split = networks.load(folders / "target").eval(), datasets.load(folders / "data").validation
    images = split.tensor(torch.arange(len(split)))
    exact, _ = grid_values(target, images, cells=2)
    predictor = starting_effect_predictor(chosen)
    fitted = fit(shapley_task, chosen, tmp_path)
    predictor.load_state_dict(fitted.weights)
    found = predicted_values(target, images, None, predictor)
    assert (found - exact).abs().mean() < 0.2 * exact.abs().mean()
    assert fitted.history[-1]["validation_explained"] > 0.9 > fitted.history[0]["validation_explained"]


def test_values_add_up_before_any_training(folders):
    """The predicted values of an untrained predictor sum to what the class gains, exactly, for every class."""
    target, predictor = networks.load(folders / "target").eval(), shapley_task(settings(folders)).model.eval()
    images = torch.rand(3, 3, SIZE, SIZE)
    for each in (0, 1):
        _, gained = grid_values(target, images, each, cells=1)
        found = predicted_values(target, images, each, predictor)
        torch.testing.assert_close(found.sum((1, 2)).double(), gained, atol=1e-6, rtol=0)


def test_a_surrogate_answers_hidden_cells_as_the_whole(folders, tmp_path):
    """What the surrogate says of masked images is nearer to the target's answer than what the target says of them."""
    chosen = settings(folders, epochs=10)
    target, split = networks.load(folders / "target").eval(), datasets.load(folders / "data").validation
    images, surrogate = split.tensor(torch.arange(len(split))), networks.load(folders / "target")
    surrogate.load_state_dict(fit(surrogate_task, chosen, tmp_path).weights)
    masks = cell_masks(draw_coalitions(len(images), 4, torch.Generator().manual_seed(0))[0], (SIZE, SIZE))
    with torch.no_grad():
        whole, masked = target(images), perturb(images, masks, target.mean[:, None, None].expand_as(images))
        own, learned = (divergence(whole, network.eval()(masked)) for network in (target, surrogate))
    assert learned < own


def test_a_saved_predictor_answers_bit_for_bit(folders, tmp_path):
    """Save and load keep every bit, the target it belongs to and what nothing is worth; another target is refused."""
    target, predictor = networks.load(folders / "target").eval(), shapley_task(settings(folders)).model.eval()
    save_effect_predictor(predictor, tmp_path / "saved")
    images, saved = torch.rand(2, 3, SIZE, SIZE), load_effect_predictor(tmp_path / "saved")
    assert torch.equal(*(fast_shap(target, images, predictor=each) for each in (predictor, saved)))
    assert torch.equal(saved.nothing, predictor.nothing)
    other = networks.build("colour_reader", ("a", "b"))
    with torch.no_grad():
        other.network.fc.weight.mul_(2)
    with pytest.raises(
        ValueError, match=r"was trained for .* train one for this model \(stage train_effect_predictor\)"
    ):
        fast_shap(other, images, predictor=saved)
    with pytest.raises(
        FileNotFoundError, match=r"holds no effect predictor: .* `dvc repro train_effect_predictor` trains it"
    ):
        load_effect_predictor(tmp_path)


def test_budget_masks_show_what_ranks_first():
    """Each mask is 1/2 at its edge, rises with the effects, and is the same for effects stretched and shifted."""
    effects = torch.randn(64, 12, 12)
    found = budget_masks(effects, torch.Generator().manual_seed(0))
    again = budget_masks(5 * effects - 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, again, atol=1e-5, rtol=0)
    assert found.flatten(1).gather(1, effects.flatten(1).argsort(1)).diff(dim=1).min() >= 0
    shares = (found > 0.5).float().mean((1, 2))
    assert 0.03 < shares.min() < 0.2 < 0.8 < shares.max() < 0.96


def test_the_order_s_loss_by_hand():
    """Logits 0 and 0 where the first are shown cost ln 2; a probability of 3/4 where they are hidden costs ln 4."""
    shown, hidden = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    assert order_loss(shown, hidden, torch.tensor([0])).item() == pytest.approx(math.log(2) + math.log(4), rel=1e-5)


def test_soft_masks_are_of_one_grain_and_many_densities():
    """Their means spread over the densities; each is within [0, 1], and no step is larger than a cell's slope."""
    masks = soft_masks(200, (32, 32), grains=[4], generator=torch.Generator().manual_seed(0))
    assert 0 <= masks.min() < 0.01 < 0.99 < masks.max() <= 1
    means = masks.mean((1, 2))
    assert means.std() > 0.2
    assert means.mean().item() == pytest.approx(0.5, abs=0.05)
    assert masks.diff(dim=1).abs().max() <= 1 / 8 + 1e-5


def test_learned_effects_tell_for_and_against(folders, tmp_path):
    """Trained on removals, a place's effect rises with what its quadrant is worth, for either class."""
    chosen = settings(folders, epochs=12, grains=[2, 4], order_weight=0.1)
    target, split = networks.load(folders / "target").eval(), datasets.load(folders / "data").validation
    images = split.tensor(torch.arange(len(split)))
    predictor = starting_effect_predictor(chosen | {"cells": 0})
    fitted = fit(effect_task, chosen, tmp_path)
    predictor.load_state_dict(fitted.weights)
    assert {"train_squares", "train_order", "validation_explained"} <= fitted.history[-1].keys()
    for each in (0, 1):
        exact, _ = grid_values(target, images, each, cells=2)
        found = removal_effect(target, images, each, predictor=predictor, concentration=None)
        quadrants = torch.nn.functional.adaptive_avg_pool2d(found[:, None], 2)[:, 0]
        assert np.corrcoef(quadrants.flatten(), exact.flatten())[0, 1] > 0.8


def test_all_trainings_of_a_run_and_what_they_read(folders, tmp_path, monkeypatch):
    """FastSHAP's learn from the surrogate if it has epochs; all are told by name, and a finished one is only read."""
    monkeypatch.chdir(tmp_path)
    learning = {name: settings(folders, epochs=1)[name] for name in LEARNING}
    asked = {name: settings(folders)[name] for name in ("data", "target", "seed", "pairs")}
    asked |= {"cells": {"fast_shap": 2}, "order_weights": {"ours": 1.0, "regression": 0.0}, "grains": [2, 4]}
    asked |= {"surrogate": learning, "predictor": learning}
    predictors, histories = fit_effect_predictors(asked, compute=Compute(device="cpu", threads=1))
    assert list(predictors) == ["fast_shap", "ours", "regression"]
    assert list(histories) == ["surrogate", *predictors]
    assert histories["regression"][0]["train_order"] == 0 < histories["ours"][0]["train_order"]
    without = asked | {"surrogate": learning | {"epochs": 0}}
    plain, _ = fit_effect_predictors(without, compute=Compute(device="cpu", threads=1))
    assert not torch.equal(plain["fast_shap"].nothing, predictors["fast_shap"].nothing)
    assert torch.equal(plain["ours"].weights.weight, predictors["ours"].weights.weight)


def test_concentration_keeps_the_order_and_gathers_the_mass(folders):
    """Maps are the exponential of the effects by hand, in their order; a k that is not positive is refused."""
    target, predictor = networks.load(folders / "target").eval(), shapley_task(settings(folders)).model.eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    effects = removal_effect(target, images, predictor=predictor, concentration=None)
    maps = removal_effect(target, images, predictor=predictor, concentration=2.0)
    for each, found in zip(effects, maps, strict=True):
        torch.testing.assert_close(found, torch.exp(2 * (each - each.max()) / each.abs().max()))
        assert found.flatten()[each.flatten().argsort()].diff().min() >= 0
    with pytest.raises(ValueError, match="concentration is 0; give a positive number"):
        removal_effect(target, images, predictor=predictor, concentration=0)


@pytest.mark.parametrize("make_task", [shapley_task, effect_task])
def test_a_step_changes_the_predictor_alone(folders, tmp_path, make_task):
    """Training moves filter, generator and class weights; what nothing is worth stays as it is."""
    chosen = settings(folders, epochs=1, grains=[2, 4], order_weight=1.0)
    before, after = make_task(chosen).model.state_dict(), fit(make_task, chosen, tmp_path).weights
    changed = {key.split(".")[0] for key, each in before.items() if not torch.equal(each, after[key])}
    assert changed == {"filter", "generator", "weights"}


def test_the_table_of_exact_values_by_hand(folders):
    """The mean over images of Pearson's r with the exact values; a grid too fine for an exact game is left out."""
    target, split = networks.load(folders / "target").eval(), datasets.load(folders / "data").validation
    made = {str(cells): shapley_task(settings(folders, cells=cells)).model.eval() for cells in (2, 5)}
    rows = removal.beside_exact(target, split, range(5), made, seed=0, resamples=100)
    images = split.tensor(torch.arange(5))
    exact, found = grid_values(target, images, cells=2)[0], predicted_values(target, images, None, made["2"])
    each = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(found, exact, strict=True)]
    assert list(rows.index) == ["2"]
    assert rows.correlation["2"].startswith(f"{np.mean(each):.3f} [")
    assert rows["mean error"]["2"] == f"{(found - exact).abs().mean():.4f}"


def test_the_chapter_s_scores_are_of_the_images_asked_for(folders):
    """Rows stand at their images, whatever is held at once; gathering an effect's mass moves neither curve."""
    target, data = networks.load(folders / "target").eval(), datasets.load(folders / "data")
    made = {"ours": effect_task(settings(folders, grains=[2], order_weight=0.0)).model.eval()}
    frame = removal.held_out_scores(target, data, [7, 2, 11], made, seed=0)
    assert list(frame.method.unique()) == ["ours", "ours, as it is", "grad_cam", "random"]
    assert frame.image[frame.method == "ours"].tolist() == [7, 2, 11]
    for name in ("insertion", "deletion"):
        plain, gathered = (frame[name][frame.method == row].to_numpy() for row in ("ours", "ours, as it is"))
        assert np.abs(plain - gathered).max() < 1e-3  # pixels that nearly tie
    assert list(removal.table(frame, seed=0, resamples=100)) == ["Insertion", "Deletion"]
