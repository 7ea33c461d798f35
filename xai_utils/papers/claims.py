"""What the papers, and we, claim of methods, by direction alone, and what a run, or several, say of it.

`CLAIMS` lists all of them, docs/papers.md too. Each is an order of methods. It holds where every method of one rank is
better than every one of the next on the same images, each pair tested at 5 % (an intersection-union test); it fails
where one pair is the other way round after Holm's correction for the pairs; else it is undecided. Of one pair the test
and the interval must agree (`statistics.decide_all`).

What was trained once says nothing of a second training: of a method with a trained part there is no verdict before
`TRAININGS` runs with other seeds, and those are tested over runs and images (`statistics.paired_test`).
"""

import json
from collections import Counter
from html import escape
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from xai_utils import runs
from xai_utils.explainers import EXPLAINERS
from xai_utils.metrics import METRICS
from xai_utils.metrics.statistics import FAILS, HOLDS, UNDECIDED, decide_all, holm, paired_test

TRAININGS = 3
TOO_FEW = "one training"  # or two
NOT_RUN = "not run"  # the stage that decides it is switched off
OTHER_RUN = "not of this run"
SCORES, PASSES, RETRAINING, GATES = "scores", "passes", "remove_and_retrain", "train_attention"


class Claim(NamedTuple):
    """A sentence of a paper in our words, where it is in print, and the order of methods that it means.

    `source`: what decides it, the scores of every image, counted forward passes, or the stage of that name. Each rank
    of `order` is above the next in `metric` (`sign` 1), or below it (-1).
    """

    paper: str
    text: str
    place: str
    source: str
    metric: str
    sign: int
    order: tuple[tuple[str, ...], ...]

    @property
    def methods(self) -> list[str]:
        return [name for rank in self.order for name in rank]

    @property
    def told(self) -> list[str]:
        """The cells of its line in docs/papers.md: paper, claim, place, metric, and the order."""
        ranks = (" > " if self.sign else " = ").join(", ".join(rank) for rank in self.order)
        return [self.paper, self.text, self.place, f"{self.metric} {'=↑↓'[self.sign]}", ranks]


GRADIENTS = ("gradient", "smooth_grad", "integrated_gradients")
CAMS = ("grad_cam", "grad_cam_plus_plus")
NO_GRADIENTS = ("dgle_cf", "dgle_bf", "mgnet", "meaningful_perturbation", *CAMS)
OURS, PAPERS = ("removal_effect",), ("akd", "dgle_cf", "fastcam", "amg", "grad_cam")
ONE_PASS = (*PAPERS, "akd_unoptimised", "dgle_bf", "mgnet", "fast_shap", "grad_cam_plus_plus", "xgrad_cam")
ONE_PASS += ("smoe", "smoe_equal", "standard_deviation")
FAMILY = (*CAMS, "smooth_grad_cam_plus_plus", "xgrad_cam")
STATISTICS = (
    "standard_deviation", "mean", "shannon_entropy", "log_normal_mean", "log_normal_entropy", "truncated_normal_mean",
    "truncated_normal_standard_deviation", "truncated_normal_entropy",
)  # fmt: skip
MAPS = (
    "random", "gradient", "guided_backprop", "integrated_gradients", "grad_cam_plus_plus",
    "truncated_normal_entropy_equal", "smoe_equal", "smoe_linear", "standard_deviation_prior",
    "truncated_normal_entropy_prior", "smoe_prior", "smooth_integrated_gradients", "smooth_guided_backprop",
    "smooth_gradient",
)  # fmt: skip


def _but(left_out, methods):
    return tuple(name for name in methods if name != left_out)


def _scored(paper, place, metric, sign, claims):
    return tuple(Claim(paper, text, place, SCORES, metric, sign, order) for text, order in claims.items())


