"""What is said of the maps of a method as they lie on disk."""

import numpy as np

from xai_utils.evaluation import maps


def test_maps_are_described_a_few_at_a_time(monkeypatch):
    """By hand, two in memory at once: one constant map of three; 1 of 4 and 2 of 4 pixels in the upper half."""
    monkeypatch.setattr(maps, "BATCH", 2)
    found = maps.described(np.array([[[0, 0], [0, 4]], [[3, 3], [3, 3]], [[-1, -1], [1, 1]]], np.float32))
    assert found == {"minimum": -1, "maximum": 4, "constant maps": 1, "lit": 3 / 12}
