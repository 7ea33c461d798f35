"""FastCAM's tables: ours with intervals, the printed numbers, and what the paper's own tables give instead.

Ours come from the records of `retraining.experiment`, one per training: level ("layer", "image"), mode ("keep" is KAR,
"remove" is ROAR), row (a statistic, a method, or "random"), layer or percent, repetition, and the hits, 0 or 1 per
held-out image. A *condition* is (level, mode, row, place), where place is the layer or the percentage. Tables are
frames whose columns are (group, part); parts are value, low, high (ours), printed, recomputed, or a data set's name.
"""

from html import escape
from pathlib import Path

import numpy as np
import pandas
import torch

from xai_utils.explainers.activation_statistics import STATISTICS
from xai_utils.files import write_text
from xai_utils.retraining import scores

MODES = {"keep": "KAR", "remove": "ROAR"}
DATASETS = ("ImageNet", "Places", "COWC")
SCORES = {"difference": scores.difference_terms, "information": scores.information_terms}
QUARTILES = ("top 25 %", "top 50 %", "top 75 %")
HALF_UNIT = 0.0051  # of the last of two printed decimals; a printed number further off contradicts its own table
BLOCK = 100  # resamples drawn at once: bounds the memory for tens of thousands of images
PRINTED = {  # ours -> how it is printed in one table or another
    "random": ("Random", "Rand"),
    "best": ("Best",),
    "worst": ("Worst",),
    "smoe_scale": ("SMOE Scale",),
    "standard_deviation": ("Standard Dev", "STD"),
    "mean": ("Normal Mean", "Mean"),
    "shannon_entropy": ("Shannon Ent", "Shanon Ent"),
    "log_normal_mean": ("Log Normal Mean",),
    "log_normal_entropy": ("Log Normal Ent", "Log Normal ENT"),
    "truncated_normal_mean": ("Trunc Normal Mean",),
    "truncated_normal_standard_deviation": ("Trunc Normal Std",),
    "truncated_normal_entropy": ("Trunc Normal Ent",),
    "integrated_gradients": ("Integrated Grad [26]", "Integrated Grad."),
    "gradient": ("Gradient [22]", "Gradient"),
    "guided_backprop": ("Guided Backprop [25]", "Guided Backprop"),
    "grad_cam_plus_plus": ("GradCAM++ [2]", "GradCAM++"),
    "truncated_normal_entropy_equal": (
        "Trunc Normal Ent + Layer Weights [1,1,1,1,1]",
        "Trunc Normal Ent + Weights [1,…,1]",
    ),
    "smoe_equal": ("SMOE Scale + Layer Weights [1,1,1,1,1]", "SMOE Scale + Layer Weights [1,…,1]"),
    "smoe_linear": ("SMOE Scale + Layer Weights [1,2,3,4,5]", "SMOE Scale + Layer Weights [1,…,5]"),
    "standard_deviation_prior": ("Normal Std + Prior Layer Weights", "Normal Std + Prior L. Weights"),
    "truncated_normal_entropy_prior": ("Trunc Normal Ent + Prior Layer Weights", "Trunc Normal Ent + Prior L. Weights"),
    "smoe_prior": ("SMOE Scale + Prior Layer Weights",),
    "smooth_integrated_gradients": ("Integrated Grad -w- SmoothGrad Sq.", "Integrated Grad. -w- SmoothGrad Sq."),
    "smooth_guided_backprop": ("Guided Backprop -w- SmoothGrad Sq.",),
    "smooth_gradient": ("Gradient -w- SmoothGrad Sq.",),
    "fastcam": ("SMOE Scale + Prior Wts. -w- GradCAM++", "SMOE Scale -w- GradCAM++"),
}
NAMES = {name: ours for ours, names in PRINTED.items() for name in names}


def printed(published, table: str) -> pandas.DataFrame:
    """A table of the paper from the folder `published`, its rows under our names."""
    frame = pandas.read_csv(Path(published) / f"fastcam_{table}.csv")
    return frame.assign(method=frame["method"].map(NAMES)).set_index("method")


COLUMNS = ("level", "mode", "row", "place", "repetition", "hits")


def write_records(path, records) -> None:
    """As tab separated text: a line per training with its condition, its repetition, and its hits as 0 and 1."""
    lines = [COLUMNS]
    for record in records:
        place = next((record[name] for name in ("layer", "percent") if record[name] is not None), "")
        hits = "".join("01"[bool(hit)] for hit in record["hits"])
        lines.append((record["level"], record["mode"], record["row"], place, record["repetition"], hits))
    write_text(Path(path), "".join("\t".join(map(str, line)) + "\n" for line in lines))


