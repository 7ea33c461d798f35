"""Which method to use when: what a run found, in ten rows for the front page and the README, and by what is asked for.

`summary`: what the stage evaluate writes into metrics.json.
"""

import numpy as np
import pandas

from xai_utils.evaluation.scores import same_images
from xai_utils.evaluation.tables import SIGNIFICANT, TRUTHS, digits
from xai_utils.evaluation.trust import BELOW, BEST, BLIND, CURVES, LEVEL, OVERALL, WEAK
from xai_utils.explainers import EXPLAINERS, method_of
from xai_utils.metrics.statistics import holm, paired_test

PAPERS = ("akd", "dgle_cf", "fastcam", "amg")
METRICS, METHODS = ("insertion", "deletion", *TRUTHS), (*PAPERS, "rise", "grad_cam", "random")  # of the headlines
ROWS = 10
FEW, SOME = 1.5, 3  # passes: of one pass and a little more, of a gradient
COSTS = ONE, TRAINED, GRADIENT, MANY = (
    "one pass, nothing to train",
    "one pass, once trained",
    "a gradient, nothing to train",
    "many passes, nothing to train",
)
NEEDS = {  # column of scores -> what it is that a map shows
    OVERALL: "the pixels on which the answer hangs",
    "grid_pointing": "the class, beside others",
    "box_average_precision": "the object, coarsely",
    "part_truth": "its parts that decide, finely",
}
SAID = {
    BEST: "the most faithful here",
    LEVEL: "as faithful as the best",
    BELOW: "better than every control",
    WEAK: "not above every control: its picture means little",
    BLIND: "nearly the same map whatever the network knows: do not use it to explain one",
}


def rows(summary: dict) -> list[dict[str, str]]:
    """Head -> text, a row per method: the papers', the best and the cheapest as good, those nearest to the truth.

    Faithfulness is insertion minus deletion. Empty where trust could not be decided.
    """
    advice = summary.get("trust") or {}
    table, truths = advice.get("table", {}), [name for name in TRUTHS if name in summary["metrics"]]
    if not table:
        return []
    means = pandas.DataFrame({name: {row: summary["methods"][row][name]["mean"] for row in table} for name in truths})
    best = means.dropna(axis="columns", how="all").idxmax().to_dict()
    chosen = [*advice["level"][:1], advice["cheapest"], *best.values(), *PAPERS, "grad_cam", *table]
    chosen = list(dict.fromkeys(name for name in chosen if name in table))[:ROWS]
    found = []
    for method in sorted(chosen, key=list(table).index):
        about = table[method]
        cells = {"method": method, "faithfulness": "{overall:.3f} [{low:.3f}, {high:.3f}]".format(**about)}
        for name in truths:
            text = "{mean:.{d}f} [{low:.{d}f}, {high:.{d}f}]"
            label = summary["metrics"][name]["label"].lower()
            cells[label] = text.format(**summary["methods"][method][name], d=digits(name))
        said = [SAID[about["standing"]], *(f"best {name.replace('_', ' ')}" for name in best if best[name] == method)]
        cells["passes"] = f"{about['passes']:.3g}"
        found.append(cells | {"when to use": "; ".join([*said, _cost(method, about["passes"])])})
    return found


def findings(summary: dict) -> list[str]:
    """Sentences: the most faithful method, how sure that is, what to mistrust, what is nearest to each truth."""
    advice = summary.get("trust") or {"sentences": []}
    return [*advice["sentences"], *filter(None, [_nearest(summary)])]


def _nearest(summary):
    """Of each truth that was scored, the method whose maps have most of their mass there, beside random ones."""
    told = []
    for name in TRUTHS:
        means = {row: scores[name]["mean"] for row, scores in summary["methods"].items() if name in scores}
        means = {row: mean for row, mean in means.items() if mean is not None and mean == mean}
        if means:
            best, about = max(means, key=means.get), summary["metrics"][name]
            chance = f" (`random` {means['random']:.3f})" if "random" in means else ""
            told.append(f"{about['label'].lower()}: `{best}` {means[best]:.3f}{chance}")
    return f"Nearest to the truth, by {'; by '.join(told)}." if told else ""


