"""What there is to inspect: networks and images that the pipeline has made so far, or what can stand in for them."""

import hashlib
import json
from pathlib import Path

import torch

from xai_utils import datasets, networks, parameters
from xai_utils.distributed import Compute
from xai_utils.explainers.attention_gate import GATES, _gate_of
from xai_utils.explainers.mask_predictor import PREDICTORS, _predictor_for
from xai_utils.explainers.surrogate import SURROGATES, _surrogate_of
from xai_utils.networks import targets
from xai_utils.widgets.pictures import Drawn, Prepared
from xai_utils.widgets.subject import Subject

LEARNED = {"akd": "distill_surrogate"} | dict.fromkeys(("dgle_bf", "dgle_cf", "mgnet"), "train_mask_predictor")
LEARNED |= {"amg": "train_attention"}


def open_subject(root=".") -> Subject:
    """What the pipeline in the folder `root` has made; where it has trained no network yet, an untrained one.

    A part that is missing or damaged becomes a notice that names the stage to run, never an error.
    """
    root, notices = Path(root), []
    values = parameters.read(root / "params.yaml")
    prepare, explain, evaluate = (parameters.resolve(values, name) for name in ("prepare_data", "explain", "evaluate"))
    compute = Compute(**explain["compute"]).resolved()
    torch.set_num_threads(compute.threads)
    source, size, geometry = _images(root, prepare, notices)
    target = _read(lambda: targets.load(root / "build/target", compute.device), notices)
    surrogates, predictors, gates, missing = {}, {}, {}, _missing()
    if target is not None:
        surrogates, predictors, gates, missing = _learned(root, target, compute.device, notices)
    else:
        target = _untrained(values["target"], source, values["seed"]).to(compute.device)
        notices.append(
            "This network has random weights: its maps show its architecture and the image, nothing learned. "
            "`dvc repro finetune_target` trains it."
        )
    probe = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(compute.device)
    return Subject(
        model=networks.inference_copy(target, probe, keep=[gate.layer for gate in gates.values()]),
        size=size,
        device=compute.device,
        geometry=geometry,
        surrogates=surrogates,
        predictors=predictors,
        gates=gates,
        missing=missing,
        notices=tuple(notices),
        source=source,
        defaults=explain["methods"],
        curves={
            name: {"pixels_per_step": evaluate["pixels_per_step"], "baseline": evaluate[f"{name}_baseline"]}
            for name in ("insertion", "deletion")
        },
        seed=values["seed"],
        weights=_digest(target, *surrogates.values(), *predictors.values(), *gates.values()),
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


def _untrained(architecture, source, seed):
    """A network of that architecture with random weights, the same every time."""
    classes = source.classes if source is not None else [f"class {number}" for number in range(10)]
    known = architecture if architecture in networks.ARCHITECTURES else "small_resnet"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks.build(known, classes).eval()


def _missing():
    return {method: f"{method} needs what `dvc repro {stage}` trains" for method, stage in LEARNED.items()}


def _learned(root, target, device, notices):
    """AKD's networks by λ, mask predictors by method, AMG's gates by layer, and why other methods are missing."""
    surrogates, predictors, gates, missing = {}, {}, {}, _missing()
    for facts in sorted((root / SURROGATES).glob("*/surrogate.json")):
        surrogate = _read(lambda facts=facts: _surrogate_of(target, facts.parent, device), notices)
        if surrogate is not None:
            made_with = json.loads(facts.read_text()).get("made_with") or {}
            weight = made_with.get("l1_weights", {}).get(facts.parent.name)
            surrogates[facts.parent.name if weight is None else f"{weight:g}"] = surrogate
            missing.pop("akd", None)
    for method in ("dgle_bf", "dgle_cf", "mgnet"):
        folder = root / PREDICTORS / method
        predictor = _read(lambda folder=folder: _predictor_for(target, folder, device), notices)
        if predictor is not None:
            predictors[method] = predictor
            del missing[method]
    probe = torch.rand(1, 3, 32, 32, device=device)
    for facts in sorted((root / GATES).glob("*/attention_gate.json")):
        gate = _read(lambda facts=facts: _gate_of(target, facts.parent, probe), notices)
        if gate is not None:
            gates[gate.layer] = gate
            missing.pop("amg", None)
    return surrogates, predictors, gates, missing


def _digest(*modules):
    """SHA-256 over the weights of all `modules`."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
