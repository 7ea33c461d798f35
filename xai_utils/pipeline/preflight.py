"""What the stages would stumble over in the names, options, networks and weights that params.yaml gives them.

The functions that the stages call are asked, with networks as they are before any training and one image of noise.
Nothing is fetched. `given` is what the stages receive, stage -> parameters, of those whose own values are right.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from xai_utils.datasets.published import without_labels
from xai_utils.explainers import EXPLAINERS, NotApplicable, explainer, method_of, rows_of
from xai_utils.metrics import metrics_of
from xai_utils.networks import (
    build,
    cam_layer,
    effect_predictor_of,
    evaluating,
    gate_for,
    last_convolution,
    load,
    predictor_of,
    scale_layers,
    stored,
    surrogate_of,
)
from xai_utils.networks.architectures import COMES_WITH
from xai_utils.networks.surrogate import OPTIONS
from xai_utils.networks.targets import has_classes
from xai_utils.retraining import experiment
from xai_utils.training.distributed import Compute
from xai_utils.training.mask_predictor import CONTROLLER_OF
from xai_utils.training.target import source_of

# stage -> the section of it whose epochs are 0 where nothing is to be trained
TRAINED = {"finetune_target": "", "distill_surrogate": "student", "train_mask_predictor": "generator"}
TRAINED |= {"train_attention": "gate", "train_effect_predictor": "predictor"}
PASSES = 2  # at most of what only multiplies passes: more tell nothing new


def names(given: dict) -> list[str]:
    """Targets, methods, options, metrics, statistics that are unknown, and options' values that are not allowed."""
    found = []
    for key, name in _named(given):
        found += _said(f"{key}: ", source_of, name)
    for stage in given.values():
        found += _said("compute: ", Compute(**stage["compute"]).resolved) if "compute" in stage else []
    if explain := given.get("explain"):
        found += _said("explain.", rows_of, explain["methods"], explain["rows"])
    if evaluate := given.get("evaluate"):
        found += _said("evaluate.metrics: ", metrics_of, evaluate["metrics"])
    if retrain := given.get("remove_and_retrain"):
        found += _said("remove_and_retrain.", experiment.check, retrain)
    if explain and (figures := given.get("figures")):
        found += _said("figures.methods: ", _require_rows, figures["methods"], EXPLAINERS | explain["rows"])
    return found


def trainings(given: dict) -> list[str]:
    """The trainings that are asked for on images without labels, on which none is possible."""
    folder, found = Path(given["prepare_data"]["dataset"]) if "prepare_data" in given else None, {}
    if folder is None or not without_labels(folder):
        return []
    for stage, of in TRAINED.items():
        if stage in given:
            epochs = (given[stage][of] if of else given[stage])["epochs"]
            found |= {f"{stage}.{of}{'.' if of else ''}epochs = {epochs}": "0"} if epochs else {}
    if others := given.get("train_attention", {}).get("networks"):
        found[f"train_attention.networks = {others}"] = "[]"
    for name, none in (("statistics", "[]"), ("rows", "{}")):
        if given.get("remove_and_retrain", {}).get(name):
            found[f"remove_and_retrain.{name} is not empty"] = none
    return [
        f"params.yaml: {asked}, but {folder} has no labels, and nothing can be trained on it; set it to {value}"
        for asked, value in found.items()
    ]


def networks(given: dict) -> list[str]:
    """Networks that cannot be opened, that take no images of this size, or that a later stage could not use."""
    if not {"prepare_data", "finetune_target"} <= set(given):
        return []
    image, opened, found = _noise(given["prepare_data"]["image_size"]), {}, []
    for key, name in _named(given):
        found += _said(f"{key}: ", lambda name=name: opened.update({name: _opened(name, image)}))
    target = opened.get(given["finetune_target"]["target"])
    for stage, questions in QUESTIONS.items() if target else ():
        with suppress(ValueError):  # of names that are unknown: they are told above
            for key, function, *arguments in questions(given, target, opened, image) if stage in given else ():
                found += (said := _said(f"{stage}{key}: ", function, *arguments))
                if said and not key:  # what follows would stumble over the same
                    break
    return found


def _named(given):
    """(key, name) of all networks that `source_of` understands."""
    if stage := given.get("finetune_target"):
        yield "target", stage["target"]
    if (stage := given.get("distill_surrogate")) and stage["trunk"]:
        yield "distill_surrogate.trunk", stage["trunk"]
    for name in given.get("train_attention", {}).get("networks", ()):
        yield "train_attention.networks", name


def _said(key, function, *arguments) -> list[str]:
    """What `function` raises of these arguments, each line behind its key."""
    try:
        function(*arguments)
    except (OSError, ValueError) as error:
        return [f"params.yaml: {key}{line}" for line in str(error).splitlines()]
    except Exception as error:  # whatever it is, the stage would die of it
        return [f"params.yaml: {key}{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"]
    return []


