"""Remove and retrain (ROAR), keep and retrain (KAR): what networks learn of what a map leaves them (FastCAM §2.4, 3.1).

Two levels. *Layer*: the explained network keeps few positions of one layer; what lies behind it is fine-tuned.
*Image*: a network learns on images that keep or lack their most salient pixels, and is tested on such.

`retrain` takes settings (plain values, JSON):
    data, target          folders of the prepared data and of the target
    network               "target", or an architecture that is first trained itself and then explained
    image_size            images are resized to it; None: as they are prepared
    train_images, held_out_images   as many of each class as possible; None: all
    explained_epochs      of the explained network where `network` is an architecture
    repetitions, seed     repetition r trains with seed + r
    start                 image level: networks begin from "scratch", as ROAR wants, or as the "explained" one
    percentages           of the pixels, image level
    rows                  image level: name -> {"method": a name of EXPLAINERS, its options}; {}: it is not run
    statistics            layer level: names of STATISTICS; []: it is not run
    fill                  colour of removed pixels: "mean" (of the training images' channels) or "black"
    keep_share, least_share, scale_kept     see `layer_masked_model`; KAR keeps the one, ROAR the other
    image, layer          epochs, batch_size, learning_rate, schedule, milestones, momentum, weight_decay,
                          smallest_crop of the trainings of each level

Each gives records, one per training: level, mode ("keep", "remove", "none"), row, percent or layer (the other is None),
repetition, passes (of the row's maps, image level), and hits, 0 or 1 for each held-out image. Every result is a file
below `.checkpoints/remove_and_retrain` whose name stands for all that it depends on: what is there is not done again,
and a killed training goes on from its checkpoint.
"""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch

from xai_utils import datasets, explainers
from xai_utils.explainers.activation_statistics import STATISTICS
from xai_utils.files import files_fingerprint
from xai_utils.networks import ARCHITECTURES, scale_layers, stored, targets
from xai_utils.networks.architectures import TIMM, require_known
from xai_utils.networks.probe import layout_of
from xai_utils.retraining.inputs import FOLDER, images_of
from xai_utils.retraining.jobs import key_of, work
from xai_utils.retraining.masks import thresholds
from xai_utils.training.distributed import Compute
from xai_utils.training.workers import workers


def retrain(settings, modes=("none", "keep", "remove"), *, compute=None, log=None):
    """The records of several modes: "keep" is KAR, "remove" is ROAR, both with random masks; "none" is without masks.

    Without masks: networks of the image level, and the explained network, fine-tuned behind each layer as those
    with a mask there are.
    `log(text)` gets a line per training that was done.
    """
    compute = (compute or Compute()).resolved()
    check(settings)
    if not settings["rows"] and not settings["statistics"]:
        return []
    if not len(datasets.load(settings["data"]).train):
        raise ValueError(
            f"{settings['data']} has no labelled image to train on, and remove_and_retrain does nothing but train; "
            "switch it off (rows: {} and statistics: [])"
        )
    data_hash = files_fingerprint(settings["data"])
    count = compute.processes * (compute.threads if compute.device == "cpu" else 1)
    with workers(replace(compute, threads=1, processes=count)) as done:
        make = partial(_made, done=done, compute=replace(compute, threads=1, processes=1), log=log)
        conditions = [condition for mode in modes for condition in _conditions(settings, mode, data_hash, make)]
        results = make([(_named(record), kind, chosen) for record, kind, chosen in conditions])
    return [record | result for (record, _, _), result in zip(conditions, results, strict=True)]


def not_applicable(settings) -> dict[str, list[str]]:
    """Why rows cannot explain the network that is retrained (guided backprop without ReLU modules): reason -> rows."""
    if not settings["rows"]:
        return {}
    size = settings["image_size"] or datasets.load(settings["data"]).description["image_size"]
    image, found = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)), {}
    with torch.random.fork_rng(devices=[]):
        if settings["network"] == "target":
            network = targets.load(settings["target"])
        else:
            network = targets.build(settings["network"], "ab", image_size=size).eval()
        for row, options in settings["rows"].items():
            method, own = explainers.method_of(row, options)
            if explainers.explainer(own.get("over", method)).may_not_apply:
                try:
                    explainers.explain(network, image, method=method, **own)
                except explainers.NotApplicable as error:
                    found.setdefault(str(error), []).append(row)
    return found


def check(settings):
    """Refuse, before any work, what only the last training would stumble over: a ValueError with a line for each."""
    problems = []
    try:
        explainers.check_rows(settings["rows"])
    except ValueError as error:
        problems.append(str(error))
    for key, values, allowed in (
        ("statistics", settings["statistics"], STATISTICS),
        ("fill", [settings["fill"]], ["mean", "black"]),
        ("start", [settings["start"]], ["scratch", "explained"]),
    ):
        unknown = [value for value in values if value not in allowed]
        problems += [f"{key}: {value!r} is unknown; choose among {', '.join(allowed)}" for value in unknown]
    problems += _unknown_network(settings["network"])
    if problems:
        raise ValueError("\n".join(problems))


