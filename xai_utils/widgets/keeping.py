"""What is kept of a page: a picture, a JSON that opens the page again, a link; and the opening of either."""

import hashlib
import json
import os
from urllib.parse import parse_qs, quote, urlsplit

import ipywidgets as widgets
import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from xai_utils import plots
from xai_utils.widgets import drawing
from xai_utils.widgets.around import curves
from xai_utils.widgets.display import STYLE, WIDE
from xai_utils.widgets.panel import masked, overlay
from xai_utils.widgets.pictures import within
from xai_utils.widgets.subject import Explanation

LINES = ("-", "--")  # for each side of a comparison
STATE = "state"  # in the query of a link


class Keeping:
    """The widgets. `files()` gives what can be saved: ending -> (name, content, kind); `opened(state)` takes a state.

    `folders()`: those from which a JSON may be read.
    """

    def __init__(self, files, opened, folders):
        self._files, self._opened, self._folders = files, opened, folders
        self.picture, self.json = (widgets.Button(description=f"save {kind}", layout=WIDE) for kind in ("PNG", "JSON"))
        self.upload = widgets.FileUpload(accept=".json", description="open a saved JSON", layout=WIDE)
        self.path = widgets.Text(
            placeholder="its path, then Enter", description="or JSON", continuous_update=False, layout=WIDE, style=STYLE
        )
        self.said, self.link = widgets.HTML(layout=WIDE), widgets.HTML(layout=WIDE)
        both = widgets.HBox([self.picture, self.json])
        self.view = widgets.VBox([both, self.said, self.upload, self.path, self.link], layout=WIDE)
        self.view.add_class("xai-keeping")
        self.picture.on_click(lambda _: self._save(".png"))
        self.json.on_click(lambda _: self._save(".json"))
        self.upload.observe(self._uploaded, "value")
        self.path.observe(self._named, "value")

    def _save(self, ending):
        self.said.value = ""  # the same file can be saved again
        try:
            self.said.value = drawing.download(*self._files()[ending])
        except ValueError as error:
            self.complain(error)

    def _uploaded(self, change):
        if self.upload.value:
            content = bytes(self.upload.value[-1]["content"])
            self.upload.value = ()
            self._open(lambda: parsed(content.decode()))

    def _named(self, change):
        if self.path.value:
            self._open(lambda: read(self.path.value, self._folders()))

    def _open(self, state):
        try:
            self._opened(state())
        except (ValueError, OSError) as error:  # of JSON and of UTF-8, too
            self.complain(error)

    def complain(self, message):
        """Say why something could not be saved or opened."""
        self.said.value = drawing.complaint(message)

    def point(self, state):
        """Lead to `state`: by a link on a page of voila's, by what to write in a notebook."""
        self.said.value = ""  # which was of another state
        address = drawing.text(link(state))
        if "VOILA_REQUEST_URL" in os.environ:
            self.link.value = f'<p><a href="{address}">link to what is shown</a></p>'
        else:
            self.link.value = (
                f"<details><summary>to show this again</summary>inspector(&quot;{address}&quot;)</details>"
            )


def without_uploads(state):
    """A state that names the images that were uploaded, and does not hold them."""
    sides = [side | {"image": {k: v for k, v in side["image"].items() if k != "content"}} for side in state["sides"]]
    return state | {"sides": sides}


def link(state):
    """The query that opens a state again. An upload is no part of it."""
    return f"?{STATE}={quote(json.dumps(without_uploads(state), separators=(',', ':'), ensure_ascii=False))}"


def read(given, folders=()):
    """The state in a link, a query or the path of a JSON file, or that is given itself; None where a query holds none.

    Paths as in `pictures.within`. ValueError and OSError, saying what is wrong.
    """
    if isinstance(given, dict):
        return parsed(json.dumps(given))
    if "?" in given:
        (found,) = parse_qs(urlsplit(given).query).get(STATE, [None])[-1:]
        return None if found is None else parsed(found)
    return parsed(within(given, folders).read_text(encoding="utf-8"))


