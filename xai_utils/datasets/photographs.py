"""Five photographs under free terms that come with scikit-image, which is installed with this library.

They are opened where they are installed: nothing is fetched, copied or prepared. The terms are those that
scikit-image states in the docstrings of `skimage.data`.
"""

from importlib.resources import as_file, files
from typing import NamedTuple

import numpy as np
import torch

from xai_utils.datasets.fitting import fit
from xai_utils.datasets.on_disk import read_image


class Photograph(NamedTuple):
    """One photograph: the file's name in `skimage.data`, what it shows, who made it, and on which terms."""

    file: str
    shows: str
    author: str
    terms: str

    @property
    def credit(self):
        """The line that stands under it wherever it is shown."""
        return f"{self.shows}: {self.author}, {self.terms}"


PHOTOGRAPHS = {
    "chelsea": Photograph("chelsea.png", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    "coffee": Photograph("coffee.png", "A cup of coffee", "Rachel Michetti", "CC0"),
    "camera": Photograph("camera.png", "A man with a camera", "Lav Varshney", "CC0"),
    "rocket": Photograph("rocket.jpg", "Falcon 9 and DSCOVR", "SpaceX", "public domain"),
    "astronaut": Photograph("astronaut.png", "Eileen Collins", "NASA", "public domain"),
}


def photograph(name):
    """The photograph called `name`, a PIL image in RGB; ValueError listing the names."""
    if name not in PHOTOGRAPHS:
        raise ValueError(f"there is no photograph {name!r}; choose one of {', '.join(PHOTOGRAPHS)}")
    with as_file(files("skimage.data") / PHOTOGRAPHS[name].file) as path:
        return read_image(path)


def photographs(names=tuple(PHOTOGRAPHS), size=224):
    """Photographs as networks take them: (N, 3, size, size) in [0, 1], the middle of each.

    Cut out as the networks of ImageNet are tested: the shorter side becomes size * 256 / 224 pixels, the middle stays.
    """
    fitted = [fit(photograph(name), np.zeros((0, 4)), size, "crop")[0] for name in names]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous().float() / 255
