"""Meaningful perturbation: look for the smallest smooth mask whose blur takes the class away (Fong & Vedaldi 2017)."""

import torch
from torch.nn import functional

from xai_utils.images import baseline, gaussian_blur, perturb, scaled_area, scaled_length
from xai_utils.networks import answering, class_indices, class_scores, evaluating, logits_of

CELL = 8  # pixels a side of a mask's cell, at every size: 28 × 28 cells at 224
JITTER, MASK_BLUR = 4, 5.0  # pixels at 224: largest shift of the image, sigma of the mask's blur
FIRST_RADII = range(0, 176, 5)  # pixels at 224, of the circles that an optimisation may begin with


def _full_size(cells, size):
    """Masks (N, h, w) as the image is blended with them, (N, H, W): cells enlarged as squares, then blurred."""
    enlarged = functional.interpolate(cells[:, None], size=tuple(size), mode="nearest")[:, 0]
    return gaussian_blur(enlarged, scaled_length(MASK_BLUR, size))


def _first_masks(scored, images, hidden, target, grid):
    """For each image the smallest circle of FIRST_RADII that hides all but a hundredth of the evidence, else ones."""
    size = images.shape[-2:]
    rows, columns = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in size)
    distance = torch.hypot(rows[:, None], columns[None])
    radii = [scaled_length(radius, size) for radius in FIRST_RADII]
    circles = torch.stack([(distance > radius).to(images.dtype) for radius in radii])
    circles = functional.adaptive_avg_pool2d(gaussian_blur(circles, scaled_length(MASK_BLUR, size)), grid)
    with torch.no_grad():
        whole, nothing = (scored(each, target) for each in (images, hidden))
        enough = nothing + 0.01 * (whole - nothing)
        masks = circles.new_ones(len(images), *grid)
        searching = torch.ones(len(images), dtype=torch.bool, device=images.device)
        for circle in circles:
            if not searching.any() or circle.amax() < 0.5:  # what hides the whole image says nothing
                break
            left = searching.nonzero()[:, 0]
            shown = perturb(images[left], _full_size(circle[None], size), hidden[left])
            found = left[scored(shown, target[left]) <= enough[left]]
            masks[found], searching[found] = circle, False
    return masks


def meaningful_perturbation(
    model,
    images,
    target=None,
    *,
    iterations=300,
    learning_rate=0.1,
    area_weight=1e-4,
    smoothness_weight=1e-2,
    hidden="blur",
    score="softmax",
    seed=0,
    chunk=32,
):
    """One minus the mask m that hides the class with the least area (Fong & Vedaldi 2017, eq. 6), (N, H, W) in [0, 1].

    minimise p_c(Φ(x, m)) + λ1 Σ |1 - m| + λ2 Σ |∇m|³ over m in [0, 1], one number for each cell of 8 × 8 pixels

    p_c is the class's `score` (`networks.SCORES`): for the logit, whose range is another, choose other weights.

    Adam, `iterations` steps; Φ blends the image with the baseline `hidden` by the enlarged, blurred mask, and is
    shifted by up to 4 pixels in each step. λ1 and λ2 are for 224 pixels: at another size the same area and the same
    smooth slope cost as there. All images of a `chunk` are optimised at once; they share the shifts, which `seed` alone
    decides, and nothing else, so that a map depends neither on its batch nor on `chunk`. ValueError for counts below
    1, a learning rate that is not positive, negative weights or seeds.

    Notes: without the caffe code's noise on the image. DGLE's comparison hides with blur or a random colour instead.
    """
    _check(iterations, learning_rate, area_weight, smoothness_weight, seed, chunk)
    size = images.shape[-2:]
    grid = tuple(max(1, round(side / CELL)) for side in size)
    reach = max(0, round(scaled_length(JITTER, size)))
    draws = torch.Generator().manual_seed(seed)
    shifts = torch.randint(0, reach + 1, (iterations, 2), generator=draws).tolist()
    weights = area_weight / scaled_area(1, size), smoothness_weight * scaled_length(1, size)
    with torch.inference_mode(False), evaluating(model), answering(model, score):
        images, own = images.clone() if images.is_inference() else images.detach(), images.dtype
        images = images.to(torch.promote_types(own, torch.float32))  # masks need it where the model is in half

        def scored(pixels, classes):
            return class_scores(logits_of(model, pixels.to(own)), classes, score)

        with torch.no_grad():
            logits = torch.cat([logits_of(model, part.to(own)) for part in images.split(chunk)])
        target = class_indices(logits, target).clone()  # the caller's may be an inference tensor
        maps = []
        for part, classes in zip(images.split(chunk), target.split(chunk), strict=True):
            blurred = baseline(hidden, model, part)
            masks = _first_masks(scored, part, blurred, classes, grid).requires_grad_()
            optimizer = torch.optim.Adam([masks], lr=learning_rate)
            for shift in shifts:
                with torch.enable_grad():
                    blended = perturb(part, _full_size(masks, size), blurred)
                    loss = scored(_shifted(blended, shift, reach), classes).sum()
                    loss = loss + _regularisation(masks, *weights)
                    (masks.grad,) = torch.autograd.grad(loss, masks)
                optimizer.step()
                masks.data.clamp_(0, 1)
            maps.append(1 - _full_size(masks.detach(), size))
        return torch.cat(maps).float()


def _shifted(images, shift, reach):
    """The images moved by (down, right) - reach / 2 pixels; the border is reflected into what moves in."""
    height, width = images.shape[-2:]
    padded = functional.pad(images, [reach] * 4, mode="reflect")
    down, right = (reach - part + reach // 2 for part in shift)
    return padded[:, :, down : down + height, right : right + width]


def _regularisation(masks, area_weight, smoothness_weight):
    """λ1 Σ |1 - m| + λ2 Σ |∇m|³ of masks (N, h, w), summed over the images; the last row and column step nowhere."""
    down = functional.pad(masks.diff(dim=1), (0, 0, 0, 1))
    right = functional.pad(masks.diff(dim=2), (0, 1))
    steepness = (down.square() + right.square() + 1e-12) ** 1.5  # the 1e-12 keeps its gradient finite at 0
    return area_weight * (1 - masks).abs().sum() + smoothness_weight * steepness.sum()


def _check(iterations, learning_rate, area_weight, smoothness_weight, seed, chunk):
    for name, value in {"iterations": iterations, "chunk": chunk}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; give a positive number (0.1)")
    for name, value in {"area_weight": area_weight, "smoothness_weight": smoothness_weight, "seed": seed}.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; give 0 or more")
