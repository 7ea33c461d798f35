"""ROAD: imputation against systems solved by hand and directly, and scores of networks that read single pixels."""

import numpy as np
import pytest
import torch
from test_metrics import Odds
from threadpoolctl import threadpool_limits

from xai_utils.images import gaussian_blur, keep_top, rank_pixels
from xai_utils.metrics import imputation, road
from xai_utils.metrics.imputation import NOISE, imputed, road_curves

WEIGHTS = {(y, x): 1 / 6 if 0 in (y, x) else 1 / 12 for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)}


def directly(image, keep):
    """An image (C, H, W) whose other pixels solve the system that is written down pixel by pixel, in float64."""
    free = {place: number for number, place in enumerate(zip(*np.nonzero(~keep.numpy()), strict=True))}
    system, known = np.zeros((len(free), len(free))), np.zeros((len(free), len(image)))
    for (y, x), row in free.items():
        for (down, right), weight in WEIGHTS.items():
            place = y + down, x + right
            if 0 <= place[0] < keep.shape[0] and 0 <= place[1] < keep.shape[1]:
                system[row, row] += weight
                if place in free:
                    system[row, free[place]] -= weight
                else:
                    known[row] += weight * image[:, place[0], place[1]].double().numpy()
    filled = image.double().clone()
    filled[:, ~keep] = torch.from_numpy(np.linalg.solve(system, known)).T
    return filled


def test_imputation_by_hand():
    """Two of four pixels in a row go 1/3 and 2/3 of the way; a corner is (2 a + 2 b + c) / 5; a middle all eight."""
    row = torch.tensor([0.0, 9, 9, 1]).reshape(1, 1, 1, 4)
    found = imputed(row, torch.tensor([[[True, False, False, True]]]))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0, 1 / 3, 2 / 3, 1]), atol=1e-6, rtol=0)
    corner = torch.tensor([[9.0, 0.25], [0.5, 1.0]])[None, None]
    found = imputed(corner, torch.tensor([[[False, True], [True, True]]]))
    assert found[0, 0, 0, 0].item() == pytest.approx((2 * 0.25 + 2 * 0.5 + 1) / 5, abs=1e-6)
    middle, keep = torch.rand(1, 3, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool)
    keep[0, 1, 1] = False
    expected = sum(weight * middle[0, :, 1 + y, 1 + x] for (y, x), weight in WEIGHTS.items())
    torch.testing.assert_close(imputed(middle, keep)[0, :, 1, 1], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.5, 2, 8])
@pytest.mark.parametrize("percent", [20, 50, 80])
def test_imputation_is_the_direct_solution(sigma, percent):
    """Holes of scattered pixels and wide ones, up to the border, of odd sizes: far below the noise.

    Each image is solved as if it were alone.
    """
    generator = torch.Generator().manual_seed(percent)
    images, noise = torch.rand(2, 3, 45, 38, generator=generator), torch.rand(2, 45, 38, generator=generator)
    images = gaussian_blur(images, 2)
    images = (images - images.amin()) / (images.amax() - images.amin())
    keep = ~keep_top(rank_pixels(gaussian_blur(noise, sigma)), round(percent / 100 * 45 * 38))
    found = imputed(images, keep)
    expected = torch.stack([directly(*each) for each in zip(images, keep, strict=True)])
    assert (found - expected).abs().max() < 0.01 * NOISE
    assert torch.equal(torch.where(keep[:, None], found, images), images)
    torch.testing.assert_close(found[:1], imputed(images[:1], keep[:1]))


def test_imputation_is_that_of_another_library():
    """grad-cam's imputer, without its noise, which is the published code's, solves the same system."""
    library = pytest.importorskip("pytorch_grad_cam.metrics.road")
    image = gaussian_blur(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), 2)
    keep = ~keep_top(rank_pixels(image[:, 0]), 400)
    expected = library.NoisyLinearImputer(noise=0.0)(image[0], keep[0].float())
    torch.testing.assert_close(imputed(image, keep)[0], expected, atol=1e-5, rtol=0)


def test_an_image_without_a_pixel_is_refused():
    """There is nothing to impute from."""
    with pytest.raises(ValueError, match="keeps no pixel"):
        imputed(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool))


def test_road_by_hand():
    """The one pixel that is read is white among black ones: without it the odds are 1, without a far one 9.

    A constant image is imputed by itself: no order costs anything, but for the noise, which a seed repeats.
    """
    model = Odds([[1, 1, 1], [1, 9, 1], [1, 1, 1]])
    image, saliency = torch.zeros(1, 1, 3, 3), torch.zeros(1, 3, 3)
    image[..., 1, 1] = saliency[:, 1, 1] = 1
    curves = road_curves(model, image, 0, saliency, percents=[11], noise=0)
    assert curves["most"].tolist() == [[pytest.approx(0.5)]]
    assert curves["least"].tolist() == [[pytest.approx(0.9)]]
    assert road(model, image, 0, saliency, percents=[11], noise=0).item() == pytest.approx(0.4)
    assert road(model, image, 1, saliency, percents=[11], noise=0).item() == pytest.approx(-0.4)
    grey, many = torch.full((2, 1, 3, 3), 0.5), saliency.expand(2, 3, 3)
    assert road(model, grey, 0, many, noise=0).tolist() == pytest.approx([0, 0], abs=1e-6)
    first, again, other = (road(model, grey, 0, many, noise=0.3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert first[0] == first[1] != 0
    assert not torch.equal(first, other)


def test_what_cannot_be_removed_is_refused():
    """None, all, or no share of the pixels; a negative noise; batches without an image."""
    model, image, saliency = Odds([[1, 2], [3, 4]]), torch.rand(1, 1, 2, 2), torch.rand(1, 2, 2)
    for wrong, message in (
        ({"percents": [0]}, r"percents are \[0\]"),
        ({"percents": [50, 100]}, "between 0 and 100"),
        ({"percents": []}, r"percents are \[\]"),
        ({"noise": -1}, "noise is -1"),
        ({"chunk": 0}, "chunk is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            road(model, image, 0, saliency, **wrong)


def test_small_systems_are_solved_in_one_thread(monkeypatch):
    """Threads of BLAS that wait for each other on a busy machine would take hundreds of times as long; others stay."""

    def threads():
        return {pool["num_threads"] for pool in imputation.POOLS.info() if pool["user_api"] == "blas"}

    seen, solved = [], imputation._imputed
    monkeypatch.setattr(imputation, "_imputed", lambda *given: seen.append(threads()) or solved(*given))
    with threadpool_limits(2, user_api="blas"):
        imputed(torch.rand(1, 3, 4, 4), torch.eye(4, dtype=torch.bool)[None])
        assert threads() == {2}
    assert seen == [{1}]
