"""Which metric can be believed: how far it orders methods, and maps of one image, as what is known of the images does.

Metrics contradict each other, and on images of which nothing is known nobody can tell which is right. Of drawn birds it
is known which parts decide, of mosaics in which cell the class is seen (`TRUTHS`): a metric that orders as they do can
be believed on such images, one that does not cannot. `trust` decides between methods by insertion and deletion; here
stands what that is worth.

Agreement is Spearman's rank correlation over methods, of means or of the scores of one image, of scores turned so that
higher is better: 1 is the same order, 0 none, -1 the reverse. Controls are left out, for whoever tells them apart has
told nothing of methods. Intervals are percentile bootstraps over runs and images, for these methods: others are not in
them. `frames`: a list of `scores.score_frame`, one for each run on the same images; methods and metrics that not all
have are left out. A score here is a dict mean, low, high.
"""

import numpy as np
import pandas
import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from xai_utils.evaluation.scores import same_images
from xai_utils.evaluation.tables import TRUTHS
from xai_utils.images import rank_correlation
from xai_utils.metrics import METRICS

LEAST = 4  # methods: the order of fewer tells nothing
OVER, WITHIN = "methods", "maps of an image"


def agreement(frames, metrics, *, controls, seed, confidence=0.95, resamples=2000) -> dict:
    """Metric -> truth -> OVER (of the methods' means) and WITHIN (the mean over images of each one's) -> score.

    Only metrics with a better direction; truths that all runs have scores of; empty with less than LEAST methods.
    """
    values = _values(frames, metrics, controls)
    truths, found = [name for name in TRUTHS if name in values], {}
    if not truths:
        return {}
    draws = _draws(next(iter(values.values())).shape[:2], resamples, seed)
    means = {name: _means(each, *draws) for name, each in values.items()}
    for name in values:
        for truth in (truth for truth in truths if truth != name):
            alike = np.stack([_alike(*pair) for pair in zip(values[name], values[truth], strict=True)])  # (R, N)
            over, within = _alike(means[name], means[truth]), _means(alike[..., None], *draws)[:, 0]
            parts = {OVER: over, WITHIN: within}
            found.setdefault(name, {})[truth] = {part: _score(each, confidence) for part, each in parts.items()}
    return found


def across(frames, others, metrics, *, controls, seed, confidence=0.95, resamples=2000) -> dict:
    """Metric -> score: how far the methods' order is that of `others`, frames of another network on the same images."""
    ours, theirs = _values(frames, metrics, controls, others), _values(others, metrics, controls, frames)
    found = {}
    for name in ours.keys() & theirs.keys():
        pair = [each[name] for each in (ours, theirs)]
        means = [_means(each, *_draws(each.shape[:2], resamples, seed)) for each in pair]  # the same images in both
        found[name] = _score(_alike(*means), confidence)
    return {name: found[name] for name in ours if name in found}


def between(frames, metrics, *, controls) -> pandas.DataFrame:
    """How far metrics agree with each other over methods: a matrix, those that agree side by side; empty where few."""
    values = _values(frames, metrics, controls)
    means = {name: np.nanmean(each, axis=1).mean(0)[None] for name, each in values.items()}
    table = [[float(_alike(one, other)[0]) for other in means.values()] for one in means.values()]
    matrix = pandas.DataFrame(table, index=list(means), columns=list(means))
    if len(matrix) < 3:
        return matrix
    apart = squareform(np.clip(1 - matrix.to_numpy(), 0, 2), checks=False)
    order = hierarchy.leaves_list(hierarchy.linkage(apart, "average", optimal_ordering=True))
    return matrix.iloc[order, order]


def table(found: dict) -> pandas.DataFrame:
    """`agreement` as text, rows metrics: those that agree with the first truth over methods come first."""
    truths, rows = [name for name in TRUTHS if any(name in each for each in found.values())], found.items()
    columns = {
        (METRICS[truth].heading(), f"{part} ↑"): {name: text(each.get(truth, {}).get(part)) for name, each in rows}
        for truth in truths
        for part in (OVER, WITHIN)
    }
    known = sorted(found, key=lambda name: [-each[OVER]["mean"] for each in found[name].values()][:1])
    return pandas.DataFrame(columns, index=known).rename(index=lambda name: METRICS[name].heading())


def text(score) -> str:
    """A score in words, "–" for none."""
    return "–" if not score else "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**score)


def sentences(found: dict) -> list[str]:
    """Of each truth the metric that orders methods most like it, and those that do not; names in backquotes."""
    said = []
    for truth in TRUTHS:
        scores = {name: each[truth][OVER] for name, each in found.items() if truth in each and name not in TRUTHS}
        scores = {name: score for name, score in scores.items() if METRICS[name].group != "truth"}
        if scores:
            best = max(scores, key=lambda name: scores[name]["mean"])
            like = [name for name, score in scores.items() if score["low"] > 0]
            against = [f"`{name}`" for name, score in scores.items() if score["high"] < 0]
            said.append(
                f"Of {len(scores)} metrics {len(like)} order the methods like {METRICS[truth].label.lower()} does, "
                f"most of all `{best}`: rank correlation {text(scores[best])}"
                + (f"; against it: {', '.join(against)}." if against else ".")
            )
    return said


def _values(frames, metrics, controls, others=()):
    """Metric -> (R, N, M): scores turned so that higher is better, of the methods of all frames but the controls.

    NaN where an image has no score of some method. {} with less than LEAST methods.
    """
    shared = set.intersection(*(set(frame["method"]) for frame in (*frames, *others))) - set(controls)
    methods = [method for method in frames[0]["method"].unique() if method in shared]
    images = sorted({image for frame in frames for image in frame["image"]})
    found = {}
    for name in metrics if len(methods) >= LEAST else ():
        better = METRICS[name].higher_is_better
        if better is not None and all(name in frame and frame[name].notna().any() for frame in frames):
            tables = [same_images(frame, name)[0].reindex(index=images, columns=methods) for frame in frames]
            values = (1 if better else -1) * np.stack([each.to_numpy(float) for each in tables])
            if not np.isnan(values).all((1, 2)).any():
                found[name] = values
    return found


def _draws(shape, resamples, seed):
    """How often each run (B, R) and each image (B, N) is drawn; the first of all once."""
    generator = np.random.default_rng(seed)
    return [
        np.concatenate([np.ones((1, n)), generator.multinomial(n, np.full(n, 1 / n), size=resamples)]) for n in shape
    ]


def _means(values, runs, images):
    """The mean over runs of the means over images (B, M) of values (R, N, M), with these `_draws`."""
    there = ~np.isnan(values).any(2)  # (R, N)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold no image that has a score
        means = np.einsum("bn,rnm->brm", images, np.where(there[..., None], values, 0)) / (images @ there.T)[..., None]
        return np.einsum("br,brm->bm", runs, means) / runs.sum(1, keepdims=True)


def _alike(first, second):
    """Spearman's correlation of the rows of two tables (B, M): (B,)."""
    return rank_correlation(*(torch.from_numpy(each)[:, None] for each in (first, second))).double().numpy()


def _score(resampled, confidence):
    """The first, which is of all runs and images, and the interval of the rest."""
    if np.isnan(resampled[1:]).all():
        return {"mean": float(resampled[0]), "low": float("nan"), "high": float("nan")}
    low, high = np.nanquantile(resampled[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"mean": float(resampled[0]), "low": float(low), "high": float(high)}
