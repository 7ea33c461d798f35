"""Kept runs on one page: the papers' tables with a column per data set, scores, claims, and what parts two runs.

python -m xai_utils.pipeline.compare [NAME ...]
python -m xai_utils.pipeline.compare --list     runs/README.md: the runs and their verdicts

Runs that differ in nothing but the seed are one group (pooling.py).
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy import stats

from xai_utils.evaluation.scores import same_images
from xai_utils.evaluation.tables import digits
from xai_utils.files import write_text
from xai_utils.metrics.statistics import SIGNIFICANT, holm
from xai_utils.papers import akd, fastcam
from xai_utils.pipeline import kept, pooling, recorded, site
from xai_utils.pipeline.project import begin_in_utf_8, enter_project

PUBLISHED = Path("data/published")
SHARED = 0.5  # runs are paired where they explain so large a share of each other's images, for the same class


def paper_tables(groups: dict[str, dict], summaries: dict[str, dict], published: Path):
    """The papers' tables over several data sets, one after the other: title, and what the macro `scores` shows."""
    printed = akd.printed_table(published, "table2_accuracy").set_index("model").set_axis(["target", "student"])
    printed = printed.reindex([*printed.index, "agreement"])  # which the paper does not print
    ours = {name: pooling.accuracies(group) for name, group in groups.items()}
    yield _table(
        "AKD, Table 2: top-1, and how often the student answers as the target does", "network", printed, ours, (3, 4)
    )
    table = akd.printed_table(published, "table4_insertion_deletion").set_index("method")
    for metric, short in {"insertion": "ins", "deletion": "del"}.items():
        printed = table[table["metric"] == short].drop(columns="metric").loc[list(akd.METHODS.values())]
        ours = {
            name: {row: each["methods"][row][metric] for row in akd.METHODS if metric in each["methods"].get(row, {})}
            for name, each in summaries.items()
        }
        yield _table(f"AKD, Table 4: {metric}", "method", printed.set_axis(list(akd.METHODS)), ours, (3, 4))
    values = {name: pooling.layer_values(group) for name, group in groups.items()}

    def cells(frame, column, name):
        resampled = max(map(len, values[name].values())) > 1
        several = len(groups[name]) > 1 and resampled  # of one training there is no interval
        parts = frame[column][["value", "low", "high"] if several else ["value"]]
        return parts.rename(columns={"value": "mean"}).to_dict("index")

    for score in fastcam.SCORES:
        printed = fastcam.printed(published, "table1_scores_published").filter(like=score[:4])
        ours = {
            name: cells(fastcam.layer_scores(each, published, score), "ours", name) if each else {}
            for name, each in values.items()
        }
        named = printed.set_axis([*fastcam.DATASETS, "mean"], axis=1)
        yield _table(f"FastCAM, Table 1: {score} score", "statistic", named, ours, (2, 2))
    layers = {name: len(fastcam.places_of(each, "layer")) for name, each in values.items()}
    for score in fastcam.SCORES:
        table = fastcam.printed(published, "table7_quartiles_published").filter(like=score[:4])
        printed = table.set_axis(fastcam.QUARTILES, axis=1).stack().to_frame("15 conditions")
        ours = {}
        for name, each in values.items():  # of one statistic alone, nothing can be said
            frame = fastcam.quartiles(each, published, score) if len(fastcam.rows_of(each, "layer")) > 1 else None
            found = {} if frame is None else {top: cells(frame, top, name) for top in fastcam.QUARTILES}
            ours[name] = {(row, top): cell for top, rows in found.items() for row, cell in rows.items()}
        title = f"FastCAM, Table 7: percent of conditions in which a statistic is among the best, {score}"
        yield _table(title, "statistic", printed, ours, (1, 2), layers)


