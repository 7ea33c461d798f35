"""The first look: its page in a small form, made without any stage, and what stays of it when it is stopped."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
import torch
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from xai_utils import networks
from xai_utils.datasets.photographs import PHOTOGRAPHS, photographs
from xai_utils.explainers import EXPLAINERS, rows_of
from xai_utils.metrics import deletion, insertion
from xai_utils.widgets import demo

SMALL = {"size": 64, "methods": ["grad_cam", "attention_rollout", "rise"], "steps": 2}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone without data and build, in which no stage has run; RISE is content with three masks."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "reports").mkdir()
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    few, changed = re.subn(r"(rise:\n +masks: )\{.*?\}", r"\g<1>60", text)
    assert changed == 1
    (tmp_path / "params.yaml").write_text(few, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_made_without_any_stage(clone, monkeypatch):
    """Photographs with their terms and answers, a map of each method, a reason for each without one; whole before the
    slow methods have answered, with them afterwards, and nothing else is left in the clone."""
    pages, render = [], demo.report.render
    monkeypatch.setattr(
        demo.report, "render", lambda made, page, links: pages.append(page) or render(made, page, links)
    )
    states = []
    monkeypatch.setattr(demo.stage, "progress", lambda text: states.append(demo.PAGE.read_text("utf-8")))
    before = sorted(path.relative_to(clone) for path in clone.rglob("*"))
    assert demo.make(given=SMALL) is None
    assert pages == [demo.PAGE, demo.PAGE]
    (quick,), page = states, demo.PAGE.read_text("utf-8")
    for text in (quick, page):
        assert all(photograph.credit in text for photograph in PHOTOGRAPHS.values())
        assert "Attention rollout has no map: " in text
        assert not re.search(r'src="(?!data:)|https?://[^ "<]*\.(?:js|css|png|jpg)', text)
        assert text.rstrip().endswith("</html>")
        assert text.count('alt="Grad-CAM"') == 8  # four photographs, two classes of one, two of the mosaic
    assert (quick.count('alt="RISE"'), page.count('alt="RISE"')) == (0, 4)
    assert re.search(r"<th[^>]*>(?:<a [^>]*>)?RISE", page)
    after = sorted(path.relative_to(clone) for path in clone.rglob("*"))
    assert set(after) - set(before) == {demo.PAGE}


def test_stopped_between_the_methods_the_page_of_the_quick_ones_stays(clone, monkeypatch):
    """An interruption in the slow part ends with a page that is whole, and says what it shows."""

    def stop(text):
        raise KeyboardInterrupt

    slow = new_code_cell("print('a slow method')", metadata={"tags": [demo.SLOW]})
    cells = [new_markdown_cell("# A look"), new_code_cell("print('a quick method')"), slow]
    nbformat.write(new_notebook(cells=cells), clone / "look.ipynb")  # whose kernel needs no torch
    made = demo.make
    monkeypatch.setattr(demo.stage, "progress", stop)
    monkeypatch.setattr(demo, "make", lambda given: made(given=given, notebook=clone / "look.ipynb"))
    monkeypatch.setattr("sys.argv", ["demo"])
    # a thread of its own: in pytest's a browser's event loop may run, beside which an interruption would be lost
    with (
        ThreadPoolExecutor(1) as fresh,
        pytest.raises(SystemExit, match=r"stopped: interrupted; reports/demo.html shows the quick methods"),
    ):
        fresh.submit(demo.main).result()
    text = demo.PAGE.read_text("utf-8")
    assert text.rstrip().endswith("</html>")
    assert ("a quick method" in text, "a slow method\n" in text) == (True, False)


def test_numbers_are_those_of_the_library():
    """Scores of a look are those of the metrics, the cost is counted per plain pass, and a seed gives one map."""
    torch.manual_seed(0)
    model = networks.build("tiny_resnet", ["a", "b"]).eval()
    images, target = photographs(["coffee", "camera"], 32), torch.tensor([0, 1])
    told = []
    rows = {"gradient": {}, "smooth_grad": {"samples": 3}, "attention_rollout": {}}
    found = demo.looks(model, images, target, rows, steps=4, log=told.append)
    again = demo.looks(model, images, target, rows, steps=4)
    look = found["gradient"]
    options = {"pixels_per_step": 224 * 224 / 4}
    torch.testing.assert_close(look.insertion, insertion(model, images, target, look.maps, **options))
    torch.testing.assert_close(look.deletion, deletion(model, images, target, look.maps, **options))
    assert look.passes == pytest.approx(2, abs=0.1)
    assert look.seconds > 0
    assert torch.equal(found["smooth_grad"].maps, again["smooth_grad"].maps)
    assert "transformers" in found["attention_rollout"]


def test_remaining_time_is_told(monkeypatch):
    """After half of the images in ten seconds, ten seconds are left; nothing is told before something is known."""
    now, told = [0.0], []
    monkeypatch.setattr(demo.time, "monotonic", lambda: now[0])
    clock = demo._Clock(100, told.append)
    clock.begin("one")
    now[0] = 6.0
    clock.look(1)
    assert told == []
    clock.end(20)
    clock.begin("two")
    now[0] = 10.0
    clock.look(30)
    now[0] = 12.0
    clock.look(20)
    assert told == ["two: about 10 s left"]


def test_quick_and_slow_methods_are_all_that_train_nothing():
    """RISE, LIME and meaningful perturbation are slow, whatever needs a trained network is neither."""
    quick, slow = demo.untrained(rows_of("all", {"rise": {"masks": 500}}))
    assert set(slow) == {"rise", "lime", "meaningful_perturbation"}
    assert set(quick) | set(slow) == {name for name, record in EXPLAINERS.items() if record.part is None}


def test_the_committed_notebook_is_for_all_four_photographs():
    """Its mosaic needs four of them, and explains classes that are in it."""
    notebook = json.loads((ROOT / demo.NOTEBOOK).read_text(encoding="utf-8"))
    (cell,) = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    values = {}
    exec("".join(cell["source"]), values)
    assert len(values["shown"]) == 4
    assert set(values["shown"]) <= set(PHOTOGRAPHS)
    assert values["picture"] is None
