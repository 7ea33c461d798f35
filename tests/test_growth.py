"""The benchmark of growth: exponents of known laws, verdicts, memory, and the page that is made of the measurements."""

import importlib
import json
import mmap
import time

import pytest
from conftest import ROOT
from PIL import Image

from xai_utils import datasets
from xai_utils.evaluation import maps, scores


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("growth")


def facts(growth, of_images=1.0, of_pixels=1.0, of_classes=0.5, of_memory=0.0, two=1.9):
    """What would be measured if times followed these powers, and memory this one of the images."""
    rows = []
    for axis, points in growth.AXES.items():
        for point in points:
            work = point.images**of_images * point.side ** (2 * of_pixels) * point.classes**of_classes
            times = {
                "steady_seconds": work / (two if point.processes == 2 else 1),
                "start_seconds": 1.0,
                "seconds": work,
            }
            rows += [
                {"job": job, **point._asdict(), **times, "working_kilobytes": 30_000 * point.images**of_memory}
                for job in growth.jobs_of(axis)
            ]
    axes = {axis: [list(point) for point in points] for axis, points in growth.AXES.items()}
    about = {"network": "small_resnet", "machine": "m", "vectors": "v", "cores": 2, "torch": "2", "load_before": 0.0}
    return about | {"axes": axes, "rows": rows}


def test_exponents_are_those_of_known_laws(growth):
    """By hand: 3 x² has 2 everywhere; 1, 2, 8 over 1, 2, 4 has slopes 1 and 2, and 1.5 between them."""
    assert growth.exponent([1, 10, 100], [3, 300, 30000]) == pytest.approx((2, 2, 2))
    assert growth.exponent([1, 2, 4], [1, 2, 8]) == pytest.approx((1.5, 1, 2))
    assert growth.exponent([1, 2], [0.1, -0.1]) is None


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        ({}, set()),
        ({"of_images": 1.2}, {"time over images"}),
        ({"of_pixels": 1.2}, {"time over pixels"}),
        ({"of_classes": 2}, {"time over classes"}),
        ({"of_memory": 0.2}, {"memory over images"}),
        ({"two": 1.7}, {"two processes, times as fast"}),
    ],
)
def test_what_grows_too_fast_is_not_kept(growth, law, broken):
    """Each law alone breaks its own promise, and the page says so."""
    found = facts(growth, **law)
    assert {row["what"] for row in growth.promises(found) if not all(row["kept"].values())} == broken
    assert growth.told(found).count("NOT KEPT") == len(broken)


def test_two_measures_of_one_point_are_told_apart(growth):
    """LIME, measured along pixels alone, stands beside the table with its own exponent."""
    found = facts(growth)
    for row in found["rows"]:
        if row["job"] == "LIME":
            row["steady_seconds"] = row["side"] ** 4.0
    assert "LIME time 2.00 (2.00 to 2.00)" in growth.told(found)
    (broken,) = (row for row in growth.promises(found) if not all(row["kept"].values()))
    assert growth.verdict(broken) == "NOT KEPT: LIME"


def test_the_most_private_memory_is_seen(growth):
    """80 MB of new pages count while they are held, though they are given back before the end."""

    def hold():
        with mmap.mmap(-1, 80_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
            for place in range(0, len(pages), mmap.PAGESIZE):
                pages[place] = 1
            time.sleep(0.1)

    before = growth.private_kilobytes()
    most = growth.most_private(hold)
    assert most - before > 60_000


def test_a_project_has_what_the_jobs_read(growth, tmp_path):
    """All classes in data and target, maps of each method, and a score in every metric that needs no birds."""
    point = growth.Point(3, 32, 7)
    folder = growth.project(tmp_path / "project", point)
    data = datasets.load(folder / "data")
    assert (len(data.validation), data.validation.images.shape[-1], len(data.classes)) == point[:3]
    for job in (growth.JOBS | growth.OVER_PIXELS).values():
        job(folder, 1)
    assert set(maps.load(folder / "explained").arrays) == set(growth.METHODS)
    frame = scores.read_scores(folder / "scores")
    assert {"insertion", "deletion", "faithfulness", "average_drop", "pointing_game"} <= set(frame)
    assert len(frame) == point.images


def test_the_page_shows_the_committed_measurements(growth):
    """docs/benchmarks.md holds what --measured writes of benchmarks/growth.json, and nothing before there is one."""
    measured, docs = ROOT / "benchmarks" / "growth.json", ROOT / "docs"
    page = (docs / "benchmarks.md").read_text(encoding="utf-8")
    told = growth.told(json.loads(measured.read_text(encoding="utf-8"))) if measured.is_file() else ""
    assert growth.part().search(page)[1].strip() == told
    assert ("growth.png" in told) == (docs / "growth.png").is_file()


def test_figure_and_table_go_into_a_page(growth, tmp_path):
    """Between the markers; again they replace what stands there, and a page without markers is refused."""
    page = tmp_path / "benchmarks.md"
    page.write_text("no markers\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"benchmarks\.md lacks the markers"):
        growth.write(facts(growth), tmp_path)
    page.write_text(
        "before\n<!-- growth: `make bench` writes this -->\n<!-- end of growth -->\nafter\n", encoding="utf-8"
    )
    for two in (1.7, 1.9):
        growth.write(facts(growth, two=two), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("<!-- end of growth -->\nafter\n")
    assert (text.count("| two processes"), "1.90" in text, "NOT KEPT" in text) == (1, True, False)
    assert Image.open(tmp_path / "growth.png").width > 390
