"""The inspector's page: ask one network about one image, or two sides by the same methods, and see what each map says.

What is set on the page ends in `_refresh`, which writes it down as one `Request`. All that is computed and shown since
then is of that request: `_update` asks the lanes for what is not known of it, and draws what is (`panel.Seen`). Lanes
never read a widget, so no answer can come to stand under the name of what was chosen meanwhile. From the moment at
which something else is chosen until that is asked for and drawn (`_changing`), nothing drawn before is seen.
"""

import functools
import os
import threading
from contextlib import contextmanager
from itertools import zip_longest
from typing import NamedTuple

import ipywidgets as widgets
from traitlets import TraitError

from xai_utils.widgets import around, drawing, keeping, truth
from xai_utils.widgets.answers import Answers, Asked, Question
from xai_utils.widgets.column import NONE, Column
from xai_utils.widgets.display import WIDE, Display, DisplayControls
from xai_utils.widgets.opening import openers, readable
from xai_utils.widgets.panel import Seen, panel
from xai_utils.widgets.side import Side
from xai_utils.widgets.subject import Explanation

COLUMNS, SIDES = 4, "AB"
OLDER = "xai-older"  # of a box: what it shows of answers is of what was set before, and hidden
FIRST = ("akd", "dgle_cf", "fastcam", "grad_cam", "gradient", "smoe")  # shown first, as far as they can answer


class Request(NamedTuple):
    """All that is set at one moment."""

    subjects: tuple  # the network of each side, one or two; None: none could be opened
    asked: tuple[Asked | None, ...]  # of each side; None: no image yet
    methods: tuple  # (place, method, options)
    display: Display


