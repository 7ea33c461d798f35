"""Images that a network recognises, without training it."""

import numpy as np
import torch
from PIL import Image

from xai_utils import datasets, networks


def halved(model, images):
    """The model's classes of `images`, as many of either; its last bias moves the border to between two of them."""
    with torch.no_grad():
        logits = model.eval()(images)
        margins = (logits[:, 0] - logits[:, 1]).sort().values
        list(model.network.parameters())[-1][0] -= margins[len(margins) // 2 - 1 :][:2].mean()
        return model(images).argmax(1)


def project(folder, architecture, names=("a", "b"), size=32):
    """Prepare eleven images of noise that a random network, saved beside them, classifies right: data, target."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (11, size, size, 3), dtype=np.uint8)
    pixels[::2] //= 2
    torch.manual_seed(0)
    model = networks.build(architecture, names, image_size=size)
    predicted = halved(model, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255)
    for number, label in enumerate(predicted.tolist()):
        file = folder / "source" / "validation" / names[label] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(file)
    datasets.prepare(folder / "source", folder / "data", image_size=size, geometry="squash")
    networks.save(model, folder / "target")
    return folder
