"""One network's page of the inspector: pick an image, a class and up to four methods, and see what each of them says.

Whatever is chosen ends in `_refresh`: it makes at once what is quick, asks the lane for what is slow, and shows what is
known (`Answers`).
"""

import hashlib
import json
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from xai_utils import plots
from xai_utils.datasets import DataError
from xai_utils.explainers import passes
from xai_utils.widgets import drawing, pictures, saving
from xai_utils.widgets.answers import Answers
from xai_utils.widgets.column import NONE, Column
from xai_utils.widgets.layout import Layout
from xai_utils.widgets.subject import Curves, Explanation, spoken

COLUMNS = 4
MANY = 20  # classes that nobody scrolls through
FIRST = ("akd", "dgle_cf", "fastcam", "grad_cam", "gradient", "smoe")  # shown first, as far as they can answer


class Shown(NamedTuple):
    """What is known of one column."""

    column: Column
    key: tuple
    answer: Explanation | Exception | None  # None: not yet
    curves: Curves | Exception | None
    score: float | None  # class probability of the masked image

    @property
    def title(self):
        return f"{self.column.place + 1} {spoken(self.column.method)}"


class Given(NamedTuple):
    """An image from outside, to be asked about again when another network answers: the page's kind, path and upload."""

    kind: str = ""
    file: str = ""
    upload: tuple = ()  # (content, name)


NOTHING = Given()


