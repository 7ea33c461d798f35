"""Where images, labels, boxes and part masks come from.

`prepare(source, folder, ...)` turns drawn birds (a folder with species.yaml), a published data set (recognised by its
files: `published.LAYOUTS`) or any image folder into arrays of one image size; `load(folder)` opens them without reading
them into memory.
"""

from xai_utils.datasets.birds import Bird, render
from xai_utils.datasets.catalogue import PARTS, Catalogue, differing_parts, load_catalogue
from xai_utils.datasets.errors import CorruptImage, DataError, MissingData
from xai_utils.datasets.preparation import prepare
from xai_utils.datasets.prepared import SPLITS, UNLABELLED, Data, Split, load

__all__ = [
    "PARTS",
    "SPLITS",
    "UNLABELLED",
    "Bird",
    "Catalogue",
    "CorruptImage",
    "Data",
    "DataError",
    "MissingData",
    "Split",
    "differing_parts",
    "load",
    "load_catalogue",
    "prepare",
    "render",
]
