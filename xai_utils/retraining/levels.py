"""The maps by which ROAR and KAR mask images: made once for all trainings, kept as one byte a pixel."""

import shutil

import numpy as np

from xai_utils import datasets
from xai_utils.explainers.registry import explain, explainer, method_of
from xai_utils.files import files_fingerprint
from xai_utils.networks import inference_copy, targets
from xai_utils.retraining.inputs import batches, images_of
from xai_utils.retraining.masks import levels


def explained_levels(chosen, path, compute):
    """Levels of all images of both splits, as files under a name that stands for their content."""
    model = targets.load(chosen["explained"], compute.device)
    model = inference_copy(model, images_of(chosen, "train")[0]([0]).to(compute.device))
    method, options = method_of(None, chosen["row"])
    temporary = path.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for number, split in enumerate(datasets.SPLITS):
        fetch, labels, _ = images_of(chosen, split)
        file, size = temporary / f"{split}.npy", fetch([0]).shape[-2:]
        array = np.lib.format.open_memmap(file, "w+", np.uint8, (len(labels), *size))
        for rows in batches(len(labels)):
            seed = 1_000_003 * chosen["seed"] + 2 * int(rows[0]) + number
            given = explainer(method).seeded(options, seed, compute.device)
            maps = explain(model, fetch(rows).to(compute.device), method=method, **given)
            array[rows] = levels(maps.cpu(), chosen["percentages"]).numpy()
        array.flush()
    content = files_fingerprint(temporary)[:20]
    if (path.parent / content).exists():
        shutil.rmtree(temporary)
    else:
        temporary.rename(path.parent / content)
    return {"levels": content}
