"""Scores of saved maps: every method on the same images, every metric on the same ranking; workers share the images.

A method's scores go to disk as soon as it is done, so that memory does not grow with images times methods:
    <scores>/<method>.csv    one row per image: image, label, target, method, failed, the metrics, protocol
    <scores>/protocol.json   the methods in the order of the tables, what was measured how, of which run, and the digest
                             of these, which every row repeats: scores of two are never mixed (`read_scores`)
    <drawn>/<method>.<curve>.npy   the curve of every image, (n, points); beside them protocol.json once more
"""

import hashlib
import json
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas
import torch

from xai_utils import datasets, runs
from xai_utils.evaluation import maps
from xai_utils.evaluation.batches import batches, write_arrays
from xai_utils.files import file_name, new_folder, partial_folder, write_json, writing
from xai_utils.images import as_maps
from xai_utils.metrics import METRICS, metric
from xai_utils.metrics.infidelity import removal_falls
from xai_utils.metrics.localisation import break_zero_ties
from xai_utils.metrics.part_truth import THRESHOLD, area_share, deciding_parts
from xai_utils.metrics.perturbation import CURVES, explained_classes, perturbation_curves
from xai_utils.metrics.statistics import holm, paired_tests, summary
from xai_utils.networks import answering, engine, evaluating, targets
from xai_utils.networks.engine import told
from xai_utils.progress import Progress
from xai_utils.training.distributed import Compute
from xai_utils.training.target import labels_among
from xai_utils.training.workers import Opened, workers

REQUIRED = ("target", "data", "maps", "metrics")
MEASURED = ("metrics", "curves", "options", "part_threshold", "break_ties")  # the settings that scores depend on
DEFAULTS = {
    "curves": {},  # curve -> options of its protocol, e.g. {"deletion": {"pixels_per_step": 1792}}
    "options": {},  # metric -> options of its score, e.g. {"pointing_game": {"tolerance": 15}}
    "part_threshold": THRESHOLD,  # share of the class's probability that a part which decides takes with it
    "break_ties": True,  # order zero pixels by their nearness to evidence, for all methods
    "chunk": 64,  # perturbed images per forward pass
    "batch": 32,  # images in memory at once
    "scores": None,  # folder for the scores of each image
    "drawn": None,  # folder for the curves of each image
}
INDEX = "protocol.json"


def _complete(settings):
    missing = [name for name in REQUIRED if name not in settings]
    unknown = [name for name in settings if name not in (*REQUIRED, *DEFAULTS)]
    if missing or unknown:
        known = f"needed are {', '.join(REQUIRED)}; optional are {', '.join(DEFAULTS)}"
        raise ValueError(f"evaluation settings lack {missing} and have the unknown {unknown}; {known}")
    settings = DEFAULTS | settings
    for name in (*settings["metrics"], *settings["options"]):
        metric(name)  # raises on an unknown name
    unknown = [name for name in settings["curves"] if name not in CURVES]
    if unknown:
        raise ValueError(f"curves {unknown} are unknown; choose among {', '.join(CURVES)}")
    return settings


def _told_score(metrics, settings):
    """Which score of the explained class the metrics follow, in words; those that are not the first's by name."""
    found = {}
    for name in metrics:
        given = settings["curves"].get(METRICS[name].curve, {}) | settings["options"].get(name, {})
        if METRICS[name].needs in ("model", "falls", "part_masks"):
            found.setdefault(given.get("score", "softmax"), []).append(name)
    words = {"softmax": "softmax probability", "sigmoid": "sigmoid of the logit"}
    told = [
        f"{words.get(score, score)} of the explained class" + f" ({', '.join(names)})" * (len(found) > 1)
        for score, names in found.items()
    ]
    return "; ".join(told) or "no score of a class"


def of_mosaics(name):
    """Whether a metric scores the maps of mosaics."""
    return METRICS[name].needs == "cell_masks"


def needed_curves(metrics):
    """The curves that `metrics` are numbers of, each once."""
    return list(dict.fromkeys(METRICS[name].curve for name in metrics if METRICS[name].curve))


