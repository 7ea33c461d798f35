"""What a map costs: operations counted by hand, times by a clock of our own, and FastCAM's counts as in its paper."""

from functools import partial

import pandas
import pytest
import torch
from conftest import ROOT
from torch import nn

from xai_utils.images import baseline
from xai_utils.metrics import cost


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
        assert cost.counted_passes(Tiny(), images, cost.plain_forward) == 1
        got = cost.counted_passes(Tiny(), images, gradient_at_the_convolution)
        assert got == pytest.approx((13824 + 16 + 16) / (13824 + 16), rel=1e-12)
    five = cost.counted_passes(Tiny(), images, lambda model, x: [model(x) for _ in range(5)])
    assert five == 5
    with pytest.raises(ValueError, match="cannot be a unit"):
        cost.counted_passes(nn.Flatten(), images, cost.plain_forward)


def test_cost_of_a_baseline_is_no_forward_pass():
    """What runs no network costs nothing: a black image is 0 passes, not 1."""
    assert cost.counted_passes(Tiny(), torch.rand(1, 3, 8, 8), partial(baseline, "black")) == 0


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
    """With a pass of 2 s, a slow method of 6, 6, 60, 8 s costs 4 [3, 30]; a warm-up comes first and does not count."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(cost, "plain_forward", clock.taking("plain", 100, 2))
    functions = {"slow": clock.taking("slow", 6, 6, 60, 8), "half": clock.taking("half", 1)}
    got = cost.times_over_a_pass(nn.Identity(), torch.rand(2, 3, 4, 4), functions, rounds=3, warmup=1)
    assert got == {"slow": (4, 3, 30), "half": (0.5, 0.5, 0.5)}
    assert str(got["slow"]) == "4.00 [3.00, 30.00]"
    assert got["slow"].apart(got["half"])
    assert got["half"].apart(got["slow"])
    assert not got["slow"].apart(cost.Ratio(2.5, 2, 3))
    assert [name for name, _ in clock.calls] == ["plain", "slow", "half"] * 4
    with pytest.raises(ValueError, match="rounds is 0"):
        cost.times_over_a_pass(nn.Identity(), torch.rand(2, 3, 4, 4), functions, rounds=0)


def test_frames_per_second_times_single_images(monkeypatch):
    """Ten warm-up calls of 9 s do not count, an outlier does not move the median: 0.25 s an image is 4 a second."""
    clock = Clock(monkeypatch)
    function = clock.taking("map", *[9] * 10, 5, 0.25)
    assert cost.frames_per_second(nn.Identity(), torch.rand(3, 3, 4, 4), function, repeats=5) == 4
    assert clock.calls == [("map", 1)] * 15
    with pytest.raises(ValueError, match="repeats is 0"):
        cost.frames_per_second(nn.Identity(), torch.rand(3, 3, 4, 4), function, repeats=0)


def test_table_6_is_computed_exactly():
    """All fifteen counts and the three totals of the printed table, with no deviation."""
    table = pandas.read_csv(ROOT / "data" / "published" / "fastcam_table6_operations.csv")
    counted = cost.smoe_operations()
    columns = {"statistics": "smoe_ops", "normalisation": "norm_ops", "combination": "combine_ops"}
    for part, column in columns.items():
        assert counted[part] == table[column][:5].tolist()
        assert sum(counted[part]) == table[column][5]
    shapes = table[["channels", "height", "width"]][:5].astype(int)
    assert [tuple(shape) for shape in shapes.to_numpy()] == list(cost.RESNET50_SCALES)
    assert sum(map(sum, counted.values())) == 11_030_145


def test_memory_and_speed_ups_of_the_text():
    """117 kB; 97 to 344 times fewer operations than a backward pass, 1456 to 5181 than SmoothGrad."""
    assert cost.smoe_memory() == 117_012
    assert cost.smoe_speed_ups() == {"backward pass": (97, 344), "smooth_grad": (1456, 5181)}


def test_other_shapes_by_hand():
    """Two positions of one channel cost 2 (4 + 1); another number of layers has no published count."""
    scales = [(1, 1, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    counted = cost.smoe_operations(scales)
    assert counted == {"statistics": [10, 10, 5, 5, 5], "normalisation": [24, 24, 12, 12, 12],
                       "combination": [36, 54, 54, 54, 54]}  # fmt: skip
    assert cost.smoe_memory(scales) == 4 * (2 + 2 + 3 + 2)
    with pytest.raises(ValueError, match="2 scales were given; the published counts are for 5 layers"):
        cost.smoe_operations(scales[:2])
