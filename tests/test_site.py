"""The published site, in a real browser: it opens from disk, asks nobody, and works by mouse, keyboard and phone."""

import ast
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from urllib.parse import unquote

import nbformat
import pytest
from conftest import ROOT
from reported import change, project

from xai_utils.pipeline import explore, kept, outputs, parameters, recorded, report, site, stage

SCORES = ":is(#scores, details:has(> .scroll > table tr.groups))"  # all of them: of a kept run, of the front page
LONGEST = 8000  # pixels of a page at 1400
BEYOND = """[...document.querySelectorAll("tbody th")].filter(each => each.scrollWidth > each.clientWidth + 1)
  .map(each => each.textContent)"""  # names of rows that are wider than their cells
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site of the reports in this checkout."""
    target = tmp_path_factory.mktemp("a site") / "site"
    site.build(ROOT, target)
    return target


@pytest.fixture(scope="module")
def with_run(tmp_path_factory):
    """A project with a kept run, and its site."""
    folder = project(tmp_path_factory.mktemp("kept") / "p")
    kept.keep("pets+", folder, folder)
    site.build(folder, folder / "site")
    return folder


@pytest.fixture
def opened(browser):
    """A function that opens a page; at the end of the test, whatever a page complained of or asked for fails it."""
    contexts, complaints = [], []

    def open_page(path, *, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        here = next(place for place in path.parents if (place / "index.html").is_file()).as_uri() + "/"
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        page.on("requestfailed", lambda request: complaints.append(f"not found: {request.url[:200]}"))
        page.on(
            "request",
            lambda request: request.url.startswith((here, "data:")) or complaints.append(f"asked {request.url[:200]}"),
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def pages(folder):
    return sorted(folder.glob("*.html"))


def column(page, number, group=""):
    """The values of a column of the visible rows, top to bottom; `group`: of which body, as a selector."""
    return page.eval_on_selector_all(
        f"{SCORES} tbody{group} tr:not([hidden], .group)",
        "(rows, n) => rows.map((row) => n ? Number(row.cells[n].dataset.value) : row.cells[0].textContent)",
        number,
    )


def scores_of(built, opened):
    """The front page with its fold of all scores open."""
    page = opened(built / "index.html")
    page.locator(f"{SCORES} > summary").click()
    return page


def test_every_page_opens_from_disk_in_silence_and_fits_a_phone(built, opened):
    """No console message, no error, no request elsewhere; at 390 pixels no page scrolls sideways and no row's name lies
    over its numbers, at 1400 none is longer than ten screens of 800; pictures are told."""
    own = (site.COMPARED.name, explore.FILE)  # the first where make compare was run here
    names = [path.name for path in pages(built) if path.name not in own]
    assert names == [path.name for path in pages(ROOT / "reports")]
    assert explore.FILE in [path.name for path in pages(built)]
    for path in pages(built):
        page = opened(path, width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        assert page.evaluate(BEYOND) == [], path.name
        assert page.eval_on_selector_all("img", "images => images.every((i) => i.naturalWidth > 0)"), path.name
        assert page.eval_on_selector_all("img", "images => images.every((i) => i.alt.length > 20)"), path.name
        assert page.locator("h1").count() == 1, path.name
        page.set_viewport_size({"width": 1400, "height": 800})
        assert page.evaluate("document.documentElement.scrollHeight") <= LONGEST, path.name


def test_every_link_leads_somewhere(built, with_run):
    """Each address in each page is a file of the site, or a place in one, also on the page of a kept run."""
    for path in [*pages(built), with_run / "site" / "index.html", with_run / "site" / "runs" / "pets+.html"]:
        text = re.sub(r"<script.*?</script>", "", path.read_text(), flags=re.DOTALL)
        for address in re.findall(r'(?:href|src)="([^"]+)"', text):
            if address.startswith("#"):
                assert f'id="{address[1:]}"' in text, f"{path.name}: {address}"
            elif not address.startswith(("data:", "https:")):
                file, _, place = unquote(address).partition("#")
                assert (path.parent / file).is_file(), f"{path.name}: {address}"
                assert not place or f'id="{place}"' in (path.parent / file).read_text(), f"{path.name}: {address}"


def test_a_kept_run_has_a_page_with_the_same_tables(with_run, opened):
    """From the front page to it and back; its scores, sorted and filtered; its claims; at 390 pixels, too."""
    summary = kept.kept(with_run)["pets+"]["summary"]
    page = opened(with_run / "site" / "index.html", width=390)
    page.locator(".cards a", has_text="pets+").click()
    assert page.locator("h1").inner_text() == "pets+"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert column(page, 0) == list(summary["methods"])
    for number, metric in enumerate(summary["metrics"], start=1):
        assert column(page, number) == [row[metric]["mean"] for row in summary["methods"].values()]
    text = page.locator("#scores tbody tr").first.inner_text()
    score = next(iter(summary["methods"].values()))["insertion"]
    assert all(f"{score[part]:.3f}" in text for part in ("mean", "low", "high"))
    before = column(page, 1)
    page.locator("#scores thead th").nth(1).get_by_role("button").click()
    assert column(page, 1) == sorted(before, reverse=True)
    page.locator(".tools:has(+ .scroll #scores) input").fill("grad cam")
    assert 0 < len(column(page, 0)) < len(before)
    main = page.locator("table.scores").first
    assert main.locator("tbody tr").count() == len(summary["methods"])
    assert main.locator("thead th").count() == 1 + len(stage.HEADLINE) + 2  # method, passes, failures
    claims = kept.kept(with_run)["pets+"]["claims"]
    rows = page.locator("table.claims").first.locator("tbody tr")
    assert [rows.nth(n).locator("td").first.inner_text() for n in range(len(claims))] == [c["verdict"] for c in claims]
    page.get_by_role("link", name="Results").click()
    assert page.locator("h1").inner_text().startswith("Which pixels")


def test_a_kept_run_is_checked_with_the_reports(with_run):
    """`check` of the site passes with it, and names what was changed in it."""
    folder = shutil.copytree(with_run, with_run.parent / "checked")
    run = [sys.executable, "-m", "xai_utils.pipeline.site", "check"]
    options = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    assert subprocess.run(run, **options).returncode == 0
    (folder / "runs" / "pets+" / "evaluate.json").write_text("{}")
    done = subprocess.run(run, **options)
    assert done.returncode == 1
    assert "runs/pets+: evaluate.json is not what was kept" in done.stderr


def test_the_table_shows_what_was_measured(built, opened):
    """Every method and metric of metrics.json as in the reports: controls apart, heads that lead to the glossary."""
    summary = json.loads((ROOT / "reports" / "metrics.json").read_text())
    page = scores_of(built, opened)
    methods, controls = (column(page, 0, group) for group in (":nth-of-type(1)", ":nth-of-type(2)"))
    assert sorted([*methods, *controls]) == sorted(summary["methods"])
    assert "random" in controls
    names = page.locator(f"{SCORES} thead tr").last.locator("th")
    heads = {names.nth(n).inner_text().split("\n")[0].removesuffix("?").strip(): n for n in range(names.count())}
    assert {"passes", "failures"} <= heads.keys()
    for metric, about in summary["metrics"].items():
        number = heads[f"{about['label']} {about['arrow']}".strip()]
        rounding = 0.051 if about["unit"] == "percent" else 6e-4
        means = [summary["methods"][name][metric]["mean"] for name in (*methods, *controls)]
        assert column(page, number) == pytest.approx(means, abs=rounding)
        assert names.nth(number).locator("a").get_attribute("href") == f"glossary.html#metric-{metric}"


def test_columns_sort_by_mouse_and_keyboard(built, opened):
    """The first press puts the best on top (insertion: highest, deletion: lowest), the second the worst."""
    page = scores_of(built, opened)
    head = page.locator(f"{SCORES} thead tr").last.locator("th")
    insertion = next(n for n, text in enumerate(head.all_inner_texts()) if text.startswith("Insertion"))
    deletion, methods = insertion + 1, ":nth-of-type(1)"
    head.nth(insertion).get_by_role("button").click()
    assert head.nth(insertion).get_attribute("aria-sort") == "descending"
    assert all(one >= other for one, other in pairwise(column(page, insertion, methods)))
    page.keyboard.press("Tab")  # what insertion is
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the next head is Deletion
    assert [head.nth(n).get_attribute("aria-sort") for n in (insertion, deletion)] == [None, "ascending"]
    assert all(one <= other for one, other in pairwise(column(page, deletion, methods)))
    page.keyboard.press("Space")
    assert head.nth(deletion).get_attribute("aria-sort") == "descending"
    assert all(one >= other for one, other in pairwise(column(page, deletion, methods)))
    head.nth(0).get_by_role("button").click()
    assert column(page, 0, methods) == sorted(column(page, 0, methods))


def test_the_filter_keeps_what_is_asked_for(built, opened):
    """Typed parts of names choose the rows, in any case, with blanks for underscores; the count is announced."""
    page = scores_of(built, opened)
    methods = column(page, 0)
    page.locator("label", has_text="Show rows").click()  # a label leads to its field
    page.keyboard.type("Grad Cam, random")
    expected = [name for name in methods if "grad_cam" in name or "random" in name]
    assert 1 < len(expected) < len(methods)
    assert column(page, 0) == expected
    assert page.get_by_role("status").inner_text() == f"{len(expected)} of {len(methods)} rows"
    page.locator("input[type=search]").fill("")
    assert column(page, 0) == methods


def test_the_keyboard_reaches_everything_and_shows_where_it_is(built, opened):
    """First the skip link, which jumps over the head line; what has the focus has an outline."""
    page = opened(built / "index.html")
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.inner_text() == "Skip to the content"
    assert focused.bounding_box()["x"] >= 0
    assert focused.evaluate("(element) => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.locator(SCORES).evaluate("(fold) => { fold.open = true; }")
    page.locator("input[type=search]").fill("random")  # or each row is a stop
    page.locator("#content").focus()
    reached, focused = set(), "document.activeElement.placeholder || document.activeElement.textContent.trim()"
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
        if page.evaluate("document.activeElement === document.body"):
            break
    assert {"cam, random", "Insertion ↑", "failures", "Evaluate the maps", "metrics.json"} <= reached


@pytest.mark.parametrize("name", ["index.html", "evaluate.html"])
def test_colours_follow_the_system_and_the_choice(built, opened, name):
    """Dark where the system is dark; the button turns it and the next page remembers."""
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(built / name, scheme=scheme) for scheme in ("light", "dark"))
    bright, black = light.evaluate(background), dark.evaluate(background)
    assert bright == "rgb(255, 255, 255)"
    assert black != bright
    button = light.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "false"
    button.focus()
    light.keyboard.press("Enter")
    light.locator("button[aria-pressed=true]").wait_for()  # a busy browser is not done when the key is up
    assert light.evaluate(background) == black
    light.goto((built / "explain.html").as_uri())
    assert light.evaluate(background) == black
    dark.get_by_role("button", name="Dark").click()
    dark.locator("button[aria-pressed=false]").wait_for()
    assert dark.evaluate(background) == bright


def test_names_that_look_like_html_are_shown_as_text(with_run, opened):
    """Of a kept run a claim, a parameter, a version, a hash, a method, a metric, a protocol; the data of the last."""
    folder = shutil.copytree(with_run, with_run.parent / "attacked")

    def attack_scores(summary):
        summary["methods"][HOSTILE] = summary["methods"].pop("akd")
        summary["metrics"]["insertion"] |= {"label": HOSTILE, "unit": f'" onfocus="alert(2)" {HOSTILE}'}
        summary["protocol"] += f"</script>{HOSTILE}"

    def attack(about):
        about["claims"][0] |= {"claim": HOSTILE, "here": f"one; {HOSTILE}"}
        about["parameters"]["prepare_data"]["dataset"] = HOSTILE
        about["versions"][HOSTILE] = HOSTILE
        about["revision"] = {"commit": HOSTILE}
        about["files"]["metrics.json"] = hashlib.sha256((run / "metrics.json").read_bytes()).hexdigest()

    run = folder / "runs" / "pets+"
    change(run / "metrics.json", attack_scores)
    change(run / "run.json", attack)
    change(
        folder / "dvc.lock",
        lambda lock: lock["stages"]["prepare_data"]["params"]["params.yaml"].update(dataset=HOSTILE),
    )
    site.build(folder, folder / "site")
    for file, times in (("runs/pets+.html", 12), ("index.html", 1)):
        page = opened(folder / "site" / file)
        page.locator("summary", has_text="prepare_data").click()
        assert page.locator("main").inner_text().count(HOSTILE) == times
        assert page.locator("[onfocus], [onerror]").count() == 0


def test_a_report_cannot_run_a_script(tmp_path, opened):
    """Whatever HTML a notebook shows, the page's policy lets only the site's own script run."""
    folder = project(tmp_path / "p")
    infected = folder / "reports" / "evaluate.html"
    attack = "<script>document.title = 'PWNED'</script><p onclick=\"document.title = 'PWNED'\">attacked here</p>"
    infected.write_text(infected.read_text().replace("</main>", f"{attack}</main>"))
    site.build(folder, folder / "site")
    context = opened(folder / "site" / "explain.html").context  # opened alone: the policy's refusals are messages
    page = context.new_page()
    page.goto((folder / "site" / "evaluate.html").as_uri())
    page.get_by_text("attacked here", exact=True).click()
    assert page.title() == "Evaluate the maps"
    assert page.get_by_role("button", name="Dark").is_visible()


def test_pages_of_the_next_run_are_taken_as_well(tmp_path, opened):
    """The site takes what a report says, whichever template it was rendered with: one head line, one heading."""
    folder = project(tmp_path / "p")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# Rendered now\n\nWhat it does.")]
    report.render(notebook, folder / "reports" / "evaluate.html", [("evaluate.html", "Rendered now")])
    site.build(folder, folder / "site")
    page = opened(folder / "site" / "evaluate.html")
    assert page.locator("h1").inner_text().removesuffix("¶") == "Rendered now"
    assert [page.locator(name).count() for name in ("nav", "main", "style", "script")] == [1, 1, 1, 1]


def test_tables_are_made_of_what_is_there():
    """Unknown metrics and counts become columns; a missing score is a dash without a value and never the best."""
    score = {"mean": 40.0, "low": 30.0, "high": 50.0}
    summary = {
        "metrics": {"new": {"label": "New", "arrow": "↓", "unit": "percent", "n": 2}},
        "methods": {
            "a": {"new": score, "passes": 1.0, "tries": 3},
            "b": {"passes": 2.5, "tries": 4},
            "c": {"new": {"mean": float("nan"), "low": 0, "high": 0}, "passes": 0.0},
        },
    }
    new, passes, tries = site.score_columns(summary)
    assert (new["label"], new["first"], passes["label"], tries["label"]) == (
        "New\N{NO-BREAK SPACE}↓",
        "ascending",
        "passes",
        "tries",
    )
    assert new["cells"][0] == {"value": 40.0, "text": "40.0", "interval": "30.0 – 50.0", "best": True}
    assert new["cells"][1] == new["cells"][2] == {"value": None, "text": "–", "interval": ""}
    assert [cell["text"] for cell in passes["cells"]] == ["1.00", "2.50", "0.00"]
    assert [cell["text"] for cell in tries["cells"]] == ["3", "4", "–"]


@pytest.mark.parametrize("stage", parameters.STAGES)
def test_the_parameters_are_those_of_the_run(stage):
    """What dvc.lock recorded, at the scale of the run, is what the stage's report says that it received."""
    lock, page = parameters.read(ROOT / "dvc.lock"), ROOT / "reports" / f"{stage}.html"
    if stage not in lock["stages"] or not page.is_file():
        pytest.skip(f"{stage} has not run yet")
    given = re.search(r"parameters of this run</summary>(.*?)</details>", page.read_text(), re.DOTALL)[1]
    cell = ast.parse(html.unescape(re.sub(r"<[^>]+>", "", given)).strip()).body
    received = {node.targets[0].id: ast.literal_eval(node.value) for node in cell}

    def leaves(value):
        return sum(map(leaves, value.values())) if isinstance(value, dict) and value else 1

    shown = recorded.lines(recorded.received(lock, stage, parameters.read(ROOT / "params.yaml")["scales"]))
    if "compute" in received:  # dvc.lock has what results may depend on
        received["compute"] = {name: value for name, value in received["compute"].items() if f"compute.{name}" in shown}
    assert {name.split(".")[0] for name in shown} == set(received)
    assert len(shown) == leaves(received)
    for name, value in received.items():
        if not isinstance(value, dict):
            assert (shown[name] if isinstance(value, str) else json.loads(shown[name])) == value


