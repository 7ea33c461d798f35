"""The inspector's page, driven without a browser: a widget that is set answers as it does when it is clicked."""

import base64
import dataclasses
import datetime
import functools
import html
import io
import json
import os
import re
import shutil
import threading
import time
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

import ipywidgets
import numpy as np
import pytest
import torch
from conftest import ROOT
from inspected import HOSTILE, SIZE, make, noise
from PIL import Image

from xai_utils import datasets, networks
from xai_utils.explainers import EXPLAINERS
from xai_utils.explainers.masking import rise_and_count
from xai_utils.metrics.part_truth import deciding_parts
from xai_utils.widgets import Inspector, inspector, keeping, open_subject, openers, pictures, truth
from xai_utils.widgets.page import OLDER
from xai_utils.widgets.panel import overlay
from xai_utils.widgets.side import Side

PATIENCE = 60.0  # seconds
LONG_AGO = datetime.datetime(2020, 1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("inspected") / "project")


def coarse(subject):
    """It, with curves of a few steps."""
    curves = {name: protocol | {"pixels_per_step": 224 * 224 / 4} for name, protocol in subject.curves.items()}
    return dataclasses.replace(subject, curves=curves)


@pytest.fixture(scope="module")
def subject(folder):
    return coarse(open_subject(folder))


@contextmanager
def opened(networks):
    """The page of some networks, with all that it shows first."""
    page = Inspector(networks)
    assert page.wait(PATIENCE)
    yield page
    page.close()


@pytest.fixture
def page(subject):
    with opened({"the network": lambda: subject}) as page:
        yield page


@pytest.fixture
def side(page):
    return page.sides[0]


def pictures_of(column):
    return re.findall(r'src="data:image/png;base64,([^"]+)"', column.output.value)


def file(image, name="mine.png"):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ({"name": name, "type": "image/png", "size": 1, "content": buffer.getvalue(), "last_modified": LONG_AGO},)


def numbers_of(column):
    return dict(re.findall(r"<th scope=row>(.*?)</th><td>(.*?)</td>", column.output.value))


def test_the_first_look_has_maps_curves_layers_and_answers(page, side):
    """Without a click: an image, its classes, maps of the methods that can answer, curves, LOVI and layers."""
    methods = [column.method for column in page.columns]
    assert methods == ["fastcam", "grad_cam", "gradient", "smoe"]
    for column in page.columns:
        assert len(pictures_of(column)) == 3
        assert "…" not in column.output.value
    assert page.curves.value.count("<polyline") == 8
    assert page.layers.value.count("<img") == 6
    assert side.asked.picture.label == HOSTILE
    assert page.status.value == "4 of 4 maps are there"


@pytest.fixture
def explained(monkeypatch, subject):
    """The methods whose maps were made since."""
    found, original = [], type(subject).explain
    monkeypatch.setattr(
        type(subject), "explain", lambda *given, **more: found.append(given[4]) or original(*given, **more)
    )
    return found


def test_cheap_settings_explain_nothing_anew(page, side, explained):
    """Opacity, clipping, colours, share, baseline and pixel redraw from what is kept; a repeated option, too."""
    explained.clear()
    before = [pictures_of(column) for column in page.columns]
    shown = page.display.widgets
    for name, value in {"opacity": 0.1, "colour_map": "magma", "share": 40, "hidden": "blur", "pixel": "3, 4"}.items():
        shown[name].value = value
    assert page.wait(PATIENCE)
    for column, old in zip(page.columns, before, strict=True):
        assert all(new != each for new, each in zip(pictures_of(column), old, strict=True))
    assert explained == []
    for _ in range(2):
        side.target.value = 1 - side.target.value
        assert page.wait(PATIENCE)
        assert len(explained) == 4


def test_colours_are_clipped_for_display_alone(page):
    """Another percentile draws another picture, is said under it, and leaves the values and what they are worth."""
    column = page.columns[2]
    overlay, drawn, masked = pictures_of(column)
    kept = [each.answer.scores.clone() for each in page._shown]
    before = numbers_of(column)
    assert "colours end at percentile 99, for display only" in column.output.value
    page.display.widgets["percentile"].value = 90
    assert page.wait(PATIENCE)
    assert "colours end at percentile 90, for display only" in column.output.value
    assert pictures_of(column)[0] != overlay
    assert pictures_of(column)[1] != drawn
    assert pictures_of(column)[2] == masked
    assert numbers_of(column) == before
    assert all(torch.equal(each.answer.scores, old) for each, old in zip(page._shown, kept, strict=True))
    page.display.widgets["percentile"].value = 100
    assert "colours end at the maximum" in column.output.value


