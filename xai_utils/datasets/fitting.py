"""How an image of any shape becomes one of the size that networks see, and its boxes with it."""

import numpy as np
from PIL import Image

GEOMETRIES = ("crop", "squash")
LONGEST = 8  # times the shorter side: an image that is longer yet is stored with fewer pixels


def fit(image, boxes, size, geometry, *, banner=0):
    """Bring a PIL image to size x size and its boxes (k, 4) along; returns both, see `prepare` for the geometries.

    `banner` rows at the bottom are cut off before. x' = x * width' / width - left, with width' the resized width and
    left = round((width' - size) / 2) cut off.
    """
    fitted = resized(image, size, window(image.width, image.height - banner, size, geometry))
    return fitted, fit_boxes(boxes, image.size, size, geometry, banner=banner)


def fit_boxes(boxes, original, size, geometry, *, banner=0):
    """The boxes (k, 4) that `fit` returns of an image of `original` (width, height), clipped; those with an area."""
    (scale_x, scale_y), (left, top) = _frame(original[0], original[1] - banner, size, geometry)
    boxes = np.clip(boxes * [scale_x, scale_y, scale_x, scale_y] - [left, top, left, top], 0, size)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def window(width, height, size, geometry):
    """What part of such an image `fit` shows, in its pixels: left, top, right, bottom, seldom whole numbers."""
    (scale_x, scale_y), (left, top) = _frame(width, height, size, geometry)
    return left / scale_x, top / scale_y, (left + size) / scale_x, (top + size) / scale_y


def resized(image, size, part, resampling=Image.Resampling.BILINEAR):
    """The `part` (left, top, right, bottom) of a PIL image at size x size, antialiased.

    Only that part is computed, out of the pixels it needs: a very long image costs no more than a square one.
    """
    return image.resize((size, size), resampling, box=part)


def stored_shape(width, height, stored_size):
    """(width, height) at which an image is stored whole: its shorter side `stored_size`, its proportions kept.

    The longer side is at most LONGEST times `stored_size`, whatever is then left of the shorter one.
    """
    scale = min(stored_size / min(width, height), LONGEST * stored_size / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _frame(width, height, size, geometry):
    """(scale_x, scale_y) of the resizing and the (left, top) that the crop then cuts off."""
    if geometry == "squash":
        whole = (size, size)
    else:
        short = round(size * 256 / 224)
        whole = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    return (whole[0] / width, whole[1] / height), tuple(round((side - size) / 2) for side in whole)
