"""The last run beside the kept ones, as README.md shows them: the main scores, and claims on which the runs differ."""

import json
import textwrap
from pathlib import Path

from xai_utils.pipeline import kept
from xai_utils.pipeline.project import REPORTS

METRICS = ("insertion", "grid_pointing", "part_truth")  # a column for each run that has it
METHODS = (  # no variants of one method: a table to be read at a glance
    "akd",
    "dgle_cf",
    "amg",
    "fastcam",
    "smoe",
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


def markdown(root: Path) -> str:
    """The run of reports/ and those of runs/ as a Markdown table, a legend and claims; "" where none is kept."""
    from xai_utils.evaluation import tables

    others = kept.kept(root)
    if not others:
        return ""
    last = kept.described(root, root) | {"summary": json.loads((root / REPORTS / "metrics.json").read_bytes())}
    name = last["summary"]["run"]["data"].split()[0]
    runs = _one_of_each({f"{name}, last run" if name in others else name: last} | others)
    table = tables.side_by_side({name: about["summary"] for name, about in runs.items()}, METRICS, METHODS)
    links = {name: f"[{name}]({kept.FOLDER}/{name}/)" for name in others}
    told = "; ".join(f"{links.get(name, name)}: {kept.in_words(about)}" for name, about in runs.items())
    head = f"The same methods on other images: means with intervals, the best of these rows bold. {told}."
    return f"{textwrap.fill(head, 120, break_long_words=False, break_on_hyphens=False)}\n\n{table}\n\n{_claims(runs)}"


def _one_of_each(runs):
    """Of the runs on one data set with one target and size of images that of most METHODS, then of most images."""
    found = {}
    for name, about in runs.items():
        of = about["summary"]["run"]
        same = of["data"].split()[0], of["target"].split()[0], about["image_size"]
        rank = sum(method in about["summary"]["methods"] for method in METHODS), about["images"]
        if same not in found or rank > found[same][0]:
            found[same] = rank, name
    return {name: runs[name] for _, name in found.values()}


def _claims(runs):
    """The claims of the papers that hold on one run and fail on another, a line each."""
    verdicts = {}
    for name, about in runs.items():
        for row in about["claims"]:
            verdicts.setdefault((row["paper"], row["claim"]), {}).setdefault(row["verdict"], []).append(name)
    lines = []
    for (paper, claim), found in verdicts.items():
        if {"holds", "fails"} <= set(found):
            told = "; ".join(f"{verdict} on {', '.join(names)}" for verdict, names in found.items())
            lines.append(f"- {paper}, *{claim}*: {told}.")
    if not lines:
        return "No claim of the papers holds on the images of one run and fails on those of another."
    return "\n".join(["Claims of the papers that hold on the images of one run and fail on another's:\n", *lines])
