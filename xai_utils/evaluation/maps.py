"""Maps of many images, kept as files (explanation.py makes them).

A folder of maps holds one `<method>.npy` float32 (n, S, S) per method and `explained.json` with
    split     the split of the prepared data that was explained
    indices   (n) which of its images
    targets   (n) the explained classes: those that the target predicts
    methods   row -> its options (`explainers.method_of`), in the order of the tables
    passes    method -> forward equivalents, counted (see metrics.cost)
    run       of which run they are (runs.py), with a hash of the maps themselves
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xai_utils import runs
from xai_utils.files import file_name


@dataclass(frozen=True)
class Maps:
    """An opened folder of maps."""

    split: str
    indices: np.ndarray  # (n,)
    targets: np.ndarray  # (n,)
    methods: dict[str, dict]
    passes: dict[str, float]
    arrays: dict[str, np.ndarray]  # method -> (n, S, S)
    run: dict | None = None


def load(folder, run=None) -> Maps:
    """Open a folder of maps; the arrays stay on disk until they are read.

    ValueError where they are damaged, or, with a `run`, of other data or of another network.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "explained.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no maps (no explained.json); run the stage explain") from None
    if run is not None:
        runs.require_same(record.get("run"), run, folder, "explain")
    arrays = {}
    for name in record["methods"]:
        file = folder / f"{file_name(name)}.npy"
        arrays[name] = np.load(file, mmap_mode="r") if file.is_file() else np.empty(0)
        if len(arrays[name]) != len(record["indices"]):
            raise ValueError(f"{file} holds {len(arrays[name])} maps of {len(record['indices'])}; explain again")
    return Maps(arrays=arrays, **{k: np.asarray(v) if k in ("indices", "targets") else v for k, v in record.items()})