def parsed(text):
    """The state in a text; ValueError where it is none."""
    try:
        state = json.loads(text)
        sides, methods, display = state["sides"], state["methods"], state["display"]
        fits = 1 <= len(sides) <= 2 and all(side["image"]["kind"] and side["network"] for side in sides)
        fits = fits and all(each is None or {"method", "options"} <= set(each) for each in methods) and dict(display)
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError("this is no saved inspection; choose a JSON that this page has saved")
    return state


def identity(asked):
    """What tells whether a state is opened with the image and the network that it was saved with."""
    return {"image": asked.image, "network": asked.subject.weights}


def facts(state, asked, shown):
    """A state with what was found in it, ready for JSON."""
    found = [
        identity(each)
        | {"image_name": each.picture.name, "label": each.picture.label, "size": each.subject.size}
        | {"architecture": each.subject.model.architecture, "notices": each.subject.notices}
        | {"probability": float(each.probabilities[each.target]), "curves": each.subject.curves}
        | {"maps": [seen.about for seen in shown if seen.side == side and isinstance(seen.answer, Explanation)]}
        if each is not None
        else None
        for side, each in enumerate(asked)
    ]
    return state | {"found": found}


def files(state, asked, shown, display):
    """What is shown, as files: ending -> (name, content, kind). ValueError where nothing is."""
    saved, rows, asked = facts(state, asked, shown), [], [each for each in asked if each is not None]
    if not asked:
        raise ValueError("there is nothing to save yet; choose an image")
    for each in shown:
        if isinstance(each.answer, Explanation):
            image = plots.pixels(each.question.asked.picture.pixels)
            tiles = [image, overlay(each, display, display.opacity), overlay(each, display, 1.0), masked(each, display)]
            rows.append((each.title, each.outlines, tiles))
    rows = rows or [("", (), [plots.pixels(each.picture.pixels)]) for each in asked]
    title = "; ".join(f"{each.name} in {each.picture.name}" for each in asked) + f"; {display.clipping}"
    inside = json.dumps(without_uploads(saved), ensure_ascii=False)
    picture = sheet(title, rows, curves(shown), {"settings": inside})
    text = json.dumps(saved, indent=1, ensure_ascii=False).encode()
    name = f"inspection-{hashlib.sha256(text).hexdigest()[:8]}"
    return {
        ".png": (f"{name}.png", picture, "image/png"),
        ".json": (f"{name}.json", text, "application/json"),
    }


def _curves_figure(found):
    """What `drawing.curves` shows, as a figure."""
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(8.4, 2.5))
        axes = figure.subplots(1, 2, sharey=True)
        for axis, name, word in zip(axes, ("insertion", "deletion"), ("inserted", "deleted"), strict=True):
            for place, side, title, each in found:
                values, label = getattr(each, name), f"{title}  {getattr(each, f'{name}_area'):.3f}"
                drawn = {"color": drawing.SERIES[place], "ls": LINES[side], "lw": 1.6}
                axis.plot(np.linspace(0, 1, len(values)), values, label=label, **drawn)
            axis.set(xlabel=f"share of pixels {word}, most salient first", xlim=(0, 1), ylim=(0, 1.02))
            axis.legend(title=f"area under {name}", fontsize=7, title_fontsize=7.5)
        axes[0].set_ylabel("class probability")
    return figure


def sheet(title, rows, found, facts):
    """All that is shown as one PNG file: rows of (name, outlines, pictures (S, S, 3)), and the curves below."""
    names, outlines, pictures = zip(*rows, strict=True)
    grid = plots.image_grid(
        pictures, row_titles=names, column_titles=["image", "overlay", "map", "top pixels"], cell=1.7
    )
    grid.suptitle(title, fontsize=8, parse_math=False)
    for place, axis in enumerate(grid.axes):
        for each in outlines[place // 4] if axis.images else ():
            lines = np.array(each.lines) - 0.5  # the middle of the first pixel is drawn at 0
            axis.add_collection(LineCollection(lines, colors=each.colour, linewidths=1), autolim=False)
    figures = [grid, *([_curves_figure(found)] if found else [])]
    opened = [plots.rendered(figure) for figure in figures]
    page = Image.new("RGB", (max(each.width for each in opened), sum(each.height for each in opened)), "white")
    top = 0
    for each in opened:
        page.paste(each, (0, top))
        top += each.height
    return drawing.png(np.asarray(page) / 255, facts)