def _unknown_network(name):
    """What is wrong with the name of a network to retrain, a list of lines; it is trained from random weights."""
    if name != "target" and name not in ARCHITECTURES and not name.startswith(TIMM):
        return [f"network: {name!r} is unknown; choose among target, {', '.join(ARCHITECTURES)}, timm:NAME"]
    try:
        require_known("small_resnet" if name == "target" else name)
    except ValueError as error:
        return [f"network: {error}"]
    return []


def _named(record):
    where = record["layer"] or (f"{record['percent']} %" if record["percent"] else record["level"])
    return f"{record['mode']} {where} {record['row']}"


def _made(jobs, *, done, compute, log):
    """What each job (name, kind, its settings) results in, a dict; workers do the jobs whose file is missing.

    A file's name stands for all that the result depends on; the number of workers is not among it.
    """
    paths, missing = [], {}  # path -> name, and what `work` is asked for
    for name, kind, chosen in jobs:
        paths.append(path := FOLDER / kind / f"{key_of(kind, chosen, compute.decisive())}.json")
        if not path.exists():
            missing.setdefault(path, (name, (name, path, kind, chosen, compute)))
    names, asked = zip(*missing.values(), strict=True) if missing else ((), ())
    for number, (place, _) in enumerate(done(work, asked), start=1):
        if log:
            hits = _read([*missing][place]).get("hits")
            log(f"{number} of {len(missing)}: {names[place]}" + (f" {np.mean(hits):.3f}" if hits else ""))
    return [_read(path) for path in paths]


def _read(path):
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict):
            raise ValueError("no result in it")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again") from error
    return result


UNMASKED = {"levels": None, "place": None, "keep": None}


def _conditions(settings, mode, data_hash, make):
    """(record, kind, settings of the training) of all that is trained in a mode."""
    data = {name: settings[name] for name in ("data", "image_size", "train_images", "held_out_images")}
    data |= {"subset_seed": settings["seed"], "data_hash": data_hash}
    [shared] = make([("images and their mean colour", "images", data)])
    data["images"], data["fill"] = shared["images"], shared["colour"] if settings["fill"] == "mean" else [0.0] * 3
    folder = settings["target"]
    if settings["network"] != "target":
        chosen = data | settings["image"] | UNMASKED | {"network": {"architecture": settings["network"]}}
        chosen["seed"] = settings["seed"]
        chosen["epochs"] = settings["explained_epochs"]
        [result] = make([(f"{settings['network']}, to be explained", "explained", chosen)])
        folder = result["folder"]
    facts = stored.facts(folder, targets.KIND, ("architecture", "mean", "std"))
    explained = data | {"explained": folder, "sha256": facts["sha256"]}
    layers = _layer_conditions(settings, mode, explained) if settings["statistics"] else []
    if not settings["rows"]:
        return layers
    network = {name: facts[name] for name in ("architecture", "mean", "std")} | facts.get("options", {})
    begun = data | settings["image"] | {"network": network}
    begun |= explained if settings["start"] == "explained" else {}
    return layers + _image_conditions(settings, mode, explained, begun, make)


def _layer_conditions(settings, mode, explained):
    made, rows = {"level": "layer", "mode": mode, "percent": None, "passes": None}, ("random", *settings["statistics"])
    masked = {"least": mode == "remove", "scale": settings["scale_kept"]}
    masked["share"] = settings["least_share"] if mode == "remove" else settings["keep_share"]
    if mode == "none":
        rows, masked["share"] = ("none",), 1.0
    found, probe, network = [], images_of(explained, "train")[0]([0]), targets.load(explained["explained"])
    for layer in scale_layers(network, probe):
        layout = asdict(layout_of(network, probe, layer))
        for row in rows:
            chosen = explained | settings["layer"] | masked | {"layer": layer, "layout": layout}
            chosen["statistic"] = None if row in ("random", "none") else row
            for repetition in range(settings["repetitions"]):
                record = made | {"row": row, "layer": layer, "repetition": repetition}
                found.append((record, "layer", chosen | {"seed": settings["seed"] + repetition}))
    return found


def _image_conditions(settings, mode, explained, begun, make):
    made, shares = {"level": "image", "mode": mode, "layer": None}, thresholds(settings["percentages"])
    if mode == "none":
        jobs = [(made | {"row": "none", "percent": None, "passes": None}, begun | UNMASKED)]
    else:
        rows, jobs = {"random": {"method": "random"}} | settings["rows"], []
        drawn = explained | {"percentages": shares, "seed": settings["seed"]}
        levels = make([(f"maps of {name}", "levels", drawn | {"row": row}) for name, row in rows.items()])
        for percent in settings["percentages"]:
            for row, drawn in zip(rows, levels, strict=True):
                keep, top = mode == "keep", percent
                if row == "random" and not keep:  # to lose p % at random is to keep 100 - p %: one training, not two
                    keep, top = True, 100 - percent
                chosen = begun | {"levels": drawn["levels"], "place": shares.index(top), "keep": keep}
                jobs.append((made | {"row": row, "percent": percent, "passes": drawn["passes"]}, chosen))
    return [
        (record | {"repetition": repetition}, "image", chosen | {"seed": settings["seed"] + repetition})
        for record, chosen in jobs
        for repetition in range(settings["repetitions"])
    ]
