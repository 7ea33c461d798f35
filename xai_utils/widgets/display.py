"""How answers are shown: what can be set without asking a network anew."""

from typing import NamedTuple

import ipywidgets as widgets

from xai_utils import plots
from xai_utils.widgets.truth import NOTHING

COLOUR_MAPS = ("viridis", "magma", "inferno", "turbo", "jet", "coolwarm", "gray")
HIDDEN = ("black", "mean", "blur")
WIDE, STYLE = {"width": "100%"}, {"description_width": "84px"}


class Display(NamedTuple):
    """What is set."""

    opacity: float
    percentile: float  # of a map, where its colours end
    colour_map: str
    share: int  # percent of the pixels that the masked image keeps
    hidden: str  # what its other pixels show
    outlined: str  # a kind of `truth`
    pixel: str  # "x, y", as it was clicked or typed

    def mark(self, size):
        """The pixel (x, y) of an image of `size` that is read, or None."""
        words = self.pixel.replace(",", " ").split()
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            return None
        x, y = map(int, words)
        return (x, y) if x < size and y < size else None

    @property
    def clipping(self):
        """Where the colours end, in words."""
        end = "the maximum" if self.percentile == 100 else f"percentile {self.percentile:g}"
        return f"colours end at {end}"


class DisplayControls:
    """The widgets, one for each field of `Display`, by its name; `changed()` is called for any change."""

    def __init__(self, changed):
        def slider(kind, description, value, low, high, step):
            given = {"min": low, "max": high, "step": step, "layout": WIDE, "style": STYLE}
            return kind(value=value, description=description, **given)

        def dropdown(description, options):
            return widgets.Dropdown(description=description, options=options, layout=WIDE, style=STYLE)

        self.widgets = {
            "opacity": slider(widgets.FloatSlider, "opacity", 0.55, 0, 1, 0.05),
            "percentile": slider(widgets.FloatSlider, "colours to %", plots.PERCENTILE, 90, 100, 0.5),
            "colour_map": dropdown("colours", COLOUR_MAPS),
            "share": slider(widgets.IntSlider, "top pixels %", 10, 1, 100, 1),
            "hidden": dropdown("the rest is", HIDDEN),
            "outlined": dropdown("outline", (NOTHING,)),
            "pixel": widgets.Text(
                placeholder="click a picture, or x, y",
                continuous_update=False,
                description="read pixel",
                layout=WIDE,
                style=STYLE,
            ),
        }
        self.widgets["percentile"].readout_format = ".1f"
        self.widgets["pixel"].add_class("xai-pixel")
        self.view = widgets.Box(list(self.widgets.values()), layout=WIDE)
        self.view.add_class("xai-display")
        for widget in self.widgets.values():
            widget.observe(changed, "value")

    def offer(self, kinds):
        """What can be outlined now; what is chosen stays where it can."""
        outlined = self.widgets["outlined"]
        if outlined.options != kinds:
            chosen = outlined.value if outlined.value in kinds else NOTHING
            with outlined.hold_trait_notifications():
                outlined.options, outlined.value = kinds, chosen
        outlined.layout.display = "" if len(kinds) > 1 else "none"

    @property
    def values(self):
        return Display(*(self.widgets[name].value for name in Display._fields))
