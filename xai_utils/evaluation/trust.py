"""Which method to trust for one network on one set of images: what a run's scores and sanity checks leave.

A method may be trusted if it is better than every control on insertion and on deletion, paired by image, and if its
maps change when the network forgets. What passes is ranked by insertion minus deletion of the same image (the overall
score of Zhang et al. 2021, Group-CAM); methods that are not significantly below the best are level with it. Significant
is p < 0.05 after Holm's correction for the number of methods that are compared with one rival, as in all tables.
"""

from html import escape
from itertools import count
from typing import NamedTuple

import pandas

from xai_utils.evaluation.scores import compare_methods
from xai_utils.evaluation.tables import SIGNIFICANT
from xai_utils.metrics import METRICS
from xai_utils.metrics.statistics import summary

CURVES = ("insertion", "deletion")
OVERALL = "insertion minus deletion"
BEST, LEVEL, BELOW = "best", "level with the best", "below the best"
WEAK, BLIND = "not above every control", "does not follow the network"
ORDER = [BEST, LEVEL, BELOW, WEAK, BLIND]
NAMED, ROWS = 3, 10  # methods in a sentence, rows of the table
PLACES = 5


class Trust(NamedTuple):
    """What to trust. `table`: a row per method, in the order of `ORDER` and then of the means, with the columns
    overall (insertion minus deletion), low, high, insertion and deletion (controls beaten), follows, passes, standing.
    """

    table: pandas.DataFrame
    controls: list[str]
    images: int
    checked: bool

    @property
    def level(self) -> list[str]:
        """The best method and those not significantly below it, in the order of their means; none where none passes."""
        return list(self.table.index[self.table["standing"].isin((BEST, LEVEL))])

    @property
    def cheapest(self) -> str | None:
        """The one of `level` with the fewest passes, the better one where two cost the same."""
        return min(self.level, key=lambda method: self.table.loc[method, "passes"], default=None)


def of_run(frame, passes, checked, *, controls, seed, **intervals) -> Trust:
    """What to trust, from `scores.read_scores`, the `passes` of the maps and the checks of `sanity_tables.of_rows`.

    `checked` (row -> `sanity.Sanity`) is empty where nothing was checked. `intervals`: confidence and resamples.
    ValueError where insertion, deletion, every control or every method is missing.
    """
    lacking = [name for name in CURVES if name not in frame or frame[name].isna().all()]
    controls = [name for name in controls if name in set(frame["method"])]
    methods = [name for name in frame["method"].unique() if name not in controls]
    lacking += ["a control"] * (not controls) + ["a method"] * (not methods)
    if lacking:
        raise ValueError(f"no advice on what to trust: {', '.join(lacking)} was not scored")
    frame = frame.assign(**{OVERALL: frame["insertion"] - frame["deletion"]})
    values = frame.pivot(index="image", columns="method", values=OVERALL).dropna()  # the same images for all
    table = pandas.DataFrame(index=pandas.Index(methods, name="method"))
    for method in methods:
        about = summary(values[method].to_numpy(), seed, **intervals)
        shown = (round(about[name], PLACES) for name in ("mean", "low", "high"))  # rounded once: all say the same
        table.loc[method, ["overall", "low", "high"]] = list(shown)
    for name in CURVES:
        table[name] = sum(_better(frame, name, methods, control, seed) for control in controls)
    table["follows"] = [checked[method].verdict if method in checked else "not checked" for method in methods]
    table["passes"] = [round(passes[method], PLACES) for method in methods]
    table["standing"] = BELOW
    table.loc[(table[list(CURVES)] < len(controls)).any(axis=1), "standing"] = WEAK
    table.loc[table["follows"] == "does not depend on the model", "standing"] = BLIND
    table = table.sort_values("overall", ascending=False, kind="stable")
    if passing := list(table.index[table["standing"] == BELOW]):
        worse = _better(frame, OVERALL, passing[1:], passing[0], seed, sign=-1)
        table.loc[[name for name in passing[1:] if not worse[name]], "standing"] = LEVEL
        table.loc[passing[0], "standing"] = BEST
    table = table.loc[table["standing"].map(ORDER.index).sort_values(kind="stable").index]
    return Trust(table, controls, len(values), bool(checked))


