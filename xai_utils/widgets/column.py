"""One method of the page: its picker, its pictures, its progress and its options."""

import ipywidgets as widgets

from xai_utils.explainers import EXPLAINERS
from xai_utils.widgets.drawing import text
from xai_utils.widgets.subject import spoken

NONE = "none"
WIDE = {"width": "100%"}


class Column:
    """One method of the `subjects` that answer, with the options of the first that has it; it becomes another, or an
    option does, within `changing(self)`.
    """

    def __init__(self, place, changing):
        self.place, self._changing, self.subjects = place, changing, []
        about = {"description": f"method {place + 1}", "style": {"description_width": "62px"}}
        self.picker = widgets.Dropdown(options=[("no method", NONE)], layout=WIDE, **about)
        self.output = widgets.HTML(layout=WIDE)
        self.bar = widgets.IntProgress(layout=WIDE)
        self.stop = widgets.Button(description="cancel", layout={"width": "72px"})
        self.progress = widgets.HBox([self.bar, self.stop], layout={"display": "none"})
        self.options = widgets.VBox(layout=WIDE)
        self.box = widgets.VBox([self.picker, self.output, self.progress, self.options])
        self.box.add_class("xai-column")
        for own in (self.output, self.bar):  # of what was asked last
            own.add_class("xai-own")
        self._widgets, self._quiet, self._running = {}, False, None
        self.picker.observe(self._picked, "value")

    def offer(self, subjects, method=None):
        """The methods of `subjects`; the one that is picked stays with its options, unless another is given."""
        self.subjects, before = list(subjects), self.values if method is None else {}
        chosen = method or self.picker.value
        names = subjects[0].methods if subjects else []
        untrained = {name for name in names if all(name in subject.missing for subject in subjects)}
        words = [(EXPLAINERS[name].label + (" (untrained)" if name in untrained else ""), name) for name in names]
        self._quiet = True
        self.picker.options = [("no method", NONE), *words]
        self.picker.value = chosen
        self._rebuild()
        for name, value in before.items():
            if name in self._widgets and _allows(self._widgets[name], value):
                self._widgets[name].value = value
        self._quiet = False

    @property
    def method(self):
        return None if self.picker.value == NONE else self.picker.value

    @property
    def values(self):
        """The options as they are set."""
        return {name: widget.value for name, widget in self._widgets.items()}

    def restore(self, state):
        """Set what `state` says: {"method", "options"}, or None. ValueError for what cannot be set."""
        method, options = (NONE, {}) if state is None else (state["method"], state["options"])
        known = [value for _, value in self.picker.options]
        if method not in known:
            raise ValueError(f"method {method!r} is unknown; choose one of {', '.join(known[1:])}")
        self.picker.value = method
        for name, value in options.items():
            if name not in self._widgets:
                raise ValueError(f"{method} has no option {name!r}; it has {', '.join(self._widgets) or 'none'}")
            if not _allows(self._widgets[name], value):
                raise ValueError(f"{method}: {name} cannot be {value!r} here")
            self._widgets[name].value = value

    def show(self, shown, html):
        """Show `html`, and how far what is `shown` (`panel.Seen`) is where it takes long."""
        self.output.value = html
        waiting = [each for each in shown if each.answer is None and not each.question.is_quick]
        self.progress.layout.display = "" if waiting else "none"
        if waiting:
            declined = all(each.declined for each in waiting)
            key = next((each.key for each in waiting if not each.declined), None)
            if key != self._running:
                self._running, self.bar.value, self.bar.max = key, 0, waiting[0].question.passes
            self.bar.layout.visibility = "hidden" if declined else "visible"
            self.stop.description = "explain" if declined else "cancel"

    def _picked(self, change):
        if not self._quiet:
            with self._changing(self):
                self._rebuild()

    def _option_set(self, change):
        with self._changing(self):
            pass

    def _rebuild(self):
        able = [subject for subject in self.subjects if self.method not in subject.missing] or self.subjects
        settings = [] if self.method is None else able[0].settings(self.method)
        self._widgets = {each.name: _widget(each) for each in settings}
        for widget in self._widgets.values():
            widget.observe(self._option_set, "value")
        shown = []
        for each in settings:
            told = [widgets.HTML(f'<p class="told">{text(each.told)}</p>', layout=WIDE)] if each.told else []
            shown += [self._widgets[each.name], *told]
        self.options.children = shown


def _allows(widget, value):
    if isinstance(widget, widgets.Dropdown):
        return value in [each for _, each in widget.options]
    return isinstance(value, int | float) and widget.min <= value <= widget.max


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