def test_passes_are_counted_once_and_a_plain_pass_is_timed_once(page, side, subject, monkeypatch):
    """Other images and classes are told the passes and the unit that were measured at first; another option is not."""
    from xai_utils.widgets import subject as room

    counted, timed, count, plain = [], [], room.counted_passes, type(subject).plain_seconds
    monkeypatch.setattr(room, "counted_passes", lambda *given: counted.append(1) or count(*given))
    monkeypatch.setattr(type(subject), "plain_seconds", lambda *given: timed.append(1) or plain(*given))
    before = [numbers_of(column)["passes, counted"] for column in page.columns]
    assert before[1] == "1.0"  # Grad-CAM reads what the pass has left behind
    assert float(before[2]) > 1.9  # the gradient goes all the way back
    side.split.value = "train"
    assert page.wait(PATIENCE)
    assert [numbers_of(column)["passes, counted"] for column in page.columns] == before
    assert (counted, timed) == ([], [])
    assert all("×" in numbers_of(column)["time, in plain passes"] for column in page.columns)
    page.columns[0]._widgets["cam"].value = "grad_cam"
    assert page.wait(PATIENCE)
    assert (counted, timed) == ([1], [])


def test_no_map_is_ever_shown_under_the_name_of_another(page, side):
    """Whatever is chosen while lanes answer: each picture that is ever written belongs to the name that heads it, the
    maps of before are gone as soon as another method, option, class or image is chosen, and late answers stay away.

    A method that knows no class may show one picture for both."""
    column, written, known = page.columns[0], [], {}
    blind = {EXPLAINERS[method].label for method in ("sobel_edges", "smoe", "centred_gaussian")}

    def note(change):
        (name,) = re.findall(r"<h3>1 (.*?)</h3>", change.new) or [None]
        written.append((name, tuple(re.findall(r'base64,([^"]+)" alt="([^"]*)"', change.new))))

    column.output.observe(note, "value")
    for method in ("grad_cam", "gradient", "sobel_edges", "grad_cam", "smoe", "centred_gaussian", "gradient"):
        column.picker.value = method
        assert column.output.value.startswith(f"<h3>1 {EXPLAINERS[method].label}</h3>")
        side.target.value = 1 - side.target.value
        (head,) = re.findall(r'<div class="pair"><div>(.*?)</div>', column.output.value)[:1]
        assert html.unescape(head) == side.asked.name
    side.split.value = "train"
    assert page.wait(PATIENCE)
    for method in ("smoe", "gradient"):
        column.picker.value = method
        for target in (0, 1):
            side.target.value = target
            assert page.wait(PATIENCE)
    assert len(written) > 14
    for name, shots in written:
        for picture, alt in shots[1:2]:  # the map alone
            assert html.unescape(alt).startswith(f"{name} for ")
            about = (name, alt.partition(", images, ")[2]) if name in blind else alt
            assert known.setdefault(picture, about) == about
    assert len(pictures_of(column)) == 3


def test_an_answer_that_comes_late_is_shown_nowhere(page, monkeypatch):
    """A map that is still being made when its method is taken away is kept under its question and drawn nowhere."""
    column, begun, go = page.columns[0], threading.Event(), threading.Event()
    original = type(page.sides[0].subject).explain

    def slow(subject, model, picture, target, method, *given, **more):
        found = original(subject, model, picture, target, method, *given, **more)
        if method == "sobel_edges":
            begun.set()
            assert go.wait(PATIENCE)
        return found

    monkeypatch.setattr(type(page.sides[0].subject), "explain", slow)
    column.picker.value = "sobel_edges"
    assert begun.wait(PATIENCE)
    assert "<img" not in column.output.value
    assert "1 to come" in page.status.value
    column.picker.value = "centred_gaussian"
    assert "<img" not in column.output.value
    go.set()
    assert page.wait(PATIENCE)
    assert "Centred Gaussian" in column.output.value
    assert "Sobel" not in column.output.value


def seen(widget, older=False):
    """The texts of a page that a browser shows now: its HTML, thumbnails' names, what a class is explained of."""
    older = older or OLDER in widget._dom_classes
    if (older and "xai-own" in widget._dom_classes) or widget.layout.display == "none":
        return []
    own = [widget.value] if isinstance(widget, ipywidgets.HTML) else []
    own += [widget.description] if isinstance(widget, ipywidgets.Button) else []
    if isinstance(widget, ipywidgets.Dropdown) and widget.description == "explain":
        own += [name for name, _ in widget.options]
    return own + [text for child in getattr(widget, "children", ()) for text in seen(child, older)]


# the project's classes, on a card and in a list
WORDS = html.escape(HOSTILE), f"{HOSTILE}  (", "plain</span>", "plain  ("


@contextmanager
def messages(page):
    """What the page shows after each message that it sends to the browser; the first one tells what is chosen."""
    shown = []
    with pytest.MonkeyPatch.context() as patched:
        send = ipywidgets.Widget.send_state
        patched.setattr(
            ipywidgets.Widget,
            "send_state",
            lambda widget, *given, **more: send(widget, *given, **more) or shown.append("\n".join(seen(page.view))),
        )
        yield shown


