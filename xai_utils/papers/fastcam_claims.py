"""What FastCAM claims of its tables, held against a run of our own.

A claim is decided by the differences of scores on the same resamples, as those of `claims` are: it holds where every
pair does, and fails where one is the other way round after Holm's correction. Every network of ROAR and KAR was
trained: there is no verdict before three repetitions, and none where the masks tell the class themselves (`obstacles`).
"""

import warnings
from html import escape

import numpy as np
import pandas
from scipy import stats

from xai_utils.metrics.statistics import FAILS, HOLDS, SIGNIFICANT, UNDECIDED, decide_all, holm, paired_tests
from xai_utils.papers.claims import CLAIMS, NOT_RUN, RETRAINING, TOO_FEW, TRAININGS, p_text
from xai_utils.papers.fastcam import SCORES, interval, printed, printed_terms, resampled, rows_of, sums, terms

NO_VERDICT = "no verdict"
OFF = {  # level -> why nothing of it was run, where nothing was
    "layer": "No network was fine-tuned behind a masked layer, for remove_and_retrain.statistics is empty; name "
    "statistics there, in params.yaml, and run the stage again.",
    "image": "No network was trained on masked images, for remove_and_retrain.rows is empty; name rows there, in "
    "params.yaml, and run the stage again.",
}
COLUMNS = (
    "unmasked", "chance", "cells", "above", "significantly above", "within chance", "no better than chance",
)  # fmt: skip
PAPER = {  # where the numbers of a claim's metric are in print: table and column
    "difference score": ("table1_scores_published", "diff_avg"),
    "information score": ("table1_scores_published", "info_avg"),
    "SUM": ("table2_totals", "sum"),
}


def beside_unmasked(records, *, chance) -> pandas.DataFrame:
    """Rows layer, image: the accuracy without masks (unmasked), chance, the number of masked cells, of these above,
    significantly above (paired by image, p < 0.05 after Holm's correction for the cells) and within chance.

    A cell is one row at one layer or percentage, kept or removed, random masks too; repetitions are averaged by image.
    Of layers each is held against the network that was fine-tuned behind the same one. With several repetitions p is
    the larger of that over the images and of Student's over the repetitions: one network may be luckier than another.
    A level that was not run has no row.
    """
    found = {}
    for level in ("layer", "image"):
        cells = {}
        for record in records:
            if record["level"] == level:
                key = record["mode"], record["row"], record["layer"], record["percent"]
                cells.setdefault(key, []).append(record["hits"])
        cells = {key: np.asarray(hits, dtype=float) for key, hits in cells.items()}  # (repetitions, images)
        plain = {key[2]: cells.pop(key) for key in list(cells) if key[0] == "none"}  # layer (None: image) -> its hits
        if not plain or not cells:
            continue
        means = {key: hits.mean(0) for key, hits in cells.items()}  # (images,)
        gaps = np.stack([hits - plain[layer].mean(0) for (_, _, layer, _), hits in means.items()])
        tests = paired_tests(gaps, np.zeros(gaps.shape[1]), seed=0, resamples=2)  # no interval is read
        p_values = np.array([test["p"] for test in tests])
        if all(len(hits) > 1 for hits in (*cells.values(), *plain.values())):
            by_repetition = np.stack([hits.mean(1) - plain[key[2]].mean(1) for key, hits in cells.items()])
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of repetitions that agree exactly there is no test
                p_values = np.fmax(p_values, stats.ttest_1samp(by_repetition, 0, axis=1).pvalue)
        p_values = holm(p_values)
        above = np.array([test["difference"] > 0 for test in tests])
        found[level] = {
            "unmasked": np.mean([hits.mean() for hits in plain.values()]),
            "chance": chance,
            "cells": len(means),
            "above": above.sum(),
            "significantly above": (above & (p_values < SIGNIFICANT)).sum(),
            "within chance": sum(_within_chance(hits, chance) for hits in means.values()),
            "no better than chance": any(_within_chance(hits.mean(0), chance) for hits in plain.values()),
        }
    return pandas.DataFrame.from_dict(found, orient="index", columns=COLUMNS)


def _within_chance(hits, chance):
    test = stats.binomtest(round(hits.sum()), len(hits), chance, alternative="greater")
    return bool(test.pvalue >= SIGNIFICANT)


def obstacles(beside: pandas.DataFrame) -> dict[str, str]:
    """Why the networks of a level decide nothing: level -> the reason; absent where nothing speaks against them."""
    found = {}
    for level, row in beside.iterrows():
        if row["no better than chance"] or 2 * row["within chance"] > row["cells"]:
            found[level] = (
                f"accuracies are within chance ({row['chance']:.2f}): {row['unmasked']:.2f} without masks, "
                f"{row['within chance']} of {row['cells']} masked cells"
            )
        elif row["significantly above"]:
            found[level] = (
                f"masks leak the class: unmasked {row['unmasked']:.2f} lies below {row['above']} of {row['cells']} "
                f"masked cells, below {row['significantly above']} significantly"
            )
    return found