def _better(frame, name, methods, rival, seed, *, sign=None) -> pandas.Series:
    """Whether each method is significantly better than `rival` in the column `name` (`sign` -1: below it)."""
    found = pandas.Series(False, index=pandas.Index(methods, name="method"))
    if methods:
        sign = sign or (1 if METRICS[name].higher_is_better else -1)
        tests = compare_methods(frame[frame["method"].isin([*methods, rival])], name, reference=rival, seed=seed)
        found |= (sign * tests["difference"] > 0) & (tests.get("p_holm", tests["p"]) < SIGNIFICANT)
    return found


def sentences(trust: Trust) -> list[str]:
    """Two to four sentences made from the numbers, names of methods in backquotes."""
    table, level, all_methods = trust.table, trust.level, len(trust.table)
    said = []
    if level:
        first = table.loc[level[0]]
        said.append(
            f"On these {trust.images} images `{level[0]}` explains this network best: insertion minus deletion is "
            f"{first['overall']:.3f} [{first['low']:.3f}, {first['high']:.3f}]."
        )
        others, below = level[1:], int((table["standing"] == BELOW).sum())
        if others:
            told = f"{_first(others, NAMED - 1)} {'is' if len(others) == 1 else 'are'} not significantly worse"
            cost = _passes(table.loc[trust.cheapest, "passes"])
            said.append(f"{told}; of these {len(level)} `{trust.cheapest}` is the cheapest, {cost} a map.")
        else:
            beside = f"all {below} others that pass are" if below > 1 else "the other one that passes is"
            beside = f"{beside} significantly worse" if below else "no other method passes"
            said.append(f"It costs {_passes(first['passes'])} a map; {beside}.")
    else:
        said.append(
            f"On these {trust.images} images none of the {all_methods} methods can be trusted: none is better than "
            f"each control ({', '.join(trust.controls)}) on insertion and on deletion and follows the network."
        )
    left = {each: list(table.index[table["standing"] == each]) for each in (WEAK, BLIND)}
    told = []
    if names := left[WEAK]:
        are = "is" if len(names) == 1 else "are"
        told.append(f"{len(names)} of {all_methods} methods {are} {WEAK} ({_first(names)})")
    if names := left[BLIND]:
        told.append(
            f"{_listed(names)} {'makes' if len(names) == 1 else 'make'} nearly the same maps of a network that "
            "has forgotten everything"
        )
    if told and level:
        said.append(f"Not to be trusted: {'; '.join(told)}.")
    needed = next(number for number in count(1) if 2 / 2**number * all_methods < SIGNIFICANT)  # all signs alike
    if trust.images < needed:
        said.append(
            f"{trust.images} images are too few for {all_methods} comparisons: {needed} are the least that can show a "
            "difference."
        )
    if not trust.checked:
        said.append("Whether maps follow the network was not checked (sanity_images is 0).")
    return said


def _listed(names) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _first(names, most=NAMED) -> str:
    """The first names, and how many more there are."""
    return _listed(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _passes(number) -> str:
    return f"{number:.3g} pass{'' if f'{number:.3g}' == '1' else 'es'}"


def told(trust: Trust) -> dict:
    """The advice as plain JSON: methods level with the best, the cheapest of them, the sentences, a row per method."""
    table = trust.table[["overall", "low", "high", "passes", "standing"]].to_dict("index")
    return {"level": trust.level, "cheapest": trust.cheapest, "sentences": sentences(trust), "table": table}


def prose(said: list[str]) -> str:
    """Sentences as HTML: what stands in backquotes as code, all else as text."""
    parts = escape(" ".join(said)).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def html(trust: Trust) -> str:
    """The sentences, and a table of the first ROWS methods: HTML; names appear as text."""
    marks = {
        "depends on the model": "✓",
        "depends on its own network alone": "(✓)",
        "does not depend on the model": "✗",
    }
    heads = ("method", "standing", "insertion − deletion ↑", "controls beaten", "follows the network", "passes")
    lines = ["<tr>", *(f"<th>{escape(head)}</th>" for head in heads), "</tr></thead><tbody>"]
    most = len(CURVES) * len(trust.controls)
    for method, row in trust.table.head(ROWS).iterrows():
        cells = [
            escape(row["standing"]),
            f"{row['overall']:.3f}<br><small>{row['low']:.3f} – {row['high']:.3f}</small>",
            f"{row['insertion'] + row['deletion']} of {most}",
            marks.get(row["follows"], "not checked"),
            f"{row['passes']:.3g}",
        ]
        lines.append(f"<tr><th>{escape(method)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    rest = len(trust.table) - ROWS
    below = f"<p>{rest} more methods stand below.</p>" if rest > 0 else ""
    return f"<p>{prose(sentences(trust))}</p><table><thead>{''.join(lines)}</tbody></table>{below}"