def test_no_message_leaves_an_older_answer_under_a_new_name(subject, birds):
    """From the first message after a choice on, be it of a network, image, class, method, comparison, reopened state:
    nothing that was shown is, whichever message the browser draws last."""
    with opened({"first": lambda: subject, "birds": lambda: birds}) as page:
        (side,) = page.sides
        begun, name = page.state(), side.asked.picture.name

        def check(choose, older, newer):
            assert all(word in "\n".join(seen(page.view)) for word in older)
            with messages(page) as shown:
                choose()
                assert page.wait(PATIENCE)
            assert not [word for text in shown[1:] for word in older if word in text]
            assert newer in shown[-1]

        method, other = (f"<h3>1 {EXPLAINERS[each].label}</h3>" for each in (page.columns[0].method, "gradient"))
        check(lambda: setattr(page.columns[0].picker, "value", "gradient"), [method], other)
        head, heads = f'<div class="pair"><div>{html.escape(side.asked.name)}</div>', '<div class="pair"><div>A: '
        check(lambda: setattr(page.compare, "value", True), [head], heads)
        check(lambda: setattr(page.compare, "value", False), [heads], head)
        check(lambda: setattr(side.target, "value", 1 - side.target.value), [head], '<div class="pair"><div>')
        check(lambda: setattr(side.split, "value", "train"), [name], "images, train ")
        check(lambda: setattr(side.network, "value", "birds"), WORDS, side.asked.name)
        check(lambda: page.restore(begun), [side.asked.name], name)


def test_while_a_network_is_opened_nothing_of_the_last_one_is_seen(subject, birds):
    """Its answers are gone before the other has any, the status says why, and what arrives meanwhile is not drawn."""
    begun, go = threading.Event(), threading.Event()

    def held():
        begun.set()
        assert go.wait(PATIENCE)
        return birds

    with opened({"first": lambda: subject, "birds": held}) as page:
        (side,) = page.sides
        choosing = threading.Thread(target=setattr, args=(side.network, "value", "birds"))
        choosing.start()
        assert begun.wait(PATIENCE)
        page._arrived("late", None)
        text = "\n".join(seen(page.view))
        assert not [word for word in WORDS if word in text]
        assert "<img" not in text
        assert page.status.value == "asking …"
        go.set()
        choosing.join(PATIENCE)
        assert page.wait(PATIENCE)
        text = "\n".join(seen(page.view))
        assert html.escape(side.asked.name) in text
        assert "of 4 maps are there" in text


def test_a_network_without_an_image_has_no_answers_of_another(subject, folder):
    """An upload that another network cannot be asked about, for it has gone: its classes and its card are empty."""
    without = dataclasses.replace(subject, sources=(), weights="other")
    with opened({"first": lambda: subject, "without": lambda: without}) as page:
        (side,) = page.sides
        side.kind.value, side.file.value = "file", "images/plain/1.png"
        side.file.value = "images/plain/9.png"
        assert side.asked.picture.name == "1.png"  # the last one stays, of the same network
        side.network.value = "without"
        assert side.asked is None
        assert side.target.options == ()
        assert "<img" not in "\n".join(seen(page.view))
        page.compare.value = True  # whose other side may have one
        page.sides[1].network.value, page.sides[1].kind.value = "first", "data set"
        assert page.wait(PATIENCE)
        assert "<img" not in side.card.value
        assert "<img" in page.sides[1].card.value
        state = page.state()
        page.restore(state)
        assert page.state() == state
        page.files()


def test_the_class_of_the_second_side_can_be_chosen(page):
    """Asked about the image of the first one, it keeps its class until that image is another."""
    page.compare.value = True
    first, second = page.sides
    second.target.value = chosen = 1 - second.target.value
    assert second.asked.target == chosen
    first.target.value = 1 - first.target.value
    state = page.state()
    page.restore(state)
    assert page.state() == state
    assert second.asked.target == chosen
    first.split.value = "train"
    assert second.asked.image == first.asked.image


def test_a_map_of_rise_tells_how_many_masks_it_took(page, side):
    """All, or as many as it took until the maps of their halves agreed; which is counted for each image anew."""
    column = page.columns[0]
    column.picker.value = "rise"
    column._widgets["masks"].value = 16
    assert page.wait(PATIENCE)
    assert "; all 16 masks taken<" in column.output.value
    (told,) = (each.value for each in column.options.children if isinstance(each, ipywidgets.HTML))
    assert "stops as soon as" in told
    column._widgets["estimator"].value = "balanced"
    column._widgets["cells"].value = 2
    column._widgets["masks"].value = 256
    column._widgets["until"].value = 0.5
    for split in ("validation", "train"):
        side.split.value = split
        assert page.wait(PATIENCE)
        (seen,) = (each for each in page._shown if each.place == 0)
        options = EXPLAINERS["rise"].keywords | seen.question.options
        images, target = seen.question.asked.picture.pixels[None], torch.tensor([seen.question.asked.target])
        maps, (taken,) = rise_and_count(side.subject.model, images, target, **options)
        assert torch.equal(maps[0], seen.answer.scores)
        assert taken < 256
        assert (
            f"stopped after {taken} of 256 masks: the maps of their halves correlate above 0.50" in column.output.value
        )
        assert taken <= float(numbers_of(column)["passes, counted"]) <= taken + 1
        assert seen.about["masks_taken"] == taken
    column._widgets["masks"].value = 32
    column._widgets["until"].value = 0.99
    assert page.wait(PATIENCE)
    assert "all 32 masks taken: before, their halves did not correlate above 0.99" in column.output.value


