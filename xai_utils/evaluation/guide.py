"""Which method to use when, in ten rows at most: what a run found, for the front page and the README.

`summary`: what the stage evaluate writes into metrics.json.
"""

import pandas

from xai_utils.evaluation.tables import TRUTHS, digits
from xai_utils.evaluation.trust import BELOW, BEST, BLIND, LEVEL, WEAK
from xai_utils.explainers import EXPLAINERS

PAPERS = ("akd", "dgle_cf", "fastcam", "amg")
METRICS, METHODS = ("insertion", "deletion", *TRUTHS), (*PAPERS, "rise", "grad_cam", "random")  # of the headlines
ROWS = 10
FEW, SOME = 1.5, 3  # passes: of one pass and a little more, of a gradient
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
        found.append(cells | {"when to use": "; ".join([*said, _cost(method, about)])})
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


def _cost(method, about):
    trained = method in EXPLAINERS and EXPLAINERS[method].part is not None
    if about["passes"] < FEW:
        return "one pass, once trained" if trained else "one pass, nothing to train"
    return "a gradient, nothing to train" if about["passes"] < SOME else "many passes, nothing to train"


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
