"""From an executed notebook to a page: normalised, rendered, indexed. No network, no time stamps.

The only script is our own, which sorts and filters tables; the policy of each page allows it by its hash and no other.
"""

import ast
import base64
import copy
import hashlib
import html
import re
from pathlib import Path

import nbformat

from xai_utils.files import write_text
from xai_utils.papers import CITED

TEMPLATES = Path(__file__).parent / "report_template"
PARTS = ("results", "runs")  # of README.md, that `make readme` writes
FRONT = "all reports"  # what links to the front page are called
FINDINGS = "## What came out"
SHOWN = "code.show("  # begins a cell whose output is code already
FOLDED = "### "  # begins a cell whose section a page shows as its heading alone, until it is opened
CONTENTS = "<!-- contents -->"  # where the links to a page's headings come


def normalise(notebook, *, root: Path):
    """The same run gives the same bytes: no run ids, times, versions, addresses in memory, paths of this machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata = {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
        if cell.cell_type == "code":
            cell.execution_count = None
            # stderr carries warnings with paths and progress bars with rates; it was shown live in the terminal
            cell.outputs = [_normalise_output(o, root) for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def _normalise_output(output, root: Path):
    if "execution_count" in output:
        output["execution_count"] = None

    def clean(text):
        text = text if isinstance(text, str) else "".join(text)
        return re.sub(r" at 0x[0-9a-f]+", "", without_root(text, root))

    if "text" in output:
        output["text"] = clean(output["text"])
    if "traceback" in output:
        output["traceback"] = [clean(line) for line in output["traceback"]]
    for kind in ("text/plain", "text/html"):
        if kind in output.get("data", {}):
            output["data"][kind] = clean(output["data"][kind])
    return output


def without_root(text: str, root: Path) -> str:
    """`text`, plain or HTML, with `root` taken off the paths that begin with it; a tag or another path stays whole.

    A checkout at /p ends no paragraph: of </p> nothing is a path.
    """
    if root == Path(root.anchor):  # all paths lie below it
        return text
    names = "|".join(re.escape(name) for name in (str(root), html.escape(str(root))))
    begin, end = r"""(?<![^\s"'`=(\[{,;:>|])|(?<=file://)""", r"""(?=$|[\s"'`<&)\]},;:|]|\.(?!\w))"""
    return re.sub(rf"(?:{begin})(?:{names})(?:/|{end})", lambda found: "" if found[0][-1] == "/" else ".", text)


def strip(notebook):
    """The source as it is committed and depended on: no outputs, counts or run metadata."""
    notebook = normalise(notebook, root=Path("/nonexistent"))
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = []
    return notebook


def save(notebook, path: Path):
    """Write the notebook to `path`, whole or not at all."""
    write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def parameters_cell(notebook):
    """The cell that papermill puts a run's parameters behind; None where no cell has the tag."""
    return next((cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])), None)


def title(notebook) -> str:
    """The text of the notebook's first heading."""
    return notebook.cells[0].source.splitlines()[0].lstrip("# ").strip()


def first_paragraph(notebook) -> str:
    """The first paragraph under the heading, as plain text: without addresses and the marks of emphasis and of code."""
    text = notebook.cells[0].source.split("\n\n")[1].replace("\n", " ").strip()
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"(\*\*|\*|`)(\S|\S.*?\S)\1", r"\2", text)


def page_script() -> str:
    """The script of all pages: it sorts and filters the tables of the class sortable."""
    return (TEMPLATES / "page.js").read_text(encoding="utf-8")


