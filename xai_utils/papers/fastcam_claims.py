"""What FastCAM claims of its tables, held against a run of our own.

A claim is decided by the interval of a difference whose two sides stand on the same resamples: it holds where the
interval lies above 0, fails where it lies below, and is undecided where it contains 0.
"""

from html import escape

import pandas

from xai_utils.metrics.statistics import decide
from xai_utils.papers.fastcam import SCORES, interval, printed, printed_terms, rows_of, sums, terms

PLAIN = ("gradient", "guided_backprop", "integrated_gradients")


def claims(values: dict, published, *, confidence=0.95) -> pandas.DataFrame:
    """Rows claim, columns paper, ours, verdict; `values` from `fastcam.resampled`.

    A claim about rows that were not run is left out.
    """
    found = []
    for score, short in (("difference", "diff"), ("information", "info")):
        own = dict(zip(rows_of(values, "layer"), terms(values, score).sum(-1).T, strict=True))
        paper = printed(published, "table1_scores_published")[f"{short}_avg"]
        found += _best(f"SMOE Scale has the highest {score} score", "smoe_scale", own, paper, confidence)
    own = {row: kar - roar for row in ["random", *rows_of(values, "image")] for kar, roar in [sums(values, row)]}
    paper = printed(published, "table2_totals")["sum"]
    found += _best("FastCAM has the highest SUM", "fastcam", own, paper, confidence)
    for better, worse in (("smoe_prior", "smoe_linear"), ("smoe_linear", "smoe_equal")):
        found += _not_below(better, worse, own, paper, confidence)
    found += _like_random(own, paper, confidence)
    found += _never_negative(values, published)
    return pandas.DataFrame(found, columns=["claim", "paper", "ours", "verdict"]).set_index("claim")


def html(claimed: pandas.DataFrame) -> str:
    """The claims as an HTML table, each part of a cell on its own line."""
    lines = claimed.map(lambda text: "<br>".join(map(escape, text.split("; "))))
    return lines.rename(index=escape).to_html(escape=False, border=0)


def _difference(ours, theirs, confidence):
    return tuple(float(part) for part in interval(ours - theirs, confidence).values())


def _signed(gap):
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gap)


def _listed(series):
    return "; ".join(f"{name} {value:.2f}" for name, value in series.items())


def _best(claim, name, own, paper, confidence):
    if name not in own or len(own) < 2:
        return []
    rival = max((other for other in own if other != name), key=lambda other: own[other][0])
    gap = _difference(own[name], own[rival], confidence)
    ours = f"{name} {own[name][0]:.2f}; best other: {rival} {own[rival][0]:.2f}; difference {_signed(gap)}"
    return [(claim, _listed(paper.nlargest(2)), ours, decide(*gap[1:]))]


def _not_below(better, worse, own, paper, confidence):
    if not {better, worse} <= set(own):
        return []
    gap = _difference(own[better], own[worse], confidence)
    claim = f"{better} is not below {worse} in SUM"
    return [(claim, _listed(paper[[better, worse]]), f"difference {_signed(gap)}", decide(*gap[1:]))]


def _like_random(own, paper, confidence):
    """Holds where the run can tell its best method from random, and none of the plain gradients."""
    gaps = {name: _difference(own[name], own["random"], confidence) for name in PLAIN if name in own}
    if not gaps:
        return []
    best = max(own, key=lambda name: own[name][0])
    told = _difference(own[best], own["random"], confidence)[1] > 0
    apart = any(low > 0 or high < 0 for _, low, high in gaps.values())
    ours = "above random:; " + "; ".join(f"{name} {_signed(gap)}" for name, gap in gaps.items())
    verdict = "fails" if apart else "holds" if told else "undecided"
    claim = "gradients without SmoothGrad² score like random in SUM"
    return [(claim, _listed(paper[[*gaps]]), ours, verdict)]


def _never_negative(values, published):
    """As measured, without intervals: a minimum over conditions has none that is worth showing."""
    statistics = rows_of(values, "layer")
    paper = {score: pandas.concat(printed_terms(published, score), axis=1) for score in SCORES}
    ours = {score: pandas.DataFrame(terms(values, score)[0], index=statistics) for score in SCORES}
    lists = []
    for frames in (paper, ours):
        positive = [
            name for name in frames["difference"].index if all((f.loc[name] > 0).all() for f in frames.values())
        ]
        lists.append(positive)
    verdict = "holds" if set(lists[1]) == {"smoe_scale", "shannon_entropy"} else "fails"
    texts = [f"{where}:; {'; '.join(names) or 'none'}" for where, names in zip(("Table 4", "here"), lists, strict=True)]
    return [("only SMOE Scale and Shannon entropy never score 0 or less", *texts, verdict)]
