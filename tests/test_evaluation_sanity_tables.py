"""The table of sanity checks: what is asked of cheap and costly rows, and what stands in it."""

import numpy as np
import torch
from test_layers import settled

from xai_utils import networks
from xai_utils.evaluation import maps, sanity_tables
from xai_utils.training.distributed import Compute


class Shown:
    """Images of noise as a split, of a data set that holds out the same."""

    train = validation = property(lambda self: self)

    def __len__(self):
        return 4

    def tensor(self, indices):
        return torch.rand(len(indices), 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_each_row_is_checked_as_its_cost_allows(tmp_path):
    """Grad-CAM depends on the model, edges do not (✗); a costly row forgets all at once, on fewer images."""
    torch.manual_seed(0)
    networks.save(settled(networks.build("small_resnet", ["a", "b"])).eval(), tmp_path)
    rows = {"grad_cam": {}, "edges": {"method": "sobel_edges"}, "dear": {"method": "smooth_grad", "samples": 2}}
    made = maps.Maps(
        "validation", np.arange(3), np.array([0, 1, 0]), rows, {"grad_cam": 1, "edges": 0, "dear": 500}, {}
    )
    lines = []
    found = sanity_tables.of_rows(tmp_path, made, Shown(), images=3, compute=Compute("cpu"), log=lines.append)
    assert [len(found[row].noise) for row in rows] == [3, 3, sanity_tables.HEAVY_IMAGES]
    assert list(found["dear"].cascade) == ["all"]
    assert len(found["grad_cam"].cascade) == 5
    assert lines[1].startswith("edges: does not depend on the model; 2 of 3, about ")
    table = sanity_tables.table(found)
    assert table.loc["edges", "verdict"] == "does not depend on the model ✗"
    assert table.loc["edges", "all untrained"] == "1.00 [1.00, 1.00]"
    assert table.loc["grad_cam", "verdict"] == "depends on the model"
    assert table.loc["edges", "max-sensitivity"] != table.loc["grad_cam", "max-sensitivity"] != ""
    assert table.loc["dear", "to fc"] == ""
    assert table.loc["dear", "seeds"] != table.loc["grad_cam", "seeds"] == ""
    assert "<td>3</td>" in sanity_tables.html(found)
    assert sanity_tables.of_rows(tmp_path, made, Shown(), images=0, compute=Compute("cpu")) == {}
