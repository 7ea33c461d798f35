"""Scores of saved maps: every method on the same images, every metric on the same ranking, shared among processes."""

from pathlib import Path

import numpy as np
import pandas
import torch

from xai_utils import datasets, distributed, maps
from xai_utils.checkpoints import write_atomically
from xai_utils.metrics import METRICS, metric
from xai_utils.metrics.localisation import break_zero_ties, mean_over_categories
from xai_utils.metrics.perturbation import CURVES, perturbation_curves
from xai_utils.metrics.statistics import holm, paired_test, summary
from xai_utils.networks import targets

REQUIRED = ("target", "data", "maps", "metrics")
DEFAULTS = {
    "curves": {},  # curve -> options of its protocol, e.g. {"deletion": {"pixels_per_step": 1792}}
    "options": {},  # metric -> options of its score, e.g. {"pointing_game": {"tolerance": 15}}
    "break_ties": True,  # order zero pixels by their nearness to evidence, for all methods
    "chunk": 64,  # perturbed images per forward pass
    "batch": 32,  # images in memory at once
    "device": "cpu",
}


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


def needed_curves(metrics):
    """The curves that `metrics` are numbers of, each once."""
    return list(dict.fromkeys(METRICS[name].curve for name in metrics if METRICS[name].curve))


def score_batch(
    model, images, target, maps, *, metrics, masks=None, part_masks=None, curves=None, options=None, chunk=64
):
    """Scores and curves of one method: (dict metric -> (N,), dict curve -> (N, points)), float on the CPU.

    Maps that are not finite score NaN in every metric. `masks` (N, H, W) is needed by the localisation metrics,
    `part_masks` (N, H, W) by part truth (`deciding_parts`); `curves` and `options` as in `DEFAULTS`.
    """
    options = options or {}
    given = {"masks": {"masks": masks}, "part_masks": {"part_masks": part_masks}, "model": {"chunk": chunk}}
    finite = maps.flatten(1).isfinite().all(1)  # (N,)
    maps = torch.where(finite[:, None, None], maps, 0)
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
            shared = given.get(chosen.needs, {})
            scores[name] = chosen.function(model, images, target, maps, **shared, **options.get(name, {}))
    for values in (*scores.values(), *drawn.values()):
        values[~finite.cpu()] = torch.nan
    return scores, drawn


def score_maps(settings, log=None):
    """Score the maps of a folder with the settings of `DEFAULTS` and `REQUIRED` (folders and metric names).

    Returns a dict, equal up to rounding whatever the number of processes:
        scores      method -> metric -> (n,)           failed   method -> (n,) bool, its map was not finite
        curves      method -> curve -> (n, points)     fractions  curve -> (points,), the x axis
        indices, targets, labels (n,)                  protocol   what stands beside the numbers
    Targets and labels are the target network's class indices, whatever the order of the data's classes.
    `log(text)` gets a line per method on the main process.
    """
    settings = _complete(settings)
    explained = maps.load(settings["maps"])
    split = getattr(datasets.load(settings["data"]), explained.split)
    indices, classes = explained.indices, torch.as_tensor(explained.targets)
    target = targets.load(settings["target"], settings["device"])
    model = targets.inference_copy(target, split.tensor(indices[:1]).to(settings["device"]))
    size = split.images.shape[-2:]
    which, asked = needed_curves(settings["metrics"]), settings["curves"]
    protocols = {name: CURVES[name](size, **asked.get(name, {})) for name in which}
    result = {"scores": {}, "failed": {}, "curves": {}}
    for method, array in explained.arrays.items():

        def rows(items, array=array):
            """Everything about some images as one row each: scores, then the points of all curves, then failure."""
            batch = torch.from_numpy(array[items]).to(settings["device"])
            scores, drawn = score_batch(
                model,
                split.tensor(indices[items]).to(settings["device"]),
                classes[items].to(settings["device"]),
                break_zero_ties(batch) if settings["break_ties"] else batch,
                metrics=settings["metrics"],
                masks=split.box_masks(indices[items]),
                **{name: settings[name] for name in ("curves", "options", "chunk")},
            )
            failed = ~batch.flatten(1).isfinite().all(1).cpu()
            return torch.cat([torch.stack([*scores.values(), failed.float()], 1), *drawn.values()], 1)

        table = distributed.map_in_order(rows, len(indices), batch_size=settings["batch"]).numpy()
        widths = [len(settings["metrics"]) + 1, *(len(protocol.counts) for protocol in protocols.values())]
        scores, *drawn = np.split(table, np.cumsum(widths)[:-1], axis=1)
        result["scores"][method] = dict(zip(settings["metrics"], scores.T, strict=False))
        result["failed"][method] = scores[:, -1] > 0
        result["curves"][method] = dict(zip(protocols, drawn, strict=True))
        if log and distributed.is_main():
            log(f"{method}: {len(indices)} images scored, {int(result['failed'][method].sum())} without a map")
    result["fractions"] = {name: protocol.fractions for name, protocol in protocols.items()}
    result["protocol"] = {
        "score": "softmax probability of the explained class",
        "break_ties": settings["break_ties"],
        "options": settings["options"],
        "curves": {
            name: {"baseline": protocol.baseline, "points": len(protocol.counts), "pixels_per_step": protocol.counts[1]}
            for name, protocol in protocols.items()
        },
    }
    place = {name: index for index, name in enumerate(target.classes)}  # the data may know fewer classes
    labels = np.array([place[split.classes[label]] for label in split.labels[indices]])
    return result | {"indices": indices, "targets": classes.numpy(), "labels": labels}


