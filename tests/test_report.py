"""Report pages: what a notebook shows appears as text, in the dark and on a phone, without a script."""

import base64
import io
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from xai_utils.pipeline import report, stage

HOSTILE = '<img src=x onerror=alert(1)>" onload="alert(2)'


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report whose every kind of output carries a name that attacks HTML, wide tables and long lines."""
    file = io.BytesIO()
    Image.new("RGB", (1600, 40), "white").save(file, "PNG")
    picture = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": HOSTILE}
    outputs = [
        nbformat.v4.new_output("stream", text=HOSTILE + " word" * 200),
        nbformat.v4.new_output("execute_result", {"text/plain": HOSTILE}),
        nbformat.v4.new_output("display_data", picture, metadata={"image/png": {"alt": HOSTILE}}),
        nbformat.v4.new_output("display_data", {"text/html": f"<table><tr>{'<td>0.123</td>' * 60}</tr></table>"}),
        nbformat.v4.new_output("error", ename="OSError", evalue=HOSTILE, traceback=[f"OSError: {HOSTILE}"]),
    ]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# A stage\n\nWhat it does."),
        nbformat.v4.new_code_cell(f"name = {HOSTILE!r}  # {'long ' * 60}", outputs=outputs),
    ]
    path = tmp_path_factory.mktemp("reports") / "stage.html"
    report.render(report.normalise(notebook, root=Path("/nonexistent")), path, [(path.name, f"A stage {HOSTILE}")])
    return path


@pytest.mark.parametrize(
    ("root", "text", "without"),
    [
        (
            "/code",
            "<code>/code/a.py</code>, /code. '/code'; /codec/x /x/code/y",
            "<code>a.py</code>, .. '.'; /codec/x /x/code/y",
        ),
        ("/p", "<p>file:///p/a</p> 1 /p-value (/p/b) &quot;/p/c&quot;", "<p>file://a</p> 1 /p-value (b) &quot;c&quot;"),
        ("/a b&c", "<td>/a b&amp;c/x</td>\n/a b&c/y", "<td>x</td>\ny"),
        ("/[x]+ü", "PosixPath('/[x]+ü/y') /x/y", "PosixPath('y') /x/y"),
        ("/", "<p>/x</p>", "<p>/x</p>"),
    ],
)
def test_only_whole_paths_lose_the_place_of_the_checkout(root, text, without):
    """Wherever a checkout lies, its place is in no report, and nothing that only looks like it is missing."""
    output = nbformat.v4.new_output("display_data", {"text/html": text})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])
    assert report.normalise(notebook, root=Path(root)).cells[0].outputs[0].data["text/html"] == without


def test_what_came_out_stands_first(tmp_path):
    """What a notebook shows last with `findings` is under the title of its page, once, and empty sentences nowhere."""
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda text, metadata: shown.append((text.data, metadata)))
        stage.findings("`akd` is best.", "", f"Chance is 0.25: {HOSTILE}.")
    [(text, metadata)] = shown
    assert text.split("\n") == [
        report.FINDINGS,
        "",
        "- `akd` is best.",
        f"- Chance is 0.25: {escape(HOSTILE, quote=False)}.",
    ]
    output = nbformat.v4.new_output("display_data", {"text/markdown": text}, metadata=metadata)
    cells = [nbformat.v4.new_markdown_cell("# A stage\n\nWhat it does."), nbformat.v4.new_markdown_cell("## Training")]
    cells.append(nbformat.v4.new_code_cell("findings()", outputs=[output]))
    notebook = nbformat.v4.new_notebook(cells=cells)
    report.render(report.normalise(notebook, root=Path("/nonexistent")), tmp_path / "stage.html", [])
    page = (tmp_path / "stage.html").read_text()
    assert page.count("What came out</a>") == page.count(">What came out<a") == 1  # among the contents, and above them
    assert page.index("What it does.") < page.index("<code>akd</code> is best.") < page.index(">Training<a")
    assert "<img" not in page
    assert notebook.cells[2].outputs == [output]


def test_a_card_shows_a_page_s_first_words_without_marks():
    """Of the first paragraph the words alone: no address of a link, no emphasis, no quotes of code."""
    text = "# A stage\n\n*What* it `does`:\n[AKD](distill_surrogate.html), **all** of it.\n\nMore."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    assert report.first_paragraph(notebook) == "What it does: AKD, all of it."


def test_second_rank_sections_are_folded_and_code_is_gathered(tmp_path):
    """A heading of the third level folds up to the next heading; code that shows nothing joins the code behind it."""
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    printed = nbformat.v4.new_output("stream", text="printed")
    notebook = nbformat.v4.new_notebook(
        cells=[
            markdown("# A stage\n\nWhat it does."),
            code("first = 1"),
            code("second = 2"),
            code("print(first)", outputs=[printed]),
            markdown(f"### Single cells {HOSTILE}\n\nInside."),
            code("third = 3", metadata={"tags": ["yours"]}),
            markdown("### More of them"),
            markdown("Inside, too."),
            markdown("## What follows\n\nOutside."),
            markdown("### At the end"),
        ]
    )
    report.render(notebook, tmp_path / "stage.html", [])
    page = BeautifulSoup((tmp_path / "stage.html").read_text(), "html.parser")
    folds = page.select("details.section")
    assert [fold.summary.h3.text for fold in folds] == [f"Single cells {HOSTILE}", "More of them", "At the end"]
    assert ["Inside." in fold.text for fold in folds] == [True, False, False]
    assert ["Inside, too." in fold.text for fold in folds] == [False, True, False]
    assert not [fold for fold in folds if "Outside." in fold.text or fold.has_attr("open") or fold.select(".section")]
    assert page.find("h2", id="What-follows").find_parent("details") is None
    blocks = [block.text.strip() for block in page.select(".code_cell .input pre")]
    assert blocks == ["first = 1\n\nsecond = 2\n\nprint(first)", "third = 3"]


def test_a_picture_that_the_stage_has_saved_is_kept_once(tmp_path):
    """The page takes it from the folder of its name, and embeds what lies in no folder, or in another stage's."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A stage\n\nWhat it does.")])
    for colour, folder in (("red", "stage"), ("green", "other"), ("blue", None)):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(file, "PNG")
        if folder:
            (tmp_path / folder).mkdir()
            (tmp_path / folder / f"{colour}.png").write_bytes(file.getvalue())
        data = {"image/png": base64.b64encode(file.getvalue()).decode()}
        output = nbformat.v4.new_output("display_data", data, metadata={"image/png": {"alt": colour}})
        notebook.cells.append(nbformat.v4.new_code_cell("show()", outputs=[output]))
    report.render(notebook, tmp_path / "stage.html", [("stage.html", "A stage")])
    images = [about for tag, about in Elements((tmp_path / "stage.html").read_text()).found if tag == "img"]
    assert [about["alt"] for about in images] == ["red", "green", "blue"]
    assert images[0]["src"] == "stage/red.png"
    assert all(about["src"].startswith("data:image/png") for about in images[1:])