_AKD_ROWS = ("akd", "akd_unoptimised", "grad_cam", "lime")  # of its Table 4, below RISE
_DGLE_ROWS = (*NO_GRADIENTS, *GRADIENTS)
CLAIMS = (
    *_scored("AKD", "Table 4", "insertion", 1, {
        "RISE inserts best": (("rise",), _AKD_ROWS),
        "AKD is second on insertion": (("rise",), ("akd",), _but("akd", _AKD_ROWS)),
        "the tuned λ inserts better than the untuned": (("akd",), ("akd_unoptimised",)),
    }),
    *_scored("AKD", "Table 4", "deletion", -1, {
        "RISE deletes best": (("rise",), _AKD_ROWS),
        "AKD deletes better than Grad-CAM and LIME": (("akd",), ("grad_cam", "lime")),
        "the tuned λ deletes better than the untuned": (("akd",), ("akd_unoptimised",)),
    }),
    *_scored("AKD", "Table 3", "mean_intensity", -1, {"AKD's maps are sparser": (("akd",), ("rise", "grad_cam"))}),
    Claim("AKD", "AKD is faster than RISE", "Table 3", PASSES, "passes", -1, (("akd",), ("rise",))),
    Claim("FastCAM", "SMOE Scale has the highest difference score", "Table 1", RETRAINING, "difference score", 1,
          (("smoe_scale",), STATISTICS)),
    Claim("FastCAM", "SMOE Scale has the highest information score", "Table 1", RETRAINING, "information score", 1,
          (("smoe_scale",), STATISTICS)),
    Claim("FastCAM", "only SMOE Scale and Shannon entropy never score 0 or less", "Table 4", RETRAINING,
          "both scores, layer by layer", 1, (("smoe_scale", "shannon_entropy"), _but("shannon_entropy", STATISTICS))),
    Claim("FastCAM", "FastCAM has the highest SUM", "Table 2", RETRAINING, "SUM", 1, (("fastcam",), MAPS)),
    Claim("FastCAM", "smoe_prior is not below smoe_linear in SUM", "Table 2", RETRAINING, "SUM", 1,
          (("smoe_prior",), ("smoe_linear",))),
    Claim("FastCAM", "smoe_linear is not below smoe_equal in SUM", "Table 2", RETRAINING, "SUM", 1,
          (("smoe_linear",), ("smoe_equal",))),
    Claim("FastCAM", "gradients without SmoothGrad² score like random in SUM", "Table 2", RETRAINING, "SUM", 0,
          (("gradient", "guided_backprop", "integrated_gradients"), ("random",))),
    Claim("FastCAM", "SMOE Scale costs less than a gradient and SmoothGrad²", "Table 6", PASSES, "passes", -1,
          (("smoe",), ("gradient", "smooth_grad_squared"))),
    *_scored("DGLE", "Table 1", "faithfulness", 1, {
        "CF is more faithful than BF": (("dgle_cf",), ("dgle_bf",)),
        "CF is the most faithful": (("dgle_cf",), _but("dgle_cf", _DGLE_ROWS)),
        "BF and CF are more faithful than MGnet": (("dgle_bf", "dgle_cf"), ("mgnet",)),
        "gradient methods are the least faithful": (NO_GRADIENTS, GRADIENTS),
    }),
    *_scored("DGLE", "Table 2", "box_average_precision", 1, {
        "BF explains better than CF (M_I)": (("dgle_bf",), ("dgle_cf",)),
        "BF explains best (M_I)": (("dgle_bf",), _but("dgle_bf", _DGLE_ROWS)),
        "BF and CF explain better than MGnet (M_I)": (("dgle_bf", "dgle_cf"), ("mgnet",)),
        "gradient methods explain worst (M_I)": (NO_GRADIENTS, GRADIENTS),
        "Grad-CAM++ explains better than Grad-CAM (M_I)": (("grad_cam_plus_plus",), ("grad_cam",)),
    }),
    *_scored("DGLE", "Table 3", "pointing_game", 1, {
        "BF points better than CF": (("dgle_bf",), ("dgle_cf",)),
        "MGnet points best": (("mgnet",), _but("mgnet", _DGLE_ROWS)),
        "Grad-CAM++ points better than Grad-CAM": (("grad_cam_plus_plus",), ("grad_cam",)),
    }),
    # the same of mosaics, where no box is needed and no object lies in the middle
    *_scored("DGLE", "Table 3, of mosaics", "grid_pointing", 1, {
        "BF points better than CF, in mosaics": (("dgle_bf",), ("dgle_cf",)),
        "MGnet points best, in mosaics": (("mgnet",), _but("mgnet", _DGLE_ROWS)),
    }),
    Claim("AMG", "AMG has the lowest average drop", "Table 3", GATES, "average_drop", -1, (("amg",), FAMILY)),
    Claim("AMG", "AMG has the highest increase", "Table 3", GATES, "percent_increase", 1, (("amg",), FAMILY)),
    *(Claim("AMG", f"AMG has the highest logit with {at} % in", "Table 4", GATES, f"logit_{at}", 1, (("amg",), FAMILY))
      for at in (5, 10, 20, 25, 50)),
    Claim("AMG", "AMG is slower than the others", "text", PASSES, "passes", 1, (("amg",), FAMILY)),
    *_scored("AMG", "Figures 6 and 7, of mosaics", "grid_pointing", 1, {
        "AMG localises better than Grad-CAM, in mosaics": (("amg",), ("grad_cam",)),
    }),
    # what the removal effect is to be better at
    *_scored("this repository", "chapter 06", "insertion", 1, {
        "the removal effect inserts better than RISE": (OURS, ("rise",)),
    }),
    *_scored("this repository", "chapter 06", "deletion", -1, {
        "the removal effect deletes best of one pass": (OURS, ONE_PASS),
    }),
    *_scored("this repository", "chapter 06", "part_truth", 1, {
        "the removal effect lies most on the parts that decide": (OURS, PAPERS),
    }),
    # by ranks, which no exponential moves
    *_scored("this repository", "chapter 06", "part_truth_top", 1, {
        "the removal effect's highest pixels lie most on the parts that decide": (OURS, PAPERS),
    }),
    *_scored("this repository", "chapter 06", "grid_pointing", 1, {
        "the removal effect localises best, in mosaics": (OURS, PAPERS),
    }),
)  # fmt: skip


