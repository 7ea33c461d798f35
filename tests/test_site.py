"""The published site, in a real browser: it opens from disk, asks nobody, and works by mouse, keyboard and phone."""

import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import nbformat
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from xai_utils.pipeline import parameters, report, site

HOSTILE = "<img src=x onerror=alert(1)>"
PARTS = ("reports", "notebooks", "dvc.lock", "dvc.yaml", "params.yaml", "pyproject.toml", "requirements.lock")


def project(folder):
    """A copy of what the site is made of."""
    folder.mkdir(parents=True)
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def change(path, edit):
    """Read the JSON or YAML file `path`, let `edit` change the value, write it."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))
    else:
        yaml = YAML()
        value = yaml.load(path)
        edit(value)
        yaml.dump(value, path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site of the reports in this checkout."""
    target = tmp_path_factory.mktemp("a site") / "site"
    site.build(ROOT, target)
    return target


@pytest.fixture
def opened(browser):
    """A function that opens a page; at the end of the test, whatever a page complained of or asked for fails it."""
    contexts, complaints = [], []

    def open_page(path, *, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        here = path.parent.as_uri() + "/"
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


def column(page, number):
    """The values of a column of the visible rows, top to bottom."""
    return page.eval_on_selector_all(
        "#scores tbody tr:not([hidden])",
        "(rows, n) => rows.map((row) => n ? Number(row.cells[n].dataset.value) : row.cells[0].textContent)",
        number,
    )


def test_every_page_opens_from_disk_in_silence_and_fits_a_phone(built, opened):
    """No console message, no error, no request elsewhere; at 390 pixels no page scrolls sideways; pictures are told."""
    assert [path.name for path in pages(built)] == [path.name for path in pages(ROOT / "reports")]
    for path in pages(built):
        page = opened(path, width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        assert page.eval_on_selector_all("img", "images => images.every((i) => i.naturalWidth > 0)"), path.name
        assert page.eval_on_selector_all("img", "images => images.every((i) => i.alt.length > 20)"), path.name
        assert page.locator("h1").count() == 1, path.name


def test_every_link_leads_somewhere(built):
    """Each address in each page is a file of the site or a place in the page."""
    for path in pages(built):
        text = path.read_text()
        for address in re.findall(r'(?:href|src)="([^"]+)"', text):
            if address.startswith("#"):
                assert f'id="{address[1:]}"' in text, f"{path.name}: {address}"
            elif not address.startswith("data:"):
                assert (built / address).is_file(), f"{path.name}: {address}"


def test_the_table_shows_what_was_measured(built, opened):
    """Every method, every metric with its interval, in the order of metrics.json."""
    summary = json.loads((ROOT / "reports" / "metrics.json").read_text())
    page = opened(built / "index.html")
    assert column(page, 0) == list(summary["methods"])
    heads = page.locator("#scores thead th").all_inner_texts()
    heads = [head.replace("\N{NO-BREAK SPACE}", " ") for head in heads]
    expected = [f"{about['label']} {about['arrow']}".strip() for about in summary["metrics"].values()]
    assert heads[: 1 + len(expected)] == ["method", *expected]
    assert {"passes", "failures"} <= set(heads)
    for number, metric in enumerate(summary["metrics"], start=1):
        assert column(page, number) == [row[metric]["mean"] for row in summary["methods"].values()]
    text = page.locator("#scores tbody tr").first.inner_text()
    score = next(iter(summary["methods"].values()))["insertion"]
    assert all(f"{score[part]:.3f}" in text for part in ("mean", "low", "high"))


def test_columns_sort_by_mouse_and_keyboard(built, opened):
    """The first press puts the best on top (insertion: highest, deletion: lowest), the second the worst."""
    page = opened(built / "index.html")
    head = page.locator("#scores thead th")
    head.nth(1).get_by_role("button").click()
    assert head.nth(1).get_attribute("aria-sort") == "descending"
    assert all(one >= other for one, other in pairwise(column(page, 1)))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the next head is Deletion
    assert [head.nth(n).get_attribute("aria-sort") for n in (1, 2)] == [None, "ascending"]
    assert all(one <= other for one, other in pairwise(column(page, 2)))
    page.keyboard.press("Space")
    assert head.nth(2).get_attribute("aria-sort") == "descending"
    assert all(one >= other for one, other in pairwise(column(page, 2)))
    head.nth(0).get_by_role("button").click()
    assert column(page, 0) == sorted(column(page, 0))


def test_the_filter_keeps_what_is_asked_for(built, opened):
    """Typed parts of names choose the rows, in any case, with blanks for underscores; the count is announced."""
    page = opened(built / "index.html")
    methods = column(page, 0)
    page.locator("label[for=filter]").click()  # a label leads to its field
    page.keyboard.type("Grad Cam, random")
    expected = [name for name in methods if "grad_cam" in name or "random" in name]
    assert 1 < len(expected) < len(methods)
    assert column(page, 0) == expected
    assert page.get_by_role("status").inner_text() == f"{len(expected)} of {len(methods)} methods"
    page.locator("#filter").fill("")
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
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if page.evaluate("document.activeElement === document.body"):
            break
    assert {"filter", "Insertion\N{NO-BREAK SPACE}↑", "failures", "Evaluate the maps", "metrics.json"} <= reached


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
    assert light.evaluate(background) == black
    assert button.get_attribute("aria-pressed") == "true"
    light.goto((built / "explain.html").as_uri())
    assert light.evaluate(background) == black
    dark.get_by_role("button", name="Dark").click()
    assert dark.evaluate(background) == bright


def test_names_that_look_like_html_are_shown_as_text(tmp_path, opened):
    """A method, a metric, a data set and a protocol that attack: no dialog, no element, the words themselves."""
    folder = project(tmp_path / "p")

    def attack(summary):
        summary["methods"][HOSTILE] = summary["methods"].pop("akd")
        summary["metrics"]["insertion"] |= {"label": HOSTILE, "unit": f'" onfocus="alert(2)" {HOSTILE}'}
        summary["protocol"] += f"</script>{HOSTILE}"

    change(folder / "reports" / "metrics.json", attack)
    change(
        folder / "dvc.lock",
        lambda lock: lock["stages"]["prepare_data"]["params"]["params.yaml"].update(dataset=HOSTILE),
    )
    site.build(folder, folder / "site")
    page = opened(folder / "site" / "index.html")
    page.locator("summary", has_text="prepare_data").click()
    assert page.locator("body").inner_text().count(HOSTILE) == 4
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
    assert page.locator("h1").inner_text() == "Rendered now"
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

    shown = site.recorded_parameters(lock, stage, parameters.read(ROOT / "params.yaml")["scales"])
    assert {name.split(".")[0] for name in shown} == set(received)
    assert len(shown) == leaves(received)
    for name, value in received.items():
        if not isinstance(value, dict):
            assert (shown[name] if isinstance(value, str) else json.loads(shown[name])) == value


def test_the_workflow_installs_what_the_site_needs(tmp_path):
    """A site is made without the heavy libraries; what it is made with, the workflow installs."""
    workflow = (ROOT / ".github" / "workflows" / "pages.yml").read_text()
    code = (
        "import sys; from pathlib import Path; from xai_utils.pipeline import site;"
        "site.build(Path.cwd(), Path(sys.argv[1]));"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        cwd=ROOT,
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


def test_a_folder_is_hashed_as_dvc_does(tmp_path):
    """Whatever the order of names and depths, and for an empty file."""
    for name in ("b.txt", "a/c.txt", "a-b/d", "a.txt", "a/Z", "é.csv"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "a/Z" else name)
    for command in (["init", "--no-scm", "-q"], ["add", "-q", "folder"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True, timeout=120)
    recorded = parameters.read(tmp_path / "folder.dvc")["outs"][0]["md5"]
    assert site.content_hash(tmp_path / "folder") == recorded
    assert site.content_hash(tmp_path / "nothing") is None


@pytest.fixture
def recorded(tmp_path):
    """A project of two stages, the second reading what the first makes, as one whole run would leave it."""
    folder = project(tmp_path / "p")
    stages = ("evaluate", "figures")
    outs = {
        stage: [{"path": path, "md5": site.content_hash(folder / path)} for path in paths]
        for stage, paths in zip(
            stages, (("reports/metrics.json",), ("reports/figures", "reports/figures.html")), strict=True
        )
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {stage: {"cmd": stage} for stage in stages}}))
    received = {stage: {"params.yaml": {"scale": "default", stage: {"rows": 6}}} for stage in stages}
    lock = {stage: {"cmd": stage, "params": received[stage], "outs": outs[stage]} for stage in stages}
    lock["figures"]["deps"] = [{"path": "reports/metrics.json", "md5": outs["evaluate"][0]["md5"]}]
    (folder / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}))
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "someone")
    git(folder, "config", "user.email", "someone@example.org")
    (folder / ".gitignore").write_text("site/\n*.json\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "a run")
    git(folder, "init", "-q", "--bare", str(tmp_path / "remote.git"))
    return folder


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_reports_are_compared_with_the_lock_by_content(recorded):
    """A touched file is the same file; another byte, a missing file, a newer input and an unrun stage are named."""
    assert site.outdated(recorded) == []
    os.utime(recorded / "reports" / "figures.html", (0, 0))
    assert site.outdated(recorded) == []
    with (recorded / "reports" / "figures.html").open("a") as page:
        page.write(" ")
    (recorded / "reports" / "metrics.json").unlink()
    change(recorded / "dvc.yaml", lambda value: value["stages"].update(more={}))
    change(recorded / "dvc.lock", lambda value: value["stages"]["figures"]["deps"][0].update(md5="0" * 32))
    assert site.outdated(recorded) == [
        "stage more has not run: dvc.lock does not know it",
        "reports/metrics.json is missing; stage evaluate makes it",
        "reports/figures.html is not what dvc.lock records; stage figures makes it",
        "stage figures is older than reports/metrics.json, which evaluate has made anew since",
    ]


def test_the_site_is_published_beside_the_work(recorded, tmp_path):
    """A branch that keeps its history receives exactly site/; index, branch and working tree stay as they were."""
    remote, target = str(tmp_path / "remote.git"), recorded / "site"
    (recorded / "staged").write_text("not committed yet")
    git(recorded, "add", "staged")
    (recorded / "README.md").write_text("not even staged")
    work = ("status", "--porcelain"), ("rev-parse", "HEAD"), ("branch", "--list")
    before = [git(recorded, *question) for question in work]
    assert re.match(r"published as \w{10} on branch 'gh-pages' of ", site.publish(recorded, target, remote, "gh-pages"))
    files = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert {".nojekyll", "index.html", "metrics.json", "figures/methods.jpg"} <= set(files)
    git(tmp_path, "clone", "-q", "-b", "gh-pages", remote, "seen")
    assert sorted(git(tmp_path / "seen", "ls-files").splitlines()) == files
    for name in files:
        assert (tmp_path / "seen" / name).read_bytes() == (target / name).read_bytes(), name
    assert "holds this site already" in site.publish(recorded, target, remote, "gh-pages")
    (tmp_path / "seen" / "CNAME").write_text("example.org")  # somebody else's commit
    git(tmp_path / "seen", "add", "-A")
    git(tmp_path / "seen", "-c", "user.name=other", "-c", "user.email=o@example.org", "commit", "-q", "-m", "by hand")
    git(tmp_path / "seen", "push", "-q")
    site.publish(recorded, target, remote, "gh-pages")
    subjects = git(tmp_path / "remote.git", "log", "--format=%s", "gh-pages").splitlines()
    ours = f"The site of {git(recorded, 'rev-parse', '--short', 'HEAD')}"
    assert subjects == [ours, "by hand", ours]
    assert [git(recorded, *question) for question in work] == before


def test_publishing_refuses_with_a_reason(recorded, tmp_path):
    """A branch of work, a remote that is not there, reports that no longer fit: nothing is made, nothing is pushed."""
    remote = str(tmp_path / "remote.git")
    git(recorded, "push", "-q", remote, "main")
    for where, branch, reason in (
        ("", "gh-pages", "name the git remote to publish to: make publish REMOTE=origin"),
        (remote, "main", "branch 'main' of .* holds something else than a site"),
        (remote, "no..branch", "git check-ref-format refs/heads/no..branch failed"),
        (str(tmp_path / "nowhere"), "gh-pages", "git ls-remote .* failed: .*nowhere"),
    ):
        with pytest.raises(site.SiteError, match=reason):
            site.publish(recorded, recorded / "site", where, branch)
    (recorded / "reports" / "figures" / "methods.jpg").write_bytes(b"another picture")
    done = subprocess.run(
        [sys.executable, "-m", "xai_utils.pipeline.site", "publish", remote],
        cwd=recorded,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "reports/figures is not what dvc.lock records; stage figures makes it",
        "these reports are not those of one whole run; mend with: make repro",
    ]
    assert not (recorded / "site").exists()
    assert git(tmp_path / "remote.git", "branch", "--list").split() == ["main"]


def test_a_site_that_cannot_be_made_leaves_the_earlier_one(tmp_path):
    """A report cut short, or no results at all: the error names it, the old site stays, no scratch folder does."""
    folder = project(tmp_path / "p")
    site.build(folder, folder / "site")
    earlier = site.content_hash(folder / "site")
    (folder / "reports" / "figures.html").write_text("<html><main>half")
    with pytest.raises(site.SiteError, match=r"figures.html has no <main> and is no report"):
        site.build(folder, folder / "site")
    shutil.copy(ROOT / "reports" / "figures.html", folder / "reports")
    (folder / "reports" / "metrics.json").unlink()
    with pytest.raises(site.SiteError, match=r"metrics.json is missing; the pipeline makes it: make repro"):
        site.build(folder, folder / "site")
    assert site.content_hash(folder / "site") == earlier
    assert not list(folder.glob(".site-*"))
