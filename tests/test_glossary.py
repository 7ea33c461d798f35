"""The glossary: each method and each metric is in it, with sentence, formula, direction, paper, and links that lead."""

import re

import pytest
from conftest import ROOT

from xai_utils.docstrings import formula, sentence
from xai_utils.evaluation.tables import html
from xai_utils.explainers import CONTROLS, EXPLAINERS
from xai_utils.metrics import METRICS
from xai_utils.papers import LINKS
from xai_utils.pipeline import glossary, page_tables, report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The text of the glossary beside no other page."""
    folder = tmp_path_factory.mktemp("p") / "reports"
    report.write_glossary(folder, [("index.html", "all reports"), (glossary.PAGE, glossary.TITLE)])
    return (folder / glossary.PAGE).read_text()


@pytest.mark.parametrize("name", [*METRICS, *EXPLAINERS])
def test_every_method_and_metric_is_in_it(page, name):
    """With a place of its own, one sentence, and a formula of at most four lines from the docstring."""
    record, kind = (METRICS[name], "metric") if name in METRICS else (EXPLAINERS[name], "method")
    assert page.count(f'id="{kind}-{name}"') == 1
    assert f"<code>{name}</code>" in page
    assert sentence(record.function).endswith((".", ")"))
    lines = formula(record.function).splitlines()
    assert 1 <= len(lines) <= 4
    assert all(len(line) <= 130 for line in lines)


@pytest.mark.parametrize("name", [*METRICS, *(name for name in EXPLAINERS if name not in CONTROLS)])
def test_every_paper_is_known(name):
    """Records name a paper of `LINKS`; DGLE's, which never appeared, and this repository have no address."""
    record = METRICS[name] if name in METRICS else EXPLAINERS[name]
    paper = record.paper.partition(", ")[0]
    assert LINKS[paper].startswith("https://") or paper in ("DGLE", "this repository")


def test_links_lead_somewhere(page):
    """Places in the page exist, files in the project do."""
    for address in re.findall(r'href="([^"]+)"', page):
        if address.startswith("#"):
            assert page.count(f'id="{address[1:]}"') == 1, address
        elif not address.startswith(("https:", "index.html", glossary.PAGE)):
            assert (ROOT / "reports" / address).is_file(), address


def test_heads_and_rows_of_tables_lead_to_it(page):
    """Every metric's head, every method's row, passes and failures of a table of scores; other names lead nowhere."""
    score = {"mean": 0.5, "low": 0.4, "high": 0.6}
    metrics = {name: {"label": about.heading(), "arrow": "↑"} for name, about in METRICS.items()}
    methods = {name: dict.fromkeys(METRICS, score) | {"passes": 1, "failures": 0} for name in EXPLAINERS}
    shown = page_tables.dressed(html({"metrics": metrics, "methods": methods}), glossary.address)
    linked = re.findall(rf'href="{glossary.PAGE}#([^"]+)"', shown)
    assert sorted(linked) == sorted(
        [f"metric-{name}" for name in METRICS]
        + [f"method-{name}" for name in EXPLAINERS]
        + ["term-passes", "term-failures"]
    )
    assert all(f'id="{place}"' in page for place in linked)
    assert glossary.address("no such head") is None