def evaluate(settings, *, compute=None, log=None):
    """`score_maps` on the device and in the processes of `compute`; for several, `log` must be importable."""
    compute = (compute or distributed.Compute()).resolved()
    work = (settings | {"device": compute.device}, log)
    _complete(work[0])
    return distributed.run(
        score_maps, *work, processes=compute.processes, threads=compute.threads, device=compute.device
    )


def score_frame(result):
    """One row per image and method of `score_maps`' result: image, label, target, method, failed, then the metrics."""
    about = {"image": result["indices"], "label": result["labels"], "target": result["targets"]}
    frames = [
        pandas.DataFrame(about | {"method": method, "failed": result["failed"][method].astype(int)} | scores)
        for method, scores in result["scores"].items()
    ]
    return pandas.concat(frames, ignore_index=True)


def write_scores(frame, path):
    """Write a `score_frame` as CSV with six significant digits, whole or not at all; `pandas.read_csv` reads it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}
    write_atomically(path, lambda partial: frame.to_csv(partial, **options))


def write_curves(result, path):
    """Write the curves of every image as NPZ: "<method>.<curve>" -> (n, points)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {f"{method}.{name}": values for method, of in result["curves"].items() for name, values in of.items()}

    def write(partial):
        with partial.open("wb") as file:  # given a name, numpy would append .npz
            np.savez(file, **named)

    write_atomically(path, write)


def _same_images(frame, name):
    """One metric as images x methods, only where every method has a map and a score; and the images' labels."""
    methods = frame["method"].unique()  # keeps their order
    values = frame.pivot(index="image", columns="method", values=name)[methods]
    failed = frame.pivot(index="image", columns="method", values="failed")[methods].astype(bool).any(axis=1)
    values = values[~failed].dropna()
    return values, frame.drop_duplicates("image").set_index("image")["label"].reindex(values.index)


def score_table(frame, metrics, *, seed, confidence=0.95, resamples=2000):
    """Rows methods; per metric the columns `<metric>`, `<metric>_low`, `<metric>_high`, `<metric>_n`; `failures`.

    All methods stand on the same images: where one method failed or a metric skips the image, all leave it out.
    `failures` counts each method's own. The pointing game has `<metric>_by_category` too, the paper's mean.
    """
    table = pandas.DataFrame(index=pandas.Index(frame["method"].unique(), name="method"))
    for name in metrics:
        values, labels = _same_images(frame, name)
        for method in table.index:
            scores = values[method].to_numpy()
            about = summary(scores, seed, confidence=confidence, resamples=resamples)
            for column, part in {name: "mean", f"{name}_low": "low", f"{name}_high": "high", f"{name}_n": "n"}.items():
                table.loc[method, column] = about[part]
            if metric(name).by_category:
                table.loc[method, f"{name}_by_category"] = mean_over_categories(scores, labels.to_numpy())
        table[f"{name}_n"] = table[f"{name}_n"].astype(int)
    table["failures"] = frame.groupby("method")["failed"].sum().reindex(table.index).astype(int)
    return table


def compare_methods(frame, name, *, reference, seed, resamples=9999):
    """Each method against `reference` in metric `name`, paired by image: difference, low, high, p, n, p_holm.

    A positive difference means a higher score than the reference's; whether that is better stands in `METRICS`.
    """
    values, _ = _same_images(frame, name)
    if reference not in values:
        raise ValueError(f"reference {reference!r} was not scored; choose among {', '.join(values.columns)}")
    rows = {
        method: paired_test(values[method], values[reference], resamples=resamples, seed=seed)
        for method in values.columns
        if method != reference
    }
    table = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    if len(values):
        table["p_holm"] = holm(table["p"])
    return table