def read_records(path) -> list[dict]:
    """The records that `write_records` wrote, but for the passes."""
    frame, found = pandas.read_csv(path, sep="\t", dtype={"place": str, "hits": str}, keep_default_na=False), []
    for line in frame.to_dict("records"):
        place, hits = line.pop("place"), [int(hit) for hit in line.pop("hits")]
        of_layer = line["level"] == "layer"
        places = {"layer": place if of_layer else None, "percent": int(place) if place and not of_layer else None}
        found.append(line | places | {"hits": hits})
    return found


def resampled(records, *, seed, resamples=2000) -> dict:
    """Top-1 of each condition as (1 + resamples,): first as measured, then with images and repetitions resampled.

    All conditions of a level share each resample, for scores are sums over conditions and all are tested on the same
    images. With a single repetition the resamples vary over the images only.
    """
    values = {}
    for level in dict.fromkeys(record["level"] for record in records):
        hits = {}
        for record in records:
            if record["level"] == level:
                place = record["layer"] if level == "layer" else record["percent"]
                hits.setdefault((level, record["mode"], record["row"], place), []).append(record["hits"])
        shapes = {(len(each), len(one)) for each in hits.values() for one in each}
        if len(shapes) > 1:
            raise ValueError(
                f"the {level} conditions have different numbers of (repetitions, images): {sorted(shapes)}; "
                "resampling needs each condition on the same images: run the missing trainings"
            )
        array = np.array(list(hits.values()), dtype=np.float32)  # (conditions, repetitions, images)
        _, repetitions, images = array.shape
        generator, columns = np.random.default_rng(seed), [array.mean((1, 2), dtype=np.float64)[:, None]]
        for start in range(0, resamples, BLOCK):
            count = min(BLOCK, resamples - start)
            image_share = _drawn(generator, images, count).astype(np.float32)  # (images, count)
            by_repetition = array @ image_share  # (conditions, repetitions, count)
            drawn = (by_repetition * _drawn(generator, repetitions, count)).sum(1)
            columns.append(drawn.clip(0, 1))  # float32 shares of all hits may add up to a little more than 1
        values |= dict(zip(hits, np.concatenate(columns, 1), strict=True))
    return values


def _drawn(generator, things, count):
    """How large a share of each resample each thing has: (things, count), columns sum to 1."""
    return generator.multinomial(things, np.full(things, 1 / things), size=count).T / things


def rows_of(values: dict, level: str) -> list[str]:
    """The rows of a level without "random", in the order of the records."""
    return [row for row in dict.fromkeys(key[2] for key in values if key[0] == level) if row != "random"]


def places_of(values: dict, level: str) -> list:
    """The layers, or the percentages, of a level."""
    return list(dict.fromkeys(key[3] for key in values if key[0] == level))


def _array(values, level, mode, rows):
    """(1 + resamples, rows, places)"""
    places = places_of(values, level)
    return np.moveaxis(np.array([[values[level, mode, row, place] for place in places] for row in rows]), -1, 0)