class Elements(HTMLParser):
    """All start tags of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_names_become_neither_elements_nor_attributes(page):
    """The navigation, source, prints, results, tracebacks show the name as text; the picture has it for its words."""
    elements = Elements(page.read_text())
    assert [attributes["alt"] for tag, attributes in elements.found if tag == "img"] == [HOSTILE]
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert elements.text.count(HOSTILE) == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_readable_on_a_phone(page, browser, scheme):
    """390 pixels: the page does not scroll sideways, its wide boxes do; text stands out from its ground by 4.5 to 1."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    shown, messages = context.new_page(), []
    shown.on("console", lambda message: messages.append(message.text))
    shown.goto(page.as_uri())
    shown.locator("summary").first.click()
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = shown.eval_on_selector_all(".output_subarea", "all => all.map((box) => box.scrollWidth > box.clientWidth)")
    assert any(boxes)
    assert contrast(shown, "body") >= 7
    for place in ("summary", ".highlight .n", ".highlight .c1", ".highlight :is(.s1, .s2)", "nav a", "td"):
        assert contrast(shown, place) >= 4.5, place
    assert not messages
    context.close()


def contrast(shown, selector) -> float:
    """The ratio of WCAG 2 between an element's colour and the page's or box's ground."""
    found = shown.locator(selector).first.evaluate(
        """(element) => {
            let box = element;
            while (getComputedStyle(box).backgroundColor === "rgba(0, 0, 0, 0)") box = box.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(box).backgroundColor];
        }"""
    )

    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted(map(luminance, found))
    return (bright + 0.05) / (dark + 0.05)
