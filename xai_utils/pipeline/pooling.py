"""Kept runs as groups: what differs in nothing but the seed is one, with intervals over seeds and images.

A group is a dict, name -> what `kept.kept` says of a run, and its "folder"; a score is a dict mean, low, high, or mean
alone.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas

from xai_utils.evaluation import agreement, guide, tables
from xai_utils.evaluation.scores import same_images
from xai_utils.explainers import CONTROLS
from xai_utils.metrics import METRICS as ALL_METRICS
from xai_utils.metrics.statistics import summary
from xai_utils.papers import amg, claims, fastcam, fastcam_claims
from xai_utils.pipeline import kept

METRICS = ("insertion", "grid_pointing", "part_truth")  # a column for each run that has it
METHODS = (  # no variants of one method: a table to be read at a glance
    "akd",
    "dgle_cf",
    "amg",
    "fastcam",
    "smoe",
    "removal_effect",
    "rise",
    "lime",
    "meaningful_perturbation",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient",
    "integrated_gradients",
    "smooth_grad",
    "random",
    "sobel_edges",
)
CONDITION = ("level", "mode", "row", "layer", "percent")  # of a record of remove_and_retrain
APART = ("measure_speed", "figures")  # stages that decide nothing of what is compared here
UNCHANGING = ("prefetch", "scheduler")  # of compute: no result is another by them
LISTED = """# Kept runs

Numbers of whole runs (`make keep`); `make readme` writes this page. `make compare` shows by which numbers each verdict
was reached, and the papers' tables with a column for each data set.

{runs}

## The same methods on all of them

Means with intervals, over seeds and images where there are several; the best of these rows is bold.

{scores}

## Which metric can be believed

{believed_told}

{believed}

## Which method for what

{decided_told}

{decided}

## What the papers claim

