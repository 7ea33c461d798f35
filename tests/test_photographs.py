"""The installed photographs: opened as they are, as networks take them, with author and terms."""

import numpy as np
import pytest
import skimage.data
import torch

from xai_utils.datasets.photographs import PHOTOGRAPHS, photograph, photographs

FREE = {"CC0": "CC0", "public domain": "public domain"}  # our word -> scikit-image's


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_terms_are_those_that_scikit_image_states(name):
    """Author and terms stand in the docstring of the function that gives the same pixels, and they are free."""
    given, about = getattr(skimage.data, name), PHOTOGRAPHS[name]
    assert FREE[about.terms] in given.__doc__
    assert about.author in given.__doc__
    assert about.credit == f"{about.shows}: {about.author}, {about.terms}"
    opened, pixels = torch.from_numpy(np.array(photograph(name))), torch.from_numpy(given().copy())
    assert torch.equal(opened, pixels if pixels.ndim == 3 else pixels[..., None].expand(-1, -1, 3))


def test_they_are_cut_as_networks_of_imagenet_are_tested():
    """(N, 3, size, size) in [0, 1]; the middle 224 of 256 pixels: of a square of 512, 32 are cut off at each side."""
    images = photographs(["camera", "coffee"], 56)
    assert images.shape == (2, 3, 56, 56)
    assert images.is_contiguous()
    assert 0 <= images.min() < images.max() <= 1
    square = torch.from_numpy(skimage.data.camera().copy()).float()[None, None] / 255
    middle = torch.nn.functional.interpolate(square[..., 32:-32, 32:-32], (56, 56), mode="bilinear", antialias=True)
    assert (images[0] - middle[0])[:, 1:-1, 1:-1].abs().max() < 0.03
    assert torch.equal(photographs(size=8)[1], photographs(["coffee"], 8)[0])


def test_an_unknown_name_is_said_with_the_known():
    """The value and what is allowed."""
    with pytest.raises(ValueError, match="no photograph 'dog'; choose one of chelsea, coffee"):
        photographs(["dog"])
