"""Kept runs, and the last one, as README.md shows them: the main scores, and claims on which they differ."""

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
    """The kept runs and that of reports/ as a Markdown table, a legend and claims; "" where none is kept.

    Runs that differ in nothing but the seed are one; of several on the same data one is shown, a kept one rather.
    """
    from xai_utils.evaluation import tables
    from xai_utils.pipeline import pooling

    others = kept.kept(root)
    if not others:
        return ""
    last = kept.described(root, root) | {"summary": json.loads((root / REPORTS / "metrics.json").read_bytes())}
    name = last["summary"]["run"]["data"].split()[0]
    groups = {next(iter(group)): group for group in pooling.grouped(pooling.chosen(root)).values()}
    alone = {f"{name}, last run" if name in others else name: {"": last}}
    groups = _one_of_each(groups | alone)
    scored = {name: pooling.scored(group) for name, group in groups.items()}
    table = tables.side_by_side(scored, METRICS, METHODS)
    told = "; ".join(_told(name, group) for name, group in groups.items())
    head = f"The same methods on other images: means with intervals, the best of these rows bold. {told}."
    verdicts = {
        name: {(row["paper"], row["claim"]): row["verdict"] for row in group[""]["claims"]}
        if "" in group
        else {claim: row["verdict"] for claim, row in pooling.claimed(group).items()}
        for name, group in groups.items()
    }
    head = textwrap.fill(head, 120, break_long_words=False, break_on_hyphens=False)
    return f"{head}\n\n{table}\n\n{_claims(verdicts)}"


def _one_of_each(groups):
    """Of those on one data set with one target and size of images that of most METHODS, METRICS, runs and images."""
    found = {}
    for name, group in groups.items():
        first = next(iter(group.values()))
        summary = first["summary"]
        of, methods = summary["run"], sum(name in summary["methods"] for name in METHODS)
        rank = methods, sum(name in summary["metrics"] for name in METRICS), len(group), first["images"]
        kind = of["data"].split()[0], of["target"].split()[0], first["image_size"]
        if kind not in found or rank > found[kind][0]:
            found[kind] = rank, name
    return {name: groups[name] for _, name in found.values()}


def _told(name, group):
    """Which runs a group is, in words; "" names the last one, which is not kept."""
    about = next(iter(group.values()))
    told = name if "" in group else f"[{name}]({kept.FOLDER}/{name}/)"
    return f"{told}: {kept.in_words(about)}" + (f", pooled over {', '.join(group)}" if len(group) > 1 else "")


def _claims(of_groups):
    """The claims of the papers that hold on the images of one group and fail on another's, a line each."""
    verdicts = {}
    for name, found in of_groups.items():
        for claim, verdict in found.items():
            verdicts.setdefault(claim, {}).setdefault(verdict, []).append(name)
    lines = []
    for (paper, claim), found in verdicts.items():
        if {"holds", "fails"} <= set(found):
            told = "; ".join(f"{verdict} on {', '.join(names)}" for verdict, names in found.items())
            lines.append(f"- {paper}, *{claim}*: {told}.")
    if not lines:
        return "No claim of the papers holds on the images of one column and fails on those of another."
    return "\n".join(["Claims of the papers that hold on the images of one column and fail on another's:\n", *lines])