def of_scores(frame, *, seed, **intervals) -> list[dict]:
    """`of_runs` of one run."""
    return of_runs({"": frame}, seed=seed, **intervals)


def of_runs(frames: dict, *, seed, **intervals) -> list[dict]:
    """The claims that scores decide: rows paper, claim, place, here, verdict, p, p_holm.

    `frames`: name of a run -> its `scores.score_frame`, of runs on the same data with other seeds. p is None where
    there is no verdict for want of trainings; p_holm is corrected for the number of rows. A claim of which a rank was
    not run is left out. `intervals`: confidence, resamples and permutations of `statistics.paired_test`.
    """
    claims = [claim for claim in CLAIMS if claim.source == SCORES]
    rows = [row_of(claim, {"": list(frames.values())}, seed=seed, **intervals) for claim in claims]
    return corrected([row for row in rows if row])


def row_of(claim, settings: dict, *, seed, **intervals) -> dict | None:
    """What the frames of one or more runs, for each of several settings (name -> list of frames), say of a claim.

    It must hold in all settings: their pairs count as those of one claim. Columns of a frame: image, method, and the
    claim's metric. All methods stand on the same images, those that every one of them has a score of in every run.
    """
    told, tests, untold, heading = [], [], set(), _heading(claim)
    for setting, frames in settings.items():
        order, values = _values(claim, frames)
        if values is None:
            continue
        found = {
            (one, other): paired_test(values[one], values[other], seed=seed, **intervals)
            for above, below in pairwise(order)
            for one, other in product(above, below)
        }
        signed = {pair: _signed(test, claim.sign) for pair, test in found.items()}
        few = {pair: {name for name in pair if len(frames) < TRAININGS and _trained(name)} for pair in found}
        untold = untold.union(*few.values())
        tests += [(test, bool(few[pair])) for pair, test in signed.items()]
        weakest = max(signed, key=lambda pair: (_doubt(signed[pair]), -signed[pair]["difference"]))
        told.append(f"{setting or heading}: {' − '.join(weakest)} = {_gap(found[weakest], claim.metric)}")
    if not tests:
        return None
    verdict, p = decide_all([test for test, few in tests if not few]) if not all(few for _, few in tests) else ("", 1)
    if untold and verdict != FAILS:
        verdict, p = TOO_FEW, None
        told.append(f"a verdict on {', '.join(sorted(untold))} needs {TRAININGS} trainings, here: {len(frames)}")
    if len(tests) > len(settings):
        than = " above " if claim.sign > 0 else " below "
        told.append(f"the weakest of {len(found)}: {than.join(', '.join(rank) for rank in order)}")
    row = {"paper": claim.paper, "claim": claim.text, "place": claim.place, "here": "; ".join(told)}
    return row | {"verdict": verdict, "p": p}