def _cost(method, passes):
    trained = method in EXPLAINERS and EXPLAINERS[method].part is not None
    if trained and passes < SOME:  # the pass of its own network is on top of the target's
        return TRAINED
    return ONE if passes < FEW else GRADIENT if passes < SOME else MANY


def decisions(frames, methods, passes, *, controls, seed, **intervals) -> dict[str, dict[str, dict]]:
    """The best method of each of NEEDS and each cost: need -> cost -> method, mean, difference to the best, standing.

    `frames`: a list of `scores.score_frame`, one for each run of a group; `methods`: row -> options; `passes`: row ->
    those of a map; `controls` are left out. The standing is BEST, LEVEL (p 0.05 or more in a paired test against the
    best, over runs and images, after Holm's correction for the costs) or BELOW. Needs of which a frame has no scores
    are left out. `intervals`: confidence and resamples of `statistics.paired_test`.
    """
    frames, found = [_with_overall(frame) for frame in frames], {}
    for need in NEEDS:
        if not all(need in frame and frame[need].notna().any() for frame in frames):
            continue
        values = _stacked([same_images(frame, need)[0] for frame in frames], controls)
        best = {}
        for method in sorted(values, key=lambda name: -values[name].mean()):
            best.setdefault(_cost(method_of(method, methods.get(method) or {})[0], passes[method]), method)
        if not best:  # controls alone
            continue
        first, *others = best.values()
        tests = [paired_test(values[first], values[other], seed=seed, **intervals) for other in others]
        p_values = [1.0, *(holm([test["p"] for test in tests]) if tests else [])]
        found[need] = {
            cost: {
                "method": method,
                "mean": float(values[method].mean()),
                "difference": float(values[method].mean() - values[first].mean()),
                "standing": BEST if method == first else LEVEL if p >= SIGNIFICANT else BELOW,
            }
            for (cost, method), p in zip(best.items(), p_values, strict=True)
        }
    return found


def _with_overall(frame):
    return frame.assign(**{OVERALL: frame["insertion"] - frame["deletion"]}) if {*CURVES} <= {*frame} else frame


def _stacked(tables, controls):
    """method -> scores (R, N), of the methods of all tables; where runs score other images, any two are a pair."""
    methods = [name for name in tables[0] if name not in controls and all(name in each for each in tables)]
    images = tables[0].index
    if not all(images.equals(each.index) for each in tables):
        tables = [each.iloc[: min(map(len, tables))] for each in tables]
    return {name: np.stack([each[name].to_numpy(float) for each in tables]) for name in methods}


def decided(cell, need: str) -> str:
    """One cell of `decisions` in words, the method in backquotes; "–" for none."""
    if not cell:
        return "–"
    places = 3 if need == OVERALL else digits(need)
    standing = {BEST: "★", LEVEL: "≈", BELOW: f"({cell['difference']:+.{places}f})"}[cell["standing"]]
    return f"`{cell['method']}` {cell['mean']:.{places}f} {standing}"


def decision_table(found: dict) -> pandas.DataFrame:
    """`decisions` as text: a row for each need, a column for each cost."""
    costs = [cost for cost in COSTS if any(cost in cells for cells in found.values())]
    rows = {NEEDS[need]: {cost: decided(cells.get(cost), need) for cost in costs} for need, cells in found.items()}
    return pandas.DataFrame.from_dict(rows, orient="index", columns=costs)


def headlines(summary: dict) -> dict[str, dict[str, float]]:
    """Metric -> method -> mean, few enough to read beside another run's: what `dvc metrics` and `dvc exp show` list."""
    return {
        name: {method: round(row[name]["mean"], 4) for method, row in summary["methods"].items() if method in METHODS}
        for name in METRICS
        if name in summary["metrics"]
    }


def markdown(found: list[dict[str, str]]) -> str:
    """`rows` as a Markdown table; "" where there is none."""
    if not found:
        return ""
    lines = [list(found[0]), ["---"] * len(found[0])]
    lines += [[f"`{method}`", *cells] for method, *cells in (row.values() for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
