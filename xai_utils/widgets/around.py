"""What is shown around the methods' panels: the image with its answers, curves, scales, the pixel that is read."""

from xai_utils import plots
from xai_utils.widgets import drawing
from xai_utils.widgets.panel import outlined
from xai_utils.widgets.subject import Curves, Explanation


def told(shown):
    """How far the maps are, in words: they are read aloud when they change."""
    counts = {
        f"of {len(shown)} maps are there": sum(isinstance(each.answer, Explanation) for each in shown),
        "to come": sum(each.answer is None and not each.declined for each in shown),
        "cancelled": sum(each.answer is None and each.declined for each in shown),
        "cannot be made": sum(isinstance(each.answer, Exception) for each in shown),
    }
    return "; ".join(f"{count} {words}" for words, count in counts.items() if count or words.startswith("of"))


def card(asked, outlines, once, mark):
    """The image that is asked about, and what the network says of it."""
    picture, subject = asked.picture, asked.subject
    source = once(("picture", asked.image), lambda: drawing.address(drawing.png(plots.pixels(picture.pixels))))
    true = "" if picture.label is None else f", true class: {picture.label}"
    alt = f"the image: {picture.name}{outlined(outlines)}"
    drawn = {"clickable": True, "mark": mark, "outlines": outlines, "alt": alt}
    shot = drawing.shot(source, subject.size, f"{picture.name}{true}", **drawn)
    return shot + drawing.legend(outlines) + drawing.answers(asked.probabilities, subject.classes, asked.target)


def curves(shown):
    """The curves that are there, as (place, side, title, Curves)."""
    return [(each.place, each.side, each.title, each.curves) for each in shown if isinstance(each.curves, Curves)]


def layers(asked, colour_map, once):
    """LOVI and the map of each scale, or why there is none."""
    if isinstance(asked.stack, str):
        return f"<p>{drawing.text(asked.stack)}</p>"
    key = ("layers", asked.image, asked.subject.weights, colour_map)
    return once(key, lambda: drawing.layers(*asked.stack, colour_map))


def reading(shown, marks, share):
    """What the maps of each side say of the pixel that is marked there."""
    if not any(marks):
        return "<p>Click a picture to read a pixel, or type its x, y.</p>"
    tables = []
    for side, mark in enumerate(marks):
        own = [each for each in shown if each.side == side and isinstance(each.answer, Explanation)]
        if mark and own:
            picture = own[0].question.asked.picture
            tables.append(drawing.reading(mark, picture, [(each.title, each.answer) for each in own], share))
    return "".join(tables)
