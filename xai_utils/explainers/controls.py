"""Control maps that know nothing of the network: what a method must beat before its score means anything."""

import torch
from torch.nn import functional

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601: red, green, blue
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SPREAD = 1 / 4  # of each side, as standard deviation


def random(model, images, target=None, *, generator=None):
    """Uniform noise in [0, 1), drawn image by image.

    map_ij ~ U[0, 1), a draw of its own for each pixel
    """
    device = images.device if generator is None else generator.device
    size = images.shape[-2:]
    return torch.stack([torch.rand(size, generator=generator, device=device) for _ in images]).to(images.device)


def sobel_edges(model, images, target=None):
    """Edge strength sqrt(Gx^2 + Gy^2) of the grey image, with Sobel's 3x3 kernels and reflected borders.

    map = sqrt((K ∗ x)^2 + (Kᵀ ∗ x)^2),   x the grey image, K = [-1 0 1; -2 0 2; -1 0 1]

    Grey is 0.299 R + 0.587 G + 0.114 B. Non-negative; images of at least 2x2 pixels.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        images = images.float()
        grey = (images * images.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)  # (N, 1, H, W)
        across = images.new_tensor(SOBEL)
        kernels = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
        slopes = functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="reflect"), kernels)  # (N, 2, H, W)
        return slopes.norm(dim=1)


def centred_gaussian(model, images, target=None):
    """A bell around the image's centre, where photographers aim; in (0, 1].

    map = exp(-(y^2 / (H/4)^2 + x^2 / (W/4)^2) / 2),   y and x from the centre
    """
    axes = []
    for length in images.shape[-2:]:
        offset = torch.arange(length, device=images.device) - (length - 1) / 2
        axes.append(torch.exp(-((offset / (SPREAD * length)) ** 2) / 2))
    return (axes[0][:, None] * axes[1]).expand(len(images), -1, -1).clone()  # (N, H, W)


CONTROLS = {"random": random, "sobel_edges": sobel_edges, "centred_gaussian": centred_gaussian}