By direction alone; [docs/papers.md](../docs/papers.md#what-the-papers-claim) has the claims' places in print, the
rivals, and what a verdict means. –: the methods were not run.

{claims}
"""


BELIEVED = (
    "Metrics contradict each other. On drawn birds it is known which parts decide, in mosaics in which cell the class "
    "is seen: how far does a metric order the methods as that truth does? Spearman's rank correlation of the methods' "
    "means, 1 the same order, 0 none, -1 the reverse, without the controls; intervals over images, and over seeds "
    "where there are several, for these methods alone. The last columns: how much of a metric's order another network "
    "leaves on the same images."
)
DECIDED = (
    "What is a map to show, and what may it cost? The best method of each cost, with its mean. ★: the best of its need "
    "there; ≈: not significantly worse (paired by image, over seeds where there are several, p ≥ 0.05 after Holm's "
    "correction); else the difference to it. Birds are drawn, with small parts that decide; all others are "
    "photographs. Of kept runs all networks are convolutional: what holds for a transformer is not measured here."
)


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

    Parameters that decide no score are not asked. A second run with the same seeds is no other training: it goes into
    another group.
    """
    found, seen = {}, Counter()
    for name, about in runs.items():
        given, prepared = about["parameters"], numbers_of(about, "prepare_data")
        sizes = [prepared.get(name) for name in ("classes", "train", "validation")]
        data = about["hashes"].get("data", {}).get(given["prepare_data"]["dataset"])
        deciding = {stage: _deciding(each) for stage, each in given.items() if stage not in APART}
        same = json.dumps([data, sizes, deciding], sort_keys=True)
        seeds = json.dumps([given[stage].get("seed") for stage in deciding])
        found.setdefault((same, seen[same, seeds]), {})[name] = about
        seen[same, seeds] += 1
    return {_heading(*group): group for group in found.values()}


def _deciding(given):
    """The parameters of a stage that decide a score, without the seed."""
    compute = {key: value for key, value in given.get("compute", {}).items() if key not in UNCHANGING}
    return given | {"seed": None, "compute": compute}


def _heading(name, *others):
    return f"{name} ({len(others) + 1} seeds)" if others else f"{name} (one run)"


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


def options_of(group):
    """Seed, confidence and resamples of a group's intervals: those of its first run."""
    given = next(iter(group.values()))["parameters"]["evaluate"]
    return {"seed": given["seed"]} | given["intervals"]


def numbers_of(about, stage):
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
        for method, score in pooled([same_images(frame, metric)[0] for frame in frames], **options_of(group)).items():
            methods.setdefault(method, {})[metric] = score
    return {"metrics": metrics, "methods": methods}


def accuracies(group: dict) -> dict[str, dict]:
    """AKD's Table 2, row -> score, of the rows that all runs have.

    Runs keep how many images were right, not which. They are taken to be the same ones in each run: the widest interval
    that the numbers allow.
    """
    tables = {"target": [], "student": [], "agreement": []}
    for about in group.values():
        target = numbers_of(about, "finetune_target")
        student = numbers_of(about, "distill_surrogate").get("student", {})
        images = numbers_of(about, "prepare_data").get("validation")
        shares = [(target.get("top1"), target.get("images"))]
        shares += [(student.get(name), images) for name in ("validation_accuracy", "validation_agreement")]
        for (row, found), (share, number) in zip(tables.items(), shares, strict=True):
            if share is not None and number:
                found.append(pandas.DataFrame({row: np.arange(number) < round(share * number)}))
    found = {row: each for row, each in tables.items() if len(each) == len(group)}
    if len(group) == 1:
        return {row: summary(each[0][row], hit=1, **options_of(group)) for row, each in found.items()}
    return {row: pooled(each, **options_of(group))[row] for row, each in found.items()}


def retrained(group: dict) -> list[dict]:
    """The records of `retraining.experiment` of all runs, of the conditions that every run has; [] where one has none.

    A repetition is a pair (name of the run, repetition there). Image n of a run counts as image n of each other run.
    """
    tables = {name: about["folder"] / f"{claims.RETRAINING}.tsv" for name, about in group.items()}
    if not all(file.is_file() for file in tables.values()):
        return []
    found = {name: fastcam.read_records(file) for name, file in tables.items()}
    conditions = [{tuple(each[key] for key in CONDITION) for each in records} for records in found.values()]
    shared = set.intersection(*conditions)
    return [
        record | {"repetition": (name, record["repetition"])}
        for name, records in found.items()
        for record in records
        if tuple(record[key] for key in CONDITION) in shared
    ]


def _masked(group, records):
    options = {name: options_of(group)[name] for name in ("seed", "resamples")}
    return fastcam.resampled([record for record in records if record["mode"] != "none"], **options)


def layer_values(group: dict) -> dict:
    """Top-1 of the layers' conditions as `fastcam.resampled` gives it, over images and runs.

    Without resamples where a run keeps none of its `retrained` records, but accuracies alone; {} where no condition is
    in all runs.
    """
    if records := retrained(group):
        return {key: values for key, values in _masked(group, records).items() if key[0] == "layer"}
    found = [numbers_of(about, claims.RETRAINING).get("accuracy", {}) for about in group.values()]
    keys = [key for key in found[0] if key.startswith("layer/") and all(key in each for each in found)]
    places = {key: tuple(key.split("/", 2)) for key in keys}
    return {
        (level, mode, *place.rsplit("/", 1)): np.array([np.mean([each[key] for each in found])])
        for key, (level, mode, place) in places.items()
    }


def _on_common_images(frames: dict) -> dict:
    """Frames with a column image; different ones are numbered anew, which is as good as any other pairs of runs."""
    if len({tuple(sorted(frame["image"].unique())) for frame in frames.values()}) == 1:
        return frames
    return {name: frame.assign(image=frame["image"].rank(method="dense")) for name, frame in frames.items()}


def _of_trainings(group: dict) -> list[dict]:
    """What all runs together say of FastCAM's and AMG's claims: rows paper, claim, here, verdict, p.

    None of a paper whose numbers a run has not kept.
    """
    options, rows = options_of(group), []
    if records := retrained(group):
        chance = 1 / numbers_of(next(iter(group.values())), "prepare_data")["classes"]
        parts = {"chance": chance, "confidence": options["confidence"]}
        decided = fastcam_claims.decided(_masked(group, records), records, **parts)
        rows += [{"paper": "FastCAM", "claim": claim} | row for claim, row in decided.items()]
    tables = {name: about["folder"] / f"{claims.GATES}.tsv" for name, about in group.items()}
    if all(file.is_file() for file in tables.values()):
        frames = {name: pandas.read_csv(file, sep="\t") for name, file in tables.items()}
        rows += amg.claims(*_on_common_images(frames).values(), **options)
    return rows


def claimed(group: dict) -> dict[tuple, dict]:
    """(paper, claim) -> row with verdict and here: over all runs of the group, as far as they keep what decides it.

    Where several runs decide each by themselves, the verdict is theirs, or says how often each was found.
    """
    frames, rest = _on_common_images({name: kept.scores(about["folder"]) for name, about in group.items()}), {}
    rows = claims.of_runs(frames, **options_of(group)) + (_of_trainings(group) if len(group) > 1 else [])
    told = {(row["paper"], row["claim"]): row for row in rows}
    for name, about in group.items():
        passes = {method: row["passes"] for method, row in about["summary"]["methods"].items()}
        for row in claims.of_passes(passes) + claims.of_reports(about["folder"], about["summary"]["run"]):
            rest.setdefault((row["paper"], row["claim"]), {})[name] = row
    for claim, rows in ((claim, rows) for claim, rows in rest.items() if claim not in told):
        counts = Counter(row["verdict"] for row in rows.values())
        told[claim] = next(iter(rows.values())) if len(group) == 1 else {
            "verdict": ", ".join(each if len(counts) == 1 else f"{each} {number}" for each, number in counts.items()),
            "here": "; ".join(f"{name}: {row['here']}" for name, row in rows.items()),
        }  # fmt: skip
    return told


def frames_of(group: dict) -> list[pandas.DataFrame]:
    """The score frame of each run of a group."""
    return [kept.scores(about["folder"]) for about in group.values()]


def believed(groups: dict[str, dict]) -> pandas.DataFrame:
    """How far each metric orders methods as what is known, of each group, and as with another network: text.

    Rows are metrics by their label; columns say group and truth, or the two groups of the same images.
    """
    frames, columns = {name: frames_of(group) for name, group in groups.items()}, {}
    asked = {name: {"controls": CONTROLS} | options_of(group) for name, group in groups.items()}
    for name in groups:
        found = agreement.agreement(frames[name], ALL_METRICS, **asked[name])
        for truth in tables.TRUTHS:
            cells = {metric: each[truth][agreement.OVER] for metric, each in found.items() if truth in each}
            if cells:
                columns[f"{name}: {ALL_METRICS[truth].label}"] = cells
    for name, other in _of_another_network(groups):
        cells = agreement.across(frames[name], frames[other], ALL_METRICS, **asked[name])
        columns |= {f"{name} as {other}": cells} if cells else {}
    rows = [metric for metric in ALL_METRICS if any(metric in cells for cells in columns.values())]
    told = {head: [agreement.text(cells.get(metric)) for metric in rows] for head, cells in columns.items()}
    return pandas.DataFrame(told, index=[ALL_METRICS[metric].heading() for metric in rows])


def _of_another_network(groups):
    """Pairs of groups that explain the same images of the same data with different networks."""
    known = {}
    for name, group in groups.items():
        run = next(iter(group.values()))["summary"]["run"]
        images = {image for frame in frames_of(group) for image in frame["image"]}
        known[name] = run["data"], images, run["target"].split()[0]
    names = list(groups)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    return [pair for pair in pairs if known[pair[0]][:2] == known[pair[1]][:2] and len({known[n][2] for n in pair}) > 1]


def decided(groups: dict[str, dict]) -> pandas.DataFrame:
    """`guide.decisions` of each group as text: a row for each need and cost, a column for each group."""
    columns = {}
    for name, group in groups.items():
        given = next(iter(group.values()))
        rows = given["parameters"].get("explain", {}).get("rows", {})
        passes = {row: about["passes"] for row, about in given["summary"]["methods"].items()}
        found = guide.decisions(frames_of(group), rows, passes, controls=CONTROLS, **options_of(group))
        columns[name] = {
            (guide.NEEDS[need], cost): guide.decided(cell, need)
            for need, cells in found.items()
            for cost, cell in cells.items()
        }
    order = [(need, cost) for need in guide.NEEDS.values() for cost in guide.COSTS]
    rows = [row for row in order if any(row in cells for cells in columns.values())]
    told = {name: [cells.get(row, "–") for row in rows] for name, cells in columns.items()}
    return pandas.DataFrame(told, index=[", ".join(row) for row in rows])


def markdown(root: Path) -> str:
    """All kept runs and the papers' claims over them, as Markdown: runs/README.md, which `make readme` writes."""
    runs = chosen(root)
    groups = grouped(runs)
    verdicts = {name: claimed(group) for name, group in groups.items()}
    told = [
        (f"[{name}]({name}/)", kept.in_words(about), options_of({name: about})["seed"]) for name, about in runs.items()
    ]
    rows = [
        (f"{paper}: {claim}", *(verdicts[name].get((paper, claim), {}).get("verdict", "–") for name in groups))
        for paper, claim in claims_of(verdicts)
    ]
    scores = tables.side_by_side({name: scored(group) for name, group in groups.items()}, METRICS, METHODS)
    listed = _lines(("run", "of what", "seed"), told)
    return LISTED.format(
        runs=listed,
        scores=scores,
        believed_told=BELIEVED,
        believed=_of_frame("metric", believed(groups)),
        decided_told=DECIDED,
        decided=_of_frame("to be shown, for", decided(groups)),
        claims=_lines(("claim", *groups), rows),
    )


def _of_frame(head, frame):
    """A frame of texts as a Markdown table."""
    return _lines(
        (head, *frame.columns), [(name, *row) for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    )


def claims_of(verdicts: dict) -> list[tuple]:
    """(paper, claim) of all that some group has, in the order of the papers' list."""
    found = dict.fromkeys(claim for rows in verdicts.values() for claim in rows)
    named = [(claim.paper, claim.text) for claim in claims.CLAIMS if (claim.paper, claim.text) in found]
    return list(dict.fromkeys([*named, *found]))


def _lines(heads, rows) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, ["---"] * len(heads), *rows))