def score_batch(
    model,
    images,
    target,
    maps,
    *,
    metrics,
    masks=None,
    part_masks=None,
    cell_masks=None,
    falls=None,
    curves=None,
    options=None,
    break_ties=False,
    chunk=64,
):
    """Scores and curves of one method: (dict metric -> (N,), dict curve -> (N, points)), float on the CPU.

    Maps that are not finite score NaN in every metric. `masks` (N, H, W) is needed by the localisation metrics,
    `part_masks` (N, H, W) by part truth (`deciding_parts`), `cell_masks` (N, H, W) by the grid pointing game, where
    the images are mosaics (`grid_pointing.cell_mask`); `falls` (N, squares) spare infidelity its passes; `curves`,
    `options` and `break_ties` as in `DEFAULTS`.
    """
    options = options or {}
    given = {"masks": masks, "part_masks": part_masks, "cell_masks": cell_masks}
    given = {needs: {needs: each} for needs, each in given.items()}
    given |= {"model": {"chunk": chunk}, "falls": {"falls": falls, "chunk": chunk}}
    maps = as_maps(maps, images)
    finite = maps.flatten(1).isfinite().all(1)  # (N,)
    raw = torch.where(finite[:, None, None], maps, 0)
    maps = break_zero_ties(raw) if break_ties else raw
    drawn, which = {}, needed_curves(metrics)
    if which:
        protocols = {name: (curves or {}).get(name, {}) for name in which}
        drawn = perturbation_curves(model, images, target, maps, curves=which, chunk=chunk, **protocols)
    scores = {}
    for name in metrics:
        chosen = metric(name)
        if chosen.curve:
            scores[name] = chosen.curve_score(drawn[chosen.curve], **options.get(name, {}))
        else:
            shared = given.get(chosen.needs, {}) | options.get(name, {})
            # a share of mass between cells needs no order, and what breaks ties would spread over all of them
            scores[name] = chosen.function(model, images, target, raw if of_mosaics(name) else maps, **shared)
    for values in (*scores.values(), *drawn.values()):
        values[~finite.cpu()] = torch.nan
    return scores, drawn


def score_methods(model, images, target, maps, *, labels=None, break_ties=True, chunk=64, **settings):
    """The `score_frame` of maps that are at hand, of any library: a dict method -> maps (`images.as_maps`) of `images`.

    `labels` (N,) are the true classes, by default the explained ones; `settings` (metrics, masks, …) and NaN as in
    `score_batch`, `break_ties` as in `DEFAULTS`. `score_table` and `compare_methods` take the frame.
    """
    with torch.inference_mode(), evaluating(model), answering(model):  # one logit's sign decides, whatever the score
        target = explained_classes(model, images, target, chunk)
    maps = {method: as_maps(given, images) for method, given in maps.items()}
    scores = {}
    for method, given in maps.items():
        scores[method], _ = score_batch(model, images, target, given, break_ties=break_ties, chunk=chunk, **settings)
    failed = {method: ~given.flatten(1).isfinite().all(1).cpu().numpy() for method, given in maps.items()}
    labels = target if labels is None else torch.as_tensor(labels)
    about = {"indices": range(len(images)), "targets": target.cpu(), "labels": labels.cpu()}
    return score_frame(about | {"scores": scores, "failed": failed})


