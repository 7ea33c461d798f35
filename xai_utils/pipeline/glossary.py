"""The glossary: every metric and every method in a sentence, with its formula, its direction and its paper.

Made from the records (`METRICS`, `EXPLAINERS`) and the docstrings of what they name; heads of tables link to it.
"""

import re
from functools import cache
from html import escape

from xai_utils.docstrings import formula, sentence
from xai_utils.explainers import CONTROLS, EXPLAINERS
from xai_utils.metrics import METRICS
from xai_utils.papers import LINKS

PAGE, TITLE = "glossary.html", "Glossary"
TERMS = {  # heads of tables that are neither a method nor a metric
    "passes": (
        "Passes",
        "What a map costs: the operations of the method over those of one plain inference pass of the network, counted "
        "and not timed. Fewer is better.",
    ),
    "failures": ("Failures", "Images of which the method gives no map, or one that is not finite."),
    "overall": (
        "Insertion minus deletion",
        "Faithfulness in one number: how far the probability of the class rises when pixels come in the order of the "
        "map, less what is left of it while they go. Higher is better.",
    ),
    "chance": ("Chance", "What a map that knows nothing scores: here the share of the image that is counted as true."),
    "follows": (
        "Follows the network",
        "Whether a map changes when the network forgets what it has learned: ✓, if Spearman's rank correlation of the "
        "two maps is below 0.9.",
    ),
    "max-sensitivity": (
        "Max-sensitivity",
        "How far a map moves, over its own size, when pixels move by hardly more than can be seen; the worst of a few "
        "tries (Yeh et al. 2019). Lower is steadier; what reads nothing of the image has 0.",
    ),
    "interval": (
        "Interval",
        "Below a mean: where the mean of other images would lie in 95 % of the cases, by bootstrap over the images. "
        "Another training is not in it.",
    ),
    "level": (
        "Level with the best (≈)",
        "Not significantly worse than the best: p is 0.05 or more in a paired test by image, after Holm's correction "
        "for the number of methods.",
    ),
}
CALLED = {  # how tables name a term
    "insertion − deletion": "overall",
    "follows the network": "follows",
    "failed": "failures",
    "times chance": "chance",
}


def _plain(name: str) -> str:
    return re.sub(r"[\s_,]+", " ", re.sub(r"\(.*|[↑↓★≈]", "", name)).strip().lower()


@cache
def _places() -> dict[str, str]:
    """What a table calls something, in plain words -> its place in the page."""
    places = {_plain(name): f"term-{name}" for name in TERMS} | {name: f"term-{CALLED[name]}" for name in CALLED}
    for name, about in METRICS.items():
        places |= {_plain(name): f"metric-{name}", _plain(about.heading()): f"metric-{name}"}
    return places


def address(name: str) -> str | None:
    """Where the glossary tells of what a table calls `name`, a method or a metric; None where it does not."""
    name = name.strip()
    whole, first = _plain(name), _plain(name.split(",")[0])  # Deletion, random: deletion beside that control
    place = f"method-{name}" if name in EXPLAINERS else _places().get(whole, _places().get(first))
    return f"{PAGE}#{place}" if place else None


def _paper(named: str) -> str:
    """The paper with its link, HTML; `named` may say more after a comma."""
    name, _, more = named.partition(", ")
    if link := LINKS.get(name):
        return f'<a href="{escape(link)}">{escape(name)}</a>{escape(f", {more}" if more else "")}'
    return escape(named)


def _told(text: str) -> str:
    """A docstring's sentence as HTML: code, emphasis, and no paper in brackets, which has a line of its own."""
    text = re.sub(r" \([^()]*(?:\d{4}|eq\.|§)[^()]*\)", "", text)
    parts = [re.sub(r"\*(\w+)\*", r"<em>\1</em>", escape(part)) for part in text.split("`")]
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def entries() -> dict[str, list[dict]]:
    """Heading -> its entries: place, name, label, and HTML: told, formula, direction, paper."""
    arrows = {True: "↑ higher is better", False: "↓ lower is better", None: "neither direction is better"}
    metrics = [
        {
            "place": f"metric-{name}",
            "name": name,
            "label": about.heading(),
            "told": escape(f"{about.measures[0].upper()}{about.measures[1:]}."),
            "formula": formula(about.function),
            "direction": f"{arrows[about.higher_is_better]}; {about.unit}",
            "paper": _paper(about.paper),
        }
        for name, about in METRICS.items()
    ]
    methods = [
        {
            "place": f"method-{name}",
            "name": name,
            "label": about.label,
            "told": _told(sentence(about.function)),
            "formula": formula(about.function),
            "direction": "signed: below 0 speaks against the class" if about.signed else "never below 0",
            "paper": "a control: it never saw the network"
            if name in CONTROLS
            else _paper(f"{about.paper}, {about.equation}" if about.equation else about.paper),
        }
        for name, about in EXPLAINERS.items()
    ]
    terms = [
        {"place": f"term-{name}", "name": "", "label": label, "told": escape(told)}
        for name, (label, told) in TERMS.items()
    ]
    return {"Metrics": metrics, "Methods": methods, "Other heads of tables": terms}