def in_words(beside: pandas.DataFrame) -> str:
    """What stands before all tables: how masked networks lie to the unmasked one and to chance, and what follows."""
    names, reasons = {"layer": "Layers", "image": "Images"}, obstacles(beside)
    said = [
        f"{names[level]}: {row['above']} of {row['cells']} masked cells lie above the network without masks "
        f"({row['unmasked']:.3f}), {row['significantly above']} of them significantly; {row['within chance']} are "
        f"within chance ({row['chance']:.3f})."
        for level, row in beside.iterrows()
    ]
    said += [f"No claim about {names[level].lower()} has a verdict: {reason}." for level, reason in reasons.items()]
    if any("leak" in reason for reason in reasons.values()):
        said.append("What sees less cannot know more: where it does, the shape of the mask says what it hides.")
    return " ".join(said)


def saturated(records, *, chance) -> str:
    """Where the curves of the image level cannot tell maps apart, in words; "" where there is none that learned.

    KAR is flat where the smallest share kept is already enough, ROAR is at its end where half the pixels removed leave
    nothing that tells the class. Tests as in `beside_unmasked`, Holm's correction over the rows.
    """
    hits = {}
    for record in records:
        if record["level"] == "image":
            hits.setdefault((record["mode"], record["row"], record["percent"]), []).append(record["hits"])
    means = {key: np.mean(each, 0) for key, each in hits.items()}  # (images,)
    plain = means.pop(("none", "none", None), None)
    if plain is not None and _within_chance(plain, chance):
        return ""
    rows, percents = (list(dict.fromkeys(key[place] for key in means)) for place in (1, 2))
    if len(percents) < 2:
        return ""
    least, most, half = min(percents), max(percents), min(percents, key=lambda percent: abs(percent - 50))
    gaps = np.stack([means["keep", row, most] - means["keep", row, least] for row in rows])
    tests = paired_tests(gaps, np.zeros(gaps.shape[1]), seed=0, resamples=2)  # no interval is read
    pairs = zip(rows, tests, holm([test["p"] for test in tests]), strict=True)
    rising = [row for row, test, p in pairs if test["difference"] > 0 and p < SIGNIFICANT]
    at_end = [row for row in rows if _within_chance(means["remove", row, half], chance)]
    text = f"KAR rises from {least} % to {most} % kept for {len(rising)} of {len(rows)} rows"
    text += f" ({', '.join(rising)})" if rising else ""
    if len(rising) < len(rows):
        text += f": what the others mark is enough at {least} %"
    return f"{text}. ROAR is within chance at {half} % removed for {len(at_end)} of {len(rows)} rows."


def claims(values: dict, records, published, *, chance, confidence=0.95) -> pandas.DataFrame:
    """Rows claim, columns paper (the printed numbers), and those of `decided`."""
    found = {
        text: {"paper": _in_print(next(claim for claim in CLAIMS if claim.text == text), values, published)} | row
        for text, row in decided(values, records, chance=chance, confidence=confidence).items()
    }
    columns = ["paper", "here", "verdict", "p"]
    return pandas.DataFrame.from_dict(found, orient="index", columns=columns, dtype=object).rename_axis("claim")


def decided(values: dict, records, *, chance, confidence=0.95) -> dict[str, dict]:
    """Claim -> here, verdict, p; `values` from `fastcam.resampled` of the masked ones of `records`.

    The repetitions may be those of several runs. A claim about rows that were not run is left out; where nothing of its
    level was, the verdict says so.
    """
    masked = [record for record in records if record["mode"] != "none"]
    repetitions = sorted({record["repetition"] for record in masked})
    each = [[one for one in masked if one["repetition"] == number] for number in repetitions]
    own, alone = _scores(values), [_scores(resampled(part, seed=0, resamples=0)) for part in each]
    reasons, found = obstacles(beside_unmasked(records, chance=chance)), {}
    for claim in (claim for claim in CLAIMS if claim.source == RETRAINING):
        level = "image" if claim.metric == "SUM" else "layer"
        if not rows_of(values, level):
            found[claim.text] = {"here": OFF[level], "verdict": NOT_RUN, "p": None}
            continue
        if claim.metric not in own:
            ours, verdict, p = _never_negative(values, claim)
        else:
            rows = own[claim.metric]
            [first, others] = [[name for name in rank if name in rows] for rank in claim.order]
            if not first or not others:
                continue
            pairs = [(one, other) for one in first for other in others]
            tests = {pair: _test(own, alone, claim.metric, pair, confidence) for pair in pairs}
            verdict, p = (_alike if claim.sign == 0 else decide_all)(list(tests.values()))
            weakest = min(tests, key=lambda pair: tests[pair]["difference"])
            shown = pairs if claim.sign == 0 else [weakest]
            ours = "; ".join(f"{' − '.join(pair)} = {_signed(tests[pair])}" for pair in shown)
            if len(pairs) > len(shown):
                ours += f"; the weakest of {len(pairs)}: {first[0]} above {', '.join(others)}"
        if level in reasons:
            ours, verdict, p = f"{reasons[level]}; {ours}", NO_VERDICT, None
        elif len(repetitions) < TRAININGS:
            ours += f"; a verdict needs {TRAININGS} repetitions of each training, here: {len(repetitions)}"
            verdict, p = TOO_FEW, None
        found[claim.text] = {"here": ours, "verdict": verdict, "p": p}
    return found