class Inspector:
    """The page. `view` is what a notebook shows; `networks`: what a network is called -> what opens its `Subject`.

    `chosen`: the network that is asked first, where it is one of them; else the first one is.
    """

    def __init__(self, networks, chosen=None):
        self._lock, self._quiet, self._older, self._declined = threading.RLock(), True, False, set()
        self._request, self._shown, self._settled = Request((), (), (), None), [], threading.Event()
        self._networks = {name: functools.cache(opener) for name, opener in networks.items()}
        self.answers = Answers(done=self._arrived, progress=self._advanced)
        self.sides = [Side(self._networks, self._changing, chosen=chosen)]
        self.columns = [Column(place, self._changing) for place in range(COLUMNS)]
        self.display = DisplayControls(self._refresh)
        self.keeping = keeping.Keeping(self.files, self.restore, self._folders)
        self.compare = widgets.Checkbox(description="compare with another image or network", indent=False, layout=WIDE)
        self._lay_out()
        self._first_methods()
        self.compare.observe(self._compared, "value")
        for column in self.columns:
            column.stop.on_click(lambda _, column=column: self._stop(column))
        self._quiet = False
        self._asked_anew()

    def _lay_out(self):
        self.status, self.curves, self.reading, self.layers = (widgets.HTML(layout=WIDE) for _ in range(4))
        self.status.add_class("xai-status")
        for own in (self.curves, self.reading, self.layers):
            own.add_class("xai-own")

        def title(words):
            return widgets.HTML(f"<h2>{words}</h2>")

        self._second, self._columns = widgets.VBox(layout=WIDE), widgets.Box([column.box for column in self.columns])
        first = [title("Image"), self.sides[0].view, self.compare, self._second]
        controls = widgets.VBox([*first, title("Save and open"), self.keeping.view])
        below = [
            title("Insertion and deletion"),
            self.curves,
            title("What each scale found worth encoding"),
            self.layers,
        ]
        above = [title("Display"), self.display.view, self.status]
        results = widgets.VBox([*above, self._columns, self.reading, *below])
        for box, name in ((controls, "xai-controls"), (self._columns, "xai-columns"), (results, "xai-results")):
            box.add_class(name)
        self.view = widgets.Box([widgets.HTML(drawing.look(), layout=WIDE), controls, results])
        self.view.add_class("xai-inspector")

    # ---------------------------------------------------------------- what is asked

    def _subjects(self):
        return [side.subject for side in self.sides if side.subject is not None]

    def _folders(self):
        return next((subject.folders for subject in self._subjects()), ())

    def _first_methods(self):
        """The methods that are shown first, of the first network."""
        subjects = self._subjects()
        able = [method for method in FIRST if subjects and method not in subjects[0].missing]
        self._began = [method for _, method in zip_longest(self.columns, able[:COLUMNS], fillvalue=NONE)]
        for column, method in zip(self.columns, self._began, strict=True):
            column.offer(subjects, method)

    @contextmanager
    def _changing(self, column=None):
        """Within it a side, or the method of a `column`, becomes another: what was drawn of it before is hidden."""
        if self._quiet:  # within another change
            yield
            return
        boxes = [self.view] if column is None else [column.box, self.curves, self.reading]
        with self._lock:
            self._older = True
            for box in boxes:
                box.add_class(OLDER)
            self.status.value = "asking …"
        try:
            yield
        finally:
            with self._lock:
                self._older = False
                self._asked_anew() if column is None else self._refresh()
                for box in boxes:
                    box.remove_class(OLDER)

    def _asked_anew(self):
        """A side asks another network, about another image or for another class."""
        subjects, quiet, self._quiet = self._subjects(), self._quiet, True
        if subjects != self.columns[0].subjects:
            another = subjects[:1] != self.columns[0].subjects[:1]
            first = [column.picker.value for column in self.columns] == self._began
            if another and first:
                self._first_methods()
            for column in self.columns:
                column.offer(subjects)
        for side in self.sides[1:]:
            side.follow()
        found = [truth.kinds(side.asked.picture) for side in self.sides if side.asked is not None]
        self.display.offer(tuple(dict.fromkeys((truth.NOTHING, *(kind for kinds in found for kind in kinds)))))
        self._quiet = quiet
        self._refresh()

    def _compared(self, change):
        """Show a second side, or hide it."""
        with self._changing():
            if self.compare.value:
                self.sides.append(Side(self._networks, self._changing, self.sides[0]))
                self._second.children = [widgets.HTML("<h2>B: compared with it</h2>"), self.sides[1].view]
                self._columns.add_class("two")
            else:
                self.sides.pop()
                self._second.children = []
                self._columns.remove_class("two")

    def _refresh(self, change=None):
        """From now on what is set now is computed and shown, and nothing else."""
        if self._quiet:
            return
        with self._lock:
            methods = tuple((column.place, column.method, column.values) for column in self.columns if column.method)
            sides = zip(*((side.subject, side.asked) for side in self.sides), strict=True)
            self._request = Request(*sides, methods, self.display.values)
            self.keeping.point(self.state())  # first, so that a link never lags behind what is drawn
            self._update()

    # ---------------------------------------------------------------- what is known

    def _seen(self):
        """All that is known of the answers to the request."""
        known, (_, asked, methods, display), found = self.answers.known, self._request, []
        for side, each in enumerate(asked):
            if each is None:
                continue
            outlines, seconds = self._outlines(each), self.answers.plain_seconds(each.subject)
            letter = SIDES[side] if len(asked) > 1 else ""
            for place, method, options in methods:
                question = Question(each, method, options)
                key = question.key
                of_map = known(key), known(("curves", key)), known(("score", key, display.share, display.hidden))
                found.append(
                    Seen(place, side, letter, question, key, *of_map, outlines, seconds, key in self._declined)
                )
        return found

    def _outlines(self, asked):
        kind, deciding = self._request.display.outlined, self.answers.known(_deciding(asked))
        names = deciding if isinstance(deciding, tuple) else None
        key = ("outlines", asked.image, asked.picture.name, asked.subject.weights, asked.target, kind, names)
        return self.answers.once(key, lambda: truth.outlines(kind, asked, names))

    def _update(self):
        """Ask for what is not known of the request, in the order in which it is wanted, and show what is."""
        answers, (_, asked, _, display), shown = self.answers, self._request, self._seen()
        quick, scores, slow, curves = {}, {}, {}, {}
        for each in shown:
            if each.answer is None and not each.declined:
                (quick if each.question.is_quick else slow)[each.key] = answers.map_task(each.question)
            elif isinstance(each.answer, Explanation):
                given = each.question, each.answer
                if each.score is None:
                    key = "score", each.key, display.share, display.hidden
                    scores[key] = answers.masked_task(*given, display.share / 100, display.hidden)
                if each.curves is None:
                    curves["curves", each.key] = answers.curves_task(*given)
        deciding = {
            _deciding(each): answers.deciding_task(each)
            for each in asked
            if each is not None and display.outlined == truth.DECIDING and each.picture.deciding
            if answers.known(_deciding(each)) is None
        }
        quick, slow = quick | scores | deciding, curves | slow
        self._settled.clear()
        answers.want(quick, slow)
        self._draw(shown)
        if not (quick or slow):
            self._settled.set()

    def _arrived(self, key, answer):
        with self._lock:
            self.answers.keep(key, answer)
            if not self._older:
                self._update()

    def _advanced(self, key, images):
        with self._lock:
            for each in self._shown:
                if each.key == key:
                    bar = self.columns[each.place].bar
                    bar.value = min(images, bar.max)

    def _stop(self, column):
        """Cancel the column's maps, or ask for them again."""
        with self._lock:
            waiting = {each.key for each in self._shown if each.place == column.place and each.answer is None}
            self._declined = self._declined - waiting if waiting <= self._declined else self._declined | waiting
            self._update()

    # ---------------------------------------------------------------- what is shown

    def _draw(self, shown):
        answers, (subjects, asked, _, display) = self.answers, self._request
        self._shown, marks = shown, [each and display.mark(each.subject.size) for each in asked]
        for column in self.columns:
            own = [each for each in shown if each.place == column.place]
            column.show(own, panel(own, display, answers.once, [marks[each.side] for each in own]) if own else "")
        for side, subject, each, mark in zip(self.sides, subjects, asked, marks, strict=False):
            said = around.card(each, self._outlines(each), answers.once, mark) if each else ""
            side.card.value = (drawing.about(subject.about, subject.notices) if subject else "") + said
        self.curves.value = drawing.curves(around.curves(shown))
        self.layers.value = "".join(around.layers(each, display.colour_map, answers.once) for each in asked if each)
        self.reading.value = around.reading(shown, marks, display.share)
        self.status.value = around.told(shown)

    # ---------------------------------------------------------------- what is kept

    def state(self):
        """All that is set, ready for JSON: what `restore` takes."""
        methods = [{"method": each.method, "options": each.values} if each.method else None for each in self.columns]
        sides = [side.state() for side in self.sides]
        return {"sides": sides, "methods": methods, "display": self.display.values._asdict()}

    def restore(self, state):
        """Set what `state` says, all or nothing. ValueError, saying why, where that cannot be set here."""
        before = self.state()
        with self._changing():
            try:
                self._restore(state)
            except (ValueError, KeyError, TypeError, TraitError) as error:
                self._restore(before)
                raise ValueError(f"this state cannot be opened: {error}") from None
        for side, found in zip(self.sides, state.get("found", ()), strict=False):
            now = side.asked and found and keeping.identity(side.asked)
            if now and (other := [name for name in now if now[name] != found[name]]):
                self.keeping.complain(f"since this was saved another: {' and '.join(other)} ({side.network.value})")

    def _restore(self, state):
        self._quiet = True
        try:
            self.compare.value = len(state["sides"]) > 1
            for side, given in zip(self.sides, state["sides"], strict=True):
                side.restore(given)
            self._asked_anew()
            for column, given in zip(self.columns, state["methods"], strict=True):
                column.restore(given)
            for name, value in state["display"].items():
                self.display.widgets[name].value = value
        finally:
            self._quiet = False

    def files(self):
        """What is shown, as files: ending -> (name, content, kind). ValueError where nothing is."""
        with self._lock:
            _, asked, _, display = self._request
            return keeping.files(self.state(), asked, self._shown, display)

    # ---------------------------------------------------------------- for those who drive it without a page

    def wait(self, timeout=60.0) -> bool:
        """Until nothing that was asked for is missing; whether that came within `timeout` seconds."""
        return self._settled.wait(timeout)

    def close(self):
        """End the work in the background."""
        self.answers.close()


def _deciding(asked):
    return "deciding", asked.image, asked.picture.name, asked.subject.weights, asked.target


def inspector(state=None, *, root=".", folders=None):
    """The inspector of a network of ImageNet and of what the pipeline in `root` has made, to be shown by a notebook.

    It begins in `state`: a link that a page has shown, the path of a JSON that it has saved, or its content; None: in
    that of the address in the browser, or as it is. The page reads files under `root` and `folders`; None: those that
    `make inspect` was given.
    """
    given = state or "?" + os.environ.get("QUERY_STRING", "")  # which voila sets
    wanted, problem = None, None
    try:
        wanted = keeping.read(given, readable(root, folders))
    except (ValueError, OSError) as error:
        problem = error
    page = Inspector(openers(root, folders), wanted and wanted["sides"][0]["network"])  # no other need be opened
    try:
        if wanted is not None:
            page.restore(wanted)
    except ValueError as error:
        problem = error
    if problem is not None:
        page.keeping.complain(problem)
    return page.view
