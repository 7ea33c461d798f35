"""What is true of an image, as lines over it: its boxes, its parts, those that decide, the cells of a mosaic."""

from typing import NamedTuple

import numpy as np

from xai_utils.metrics.grid_pointing import cell_mask

NOTHING, BOXES, PARTS, DECIDING, CELLS = "nothing", "true boxes", "parts", "deciding parts", "mosaic cells"
TRUE, OTHER = "#e6004c", "#ffffff"  # what is true of the explained class, and what is not
PALETTE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")


class Outline(NamedTuple):
    """Lines around something, from (x, y) to (x, y) in pixels, (0, 0) being the corner of the image."""

    name: str
    colour: str
    lines: tuple


def kinds(picture):
    """What can be outlined in a picture."""
    there = {
        BOXES: picture.boxes,
        PARTS: picture.parts is not None,
        DECIDING: picture.deciding,
        CELLS: picture.cells is not None,
    }
    return (NOTHING, *(kind for kind, has in there.items() if has))


def outlines(kind, asked, deciding=None):
    """The outlines of one `kind` in what is `asked`; `deciding`: the names of the parts that decide, where known."""
    picture = asked.picture
    if kind not in kinds(picture) or kind == NOTHING:
        return ()
    if kind == BOXES:
        return tuple(Outline("box", TRUE, _around(*box)) for box in picture.boxes)
    if kind == CELLS:
        size, cells = picture.pixels.shape[-2:], round(len(picture.cells) ** 0.5)
        found = [
            Outline(
                asked.subject.classes[index],
                TRUE if index == asked.target else OTHER,
                edges(cell_mask(cell, cells, size).numpy()),
            )
            for cell, index in enumerate(asked.cells)
        ]
        return tuple(sorted(found, key=lambda each: each.colour == TRUE))  # drawn last, so not drawn over
    wanted = picture.part_names if kind == PARTS else deciding or ()
    return tuple(
        Outline(name, PALETTE[place % len(PALETTE)] if kind == PARTS else TRUE, edges(picture.parts == place + 1))
        for place, name in enumerate(picture.part_names)
        if name in wanted and (picture.parts == place + 1).any()
    )


def _around(x0, y0, x1, y1):
    return ((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))


def edges(mask):
    """The lines between what is true and what is false in a mask (H, W), bool, as long as they can be."""
    found, padded = [], np.pad(mask, 1)
    for turned in (False, True):
        changes = np.diff((padded.T if turned else padded).astype(np.int8), axis=0)[:, 1:-1] != 0
        for level, row in enumerate(changes):
            ends = np.flatnonzero(np.diff(np.pad(row, 1).astype(np.int8)))
            for first, last in ends.reshape(-1, 2).tolist():
                line = (first, level), (last, level)
                found.append(tuple((y, x) for x, y in line) if turned else line)
    return tuple(found)