def _values(claim, frames):
    """The order with those methods that were run, and method -> scores (runs, images); None where a rank is empty."""
    tables = []
    for frame in frames:
        if claim.metric not in frame:
            return (), None
        made = frame[frame["failed"] == 0] if "failed" in frame else frame
        table = made.pivot(index="image", columns="method", values=claim.metric)
        tables.append(table[[name for name in claim.methods if name in table]].dropna(axis=1, how="all"))
    order = [[name for name in rank if all(name in table for table in tables)] for rank in claim.order]
    methods = [name for rank in order for name in rank]
    joined = pandas.concat({place: table[methods] for place, table in enumerate(tables)}, axis=1).dropna()
    if not all(order) or joined.empty:
        return order, None
    return order, {name: joined.xs(name, axis=1, level=1).to_numpy().T for name in methods}


def _trained(name):
    return name in EXPLAINERS and EXPLAINERS[name].part is not None


def _signed(test, sign):
    low, high = sorted((sign * test["low"], sign * test["high"]))
    return test | {"difference": sign * test["difference"], "low": low, "high": high}


def _doubt(test):
    """The one-sided p of "the difference is positive": the largest is that of the weakest pair."""
    return test["p"] / 2 if test["difference"] > 0 else 1 - test["p"] / 2


def _heading(claim):
    return METRICS[claim.metric].heading() if claim.metric in METRICS else claim.metric.replace("_", " ")


def _gap(test, metric):
    digits = 1 if metric in METRICS and METRICS[metric].unit == "percent" else 3
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*(test[k] for k in ("difference", "low", "high")), d=digits)


def of_passes(passes: dict) -> list[dict]:
    """The claims of cost, by counted forward passes of a map, which need no test; `passes`: method -> their number."""
    rows = []
    for claim in CLAIMS:
        [[one], others] = claim.order if claim.source == PASSES else [[None], ()]
        others = [name for name in others if name in passes]
        if one in passes and others:
            here = f"passes of a map, counted: {'; '.join(f'{name} {passes[name]:.5g}' for name in (one, *others))}"
            holds = all(claim.sign * (passes[one] - passes[name]) > 0 for name in others)
            row = {"paper": claim.paper, "claim": claim.text, "place": claim.place, "here": here}
            rows.append(row | {"verdict": HOLDS if holds else FAILS, "p": None})
    return rows


