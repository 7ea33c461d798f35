"""The page's widgets: what there is to set and to see, and where it stands. What they do is page.py's."""

import ipywidgets as widgets

from xai_utils.datasets.folders import SUFFIXES
from xai_utils.widgets import drawing

COLOUR_MAPS = ("viridis", "magma", "inferno", "turbo", "jet", "coolwarm", "gray")
HIDDEN = ("black", "mean", "blur")


class Layout:
    """The widgets, without any behaviour; `view` is what a notebook shows.

    `source`: where images come from, or None (files and uploads only); `about`: which network answers, `notices`: what
    else a reader must know, as text; `boxes`: the methods' columns.
    """

    def __init__(self, source, about, notices, boxes):
        wide, style = {"width": "100%"}, {"description_width": "84px"}

        def dropdown(description, options, **more):
            return widgets.Dropdown(description=description, options=options, layout=wide, style=style, **more)

        kinds = [*([source.kind] if source else []), "file", "upload"]
        self.kind = widgets.ToggleButtons(options=kinds, style={"button_width": "84px"}, tooltips=kinds)
        self.split = dropdown("images", source.splits if source else [])
        self.label = dropdown(source.word if source else "class", source.classes if source else [])
        self.number = widgets.BoundedIntText(description="number", layout=wide, style=style)
        self.file = widgets.Text(
            placeholder="path of an image, then Enter",
            continuous_update=False,
            layout=wide,
            description="file",
            style=style,
        )
        self.upload = widgets.FileUpload(accept=",".join(sorted(SUFFIXES)), description="choose an image", layout=wide)
        self.error = widgets.HTML()
        self.card = widgets.HTML(layout=wide)
        self.search = widgets.Text(
            placeholder="a part of a class's name", description="find class", layout=wide, style=style
        )
        self.target = dropdown("explain", [])
        self.opacity = widgets.FloatSlider(
            value=0.55, min=0, max=1, step=0.05, description="opacity", layout=wide, style=style
        )
        self.colour_map = dropdown("colours", COLOUR_MAPS)
        self.share = widgets.IntSlider(value=10, min=1, max=100, description="top pixels %", layout=wide, style=style)
        self.hidden = dropdown("the rest is", HIDDEN)
        self.pixel = widgets.Text(
            placeholder="click a picture, or x, y",
            continuous_update=False,
            description="pixel",
            layout=wide,
            style=style,
        )
        self.pixel.add_class("xai-pixel")
        self.save = widgets.Button(description="save what is shown", layout=wide)
        self.saved, self.reading, self.layer_strip = widgets.HTML(), widgets.HTML(), widgets.HTML(layout=wide)
        self.curves = widgets.HTML(layout=wide)

        who = f'<p class="about">{drawing.text(about)}</p>'
        told = who + "".join(f'<p class="note">{drawing.text(notice)}</p>' for notice in notices)
        heading = widgets.HTML(f"{drawing.STYLE}{told}", layout=wide)

        def title(words):
            return widgets.HTML(f"<h2>{words}</h2>")

        image = [title("Image"), self.kind, self.split, self.label, self.number, self.file, self.upload, self.error]
        display = [title("Display"), self.opacity, self.colour_map, self.share, self.hidden, self.pixel]
        controls = widgets.VBox([*image, self.card, self.search, self.target, *display, self.save, self.saved])
        columns = widgets.Box(boxes)
        below = [title("Insertion and deletion"), self.curves, title("What each scale found worth encoding")]
        results = widgets.VBox([columns, self.reading, *below, self.layer_strip])
        for box, name in (
            (controls, "xai-controls"),
            (columns, "xai-columns"),
            (results, "xai-results"),
            (self.card, "xai-card"),
        ):
            box.add_class(name)
        view = widgets.Box([heading, controls, results])
        view.add_class("xai-inspector")
        self.view = view