def _table(title, head, printed, ours, decimals, weights=None):
    """A column per group, the mean of those that have the row, and the `printed` columns with theirs."""
    rows = list(dict.fromkeys([*printed.index, *(row for each in ours.values() for row in each)]))
    columns = {name: [site.cell(each.get(row), decimals[0]) for row in rows] for name, each in ours.items()}
    columns["mean here"] = []
    for row in rows:
        found = [name for name, each in ours.items() if row in each]
        shares = [weights[name] if weights else 1 for name in found]
        mean = {"mean": np.average([ours[name][row]["mean"] for name in found], weights=shares)} if found else None
        told = f"{len(found)} of {len(ours)}" if 0 < len(found) < len(ours) else ""
        columns["mean here"].append(site.cell(mean, decimals[0]) | {"interval": told})
    if len(printed.columns) > 1 and "mean" not in printed:
        printed = printed.assign(mean=printed.mean(axis=1))
    for name, values in printed.reindex(rows).items():
        columns[f"paper: {name}"] = [site.cell({"mean": value}, decimals[1]) for value in values]
    names = [", ".join(row) if isinstance(row, tuple) else row for row in rows]
    lines = [{"method": name, "cells": cells} for name, *cells in zip(names, *columns.values(), strict=True)]
    heads = [{"label": name, "unit": "", "first": "descending"} for name in columns]
    return {"title": title, "head": head, "columns": heads, "rows": lines}


def all_scores(summaries: dict[str, dict]) -> dict:
    """Metric x group for the methods of all groups, as the macro `scores` shows it; "others": those of some."""
    methods = list(dict.fromkeys(method for each in summaries.values() for method in each["methods"]))
    shared = [method for method in methods if all(method in each["methods"] for each in summaries.values())]
    known = dict(pair for each in reversed(summaries.values()) for pair in each["metrics"].items())
    metrics, rows = {}, {method: {} for method in shared}
    for metric, about in known.items():
        for name, each in summaries.items():
            column = f"{metric}, {name}"
            metrics[column] = about | {"label": f"{about['label']}, {name}"}
            for method, row in rows.items():
                row[column] = each["methods"][method].get(metric)
    shown = site.shown({"metrics": metrics, "methods": rows, "protocol": ""})
    return shown | {"others": [method for method in methods if method not in shared]}


def differences(one: dict, other: dict) -> dict[str, dict[str, tuple]]:
    """What of the two runs' descriptions differs: kind -> dotted name -> both values, "–" where a run lacks it."""

    def told(about):
        names = ("parameters", "versions", "revision")
        parts = {name: about[name] for name in names} | {"run": about["summary"]["run"]}
        return parts | {kind: about["hashes"].get(kind, {}) for kind in ("data", "code")}

    result, both = {}, [{kind: recorded.lines(part) for kind, part in told(each).items()} for each in (one, other)]
    for kind in both[0]:
        first, second = (each[kind] for each in both)
        lines = {name: (first.get(name, "–"), second.get(name, "–")) for name in dict.fromkeys([*first, *second])}
        if first and second:
            result[kind] = {name: pair for name, pair in lines.items() if pair[0] != pair[1]}
        elif lines:  # what was made without a dvc.lock or outside of git
            result[kind] = {"all": tuple("known" if each else "–" for each in (first, second))}
    return result