def test_the_same_pixels_from_another_file_are_known(page, side, subject, explained):
    """An upload of the image that is shown needs no new map: answers are kept by content."""
    explained.clear()
    number = int(subject.sources[0].data.validation.files[0].split("/")[1].split(".")[0])
    side.kind.value = "upload"
    side.upload.value = file(noise(number))
    assert page.wait(PATIENCE)
    assert side.asked.picture.name == "mine.png"
    assert explained == []


def test_a_slow_method_shows_progress_can_be_cancelled_and_taken_up_again(page):
    """RISE runs beside the page; cancelled, the column says so, and the same button starts it again."""
    column = page.columns[1]
    column.picker.value = "rise"
    column._widgets["masks"].value = 20000
    assert column.progress.layout.display == ""
    assert column.bar.max == 20000
    end = time.monotonic() + PATIENCE
    while column.bar.value == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert 0 < column.bar.value < 20000
    page.display.widgets["opacity"].value = 0.3  # the page still answers
    assert len(pictures_of(page.columns[0])) == 3
    page.columns[0].picker.value = "sobel_edges"  # and what is quick does not wait for it
    while not pictures_of(page.columns[0]) and time.monotonic() < end:
        time.sleep(0.01)
    assert column.progress.layout.display == ""
    column.stop.click()
    assert page.wait(PATIENCE)
    assert "cancelled" in column.output.value
    assert column.stop.description == "explain"
    column._widgets["masks"].value = 8
    assert page.wait(PATIENCE)
    assert len(pictures_of(column)) == 3
    column._widgets["masks"].value = 20000
    assert "cancelled" in column.output.value
    column.stop.click()
    assert "explaining" in column.output.value
    column.picker.value = "none"
    assert page.wait(PATIENCE)
    assert column.output.value == ""


def test_an_upload_changes_the_picture_and_a_bad_one_is_refused(page, side):
    """A good file is shown and explained; a bad one leaves all as it was and is named, as text."""
    side.upload.value = file(noise(77, 50))  # nothing yet: images come from the data set
    side.kind.value = "upload"
    assert side.asked.picture.name == "mine.png"
    assert page.wait(PATIENCE)
    shown = shown_by(page)
    side.upload.value = ({**file(noise(1))[0], "name": "<b>bad</b>.png", "content": b"no image"},)
    assert "&lt;b&gt;bad&lt;/b&gt;.png" in side.error.value
    assert "<b>" not in side.error.value
    assert page.wait(PATIENCE)
    assert shown_by(page) == shown
    side.kind.value = "data set"
    assert side.error.value == ""


def test_a_file_is_read_from_its_path(side, folder):
    """The path of an image is enough; one that is not there is said."""
    side.kind.value = "file"
    side.file.value = str(folder / "images/plain/1.png")
    assert side.asked.picture.name == "1.png"
    side.file.value = "nowhere.png"
    assert "nowhere.png is no file" in side.error.value
    assert side.asked.picture.name == "1.png"


def test_what_is_kept_is_what_is_shown(page, side, folder):
    """A path that was refused and a choice without an image are no part of the state, and a page opens it again."""
    side.kind.value = "file"
    side.file.value = "images/plain/1.png"
    state = page.state()
    side.file.value = "nowhere.png"
    side.kind.value = "upload"
    assert page.state() == state
    side.kind.value = "data set"
    page.restore(state)
    assert page.state() == state
    assert side.asked.picture.name == side.file.value.rsplit("/")[-1] == "1.png"


def test_a_map_that_tells_for_and_against_is_drawn_so(page):
    """LIME's: white is 0, so equal values for and against are equally far from white; the page says which is which."""
    column = page.columns[0]
    column.picker.value = "lime"
    column._widgets["samples"].value = 20
    assert page.wait(PATIENCE)
    assert "red for the class, blue against it" in column.output.value
    assert "blue against it" not in page.columns[1].output.value
    (seen,) = (each for each in page._shown if each.place == 0)
    values = torch.tensor([[-1.0, 0.0, 1.0]])
    against, none, other = overlay(
        seen._replace(answer=seen.answer._replace(scores=values.expand(SIZE, 3).repeat(1, 11)[:, :SIZE])),
        page._request.display._replace(percentile=100),
        1.0,
    )[0, :3]
    assert none.min() > 0.95
    assert against[2] > 0.3 > against[0]
    assert other[0] > 0.3 > other[2]