def script_hash(script: str) -> str:
    """What a page's policy calls `script` by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _dress() -> dict:
    """What the templates of all pages share: the style, the script, and what its policy calls it."""
    script = page_script()
    return {"style": (TEMPLATES / "style.css").read_text("utf-8"), "script": script, "script_hash": script_hash(script)}


def filled(template: str, **values) -> str:
    """A page made from one of our own templates, in the dress of all pages."""
    from jinja2 import Environment

    made = Environment(autoescape=True).from_string((TEMPLATES / template).read_text("utf-8"))
    return made.render(**values, **_dress())


def render(notebook, page: Path, pages: list[tuple[str, str]], about: dict[str, str] | None = None):
    """Write `page`, HTML that needs no more than the folder of its name and the glossary beside it.

    `pages`: (file, title) of all reports, in their order; `about`: of which run it is, head -> text, for its foot.
    """
    from traitlets.config import Config

    from xai_utils.pipeline import glossary, mathematics, page_tables

    config = Config()
    config.HTMLExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"parameters", "remove-cell"}
    exporter = mathematics.Exporter(
        config=config, template_name=TEMPLATES.name, extra_template_basedirs=[str(TEMPLATES.parent)]
    )
    links = [{"file": f, "title": t, "current": f == page.name} for f, t in pages]
    place = next((place for place, link in enumerate(links) if link["current"]), None)
    turns = {} if place is None else {"previous": links[:place][-1:], "next": links[place + 1 :][:1]}
    if about is not None and (changed := changed_parameters(notebook)):
        about = about | {"changed parameters": changed}
    resources = {"page_title": title(notebook), "pages": links, "turns": turns, "about": about} | _dress()
    body, _ = exporter.from_notebook_node(folded(gathered(findings_first(notebook))), resources)
    body = page_tables.dressed(_linked(body, page.with_suffix("")), glossary.address)
    write_text(page, body.replace(CONTENTS, contents(body), 1))


def contents(body: str) -> str:
    """The headings of the second level of a page as links, HTML; "" where there is one or none."""
    heads = re.findall(r'<h2 id="([^"]+)">(.*?)(?:<a class="anchor-link".*?)?</h2>', body, flags=re.DOTALL)
    links = "".join(f'<li><a href="#{place}">{re.sub("<[^>]+>", "", head)}</a></li>' for place, head in heads)
    if len(heads) < 2:
        return ""
    return f'<details class="contents"><summary>On this page</summary><ul>{links}</ul></details>'


def changed_parameters(notebook) -> str:
    """The parameters of this run that params.yaml does not have at the default scale, in words; "" where all are.

    The cell of the tag parameters holds params.yaml's, the one that papermill put behind it those of the run.
    """
    held = [
        _assigned(cell.source)
        for tag in ("parameters", "injected-parameters")
        for cell in notebook.cells
        if tag in cell.metadata.get("tags", [])
    ]
    if len(held) != 2:
        return ""
    known, given = held
    return ", ".join(f"{name} = {value!r}" for name, value in given.items() if known.get(name) != value)


def _assigned(source: str) -> dict:
    """name -> value of what a cell of parameters assigns, at whatever depth: name.name."""

    def lines(values, prefix):
        for name, value in values.items():
            if isinstance(value, dict) and value:
                yield from lines(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    return dict(lines(values, ""))


def findings_first(notebook):
    """A copy of an executed notebook in which `stage.findings` stand under the title."""
    notebook, found = copy.deepcopy(notebook), []
    for cell in notebook.cells:
        for output in [each for each in cell.get("outputs", ()) if each.get("metadata", {}).get("findings")]:
            cell.outputs.remove(output)
            found.append(output["data"]["text/markdown"])
    notebook.cells[1:1] = [nbformat.v4.new_markdown_cell(text, id="findings") for text in found[-1:]]
    return notebook


def gathered(notebook):
    """A copy in which code that shows nothing stands in one cell with the code behind it: one fold in place of many.

    Cells that have a tag stay as they are.
    """
    notebook, cells = copy.deepcopy(notebook), []
    for cell in notebook.cells:
        pair = [*cells[-1:], cell]
        joins = len(pair) == 2 and all(each.cell_type == "code" and not each.metadata.get("tags") for each in pair)
        if joins and not pair[0].outputs and not cell.source.startswith(SHOWN):
            cell.source = f"{cells.pop().source}\n\n{cell.source}"
        cells.append(cell)
    notebook.cells = cells
    return notebook


def folded(notebook):
    """A copy in which each section under a heading of the third level is closed, up to the next heading.

    Second-rank material: tables of single conditions, curves of a training, what a paper shows besides.
    """
    notebook, cells, is_open = copy.deepcopy(notebook), [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            if is_open:
                cells.append(nbformat.v4.new_raw_cell("</details>"))
            if is_open := cell.source.startswith(FOLDED):
                head, _, cell.source = cell.source.partition("\n")
                text = html.escape(head.removeprefix(FOLDED))
                place = text.replace(" ", "-")
                opening = f'<details class="section"><summary><h3 id="{place}">{text}</h3></summary>'
                cells.append(nbformat.v4.new_raw_cell(opening))
        cells.append(cell)
    notebook.cells = [*cells, *([nbformat.v4.new_raw_cell("</details>")] if is_open else [])]
    return notebook


def _linked(body: str, folder: Path) -> str:
    """The page with those pictures that its stage has saved, too, taken from the stage's `folder`: none twice."""
    saved = {file.read_bytes(): file.name for file in sorted(folder.glob("*.*"))}

    def link(embedded):
        name = saved.get(base64.b64decode(embedded[1]))
        return f'src="{folder.name}/{name}"' if name else embedded[0]

    return re.sub(r'src="data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=\s]+)"', link, body)