def of_reports(reports, run, stages=(RETRAINING, GATES)) -> list[dict]:
    """FastCAM's and AMG's claims, which their own `stages` decide: the "claims" of their JSON files in `reports`.

    In the place of those that are not of this `run` (runs.py) one row says so. Verdicts without a p are of earlier
    versions, which took one training for enough.
    """
    rows, places = [], {(claim.paper, claim.text): claim.place for claim in CLAIMS}
    for stage in stages:
        paper = {RETRAINING: "FastCAM", GATES: "AMG"}[stage]
        path = Path(reports) / f"{stage}.json"
        numbers = json.loads(path.read_bytes()) if path.is_file() else {"claims": {}, "run": run}
        if told := runs.difference(numbers.get("run"), run):
            here = f"{path.name} is of another run ({told}); run the stage {stage} again"
            row = {"paper": paper, "claim": "all of them", "place": "", "here": here}
            rows.append(row | {"verdict": OTHER_RUN, "p": None})
            continue
        for claim, found in numbers["claims"].items():
            about = {"paper": paper, "claim": claim, "place": places.get((paper, claim), "")}
            rows.append(about | {"here": found["here"], "verdict": found["verdict"], "p": found.get("p")})
            rows[-1] |= {} if "p" in found else {"verdict": TOO_FEW}
    return rows


def of_run(frame, passes, reports, run, *, stages=(RETRAINING, GATES), seed, **intervals) -> list[dict]:
    """All claims on one run, in the order of `CLAIMS`, p_holm corrected for all of them; arguments as of the others."""
    rows = of_scores(frame, seed=seed, **intervals) + of_passes(passes) + of_reports(reports, run, stages)
    places = {(claim.paper, claim.text): place for place, claim in enumerate(CLAIMS)}
    return corrected(sorted(rows, key=lambda row: places.get((row["paper"], row["claim"]), len(CLAIMS))))


def corrected(rows: list[dict]) -> list[dict]:
    """The rows with p_holm, Holm's p for as many claims as have one."""
    places = [place for place, row in enumerate(rows) if row["p"] is not None]
    found = dict(zip(places, holm([rows[place]["p"] for place in places]), strict=True))
    return [row | {"p_holm": float(found[place]) if place in found else None} for place, row in enumerate(rows)]


def html(rows: list[dict]) -> str:
    """The claims as an HTML table, each part of a cell on its own line; p on hover over the verdict."""
    lines = ['<table class="prose"><thead><tr><th>claim</th><th>verdict</th><th>here</th></tr></thead><tbody>']
    for row in rows:
        place = ", ".join(filter(None, (row["paper"], row["place"])))
        p = "" if row["p"] is None else f"p {p_text(row['p'])}, of all claims {p_text(row['p_holm'])} (Holm)"
        verdict = f'<td title="{escape(p)}">{escape(row["verdict"])}</td>'
        claim = f"<th>{escape(row['claim'])}<br><small>{escape(place)}</small></th>"
        lines.append(f"<tr>{claim}{verdict}<td>{_lines(row['here'])}</td></tr>")
    return "".join([*lines, "</tbody></table>"])


def _order(item):
    """Of a verdict and its count: holds, fails, undecided, then any other."""
    return (HOLDS, FAILS, UNDECIDED, item[0]).index(item[0])


def in_words(verdicts, whose="the papers") -> str:
    """How many of the claims hold, fail or are undecided, in one sentence, by their `verdicts`; "" where none is."""
    found = Counter(verdicts)
    number = found.total()
    few, other = found.pop(TOO_FEW, 0), found.pop(OTHER_RUN, 0)
    decided = sum(found.values())
    if not number:
        return ""
    if not decided and not other:
        return f"None of the {number} claims of {whose} has a verdict yet: what they are about was trained once."
    words = {HOLDS: ("holds", "hold"), FAILS: ("fails", "fail"), UNDECIDED: ("is undecided", "are undecided")}
    told = [f"{count} {words.get(each, (each, each))[count > 1]}" for each, count in sorted(found.items(), key=_order)]
    if few:
        told.append(f"{few} {'have' if few > 1 else 'has'} no verdict yet (one training)")
    if other:
        told.append(f"{other} {'are' if other > 1 else 'is'} of another run")
    return f"Of {number} claims of {whose} {', '.join(told[:-1])}{' and ' if told[1:] else ''}{told[-1]}."


def p_text(p) -> str:
    """A p as a table shows it; "–" where there is none."""
    return "–" if p is None or np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _lines(text):
    return "<br>".join(map(escape, text.split("; ")))