def test_files_outside_of_what_was_named_are_refused(side, folder, tmp_path):
    """Neither an absolute path, nor one that climbs, nor a link leads out of the project and the folders of the command
    line; what is no path at all is said, too, and the last image stays."""
    picture, named = tmp_path / "elsewhere" / "x.png", tmp_path / "named"
    for place in (picture.parent, named):
        place.mkdir()
        noise(5).save(place / "x.png")
    links = folder / "images" / "out.png", folder / "images" / "out", folder / "images" / "in.png"
    for link, target in zip(links, (picture, picture.parent, folder / "images/plain/2.png"), strict=True):
        link.symlink_to(target)
    side.kind.value = "file"
    side.file.value = "images/plain/3.png"  # counts from the project, not from where the process is
    refused = f"does not lie in {folder.resolve()}; upload it, or begin with make inspect FOLDERS="
    climbing = os.path.relpath(picture, folder.resolve())
    linked = "images/out.png", "images/out/x.png"
    for given in (picture, climbing, *linked, picture.parent / "none.png", "/", "/proc/self/mem"):
        side.file.value = str(given)
        assert refused in html.unescape(side.error.value), given
    for given in ("images/plain/\0.png", "a" * 300, "images", "images/plain/9.png"):
        side.file.value = given
        assert "xai-error" in side.error.value
    assert side.asked.picture.name == "3.png"
    side.file.value = "images/in.png"
    assert side.error.value == ""
    assert side.asked.picture.name == "in.png"
    for link in links:
        link.unlink()
    folders = open_subject(folder, [named]).folders
    assert pictures.within(str(named / "x.png"), folders) == (named / "x.png").resolve()
    with pytest.raises(datasets.DataError, match=f"does not lie in {folder.resolve()} or {named.resolve()}; "):
        pictures.within(str(picture), folders)
    with pytest.raises(datasets.DataError, match="does not lie in a folder that may be read"):
        pictures.within(str(picture), ())


def test_no_text_of_the_data_becomes_html(page, side):
    """A class called as a tag appears escaped wherever HTML is written."""
    page.display.widgets["pixel"].value = "1, 1"
    values = [w.value for w in (side.card, page.curves, page.reading, side.error, page.layers, page.keeping.link)]
    values += [column.output.value for column in page.columns]
    assert "&lt;img src=x" in side.card.value
    assert not any("<img src=x" in value for value in values)


def test_a_pixel_is_read_with_its_rank(page):
    """The row of a method holds its score and rank there; what is no pixel of the image reads nothing."""
    page.display.widgets["pixel"].value = "5, 7"
    answer = page._shown[1].answer
    assert f"{int(answer.ranks[7, 5]) + 1} of {SIZE * SIZE}" in page.reading.value
    assert f"{answer.scores[7, 5]:.4g}" in page.reading.value
    for wrong in ("", "5", "5, 99", "-1, 2", "a, b"):
        page.display.widgets["pixel"].value = wrong
        assert "Click a picture" in page.reading.value


def test_what_is_shown_can_be_saved(page):
    """One click each, and each click again: a PNG with the state inside, and the JSON, of equal pages equal bytes."""
    (_, picture, _), (_, text, _) = page.files().values()
    saved = json.loads(text)
    (found,) = saved["found"]
    assert found["label"] == HOSTILE
    assert [each["method"] for each in found["maps"]] == [column.method for column in page.columns]
    assert found["maps"][0]["insertion_area"] == pytest.approx(page._shown[0].curves.insertion_area)
    opened = Image.open(io.BytesIO(picture))
    opened.load()
    assert json.loads(opened.text["settings"]) == saved
    written = []
    page.keeping.said.observe(lambda change: written.append(change.new), "value")
    for _ in range(2):
        page.keeping.picture.click()
    page.keeping.json.click()
    assert [bool(each) for each in written] == [True, False, True, False, True]
    (link,) = re.findall(r'href="data:image/png;base64,([^"]+)"', written[2])
    assert base64.b64decode(link) == picture
    assert "previousElementSibling.click()" in written[4]


STATE = {"opacity": 0.2, "percentile": 95.0, "colour_map": "magma", "share": 25, "hidden": "mean", "pixel": "3, 5"}


def shown_by(page):
    return [column.output.value.split('<table class="numbers">')[0] for column in page.columns], [
        side.card.value for side in page.sides
    ]


