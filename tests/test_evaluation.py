"""Scoring saved maps end to end, the statistics of its tables, and the cost of making maps."""

import csv
import json
import math
from functools import partial

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import nn

from xai_utils import datasets, evaluation, networks
from xai_utils.distributed import Compute
from xai_utils.images import baseline
from xai_utils.metrics import cost
from xai_utils.metrics.localisation import break_zero_ties, pointing_game
from xai_utils.metrics.perturbation import deletion, faithfulness
from xai_utils.metrics.statistics import bootstrap_interval, holm, paired_test, paired_tests, summary

SIZE, COUNT = 24, 7
METRICS = ["insertion", "deletion", "faithfulness", "faithfulness_offset", "box_average_precision", "pointing_game"]
CURVES = {name: {"pixels_per_step": 224 * 224 / 6} for name in ("insertion", "deletion")}
OPTIONS = {"faithfulness": {"min_gap": 0.0}, "faithfulness_offset": {"min_gap": 0.0}}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with 7 of 8 prepared images, an untrained target and maps of two methods, one of them broken once."""
    folder = tmp_path_factory.mktemp("scored")
    random = np.random.default_rng(0)
    (folder / "source" / "validation").mkdir(parents=True)
    with (folder / "source" / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "x0", "y0", "x1", "y1"])
        for number in range(8):
            name = f"validation/{'ab'[number % 2]}/{number}.png"
            (folder / "source" / name).parent.mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / "source" / name)
            if number != 2:  # one image without a box
                writer.writerow([name, 2, 4, 14, 9])
    datasets.prepare(folder / "source", folder / "data", image_size=SIZE, geometry="squash")
    torch.manual_seed(0)
    networks.save(networks.build("small_resnet", ["a", "b"]).eval(), folder / "target")
    (folder / "maps").mkdir()
    explained = {
        "split": "validation",
        "indices": [0, 1, 2, 3, 5, 6, 7],
        "targets": [0, 1, 0, 1, 1, 0, 1],
        "methods": {"first": {}, "second": {}},
        "passes": {"first": 1.0, "second": 2.0},
    }
    (folder / "maps" / "explained.json").write_text(json.dumps(explained))
    for method in explained["methods"]:
        maps = random.normal(size=(COUNT, SIZE, SIZE)).astype(np.float32)
        if method == "second":
            maps[3, 1, 1] = np.nan
        np.save(folder / "maps" / f"{method}.npy", maps)
    return folder


def settings(folder, **changes):
    folders = {name: str(folder / name) for name in ("target", "data", "maps")}
    return folders | {"metrics": METRICS, "curves": CURVES, "options": OPTIONS, "chunk": 50, "batch": 3} | changes


def test_scores_equal_the_metrics_on_their_own(scored):
    """What is scored from files is what each metric says of the same maps; a broken map has failed, and only it."""
    lines = []
    result = evaluation.evaluate(settings(scored), log=lines.append)
    assert lines == ["first: 7 images scored, 0 without a map", "second: 7 images scored, 1 without a map"]
    assert result["failed"]["second"].tolist() == [False, False, False, True, False, False, False]
    split, model = datasets.load(scored / "data").validation, networks.load(scored / "target")
    indices, target = result["indices"], torch.from_numpy(result["targets"])
    images, masks = split.tensor(indices), split.box_masks(indices)
    maps = break_zero_ties(torch.from_numpy(np.load(scored / "maps" / "first.npy")))
    expected = {
        "deletion": deletion(model, images, target, maps, **CURVES["deletion"]),
        "faithfulness": faithfulness(model, images, target, maps, min_gap=0),
        "pointing_game": pointing_game(model, images, target, maps, masks=masks),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(result["scores"]["first"][name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert result["curves"]["first"]["insertion"].shape == (7,)
    assert result["fractions"]["deletion"] == pytest.approx(np.arange(7) / 6)
    assert result["protocol"]["curves"]["deletion"] == {"baseline": "mean", "points": 7, "pixels_per_step": 96}
    broken = [result["scores"]["second"][name][3] for name in METRICS]
    assert np.isnan(broken).all()
    assert np.isfinite(result["curves"]["second"]["insertion"]).all()  # the mean of the other six
    assert result["part_area"] is None


def test_two_processes_score_like_one(scored):
    """Images shared between two processes come back in order, with the scores and curves of one process."""
    one = evaluation.evaluate(settings(scored))
    two = evaluation.evaluate(settings(scored), compute=Compute(processes=2))
    for method in ("first", "second"):
        assert two["failed"][method].tolist() == one["failed"][method].tolist()
        for part in ("scores", "curves"):
            for name, values in one[part][method].items():
                np.testing.assert_allclose(two[part][method][name], values, rtol=1e-3, atol=1e-5, err_msg=name)
    assert two["indices"].tolist() == one["indices"].tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_settings_are_checked(scored):
    """A missing or unknown setting, metric, curve, split or a map of another shape is refused with the choices."""
    for changes, message in [
        ({"steps": 3}, "unknown.*steps.*optional are curves"),
        ({"metrics": ["accuracy"]}, "choose among insertion"),
        ({"curves": {"removal": {}}}, "choose among insertion"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluation.score_maps(settings(scored, **changes))
    with pytest.raises(ValueError, match="lack \\['data', 'maps', 'metrics'\\]"):
        evaluation.score_maps({"target": "somewhere"})


def test_maps_must_fit_what_was_explained(scored, tmp_path):
    """A file with fewer maps than explained images is named, and so is a folder without maps."""
    explained = json.loads((scored / "maps" / "explained.json").read_text())
    (tmp_path / "explained.json").write_text(json.dumps(explained))
    np.save(tmp_path / "first.npy", np.zeros((COUNT - 1, SIZE, SIZE), dtype=np.float32))
    with pytest.raises(ValueError, match=r"first\.npy holds 6 maps of 7"):
        evaluation.score_maps(settings(scored, maps=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="run the stage explain"):
        evaluation.score_maps(settings(scored, maps=str(tmp_path / "nothing")))


def made_up_scores():
    """Two methods on five images: B failed on image 4, image 3 has no object, categories x, x, x, y, y."""
    about = {"image": [0, 1, 2, 3, 4], "label": list("xxxyy"), "target": [0] * 5}
    gap = math.nan
    a = {"method": "A", "failed": 0, "deletion": [0.1, 0.2, 0.3, 0.4, 9.0], "pointing_game": [1, 1, 0, gap, 1]}
    b = {"method": "B", "failed": [0, 0, 0, 0, 1], "deletion": [0.3, 0.4, 0.5, 0.6, gap]}
    b["pointing_game"] = [0, 1, 0, gap, gap]
    return pandas.concat([pandas.DataFrame(about | a), pandas.DataFrame(about | b)], ignore_index=True)


def test_table_compares_methods_on_the_same_images():
    """Image 4, where B failed, counts for neither mean and in B's failures; image 3 leaves the pointing game only."""
    table = evaluation.score_table(made_up_scores(), ["deletion", "pointing_game"], seed=0)
    assert table.index.tolist() == ["A", "B"]
    assert table["deletion"].tolist() == pytest.approx([0.25, 0.45])
    assert table["deletion_n"].tolist() == [4, 4]
    assert table["pointing_game"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert table["pointing_game_n"].tolist() == [3, 3]
    assert table["failures"].tolist() == [0, 1]
    assert (table["deletion_low"] < table["deletion"]).all()
    assert (table["deletion"] < table["deletion_high"]).all()
    assert table.equals(evaluation.score_table(made_up_scores(), ["deletion", "pointing_game"], seed=0))


def test_pointing_game_by_category():
    """With a hit in category y (1 of 1) and 2 of 3 in x, the mean over categories is 5/6, over images 3/4."""
    frame = made_up_scores()
    frame = frame[frame["method"] == "A"]
    table = evaluation.score_table(frame, ["pointing_game"], seed=0)
    assert table.loc["A", "pointing_game"] == pytest.approx(3 / 4)
    assert table.loc["A", "pointing_game_by_category"] == pytest.approx(5 / 6)


def test_methods_are_compared_in_pairs():
    """B - A is 0.2 on the four shared images, p = 2 / 2^4; one comparison needs no correction."""
    table = evaluation.compare_methods(made_up_scores(), "deletion", reference="A", seed=0)
    assert table.index.tolist() == ["B"]
    assert table.loc["B", ["difference", "p", "p_holm", "n"]].tolist() == pytest.approx([0.2, 0.125, 0.125, 4])
    with pytest.raises(ValueError, match="choose among A, B"):
        evaluation.compare_methods(made_up_scores(), "deletion", reference="C", seed=0)


def test_scores_and_curves_go_to_disk_and_are_read_back(scored, tmp_path):
    """A file per method with six digits and the digest of the protocol; curves of every image; no partial folder."""
    folders = {"scores": str(tmp_path / "new" / "scores"), "drawn": str(tmp_path / "new" / "curves")}
    result = evaluation.evaluate(settings(scored, **folders))
    lines = (tmp_path / "new" / "scores" / "second.csv").read_text().splitlines()
    assert lines[0].startswith("image,label,target,method,failed,insertion")
    assert len(lines) == COUNT + 1
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["curves", "scores"]
    again = evaluation.read_scores(folders["scores"])
    pandas.testing.assert_frame_equal(again, evaluation.score_frame(result), rtol=1e-5, check_dtype=False)
    drawn = np.load(tmp_path / "new" / "curves" / "second.insertion.npy")
    assert drawn.shape == (COUNT, 7)
    assert np.isnan(drawn[3]).all()
    np.testing.assert_allclose(np.nanmean(drawn, 0), result["curves"]["second"]["insertion"])


def test_scores_of_another_protocol_are_never_mixed(scored, tmp_path):
    """A method's file from a run with other options, or of a method that this run has not, is named; so is no file."""
    new, old = str(tmp_path / "new"), str(tmp_path / "old")
    evaluation.evaluate(settings(scored, scores=new))
    assert len(evaluation.read_scores(new)) == 2 * COUNT
    evaluation.evaluate(settings(scored, scores=old, curves=CURVES | {"deletion": {"pixels_per_step": 6272}}))
    (tmp_path / "new" / "second.csv").write_bytes((tmp_path / "old" / "second.csv").read_bytes())
    with pytest.raises(ValueError, match=r"second.csv was scored by another protocol than protocol.json; evaluate"):
        evaluation.read_scores(new)
    (tmp_path / "old" / "third.csv").write_bytes((tmp_path / "old" / "second.csv").read_bytes())
    with pytest.raises(ValueError, match=r"holds scores of another run: third; evaluate again"):
        evaluation.read_scores(old)
    with pytest.raises(FileNotFoundError, match=r"holds no scores.*run the stage evaluate"):
        evaluation.read_scores(tmp_path / "none")


def test_a_broken_evaluation_leaves_the_scores_before_it(scored, tmp_path):
    """An error in the second method leaves the folder of the earlier run as it was, and nothing half-written."""
    folder = tmp_path / "scores"
    evaluation.evaluate(settings(scored, scores=str(folder)))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def breaking(line):
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(settings(scored, scores=str(folder), batch=2), log=breaking)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_bootstrap_interval_is_the_normal_one_where_it_should_be():
    """For 400 normal values: close to mean +- 1.96 s / sqrt(n), around the known mean, the same for the same seed."""
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(values, seed=1)
    assert low < 3 < high
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(values, seed=1) == (low, high)
    assert bootstrap_interval(values, seed=2) != (low, high)
    inner = bootstrap_interval(values, seed=1, confidence=0.5)
    assert low < inner[0] < inner[1] < high


def test_intervals_of_hardly_any_values():
    """One value or equal values are their own interval; NaN and nothing are refused, and counted by the summary."""
    assert bootstrap_interval([2.5], seed=0) == (2.5, 2.5)
    assert bootstrap_interval([1, 1, 1], seed=0) == (1, 1)
    for values in ([], [1, math.nan]):
        with pytest.raises(ValueError, match="drop and count"):
            bootstrap_interval(values, seed=0)
    assert summary([1, math.nan, 1], seed=0) == {"mean": 1, "low": 1, "high": 1, "n": 2, "failures": 1}
    nothing = summary([math.nan], seed=0)
    assert math.isnan(nothing["mean"])
    assert (nothing["n"], nothing["failures"]) == (0, 1)


def test_paired_test_flips_signs():
    """Five differences of +1: 2 of 32 sign patterns are as extreme, p = 1/16; equal scores have p = 1."""
    a = np.array([1.0, 2, 3, 4, 5, math.nan])
    result = paired_test(a, a - 1, seed=0)
    assert result == {"difference": 1, "low": 1, "high": 1, "p": 0.0625, "n": 5}
    assert paired_test(a, a, seed=0)["p"] == 1
    noise = np.random.default_rng(0).normal(size=200)
    assert paired_test(noise + 0.5, np.zeros(200), seed=0)["p"] < 0.001
    assert paired_test([math.nan], [1], seed=0)["n"] == 0
    with pytest.raises(ValueError, match="same images"):
        paired_test([1, 2], [1], seed=0)


def test_several_rows_are_tested_as_one_by_one():
    """Rows against the same other one share their random flips, and have the numbers that each has on its own."""
    rows = np.random.default_rng(0).normal([[0.0], [0.2], [1.0]], size=(3, 30))
    for row, result in zip(rows, paired_tests(rows, np.zeros(30), seed=0), strict=True):
        assert result == pytest.approx(paired_test(row, np.zeros(30), seed=0), rel=1e-12)
    assert [result["n"] for result in paired_tests(np.zeros((2, 0)), [], seed=0)] == [0, 0]


def test_holm_by_hand():
    """(0.01, 0.04, 0.03, 0.005): sorted times 4, 3, 2, 1 and never falling is 0.03, 0.06, 0.06, 0.02; at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"0\.\.1"):
        holm([0.5, math.nan])


class Tiny(nn.Module):
    """One convolution (3 -> 4, 3x3, 8x8 pixels: 13824 operations) and one linear layer (4 -> 2: 16)."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.convolution(images).relu().mean((2, 3)))


def gradient_at_the_convolution(model, images):
    """What Grad-CAM does: one pass, and the gradient of a logit down to the convolution's output."""
    activation = model.convolution(images).detach().requires_grad_()
    return torch.autograd.grad(model.head(activation.relu().mean((2, 3)))[:, 0].sum(), activation)[0]


def test_counted_cost_equals_a_count_by_hand():
    """A pass is 13824 + 16 operations an image and the gradient through the head 16 more, at any batch size."""
    for number in (1, 3):
        images = torch.rand(number, 3, 8, 8)
        assert cost.counted_forward_equivalents(Tiny(), images, cost.plain_forward) == 1
        got = cost.counted_forward_equivalents(Tiny(), images, gradient_at_the_convolution)
        assert got == pytest.approx((13824 + 16 + 16) / (13824 + 16), rel=1e-12)
    five = cost.counted_forward_equivalents(Tiny(), images, lambda model, x: [model(x) for _ in range(5)])
    assert five == 5
    with pytest.raises(ValueError, match="cannot be a unit"):
        cost.counted_forward_equivalents(nn.Flatten(), images, cost.plain_forward)


def test_cost_of_a_baseline_is_no_forward_pass():
    """What runs no network costs nothing: a black image is 0 forward equivalents, not 1."""
    assert cost.counted_forward_equivalents(Tiny(), torch.rand(1, 3, 8, 8), partial(baseline, "black")) == 0


class Clock:
    """A clock that moves only when a function says how long it takes."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)

    def taking(self, name, *seconds):
        """A function that takes the given times in turn, the last one from then on."""
        left = list(seconds)

        def function(model, images):
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.calls.append((name, len(images)))

        return function


def test_wall_clock_ratios_are_interleaved_medians(monkeypatch):
    """With a pass of 2 s, a slow method of 6, 6, 60, 6 s costs 3; a warm-up comes first and does not count."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(cost, "plain_forward", clock.taking("plain", 100, 2))
    functions = {"slow": clock.taking("slow", 6, 6, 60, 6), "half": clock.taking("half", 1)}
    got = cost.forward_equivalents(nn.Identity(), torch.rand(2, 3, 4, 4), functions, rounds=3, warmup=1)
    assert got == {"slow": 3, "half": 0.5}
    assert [name for name, _ in clock.calls] == ["plain", "slow", "half"] * 4
    with pytest.raises(ValueError, match="rounds is 0"):
        cost.forward_equivalents(nn.Identity(), torch.rand(2, 3, 4, 4), functions, rounds=0)


def test_frames_per_second_times_single_images(monkeypatch):
    """Ten warm-up calls of 9 s do not count, an outlier does not move the median: 0.25 s an image is 4 a second."""
    clock = Clock(monkeypatch)
    function = clock.taking("map", *[9] * 10, 5, 0.25)
    assert cost.frames_per_second(nn.Identity(), torch.rand(3, 3, 4, 4), function, repeats=5) == 4
    assert clock.calls == [("map", 1)] * 15
    with pytest.raises(ValueError, match="repeats is 0"):
        cost.frames_per_second(nn.Identity(), torch.rand(3, 3, 4, 4), function, repeats=0)


def test_peak_memory_is_counted_where_it_can_be():
    """On a CPU it is an error; on a GPU, a function that holds 8 MiB needs 8 MiB."""
    with pytest.raises(ValueError, match="CUDA"):
        cost.peak_memory(nn.Identity(), torch.rand(1, 3, 4, 4), cost.plain_forward)
    if torch.cuda.is_available():
        images = torch.rand(1, 3, 4, 4, device="cuda")
        used = cost.peak_memory(nn.Identity(), images, lambda model, x: torch.ones(2**21, device=x.device).sum())
        assert 2**23 <= used < 2**23 + 2**16
