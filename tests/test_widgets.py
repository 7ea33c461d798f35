"""The inspector's page, driven without a browser: a widget that is set answers as it does when it is clicked."""

import base64
import datetime
import functools
import html
import io
import json
import os
import re
import time

import pytest
import torch
from inspected import HOSTILE, SIZE, make, noise
from PIL import Image

from xai_utils import datasets
from xai_utils.widgets import Choice, Inspector, open_subject, openers, pictures

PATIENCE = 60.0  # seconds
LONG_AGO = datetime.datetime(2020, 1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("inspected") / "project")


@pytest.fixture
def page(folder):
    page = Inspector(open_subject(folder))
    assert page.wait(PATIENCE)
    yield page
    page.close()


def pictures_of(column):
    return re.findall(r'src="data:image/png;base64,([^"]+)"', column.output.value)


def file(image, name="mine.png"):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ({"name": name, "type": "image/png", "size": 1, "content": buffer.getvalue(), "last_modified": LONG_AGO},)


def test_the_first_look_has_maps_curves_layers_and_answers(page):
    """Without a click: an image, its classes, maps of the methods that can answer, curves, LOVI and layers."""
    methods = [column.method for column in page.columns]
    assert methods == ["fastcam", "grad_cam", "gradient", "smoe"]
    for column in page.columns:
        assert len(pictures_of(column)) == 3
        assert "…" not in column.output.value
    assert page.curves.value.count("<polyline") == 8
    assert page.layer_strip.value.count("<img") == 6
    assert page.picture.label == HOSTILE


def test_cheap_settings_explain_nothing_anew(page, monkeypatch):
    """Opacity, colours, share, baseline and pixel redraw from what is kept; a repeated option, too."""
    explained = []
    original = type(page.subject).explain
    monkeypatch.setattr(type(page.subject), "explain", lambda *given: explained.append(given[4]) or original(*given))
    before = [pictures_of(column) for column in page.columns]
    page.opacity.value, page.colour_map.value, page.share.value = 0.1, "magma", 40
    page.hidden.value, page.pixel.value = "blur", "3, 4"
    assert explained == []
    for column, old in zip(page.columns, before, strict=True):
        assert all(new != each for new, each in zip(pictures_of(column), old, strict=True))
    page.target.value = 1 - page.target.value
    assert len(explained) == 4
    page.target.value = 1 - page.target.value
    assert len(explained) == 4


def test_the_same_pixels_from_another_file_are_known(page, monkeypatch):
    """An upload of the image that is shown needs no new map: answers are kept by content."""
    explained = []
    original = type(page.subject).explain
    monkeypatch.setattr(type(page.subject), "explain", lambda *given: explained.append(1) or original(*given))
    number = int(page.subject.source.data.validation.files[0].split("/")[1].split(".")[0])
    page.upload.value = file(noise(number))
    assert page.picture.name == "mine.png"
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
    page.opacity.value = 0.3  # the page still answers
    assert len(pictures_of(page.columns[0])) == 3
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


def test_an_upload_changes_the_picture_and_a_bad_one_is_refused(page):
    """A good file is shown and explained; a bad one leaves all as it was and is named, as text."""
    page.upload.value = file(noise(77, 50))
    assert page.picture.name == "mine.png"
    assert page.wait(PATIENCE)
    shown = [column.output.value for column in page.columns]
    page.upload.value = ({**file(noise(1))[0], "name": "<b>bad</b>.png", "content": b"no image"},)
    assert "&lt;b&gt;bad&lt;/b&gt;.png" in page.error.value
    assert "<b>" not in page.error.value
    assert [column.output.value for column in page.columns] == shown
    page.number.value = 0
    page._pick()
    assert page.error.value == ""


def test_a_file_is_read_from_its_path(page, folder):
    """The path of an image is enough; one that is not there is said."""
    page.kind.value = "file"
    page.file.value = str(folder / "images/plain/1.png")
    assert page.picture.name == "1.png"
    page.file.value = "nowhere.png"
    assert "nowhere.png is no file" in page.error.value
    assert page.picture.name == "1.png"


