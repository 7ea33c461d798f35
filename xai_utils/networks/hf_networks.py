"""Image classifiers of transformers: `hf:FOLDER`, where config.json and model.safetensors lie. Imported when asked for.

No network is reached and no code of a folder runs.
"""

import json
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

LOCAL = {"local_files_only": True, "trust_remote_code": False}
IN_THE_NAMES = ("id2label", "label2id", "num_labels")  # of a config: kept as the target's classes


def _transformers():
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "targets hf:FOLDER need transformers: pip install 'xai-utils[transformers]'"
        ) from error
    return transformers


def configuration(folder):
    """What config.json of `folder` says of the network, a dict for JSON, without its classes.

    FileNotFoundError where it is missing, ValueError where it is damaged or no image classifier's.
    """
    settings = _opened(folder).to_json_string(use_diff=True)
    return {name: value for name, value in json.loads(settings).items() if name not in IN_THE_NAMES}


def _opened(folder):
    transformers, file = _transformers(), Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json; give a folder that save_pretrained of transformers wrote"
        )
    try:
        found = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        known = transformers.AutoModelForImageClassification._model_mapping.keys()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({_first(error)})") from error
    if type(found) not in known:
        raise ValueError(f"{file} is of {found.model_type!r}, for which transformers has no image classifier")
    return found


def _first(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def network(num_classes, *, folder, config=None):
    """The network that `config` (None: that of the folder) describes, untrained, for so many classes."""
    transformers, config = _transformers(), configuration(folder) if config is None else config
    made = transformers.AutoConfig.for_model(**config, num_labels=num_classes)
    return transformers.AutoModelForImageClassification.from_config(made, dtype=torch.float32)


def heads(network):
    """The names of the linear layers behind the backbone that give the logits; a distilled DeiT has two."""
    inside = f"{network.base_model_prefix}."
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(inside)
        and module.out_features == network.config.num_labels
    ]


def weights(folder):
    """The state dict of the network in `folder`; FileNotFoundError, or ValueError where they are not all there."""
    transformers = _transformers()
    _opened(folder)
    if not any(Path(folder).glob("model*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no model.safetensors; save the network with save_pretrained")
    try:
        with _quiet(transformers):
            found, report = transformers.AutoModelForImageClassification.from_pretrained(
                folder, **LOCAL, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # of whatever reads the file
        raise ValueError(f"{folder}: the weights cannot be read ({_first(error)})") from error
    lacking = {word: sorted(map(str, report[f"{word}_keys"])) for word in ("missing", "unexpected", "mismatched")}
    if any(lacking.values()):
        listed = "; ".join(f"{word}: {keys[0]}" for word, keys in lacking.items() if keys)
        raise ValueError(f"{folder} does not hold weights of {type(found).__name__} ({listed})")
    return found.state_dict()


@contextmanager
def _quiet(transformers):
    """Without the bar and the notes that transformers writes while it reads."""
    logging = transformers.utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def classes(folder):
    """The names of the classes that config.json gives; None where it only numbers them."""
    named = _opened(folder).id2label
    names = [named[index] for index in range(len(named))]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else names


def normalisation(folder):
    """(mean, std) that preprocessor_config.json of `folder` gives for pixels in [0, 1]; 0.5 with a warning without it.

    ValueError where it does more than to divide by 255 before.
    """
    file = Path(folder) / "preprocessor_config.json"
    if not file.is_file():
        warnings.warn(f"{folder} has no preprocessor_config.json: mean and std are taken as 0.5", stacklevel=4)
        return (0.5,) * 3, (0.5,) * 3
    try:
        told = dict(json.loads(file.read_text(encoding="utf-8")))
        scale = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1
        plain = abs(255 * scale - 1) < 1e-3 and not told.get("rescale_offset")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({_first(error)})") from error
    if not plain:
        raise ValueError(
            f"{file} does not scale pixels to [0, 1]; build the network with its mean and std, and save it"
        )
    if not told.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3
    return told.get("image_mean", (0.5,) * 3), told.get("image_std", (0.5,) * 3)
