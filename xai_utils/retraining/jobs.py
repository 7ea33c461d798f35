"""What the workers of ROAR and KAR do: explain images, train one network, test it.

A job gets its settings (JSON), the path of its result and the `Compute` of one training, and returns the result (JSON).
Its settings are those of `experiment` that matter to it, with data_hash (of the data's files), subset_seed,
    images, fill                    what `inputs.shared_images` found: their folder or None, a colour (3 numbers)
    levels, place, keep             image level: where the maps lie (None: no mask), and as in `masked_images`
    explained, sha256               layer level and maps: folder of the explained network, and its weights' hash
    layer, statistic, share, least, scale     layer level: as in `layer_masked_model`; layout: a dict
"""

from pathlib import Path

from xai_utils import sources
from xai_utils.explainers import registry
from xai_utils.explainers.registry import explainer
from xai_utils.files import files_fingerprint, fingerprint, write_json
from xai_utils.retraining import inputs, levels, trainings

KINDS = {  # what is made -> function(settings, path, compute)
    "explained": trainings.explained_network,
    "image": trainings.retrained_on_images,
    "images": inputs.shared_images,
    "layer": trainings.retrained_behind_layer,
    "levels": levels.explained_levels,
}


def work(name, path, kind, chosen, compute):
    """Do a job of `KINDS` and leave its result at `path`, whole or not at all; what it raises has its `name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = KINDS[kind](chosen, path, compute)
    except Exception as error:
        error.add_note(f"Raised by: {name}")
        raise
    write_json(path, result, indent=None)


def key_of(kind, chosen, compute):
    """The name that stands for all that a job's result depends on; maps depend on their own method and its part."""
    if kind != "levels":
        return fingerprint([chosen, sources.fingerprint_of(KINDS[kind]), compute])
    method = explainer(chosen["row"]["method"])
    code = sources.fingerprint_of(KINDS[kind], method.function, stop=(Path(registry.__file__),))
    part = method.brought(chosen["row"])
    return fingerprint([chosen, code, compute, files_fingerprint(part) if part else None])