def write_index(folder: Path, notebooks: dict[str, Path], picture: Path, *, table, protocol, about, advice, guide):
    """The front page: what came out, the result picture (below `folder`), all scores, a card for each report.

    Beside it the glossary, to which the tables of all pages link.

    `table` (HTML): the scores, by the `protocol` (a sentence); `about`: of what run this is; `advice` (HTML): which
    method to trust; `guide` (`guide.rows`): which to use when.
    """
    from xai_utils.pipeline import glossary, page_tables

    sources = {stage: nbformat.read(path, as_version=4) for stage, path in notebooks.items()}
    cards = [
        {"file": f"{stage}.html", "title": title(nb), "summary": first_paragraph(nb)} for stage, nb in sources.items()
    ]
    page = filled(
        "front.html.j2",
        cards=cards,
        picture=picture.relative_to(folder).as_posix(),
        table=table,
        protocol=protocol,
        advice=advice,
        guide=guide,
        about=about,
        papers=CITED,
    )
    write_text(folder / "index.html", page_tables.dressed(page, glossary.address))
    pages = [("index.html", FRONT), *((card["file"], card["title"]) for card in cards), (glossary.PAGE, glossary.TITLE)]
    write_glossary(folder, pages)


def write_glossary(folder: Path, pages: list[tuple[str, str]]):
    """Write the glossary into the `folder` of the reports; `pages`: (file, title) of all of them."""
    from xai_utils.pipeline import glossary

    links = [{"file": file, "title": title, "current": file == glossary.PAGE} for file, title in pages]
    page = filled("glossary.html.j2", title=glossary.TITLE, groups=glossary.entries(), pages=links)
    write_text(folder / glossary.PAGE, page)


def part_of_readme(part: str) -> re.Pattern:
    """What stands in README.md between the two markers of one of `PARTS`: the group 1."""
    start, end = f"<!-- {part}: `make readme` writes this -->\n", f"<!-- end of {part} -->"
    return re.compile(f"(?<={re.escape(start)})(.*?)(?={re.escape(end)})", re.DOTALL)


def update_readme(readme: Path, **contents: str):
    """Replace what stands between the markers of each of `PARTS` in `readme` by its new content (Markdown)."""
    text = readme.read_text(encoding="utf-8")
    for part in PARTS:
        pattern, content = part_of_readme(part), contents[part]
        if not pattern.search(text):
            raise ValueError(f"{readme} lacks the markers '<!-- {part}: `make readme` writes this -->' and its end")
        text = pattern.sub(lambda _, content=content: f"{content}\n" if content else "", text)
    write_text(readme, text)
