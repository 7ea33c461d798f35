"""What a run would cost: trainings and images as the parameters say, seconds as they are measured."""

from collections import Counter

import pytest
from conftest import ROOT
from scratch import project

from xai_utils.pipeline import costs, parameters, plan


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    """Of the smoke scale on drawn birds, where all that is timed takes 10 ms."""
    folder = project(tmp_path_factory.mktemp("plan"), scale="smoke", **{"compute.threads": 1})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(costs, "_timed", lambda function, device=None: 0.01)
        patched.chdir(folder)
        return parameters.read(), plan.plan(parameters.read())


def test_trainings_and_images_are_those_of_the_parameters(works):
    """12 species of 4 and 3 birds, one epoch; 14 rows at 2 shares, 9 statistics at 5 layers, kept and removed."""
    _, found = works
    trainings, images = Counter(), {}
    for work in found:
        trainings[work.stage] += work.trainings
        images[work.stage, work.what] = work.images
    assert trainings["finetune_target"] == 1
    assert trainings["distill_surrogate"] == 3  # the student, an explanation network for each lambda
    assert trainings["train_mask_predictor"] == 4  # the filter, three predictors
    assert trainings["train_attention"] == 1 + 2 + 4  # a black box, gates at two layers, four ways of one
    assert trainings["train_effect_predictor"] == 3  # a surrogate, FastSHAP, removal_effect
    assert trainings["remove_and_retrain"] == 1 + (14 * 2 * 2 + 2 + 1) + 5 * (2 * 10 + 1)
    assert images["prepare_data", "drawing"] == 12 * (4 + 3)
    assert images["finetune_target", "the target"] == 12 * (4 + 3)
    assert images["distill_surrogate", "explanation networks"] == 2 * 12 * (4 + 3)


def test_seconds_follow_from_what_is_measured(works):
    """84 birds at 10 ms; an epoch of 48 at 10 ms for a step of 8, and of 36 at 10 ms for the validation of 12."""
    _, found = works
    seconds = {(work.stage, work.what): work.seconds for work in found}
    assert seconds["prepare_data", "drawing"] == pytest.approx(0.84)
    assert seconds["finetune_target", "the target"] == pytest.approx(48 * 0.01 / 8 + 36 * 0.01 / 12)
    assert {work.stage for work in found} == set(parameters.STAGES)


def test_the_plan_names_what_dominates_and_what_leaves_it_out():
    """Nine tenths of two hours are ROAR's: it is named, with what switches it off; the last run stands beside."""
    work = costs.Work("remove_and_retrain", "networks on masked images", 2e6, 6480, 3e9, 140)
    others = [costs.Work(stage, "notebook and page", 0, 72) for stage in parameters.STAGES]
    values = {"scale": "paper", "dataset": "data/mine", "target": "resnet50"}
    lines = plan.told([work, *others], values, {"remove_and_retrain": 7000.0})
    [row] = [line for line in lines if line.startswith("remove_and_retrain ")]
    assert row.split() == ["remove_and_retrain", "140", "2M", "1.82", "h", "1.94", "h", "3GB"]
    assert " 89% remove_and_retrain: networks on masked images (1.8 h)" in lines
    assert lines[-1] == f"less: dvc exp run -S {plan.WITHOUT['remove_and_retrain']}"


def test_what_leaves_a_stage_out_is_a_parameter():
    """Each line names keys that params.yaml has."""
    committed = parameters.read(ROOT / "params.yaml")
    for line in plan.WITHOUT.values():
        for part in line.replace("'", "").split(" -S "):
            place = committed
            for key in part.partition("=")[0].split("."):
                assert key in place, part
                place = place[key]