def test_a_saved_state_opens_again(page, side, subject, folder, monkeypatch):
    """JSON by upload and by path, and the link: image, class, methods, options and display are as they were, and so is
    each picture; an upload comes back from the JSON, and a link says that it cannot hold it."""
    side.kind.value = "upload"
    side.upload.value = file(noise(5, 50))
    side.target.value = 1 - side.target.value
    page.columns[1].picker.value = "integrated_gradients"
    page.columns[1]._widgets["steps"].value = 3
    page.columns[3].picker.value = "none"
    for name, value in STATE.items():
        page.display.widgets[name].value = value
    page.compare.value = True
    page.sides[1].kind.value = "data set"
    page.sides[1].split.value = "train"
    assert page.wait(PATIENCE)
    before, state = shown_by(page), page.state()
    name, content, _ = page.files()[".json"]
    with opened({"the network": lambda: subject}) as again:
        again.keeping.upload.value = ({**file(noise(1))[0], "name": name, "content": content},)
        assert again.keeping.said.value == ""
        assert again.wait(PATIENCE)
        assert again.state() == state
        assert shown_by(again) == before
        again.compare.value = False
        (folder / "saved.json").write_bytes(content)
        again.keeping.path.value = "saved.json"
        assert again.state() == state
        address = keeping.link(state)
        assert len(address) < 4000
        with pytest.raises(ValueError, match="an upload, which a link cannot hold; open the saved JSON"):
            again.restore(keeping.read(address))
        assert again.state() == state  # all or nothing
        side.kind.value = "data set"
        state = page.state()
        monkeypatch.setenv("QUERY_STRING", "token=1&" + urlsplit(keeping.link(state)).query)
        again.restore(keeping.read("?" + os.environ["QUERY_STRING"]))
        assert again.state() == state


def test_what_is_no_state_is_said_and_changes_nothing(page):
    """Other JSON, another network, class, method, option or value: the reason stands there, and all stays as it was."""
    state = page.state()
    side, options = state["sides"][0], {"method": "rise", "options": {"masks": 5}}
    broken = {
        "this is no saved inspection": {"a": 1},
        "network 'other' is not here; there is the network": state | {"sides": [side | {"network": "other"}]},
        "the network knows no class 'cat'": state | {"sides": [side | {"class": "cat"}]},
        "image 99 of": state | {"sides": [side | {"image": side["image"] | {"number": 99}}]},
        "method 'other' is unknown": state | {"methods": [options | {"method": "other"}, None, None, None]},
        "rise has no option 'colour'": state | {"methods": [options | {"options": {"colour": 1}}, None, None, None]},
        "rise: masks cannot be -1 here": state | {"methods": [options | {"options": {"masks": -1}}, None, None, None]},
        "this state cannot be opened: Invalid selection": state | {"display": {"colour_map": "pink"}},
    }
    for reason, given in broken.items():
        content = json.dumps(given).encode()
        page.keeping.upload.value = ({**file(noise(1))[0], "name": "state.json", "content": content},)
        assert reason in html.unescape(page.keeping.said.value), reason
        assert page.state() == state, reason
    page.keeping.path.value = "../../etc/passwd"
    assert "does not lie in" in page.keeping.said.value
    page.restore(state | {"found": [keeping.identity(page.sides[0].asked) | {"image": "other"}]})
    assert "another: image" in page.keeping.said.value


def test_an_option_that_does_not_fit_is_said_in_its_column(page):
    """What a method refuses stands in the place of its map, and the others stay."""
    page.columns[0].picker.value = "akd"
    assert page.wait(PATIENCE)
    assert "distill_surrogate" in page.columns[0].output.value
    assert "3 of 4 maps are there; 1 cannot be made" in page.status.value
    assert len(pictures_of(page.columns[2])) == 3


def test_without_images_the_page_waits_for_a_file(folder, tmp_path):
    """No data set: files and uploads are offered, nothing is explained, and saving says what is missing."""
    shutil.copytree(folder, tmp_path / "p", ignore=shutil.ignore_patterns("data", "images"))
    page = Inspector({"the network": functools.partial(open_subject, tmp_path / "p")})
    (side,) = page.sides
    assert [kind for _, kind in side.kind.options] == ["file", "upload"]
    page.display.widgets["opacity"].value = 0.2
    page.keeping.picture.click()
    assert "choose an image" in page.keeping.said.value
    side.kind.value = "upload"
    side.upload.value = file(noise(3))
    assert page.wait(PATIENCE)
    assert len(pictures_of(page.columns[0])) == 3
    page.close()


def test_thumbnails_are_buttons_made_when_they_are_shown(page, side, subject, monkeypatch):
    """A button for each image of the class, which a click shows; a dozen at once, and pictures of no others."""
    buttons, made, source = side.thumbnails.buttons, [], subject.sources[0]
    monkeypatch.setattr(source, "count", lambda split, label: 30)
    blank = pictures.Picture(torch.rand(3, SIZE, SIZE), "x")
    monkeypatch.setattr(source, "picture", lambda split, label, number: made.append(number) or blank)
    side.split.value = "train"
    assert sorted(set(made)) == list(range(12))
    assert [button.description for button in buttons] == ["0, shown", *map(str, range(1, 12))]
    made.clear()
    side.thumbnails.later.click()
    assert made == list(range(12, 24))
    assert buttons[0].description == "12"
    assert "background-image" in side.thumbnails.view.children[0].value
    side.thumbnails.later.click()
    assert [button.layout.display for button in buttons] == [*[""] * 6, *["none"] * 6]
    side.thumbnails.earlier.click()
    buttons[5].click()
    assert side.number.value == 17
    assert (buttons[4].description, buttons[5].description) == ("16", "17, shown")
    assert sorted(set(made)) == list(range(12, 30))  # those of the first page were kept


