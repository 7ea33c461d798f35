"""What is said of the maps of a method as they lie on disk, and what methods are given before they make some."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xai_utils.datasets import Split
from xai_utils.evaluation import maps
from xai_utils.evaluation.explanation import with_baselines
from xai_utils.explainers import check_rows


def test_maps_are_described_a_few_at_a_time(monkeypatch):
    """By hand, two in memory at once: one constant map of three; 1 of 4 and 2 of 4 pixels in the upper half."""
    monkeypatch.setattr(maps, "BATCH", 2)
    found = maps.described(np.array([[[0, 0], [0, 4]], [[3, 3], [3, 3]], [[-1, -1], [1, 1]]], np.float32))
    assert found == {"minimum": -1, "maximum": 4, "constant maps": 1, "lit": 3 / 12}


def split(first, count):
    """Images of one grey level each, first, first + 1, … of 255."""
    images = np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, 3, 2, 2))
    return Split(images, np.zeros(count, np.int64), [], None, [], ("a",), ())


def test_baselines_are_training_images():
    """As many as are sampled, each once, by the seed; held-out ones where there are none; a row's own stay."""
    data = SimpleNamespace(train=split(0, 20), validation=split(100, 3))
    own = torch.rand(1, 3, 2, 2)
    rows = {"gradient": {}, "expected_gradients": {"samples": 7}, "mine": {"method": "expected_gradients"}}
    given = rows | {"given": rows["mine"] | {"baselines": own}}
    found = with_baselines(given, data, 0)
    assert given["expected_gradients"] == {"samples": 7}
    assert found["gradient"] == {}
    assert found["given"]["baselines"] is own
    assert len(found["mine"]["baselines"]) == 20
    levels = (found["expected_gradients"]["baselines"][:, 0, 0, 0] * 255).round().tolist()
    assert len(set(levels)) == 7
    assert max(levels) < 20
    assert not torch.equal(
        found["expected_gradients"]["baselines"], with_baselines(rows, data, 1)["expected_gradients"]["baselines"]
    )
    data.train = split(0, 0)
    assert with_baselines(rows, data, 0)["mine"]["baselines"].min() * 255 >= 99
    check_rows(found)
    with pytest.raises(ValueError, match="baselines is 'build/data'; give images"):
        check_rows({"expected_gradients": {"baselines": "build/data"}})
