"""What is shown of one method: its maps with their numbers, on one side or on two."""

from itertools import zip_longest
from typing import NamedTuple

from xai_utils import plots
from xai_utils.explainers import EXPLAINERS
from xai_utils.widgets import drawing
from xai_utils.widgets.answers import Question
from xai_utils.widgets.subject import Curves, Explanation


class Seen(NamedTuple):
    """A question, its place on the page, and all that is known of its answer. What is shown is made of this alone."""

    place: int  # of the method
    side: int
    letter: str  # of the side, where there are two
    question: Question
    key: tuple
    answer: Explanation | Exception | None  # None: not yet
    curves: Curves | Exception | None
    score: float | Exception | None  # class probability of the masked image
    outlines: tuple  # of the image
    seconds: float | None  # that a plain pass of the network takes
    declined: bool

    @property
    def label(self):
        return EXPLAINERS[self.question.method].label

    @property
    def title(self):
        return f"{self.place + 1} {self.label}" + (f", {self.letter}" if self.letter else "")

    @property
    def name(self):
        """The name of a class, network and image in words."""
        asked = self.question.asked
        return f"{self.label} for {asked.name}, {asked.picture.name}"

    @property
    def about(self):
        """What the answer says beside its map, plain data for JSON."""
        found = {"method": self.question.method, "options": self.question.options, "masked_score": self.score}
        found |= {"seconds": self.answer.seconds, "passes": self.answer.passes, "seconds_of_a_pass": self.seconds}
        found |= {} if self.answer.taken is None else {"masks_taken": self.answer.taken}
        return found | (self.curves._asdict() if isinstance(self.curves, Curves) else {})

    @property
    def stopped(self):
        """How many masks were taken and why no more, to end a caption; "" where the method takes none."""
        if (taken := self.answer.taken) is None:
            return ""
        masks, until = (self.question.options[name] for name in ("masks", "until"))
        if taken < masks:
            return f"; stopped after {taken} of {masks} masks: the maps of their halves correlate above {until:.2f}"
        before = "" if until == 1 else f": before, their halves did not correlate above {until:.2f}"
        return f"; all {masks} masks taken{before}"


def overlay(seen, display, opacity):
    """The map over its image, (S, S, 3); an `opacity` of 1: the map alone."""
    drawn = {"opacity": opacity, "colour_map": display.colour_map, "percentile": display.percentile}
    drawn["signed"] = EXPLAINERS[seen.question.method].signed
    return plots.overlay(seen.question.asked.picture.pixels, seen.answer.scores, **drawn)


def masked(seen, display):
    """The image where only the most salient pixels are left, (S, S, 3)."""
    subject, picture = seen.question.asked[:2]
    return plots.pixels(subject.masked(picture, seen.answer, display.share / 100, display.hidden))


def outlined(outlines):
    """What is outlined, to end an alt text."""
    names = dict.fromkeys(each.name for each in outlines)
    return f", with outlines of {', '.join(names)}" if names else ""


def panel(shown, display, once, marks):
    """A method's pictures and numbers as HTML, headed by its name, so that no map stands under another's.

    `shown`: what is `Seen` of it, for each side; `once(key, make)` keeps what `make` gives; `marks`: a pixel of each.
    """
    heads = [(f"{each.letter}: " if each.letter else "") + each.question.asked.name for each in shown]
    title = f"<h3>{shown[0].place + 1} {drawing.text(shown[0].label)}</h3>"
    columns = [_pictures(seen, display, once, mark) for seen, mark in zip(shown, marks, strict=True)]
    rows = "".join(drawing.side_by_side(row) for row in zip_longest(*columns, fillvalue=""))
    names = "".join(f"<div>{drawing.text(head)}</div>" for head in heads)
    found = f'{title}<div class="pair">{names}</div>{rows}'
    values = [_numbers(seen, display) for seen in shown]
    found += drawing.facts(
        [(row[0][0], *(value for _, value in row)) for row in zip(*values, strict=True)],
        [each.letter for each in shown if each.letter],
    )
    densities = [_density(seen) for seen in shown if seen.question.method == "dgle_cf" and _is_there(seen)]
    return found + (drawing.side_by_side(densities) if densities else "")


def _is_there(seen):
    return isinstance(seen.answer, Explanation)


def _pictures(seen, display, once, mark):
    if isinstance(seen.answer, Exception):
        return [drawing.blank(str(seen.answer) or type(seen.answer).__name__)]
    if seen.answer is None:
        return [drawing.blank("cancelled" if seen.declined else "explaining …"), *[drawing.blank("")] * 2]
    low, high = seen.answer.scores.aminmax()
    size, first = seen.answer.ranks.shape[-1], int(seen.answer.ranks.flatten().argmin())
    lines = outlined(seen.outlines)
    signs = "; red for the class, blue against it" if EXPLAINERS[seen.question.method].signed else ""
    top = f"; its highest value is at {first % size}, {first // size}"
    shown = (
        (
            ("overlay", seen.key, display[:3]),
            lambda: overlay(seen, display, display.opacity),
            f"overlay; {display.clipping}, for display only{signs}",
            f"{seen.name}, over the image{lines}",
        ),
        (
            ("map", seen.key, display[1:3]),
            lambda: overlay(seen, display, 1.0),
            f"map, kept raw: {low:.3g} to {high:.3g}{seen.stopped}",
            f"{seen.name}, the map alone{top}{lines}",
        ),
        (
            ("masked", seen.key, display.share, display.hidden),
            lambda: masked(seen, display),
            f"top {display.share} % of the pixels",
            f"the {display.share} % of the pixels that {seen.name} ranks first, the rest is {display.hidden}{lines}",
        ),
    )
    return [
        drawing.shot(
            once(("picture", *key), lambda make=make: drawing.address(drawing.png(make()))),
            size,
            caption,
            alt=alt,
            clickable=True,
            mark=mark,
            outlines=seen.outlines,
        )
        for key, make, caption, alt in shown
    ]


def _numbers(seen, display):
    """Names and values; what is not known yet is an ellipsis, what cannot be known a dash."""
    unknown = "–" if isinstance(seen.answer, Exception) or seen.declined else "…"
    score, insertion, deletion, passes, time = [unknown] * 5
    if _is_there(seen):
        passes, time = f"{seen.answer.passes:.1f}", f"{1000 * seen.answer.seconds:.0f} ms"
        if seen.seconds:
            time += f", {seen.answer.seconds / seen.seconds:.1f}\u00a0×"
    if isinstance(seen.score, float):
        score = f"{100 * seen.score:.1f} %"
    if isinstance(seen.curves, Curves):
        insertion, deletion = f"{seen.curves.insertion_area:.3f}", f"{seen.curves.deletion_area:.3f}"
    elif seen.curves is not None:
        insertion = deletion = "failed"
    return [
        (f"class, top {display.share} %", score),
        ("insertion ↑", insertion),
        ("deletion ↓", deletion),
        ("passes, counted", passes),
        ("time, in plain passes", time),
    ]


def _density(seen):
    options = seen.question.options
    return drawing.density(seen.answer.scores, options["eta"], options["exponent"])