def test_files_outside_of_what_was_named_are_refused(page, folder, tmp_path):
    """Neither an absolute path, nor one that climbs, nor a link leads out of the project and the folders of the command
    line; what is no path at all is said, too, and the last image stays."""
    picture, named = tmp_path / "elsewhere" / "x.png", tmp_path / "named"
    for place in (picture.parent, named):
        place.mkdir()
        noise(5).save(place / "x.png")
    links = folder / "images" / "out.png", folder / "images" / "out", folder / "images" / "in.png"
    for link, target in zip(links, (picture, picture.parent, folder / "images/plain/2.png"), strict=True):
        link.symlink_to(target)
    page.kind.value = "file"
    page.file.value = "images/plain/3.png"  # counts from the project, not from where the process is
    refused = f"does not lie in {folder.resolve()}; upload it, or begin with make inspect FOLDERS="
    climbing = os.path.relpath(picture, folder.resolve())
    linked = "images/out.png", "images/out/x.png"
    for given in (picture, climbing, *linked, picture.parent / "none.png", "/", "/proc/self/mem"):
        page.file.value = str(given)
        assert refused in html.unescape(page.error.value), given
    for given in ("images/plain/\0.png", "a" * 300, "images", "images/plain/9.png"):
        page.file.value = given
        assert "xai-error" in page.error.value
    assert page.picture.name == "3.png"
    page.file.value = "images/in.png"
    assert page.error.value == ""
    assert page.picture.name == "in.png"
    for link in links:
        link.unlink()
    folders = open_subject(folder, [named]).folders
    assert pictures.within(str(named / "x.png"), folders) == (named / "x.png").resolve()
    with pytest.raises(datasets.DataError, match=f"does not lie in {folder.resolve()} or {named.resolve()}; "):
        pictures.within(str(picture), folders)
    with pytest.raises(datasets.DataError, match="does not lie in a folder that may be read"):
        pictures.within(str(picture), ())


def test_no_text_of_the_data_becomes_html(page):
    """A class called as a tag appears escaped wherever HTML is written."""
    page.pixel.value = "1, 1"
    values = [w.value for w in (page.card, page.curves, page.reading, page.error, page.layer_strip)]
    values += [column.output.value for column in page.columns]
    assert "&lt;img src=x" in page.card.value
    assert not any("<img src=x" in value for value in values)


def test_a_pixel_is_read_with_its_rank(page):
    """The row of a method holds its score and rank there; what is no pixel of the image reads nothing."""
    page.pixel.value = "5, 7"
    answer = page.answers.known(page._key(page.columns[1]))
    assert f"{int(answer.ranks[7, 5]) + 1} of {SIZE * SIZE}" in page.reading.value
    assert f"{answer.scores[7, 5]:.4g}" in page.reading.value
    for wrong in ("", "5", "5, 99", "-1, 2", "a, b"):
        page.pixel.value = wrong
        assert "Click a picture" in page.reading.value


def test_what_is_shown_can_be_saved(page):
    """One PNG with the settings inside and the same settings as JSON, offered as links; equal pages, equal bytes."""
    files = page.files()
    (picture, _), (text, _) = files.values()
    settings = json.loads(text)
    assert settings["image"]["label"] == HOSTILE
    assert [each["method"] for each in settings["methods"]] == [column.method for column in page.columns]
    assert settings["methods"][0]["insertion_area"] == pytest.approx(
        page.answers.known(("curves", page._key(page.columns[0]))).insertion_area
    )
    opened = Image.open(io.BytesIO(picture))
    opened.load()
    assert opened.text["settings"] == text.decode()
    page._save(None)
    (link, *_) = re.findall(r'href="data:image/png;base64,([^"]+)"', page.saved.value)
    assert base64.b64decode(link) == picture


def test_an_option_that_does_not_fit_is_said_in_its_column(page):
    """What a method refuses stands in the place of its map, and the others stay."""
    page.columns[0].picker.value = "akd"
    assert "distill_surrogate" in page.columns[0].output.value
    page.columns[1].picker.value = "smoe"
    page.columns[1]._widgets["statistic"].value = "truncated_normal_mean"
    assert len(pictures_of(page.columns[2])) == 3


def test_without_images_the_page_waits_for_a_file(folder, tmp_path):
    """No data set: files and uploads are offered, nothing is explained, and saving says what is missing."""
    import shutil

    shutil.copytree(folder, tmp_path / "p", ignore=shutil.ignore_patterns("data", "images"))
    page = Inspector(open_subject(tmp_path / "p"))
    assert page.kind.options == ("file", "upload")
    page.opacity.value = 0.2
    page._save(None)
    assert "choose an image" in page.error.value
    page.upload.value = file(noise(3))
    assert page.wait(PATIENCE)
    assert len(pictures_of(page.columns[0])) == 3
    page.close()


@pytest.fixture(scope="module")
def imagenet(folder):
    """The network of ImageNet beside that of the project, each opened once."""
    return {name: functools.cache(opener) for name, opener in openers(folder).items()}


