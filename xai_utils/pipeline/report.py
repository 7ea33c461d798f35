"""From an executed notebook to a page: normalised, rendered, indexed. No network, no time stamps.

The only script is our own, which sorts tables; the policy of each page allows it by its hash and no other.
"""

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
FINDINGS = "## What came out"


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
    """The first paragraph under the heading."""
    return notebook.cells[0].source.split("\n\n")[1].replace("\n", " ").strip()


def sorting_script() -> str:
    """The script that lets readers sort the tables of the class sortable."""
    return (TEMPLATES / "sortable.js").read_text(encoding="utf-8")


def script_hash(script: str) -> str:
    """What a page's policy calls `script` by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _dress() -> dict:
    """What the templates of all pages share: the style, the script, and what its policy calls it."""
    script = sorting_script()
    return {"style": (TEMPLATES / "style.css").read_text("utf-8"), "script": script, "script_hash": script_hash(script)}


def render(notebook, page: Path, pages: list[tuple[str, str]]):
    """Write `page`, HTML that needs no more than the folder of its name; `pages`: (file, title) of all reports."""
    from traitlets.config import Config

    from xai_utils.pipeline import mathematics

    config = Config()
    config.HTMLExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"parameters", "remove-cell"}
    exporter = mathematics.Exporter(
        config=config, template_name=TEMPLATES.name, extra_template_basedirs=[str(TEMPLATES.parent)]
    )
    links = [{"file": f, "title": t, "current": f == page.name} for f, t in pages]
    resources = {"page_title": title(notebook), "pages": links} | _dress()
    body, _ = exporter.from_notebook_node(findings_first(notebook), resources)
    write_text(page, _linked(body, page.with_suffix("")))


def findings_first(notebook):
    """A copy of an executed notebook in which `stage.findings` stand under the title."""
    notebook, found = copy.deepcopy(notebook), []
    for cell in notebook.cells:
        for output in [each for each in cell.get("outputs", ()) if each.get("metadata", {}).get("findings")]:
            cell.outputs.remove(output)
            found.append(output["data"]["text/markdown"])
    notebook.cells[1:1] = [nbformat.v4.new_markdown_cell(text, id="findings") for text in found[-1:]]
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

    `table` (HTML): the scores, by the `protocol` (a sentence); `about`: of what run this is; `advice` (HTML): which
    method to trust; `guide` (`guide.rows`): which to use when.
    """
    from jinja2 import Environment

    sources = {stage: nbformat.read(path, as_version=4) for stage, path in notebooks.items()}
    template = Environment(autoescape=True).from_string((TEMPLATES / "front.html.j2").read_text("utf-8"))
    cards = [
        {"file": f"{stage}.html", "title": title(nb), "summary": first_paragraph(nb)} for stage, nb in sources.items()
    ]
    page = template.render(
        cards=cards,
        picture=picture.relative_to(folder).as_posix(),
        table=table,
        protocol=protocol,
        advice=advice,
        guide=guide,
        about=about,
        papers=CITED,
        **_dress(),
    )
    write_text(folder / "index.html", page)


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