@pytest.fixture(scope="module")
def imagenet(folder):
    """The network of ImageNet beside that of the project, each opened once."""
    return {name: functools.cache(lambda opener=opener: coarse(opener())) for name, opener in openers(folder).items()}


def test_another_network_has_its_own_images_classes_and_methods(imagenet):
    """ImageNet's answers first; switched, the page has the other's classes, maps and images, and back again."""
    with opened(imagenet) as page:
        (side,) = page.sides
        first, second = side.network.options
        assert side.kind.value == "photographs"
        assert side.label.value == "chelsea"
        assert side.asked.picture.name == "Chelsea the cat: Stefan van der Walt, CC0"
        assert (side.split.layout.display, side.number.layout.display) == ("none", "none")
        assert [button.description for button in side.thumbnails.buttons[:5]] == [
            "chelsea, shown", "coffee", "camera", "rocket", "astronaut"
        ]  # fmt: skip
        assert "it knows 1000 classes" in side.card.value
        before, card = {each.key for each in page._shown}, side.card.value
        side.network.value = second
        assert page.wait(PATIENCE)
        assert [index for _, index in sorted(side.target.options, key=lambda option: option[1])] == [0, 1]
        assert side.asked.picture.label == HOSTILE
        assert side.search.layout.display == "none"
        assert "it knows 2 classes" in side.card.value
        assert all(len(pictures_of(column)) == 3 for column in page.columns)
        assert not before & {each.key for each in page._shown}
        side.network.value = first
        assert side.card.value == card


def test_two_networks_and_two_images_are_compared_by_the_same_methods(imagenet, folder):
    """The second side shows the first one's image as another network sees it, then another image of its own: each map
    stands beside its counterpart, under the letter of its side, with the same options."""
    with opened(imagenet) as page:
        first = page.sides[0]
        first.kind.value, first.file.value = "file", "images/plain/1.png"
        page.compare.value = True
        second = page.sides[1]
        second.network.value = second.network.options[1]
        assert page.wait(PATIENCE)
        assert [each.asked.picture.pixels.shape[-1] for each in page.sides] == [224, SIZE]
        assert {each.asked.picture.name for each in page.sides} == {"1.png"}
        assert page.status.value == "8 of 8 maps are there"
        column = page.columns[1]
        assert len(pictures_of(column)) == 6
        assert f"<div>A: {first.asked.name}</div>" in column.output.value
        assert f"<div>B: {html.escape(second.asked.name)}</div>" in column.output.value
        options = [each.question.options for each in page._shown if each.place == 1]
        assert options[0] == options[1]
        assert page.curves.value.count("<polyline") == 16
        assert "2 Grad-CAM, B" in page.curves.value
        first.file.value = "images/plain/2.png"  # the second side follows
        assert {each.asked.picture.name for each in page.sides} == {"2.png"}
        second.kind.value = "data set"
        first.file.value = "images/plain/1.png"
        assert second.asked.picture.name.startswith("images, validation")
        page.compare.value = False
        assert page.wait(PATIENCE)
        assert len(pictures_of(column)) == 3


def test_of_a_thousand_classes_one_is_found(imagenet):
    """The five most probable stand first; a part of a name puts its classes before them, and the only one is taken."""
    side = Side(imagenet, nullcontext)
    side.label.value = "camera"
    assert side.search.layout.display == ""
    assert len(side.target.options) == 1000
    assert side.target.options[0][0].startswith("tripod  (9")
    side.search.value = "Cat"
    matches = [name for name, _ in side.target.options if "cat" in name.split("  (")[0].lower()]
    assert [name for name, _ in side.target.options[: len(matches)]] == matches
    assert len(side.target.options) == 1000
    assert side.asked.name == "tripod"
    side.search.value = "reflex cam"
    assert side.asked.name == side.subject.classes[side.target.value] == "reflex camera"
    side.search.value = "no such class"
    assert side.asked.name == "reflex camera"
    assert side.target.options[0][0].startswith("tripod")
    side.search.value = ""
    side.label.value = "coffee"
    assert side.asked.name == "espresso"


def test_the_cell_of_the_explained_class_is_outlined_in_a_mosaic(imagenet):
    """A mosaic of photographs: the class is that of its cell alone, which is outlined as true, the others as others."""
    side = Side(imagenet, nullcontext)
    side.kind.value = "mosaics of photographs"
    side.label.value = "coffee"  # the second one stands in the second cell
    assert side.asked.name == "espresso"
    assert side.asked.picture.explained == 1
    found = truth.outlines(truth.CELLS, side.asked)
    (true,) = (each for each in found if each.colour == truth.TRUE)
    assert len(found) == 4
    assert true.name == "espresso"
    corners = {point for line in true.lines for point in line}
    assert corners == {(112, 0), (224, 0), (112, 112), (224, 112)}


