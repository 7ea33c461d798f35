"""Kept runs on one page: the papers' tables with a column per data set, scores, claims, and what parts two runs.

python -m xai_utils.pipeline.compare [NAME ...]
python -m xai_utils.pipeline.compare --list     runs/README.md: the runs and their verdicts

Runs that differ in nothing but the seed are one group, with intervals over seeds and images. A group is a dict, name ->
what `kept.kept` says of a run, and its "folder"; a score is a dict mean, low, high, or mean alone.
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
from scipy import stats

from xai_utils.evaluation.scores import same_images
from xai_utils.evaluation.tables import digits
from xai_utils.files import write_text
from xai_utils.metrics.statistics import SIGNIFICANT, holm, summary
from xai_utils.papers import akd, claims, fastcam
from xai_utils.pipeline import kept, recorded, site
from xai_utils.pipeline.project import begin_in_utf_8, enter_project

PUBLISHED = Path("data/published")
LISTED = """# Kept runs

Numbers of whole runs (`make keep`); `make readme` writes this page. `make compare` shows by which numbers each verdict
was reached, and the papers' tables with a column for each data set.

{runs}

## What the papers claim

By direction alone; [docs/papers.md](../docs/papers.md#what-the-papers-claim) has the claims' places in print, the
rivals, and what a verdict means. –: the methods were not run.

{claims}
"""
SHARED = 0.5  # runs are paired where they explain so large a share of each other's images, for the same class


class CompareError(ValueError):
    """There is nothing to compare, or no run is kept under a name."""


def chosen(root: Path, names=()) -> dict[str, dict]:
    """The kept runs called `names`, each once and in their order; all where none is named."""
    runs = {name: about | {"folder": root / kept.FOLDER / name} for name, about in kept.kept(root).items()}
    if not runs:
        raise CompareError(f"no run is kept in {kept.FOLDER}/; keep one with: make keep NAME=pets")
    if unknown := [name for name in names if name not in runs]:
        raise CompareError(f"no run is kept as {', '.join(map(repr, unknown))}; choose among {', '.join(runs)}")
    return {name: runs[name] for name in names or runs}


def grouped(runs: dict[str, dict]) -> dict[str, dict]:
    """Heading -> group: runs on the same data set that have all parameters in common but the seed.

    A second run with the same seeds is no other training: it goes into another group.
    """
    found, seen = {}, Counter()
    for name, about in runs.items():
        given, prepared = about["parameters"], _numbers(about, "prepare_data")
        sizes = [prepared.get(name) for name in ("classes", "train", "validation")]
        data = about["hashes"].get("data", {}).get(given["prepare_data"]["dataset"])
        same = json.dumps([data, sizes, {key: each | {"seed": None} for key, each in given.items()}], sort_keys=True)
        seeds = json.dumps([each.get("seed") for each in given.values()])
        found.setdefault((same, seen[same, seeds]), {})[name] = about
        seen[same, seeds] += 1
    return {_heading(*group): group for group in found.values()}


def _heading(name, *others):
    return f"{name} ({len(others) + 1} seeds)" if others else f"{name} (one training)"


def pooled(tables: list[pandas.DataFrame], *, seed, confidence=0.95, resamples=2000) -> dict[str, dict]:
    """Column -> score, of those that all `tables` have: the mean of the runs' means, its interval over runs and images.

    A table is a run, a row an image. Each resample draws runs and images with replacement (percentile bootstrap), rows
    of one number in all runs at once: they are the same image, or at random one of each where each run has its own.
    """
    columns = [name for name in tables[0] if all(name in each and each[name].notna().any() for each in tables)]
    images = list(dict.fromkeys(image for each in tables for image in each.index))
    values = np.stack([each.reindex(index=images, columns=columns).to_numpy(float) for each in tables])
    generator, there = np.random.default_rng(seed), ~np.isnan(values)  # (runs, images, columns)
    runs, drawn = (generator.multinomial(n, np.full(n, 1 / n), size=resamples) for n in values.shape[:2])
    with np.errstate(invalid="ignore"):  # a resample that has no image of a run is left out
        means = np.tensordot(drawn, np.nan_to_num(values), (1, 1)) / np.tensordot(drawn, there, (1, 1))
    means = np.einsum("br,brc->bc", runs / len(tables), means)  # (resamples, columns)
    low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    parts = {"mean": np.nanmean(values, axis=1).mean(0), "low": low, "high": high}
    return pandas.DataFrame(parts, index=columns).to_dict("index")


def _options(group):
    """Seed, confidence and resamples of a group's intervals: those of its first run."""
    given = next(iter(group.values()))["parameters"]["evaluate"]
    return {"seed": given["seed"]} | given["intervals"]


def _numbers(about, stage):
    """What a stage wrote; {} where the run has nothing of it."""
    file = about["folder"] / f"{stage}.json"
    return json.loads(file.read_bytes()) if file.is_file() else {}


def scored(group: dict) -> dict:
    """The "metrics" and "methods" of a group as metrics.json has them of a run; of several, what all of them have."""
    summaries = [about["summary"] for about in group.values()]
    if len(group) == 1:
        return summaries[0]
    metrics = {
        key: about for key, about in summaries[0]["metrics"].items() if all(key in s["metrics"] for s in summaries)
    }
    frames, methods = [kept.scores(about["folder"]) for about in group.values()], {}
    for metric in metrics:
        for method, score in pooled([same_images(frame, metric)[0] for frame in frames], **_options(group)).items():
            methods.setdefault(method, {})[metric] = score
    return {"metrics": metrics, "methods": methods}


def accuracies(group: dict) -> dict[str, dict]:
    """AKD's Table 2, row -> score, of the rows that all runs have.

    Runs keep how many images were right, not which. They are taken to be the same ones in each run: the widest interval
    that the numbers allow.
    """
    tables = {"target": [], "student": [], "agreement": []}
    for about in group.values():
        target, student = _numbers(about, "finetune_target"), _numbers(about, "distill_surrogate").get("student", {})
        images = _numbers(about, "prepare_data").get("validation")
        shares = [(target.get("top1"), target.get("images"))]
        shares += [(student.get(name), images) for name in ("validation_accuracy", "validation_agreement")]
        for (row, found), (share, number) in zip(tables.items(), shares, strict=True):
            if share is not None and number:
                found.append(pandas.DataFrame({row: np.arange(number) < round(share * number)}))
    found = {row: each for row, each in tables.items() if len(each) == len(group)}
    if len(group) == 1:
        return {row: summary(each[0][row], hit=1, **_options(group)) for row, each in found.items()}
    return {row: pooled(each, **_options(group))[row] for row, each in found.items()}


def layer_values(group: dict) -> dict:
    """Top-1 of the layers' conditions as `fastcam.resampled` gives it: the runs' mean, then that of resampled runs.

    Images are not resampled, for runs do not keep which of them were right. {} where no condition is in all runs.
    """
    found = [_numbers(about, "remove_and_retrain").get("accuracy", {}) for about in group.values()]
    options, number, values = _options(group), len(group), {}
    generator = np.random.default_rng(options["seed"])
    runs = generator.multinomial(number, np.full(number, 1 / number), size=options["resamples"]) / number
    for key in found[0]:
        level, mode, place = key.split("/", 2)
        if level == "layer" and all(key in each for each in found):
            top1 = np.array([each[key] for each in found])
            values[level, mode, *place.rsplit("/", 1)] = np.concatenate([[top1.mean()], runs @ top1])
    return values


def paper_tables(groups: dict[str, dict], summaries: dict[str, dict], published: Path):
    """The papers' tables over several data sets, one after the other: title, and what the macro `scores` shows."""
    printed = akd.printed_table(published, "table2_accuracy").set_index("model").set_axis(["target", "student"])
    printed = printed.reindex([*printed.index, "agreement"])  # which the paper does not print
    ours = {name: accuracies(group) for name, group in groups.items()}
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
    values = {name: layer_values(group) for name, group in groups.items()}

    def cells(frame, column, name):
        several = len(groups[name]) > 1  # of one training there is no interval
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


def claimed(group: dict) -> dict[tuple, dict]:
    """(paper, claim) -> row with verdict and here: of scores over all runs of the group, of the rest from each run.

    Where several runs decide each by themselves, the verdict says how often each was found. Images that are not the
    same numbers in all runs are numbered anew: as good as any other pairs of images of two runs.
    """
    frames, rest = {name: kept.scores(about["folder"]) for name, about in group.items()}, {}
    if len({tuple(sorted(frame["image"].unique())) for frame in frames.values()}) > 1:
        frames = {name: frame.assign(image=frame["image"].rank(method="dense")) for name, frame in frames.items()}
    told = {(row["paper"], row["claim"]): row for row in claims.of_runs(frames, **_options(group))}
    for name, about in group.items():
        passes = {method: row["passes"] for method, row in about["summary"]["methods"].items()}
        for row in claims.of_passes(passes) + claims.of_reports(about["folder"], about["summary"]["run"]):
            rest.setdefault((row["paper"], row["claim"]), {})[name] = row
    for claim, rows in rest.items():
        counts = Counter(row["verdict"] for row in rows.values())
        told[claim] = next(iter(rows.values())) if len(group) == 1 else {
            "verdict": ", ".join(f"{verdict} {number}" for verdict, number in counts.items()),
            "here": "; ".join(f"{name}: {row['here']}" for name, row in rows.items()),
        }  # fmt: skip
    return told


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
    corrected, rows, options = holm([test[-1] for test in tests]) if tests else [], [], _options({"": one})
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


def markdown(root: Path) -> str:
    """All kept runs and the papers' claims over them, as Markdown: runs/README.md, which `make readme` writes."""
    runs = chosen(root)
    groups = grouped(runs)
    verdicts = {name: claimed(group) for name, group in groups.items()}
    told = [
        (f"[{name}]({name}/)", kept.in_words(about), _options({name: about})["seed"]) for name, about in runs.items()
    ]
    rows = [
        (f"{paper}: {claim}", *(verdicts[name].get((paper, claim), {}).get("verdict", "–") for name in groups))
        for paper, claim in _listed(verdicts)
    ]
    return LISTED.format(runs=_lines(("run", "of what", "seed"), told), claims=_lines(("claim", *groups), rows))


def _listed(verdicts: dict) -> list[tuple]:
    """(paper, claim) of all that some group has, in the order of the papers' list."""
    found = dict.fromkeys(claim for rows in verdicts.values() for claim in rows)
    named = [(claim.paper, claim.text) for claim in claims.CLAIMS if (claim.paper, claim.text) in found]
    return list(dict.fromkeys([*named, *found]))


def _lines(heads, rows) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, ["---"] * len(heads), *rows))


def build(root: Path, names=()) -> Path:
    """Write the page of the kept runs called `names`, or of all."""
    runs = chosen(root, names)
    if not (root / PUBLISHED).is_dir():
        raise CompareError(f"{PUBLISHED}, the printed numbers, is missing; fetch it with: make data")
    groups = grouped(runs)
    summaries = {name: scored(group) for name, group in groups.items()}
    verdicts = {name: claimed(group) for name, group in groups.items()}
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
        claims=_listed(verdicts),
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
            write_text(kept.FOLDER / "README.md", markdown(Path()))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