def test_another_network_begins_anew(imagenet):
    """ImageNet's answers first; switched, the page has the other's classes, maps and source, and back again."""
    page = Choice(imagenet)
    first = page.inspector
    assert first.subject.source.kind == first.kind.value == "photos"
    assert first.label.value == "chelsea"
    assert first.picture.name == "Chelsea the cat: Stefan van der Walt, CC0"
    assert (first.split.layout.display, first.number.layout.display) == ("none", "none")
    assert "it knows 1000 classes" in str(page.view.children[2].children[0].children[0].value)
    before = first.card.value
    page.picker.value = page.picker.options[1]
    second = page.inspector
    assert second is not first
    assert page.view.children[2].children == (second.view,)
    assert [index for _, index in sorted(second.target.options, key=lambda option: option[1])] == [0, 1]
    assert second.picture.label == HOSTILE
    assert second.search.layout.display == "none"
    assert "it knows 2 classes" in second.view.children[0].value
    assert all(len(pictures_of(column)) == 3 for column in second.columns)
    assert not set(second.answers._kept) & set(first.answers._kept)
    assert first.answers.lane.wait(PATIENCE)
    page.picker.value = page.picker.options[0]
    assert page.inspector.card.value == before
    page.inspector.close()


def test_an_image_of_ones_own_is_asked_about_again(imagenet, folder):
    """The upload, or the file, that one network was asked about is the one that the next is asked about."""
    page = Choice(imagenet)
    page.inspector.upload.value = file(noise(7, 300))
    page.inspector.kind.value = "upload"
    assert page.inspector.picture.pixels.shape == (3, 224, 224)
    page.inspector.upload.value = ({**file(noise(1))[0], "name": "bad.png", "content": b"no image"},)
    page.picker.value = page.picker.options[1]
    assert page.inspector.picture.name == "mine.png"
    assert page.inspector.picture.pixels.shape == (3, SIZE, SIZE)
    page.inspector.kind.value = "file"
    page.inspector.file.value = "images/plain/1.png"
    page.picker.value = page.picker.options[0]
    assert page.inspector.picture.name == "1.png"
    assert page.inspector.picture.pixels.shape == (3, 224, 224)
    page.inspector.close()


def test_of_a_thousand_classes_one_is_found(imagenet):
    """The five most probable stand first; a part of a name puts its classes before them, and the only one is taken."""
    page = Inspector(imagenet[next(iter(imagenet))]())
    page.label.value = "camera"
    assert page.search.layout.display == ""
    assert len(page.target.options) == 1000
    assert page.target.options[0][0].startswith("tripod  (9")
    page.search.value = "Cat"
    matches = [name for name, _ in page.target.options if "cat" in name.split("  (")[0].lower()]
    assert [name for name, _ in page.target.options[: len(matches)]] == matches
    assert len(page.target.options) == 1000
    assert page.subject.classes[page.target.value] == "tripod"
    page.search.value = "reflex cam"
    assert page.subject.classes[page.target.value] == "reflex camera"
    page.search.value = "no such class"
    assert page.subject.classes[page.target.value] == "reflex camera"
    assert page.target.options[0][0].startswith("tripod")
    page.search.value = ""
    page.label.value = "coffee"
    assert page.subject.classes[page.target.value] == "espresso"
    page.close()


def test_a_network_that_cannot_be_opened_is_said(imagenet):
    """The reason stands under the picker, and the page of the last network stays."""

    def missing():
        raise ModuleNotFoundError("the weights of <efficientnet_lite0> are not installed")

    page = Choice({"first": list(imagenet.values())[1], "broken": missing})
    shown = page.inspector
    page.picker.value = "broken"
    assert "the weights of &lt;efficientnet_lite0&gt; are not installed" in page.error.value
    assert page.inspector is shown
    page.picker.value = "first"
    assert page.error.value == ""
    page.inspector.close()


def test_the_part_under_a_pixel_is_read(folder, tmp_path):
    """On data with parts the table names the part and says how much of it is salient."""
    import shutil

    from conftest import ROOT

    shutil.copytree(folder, tmp_path / "p", ignore=shutil.ignore_patterns("data"))
    shutil.copytree(ROOT / "data/birds", tmp_path / "p/images", dirs_exist_ok=True)
    page = Inspector(open_subject(tmp_path / "p"))
    y, x = (int(v) for v in torch.from_numpy(page.picture.parts).nonzero()[0])
    page.pixel.value = f"{x}, {y}"
    name = page.picture.part_names[page.picture.parts[y, x] - 1]
    assert f"mean in {name}" in page.reading.value
    page.close()
