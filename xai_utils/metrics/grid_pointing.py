"""The grid pointing game: in a mosaic of images of several classes, does a class's map lie on the image of that class?

Truth without annotation (Böhle et al. 2021, Rao et al. 2022): whoever made the mosaic knows where each class is seen.
A mosaic has cells x cells images, numbered row by row, the first top left. One of them is explained, for its own class,
which stands in no other cell.
"""

import numpy as np
import torch
from torch.nn import functional

from xai_utils.metrics.localisation import aligned, mass_share

CELLS = 2  # a side: 4 images, chance 1/4
MASSES = {  # of the pixels of maps (N, H, W)
    "positive": lambda maps: maps.clamp(min=0),
    "above_minimum": lambda maps: maps - maps.amin((1, 2), keepdim=True),
}


def mosaic(images, *, size=None):
    """Images (cells², 3, H, W) side by side, row by row: one image (3, cells H, cells W), or one of `size` (H', W').

    Scaled (bilinearly, antialiased) is each image by itself, to the pixels of its cell (`cell_mask`): no pixel mixes
    two of them. ValueError where their number is no square of 2 or more, or `size` has fewer pixels than cells.
    """
    cells = round(len(images) ** 0.5)
    if cells < 2 or cells**2 != len(images):
        raise ValueError(f"a mosaic of {len(images)} images is no square; give 4, 9, 16, …")
    height, width = size or (cells * images.shape[-2], cells * images.shape[-1])
    made = torch.empty(3, height, width, dtype=images.dtype, device=images.device)
    for cell, image in enumerate(images):
        rows, columns = _spans(cell, cells, (height, width))
        shape = rows.stop - rows.start, columns.stop - columns.start
        if shape != image.shape[-2:]:
            image = functional.interpolate(image[None], shape, mode="bilinear", antialias=True)[0]
        made[:, rows, columns] = image
    return made


def cell_mask(cell, cells, size):
    """Where cell number `cell` of a mosaic of cells x cells images and `size` (H, W) lies: bool (H, W).

    ValueError for a cell that it does not have, and where `size` has fewer pixels than cells.
    """
    mask = torch.zeros(size, dtype=torch.bool)
    mask[_spans(cell, cells, size)] = True
    return mask


def _spans(cell, cells, size):
    """The rows and the columns of a cell; where `size` is no multiple of `cells` they differ by a pixel."""
    if not 0 <= cell < cells**2:
        raise ValueError(f"cell {cell} is none of {cells} x {cells}; give 0 to {cells**2 - 1}")
    if min(size) < cells:
        raise ValueError(f"{size[0]} x {size[1]} pixels are too few for {cells} x {cells} cells")
    places = divmod(cell, cells)
    return tuple(
        slice(place * length // cells, (place + 1) * length // cells)
        for place, length in zip(places, size, strict=True)
    )


def explained_cell(number, cells=CELLS):
    """The cell that is explained in mosaic `number`: one after the other, so that each is as often as any other.

    A map that only knows the place, such as a Gaussian in the middle, so has the mean of chance.
    """
    return number % cells**2


def draw_cells(labels, explained, number, seed, *, cells=CELLS):
    """Which images stand in the cells of mosaic `number`: positions in `labels` (N,), int64 (cells²,), row by row.

    Image `explained` stands in `explained_cell(number)`; the others are drawn among those of other classes, no class
    twice before all of them are seen and no image twice before all are. So with cells² classes or more all differ,
    and with two classes one stands against all. A pure function of its arguments. ValueError where there is no other
    class.
    """
    labels, generator = np.asarray(labels), np.random.default_rng([seed, number])
    order = generator.permutation(np.flatnonzero(labels != labels[explained]))
    if not len(order):
        raise ValueError(f"all {len(labels)} images are of one class; a mosaic needs images of two")
    by_class = np.argsort(labels[order], kind="stable")
    _, first, counts = np.unique(labels[order[by_class]], return_index=True, return_counts=True)
    turn = np.empty_like(order)  # an image's place in the queue of its class
    turn[by_class] = np.arange(len(order)) - np.repeat(first, counts)
    others = np.resize(order[np.argsort(turn, kind="stable")], cells**2 - 1)  # from the first again where too few
    return np.insert(others, explained_cell(number, cells), explained)


def grid_pointing(model, images, target, maps, *, cell_masks, mass="positive"):
    """Share of the map's mass in the explained cell (N,), in [0, 1], higher is better (GridPG, Rao et al. 2022).

    sum of max(A, 0) in the cell / sum of max(A, 0)

    `maps` are of mosaics and `cell_masks` (N, H, W) true in the explained cells (`cell_mask`). Chance, and the value of
    a constant map and of one without positive mass, is the cell's share of the mosaic, 1 / cells²; NaN where the mask
    is empty. With mass "positive", the papers', a map that is nowhere near 0 (RISE's) scores near chance whatever its
    shape; "above_minimum" takes each map's minimum off first, as part truth does, which raises what is negative in
    signed maps (LIME's). Needs no model.
    """
    masks, maps = aligned(maps, cell_masks)
    if mass not in MASSES:
        raise ValueError(f"mass {mass!r} is unknown; choose one of {', '.join(MASSES)}")
    return mass_share(MASSES[mass](maps), masks)
