"""Small pictures of explained images and their maps, on sheets, for the page on which single scores are explored.

A folder of sheets holds `<row>.jpg` per row of the maps, `images.jpg` (the images themselves), and `sheets.json` with
    side      pixels of a tile
    columns   tiles side by side
    images    which images of the split, tile by tile; scores name them so
    classes   what the network takes each of them for
    rows      row -> its sheet
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from xai_utils import plots
from xai_utils.explainers import signed_rows
from xai_utils.files import file_name, new_folder

SIDE, COLUMNS, IMAGES = 64, 10, 60  # pixels of a tile, tiles side by side, at most so many tiles
RECORD, PICTURES = "sheets.json", "images.jpg"


def write(folder, images, made, classes):
    """Write the sheets of the maps `made` (`maps.Maps`) of `images` (uint8 (n, 3, H, W)) into `folder`, anew.

    `classes`: the name of the explained class of each image (n,).
    """
    places = np.unique(np.linspace(0, len(made.indices) - 1, min(IMAGES, len(made.indices))).astype(int))
    signed = signed_rows(made.methods)
    files = {row: f"{file_name(row)}.jpg" for row in made.arrays}
    with new_folder(Path(folder)) as partial:
        _save([plots.pixels(images[place]) for place in places], partial / PICTURES)
        for row, file in files.items():
            found = made.arrays[row]
            drawn = [plots.overlay(images[place], found[place], signed=row in signed) for place in places]
            _save(drawn, partial / file)
        record = {
            "side": SIDE,
            "columns": COLUMNS,
            "images": made.indices[places].tolist(),
            "classes": [classes[place] for place in places],
            "rows": files,
        }
        (partial / RECORD).write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def _save(pictures, path):
    """Tiles row by row on one sheet."""
    sheet = Image.new("RGB", (SIDE * min(COLUMNS, len(pictures)), SIDE * -(-len(pictures) // COLUMNS)))
    for number, picture in enumerate(pictures):
        tile = Image.fromarray((255 * np.clip(picture, 0, 1)).round().astype(np.uint8))
        down, across = divmod(number, COLUMNS)
        sheet.paste(tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (SIDE * across, SIDE * down))
    path.write_bytes(plots.encoded(sheet, "jpeg"))
