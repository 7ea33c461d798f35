"""Result tables: what a report, the front page and the README show of a scored run."""

from html import escape
from itertools import groupby

import numpy as np
import pandas

from xai_utils.datasets import UNLABELLED
from xai_utils.evaluation.scores import compare_methods
from xai_utils.explainers import CONTROLS
from xai_utils.metrics import METRICS
from xai_utils.metrics.registry import GROUPS

SIGNIFICANT = 0.05
TRUTHS = ("part_truth", "grid_pointing")  # what is known of an image: the parts that decide, or its cell in a mosaic


def digits(metric: str) -> int:
    """Decimals worth showing: percent with one, shares with three."""
    return 1 if METRICS[metric].unit == "percent" else 3


def summarise(result: dict, table: pandas.DataFrame, passes: dict, *, asked, seed: int, confidence=0.95, **_) -> dict:
    """A scored run as plain JSON: per metric what it is, per method the means with intervals, and the protocol.

    `result` from `scores.score_maps`, `table` from `scores.score_table`, `passes` from the maps' record,
    `asked` the metrics that were to be scored: those without a score on any image are named in the protocol.
    """
    scored = sorted((name for name in asked if name in table), key=lambda name: name not in TRUTHS)
    left_out = [name for name in asked if name not in table]
    curves = {
        name: f"Removed pixels: {about['baseline']}; {about['points']} points, end points included."
        for name, about in result["protocol"]["curves"].items()
    }
    metrics = {
        name: {
            "label": METRICS[name].heading(result["protocol"]["options"].get(name)),
            "arrow": {True: "↑", False: "↓", None: ""}[METRICS[name].higher_is_better],
            "unit": METRICS[name].unit,
            "n": int(table[f"{name}_n"].iloc[0]),
        }
        for name in scored
    }
    methods = {
        method: {
            name: {
                part: round(float(row[name + end]), 5)
                for part, end in (("mean", ""), ("low", "_low"), ("high", "_high"))
            }
            for name in scored
        }
        | {"passes": passes[method], "failures": int(row["failures"])}
        for method, row in table.iterrows()
    }
    used = sorted({about["n"] for about in metrics.values()})
    scored_on = f"{used[0]} to {used[-1]}" if used[0] < used[-1] else f"all {used[0]}"
    protocol = (
        f"{len(result['indices'])} held-out images ({scored_on} scored by each metric), seed {seed}, "
        f"{confidence:.0%} bootstrap intervals; the explained class is the predicted one, "
        f"{_told_accuracy(result['targets'], result['labels'])}; {result['protocol']['score']}."
    )
    if left_out:
        protocol += f" Left out, for no image has a score: {', '.join(left_out)}."
    return {"metrics": metrics, "methods": methods, "curves": curves, "protocol": protocol}


def _told_accuracy(targets, labels) -> str:
    """How often the predicted class is right, in words, on those images whose class is known."""
    known = np.asarray(labels) != UNLABELLED
    if not known.any():
        return "and nothing tells whether it is right (no labels, or none that the network knows)"
    on = "the images" if known.all() else f"the {known.sum()} images whose class the network knows"
    return f"right on {np.mean(np.asarray(targets)[known] == np.asarray(labels)[known]):.0%} of {on}"


def standings(frame, table, metrics, *, seed) -> dict:
    """metric -> method -> "best", "level" (not significantly worse than the best) or "" (significantly worse).

    Significance: paired tests against the best, p < 0.05 after Holm's correction for the number of methods. Metrics
    without a better direction are left out. `frame`, `table` as in `against_controls`.
    """
    found = {}
    for name in metrics:
        better = METRICS[name].higher_is_better
        if better is None or len(table) < 2:
            continue
        order = table[name].sort_values(ascending=not better, kind="stable").index
        tests = compare_methods(frame, name, reference=order[0], seed=seed)
        p = tests.get("p_holm", tests["p"])
        found[name] = {order[0]: "best"} | {method: "level" if p[method] >= SIGNIFICANT else "" for method in order[1:]}
    return found


def best(summary: dict, metric: str) -> str | None:
    """The method with the best mean of `metric`; None where neither direction is better."""
    if METRICS[metric].higher_is_better is None:
        return None
    sign = -1 if METRICS[metric].higher_is_better else 1
    return min(summary["methods"], key=lambda method: sign * summary["methods"][method][metric]["mean"])


def _heads(summary: dict) -> dict:
    """Metric -> the head of its column."""
    return {name: f"{about['label']} {about['arrow']}".strip() for name, about in summary["metrics"].items()}


def _texts(row: dict, name: str) -> dict:
    """Mean, low and high of one score as text."""
    return {part: f"{row[name][part]:.{digits(name)}f}" for part in ("mean", "low", "high")}


