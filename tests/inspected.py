"""A small project to inspect: two classes of noise, one of which attacks HTML, and an untrained network for them."""

import shutil

import numpy as np
import torch
from conftest import ROOT
from PIL import Image
from ruamel.yaml import YAML

from xai_utils import datasets, networks

HOSTILE = "<img src=x onerror=alert(1)>"
SIZE = 32


def noise(seed, size=SIZE):
    """A PIL image of coloured noise, coarse enough to survive resizing."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)


def make(folder, *, trained=True):
    """`folder` becomes a project whose stages prepare_data and, if `trained`, finetune_target have run."""
    folder.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    values["scale"], values["target"], values["compute"]["threads"] = "smoke", "tiny_resnet", 1
    values["dataset"] = "images"
    yaml.dump(values, folder / "params.yaml")
    for label, name in enumerate((HOSTILE, "plain")):
        for number in range(4):
            file = folder / "images" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise(10 * label + number).save(file)
    datasets.prepare(folder / "images", folder / "build/data", image_size=SIZE, geometry="squash")
    if trained:
        torch.manual_seed(0)
        networks.save(networks.build("tiny_resnet", [HOSTILE, "plain"]).eval(), folder / "build/target")
    for name in ("voila.json", "notebooks/inspect.ipynb"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder
