"""What the inspector stands on: work that can be watched and cancelled, pictures from outside, a network's answers."""

import base64
import copy
import io
import json
import re
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from inspected import HOSTILE, SIZE, make, noise
from PIL import Image
from test_explainers import TRANSFORMERS
from torch import nn

from xai_utils import datasets, explainers, networks
from xai_utils.explainers import passes
from xai_utils.networks.mask_predictor import predictor_of
from xai_utils.widgets import drawing, open_subject, openers, pictures
from xai_utils.widgets.background import Cancelled, Lane, watched
from xai_utils.widgets.subject import Subject

PATIENCE = 30.0  # seconds: a busy machine is slow, a broken lane never ends


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return open_subject(make(tmp_path_factory.mktemp("inspected") / "project"))


@pytest.fixture(scope="module")
def picture(subject):
    return subject.sources[0].picture("validation", "plain", 0)


def defaults(subject, method, **changes):
    return {option.name: option.default for option in subject.settings(method)} | changes


class Recorder:
    """What a lane reports."""

    def __init__(self):
        self.done, self.seen, self.arrived = {}, [], threading.Event()

    def lane(self):
        return Lane(done=self._done, progress=lambda key, images: self.seen.append((key, images)))

    def _done(self, key, result):
        self.done[key] = result
        self.arrived.set()


def test_a_watched_model_counts_the_images_of_each_pass_and_is_left_as_it_was():
    """Every pass is reported before it runs, and no hook stays, also after a cancellation."""
    model, counted = nn.Flatten(), []
    with watched(model, counted.append):
        model(torch.zeros(3, 2))
        model(torch.zeros(1, 2))
    assert counted == [3, 1]

    def refuse(images):
        raise Cancelled

    with pytest.raises(Cancelled), watched(model, refuse):
        model(torch.zeros(1, 2))
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("method", ["rise", "lime", "meaningful_perturbation", "integrated_gradients", "smooth_grad"])
def test_each_slow_method_can_be_cancelled_at_a_pass_and_leaves_the_network_unchanged(subject, picture, method):
    """Cancelled in the middle, a method raises that and nothing else, and the same map can be made afterwards."""
    before = {name: id(module) for name, module in subject.model.named_modules()}
    counted, options = [], defaults(subject, method)
    expected = subject.explain(subject.model, picture, 0, method, options)

    def look(images):
        counted.append(images)
        if len(counted) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        subject.explain(subject.model, picture, 0, method, options, look)
    assert {name: id(module) for name, module in subject.model.named_modules()} == before
    for module in subject.model.modules():
        assert not {**module._forward_hooks, **module._forward_pre_hooks, **module._backward_hooks}
    again = subject.explain(subject.model, picture, 0, method, options)
    assert torch.equal(again.scores, expected.scores)


def test_a_lane_does_the_wanted_tasks_in_order_and_reports_errors():
    """Results and exceptions arrive under their keys; the first named is done first."""
    recorder = Recorder()
    lane, order = recorder.lane(), []

    def fail(look):
        order.append("second")
        raise ValueError("no")

    lane.want({"first": lambda look: order.append("first"), "second": fail})
    assert lane.wait(PATIENCE)
    assert order == ["first", "second"]
    assert recorder.done["first"] is None
    assert str(recorder.done["second"]) == "no"
    lane.close()


def test_what_nobody_wants_any_more_is_cancelled_and_what_is_still_wanted_goes_on():
    """A new wish drops the running task at its next pass; the same wish again does not restart it."""
    recorder, begun, go = Recorder(), threading.Event(), threading.Event()
    lane, starts = recorder.lane(), []

    def long(look):
        starts.append(1)
        begun.set()
        go.wait(PATIENCE)
        look(4)
        return "long"

    lane.want({"long": long})
    assert begun.wait(PATIENCE)
    lane.want({"long": long, "next": lambda look: "next"})
    go.set()
    assert lane.wait(PATIENCE)
    assert recorder.done == {"long": "long", "next": "next"}
    assert len(starts) == 1

    begun.clear()
    go.clear()
    lane.want({"dropped": long})
    assert begun.wait(PATIENCE)
    lane.want({"other": lambda look: "other"})
    assert lane.running is None
    go.set()
    assert lane.wait(PATIENCE)
    assert "dropped" not in recorder.done
    assert recorder.done["other"] == "other"
    lane.close()


def test_progress_counts_images(monkeypatch):
    """The images of all passes so far are reported, with the key of the task."""
    monkeypatch.setattr("xai_utils.widgets.background.TOLD_EVERY", 0.0)
    recorder = Recorder()
    lane = recorder.lane()

    def work(look):
        for images in (2, 3):
            look(images)

    lane.want({"counted": work})
    assert lane.wait(PATIENCE)
    assert recorder.seen == [("counted", 2), ("counted", 5)]
    lane.close()


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_upload_becomes_the_picture_that_preparing_the_same_file_gives(subject, tmp_path, monkeypatch):
    """Same pixels as the stage prepare_data, whatever the format and name; nothing is left in the temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepared = subject.sources[0].data.validation
    index, file = next(row for row in enumerate(prepared.files) if row[1].startswith("plain"))
    content = encoded(noise(10 + int(Path(file).stem)))
    uploaded = pictures.read_upload(content, "../../any <b>name</b>.PNG", SIZE, geometry="squash")
    assert torch.equal(uploaded.pixels, prepared.tensor([index])[0])
    assert uploaded.name == "../../any <b>name</b>.PNG"
    assert not list(tmp_path.iterdir())
    assert pictures.read_upload(encoded(noise(1, 300), "JPEG"), "x", SIZE).pixels.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GIF89a is not allowed", "not a readable image"),
        (b"", "empty"),
        (b"<svg onload=alert(1)>", "not a readable image"),
        (encoded(noise(0, 64))[:-40], "damaged or cut off"),
        (encoded(Image.new("1", (9000, 9000))), "9000 x 9000 pixels"),
        (encoded(Image.new("1", (20000, 20000))), "million pixels"),
        (b"\x89PNG" + bytes(pictures.MOST_BYTES), "8.0 MB; at most 8"),
    ],
    ids=["text", "empty", "svg", "cut off", "large", "bomb", "heavy"],
)
def test_bad_files_are_refused_by_name(content, said, tmp_path, monkeypatch):
    """What is no image, is damaged or too large is a DataError that names the file as the user does, and no path."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(datasets.DataError, match=said) as raised:
        pictures.read_upload(content, "mine.png", SIZE)
    assert "mine.png" in str(raised.value)
    assert str(tmp_path) not in str(raised.value)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "mine.png"
    file.write_bytes(content)
    with pytest.raises(datasets.DataError, match=said):
        pictures.read_picture(file, SIZE)


def test_a_missing_file_is_said(tmp_path):
    """The path of a file that is not there, or of a folder, is an error with the path."""
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(datasets.DataError, match="is no file"):
            pictures.read_picture(path, SIZE)


def test_the_key_follows_content_and_nothing_else(subject, picture):
    """Equal pixels, class, method, options and weights are the same answer; a change of any is another."""
    options = defaults(subject, "fastcam")
    key = subject.key(picture, 0, "fastcam", options)
    again = picture._replace(pixels=picture.pixels.clone(), name="another name")
    assert subject.key(again, 0, "fastcam", dict(reversed(options.items()))) == key
    changed = picture.pixels.clone()
    changed[0, 0, 0] += 1 / 255
    others = [
        subject.key(picture._replace(pixels=changed), 0, "fastcam", options),
        subject.key(picture, 1, "fastcam", options),
        subject.key(picture, 0, "grad_cam", options),
        subject.key(picture, 0, "fastcam", options | {"weights": "equal"}),
        Subject(subject.model, SIZE, weights="other").key(picture, 0, "fastcam", options),
    ]
    assert len({key, *others}) == 6


def test_maps_and_curves_are_those_of_the_library(subject, picture):
    """The page shows what `explain` and the curves' functions give with the same options."""
    options = defaults(subject, "smoe", weights="equal")
    answer = subject.explain(copy.deepcopy(subject.model), picture, 1, "smoe", options)
    expected = explainers.explain(subject.model, picture.pixels[None], 1, method="smoe", weights="equal")[0]
    torch.testing.assert_close(answer.scores, expected)
    assert answer.ranks.flatten().argmin() == expected.argmax()
    assert answer.passes == pytest.approx(1, abs=0.05)  # statistics are no matrix products, what is found once no cost
    assert answer.seconds > 0
    curves = subject.perturbed(subject.model, picture, 1, answer)
    probability = float(subject.probabilities(subject.model, picture)[1])
    assert curves.insertion[-1] == pytest.approx(probability, abs=1e-5)
    assert curves.deletion[0] == pytest.approx(probability, abs=1e-5)


def test_a_masked_image_keeps_exactly_its_share(subject, picture):
    """The most salient quarter stays as it was, all other pixels are black."""
    answer = subject.explain(subject.model, picture, 0, "gradient", {})
    masked = subject.masked(picture, answer, 0.25, "black")
    kept = answer.ranks < SIZE * SIZE // 4
    assert torch.equal(masked[:, kept], picture.pixels[:, kept])
    assert not masked[:, ~kept].any()


def test_every_method_has_options_that_it_accepts(subject, picture):
    """The defaults that the page offers give a map for each method that needs no network of its own or other kind."""
    for method in subject.methods:
        if method not in subject.missing:
            small = {name: 2 for name in ("masks", "samples", "iterations", "steps")}
            options = defaults(subject, method)
            options |= {name: value for name, value in small.items() if name in options}
            with pytest.raises(explainers.NotApplicable) if method in TRANSFORMERS else nullcontext():
                assert subject.explain(subject.model, picture, 0, method, options).scores.shape == (SIZE, SIZE), method


def test_expected_passes_follow_the_options():
    """Masks, samples, steps: what multiplies the passes; steps count only where Integrated Gradients take them."""
    assert passes("grad_cam", {"layer": "default"}) == 1
    assert passes("rise", {"masks": 500, "cells": 7}) == 500
    assert passes("smooth_grad", {"samples": 8, "steps": 25, "over": "gradient"}) == 8
    assert passes("smooth_grad", {"samples": 8, "steps": 25, "over": "integrated_gradients"}) == 200


def test_the_controller_can_be_changed_after_training():
    """η and h of the page replace those of training: scores are sigmoid(η z)^h of the same generator."""
    from xai_utils import networks

    torch.manual_seed(0)
    target = networks.build("small_resnet", ["a", "b"]).eval()
    images = torch.rand(1, 3, 64, 64)
    predictor = predictor_of(target, images, controller="customized").eval()
    subject = Subject(target, 64, parts={"dgle_cf": {"dgle_cf": predictor}}, defaults={})
    picture, changed = pictures.Picture(images[0], "x"), {"eta": 0.5, "exponent": 4.0}
    assert defaults(subject, "dgle_cf") == {"eta": 1.5, "exponent": 2.5}
    found = subject.explain(target, picture, 0, "dgle_cf", changed).scores
    assert (predictor.eta, predictor.exponent) == (1.5, 2.5)
    predictor.eta, predictor.exponent = changed.values()
    torch.testing.assert_close(found, explainers.explain(target, images, 0, method="dgle_cf", predictor=predictor)[0])


def test_a_gate_is_chosen_by_its_layer():
    """AMG's trained gates are offered by layer, and the page's map is that of the chosen one."""
    from xai_utils import networks

    torch.manual_seed(0)
    target, images = networks.build("small_resnet", ["a", "b"]).eval(), torch.rand(1, 3, 64, 64)
    gates = {layer: networks.gate_for(target, images, layer=layer).eval() for layer in ("layer4", "layer3")}
    subject, picture = Subject(target, 64, parts={"amg": gates}), pictures.Picture(images[0], "x")
    assert defaults(subject, "amg") == {"gate": "layer4", "composition": "both"}
    found = subject.explain(target, picture, 0, "amg", {"gate": "layer3", "composition": "both"}).scores
    torch.testing.assert_close(found, explainers.explain(target, images, 0, method="amg", gate=gates["layer3"])[0])
    untrained = Subject(target, 64, missing={"amg": "amg needs what `dvc repro train_attention` trains"})
    with pytest.raises(ValueError, match="train_attention"):
        untrained.explain(target, picture, 0, "amg", {})


def test_before_any_stage_a_network_of_imagenet_answers(tmp_path):
    """Nothing built, no data: the installed network names the photographs, and trained methods say why they cannot."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (opener,) = openers(tmp_path).values()
    subject = opener()
    assert subject.notices == ()
    assert len(subject.classes) == 1000
    assert "efficientnet_lite0 answers; it knows 1000 classes" in subject.about
    assert "shorter side has 256 pixels, and the 224 × 224 in the middle" in subject.about
    for name, label, least in (("coffee", "espresso", 0.9), ("camera", "tripod", 0.9), ("rocket", "missile", 0.3)):
        picture = subject.sources[0].picture("installed", name, 0)
        probabilities = subject.probabilities(subject.model, picture)
        assert subject.classes[probabilities.argmax()] == label
        assert probabilities.max() > least
    for method, stage in (
        ("akd", "distill_surrogate"),
        ("dgle_cf", "train_mask_predictor"),
        ("amg", "train_attention"),
    ):
        with pytest.raises(ValueError, match=f"not for this one: stage {stage} trains it"):
            subject.explain(subject.model, picture, 0, method, {})


def test_the_network_of_the_pipeline_is_offered_where_it_is_trained(tmp_path):
    """Second to ImageNet's; its methods name the stages that have not run; a damaged one is an error with its file."""
    assert len(openers(make(tmp_path / "untrained", trained=False))) == 1
    folder = make(tmp_path / "trained")
    _, second = openers(folder).values()
    subject = second()
    assert subject.classes == (HOSTILE, "plain")
    assert f"tiny_resnet answers; it knows 2 classes. An image is squeezed to {SIZE} × {SIZE} pixels" in subject.about
    picture = subject.sources[0].picture("validation", "plain", 0)
    for method, stage in (("akd", "distill_surrogate"), ("dgle_cf", "train_mask_predictor")):
        with pytest.raises(ValueError, match=f"{method} needs what `dvc repro {stage}` trains"):
            subject.explain(subject.model, picture, 0, method, {})
    (folder / "build/target/target.json").write_text("{")
    with pytest.raises(ValueError, match=r"target\.json"):
        second()


def test_without_prepared_data_there_is_nothing_to_pick_from(tmp_path):
    """The page says which stage makes it; a picture of another size keeps its truth in place."""
    folder = make(tmp_path)
    shutil.rmtree(folder / "build/data")
    subject = open_subject(folder)
    assert subject.sources == ()
    assert "dvc repro prepare_data" in subject.notices[0]


def test_a_picture_of_another_size_keeps_what_is_true_of_it():
    """Boxes and parts are where they were, and parts stay whole numbers; which of them decide is not known there."""
    parts = np.zeros((8, 8), dtype=np.uint8)
    parts[2:4, 4:8] = 3
    picture = pictures.Picture(torch.rand(3, 8, 8), "x", None, parts, ("a", "b", "c"), ((4, 2, 8, 4),), deciding=print)
    large = picture.at(16)
    assert large.pixels.shape == (3, 16, 16)
    assert large.boxes == ((8, 4, 16, 8),)
    assert np.array_equal(np.argwhere(large.parts == 3)[[0, -1]], [[4, 8], [7, 15]])
    assert set(np.unique(large.parts)) == {0, 3}
    assert large.deciding is None
    assert picture.at(8) is picture


def test_options_are_json(subject):
    """What is saved with a picture can be read back: every default of every method is plain data."""
    for method in subject.methods:
        values = defaults(subject, method)
        assert json.loads(json.dumps(values)) == values, method
    assert defaults(subject, "smooth_grad_cam_plus_plus")["layer"] == "default"


def test_layers_are_offered_however_deep_a_network_lies():
    """A network inside of others offers what it offers by itself, under longer names."""
    target = networks.build("tiny_resnet", "ab").eval()
    alone, deep = (
        next(each.choices for each in Subject(model, 32).settings("grad_cam") if each.name == "layer")
        for model in (target, torch.nn.Sequential(torch.nn.Sequential(target)))
    )
    assert "layer4.0" in alone
    assert deep == ("default", *(f"0.0.network.{name}" for name in alone[1:]))


def test_a_closed_lane_takes_no_more():
    """An owner who asks for more while it is told the last result leaves nothing waiting."""
    lane = Recorder().lane()
    lane.close()
    lane.want({"late": lambda look: "late"})
    assert lane.wait(PATIENCE)


def test_a_gallery_holds_its_pictures_and_escapes_its_texts():
    """Each card is a JPEG inside the page with its title and its numbers; no text becomes HTML."""
    page = drawing.gallery([("<b>", np.full((4, 6, 3), 0.5), [("a&b", "<i>1")])] * 2)
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert [Image.open(io.BytesIO(base64.b64decode(each))).size for each in sources] == [(6, 4)] * 2
    assert page.count('alt="&lt;b&gt;"') == 2
    assert page.count("<span>a&amp;b <b>&lt;i&gt;1</b></span>") == 2