def html(summary: dict, standing: dict | None = None, controls=CONTROLS) -> str:
    """The summary as an HTML table; names appear as text whatever they contain.

    Cost and truth come first, in groups of metrics; the `controls` stand below the methods. With `standing` from
    `standings`: best bold, ≈: not significantly worse than the best.
    """
    standing = standing or {name: {best(summary, name): "best"} for name in summary["metrics"]}
    layouts = {"best": "<b>{}</b>", "level": "{} ≈"}
    groups = {name: METRICS[name].group if name in METRICS else "" for name in summary["metrics"]}
    heads, order = _heads(summary), sorted(groups, key=lambda name: GROUPS.index(groups[name]))
    wide = "".join(
        f'<th colspan="{len(list(part))}">{group}</th>' for group, part in groupby(groups[name] for name in order)
    )
    lines = [f'<table class="main"><thead><tr><th></th><th></th><th>cost</th>{wide}<th></th></tr>']
    lines.append("<tr><th></th><th>method</th>")
    lines += [f"<th>{escape(head)}</th>" for head in ("passes", *(heads[name] for name in order), "failures")]
    lines.append("</tr></thead><tbody>")
    for method, row in sorted(summary["methods"].items(), key=lambda item: item[0] in controls):
        kind = "controls, which never saw the network" if method in controls else ""
        lines.append(f"<tr><th>{kind}</th><th>{escape(method)}</th>")
        lines.append(f'<td data-value="{row["passes"]}">{row["passes"]:.3g}</td>')
        for name in order:
            texts = _texts(row, name)
            mean = layouts.get(standing.get(name, {}).get(method, ""), "{}").format(texts["mean"])
            interval = f"<br><small>{texts['low']} – {texts['high']}</small>"
            lines.append(f'<td data-value="{row[name]["mean"]}">{mean}{interval}</td>')
        lines.append(f'<td data-value="{row["failures"]}">{row["failures"]}</td></tr>')
    return "".join([*lines, "</tbody></table>"])


def measured(summary: dict, size, settings: dict) -> str:
    """What each scored metric measured on images of `size` (H, W), with the `settings` of `scores.score_maps`: HTML."""
    terms = []
    for name, about in summary["metrics"].items():
        curve, options = settings["curves"].get(METRICS[name].curve), settings["options"].get(name, {})
        if METRICS[name].needs == "part_masks":  # what decides is found once for all metrics
            options = options | {"threshold": settings["part_threshold"]}
        told = METRICS[name].protocol(size, curve=curve, options=options)
        terms.append(f"<dt>{escape(about['label'])}</dt><dd>{escape(told)}</dd>")
    return f"<details><summary>of {len(terms)} metrics</summary><dl>{''.join(terms)}</dl></details>"


def side_by_side(summaries: dict[str, dict], metrics, methods) -> str:
    """Several runs, name -> summary, as one Markdown table: a column for each of `metrics` and each run that has it.

    Rows are those of `methods` that any of them has; the best of a column's rows is bold.
    """
    columns = {}
    for name in metrics:
        for run, summary in summaries.items():
            if name in summary["metrics"]:
                shown = {method: row for method, row in summary["methods"].items() if method in methods}
                columns[f"{_heads(summary)[name]}, {run}"] = _column(summary | {"methods": shown}, name)
    return _rows(columns, [method for method in methods if any(method in cells for cells in columns.values())])


def _column(summary: dict, name: str) -> dict:
    """method -> the cell of one metric in a Markdown table."""
    winner = best(summary, name) if summary["methods"] else None
    layouts = {method: "**{mean}**" if method == winner else "{mean}" for method in summary["methods"]}
    return {
        method: f"{layouts[method]} [{{low}}, {{high}}]".format(**_texts(row, name))
        for method, row in summary["methods"].items()
    }


def _rows(columns: dict, methods) -> str:
    """A Markdown table: head -> method -> cell; a dash where a column has no such method."""
    rows = [["method", *columns], ["---", *["---:"] * len(columns)]]
    rows += [[f"`{method}`", *(cells.get(method, "–") for cells in columns.values())] for method in methods]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def truth(table: pandas.DataFrame, chance: dict) -> pandas.DataFrame:
    """Rows methods, best first in the first metric; of each metric the mean with its interval, and times chance.

    `table` from `scores.score_table`; `chance`: metric -> the score of a map that knows nothing.
    """
    columns, order = {}, table.sort_values(next(iter(chance)), ascending=False, kind="stable") if chance else table
    for name, known in chance.items():
        told = f"{{:.{digits(name)}f}} [{{:.{digits(name)}f}}, {{:.{digits(name)}f}}]".format
        parts, heading = order[[name, f"{name}_low", f"{name}_high"]].to_numpy(), METRICS[name].heading()
        columns[heading, f"mean ↑ (chance {known:.3f})"] = [told(*part) for part in parts]
        columns[heading, "times chance ↑"] = [f"{part[0] / known:.1f}" for part in parts]
    return pandas.DataFrame(columns, index=order.index)


def against_controls(frame, table, metrics, *, controls, seed) -> pandas.DataFrame:
    """Rows methods; a column per metric and its best control: paired difference, Holm-corrected p, ✓: intervals apart.

    `frame` from `scores.score_frame`, `table` from `scores.score_table`. Empty where no control was scored.
    """
    columns = {}
    controls = [name for name in controls if name in table.index]
    for name in metrics if controls else ():
        better = METRICS[name].higher_is_better
        if better is None:
            continue
        rival = table.loc[controls, name].idxmax() if better else table.loc[controls, name].idxmin()
        compared = compare_methods(frame, name, reference=rival, seed=seed)
        lowest, highest = (f"{name}_low", f"{name}_high") if better else (f"{name}_high", f"{name}_low")
        cells = {}
        for method in table.index.drop(controls):
            apart = (1 if better else -1) * (table.loc[method, lowest] - table.loc[rival, highest]) > 0
            difference, p = f"{compared.loc[method, 'difference']:+.{digits(name)}f}", compared.loc[method, "p_holm"]
            cells[method] = f"{difference} (p {p:.4f}){' ✓' if apart else ''}"
        columns[METRICS[name].heading(), f"over {rival}"] = cells
    return pandas.DataFrame(columns)
