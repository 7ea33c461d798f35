"""DGLE's tables and the numbers behind its figures: this run's beside the printed ones."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas
import torch
from scipy import stats

from xai_utils.explainers.controls import CONTROLS
from xai_utils.explainers.mask_predictor import predicted_maps
from xai_utils.metrics import METRICS
from xai_utils.metrics.localisation import box_average_precision, break_zero_ties
from xai_utils.metrics.statistics import summary
from xai_utils.networks import encoded
from xai_utils.networks.mask_predictor import (
    NORMALISATIONS,
    controller_density,
    controller_moments,
    customized_controller,
    customized_controller_inverse,
)
from xai_utils.papers.dgle_fine_tuning import tuned_scores

METHODS = {  # of Tables 1 to 3: ours -> printed
    "dgle_bf": "Ours(BF)",
    "dgle_cf": "Ours(CF)",
    "mgnet": "MGnet",
    "meaningful_perturbation": "MPert",
    "grad_cam": "Grad CAM",
    "grad_cam_plus_plus": "Grad CAM++",
    "gradient": "V-Grad",
    "smooth_grad": "SM-Grad",
    "integrated_gradients": "IT-Grad",
}
COLUMNS = {"faithfulness": "table1_M_F", "box_average_precision": "table2_M_I", "pointing_game": "table3_M_PG"}
BATCH = 64  # images whose maps are held at once
SCORED = 256  # the same, of the scores that the controller gets, which are small
EXPONENTS = (0.5, 1.0, 1.5, 2.5, 4.0)
PANELS = {  # of Figure 2: title -> {line: (η, h)}; the paper does not give its h
    "(a) h = 1": {f"η = {eta:g}": (eta, 1.0) for eta in (0.5, 1.0, 1.5, 2.0, 2.5)},
    "(b) η = 0.5": {f"h = {exponent:g}": (0.5, exponent) for exponent in EXPONENTS},
    "(c) η = 2.5": {f"h = {exponent:g}": (2.5, exponent) for exponent in EXPONENTS},
    "(d) η = 1.5": {f"h = {exponent:g}": (1.5, exponent) for exponent in EXPONENTS},
}


def beside_print(results: dict, table, published) -> pandas.DataFrame:
    """Tables 1 to 3 in one: M_F, M_I and the pointing game of this run with intervals, beside the printed numbers.

    `results`: the content of metrics.json; `table`: `evaluation.scores.score_table`, which has the pointing game's mean
    over classes, the paper's.
    """
    paper = pandas.read_csv(Path(published) / "dgle_tables_1_2_3.csv").set_index("method")
    rows = {}
    for ours, printed in METHODS.items():
        if ours not in results["methods"]:
            continue
        for metric, column in COLUMNS.items():
            if (about := results["methods"][ours].get(metric)) is None:
                continue
            numbers = [about[part] for part in ("mean", "low", "high")]
            if metric == "pointing_game":
                columns = [f"{metric}_by_category{end}" for end in ("", "_low", "_high")]
                numbers = (100 * table.loc[ours, columns]).tolist()
            if np.isnan(numbers[0]):  # no category is known
                continue
            text = "{:.1f} [{:.1f}, {:.1f}]".format(*numbers)
            rows.setdefault(ours, {})[METRICS[metric].heading(), "this run"] = text
            rows[ours][METRICS[metric].heading(), "paper"] = f"{paper.loc[printed, column]:.2f}"
    return pandas.DataFrame.from_dict(rows, orient="index").fillna("")


def densities(points=400) -> dict:
    """Figure 2: title -> {line: (scores, density)}, computed from eq. 7; NaN above 6, where the ends run away."""
    at = torch.linspace(0, 1, points + 2, dtype=torch.float64)[1:-1]

    def line(eta, exponent):
        density = controller_density(at, eta=eta, exponent=exponent)
        return at.numpy(), density.where(density <= 6, torch.nan).numpy()

    return {title: {name: line(*pair) for name, pair in lines.items()} for title, lines in PANELS.items()}


def skewed(points=400) -> dict:
    """Figure 1(a): line -> (scores, density) of a symmetric and a right-skewed distribution of equal mean and variance.

    In the skewed one few pixels stand out from many unimportant ones.
    """
    at, moments = torch.linspace(0, 1, points + 2, dtype=torch.float64)[1:-1], controller_moments()
    normal = stats.norm.pdf(at.numpy(), moments["mean"], moments["std"])
    return {
        "normal, skewness 0": (at.numpy(), normal),
        f"CF, skewness {moments['skewness']:.2f}": (at.numpy(), controller_density(at).numpy()),
    }


def held_out_scores(target, predictor, split, *, eta, exponent):
    """CF's scores of all images of a `Split` for the class that `target` predicts, SCORED images at a time.

    Each time: name of NORMALISATIONS -> scores (n, h, w), on the CPU. Target and predictor are on one device.
    """
    device = next(target.parameters()).device
    with torch.no_grad():
        for rows in torch.arange(len(split)).split(SCORED):
            features, logits = encoded(target, split.tensor(rows, device), predictor.layers)
            raw = predictor.uncontrolled(features, logits.argmax(1))[:, 0].cpu()
            yield {
                name: customized_controller(raw, eta=eta, exponent=exponent, normalise=normalise)
                for name, normalise in NORMALISATIONS.items()
            }


def distribution(batches, *, eta, exponent, bins=40) -> tuple[pandas.DataFrame, dict]:
    """What CF's scores are like, as means over the images: a column of each name in `batches`, and of eq. 7.

    `batches`: name -> scores (n, h, w) of some images, time after time (`held_out_scores`). skewness, share above 1/2,
    and the Kolmogorov-Smirnov distance between an image's scores and the density. Instance normalisation fixes mean and
    variance of z, not its shape: only a normal z has distance 0. Then a histogram of all scores, name -> (centres of
    the `bins` of [0, 1], density): a line to lay over eq. 7's.
    """

    def row(maps):  # one number for each image
        flat = torch.as_tensor(np.asarray(maps)).double().flatten(1).clamp(1e-12, 1 - 1e-12)
        z = customized_controller_inverse(flat, eta=eta, exponent=exponent).numpy()
        return {
            "mean": flat.mean(1).numpy(),
            "std": flat.std(1).numpy(),
            "skewness": stats.skew(flat.numpy(), axis=1),
            "median": flat.median(1).values.numpy(),
            "above_half": (flat > 0.5).double().mean(1).numpy(),
            "kolmogorov_smirnov": np.array([stats.kstest(values, "norm").statistic for values in z]),
        }

    rows, counts, edges = {}, {}, np.linspace(0, 1, bins + 1)
    for scores in batches:
        for name, maps in scores.items():
            rows.setdefault(name, []).append(pandas.DataFrame(row(maps)))
            counts[name] = counts.get(name, 0) + np.histogram(np.asarray(maps), bins=bins, range=(0, 1))[0]
    promised = controller_moments(eta=eta, exponent=exponent) | {"kolmogorov_smirnov": 0.0}
    columns = {name: pandas.concat(each).mean() for name, each in rows.items()} | {"eq. 7": pandas.Series(promised)}
    centres = (edges[1:] + edges[:-1]) / 2
    lines = {name: (centres, number * bins / number.sum()) for name, number in counts.items()}
    return pandas.DataFrame(columns), lines


def localisation(target, split, indices, predictors, *, seed, **intervals) -> pandas.DataFrame:
    """M_I of the images `indices` of `split` that have a box: predictors and controls -> mean, low, high, n, failures.

    `predictors`: name -> the trained MaskPredictor of `target`, asked for the class that the target predicts. low and
    high: the bootstrap interval over images, by the confidence and resamples of `intervals`. Ties at zero are broken as
    in the stage evaluate. No row without any box.
    """
    boxed = [index for index in indices if len(split.boxes[index])]
    methods = {name: partial(predicted_maps, predictor=predictor) for name, predictor in predictors.items()}
    methods |= CONTROLS | {"random": partial(CONTROLS["random"], generator=torch.Generator().manual_seed(seed))}
    parts = {name: [] for name in methods}
    for start in range(0, len(boxed), BATCH):
        rows = torch.tensor(boxed[start : start + BATCH])
        images, masks = split.tensor(rows).to(next(target.parameters()).device), split.box_masks(rows)
        for name, explain in methods.items():
            maps = explain(target, images, None)
            parts[name].append(box_average_precision(target, images, None, break_zero_ties(maps), masks=masks))
    found = {name: summary(torch.cat(scores), seed, **intervals) for name, scores in parts.items() if scores}
    return pandas.DataFrame.from_dict(found, orient="index")


def tuning_lines(ranked, probabilities) -> dict:
    """Figure 3: name -> (share of pixels, height) of scores before and after fine-tuning, over their largest values.

    `ranked` (n,): scores, falling; `probabilities` (n,): of the class with the first 1 … n pixels shown.
    """
    ranks = np.arange(1, len(ranked) + 1) / len(ranked)
    tuned = tuned_scores(torch.as_tensor(ranked), torch.as_tensor(probabilities))
    lines = {"score": np.asarray(ranked, dtype=float), "fine-tuned score": tuned.numpy()}
    return {name: (ranks, line / max(line.max(), 1e-12)) for name, line in lines.items()} | {
        "probability": (ranks, np.asarray(probabilities, dtype=float))
    }
