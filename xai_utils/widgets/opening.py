"""What there is to inspect: a network of ImageNet that is installed, and what the pipeline has made so far."""

import json
import os
from functools import partial
from pathlib import Path

import torch

from xai_utils import datasets, networks
from xai_utils.explainers import EXPLAINERS, rows_of
from xai_utils.networks import targets
from xai_utils.networks.digests import digest
from xai_utils.pipeline import parameters
from xai_utils.training.distributed import Compute
from xai_utils.widgets import FOLDERS
from xai_utils.widgets.pictures import Mosaics, Photographs, Prepared
from xai_utils.widgets.subject import Subject

NETWORK, WEIGHTS, SIZE = "efficientnet_lite0", "IMAGENET1K", 224  # comes with the extra `pipeline`; its images' size
PIPELINE = "build/target"  # where the stage finetune_target puts the network of the pipeline


def openers(root=".", folders=None):
    """Which networks can be asked: what each is called -> the function that opens its `Subject`, the first one first.

    ImageNet's needs nothing but the installed packages; that of the pipeline in `root` is there when it is trained.
    """
    found = {f"{NETWORK}, photographs": partial(open_photographs, root, folders)}
    if (Path(root) / PIPELINE / "target.json").is_file():
        found["the pipeline's network and images"] = partial(open_subject, root, folders)
    return found


def open_photographs(root=".", folders=None) -> Subject:
    """The network of ImageNet with the photographs that are installed; no stage need have run.

    Files may be read as in `open_subject`. ModuleNotFoundError where its weights are not installed.
    """
    root, settings, compute = _project(root, folders)
    target = networks.build(NETWORK, None, pretrained_from=WEIGHTS).eval().to(compute.device)
    missing = {
        method: f"{method} is trained for one network, and not for this one: stage {record.part.stage} trains it for "
        "that of the pipeline"
        for method, record in _with_part()
    }
    photographs = Photographs(SIZE)
    return Subject(
        _copy(target, SIZE, compute.device),
        SIZE,
        missing=missing,
        sources=(photographs, Mosaics(photographs)),
        weights=digest(target),
        **settings,
    )


def open_subject(root=".", folders=None) -> Subject:
    """The network that the pipeline in the folder `root` has trained, and its images.

    A part that is missing or damaged becomes a notice that names the stage to run, never an error. Files may be read
    under `root` and under `folders`; None: those that `make inspect` was given. FileNotFoundError and ValueError where
    there is no network.
    """
    (root, settings, compute), notices = _project(root, folders), []
    prepare = parameters.resolve(parameters.read(root / "params.yaml"), "prepare_data")
    target = targets.load(root / PIPELINE, compute.device)
    sources, size, geometry = _images(root, prepare, notices)
    parts = _parts(root, target, compute.device, notices)
    made = [(EXPLAINERS[method].part, network) for method, found in parts.items() for network in found.values()]
    return Subject(
        _copy(target, size, compute.device, [name for part, each in made for name in part.layers(each)]),
        size,
        geometry=geometry,
        parts=parts,
        missing={
            method: f"{method} needs what `dvc repro {record.part.stage}` trains"
            for method, record in _with_part()
            if method not in parts
        },
        notices=tuple(notices),
        sources=sources,
        weights=" ".join(digest(network) for network in (target, *(network for _, network in made))),
        **settings,
    )


def readable(root=".", folders=None):
    """The folders from which files may be read: `root`, and `folders` (None: those that `make inspect` was given)."""
    folders = json.loads(os.environ.get(FOLDERS, "[]")) if folders is None else folders
    return tuple(Path(folder).resolve() for folder in (root, *folders))


def _project(root, folders):
    """The root, what every `Subject` takes of the pipeline's parameters and of the command line, and the device."""
    root = Path(root)
    values = parameters.read(root / "params.yaml")
    explain, evaluate = (parameters.resolve(values, name) for name in ("explain", "evaluate"))
    compute = Compute(**explain["compute"]).resolved()
    torch.set_num_threads(compute.threads)
    curves = {
        name: {"pixels_per_step": evaluate["pixels_per_step"], "baseline": evaluate[f"{name}_baseline"]}
        for name in ("insertion", "deletion")
    }
    settings = {
        "device": compute.device,
        "folders": readable(root, folders),
        "defaults": rows_of("all", explain["rows"]),
        "curves": curves,
        "seed": values["seed"],
    }
    return root, settings, compute


def _with_part():
    """The methods that need a trained network and are not another one's variant, with their records."""
    return [(name, each) for name, each in EXPLAINERS.items() if each.part is not None and each.variant_of is None]


def _copy(target, size, device, keep=()):
    probe = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return networks.inference_copy(target, probe, keep=list(keep))


def _read(opener, notices):
    """What `opener` gives; None where it has not been made, and where it cannot be used, which is noticed."""
    try:
        return opener()
    except FileNotFoundError:
        return None
    except ValueError as error:
        notices.append(str(error))
        return None


def _images(root, prepare, notices):
    """The sources of images, the image size, and the geometry of files and uploads."""
    prepared = root / "build/data"
    data = _read(lambda: datasets.load(prepared), notices) if (prepared / "dataset.json").is_file() else None
    if data is None:
        notices.append("There is no data set to pick from: `dvc repro prepare_data` makes it. Files and uploads work.")
        return (), prepare["image_size"], prepare["geometry"]
    geometry = prepare["geometry"] if data.catalogue else data.description["geometry"]
    own = Prepared(data)
    sources = own, Mosaics(own)
    return sources[: min(2, len(own.classes))], data.description["image_size"], geometry


def _parts(root, target, device, notices):
    """The trained networks that methods bring: method -> label -> network, of those that are there and fit."""
    found = {}
    for method, record in _with_part():
        part, folder = record.part, root / record.keywords[record.part.option]
        folders = [folder]
        if part.word:  # a person may choose among all of the kind
            folders = sorted(facts.parent for facts in folder.parent.glob(f"*/{part.kind}.json"))
        for place in folders:
            network = _read(lambda part=part, place=place: part.of(place, target, device), notices)
            if network is not None:
                found.setdefault(method, {})[part.label(network, place)] = network
    return found