def sums(values: dict, row: str) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 of one row summed over the percentages, KAR and ROAR, each (1 + resamples,): Table 2."""
    return tuple(sum(values["image", mode, row, place] for place in places_of(values, "image")) for mode in MODES)


def terms(values: dict, score: str) -> np.ndarray:
    """The term of each layer in the difference or information score: (1 + resamples, statistics, layers)."""
    rows = rows_of(values, "layer")
    arrays = [_array(values, "layer", mode, which) for which in (rows, ["random"]) for mode in MODES]
    return SCORES[score](*arrays)


def printed_terms(published, score: str) -> dict[str, pandas.DataFrame]:
    """The same terms from the printed Table 4: data set -> frame statistics x layers."""
    result = {}
    for name, frame in printed(published, "table4_layer_roar_kar").groupby("dataset", sort=False):
        kar, roar = (frame.filter(regex=f"^{mode}_") / 100 for mode in ("kar", "roar"))
        rows = [row for row in frame.index if row not in ("random", "best", "worst")]
        arrays = [part.loc[which].to_numpy() for which in (rows, ["random"]) for part in (kar, roar)]
        result[name] = pandas.DataFrame(SCORES[score](*arrays), index=rows)
    return result


def interval(values: np.ndarray, confidence: float) -> dict:
    """value, low, high of (1 + resamples, …): the percentile interval of the resamples, NaN where there is none."""
    if len(values) == 1:
        return {"value": values[0], "low": np.nan, "high": np.nan}
    low, high = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {"value": values[0], "low": low, "high": high}


def lines(values: dict, what: str, rows, *, confidence=0.95) -> dict:
    """What a figure draws of `rows`: row -> (places, value, low, high).

    `what`: a mode, for the top-1 of image-level networks (Figure 5), or a score, for its terms by layer (Figure 4).
    """
    if what in SCORES:
        places, known = places_of(values, "layer"), rows_of(values, "layer")
        drawn = terms(values, what)[:, [known.index(row) for row in rows]]
    else:
        places, drawn = places_of(values, "image"), _array(values, "image", what, rows)
    parts = interval(drawn, confidence).values()
    return {row: (places, *(part[number] for part in parts)) for number, row in enumerate(rows)}


def _frame(index, groups: dict) -> pandas.DataFrame:
    columns = {
        (group, part): numbers.reindex(index).to_numpy() if isinstance(numbers, pandas.Series) else numbers
        for group, parts in groups.items()
        for part, numbers in parts.items()
    }
    return pandas.DataFrame(columns, index=index)


def accuracies(values: dict, published, level: str, *, confidence=0.95) -> pandas.DataFrame:
    """Tables 4 (layers; with the best and worst statistic) and 5 (images): top-1 in percent, rows (mode, row)."""
    rows, places, frames = ["random", *rows_of(values, level)], places_of(values, level), []
    for mode, label in MODES.items():
        ours = 100 * _array(values, level, mode, rows)  # (1 + resamples, rows, places)
        index = list(rows)
        if level == "layer":
            best, worst = (np.max, np.min) if mode == "keep" else (np.min, np.max)
            ours = np.concatenate([ours, *(f(ours[:, 1:], axis=1, keepdims=True) for f in (best, worst))], axis=1)
            index += ["best", "worst"]
            table = printed(published, "table4_layer_roar_kar")
            paper = {name: table[table["dataset"] == name] for name in DATASETS}
        else:
            paper = {"paper": printed(published, "table5_image_roar_kar")}
        groups = {}
        for number, place in enumerate(places):
            column = f"{label.lower()}_{f'l{number + 1}' if level == 'layer' else place}"
            groups[place if level == "layer" else f"{place} %"] = interval(ours[:, :, number], confidence) | {
                name: frame[column] for name, frame in paper.items() if column in frame
            }
        frames.append(_frame(index, groups).set_axis(pandas.MultiIndex.from_product([[label], index])))
    return pandas.concat(frames)


def layer_scores(values: dict, published, score: str, *, confidence=0.95) -> pandas.DataFrame:
    """Table 1, one of its two halves: ours, and per data set the printed score beside that of Table 4; best first."""
    own, short = terms(values, score).sum(-1), {"difference": "diff", "information": "info"}[score]
    paper = printed(published, "table1_scores_published")
    recomputed = {name: frame.sum(axis=1) for name, frame in printed_terms(published, score).items()}
    recomputed["average"] = sum(recomputed.values()) / len(recomputed)
    groups = {"ours": interval(own, confidence)}
    for name, column in zip((*DATASETS, "average"), ("imagenet", "places", "cowc", "avg"), strict=True):
        groups[name] = {"printed": paper[f"{short}_{column}"], "recomputed": recomputed[name]}
    frame = _frame(rows_of(values, "layer"), groups)
    return frame.sort_values(("ours", "value"), ascending=False, kind="stable")


def quartiles(values: dict, published, score: str, *, confidence=0.95) -> pandas.DataFrame:
    """Table 7, one of its two halves: percent of the conditions in which a statistic is among the best 25, 50, 75 %."""
    own = np.array([100 * scores.quartile_ranking(each) for each in terms(values, score)])
    paper, short = printed(published, "table7_quartiles_published"), score[:4]
    conditions = pandas.concat(printed_terms(published, score), axis=1)
    recomputed = pandas.DataFrame(100 * scores.quartile_ranking(conditions.to_numpy()), index=conditions.index)
    groups = {
        name: interval(own[:, :, number], confidence)
        | {"printed": paper[f"{short}_top{(25, 50, 75)[number]}"], "recomputed": recomputed[number]}
        for number, name in enumerate(QUARTILES)
    }
    return _frame(rows_of(values, "layer"), groups)


def totals(values: dict, published, *, passes: dict | None = None, confidence=0.95) -> pandas.DataFrame:
    """Table 2: sums of top-1 over the percentages, KAR, ROAR (negative), and both; what a map costs; best first.

    `passes`: row -> counted passes of a map, beside which the paper's word for the speed stands.
    """
    rows = ["random", *rows_of(values, "image")]
    kar, roar = (np.stack(each, 1) for each in zip(*(sums(values, row) for row in rows), strict=True))
    paper, table = printed(published, "table2_totals"), printed(published, "table5_image_roar_kar") / 100
    recomputed = {
        "KAR": table.filter(like="kar_").sum(axis=1),
        "ROAR": -table.filter(regex="^roar_").sum(axis=1),
    }
    recomputed["SUM"] = recomputed["KAR"] + recomputed["ROAR"]
    columns = {"KAR": "kar_sum", "ROAR": "roar_sum_negated", "SUM": "sum"}
    ours = {"KAR": kar, "ROAR": -roar, "SUM": kar - roar}
    groups = {
        name: interval(ours[name], confidence) | {"printed": paper[column], "recomputed": recomputed[name]}
        for name, column in columns.items()
    }
    groups["passes"] = {"value": pandas.Series(passes or {}, dtype=float), "printed": paper["speed"]}
    groups["resolution"] = {"printed": paper["resolution"]}
    return _frame(rows, groups).sort_values(("SUM", "value"), ascending=False, kind="stable")


def failures(values: dict, published) -> pandas.DataFrame:
    """The paper's countable failure cases: conditions in the bottom quartile, and those that score 0 or less.

    Each as "ours of the layers / Table 4's of 15", the printed conditions being 3 data sets x 5 layers.
    """
    columns, rows = {}, rows_of(values, "layer")
    for score in SCORES:
        paper, own = pandas.concat(printed_terms(published, score), axis=1), terms(values, score)[0]
        pairs = zip(scores.failure_cases(own), scores.failure_cases(paper.to_numpy()), strict=True)
        for kind, (ours, theirs) in zip(("bottom quartile", "0 or less"), pairs, strict=True):
            theirs = dict(zip(paper.index, theirs, strict=True))
            columns[score, kind] = [
                f"{count} of {own.shape[1]} / " + (f"{theirs[row]} of {paper.shape[1]}" if row in theirs else "–")
                for row, count in zip(rows, ours, strict=True)
            ]
    return pandas.DataFrame(columns, index=rows)


def smoe_examples(published) -> pandas.DataFrame:
    """Table 3, computed: mean, standard deviation and SMOE Scale of columns that alternate two values, beside print.

    The table's deviation is the population's, not the unbiased one of the maps.
    """
    table = pandas.read_csv(Path(published) / "fastcam_table3_smoe_examples.csv")
    pairs = torch.tensor(table[["value_a", "value_b"]].to_numpy())[:, :, None, None]  # (N, 2, 1, 1)
    columns = {
        "mean": STATISTICS["mean"](pairs),
        "std": pairs.std(1, correction=0),
        "smoe_scale": STATISTICS["smoe_scale"](pairs),
    }
    index = [f"{a:g}, {b:g}, {a:g}, {b:g}, …" for a, b in table[["value_a", "value_b"]].to_numpy()]
    return _frame(index, {name: {"value": ours.flatten().numpy().astype(float), "printed": table[name].to_numpy()}
                          for name, ours in columns.items()})  # fmt: skip


def contradictions(frame: pandas.DataFrame) -> pandas.Series:
    """For each row in words: which printed cells are not what the paper's own tables give."""
    groups = [group for group in frame.columns.unique(0) if "recomputed" in frame[group]]
    texts = {
        row: "; ".join(
            f"{group}: {frame.loc[row, (group, 'printed')]:.2f}, not {frame.loc[row, (group, 'recomputed')]:.4f}"
            for group in groups
            if abs(frame.loc[row, (group, "printed")] - frame.loc[row, (group, "recomputed")]) > HALF_UNIT
        )
        for row in frame.index
    }
    return pandas.Series(texts, name="contradictions").reindex(frame.index)


def html(frame: pandas.DataFrame, *, digits: int) -> str:
    """A table as HTML: ours and its interval, what is printed below, and last the contradictions in words."""
    shown = {}
    for group in frame.columns.unique(0):
        part, texts = frame[group], []
        others = [name for name in part if name not in ("value", "low", "high", "recomputed")]
        for _, row in part.iterrows():
            paper = [row[name] for name in others if pandas.notna(row[name])]
            paper = " / ".join(each if isinstance(each, str) else f"{each:.{max(2, digits)}f}" for each in paper)
            if "value" in part:
                ours = f"{row['value']:.{digits}f}" if pandas.notna(row["value"]) else ""
                if "low" in part:
                    ours += f" <small>{row['low']:.{digits}f} – {row['high']:.{digits}f}</small>"
                paper = f"{ours}<br><small>{paper}</small>" if paper else ours
            texts.append(paper)
        shown[group] = texts
    words = contradictions(frame)
    if any(words):
        shown["contradictions"] = [f"<small>{'<br>'.join(map(escape, text.split('; ')))}</small>" for text in words]
    table = pandas.DataFrame(shown, index=frame.index).rename(index=escape, columns=escape)  # rows are the user's words
    return table.to_html(escape=False, border=0)
