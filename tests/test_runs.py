"""Every file of numbers says of which run it is, and a stage tells those of another from its own."""

import json
import shutil

import pytest
from inspected import make

from xai_utils import networks, runs
from xai_utils.evaluation import maps


@pytest.fixture
def project(tmp_path):
    """A project with prepared data and a target, and the `identity` of its runs."""
    folder = make(tmp_path / "p")
    return folder, lambda parameters=1: runs.identity(
        parameters, data=folder / "build/data", target=folder / "build/target"
    )


def test_an_identity_is_that_of_data_network_and_parameters(project, tmp_path):
    """Each changes its own part alone; the folder that all lies in, and what made the files, change none."""
    folder, identity = project
    first = identity()
    assert list(first) == ["data", "target", "parameters"]
    assert first["data"].startswith("images ")
    target = networks.load(folder / "build/target")
    assert first["target"] == f"tiny_resnet {networks.digests.digest(target)}"
    shutil.copytree(folder / "build", tmp_path / "copy")
    networks.save(target, tmp_path / "copy" / "target", made_with={"epochs": 3})
    assert runs.identity(1, data=tmp_path / "copy" / "data", target=tmp_path / "copy" / "target") == first
    assert identity({"seed": 1}) == first | {"parameters": identity({"seed": 1})["parameters"]} != first
    target.network.fc.bias.data += 1
    networks.save(target, folder / "build/target")
    second = identity()
    assert runs.difference(first, second) == f"target {first['target']} instead of {second['target']}"
    labels = folder / "build/data/train/labels.npy"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    third = identity()
    assert (third["target"], third["data"] == first["data"]) == (second["target"], False)
    assert runs.identity(1, data=folder / "build/data", target=None) == {
        key: third[key] for key in ("data", "parameters")
    }


def test_numbers_of_another_run_are_refused(tmp_path):
    """By what differs, of data, network and maps, as far as both know them; parameters are each stage's own."""
    run, file = {"data": "birds 1", "target": "net 2", "parameters": "3"}, tmp_path / "metrics.json"
    runs.write(file, {"top1": 0.5}, run | {"maps": "4"})
    assert runs.read(file, run | {"parameters": "5"}, "evaluate")["top1"] == 0.5
    for other, told in (
        ({"data": "cars 1"}, "data birds 1 instead of cars 1"),
        ({"target": "net 3"}, "target net 2 instead of net 3"),
        ({"maps": "5"}, "maps 4 instead of 5"),
    ):
        with pytest.raises(
            ValueError, match=rf"metrics.json is of another run \({told}\); run the stage evaluate again"
        ):
            runs.read(file, run | other, "evaluate")
    file.write_text('{"top1": 0.5}')
    with pytest.raises(ValueError, match="it does not say of which, an earlier version wrote it"):
        runs.read(file, run, "evaluate")


def test_files_of_an_earlier_version_are_named(project, tmp_path):
    """A target without a digest, maps without a run: the stage to run stands in the error."""
    folder, identity = project
    file = folder / "build/target/target.json"
    run, facts = identity(), json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in facts.items() if key != "digest"}))
    with pytest.raises(ValueError, match=r"target.json is of an earlier version.* run the stage finetune_target again"):
        identity()
    record = {"split": "validation", "indices": [], "targets": [], "methods": {}, "passes": {}}
    (tmp_path / "explained.json").write_text(json.dumps(record))
    assert maps.load(tmp_path).run is None
    with pytest.raises(ValueError, match=r"is of another run .*; run the stage explain again"):
        maps.load(tmp_path, run)