class Inspector(Layout):
    """The page for one `Subject`: what its widgets do. `given`: the image to begin with, where it is one's own."""

    def __init__(self, subject, given=NOTHING):
        self.subject = subject
        self._lock, self._quiet, self._declined = threading.RLock(), False, set()
        self.answers = Answers(subject, done=self._arrived, progress=self._advanced)
        self.picture = self.probabilities = self._stack = None
        able = [method for method in FIRST if method not in subject.missing]
        first = [*able[:COLUMNS], *[NONE] * COLUMNS]
        self.columns = [Column(subject, place, first[place], self._refresh) for place in range(COLUMNS)]
        super().__init__(subject.source, subject.about, subject.notices, [column.box for column in self.columns])
        self.search.layout.display = "" if len(subject.classes) > MANY else "none"
        self._upload = given.upload
        if given.kind in ("file", "upload"):
            self.kind.value, self.file.value = given.kind, given.file
        self._listen()
        self._pick()

    @property
    def given(self):
        """The image from outside that is asked about; empty where it is none."""
        return (
            Given(self.kind.value, self.file.value, self._upload) if self.kind.value in ("file", "upload") else NOTHING
        )

    def _listen(self):
        for widget in (self.split, self.label, self.number, self.kind, self.file):
            widget.observe(self._pick, "value")
        for widget in (self.target, self.opacity, self.colour_map, self.share, self.hidden, self.pixel):
            widget.observe(self._refresh, "value")
        self.upload.observe(self._uploaded, "value")
        self.search.observe(self._search, "value")
        self.save.on_click(self._save)
        for column in self.columns:
            column.stop.on_click(lambda _, column=column: self._stop(column))

    # ---------------------------------------------------------------- which image, which class

    def _pick(self, change=None):
        """Look at the image that is chosen now; where there is none, the last one stays."""
        with self._lock:
            if self._quiet:
                return
            kind, source = self.kind.value, self.subject.source
            ours = kind not in ("file", "upload")
            count = source.count(self.split.value, self.label.value) if ours else 0
            for widget, needed in (
                (self.label, True),
                (self.split, len(self.split.options) > 1),
                (self.number, count != 1),
            ):
                widget.layout.display = "" if ours and needed else "none"
            self.file.layout.display = "" if kind == "file" else "none"
            self.upload.layout.display = "" if kind == "upload" else "none"
            if ours:
                self._quiet, self.number.max, self._quiet = True, max(0, count - 1), False
                if count:
                    self._look_at(lambda: source.picture(self.split.value, self.label.value, self.number.value))
                else:
                    self._complain(f"{self.split.value} holds no image of {self.label.value}; choose another class")
            elif kind == "file" and self.file.value:
                self._look_at(self._file)
            elif kind == "upload" and self._upload:
                self._look_at(self._read_upload)

    def _file(self):
        given, subject = self.file.value, self.subject
        path = pictures.within(given, subject.folders)
        return pictures.read_picture(path, subject.size, geometry=subject.geometry, name=Path(given).name)

    def _uploaded(self, change=None):
        with self._lock:
            if not self.upload.value:
                return
            given = self.upload.value[-1]
            before, self._upload = self._upload, (bytes(given["content"]), given["name"])
            self.upload.value = ()  # the same file can be given again, and is not held twice
            if not self._look_at(self._read_upload):
                self._upload = before

    def _read_upload(self):
        return pictures.read_upload(*self._upload, self.subject.size, geometry=self.subject.geometry)

    def _complain(self, message):
        self.error.value = drawing.complaint(message) if message else ""

    def _look_at(self, opener):
        """Show what `opener` gives; whether it is an image, and if not, why."""
        try:
            picture = opener()
        except (DataError, OSError) as error:  # of the file system: a name too long, a folder that is closed
            self._complain(error)
            return False
        self._complain("")
        self.picture, self._image = picture, hashlib.sha256(picture.pixels.numpy().tobytes()).hexdigest()
        self.probabilities = self.subject.probabilities(self.answers.model, picture)
        try:
            self._stack = self.subject.stack(self.answers.model, picture)
        except ValueError as error:  # a network with one scale only
            self._stack = str(error)
        self._offer(int(self.probabilities.argmax()))
        self._refresh()
        return True

    def _search(self, change):
        """Offer the classes that are searched for; where there is but one, it is explained."""
        with self._lock:
            if self.picture is not None:
                found = self._searched()
                self._offer(found[0] if len(found) == 1 else self.target.value)
                self._refresh()

    def _searched(self):
        """The classes whose name holds what is searched for, the most probable first; none where nothing is."""
        word = self.search.value.strip().lower()
        order = self.probabilities.argsort(descending=True, stable=True).tolist()
        return [index for index in order if word and word in self.subject.classes[index].lower()]

    def _offer(self, chosen):
        """What can be explained: what is searched for, the five most probable classes, then all others by name."""
        classes = self.subject.classes
        first = [*self._searched(), *self.probabilities.topk(min(5, len(classes))).indices.tolist()]
        rest = sorted(set(range(len(classes))) - set(first), key=lambda index: classes[index])
        order = dict.fromkeys((*first, *rest))
        self._quiet = True
        self.target.options = [(f"{classes[i]}  ({100 * self.probabilities[i]:.1f} %)", i) for i in order]
        self.target.value, self._quiet = chosen, False

    # ---------------------------------------------------------------- what is known, and what is asked for

    def _key(self, column):
        return self.subject.key(*self._question(column))

    def _question(self, column):
        return self.picture, self.target.value, column.method, column.values

    def _shown(self):
        """What is known of each column that has a method."""
        keys = [(column, self._key(column)) for column in self.columns if column.method]
        known = self.answers.known
        return [Shown(c, key, known(key), known(("curves", key)), known(self._masked_key(key))) for c, key in keys]

    def _refresh(self, change=None):
        """Make what is quick, ask for what is slow, show what is known."""
        with self._lock:
            if self._quiet or self.picture is None:
                return
            curves, maps = {}, {}
            for column, key, answer, *_ in self._shown():
                if answer is None and self.answers.is_quick(column.method, column.values):
                    self.answers.explain(key, *self._question(column))
            for column, key, answer, known, _ in self._shown():
                if answer is None and key not in self._declined:
                    maps[key] = self.answers.map_task(*self._question(column))
                elif isinstance(answer, Explanation) and known is None:
                    curves["curves", key] = self.answers.curves_task(self.picture, self.target.value, answer)
            self.answers.lane.want(curves | maps)
            self._score_masked()
            self._draw(self._shown())

    def _arrived(self, key, answer):
        with self._lock:
            self.answers.keep(key, answer)
            self._refresh()

    def _advanced(self, key, images):
        with self._lock:
            for column in self.columns:
                if column.method and self._key(column) == key:
                    column.bar.value = min(images, column.bar.max)

    def _stop(self, column):
        """Cancel the column's map, or ask for it again."""
        with self._lock:
            self._declined ^= {self._key(column)}
            self._refresh()

    def _score_masked(self):
        """The class probability of each masked image, all new ones in one pass."""
        waiting = {
            self._masked_key(each.key): self._masked(each.answer)
            for each in self._shown()
            if isinstance(each.answer, Explanation) and each.score is None
        }
        if waiting:
            images = torch.stack(list(waiting.values()))
            scores = self.subject.class_probabilities(self.answers.model, images, self.target.value)
            for key, score in zip(waiting, scores, strict=True):
                self.answers.keep(key, score)

    def _masked_key(self, key):
        return ("masked", key, self.share.value, self.hidden.value)

    # ---------------------------------------------------------------- what is shown

    def _draw(self, shown):
        mark, by_place = self._marked(), {each.column.place: each for each in shown}
        for column in self.columns:
            each = by_place.get(column.place)
            column.output.value = self._column_html(each, mark) if each else ""
            column.progress.layout.display = "" if each and each.answer is None else "none"
            if each and each.answer is None:
                declined = each.key in self._declined
                column.bar.max = passes(column.method, column.values)
                column.bar.layout.visibility = "hidden" if declined else "visible"
                column.stop.description = "explain" if declined else "cancel"
                if self.answers.lane.running != each.key:
                    column.bar.value = 0
        self.curves.value = drawing.curves(self._found(shown))
        true = "" if self.picture.label is None else f", true class: {self.picture.label}"
        image, caption = plots.pixels(self.picture.pixels), f"{self.picture.name}{true}"
        self.card.value = self._shot("image", lambda: image, caption, "the explained image", mark) + drawing.answers(
            self.probabilities, self.subject.classes, self.target.value
        )
        self.layer_strip.value = self._layers_html()
        explained = [(each.title, each.answer) for each in shown if isinstance(each.answer, Explanation)]
        self.reading.value = drawing.reading(mark, self.picture, explained, self.share.value)
        self.saved.value = ""

    @staticmethod
    def _found(shown):
        """The curves that are there, as (place, title, Curves)."""
        return [(each.column.place, each.title, each.curves) for each in shown if isinstance(each.curves, Curves)]

    def _shot(self, key, pixels, caption, alt, mark):
        """A clickable picture of what `pixels()` (S, S, 3) gives, encoded once for each image and `key`."""
        picture = self.answers.once(("picture", self._image, key), lambda: drawing.address(drawing.png(pixels())))
        return drawing.shot(picture, self.subject.size, caption, alt=alt, clickable=True, mark=mark)

    def _layers_html(self):
        if isinstance(self._stack, str):
            return f"<p>{drawing.text(self._stack)}</p>"
        key = ("layers", self._image, self.colour_map.value)
        return self.answers.once(key, lambda: drawing.layers(*self._stack, self.colour_map.value))

    def _overlay(self, explanation, opacity):
        colours = self.colour_map.value
        drawn = {"opacity": opacity, "colour_map": colours, "percentile": plots.PERCENTILE}
        return plots.overlay(self.picture.pixels, explanation.scores, **drawn)

    def _masked(self, explanation):
        return self.subject.masked(self.picture, explanation, self.share.value / 100, self.hidden.value)

    def _column_html(self, shown, mark):
        column, key, answer, curves, score = shown
        if not isinstance(answer, Explanation):
            waiting = "cancelled" if key in self._declined else "explaining …"
            return drawing.blank(waiting if answer is None else str(answer) or type(answer).__name__)
        name, share, colours = spoken(column.method), self.share.value, self.colour_map.value
        low, high = answer.scores.aminmax()
        shots = []
        for opacity, caption, alt in (
            (self.opacity.value, f"overlay, colours to {plots.PERCENTILE} %", f"{name} over the image"),
            (1.0, f"map, {low:.3g} to {high:.3g}", f"the map of {name}"),
        ):
            drawn = (key, colours, opacity)
            shots.append(self._shot(drawn, lambda o=opacity: self._overlay(answer, o), caption, alt, mark))
        kept, alt = f"top {share} % of the pixels", f"the pixels that {name} ranks first"
        shots.append(self._shot(self._masked_key(key), lambda: plots.pixels(self._masked(answer)), kept, alt, mark))
        areas = ["…" if curves is None else "failed"] * 2
        if isinstance(curves, Curves):
            areas = [f"{curves.insertion_area:.3f}", f"{curves.deletion_area:.3f}"]
        numbers = [
            (f"class, top {share} %", f"{100 * score:.1f} %"),
            ("insertion ↑", areas[0]),
            ("deletion ↓", areas[1]),
            ("time over a plain pass", f"{answer.over_a_pass:.1f} ({1000 * answer.seconds:.0f} ms)"),
        ]
        found = "".join(shots) + drawing.facts(numbers)
        if column.method == "dgle_cf":
            found += drawing.density(answer.scores, column.values["eta"], column.values["exponent"])
        return found

    def _marked(self):
        """The pixel (x, y) that was clicked or typed, or None."""
        words = self.pixel.value.replace(",", " ").split()
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            return None
        x, y = map(int, words)
        return (x, y) if x < self.subject.size and y < self.subject.size else None

    # ---------------------------------------------------------------- what is saved

    def settings(self):
        """All that is set and its numbers, ready for JSON."""
        methods = [
            {"method": each.column.method, "options": each.column.values, "masked_score": each.score}
            | {"seconds": each.answer.seconds, "time over a plain pass": each.answer.over_a_pass}
            | (each.curves._asdict() if isinstance(each.curves, Curves) else {})
            for each in self._shown()
            if isinstance(each.answer, Explanation)
        ]
        image = {"name": self.picture.name, "label": self.picture.label, "sha256": self._image}
        return {
            "image": image | {"size": self.subject.size},
            "class": self.subject.classes[self.target.value],
            "probability": float(self.probabilities[self.target.value]),
            "network": {"architecture": self.subject.model.architecture, "weights_sha256": self.subject.weights},
            "notices": self.subject.notices,
            "display": {"opacity": self.opacity.value, "colour_map": self.colour_map.value},
            "masked": {"share": self.share.value / 100, "hidden": self.hidden.value},
            "pixel": self._marked(),
            "curves": self.subject.curves,
            "methods": methods,
        }

    def files(self):
        """What is shown, as files: name -> (content, kind)."""
        with self._lock:
            text, shown = json.dumps(self.settings(), indent=1, ensure_ascii=False), self._shown()
            image = plots.pixels(self.picture.pixels)
            rows = []
            for each in shown:
                if isinstance(answer := each.answer, Explanation):
                    tiles = [self._overlay(answer, self.opacity.value), self._overlay(answer, 1.0)]
                    rows.append((each.title, [image, *tiles, plots.pixels(self._masked(answer))]))
            title = f"{self.subject.classes[self.target.value]} in {self.picture.name}"
            picture = saving.sheet(title, rows or [("", [image])], self._found(shown), {"settings": text})
        name = f"inspection-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return {f"{name}.png": (picture, "image/png"), f"{name}.json": (text.encode(), "application/json")}

    def _save(self, _):
        if self.picture is None:
            self._complain("there is nothing to save yet; choose an image")
        else:
            self.saved.value = drawing.downloads(self.files())

    # ---------------------------------------------------------------- for those who drive it without a page

    def wait(self, timeout=60.0) -> bool:
        """Until nothing is left to compute; whether that came within `timeout` seconds."""
        return self.answers.lane.wait(timeout)

    def close(self):
        """End the work in the background."""
        self.answers.lane.close()
