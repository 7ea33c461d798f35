"""What the papers claim of their methods, held against the scores of this run, by direction alone.

A claim is decided by the paired difference of two rows on the same images: it holds where the interval of the
difference lies on the claimed side of 0, fails where it lies on the other, and is undecided where it contains 0.
"""

import json
from html import escape
from pathlib import Path
from typing import NamedTuple

import pandas

from xai_utils import runs
from xai_utils.metrics import METRICS
from xai_utils.metrics.statistics import compared

GRADIENTS = ("gradient", "smooth_grad", "integrated_gradients")
AKD_RIVALS = ("grad_cam", "lime")
DGLE_RIVALS = ("dgle_bf", "mgnet", "meaningful_perturbation", "grad_cam", "grad_cam_plus_plus", *GRADIENTS)


class Claim(NamedTuple):
    """`first` scores higher (`sign` 1) or lower (-1) than the best of `others` in `metric`.

    With several in `first` the best of them is meant, and of `others` the one that comes nearest to refuting the claim.
    """

    paper: str
    text: str
    metric: str
    sign: int
    first: tuple
    others: tuple


CLAIMS = (
    Claim("AKD", "RISE inserts best", "insertion", 1, ("rise",), ("akd", "akd_unoptimised", *AKD_RIVALS)),
    Claim("AKD", "AKD is second on insertion", "insertion", 1, ("akd",), AKD_RIVALS),
    Claim("AKD", "AKD deletes better than Grad-CAM and LIME", "deletion", -1, ("akd",), AKD_RIVALS),
    Claim("AKD", "AKD's maps are sparser", "mean_intensity", -1, ("akd",), ("rise", *AKD_RIVALS)),
    Claim("DGLE", "CF is more faithful than BF", "faithfulness", 1, ("dgle_cf",), ("dgle_bf",)),
    Claim("DGLE", "CF is the most faithful", "faithfulness", 1, ("dgle_cf",), DGLE_RIVALS),
    Claim("DGLE", "BF explains better than CF (M_I)", "box_average_precision", 1, ("dgle_bf",), ("dgle_cf",)),
    Claim("DGLE", "BF points better than CF", "pointing_game", 1, ("dgle_bf",), ("dgle_cf",)),
    Claim("DGLE", "MGnet points best", "pointing_game", 1, ("mgnet",), ("dgle_cf", *DGLE_RIVALS)),
    # the same of mosaics, where no box is needed and no object lies in the middle
    Claim("DGLE", "BF points better than CF, in mosaics", "grid_pointing", 1, ("dgle_bf",), ("dgle_cf",)),
    Claim("DGLE", "MGnet points best, in mosaics", "grid_pointing", 1, ("mgnet",), ("dgle_cf", *DGLE_RIVALS)),
    Claim("AMG", "AMG localises better than Grad-CAM, in mosaics", "grid_pointing", 1, ("amg",), ("grad_cam",)),
    Claim(
        "DGLE", "gradient methods are the least faithful", "faithfulness", -1, GRADIENTS,
        ("dgle_cf", "dgle_bf", "mgnet", "meaningful_perturbation", "grad_cam", "grad_cam_plus_plus"),
    ),
)  # fmt: skip


def of_scores(frame, *, seed, **intervals) -> list[dict]:
    """CLAIMS on the images of a `scores.score_frame`, as rows paper, claim, here, verdict.

    A claim about methods that were not run is left out.
    """
    rows = []
    for claim in CLAIMS:
        if claim.metric not in frame:
            continue
        values = frame.pivot(index="image", columns="method", values=claim.metric).dropna(axis=1, how="all")
        first = [name for name in claim.first if name in values]
        others = [name for name in claim.others if name in values and name not in claim.first]
        if not first or not others:
            continue
        signed = claim.sign * values.mean()
        # the weakest pair decides: of several that are claimed to be first, the one that is least so
        one, other = signed[first].idxmin() if len(first) > 1 else first[0], signed[others].idxmax()
        digits = 1 if METRICS[claim.metric].unit == "percent" else 3
        options = {"digits": digits, "seed": seed} | intervals
        verdict, gap = compared(values[one], values[other], sign=claim.sign, **options)
        here = f"{METRICS[claim.metric].heading()}: {one} − {other} = {gap}"
        rows.append({"paper": claim.paper, "claim": claim.text, "here": here, "verdict": verdict})
    return rows


def faster(passes: dict) -> list[dict]:
    """AKD's claim to be faster than RISE, by counted forward passes of a map, which need no interval."""
    if not {"akd", "rise"} <= set(passes):
        return []
    here = f"{passes['akd']:.2f} and {passes['rise']:.0f} passes, counted"
    verdict = "holds" if passes["akd"] < passes["rise"] else "fails"
    return [{"paper": "AKD", "claim": "AKD is faster than RISE", "here": here, "verdict": verdict}]


def of_reports(reports, run) -> list[dict]:
    """FastCAM's and AMG's claims, which their own stages decide: the "claims" of their JSON files in `reports`.

    In the place of those that are not of this `run` (runs.py) one row says so.
    """
    rows = []
    for paper, stage in (("FastCAM", "remove_and_retrain"), ("AMG", "train_attention")):
        path = Path(reports) / f"{stage}.json"
        numbers = json.loads(path.read_bytes()) if path.is_file() else {"claims": {}, "run": run}
        if told := runs.difference(numbers.get("run"), run):
            here = f"{path.name} is of another run ({told}); run the stage {stage} again"
            rows.append({"paper": paper, "claim": "all of them", "here": here, "verdict": "not of this run"})
            continue
        for claim, found in numbers["claims"].items():
            rows.append({"paper": paper, "claim": claim, "here": found["here"], "verdict": found["verdict"]})
    return rows


def html(rows: list[dict]) -> str:
    """The claims as an HTML table, each part of a cell on its own line."""
    frame = pandas.DataFrame(rows, columns=["paper", "claim", "verdict", "here"])
    return frame.map(_lines).to_html(index=False, escape=False, border=0)


def _lines(text):
    return "<br>".join(map(escape, text.split("; ")))