def moved(one: dict, other: dict) -> dict:
    """Which scores of `other` are not those of `one`, after Holm's correction for all that both have.

    Where most images are the same and explained for the same class, those are paired; else the means of two samples
    are compared. p is that of Student's or Welch's t test, for so many tests a permutation test is too coarse; the
    interval of the difference is a percentile bootstrap.
    """
    frames = [kept.scores(about["folder"]) for about in (one, other)]
    classes = [frame.drop_duplicates("image").set_index("image")["target"] for frame in frames]
    same = classes[0].index[classes[0].eq(classes[1].reindex(classes[0].index))]
    on_same_data = one["summary"]["run"]["data"] == other["summary"]["run"]["data"]
    paired = on_same_data and len(same) >= SHARED * max(map(len, classes))
    metrics, tests = [name for name in one["summary"]["metrics"] if name in other["summary"]["metrics"]], []
    for metric in metrics:
        first, second = (same_images(frame, metric)[0] for frame in frames)
        if paired:
            images = first.index.intersection(second.index).intersection(same)
            first, second = first.loc[images], second.loc[images]
        methods = [method for method in first if method in second]
        if min(len(first), len(second)) < 2:
            continue
        pair = first[methods].to_numpy(), second[methods].to_numpy()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # of scores that are the same on all images: no test
            test = stats.ttest_rel(*pair) if paired else stats.ttest_ind(*pair, equal_var=False)
        p = np.where(np.isclose(*(each.mean(0) for each in pair), rtol=1e-9, atol=1e-12), 1, test.pvalue)
        tests += [(method, metric, *each) for method, *each in zip(methods, pair[0].T, pair[1].T, p, strict=True)]
    corrected, rows, options = holm([test[-1] for test in tests]) if tests else [], [], pooling.options_of({"": one})
    for (method, metric, *pair, _), p in zip(tests, corrected, strict=True):
        if p < SIGNIFICANT:
            interval = stats.bootstrap(
                pair,
                lambda before, after, axis: after.mean(axis) - before.mean(axis),
                paired=paired,
                method="percentile",
                n_resamples=options["resamples"],
                confidence_level=options["confidence"],
                random_state=np.random.default_rng(options["seed"]),
            ).confidence_interval
            before, after = (each.mean() for each in pair)
            numbers = zip((before, after, after - before, *interval), ("", "", *"+++"), strict=True)
            texts = [f"{number:{sign}.{digits(metric)}f}" for number, sign in numbers]
            rows.append(
                {"method": method, "metric": metric, "texts": texts, "p": f"{p:.4f}" if p >= 1e-4 else "< 0.0001"}
            )
    return {"rows": rows, "tested": len(tests), "images": len(same) if paired else 0}


def build(root: Path, names=()) -> Path:
    """Write the page of the kept runs called `names`, or of all."""
    runs = pooling.chosen(root, names)
    if not (root / PUBLISHED).is_dir():
        raise pooling.CompareError(f"{PUBLISHED}, the printed numbers, is missing; fetch it with: make data")
    groups = pooling.grouped(runs)
    summaries = {name: pooling.scored(group) for name, group in groups.items()}
    verdicts = {name: pooling.claimed(group) for name, group in groups.items()}
    first, *others = runs
    pairs = [
        {"names": (first, name), "parts": differences(runs[first], runs[name]), "moved": moved(runs[first], runs[name])}
        for name in others
    ]
    page = site.renderer({site.COMPARED.name: site.COMPARISON})
    text = page(
        "compare.html.j2",
        site.COMPARED.name,
        title=site.COMPARISON,
        runs={name: about | {"digest": kept.digest(about["folder"])} for name, about in runs.items()},
        heading={name: heading for heading, group in groups.items() for name in group},
        told={name: kept.in_words(about) for name, about in runs.items()},
        tables=list(paper_tables(groups, summaries, root / PUBLISHED)),
        all=all_scores(summaries),
        believed=(pooling.BELIEVED, pooling.believed(groups)),
        decided=(pooling.DECIDED, pooling.decided(groups).replace("`", "", regex=True)),
        claims=pooling.claims_of(verdicts),
        verdicts=verdicts,
        pairs=pairs,
    )
    write_text(root / site.COMPARED, text)
    return root / site.COMPARED


def main():
    begin_in_utf_8()
    parser = argparse.ArgumentParser(prog="python -m xai_utils.pipeline.compare", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of runs that are kept; all where none is named")
    parser.add_argument("--list", action="store_true", help="write runs/README.md instead, where a run is kept")
    asked = parser.parse_args()
    try:
        enter_project()
        if not asked.list:
            print(f"open {build(Path(), asked.names)}")
        elif kept.kept(Path()):
            write_text(kept.FOLDER / "README.md", pooling.markdown(Path()))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