def _in_print(claim, values, published):
    """What the paper's own tables say of a claim, as text."""
    if claim.metric not in PAPER:
        frames = [pandas.concat(printed_terms(published, score), axis=1) for score in SCORES]
        paper = [name for name in frames[0].index if all((frame.loc[name] > 0).all() for frame in frames)]
        return f"Table 4:; {'; '.join(paper) or 'none'}"
    table, column = PAPER[claim.metric]
    paper, rows = printed(published, table)[column], {"random", *rows_of(values, "layer"), *rows_of(values, "image")}
    first, others = ([name for name in rank if name in rows] for rank in claim.order)
    return _listed(paper.reindex([*first, *others]).dropna() if len(others) == 1 else paper.nlargest(2))


def html(claimed: pandas.DataFrame) -> str:
    """The claims as an HTML table, each part of a cell on its own line; p on hover over the verdict."""
    heads = "".join(f"<th>{head}</th>" for head in ("claim", "verdict", "here", "in print"))
    lines = [f'<table class="prose"><thead><tr>{heads}</tr></thead><tbody>']
    for claim, row in claimed.iterrows():
        here, paper = ("<br>".join(map(escape, row[part].split("; "))) for part in ("here", "paper"))
        p = "" if pandas.isna(row["p"]) else f' title="p {escape(p_text(row["p"]))}"'
        lines.append(
            f"<tr><th>{escape(claim)}</th><td{p}>{escape(row['verdict'])}</td><td>{here}</td><td>{paper}</td></tr>"
        )
    return "".join([*lines, "</tbody></table>"])


def _scores(values):
    """Metric -> row -> its score as measured and resampled, (1 + resamples,)."""
    layers, images, found = rows_of(values, "layer"), rows_of(values, "image"), {}
    if layers:
        found = {f"{score} score": dict(zip(layers, terms(values, score).sum(-1).T, strict=True)) for score in SCORES}
    if images:
        found["SUM"] = {row: kar - roar for row in ("random", *images) for kar, roar in [sums(values, row)]}
    return found


def _test(own, alone, metric, pair, confidence):
    """A test as of `statistics.paired_test`, of scores that are no means over images.

    p is the larger of two: twice the share of resamples on the other side of 0, and Student's over the repetitions.
    """
    one, other = pair
    gap = own[metric][one] - own[metric][other]
    parts = dict(zip(("difference", "low", "high"), map(float, interval(gap, confidence).values()), strict=True))
    beyond = min((gap[1:] <= 0).sum(), (gap[1:] >= 0).sum())
    p = min(1.0, 2 * (1 + beyond) / len(gap))
    gaps = [float(scores[metric][one][0] - scores[metric][other][0]) for scores in alone]
    if len(gaps) > 1 and np.ptp(gaps):
        p = max(p, float(stats.ttest_1samp(gaps, 0).pvalue))
    return parts | {"p": float(p)}


def _signed(test):
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(test[part] for part in ("difference", "low", "high")))


def _listed(series):
    return "; ".join(f"{name} {value:.2f}" for name, value in series.items())


def _alike(tests):
    """Verdict and p on "each difference is 0": none is ever shown to be, but one that is not refutes it."""
    p = float(holm([test["p"] for test in tests]).min())
    return (FAILS if p < SIGNIFICANT else UNDECIDED), p


def _never_negative(values, claim):
    """By the share of resamples in which just the claimed statistics score above 0 in every layer."""
    statistics, claimed = rows_of(values, "layer"), claim.order[0]
    positive = np.all([(terms(values, score) > 0).all(-1) for score in SCORES], axis=0)  # (1 + resamples, statistics)
    same = (positive == [name in claimed for name in statistics]).all(1)
    p = min(1.0, 2 * (1 + min(same[1:].sum(), (~same[1:]).sum())) / len(same))
    verdict = UNDECIDED if p >= SIGNIFICANT else HOLDS if same[0] else FAILS
    ours = [name for name, above in zip(statistics, positive[0], strict=True) if above]
    return f"above 0 in every layer: {', '.join(ours) or 'none'}", verdict, p