def test_the_workflow_installs_what_the_site_needs(with_run, tmp_path):
    """A site, of kept runs, too, is made without the heavy libraries; what it is made with, the workflow installs."""
    workflow = (ROOT / ".github" / "workflows" / "pages.yml").read_text()
    code = (
        "import sys; from pathlib import Path; from xai_utils.pipeline import site;"
        "site.check(Path.cwd()); site.build(Path.cwd(), Path(sys.argv[1]));"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        cwd=with_run,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib", "scipy", "dvc", "nbconvert", "papermill", "IPython"}
    installed = re.search(r"pip install --constraint requirements.lock (.*)", workflow)[1].split()
    assert {name.split(".")[0] for name in installed} == loaded & {
        "jinja2",
        "nbformat",
        "pydantic",
        "ruamel",
        "yaml",
        "bs4",
    }


def test_a_site_that_cannot_be_made_leaves_the_earlier_one(tmp_path):
    """A report cut short, or no results at all: the error names it, the old site stays, no scratch folder does."""
    folder = project(tmp_path / "p")
    site.build(folder, folder / "site")
    earlier = outputs.content_hash(folder / "site")
    (folder / "reports" / "figures.html").write_text("<html><main>half")
    with pytest.raises(site.SiteError, match=r"figures.html has no <main> and is no report"):
        site.build(folder, folder / "site")
    shutil.copy(ROOT / "reports" / "figures.html", folder / "reports")
    (folder / "reports" / "index.html").unlink()
    with pytest.raises(site.SiteError, match=r"no stage wrote .*index.html; the pipeline makes it: make repro"):
        site.build(folder, folder / "site")
    assert outputs.content_hash(folder / "site") == earlier
    assert not list(folder.glob(".*.partial"))
