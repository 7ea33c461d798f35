"""One side of the page: which network is asked, about which image, for which class."""

import base64
import binascii
import hashlib
from functools import partial
from pathlib import Path

import ipywidgets as widgets

from xai_utils.datasets import DataError
from xai_utils.datasets.folders import SUFFIXES
from xai_utils.widgets import drawing, pictures
from xai_utils.widgets.answers import Asked
from xai_utils.widgets.display import STYLE, WIDE
from xai_utils.widgets.thumbnails import Thumbnails

FILE, UPLOAD, SAME = "file", "upload", "same"
WORDS = {FILE: "a file", UPLOAD: "an upload", SAME: "the image of A"}
MANY = 20  # classes that nobody scrolls through


class Side:
    """The widgets that choose, and what is `asked` (None: no image yet), which becomes another within `changing()`.

    `networks`: what a network is called -> the function that gives its `Subject`. `first`: the side whose image can be
    asked about here, too. `chosen`: the network to begin with. `subject` is None where none could be opened yet.
    """

    def __init__(self, networks, changing, first=None, chosen=None):
        self._networks, self._changing, self.first = networks, changing, first
        self.subject = self.asked = self._upload = self._image = self._followed = None
        self._quiet = False

        def text(description, placeholder, **more):
            return widgets.Text(description=description, placeholder=placeholder, layout=WIDE, style=STYLE, **more)

        def dropdown(description, options=()):
            return widgets.Dropdown(description=description, options=options, layout=WIDE, style=STYLE)

        self.network, self.kind = dropdown("network", tuple(networks)), dropdown("image from")
        if chosen in networks:
            self.network.value = chosen
        self.split, self.label = dropdown("images"), dropdown("class")
        self.number = widgets.BoundedIntText(description="number", layout=WIDE, style=STYLE)
        self.thumbnails = Thumbnails(self._picked)
        self.file = text("file", "path of an image, then Enter", continuous_update=False)
        self.upload = widgets.FileUpload(accept=",".join(sorted(SUFFIXES)), description="choose an image", layout=WIDE)
        self.error, self.card = widgets.HTML(), widgets.HTML(layout=WIDE)
        self.search, self.target = text("find class", "a part of a class's name"), dropdown("explain")
        self.card.add_class("xai-card")
        image = [self.kind, self.split, self.label, self.number, self.thumbnails.view, self.file, self.upload]
        image = widgets.VBox([*image, self.error], layout=WIDE)
        self.view = widgets.VBox([self.network, image, self.card, self.search, self.target], layout=WIDE)
        self.view.add_class("xai-side")
        for own in (image, self.thumbnails.view, self.card, self.target):  # of what was asked last
            own.add_class("xai-own")
        self._open()
        self.network.observe(self._network_chosen, "value")
        for widget in (self.split, self.label, self.number, self.kind, self.file):
            widget.observe(self._image_chosen, "value")
        self.upload.observe(self._uploaded, "value")
        self.search.observe(self._searched, "value")
        self.target.observe(self._class_chosen, "value")

    # ---------------------------------------------------------------- the network

    def _open(self):
        """Open the network that is chosen and look at its first image, or at that from outside; whether it opened."""
        try:
            subject = self._networks[self.network.value]()
        except (ImportError, OSError, ValueError) as error:  # not installed, damaged, another version's
            self._complain(error)
            if self.subject is not None:  # which still answers
                quiet, self._quiet = self._quiet, True
                self.network.value, self._quiet = self._opened, quiet
            return False
        self.subject, self._opened, quiet, self._quiet = subject, self.network.value, self._quiet, True
        self.asked = self._image = None  # another network said that
        self.target.options = ()
        sources = [source.kind for source in subject.sources]
        kinds = [*sources, FILE, UPLOAD, *([SAME] if self.first else [])]
        kept = self.kind.value if self.kind.value in (FILE, UPLOAD, SAME) else None
        self.kind.options = [(WORDS.get(kind, kind), kind) for kind in kinds]
        self.kind.value = kept or (SAME if self.first else kinds[0])
        self.search.layout.display = "" if len(subject.classes) > MANY else "none"
        self._offer_images()
        if not self._look() and sources and kept:  # nothing is chosen from outside
            self.kind.value = kinds[0]
            self._offer_images()
            self._look()
        self._quiet = quiet
        return True

    def _network_chosen(self, change):
        if not self._quiet:
            with self._changing():
                self._open()

    # ---------------------------------------------------------------- the image

    @property
    def source(self):
        """Where the image comes from; None: from outside, or from the first side."""
        sources = self.subject.sources if self.subject is not None else ()
        return next((each for each in sources if each.kind == self.kind.value), None)

    def _offer_images(self):
        """The splits, classes and numbers of the source that is chosen, and which widgets are of use for it."""
        source, kind = self.source, self.kind.value
        if source is not None:
            self.label.description = source.word
            for widget, options in ((self.split, source.splits), (self.label, source.classes)):
                if widget.options != tuple(options):
                    widget.options = tuple(options)
                    widget.value = options[0]
            count = source.count(self.split.value, self.label.value)
            self.number.max = max(0, count - 1)
        for widget, needed in (
            (self.split, source is not None and len(source.splits) > 1),
            (self.label, source is not None),
            (self.number, source is not None and count > 1),
            (self.file, kind == FILE),
            (self.upload, kind == UPLOAD),
        ):
            widget.layout.display = "" if needed else "none"

    def _show_thumbnails(self):
        """The images of the class that is picked; where each has one, the one of each class."""
        source, split, label, number = self.source, self.split.value, self.label.value, self.number.value
        count = 0 if source is None else source.count(split, label)
        if not count:
            self.thumbnails.view.layout.display = "none"
            return
        picks = [(label, place) for place in range(count)] if count > 1 else [(each, 0) for each in source.classes]
        items = [(self.subject.weights, source.kind, split, *pick) for pick in picks]

        def make(item):
            *_, label, number = item
            return str(number) if count > 1 else label, partial(source.picture, split, label, number)

        self.thumbnails.show(items, (self.subject.weights, source.kind, split, label, number), make)

    def _picked(self, item):
        self._quiet = True
        *_, self.label.value, self.number.value = item
        self._quiet = False
        self._image_chosen()

    def _image_chosen(self, change=None):
        if self._quiet or self.subject is None:
            return
        with self._changing():
            self._quiet = True
            self._offer_images()
            self._quiet = False
            self._look()

    def _uploaded(self, change):
        if not self.upload.value:
            return
        given = self.upload.value[-1]
        before, self._upload = self._upload, (bytes(given["content"]), given["name"])
        self.upload.value = ()  # the same file can be given again, and is not held twice
        with self._changing():
            if not self._look():
                self._upload = before

    def open_image(self, size, geometry, folders):
        """The `Picture` that is chosen, with `size` pixels a side; None where nothing is chosen yet."""
        source, kind = self.source, self.kind.value
        if source is not None:
            if not source.count(self.split.value, self.label.value):
                raise DataError(f"{self.split.value} holds no image of {self.label.value}; choose another class")
            return source.picture(self.split.value, self.label.value, self.number.value).at(size)
        if kind == FILE and self.file.value:
            path = pictures.within(self.file.value, folders)
            return pictures.read_picture(path, size, geometry=geometry, name=Path(self.file.value).name)
        if kind == UPLOAD and self._upload:
            return pictures.read_upload(*self._upload, size, geometry=geometry)
        return self.first.open_image(size, geometry, folders) if kind == SAME else None

    def _look(self):
        """Ask about the image that is chosen; whether there is one. Where there is none, the last one stays."""
        subject = self.subject
        self._complain("")
        self._show_thumbnails()
        self._followed = self.first and self.first._image
        try:
            picture = self.open_image(subject.size, subject.geometry, subject.folders)
        except (DataError, OSError) as error:  # of the file system: a name too long, a folder that is closed
            self._complain(error)
            return False
        if picture is None:
            return False
        probabilities = subject.probabilities(subject.model, picture)
        try:
            stack = subject.stack(subject.model, picture)
        except ValueError as error:  # a network with one scale only
            stack = str(error)
        cells = () if picture.cells is None else subject.classes_of(subject.model, picture.cells)
        chosen = cells[picture.explained] if cells else int(probabilities.argmax())
        image = hashlib.sha256(picture.pixels.numpy().tobytes()).hexdigest()
        self.asked = Asked(subject, picture, image, chosen, probabilities, stack, cells)
        self._image = self._described()
        self._offer_classes()
        return True

    def follow(self):
        """Ask about the first side's image, where that is the one that is asked about here and has become another."""
        if self.subject is not None and self.kind.value == SAME and self._followed is not self.first._image:
            self._look()

    def _complain(self, message):
        self.error.value = drawing.complaint(message) if message else ""

    # ---------------------------------------------------------------- the class

    def _matches(self):
        """The classes whose name holds what is searched for, the most probable first; none where nothing is."""
        word = self.search.value.strip().lower()
        order = self.asked.probabilities.argsort(descending=True, stable=True).tolist()
        return [index for index in order if word and word in self.subject.classes[index].lower()]

    def _offer_classes(self):
        """What can be explained: what is searched for, the five most probable classes, then all others by name."""
        classes, probabilities = self.subject.classes, self.asked.probabilities
        first = [*self._matches(), *probabilities.topk(min(5, len(classes))).indices.tolist(), *self.asked.cells]
        rest = sorted(set(range(len(classes))) - set(first), key=lambda index: classes[index])
        quiet, self._quiet = self._quiet, True
        order = dict.fromkeys((*first, *rest))
        self.target.options = [(f"{classes[i]}  ({100 * probabilities[i]:.1f} %)", i) for i in order]
        self.target.value, self._quiet = self.asked.target, quiet

    def _explain(self, target):
        self.asked = self.asked._replace(target=target)

    def _class_chosen(self, change):
        if not self._quiet and self.asked is not None:
            with self._changing():
                self._explain(self.target.value)

    def _searched(self, change):
        """Offer the classes that are searched for; where there is but one, it is explained."""
        if self._quiet or self.asked is None:
            return
        found = self._matches()
        if found == [self.asked.target] or len(found) != 1:
            self._offer_classes()
            return
        with self._changing():
            self._explain(found[0])
            self._offer_classes()

    # ---------------------------------------------------------------- as data

    def state(self):
        """What is asked, as data; an upload with its bytes, so that it can be asked about again."""
        image = self._image or {"kind": self.kind.value}
        return {"network": self.network.value, "image": image, "class": self.asked.name if self.asked else None}

    def _described(self):
        """The image that is chosen, as data. A path or an upload that was refused is in a widget, and in no answer."""
        kind = self.kind.value
        if self.source is not None:
            chosen = {"split": self.split.value, "label": self.label.value, "number": self.number.value}
        elif kind == FILE:
            chosen = {"file": self.file.value}
        elif kind == UPLOAD:
            content, name = self._upload
            chosen = {"name": name, "content": base64.b64encode(content).decode()}
        else:
            chosen = {}
        return {"kind": kind} | chosen

    def restore(self, state):
        """Choose what `state` says. ValueError, saying why, where that cannot be chosen here."""
        quiet, self._quiet = self._quiet, True
        try:
            image = state["image"]
            self._set(self.network, state["network"], "network")
            if not self._open():
                raise ValueError(f"the network {state['network']!r} cannot be opened here: see there")
            self._set(self.kind, image["kind"], "kind of image")
            self._offer_images()
            if self.source is not None:
                self._set(self.split, image["split"], "split")
                self._set(self.label, image["label"], self.source.word)
                self._offer_images()
                if not 0 <= image["number"] <= self.number.max:
                    raise ValueError(f"image {image['number']} of {image['label']}: there are {self.number.max + 1}")
                self.number.value = image["number"]
            elif image["kind"] == FILE:
                self.file.value = image.get("file", "")
            elif image["kind"] == UPLOAD and "name" in image:
                if "content" not in image:
                    raise ValueError("the image was an upload, which a link cannot hold; open the saved JSON")
                self._upload = base64.b64decode(image["content"], validate=True), image["name"]
            if self._look():
                if state["class"] not in self.subject.classes:
                    raise ValueError(f"the network knows no class {state['class']!r}")
                self._explain(self.subject.classes.index(state["class"]))
                self._offer_classes()
            elif self.error.value:
                raise ValueError(f"the image {image.get('file', image.get('name', ''))!r} cannot be opened here")
        except binascii.Error as error:
            raise ValueError(f"the upload in it is damaged: {error}") from None
        finally:
            self._quiet = quiet

    def _set(self, widget, value, word):
        known = [each[1] if isinstance(each, tuple) else each for each in widget.options]
        if value not in known:
            raise ValueError(f"{word} {value!r} is not here; there is {', '.join(map(str, known))}")
        widget.value = value
