"""The inspector: which network answers, and that network's page (page.py)."""

import ipywidgets as widgets

from xai_utils.widgets import drawing
from xai_utils.widgets.opening import openers
from xai_utils.widgets.page import NOTHING, Inspector


class Choice:
    """The page of several networks: which one answers, and its `Inspector`. `view` is what a notebook shows.

    `openers`: what a network is called -> the function that opens its `Subject`. Another network begins a page of its
    own, so nothing that the last one said stays; an image of one's own is asked about again.
    """

    def __init__(self, openers):
        self._openers, self._opened, self.inspector = openers, {}, None
        self.picker = widgets.Dropdown(
            description="network", options=list(openers), layout={"width": "calc(100% - 16px)", "max_width": "460px"}
        )
        self.error = widgets.HTML()
        self._place = widgets.VBox(layout={"width": "100%"})
        self.view = widgets.VBox([self.picker, self.error, self._place])
        self.picker.observe(self._choose, "value")
        self._choose()

    def _choose(self, change=None):
        name = self.picker.value
        try:
            if name not in self._opened:
                self._opened[name] = self._openers[name]()
        except (ImportError, OSError, ValueError) as error:  # not installed, damaged, another version's
            self.error.value = f'{drawing.STYLE}<div class="xai-inspector">{drawing.complaint(error)}</div>'
            return
        self.error.value = ""
        given = NOTHING
        if self.inspector is not None:
            given = self.inspector.given
            self.inspector.close()
        self.inspector = Inspector(self._opened[name], given)
        self._place.children = [self.inspector.view]


def inspector(root=".", folders=None):
    """The inspector of a network of ImageNet and of what the pipeline in `root` has made, to be shown by a notebook.

    The page reads files under `root` and `folders`; None: those that `make inspect` was given.
    """
    return Choice(openers(root, folders)).view
