"""README's promise: a method, or a metric, is one function and one record, and then it is everywhere."""

import json
import shutil

import pytest
import test_explainers
import torch
from conftest import ROOT
from inspected import make
from scratch import execute
from test_explainers import explained

from xai_utils import plots
from xai_utils.explainers import EXPLAINERS, Explainer, Option
from xai_utils.explainers.records import NUMBER
from xai_utils.metrics import METRICS, Metric
from xai_utils.networks import class_indices, evaluating
from xai_utils.papers import claims
from xai_utils.widgets import open_subject


def input_times_gradient(model, images, target=None, *, power=1.0):
    """map = (sum_channels |x dz_c/dx|) ** power"""
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        pixels = images.clone().requires_grad_()
        logits = model(pixels.clone())
        score = logits.gather(1, class_indices(logits, target).clone()[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, pixels)
    return (images * gradient).abs().sum(1).float() ** power


def upper_half(model, images, target, maps):
    """The share of the map's mass in the upper half of the image (N,)."""
    mass = maps - maps.amin((1, 2), keepdim=True)
    return mass[:, : maps.shape[1] // 2].sum((1, 2)).cpu() / mass.sum((1, 2)).clamp(min=1e-12).cpu()


def require_rules_over_the_methods(method):
    """Each rule that test_explainers.py generates over the methods holds for `method`, too."""
    rules = [
        rule
        for name, rule in vars(test_explainers).items()
        if name.startswith("test_")
        and any(mark.name == "parametrize" and mark.args[1] is EXPLAINERS for mark in getattr(rule, "pytestmark", []))
    ]
    assert len(rules) >= 6
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    available = {"method": method, "small": explained(), "images": images}
    for rule in rules:
        wanted = rule.__code__.co_varnames[: rule.__code__.co_argcount]
        rule(**{name: available[name] for name in wanted})


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A small project whose stages explain, evaluate and figures ran while the registries had one entry more each."""
    folder, drawn = make(tmp_path_factory.mktemp("extended") / "p"), []
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", dirs_exist_ok=True)
    (folder / "data").mkdir()
    (folder / "data" / "published").symlink_to(ROOT / "data" / "published")
    (folder / "reports").mkdir()
    for stage in ("remove_and_retrain", "train_attention"):  # as a clone has them: of the birds
        shutil.copy(ROOT / "reports" / f"{stage}.json", folder / "reports")
    with pytest.MonkeyPatch.context() as patch:
        power = Option("power", NUMBER, low=0, offered=(1, 3))
        record = Explainer(input_times_gradient, "Input × gradient", "a test", options=(power,))
        patch.setitem(EXPLAINERS, "input_times_gradient", record)
        score = Metric("Upper half", True, "maps", "0 to 1", "share of the map in the upper half", upper_half)
        patch.setitem(METRICS, "upper_half", score)
        original = plots.method_grid
        patch.setattr(plots, "method_grid", lambda *given, **style: drawn.append(given[1]) or original(*given, **style))
        execute(folder, "explain")
        patch.setattr(claims, "html", lambda rows: drawn.append(rows) or "")
        execute(folder, "evaluate")
        (folder / "claims.json").write_text(json.dumps(drawn[-1]))
        drawn.clear()
        execute(folder, "figures")
        yield folder, drawn


def test_the_method_is_explained_scored_and_drawn(extended):
    """Without a word in params.yaml: its maps, the scores of each image, the result table, the front picture."""
    folder, drawn = extended
    summary = json.loads((folder / "reports" / "metrics.json").read_text())
    assert (folder / "build" / "maps" / "input_times_gradient.npy").is_file()
    assert (folder / "reports" / "scores" / "input_times_gradient.csv").is_file()
    assert "input_times_gradient" in summary["methods"]
    assert "input_times_gradient" in drawn[0]


def test_the_metric_is_scored_and_told(extended):
    """Every method has it, in its files and in the table, and it says what it measures."""
    folder, _ = extended
    summary = json.loads((folder / "reports" / "metrics.json").read_text())
    assert summary["metrics"]["upper_half"]["label"] == "Upper half"
    assert all(0 <= row["upper_half"]["mean"] <= 1 for row in summary["methods"].values())
    assert "upper_half" in (folder / "reports" / "scores" / "grad_cam.csv").read_text().splitlines()[0]
    assert METRICS["upper_half"].protocol((32, 32)) == "share of the map in the upper half"


def test_verdicts_of_other_data_are_not_shown(extended):
    """The reports of a clone are of its birds: on other data their claims are not told as this run's."""
    rows = json.loads((extended[0] / "claims.json").read_text())
    told = {row["paper"]: row["verdict"] for row in rows if row["paper"] == "AMG"}
    assert told == {"AMG": "not of this run"}


@pytest.mark.parametrize("stage", ["figures", "measure_speed"])
def test_scores_of_other_maps_are_refused(extended, stage):
    """Maps that were made again since do not stand beside the former scores."""
    file = extended[0] / "build" / "maps" / "explained.json"
    record = json.loads(before := file.read_text())
    file.write_text(json.dumps(record | {"run": record["run"] | {"maps": "others"}}))
    with pytest.raises(ValueError, match=r"metrics.json is of another run \(maps .* instead of others\)"):
        execute(extended[0], stage)
    file.write_text(before)


def test_the_inspector_offers_the_method_and_its_options(extended):
    """It stands in the list, and its option has a slider with the range of the record."""
    subject = open_subject(extended[0])
    assert "input_times_gradient" in subject.methods
    (setting,) = subject.settings("input_times_gradient")
    assert (setting.name, setting.default, setting.low, setting.high) == ("power", 1.0, 1, 3)


def test_the_tests_over_the_registry_hold_for_the_method(extended):
    """Each rule that test_explainers.py generates over the methods is one for this one, too."""
    require_rules_over_the_methods("input_times_gradient")


def test_the_option_is_checked_by_the_record(extended):
    """A value of the wrong kind is refused by the method's and the option's names."""
    with pytest.raises(ValueError, match="input_times_gradient: power is 'much'; give a number, 0 or more"):
        EXPLAINERS["input_times_gradient"].check("input_times_gradient", {"power": "much"})
