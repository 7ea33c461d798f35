"""The sanity checks of every row of a run, as one table."""

from html import escape

import pandas
import torch

from xai_utils.evaluation import sanity
from xai_utils.evaluation.explanation import with_baselines
from xai_utils.explainers import method_of, named_layers
from xai_utils.metrics.statistics import summary
from xai_utils.networks import engine, targets
from xai_utils.progress import Progress

CASCADE, HEAVY = 20, 100  # passes: above the first all layers forget at once, above the second on HEAVY_IMAGES images
HEAVY_IMAGES = 2
FLAGS = {"depends on the model": "", "depends on its own network alone": " (✓)", "does not depend on the model": " ✗"}


def of_rows(
    target, made, data, *, images, compute, noise=sanity.NOISE, samples=sanity.SAMPLES, seed=0, log=None
) -> dict[str, sanity.Sanity]:
    """The checks of each row of the maps `made`, on the first `images` of those that were explained: row -> Sanity.

    `target`: the folder of the network; `data`: what was explained, prepared. Rows that cost more than CASCADE passes
    forget all at once; those above HEAVY are checked on HEAVY_IMAGES images.
    """
    found = {}
    if not images:
        return found
    torch.set_num_threads(compute.threads)
    indices, split = made.indices[:images], getattr(data, made.split)
    pixels, classes = (
        split.tensor(indices).to(compute.device),
        torch.as_tensor(made.targets[:images]).to(compute.device),
    )
    with compute.casting():
        keep = named_layers(made.methods)
        model = engine(targets.load(target, compute.device), pixels[:1], choice=compute.engine, keep=keep)
        progress = Progress(len(made.methods))
        for number, (row, given) in enumerate(with_baselines(made.methods, data, seed).items(), 1):
            method, options = method_of(row, given)
            few = slice(0, HEAVY_IMAGES if made.passes[row] > HEAVY else None)
            asked = {"options": options, "cascade": made.passes[row] <= CASCADE, "noise": noise, "samples": samples}
            found[row] = sanity.sanity(method, model, pixels[few], classes[few], seed=seed, **asked)
            if log:
                log(f"{row}: {found[row].verdict}; {progress(number)}")
    return found


def table(found: dict[str, sanity.Sanity], *, seed=0, **intervals) -> pandas.DataFrame:
    """Rows: methods; mean rank correlations of the maps with the trained network's, as text, and the verdict.

    Columns: the verdict; all layers untrained, the target's and the method's own; a column per stage of the target,
    named after the lowest layer that has forgotten; the method's own network alone; another seed; noise;
    max-sensitivity, which is no correlation; the number of images. Costly rows have the last stage alone.
    """
    stages = max((list(each.cascade) for each in found.values()), key=len, default=[])
    rows = {}
    for row, each in found.items():
        about = summary(each.everything.numpy(), seed, **intervals)
        interval = f"{about['mean']:.2f} [{about['low']:.2f}, {about['high']:.2f}]"
        cells = {"verdict": each.verdict + FLAGS[each.verdict], "all untrained": interval}
        cells |= {f"to {name}": _mean(each.cascade.get(name)) for name in stages[:-1]}
        if stages:
            cells[f"to {stages[-1]}"] = _mean(each.target)
        cells["own network"] = _mean(list(each.own.values())[-1] if each.own else None)
        cells |= {"seeds": _mean(each.seeds), "noise": _mean(each.noise)}
        rows[row] = cells | {"max-sensitivity": _mean(each.sensitivity), "n": str(len(each.noise))}
    return pandas.DataFrame.from_dict(rows, orient="index")


def html(found: dict[str, sanity.Sanity], *, seed=0, **intervals) -> str:
    """The table as HTML; row names appear as text."""
    return table(found, seed=seed, **intervals).rename(index=escape, columns=escape).to_html(escape=False, border=0)


def _mean(values):
    return "" if values is None else f"{values.nanmean():.2f}"