def test_a_network_that_cannot_be_opened_is_said(subject):
    """The reason stands there, the page and its name stay those of the last network."""

    def missing():
        raise ModuleNotFoundError("the weights of <efficientnet_lite0> are not installed")

    with opened({"first": lambda: subject, "broken": missing}) as page:
        (side,) = page.sides
        shown = side.card.value
        side.network.value = "broken"
        assert "the weights of &lt;efficientnet_lite0&gt; are not installed" in side.error.value
        assert side.network.value == "first"
        assert side.card.value == shown
    page = Inspector({"broken": missing, "second": lambda: subject})
    assert "are not installed" in page.sides[0].error.value
    page.sides[0].network.value = "second"
    assert page.wait(PATIENCE)
    assert len(pictures_of(page.columns[0])) == 3
    page.close()


@pytest.fixture(scope="module")
def birds(folder, tmp_path_factory):
    """A network of birds as the project's, which looks at one beak's pixels only; its data have boxes and parts."""
    place = tmp_path_factory.mktemp("birds") / "p"
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("data", "target"))
    datasets.prepare(
        ROOT / "data/birds", place / "build/data", image_size=64, train_per_class=1, validation_per_class=2
    )
    torch.manual_seed(1)
    classes = list(datasets.load(place / "build/data").classes)
    networks.save(networks.build("tiny_resnet", classes).eval(), place / "build/target")
    return coarse(open_subject(place))


def test_boxes_and_parts_are_outlined_where_they_exist(birds, page):
    """Boxes, parts and those that decide can be switched on for birds; deciding ones are those that part truth finds;
    other images offer what they have."""
    assert page.display.widgets["outlined"].options == ("nothing",)
    with opened({"birds": lambda: birds}) as page:
        (side,), outlined = page.sides, page.display.widgets["outlined"]
        assert outlined.options == ("nothing", "true boxes", "parts", "deciding parts")
        picture = side.asked.picture
        outlined.value = "true boxes"
        assert side.card.value.count("<path") == 2  # a line and its rim
        assert all(column.output.value.count("<path") == 6 for column in page.columns)
        assert "with outlines of box" in page.columns[0].output.value
        (box,) = truth.outlines(truth.BOXES, side.asked)
        assert box.lines[0] == (picture.boxes[0][:2], (picture.boxes[0][2], picture.boxes[0][1]))
        outlined.value = "parts"
        seen = {name for place, name in enumerate(picture.part_names, 1) if (picture.parts == place).any()}
        assert {each.name for each in truth.outlines(truth.PARTS, side.asked)} == seen
        outlined.value = "deciding parts"
        assert page.wait(PATIENCE)
        data = birds.sources[0].data
        row = int(side.asked.picture.name.split()[-1])
        expected = deciding_parts(birds.model, data, "validation", [row], [side.asked.target]).decides[0]
        names = {name for name, decides in zip(data.part_names, expected.tolist(), strict=True) if decides}
        assert {each.name for each in page._outlines(side.asked)} == names & seen
        y, x = (int(v) for v in torch.from_numpy(picture.parts).nonzero()[0])
        page.display.widgets["pixel"].value = f"{x}, {y}"
        assert f"mean in {picture.part_names[picture.parts[y, x] - 1]}" in page.reading.value
        page.files()
        side.kind.value = "upload"
        side.upload.value = file(noise(3))
        assert outlined.options == ("nothing",)
        assert outlined.value == "nothing"
        assert "<path" not in side.card.value


def test_edges_run_where_a_mask_ends():
    """A hole has edges, too, and a straight one is one line; together they are as long as the sides that differ."""
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:4, 1:4] = True
    mask[2, 2] = False
    found = truth.edges(mask)
    assert ((1, 1), (4, 1)) in found
    assert ((1, 1), (1, 4)) in found
    assert sum(abs(x1 - x0) + abs(y1 - y0) for (x0, y0), (x1, y1) in found) == 12 + 4
    assert len(found) == 8


def test_a_notebook_is_given_a_state(folder, monkeypatch):
    """By the link that the page shows; a state that cannot be opened is said, and the page begins as it is."""
    monkeypatch.setattr("xai_utils.widgets.page.openers", lambda root, folders: {"n": lambda: subject})
    subject = open_subject(folder)
    pages, init = [], Inspector.__init__
    monkeypatch.setattr(Inspector, "__init__", lambda page, *given: pages.append(page) or init(page, *given))
    inspector()
    state = pages[0].state()
    state["display"]["share"] = 33
    inspector(keeping.link(state))
    assert pages[1].display.values.share == 33
    assert "inspector(&quot;?state=" in pages[1].keeping.link.value
    monkeypatch.setenv("QUERY_STRING", "state=%7B")
    monkeypatch.setenv("VOILA_REQUEST_URL", "/")
    inspector()
    assert "no saved inspection" in pages[2].keeping.said.value
    assert 'href="?state=' in pages[2].keeping.link.value
    assert len(pages[2].columns) == 4
    for page in pages:
        page.close()