def score_maps(settings, *, compute=None, log=None):
    """Score the maps of a folder with the settings of `DEFAULTS` and `REQUIRED` (folders and metric names).

    Returns a dict:
        scores      method -> metric -> (n,)           failed   method -> (n,) bool, its map was not finite
        curves      method -> curve -> (points,)       fractions  curve -> (points,), the x axis; means over the images
        indices, targets, labels (n,)                  protocol   what stands beside the numbers
        engine      what made the passes, in words
        part_area   (n,) share of the image on parts that decide, None where no metric needs them
        run         of which run the scores are (runs.py): ValueError where the maps are of another
    Targets and labels are the target network's class indices, whatever the order of the data's classes; a label that
    nobody told, or of a class that the network does not know, is datasets.UNLABELLED. Metrics that need parts are left
    out for data that cannot be drawn again, those of mosaics where there are none. The score of a mosaic stands at the
    image that it explains, NaN at images that none explains: what is paired by image is paired by mosaic. The folders
    `scores` and `drawn` are replaced as a whole when all methods are done.
    `compute`: a batch of images of one method is a job of `training.workers`; who does it changes no score. `log(text)`
    gets a line per method.
    """
    settings, compute = _complete(settings), (compute or Compute()).resolved()
    run = runs.identity([settings[name] for name in MEASURED], data=settings["data"], target=settings["target"])
    explained, data = maps.load(settings["maps"], run), datasets.load(settings["data"])
    split, shares = getattr(data, explained.split), batches(len(explained.indices), settings["batch"])
    lacking = {"part_masks": data.catalogue is None, "cell_masks": not len(explained.mosaics)}
    scored = [name for name in settings["metrics"] if not lacking.get(METRICS[name].needs)]
    metrics, in_mosaics = [name for name in scored if not of_mosaics(name)], [*filter(of_mosaics, scored)]
    which, asked = needed_curves(metrics), settings["curves"]
    protocols = {name: CURVES[name](split.images.shape[-2:], **asked.get(name, {})) for name in which}
    in_parts = any(METRICS[name].needs == "part_masks" for name in metrics)
    result = {name: dict.fromkeys(explained.arrays) for name in ("scores", "failed", "curves")}
    result["run"] = run | {"maps": explained.run["maps"]}
    result["fractions"] = {name: protocol.fractions for name, protocol in protocols.items()}
    result["protocol"] = {
        "score": _told_score(metrics, settings),
        "break_ties": settings["break_ties"],
        "options": settings["options"],
        "curves": {
            name: {"baseline": protocol.baseline, "points": len(protocol.counts), "pixels_per_step": protocol.counts[1]}
            for name, protocol in protocols.items()
        },
        "part_threshold": settings["part_threshold"] if in_parts else None,
    }
    widths = [len(metrics) + 1, *(len(protocol.counts) for protocol in protocols.values())]
    progress, waiting = Progress(len(explained.arrays)), {}
    with partial_folder(Path(settings["maps"]).with_name("parts")) as parts, workers(compute) as done:
        ask = partial(done, opened=Opened(_Subject, (settings, metrics, parts, compute)))
        [(_, about)] = ask(_described, [()])
        labels = labels_among(split, about["classes"])[explained.indices]
        result |= {"engine": about["engine"], "indices": explained.indices, "targets": explained.targets}
        areas = [area for _, area in sorted(ask(_share, [(rows,) for rows in shares]), key=itemgetter(0))]
        result |= {"labels": labels, "part_area": np.concatenate(areas) if in_parts else None}
        with _written(settings, explained, scored, result) as write:
            jobs = [(method, rows) for method in explained.arrays for rows in shares]
            for place, table in ask(_score, jobs):
                method, number = jobs[place][0], place % len(shares)
                (tables := waiting.setdefault(method, {}))[number] = table
                if len(tables) < len(shares):
                    continue
                table = np.concatenate([tables[number] for number in range(len(shares))])
                del waiting[method]
                scores, *drawn = np.split(table, np.cumsum(widths)[:-1], axis=1)
                drawn = dict(zip(protocols, drawn, strict=True))
                found = dict(zip(metrics, scores[:, :-1].T, strict=True))
                found |= _scores_of_mosaics(explained.mosaics, method, in_mosaics, settings, len(table))
                result["scores"][method] = {name: found[name] for name in scored}
                result["failed"][method] = failed = scores[:, -1] > 0
                result["curves"][method] = {name: _mean(values) for name, values in drawn.items()}
                write(method, drawn)
                if log:
                    several = sum(each is not None for each in result["failed"].values())
                    told = f"{len(table)} images scored, {failed.sum()} without a map"
                    log(f"{method}: {told}; {progress(several)}")
    return result


class _Subject:
    """What a process scores, which it opens once: maps, their images, and the network with what makes its passes."""

    def __init__(self, settings, metrics, parts, compute):
        self.settings, self.metrics, self.parts, self.compute = settings, metrics, parts, compute
        self.explained, self.data = maps.load(settings["maps"]), datasets.load(settings["data"])
        self.split = getattr(self.data, self.explained.split)
        self.needs = {METRICS[name].needs for name in metrics}
        self.target = targets.load(settings["target"], compute.device)
        with compute.casting():
            self.model = engine(self.target, self.images(slice(1)), choice=compute.engine)

    def images(self, rows):
        """Some of the explained images, on the device: float32 (n, 3, S, S) in [0, 1]."""
        return self.split.tensor(self.explained.indices[rows]).to(self.compute.device)

    def classes(self, rows):
        """Those that are explained in them (n,), on the CPU."""
        return torch.as_tensor(self.explained.targets[rows])

    def shared(self, rows):
        """The file of what all methods share of them: `part_masks` and `falls` of `score_batch`, if they are needed."""
        return self.parts / f"{rows.start}.npz"


