"""What there is to inspect: networks and images that the pipeline has made so far, or what can stand in for them."""

import json
import os
from pathlib import Path

import torch

from xai_utils import datasets, networks
from xai_utils.explainers import EXPLAINERS, rows_of
from xai_utils.networks import targets
from xai_utils.networks.digests import digest
from xai_utils.pipeline import parameters
from xai_utils.training.distributed import Compute
from xai_utils.training.target import source_of
from xai_utils.widgets import FOLDERS
from xai_utils.widgets.pictures import Drawn, Prepared
from xai_utils.widgets.subject import Subject


def open_subject(root=".", folders=None) -> Subject:
    """What the pipeline in the folder `root` has made; where it has trained no network yet, an untrained one.

    A part that is missing or damaged becomes a notice that names the stage to run, never an error. Files may be read
    under `root` and under `folders`; None: those that `make inspect` was given.
    """
    root, notices = Path(root), []
    folders = json.loads(os.environ.get(FOLDERS, "[]")) if folders is None else folders
    values = parameters.read(root / "params.yaml")
    prepare, explain, evaluate = (parameters.resolve(values, name) for name in ("prepare_data", "explain", "evaluate"))
    compute = Compute(**explain["compute"]).resolved()
    torch.set_num_threads(compute.threads)
    source, size, geometry = _images(root, prepare, notices)
    target = _read(lambda: targets.load(root / "build/target", compute.device), notices)
    parts = {}
    if target is not None:
        parts = _parts(root, target, compute.device, notices)
    else:
        target = _untrained(values["target"], source, values["seed"], size).to(compute.device)
        notices.append(
            "This network has random weights: its maps show its architecture and the image, nothing learned. "
            "`dvc repro finetune_target` trains it."
        )
    probe = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(compute.device)
    records = {method: record for method, record in EXPLAINERS.items() if record.part is not None}
    made = [(records[method].part, network) for method, found in parts.items() for network in found.values()]
    return Subject(
        model=networks.inference_copy(target, probe, keep=[name for part, each in made for name in part.layers(each)]),
        size=size,
        device=compute.device,
        geometry=geometry,
        parts=parts,
        missing={
            method: f"{method} needs what `dvc repro {record.part.stage}` trains"
            for method, record in records.items()
            if method not in parts and record.variant_of is None
        },
        notices=tuple(notices),
        source=source,
        folders=tuple(Path(folder).resolve() for folder in (root, *folders)),
        defaults=rows_of("all", explain["rows"]),
        curves={
            name: {"pixels_per_step": evaluate["pixels_per_step"], "baseline": evaluate[f"{name}_baseline"]}
            for name in ("insertion", "deletion")
        },
        seed=values["seed"],
        weights=" ".join(digest(network) for network in (target, *(network for _, network in made))),
    )


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
    """The source of images or None, the image size, and the geometry of files and uploads."""
    prepared, dataset = root / "build/data", root / prepare["dataset"]
    if (prepared / "dataset.json").is_file():
        data = _read(lambda: datasets.load(prepared), notices)
        if data is not None:
            geometry = prepare["geometry"] if data.catalogue else data.description["geometry"]
            return Prepared(data), data.description["image_size"], geometry
    drawn = None
    if (dataset / "species.yaml").is_file():
        catalogue = _read(lambda: datasets.load_catalogue(dataset / "species.yaml"), notices)
        drawn = catalogue and Drawn(catalogue, prepare["image_size"])
    if drawn is None:
        notices.append("There is no data set to pick from: `dvc repro prepare_data` makes it. Files and uploads work.")
    return drawn, prepare["image_size"], prepare["geometry"]


def _untrained(name, source, seed, size):
    """A network of the architecture that params.yaml's target names, with random weights, the same every time."""
    classes = source.classes if source is not None else [f"class {number}" for number in range(10)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return networks.build(source_of(name)[0], classes, image_size=size).eval()
        except (ValueError, OSError, ImportError):  # a checkpoint, or what `--check` would refuse
            return networks.build("small_resnet", classes).eval()


def _parts(root, target, device, notices):
    """The trained networks that methods bring: method -> label -> network, of those that are there and fit."""
    found = {}
    for method, record in EXPLAINERS.items():
        if record.part is None or record.variant_of is not None:
            continue
        part, folder = record.part, root / record.keywords[record.part.option]
        folders = [folder]
        if part.word:  # a person may choose among all of the kind
            folders = sorted(facts.parent for facts in folder.parent.glob(f"*/{part.kind}.json"))
        for place in folders:
            network = _read(lambda part=part, place=place: part.of(place, target, device), notices)
            if network is not None:
                found.setdefault(method, {})[part.label(network, place)] = network
    return found
