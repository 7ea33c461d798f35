"""What FastCAM's map costs, counted as in its paper."""

import pandas
import pytest
from conftest import ROOT

from xai_utils.metrics import cost


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
