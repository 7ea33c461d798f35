"""Scores of single images: sheets of small maps, the site's page that explores them, and plots without a network."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from reported import project

from xai_utils.evaluation import sheets
from xai_utils.pipeline import explore, outputs, site

HOSTILE = "</script><img src=x onerror=alert(1)>"
ROWS = {"grad_cam": {}, "lime": {}, "random": {}}


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A project whose reports hold sheets of twelve images, one of them of a class that attacks HTML."""
    folder = project(tmp_path_factory.mktemp("explored") / "p")
    images = np.random.default_rng(0).integers(0, 255, (12, 3, 16, 16), dtype=np.uint8)
    maps = {row: np.linspace(-1 if row == "lime" else 0, 1, 12 * 256).reshape(12, 16, 16) for row in ROWS}
    lines = (folder / "reports" / "scores" / "grad_cam.csv").read_text().splitlines()[1:13]
    made = SimpleNamespace(indices=np.array([int(line.split(",")[0]) for line in lines]), methods=ROWS, arrays=maps)
    sheets.write(folder / "reports" / "maps", images, made, [HOSTILE, *["a bird"] * 11])
    return folder


def test_sheets_hold_each_image_and_each_map_once(explored):
    """Twelve tiles in rows of COLUMNS, the lowest value of a signed map blue, of another dark violet."""
    record = json.loads((explored / "reports" / explore.RECORD).read_text())
    assert record["rows"] == {row: f"{row}.jpg" for row in ROWS}
    assert len(record["images"]) == len(record["classes"]) == 12
    opened = {row: Image.open(explored / "reports" / "maps" / f"{row}.jpg") for row in ROWS}
    assert {sheet.size for sheet in opened.values()} == {(sheets.COLUMNS * sheets.SIDE, 2 * sheets.SIDE)}
    tile = np.asarray(opened["lime"], dtype=float)[: sheets.SIDE, : sheets.SIDE].mean((0, 1))
    assert tile[2] > tile[0] + 20


def test_scores_of_images_are_those_of_their_files(explored):
    """A number for each tile and metric, as the CSV file of the method has it; without sheets there is no page."""
    found = explore.values(explored / "reports")
    summary = json.loads((explored / "reports" / "metrics.json").read_text())
    assert list(found["scores"]) == list(ROWS)
    assert set(found["metrics"]) == set(summary["metrics"])
    lines = (explored / "reports" / "scores" / "lime.csv").read_text().splitlines()
    column = lines[0].split(",").index("deletion")
    assert found["scores"]["lime"]["deletion"] == [float(line.split(",")[column]) for line in lines[1:13]]
    assert explore.values(explored) is None


def test_two_methods_can_be_set_against_each_other(explored, browser, monkeypatch):
    """A point an image; a click, on a name, too, shows image and maps, and a link reopens it; nothing is fetched."""
    whole = outputs.reports(explored)
    names = {path.relative_to(explored / "reports").as_posix() for path in (explored / "reports" / "maps").iterdir()}
    monkeypatch.setattr(outputs, "reports", lambda root: whole._replace(written=[*whole.written, *names], others=[]))
    site.build(explored, explored / "site")
    page, said = browser.new_context(viewport={"width": 390, "height": 900}).new_page(), []
    page.set_default_timeout(60_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
    page.goto((explored / "site" / explore.FILE).as_uri())
    points = page.locator("#plot path[aria-roledescription=point]")
    points.first.wait_for()
    assert points.count() == page.locator("#images tbody tr").count() == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#up").select_option("lime")
    page.locator("input[type=search]").fill("bird")
    page.locator("#metric").select_option("deletion")
    assert page.locator("#images tbody tr:visible").count() == 11  # also of rows that came later
    page.locator("input[type=search]").fill("")
    assert re.fullmatch(
        r"lime is better on \d+ of 12 images: those below the line\.", page.locator("#told").inner_text()
    )
    page.get_by_role("button", name=HOSTILE).click()
    assert page.locator("#seen .tile").count() == 3
    assert HOSTILE in page.locator("#seen").inner_text()
    page.goto("about:blank")
    page.go_back()
    page.locator("#plot svg").wait_for()
    assert [page.locator(f"#{name}").input_value() for name in ("metric", "up")] == ["deletion", "lime"]
    page.context.close()
    assert not said


def test_dvc_plots_open_without_a_network():
    """The page that DVC fills takes its one script from this project, and has no other address."""
    page = (ROOT / ".dvc" / "plots" / "page.html").read_text()
    assert "{plot_divs}" in page
    assert "{scripts}" not in page  # which DVC's own takes from elsewhere
    [script] = re.findall(r'src="([^"]+)"', page)
    assert (ROOT / "dvc_plots" / script).resolve().is_file()
    assert "html_template = plots/page.html" in (ROOT / ".dvc" / "config").read_text()