def _described(subject):
    return {"classes": subject.target.classes, "engine": told(subject.model)}


def _share(subject, rows):
    """Put what all methods share of some images into a file; the share (n,) of each on parts that decide, or None."""
    settings, device, needs = subject.settings, subject.compute.device, subject.needs
    classes, found, area = subject.classes(rows), {}, None
    with subject.compute.casting():
        if "part_masks" in needs:
            options = {"threshold": settings["part_threshold"], "device": device, "chunk": settings["chunk"]}
            about = subject.data, subject.explained.split, subject.explained.indices[rows], classes
            masks = deciding_parts(subject.model, *about, **options).masks
            found["part_masks"], area = masks.numpy(), area_share(masks).numpy()
        if "falls" in needs:  # what infidelity asks of the network
            options = settings["options"].get("infidelity", {}) | {"chunk": settings["chunk"]}
            found["falls"] = removal_falls(subject.model, subject.images(rows), classes.to(device), **options).numpy()
    write_arrays(subject.shared(rows), found)
    return area


def _score(subject, method, rows):
    """Everything about some images of a method as one row each: scores, then failure, then the points of all curves."""
    settings, device = subject.settings, subject.compute.device
    given = torch.tensor(subject.explained.arrays[method][rows]).to(device)
    with np.load(subject.shared(rows)) as file:
        shared = {name: torch.from_numpy(file[name]) for name in file}
    with subject.compute.casting():
        scores, drawn = score_batch(
            subject.model,
            subject.images(rows),
            subject.classes(rows).to(device),
            given,
            metrics=subject.metrics,
            masks=subject.split.box_masks(subject.explained.indices[rows]),
            **shared,
            **{name: settings[name] for name in ("curves", "options", "break_ties", "chunk")},
        )
    failed = ~given.flatten(1).isfinite().all(1).cpu()
    return torch.cat([torch.stack([*scores.values(), failed.float()], 1), *drawn.values()], 1).numpy()


def _scores_of_mosaics(mosaics, method, metrics, settings, count):
    """metric -> scores (count,): those of the mosaics at the images that they explain, NaN at the others."""
    if not metrics:
        return {}

    scores = np.full((len(metrics), count), np.nan, np.float32)
    for rows in batches(len(mosaics), settings["batch"]):
        given = {"cell_masks": mosaics.masks(range(rows.start, rows.stop)), "options": settings["options"]}
        found, _ = score_batch(None, None, None, torch.tensor(mosaics.arrays[method][rows]), metrics=metrics, **given)
        scores[:, mosaics.explained[rows]] = torch.stack([*found.values()]).numpy()
    return dict(zip(metrics, scores, strict=True))


def _mean(curves):
    """The mean curve (points,) of those that are no failures (NaN); NaN where all are."""
    whole = curves[~np.isnan(curves).any(1)]
    return whole.mean(0) if len(whole) else np.full(curves.shape[1], np.nan)


@contextmanager
def _written(settings, explained, metrics, result):
    """A function (method, its curves) that fills the folders; on an error none is replaced."""
    index = {"methods": list(explained.arrays), "metrics": metrics, "protocol": result["protocol"]}
    index["run"] = result["run"]
    about = json.dumps([index, explained.methods, explained.indices.tolist(), explained.targets.tolist()])
    index["digest"] = hashlib.sha256(about.encode()).hexdigest()[:12]
    with ExitStack() as stack:
        wanted = [name for name in ("scores", "drawn") if settings[name]]
        folders = {name: stack.enter_context(new_folder(settings[name])) for name in wanted}

        def add(method, drawn):
            if "scores" in folders:
                options = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}
                frame = _frame(result, method).assign(protocol=index["digest"])
                with writing(path := folders["scores"] / f"{method}.csv"):
                    frame.to_csv(path, **options)
            for name, values in drawn.items() if "drawn" in folders else ():
                with writing(path := folders["drawn"] / f"{method}.{name}.npy"):
                    np.save(path, values)

        yield add
        for folder in folders.values():
            write_json(folder / INDEX, index)


def _frame(result, method):
    about = {"image": result["indices"], "label": result["labels"], "target": result["targets"], "method": method}
    return pandas.DataFrame(about | {"failed": result["failed"][method].astype(int)} | result["scores"][method])


