"""What a stage receives of params.yaml: values by scale, and shared keys. test_check.py: what is refused."""

import copy

import pytest
from conftest import ROOT

from xai_utils.pipeline import parameters, recorded


@pytest.fixture(scope="module")
def committed():
    return parameters.read(ROOT / "params.yaml")


def changed(values, path, value):
    values = copy.deepcopy(values)
    *folders, key = path.split(".")
    place = values
    for folder in folders:
        place = place[folder]
    if value is KeyError:
        del place[key]
    else:
        place[key] = value
    return values


@pytest.mark.parametrize("stage", parameters.STAGES)
@pytest.mark.parametrize("scale", ["default", "real", "paper", "smoke", "rehearsal"])
def test_every_scale_gives_every_stage_its_values(committed, stage, scale):
    """At each scale that params.yaml names, every section is complete and no value by scale is left."""
    assert committed["scales"] == ["default", "real", "paper", "smoke", "rehearsal"]
    resolved = parameters.resolve(changed(committed, "scale", scale), stage)
    assert resolved["seed"] == committed["seed"]

    def keys(value):
        return {*value, *(key for each in value.values() for key in keys(each))} if isinstance(value, dict) else set()

    assert not keys(resolved) & set(committed["scales"])


def test_a_value_by_scale_is_that_of_the_scale_or_of_the_default(committed):
    """A scale that is not named takes the default's value, also inside a row's options."""
    values = changed(committed, "finetune_target.epochs", {"default": 7, "paper": 90})
    values = changed(values, "explain.rows.rise", {"masks": {"default": 40, "smoke": 2}})
    for scale, epochs, masks in (("default", 7, 40), ("real", 7, 40), ("paper", 90, 40), ("smoke", 7, 2)):
        at = changed(values, "scale", scale)
        assert parameters.resolve(at, "finetune_target")["epochs"] == epochs
        assert parameters.resolve(at, "explain")["rows"]["rise"] == {"masks": masks}


def test_what_is_written_in_place_of_a_value_by_scale_holds_at_every_scale(committed):
    """`dvc exp run -S finetune_target.epochs=3` takes effect whatever the scale; `all` images can be said at each."""
    for scale in committed["scales"]:
        values = changed(changed(committed, "finetune_target.epochs", 3), "scale", scale)
        assert parameters.resolve(values, "finetune_target")["epochs"] == 3
        values = changed(changed(values, "explain.rows.lime.samples", 5), "explain.images", "all")
        given = parameters.resolve(values, "explain")
        assert (given["rows"]["lime"]["samples"], given["images"]) == (5, None)


def test_a_row_of_a_method_may_go(committed):
    """Without its row a method has its own defaults; false leaves it out."""
    assert "rise" not in parameters.resolve(changed(committed, "explain.rows.rise", KeyError), "explain")["rows"]
    assert parameters.resolve(changed(committed, "explain.rows.rise", False), "explain")["rows"]["rise"] is False
    without = parameters.resolve(changed(committed, "remove_and_retrain.rows.fastcam", False), "remove_and_retrain")
    assert "gradient" in without["rows"]
    assert "fastcam" not in without["rows"]


@pytest.mark.parametrize("path", ["finetune_target.epochs", "explain.rows.rise.masks"])
def test_a_scale_without_a_value_is_named(committed, path):
    """Neither the chosen scale nor a default."""
    values = changed(changed(committed, "scale", "real"), path, {"paper": 9})
    line = f"params.yaml: {path} has no value for the scale 'real'; give it one, or a default"
    with pytest.raises(parameters.ParameterError, match=f"^{line}$"):
        parameters.resolve(values, path.split(".")[0])


def test_an_unknown_stage_names_those_that_exist(committed):
    """A typo in the stage's name is answered with the list."""
    with pytest.raises(parameters.ParameterError, match="no stage 'evalute'; there are prepare_data, "):
        parameters.resolve(committed, "evalute")


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    """1e-3 is a number (PyYAML would give a string) and a broken file is named."""
    file = tmp_path / "params.yaml"
    file.write_text("a: 1e-3\nb: yes\n")
    assert parameters.read(file) == {"a": 0.001, "b": "yes"}
    file.write_text("a: [1, 2\n")
    with pytest.raises(parameters.ParameterError, match="is no YAML"):
        parameters.read(file)
    file.write_text("")
    with pytest.raises(parameters.ParameterError, match="is empty"):
        parameters.read(file)


def test_parameters_can_be_tried_without_a_file(committed):
    """As of `dvc exp run -S`: numbers, words, lists, a value in place of one by scale; the given values stay."""
    values, before = committed, copy.deepcopy(committed)
    tried = parameters.changed(values, ["scale=paper", "explain.images=7", "evaluate.metrics=[insertion]"])
    assert (tried["scale"], tried["explain"]["images"], tried["evaluate"]["metrics"]) == ("paper", 7, ["insertion"])
    assert values == before
    assert parameters.changed(values, ["explain.rows.rise=false"])["explain"]["rows"]["rise"] is False
    for wrong in ("scale", "explain.imags=7", "nothing.images=7", "scale.images=3"):
        with pytest.raises(parameters.ParameterError, match=r"give section\.key=value"):
            parameters.changed(values, [wrong])


def test_what_dvc_records_key_by_key_is_a_section_again():
    """dvc.lock has compute.device and compute.threads; a stage received both in `compute`."""
    given = {"scale": "default", "seed": 0, "compute.device": "auto", "compute.threads": 2, "explain": {"images": 60}}
    lock = {"stages": {"explain": {"params": {"params.yaml": given}}}}
    found = recorded.received(lock, "explain", ["default"])
    assert found == {"seed": 0, "compute": {"device": "auto", "threads": 2}, "images": 60}
