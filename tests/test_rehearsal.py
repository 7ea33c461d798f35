"""The papers' scale on a handful of images: in a place of its own, stage after stage, from where it was stopped."""

from pathlib import Path

import pytest
from conftest import ROOT
from scratch import change, project

from xai_utils.pipeline import dependencies, parameters, preflight, rehearsal, stage

BEFORE = {"evaluate": ("explain", "train_attention"), "figures": ("evaluate",)}


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A project to rehearse in, whose stages write what they make and no more: the names of those that ran."""
    ran = []

    def perform(name, source, given, scale, described):
        ran.append(name)
        for path in map(Path, dependencies.outputs(described[name])):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return name == "distill_surrogate" and Path("fails").exists()

    for name in ("names", "trainings", "networks"):
        monkeypatch.setattr(preflight, name, lambda given: [])
    monkeypatch.setattr(stage, "perform", perform)
    monkeypatch.chdir(project(tmp_path))
    return ran


def test_all_stages_run_in_order_beside_the_projects_run(ran):
    """Each behind those that it reads from; again, none runs; another parameter, those from its stage on."""
    lines = []
    took = rehearsal.rehearse(tell=lines.append)
    assert ran == list(took)
    assert sorted(ran) == sorted(parameters.STAGES)
    assert all(ran.index(name) > ran.index(other) for name, others in BEFORE.items() for other in others)
    assert lines == ["the papers' scale on a handful of images of birds, resnet50, in build/rehearsal/birds/"]
    assert [path.name for path in Path("build").iterdir()] == ["rehearsal"]
    assert not Path("reports").exists()
    assert rehearsal.rehearse() == {}
    change(Path("params.yaml"), **{"evaluate.part_threshold": 0.25})
    assert next(iter(rehearsal.rehearse())) == "evaluate"


def test_a_stage_that_fails_is_named_and_is_the_first_of_the_next_time(ran):
    """What ran before it does not run again."""
    rehearsal.rehearse()
    fails = Path("build/rehearsal/birds/fails")
    fails.touch()
    change(Path("params.yaml"), seed=1)
    with pytest.raises(RuntimeError, match="the stage distill_surrogate failed"):
        rehearsal.rehearse()
    fails.unlink()
    assert next(iter(rehearsal.rehearse())) == "distill_surrogate"


def test_what_is_wrong_is_said_before_anything_is_made(ran, monkeypatch):
    """A folder that is not there, a network that is unknown."""
    with pytest.raises(ValueError, match="DATASET=nowhere is no folder"):
        rehearsal.rehearse("nowhere")
    monkeypatch.setattr(preflight, "names", lambda given: [f"target: no {given['finetune_target']['target']}"])
    with pytest.raises(ValueError, match="target: no resnot"):
        rehearsal.rehearse(target="resnot")
    assert not Path("build").exists()


def test_a_rehearsal_has_the_papers_networks_and_sizes_and_few_of_everything():
    """At every key it has a value of its own, smoke's or paper's; networks, sizes and schedules are the paper's."""
    values = parameters.read(ROOT / "params.yaml")
    rehearsed, paper, smoke = (
        {name: parameters.resolve(values | {"scale": scale}, name) for name in parameters.STAGES}
        for scale in ("rehearsal", "paper", "smoke")
    )
    for key in ("image_size", "stored_size"):
        assert rehearsed["prepare_data"][key] == paper["prepare_data"][key] != smoke["prepare_data"][key]
    assert rehearsed["finetune_target"]["schedule"] == "halving"
    assert rehearsed["train_attention"]["networks"] == ["vgg19", "googlenet"]  # whose weights would be fetched
    assert rehearsed["remove_and_retrain"]["network"] == "target"
    assert rehearsed["explain"]["rows"]["rise"] == smoke["explain"]["rows"]["rise"]
    epochs = [rehearsed["finetune_target"]["epochs"], rehearsed["distill_surrogate"]["student"]["epochs"]]
    assert epochs == [1, 1]
