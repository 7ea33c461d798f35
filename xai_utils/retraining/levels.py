"""The maps by which ROAR and KAR mask images: made once for all trainings, kept as one byte a pixel."""

from functools import partial

import numpy as np

from xai_utils import datasets
from xai_utils.explainers.registry import explain, explainer, method_of
from xai_utils.files import new_arrays, partial_folder
from xai_utils.metrics.cost import counted_passes
from xai_utils.networks import engine, targets
from xai_utils.retraining.inputs import batches, images_of, kept_by_content
from xai_utils.retraining.masks import levels


def explained_levels(chosen, path, compute):
    """Levels of all images of both splits, as files under a name that stands for their content; passes of a map."""
    model = targets.load(chosen["explained"], compute.device)
    model = engine(model, images_of(chosen, "train")[0]([0]).to(compute.device), choice=compute.engine)
    method, options = method_of(None, chosen["row"])
    images = {split: images_of(chosen, split) for split in datasets.SPLITS}
    with partial_folder(path.with_suffix("")) as folder:
        files = {split: folder / f"{split}.npy" for split in images}
        shapes = {split: (len(labels), *fetch([0]).shape[-2:]) for split, (fetch, labels, _) in images.items()}
        arrays = new_arrays({files[split]: (shapes[split], np.uint8) for split in images})
        for number, (split, (fetch, labels, _)) in enumerate(images.items()):
            for rows in batches(len(labels)):
                begin = 1_000_003 * chosen["seed"] + 2 * int(rows[0]) + number
                given = explainer(method).seeded(options, chosen["seed"], compute.device, begin=begin)
                maps = explain(model, fetch(rows).to(compute.device), method=method, **given)
                arrays[files[split]][rows] = levels(maps, chosen["percentages"]).cpu().numpy()  # ranked on the device
            arrays[files[split]].flush()
        content = kept_by_content(folder, path.parent)
    given = explainer(method).seeded(options, 0, compute.device)
    image = images["train"][0]([0]).to(compute.device)
    passes = counted_passes(model, image, partial(explain, method=method, **given))
    return {"levels": content, "passes": round(passes, 4)}