def score_frame(result):
    """One row per image and method of `score_maps`' result: image, label, target, method, failed, then the metrics."""
    return pandas.concat([_frame(result, method) for method in result["scores"]], ignore_index=True)


def _index(folder, run):
    """What stands in the protocol.json of a folder of scores or curves; ValueError where it is of another run."""
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} holds no scores (no {INDEX}); run the stage evaluate")
    return json.loads((folder / INDEX).read_bytes()) if run is None else runs.read(folder / INDEX, run, "evaluate")


def read_scores(folder, run=None):
    """The scores that `score_maps` wrote into `folder`, as a `score_frame`, methods in the order of the tables.

    FileNotFoundError where there are none; ValueError naming the file where one is of another run or protocol: another
    one than the others, or than the `run` that is given.
    """
    folder, frames = Path(folder), []
    index = _index(folder, run)
    strangers = {path.stem for path in folder.glob("*.csv")} - set(index["methods"])
    if strangers:
        raise ValueError(f"{folder} holds scores of another run: {', '.join(sorted(strangers))}; evaluate again")
    for method in map(file_name, index["methods"]):
        frame = pandas.read_csv(folder / f"{method}.csv", dtype={"protocol": str})
        if set(frame["protocol"]) != {index["digest"]}:
            raise ValueError(f"{folder / f'{method}.csv'} was scored by another protocol than {INDEX}; evaluate again")
        frames.append(frame.drop(columns="protocol"))
    return pandas.concat(frames, ignore_index=True)


def read_curves(folder, run=None):
    """The curves that `score_maps` wrote into `folder`: "method.curve" -> (n, points); they stay on disk.

    Errors as those of `read_scores`.
    """
    folder = Path(folder)
    _index(folder, run)
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def same_images(frame, name):
    """One metric as images x methods, only where every method has a map and a score; and the images' labels."""
    methods = frame["method"].unique()  # keeps their order
    values = frame.pivot(index="image", columns="method", values=name)[methods]
    failed = frame.pivot(index="image", columns="method", values="failed")[methods].astype(bool).any(axis=1)
    values = values[~failed].dropna()
    return values, frame.drop_duplicates("image").set_index("image")["label"].reindex(values.index)


def score_table(frame, metrics, *, seed, **intervals):
    """Rows methods; per metric the columns `<metric>`, `<metric>_low`, `<metric>_high`, `<metric>_n`; `failures`.

    All methods stand on the same images: where one method failed or a metric skips the image, all leave it out.
    `failures` counts each method's own. The pointing game has `<metric>_by_category`, `<metric>_by_category_low` and
    `…_high` too: the paper's mean over the classes, of those images whose class is known.

    `intervals`: confidence and resamples of `statistics.bootstrap_interval`.
    """
    table = pandas.DataFrame(index=pandas.Index(frame["method"].unique(), name="method"))
    for name in metrics:
        values, labels = same_images(frame, name)
        for method in table.index:
            scores = values[method].to_numpy()
            about = {name: summary(scores, seed, hit=metric(name).hit, **intervals)}
            if metric(name).by_category:
                known, of = (labels != datasets.UNLABELLED).to_numpy(), labels.to_numpy()
                about[f"{name}_by_category"] = summary(scores[known], seed, categories=of[known], **intervals)
            for head, found in about.items():
                for column, part in {head: "mean", f"{head}_low": "low", f"{head}_high": "high"}.items():
                    table.loc[method, column] = found[part]
            table.loc[method, f"{name}_n"] = about[name]["n"]
        table[f"{name}_n"] = table[f"{name}_n"].astype(int)
    table["failures"] = frame.groupby("method")["failed"].sum().reindex(table.index).astype(int)
    return table


def compare_methods(frame, name, *, reference, seed, **intervals):
    """Each method against `reference` in metric `name`, paired by image: difference, low, high, p, n, p_holm.

    `intervals`: confidence, resamples and permutations of `statistics.paired_tests`.

    A positive difference means a higher score than the reference's; whether that is better stands in `METRICS`.
    """
    values, _ = same_images(frame, name)
    if reference not in values:
        raise ValueError(f"reference {reference!r} was not scored; choose among {', '.join(values.columns)}")
    others = [method for method in values.columns if method != reference]
    tests = paired_tests(values[others].to_numpy().T, values[reference], seed=seed, **intervals)
    rows = dict(zip(others, tests, strict=True))
    table = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    if len(values):
        table["p_holm"] = holm(table["p"])
    return table
