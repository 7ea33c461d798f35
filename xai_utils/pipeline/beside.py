"""Kept runs, and the last one, as README.md shows them: the best methods, and claims on which they differ."""

import json
from collections import Counter
from pathlib import Path

from xai_utils.evaluation import tables
from xai_utils.metrics.statistics import FAILS, HOLDS, UNDECIDED
from xai_utils.papers import CITED
from xai_utils.pipeline import kept, pooling
from xai_utils.pipeline.pooling import METHODS, METRICS
from xai_utils.pipeline.project import REPORTS


def markdown(root: Path) -> str:
    """On which images which method is best, as a Markdown table, and claims that part them; "" where no run is kept.

    Runs that differ in nothing but the seed are one; of several on the same data one is shown, a kept one rather.
    """
    others = kept.kept(root)
    if not others:
        return ""
    last = kept.described(root, root) | {"summary": json.loads((root / REPORTS / "metrics.json").read_bytes())}
    name = last["summary"]["run"]["data"].split()[0]
    groups = {next(iter(group)): group for group in pooling.grouped(pooling.chosen(root)).values()}
    alone = {f"{name}, last run" if name in others else name: {"": last}}
    groups = _one_of_each(groups | alone)
    verdicts = {
        name: {(row["paper"], row["claim"]): row["verdict"] for row in group[""]["claims"]}
        if "" in group
        else {claim: row["verdict"] for claim, row in pooling.claimed(group).items()}
        for name, group in groups.items()
    }
    verdicts = {name: of_the_papers(each) for name, each in verdicts.items()}
    rows = [("images", "best insertion", "best grid pointing", "best part truth"), ["---"] * 4]
    rows += [(_told(name, group), *_best(pooling.scored(group))) for name, group in groups.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{_counted(verdicts, groups)}{_claims(verdicts)}"


def of_the_papers(verdicts: dict) -> dict:
    """(paper, claim) -> verdict without what we claim ourselves."""
    return {(paper, claim): verdict for (paper, claim), verdict in verdicts.items() if paper in CITED}


def _counted(verdicts, groups):
    """How many of the papers' claims have which verdict, over the group of most runs; "" where none has several."""
    name = max(groups, key=lambda name: len(groups[name]))
    if len(groups[name]) == 1:
        return ""
    counts = Counter(verdicts[name].values())
    held, failed, open_ = (counts[verdict] for verdict in (HOLDS, FAILS, UNDECIDED))
    return (
        f"Over {len(groups[name])} seeds of {name} {held} of the papers' claims hold, {failed} fail and {open_} are "
        "undecided.\n\n"
    )


def _best(summary):
    """Of each of METRICS the best of METHODS with its mean and interval; a dash where it was not scored."""
    shown = summary | {"methods": {name: row for name, row in summary["methods"].items() if name in METHODS}}
    for metric in METRICS:
        name = tables.best(shown, metric) if metric in summary["metrics"] else None
        text = "`{name}` {mean:.3f} [{low:.3f}, {high:.3f}]"
        yield text.format(name=name, **shown["methods"][name][metric]) if name else "–"


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
        return "No claim of the papers holds on the images of one line and fails on those of another."
    return "\n".join(["Claims of the papers that hold on the images of one line and fail on another's:\n", *lines])