def _noise(size):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _opened(name, image):
    """The network that `name` stands for, with its weights unless they would be fetched, once it took `image`."""
    architecture, weights = source_of(name)
    file = weights if isinstance(weights, Path) or weights == COMES_WITH.get(architecture) else None
    if architecture is None:
        network = load(weights)
    else:
        classes = None if file and has_classes(architecture, file) else "ab"
        network = build(architecture, classes, pretrained_from=file, image_size=image.shape[-1])
    _require_takes(network, image)
    return network


def _require_takes(network, image):
    try:
        with evaluating(network), torch.no_grad():
            network(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{network.architecture} takes no images of {image.shape[-2]} x {image.shape[-1]} pixels "
            f"({str(error).splitlines()[0]}); choose larger images, or another network"
        ) from None


def _require_rows(asked, known):
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"{unknown[0]!r} is unknown; choose among {', '.join(known)}")


def _surrogate(given, target, opened, image):
    stage = given["distill_surrogate"]
    trunk = opened.get(stage["trunk"]) if stage["trunk"] else target
    if stage["student"]["epochs"] and trunk:
        yield "", _or_leave_out, _classify, trunk, {name: stage[name] for name in OPTIONS}, image


def _classify(trunk, options, image):
    with torch.no_grad():
        surrogate_of(trunk, image, **options).eval().classify(image)


def _predictor(given, target, opened, image):
    stage = given["train_mask_predictor"]
    options = {"controller": CONTROLLER_OF[stage["predictors"][0]], "upsampler": stage["upsampler"]}
    if stage["generator"]["epochs"]:
        yield "", _or_leave_out, partial(predictor_of, target, image, **options)


def _effects(given, target, opened, image):
    if given["train_effect_predictor"]["predictor"]["epochs"]:
        yield "", _or_leave_out, effect_predictor_of, target, image


def _gates(given, target, opened, image):
    stage = given["train_attention"]
    options = {name: stage[name] for name in ("objective", "gate_input", "reduction")}
    if stage["gate"]["epochs"] or stage["objective"] == "none":
        for layer_of in (cam_layer, last_convolution):
            yield (
                "",
                _or_leave_out,
                lambda layer_of=layer_of: gate_for(target, image, layer=layer_of(target, image), **options),
            )


def _explained(given, target, opened, image):
    for row, options in rows_of(given["explain"]["methods"], given["explain"]["rows"]).items():
        yield f".rows.{row}", _require_part, row, options, given
        yield f".rows.{row}", _or_leave_out, _try, target, image, row, options


def _retrained(given, target, opened, image):
    stage = given["remove_and_retrain"]
    image = _noise(stage["image_size"]) if stage["image_size"] else image
    network = target
    if stage["network"] != "target":
        network = build(stage["network"], "ab", image_size=image.shape[-1])
    yield "", _require_takes, network, image
    yield "", scale_layers, network, image
    for row, options in stage["rows"].items():
        yield f".rows.{row}", _or_leave_out, _try, network, image, row, options


QUESTIONS = {
    "distill_surrogate": _surrogate,
    "train_mask_predictor": _predictor,
    "train_attention": _gates,
    "train_effect_predictor": _effects,
    "explain": _explained,
    "remove_and_retrain": _retrained,
}


def _require_part(row, options, given):
    """The trained network that a row names is there, or is one that a stage trains."""
    method, options = method_of(row, options)
    part = explainer(method).part
    if part is None or options.get(part.option) is None:
        return
    path, folder = Path(options[part.option]), Path(explainer(method).keywords[part.option]).parent
    stage = given.get(part.stage, {})
    named = [stage[key] for key in ("l1_weights", "predictors", "order_weights", "cells") if key in stage]
    made = {name for names in named for name in names}  # none: a gate's names are the notebook's
    if path.parent != folder or (made and path.name not in made):
        stored.facts(path, part.kind, ())


def _try(network, image, row, options):
    """Explain `image` once, where an option could stop the method: not where options only multiply its passes."""
    method, options = method_of(row, options)
    record = explainer(method)
    if record.part is not None and options.get(record.part.option, record.keywords[record.part.option]) is not None:
        return  # the stages train it first
    passes = [option.name for option in record.options if option.multiplies]
    if set(options) - set(passes) or record.may_not_apply:
        few = {name: min(options.get(name, record.keywords[name]), PASSES) for name in passes}
        record(network, image, **options | few)


def _or_leave_out(function, *arguments):
    with suppress(NotApplicable):  # the stage leaves out what such a network cannot have, and says so
        function(*arguments)
