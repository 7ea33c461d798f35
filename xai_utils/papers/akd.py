"""AKD's tables: this run's numbers with intervals beside the printed ones, and what does not fit together in print."""

from pathlib import Path

import numpy as np
import pandas
import torch

from xai_utils.metrics.statistics import summary

METHODS = {  # of Tables 3 and 4: ours -> printed
    "akd": "Ours",
    "akd_unoptimised": "Ours_unopt",
    "rise": "RISE",
    "lime": "LIME",
    "grad_cam": "Grad-CAM",
}
BATCH = 32  # images in memory at once
NOTES = (
    "Both λ have the same printed deletion on ImageNet, 0.1211 (AKD, Table 4).",
    "LIME's printed numbers for ImageNet are those of the RISE paper: probably copied, not measured.",
    "The tuned λ is said to gain up to 7.5 % and 12.3 %; from Table 4 its insertion gains are 8.2, 3.5, 1.5, 0.2, 1.1 "
    "and 1.2 %, and its deletion is worse on CUB, Aircraft-V and Aircraft-F.",
    "AKD is said to be 814 times as fast as RISE; from its own frames per second, 24.4 (24.3 in the abstract) and "
    "0.03, it is 813 (810). RISE's 0.03 is 0.125 in the text, Grad-CAM's 34.8 is about 39.",
)


def printed_table(published, name):
    """A table of the paper from the folder `published`."""
    return pandas.read_csv(Path(published) / f"akd_{name}.csv")


def _text(values, seed, intervals, digits=3):
    about = summary(np.asarray(values, dtype=float), seed, hit=1, **intervals)
    return f"{about['mean']:.{digits}f} [{about['low']:.{digits}f}, {about['high']:.{digits}f}]"


def data_sets(data, published) -> pandas.DataFrame:
    """Table 1: classes and numbers of images of the prepared `data`, above those that the paper names."""
    own = {"classes": len(data.classes), "train": len(data.train), "validation": len(data.validation)}
    paper = printed_table(published, "table1_datasets").set_index("dataset")
    frame = pandas.concat([pandas.DataFrame([own], index=[f"this run: {data.description['name']}"]), paper])
    return frame.astype("Int64").astype(object).where(frame.notna(), "")


def accuracies(hits: dict, agreed, published, *, seed, **intervals) -> pandas.DataFrame:
    """Table 2: top-1 of target and student with intervals, and how often the student answers as the target does.

    `hits`: {"target": (n,), "student": (n,)}, 0 or 1 per held-out image; `agreed` (n,). Beside them the printed top-1.
    `intervals`: confidence and resamples of `summary`.
    """
    paper = printed_table(published, "table2_accuracy").set_index("model")
    rows = {
        name: {"this run": _text(values, seed, intervals)} | paper.loc[printed].round(4).to_dict()
        for (name, values), printed in zip(hits.items(), paper.index, strict=True)
    }
    frame = pandas.DataFrame(rows).T
    frame.loc["agreement", "this run"] = _text(agreed, seed, intervals)
    return frame.fillna("")


def speeds(measured: dict, results: dict, published) -> pandas.DataFrame:
    """Table 3: frames per second and mean intensity of this run's maps beside the printed ones.

    `measured`: the content of measure_speed.json, `results` that of metrics.json. The image itself has intensity 1.
    """
    paper, rows = printed_table(published, "table3_speed").set_index("method"), {}
    names = {"plain pass": "Normal inference"} | {ours: METHODS[ours] for ours in ("akd", "rise", "grad_cam")}
    for ours, printed in names.items():
        if ours not in measured["methods"]:
            continue
        intensity = (
            results["methods"].get(ours, {}).get("mean_intensity", {"mean": 1.0 if ours == "plain pass" else None})
        )
        rows[ours] = {
            ("frames per second", "this run"): measured["methods"][ours]["frames per second"],
            ("frames per second", "paper"): paper.loc[printed, "fps"],
            ("mean intensity", "this run"): intensity["mean"],
            ("mean intensity", "paper"): paper.loc[printed, "mean_pixel_intensity"],
        }
    frame = pandas.DataFrame(rows).T
    if {"akd", "rise"} <= set(rows):
        column = ("frames per second", "this run")
        frame.loc["akd / rise", column] = rows["akd"][column] / rows["rise"][column]
        frame.loc["akd / rise", ("frames per second", "paper")] = 814  # as printed; see NOTES
    return frame.astype(float)


def perturbation(results: dict, published) -> pandas.DataFrame:
    """Table 4: insertion and deletion of this run with intervals, beside the printed ones per data set."""
    paper, rows = printed_table(published, "table4_insertion_deletion"), {}
    short = {"insertion": "ins", "deletion": "del"}
    for ours, printed in METHODS.items():
        for metric in short:
            if (about := results["methods"].get(ours, {}).get(metric)) is None:
                continue
            text = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**about)
            row = paper[(paper["method"] == printed) & (paper["metric"] == short[metric])].iloc[0]
            rows[metric, ours] = {"this run": text} | row.drop(["method", "metric"]).to_dict()
    return (
        pandas.DataFrame(rows).T.sort_index(level=0, ascending=False, sort_remaining=False)
        if rows
        else pandas.DataFrame()
    )


def box_areas(split, indices):
    """How large a share of the images `indices` (N,) of a `Split` their boxes cover, (N,)."""
    parts = [split.box_masks(indices[start : start + BATCH]) for start in range(0, len(indices), BATCH)]
    return torch.cat([masks.float().mean((1, 2)) for masks in parts])


def failure_cases(insertion, areas, classes, explained) -> dict[str, np.ndarray]:
    """Which images Figure 10 shows, worst first, by two rules: (n,) arrays in, positions out.

    "low insertion": of the images whose object is large (its area in the upper half), by rising insertion score.
    "another class": the target's class of the image times its map (`explained`) is not that of the image (`classes`).
    """
    insertion, areas = np.asarray(insertion, dtype=float), np.asarray(areas, dtype=float)
    order = np.argsort(insertion, kind="stable")
    changed = np.asarray(classes) != np.asarray(explained)
    return {
        "low insertion": order[areas[order] >= np.median(areas)],
        "another class": order[changed[order]],
    }
