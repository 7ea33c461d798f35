"""One method of the page: its picker, its pictures, its progress and its options."""

import ipywidgets as widgets

from xai_utils.explainers import EXPLAINERS
from xai_utils.widgets.subject import spoken

NONE = "none"
WIDE = {"width": "100%"}


class Column:
    """One method: its picker, its pictures, its progress and its options. `changed()` is called for any change."""

    def __init__(self, subject, place, method, changed):
        self.subject, self.place, self._changed = subject, place, changed
        names = [
            (EXPLAINERS[name].label + (" (untrained)" if name in subject.missing else ""), name)
            for name in subject.methods
        ]
        self.picker = widgets.Dropdown(
            options=[*([("no method", NONE)] if place else []), *names],
            value=method,
            layout=WIDE,
            tooltip=f"method {place + 1}",
        )
        self.output = widgets.HTML(layout=WIDE)
        self.bar = widgets.IntProgress(layout=WIDE)
        self.stop = widgets.Button(description="cancel", layout={"width": "72px"})
        self.progress = widgets.HBox([self.bar, self.stop])
        self.options = widgets.VBox(layout=WIDE)
        self.picker.observe(self._picked, "value")
        self.box = widgets.VBox([self.picker, self.output, self.progress, self.options])
        self.box.add_class("xai-column")
        self._picked()

    @property
    def method(self):
        return None if self.picker.value == NONE else self.picker.value

    @property
    def values(self):
        """The options as they are set."""
        return {name: widget.value for name, widget in self._widgets.items()}

    def _picked(self, change=None):
        self._widgets = (
            {} if self.method is None else {each.name: _widget(each) for each in self.subject.settings(self.method)}
        )
        for widget in self._widgets.values():
            widget.observe(self._changed, "value")
        self.options.children = list(self._widgets.values())
        if change:
            self._changed(change)


def _widget(setting):
    """The widget of one setting."""
    words = setting.word
    width = "84px" if len(words) > 2 else "20px"
    about = {"description": words, "value": setting.default, "layout": WIDE, "style": {"description_width": width}}
    if setting.choices:
        return widgets.Dropdown(options=[(spoken(choice), choice) for choice in setting.choices], **about)
    if isinstance(setting.default, int):
        return widgets.BoundedIntText(min=setting.low, max=setting.high, continuous_update=False, **about)
    step = 0.05 if setting.high > 1 else 0.01  # the browser moves a value to the next step: defaults must lie on one
    return widgets.FloatSlider(min=setting.low, max=setting.high, step=step, readout_format=".2f", **about)
