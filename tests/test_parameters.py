"""params.yaml is checked before anything runs, and each problem is one clear line."""

import copy

import pytest
from conftest import ROOT

from xai_utils.pipeline import parameters


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
@pytest.mark.parametrize("scale", ["default", "real", "paper", "smoke"])
def test_every_scale_gives_every_stage_its_values(committed, stage, scale):
    """At each scale that params.yaml names, every section is complete and no value by scale is left."""
    assert committed["scales"] == ["default", "real", "paper", "smoke"]
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


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("finetune_target.epochs", -1, r"epochs = -1 is not allowed; it should be greater than or equal to 0"),
        ("finetune_target.epochs", "3", r"finetune_target\.epochs = '3' is not allowed; it should be a valid integer"),
        ("finetune_target.epochs", 2.5, r"finetune_target\.epochs = 2.5 is not allowed; it should be a valid integer"),
        ("finetune_target.epochs", 2.0, r"finetune_target\.epochs = 2.0 is not allowed; it should be a valid integer"),
        ("finetune_target.epochs", None, r"finetune_target\.epochs is empty; a value is needed there"),
        ("finetune_target.schedule", "step", r"schedule = 'step' is not allowed; it should be 'cosine' or 'halving'"),
        ("finetune_target.momentum", KeyError, r"finetune_target\.momentum is missing"),
        ("finetune_target.epoch", 3, r"unknown key 'finetune_target\.epoch'; allowed are epochs, batch_size"),
        ("finetune_target", 3, r"finetune_target = 3 is not allowed; it holds the keys of the stage"),
        ("seed", "zero", r"seed = 'zero' is not allowed; it should be a valid integer"),
        ("sead", 1, r"unknown key 'sead'; allowed are compute, dataset"),
        ("scale", "huge", r"scale = 'huge' is not allowed; it must be one of default, real, paper, smoke"),
        ("scales", {"default": {}}, r"scales is a dict that is not allowed; list the names of scales"),
        ("compute.device", "tpu", r"compute\.device = 'tpu' is not allowed"),
        ("compute.cores", 2, r"unknown key 'compute\.cores'; allowed are device, precision, threads, processes"),
        (
            "finetune_target.epochs",
            {"default": 3, "papr": 9},
            r"finetune_target\.epochs\.papr is the value of no scale; there are default, real, paper, smoke",
        ),
        (
            "finetune_target.epochs",
            {"paper": 9},
            r"finetune_target\.epochs has no value for the scale 'default'; give it one, or a default",
        ),
    ],
)
def test_a_bad_value_is_one_line_with_key_value_and_what_is_allowed(committed, path, value, line):
    """Unknown key, missing key, wrong type, out of range: each names the key and what is allowed."""
    values = changed(changed(committed, "scale", "default"), path, value)
    with pytest.raises(parameters.ParameterError, match=line) as caught:
        parameters.resolve(values, "finetune_target")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("images", None, "explain.images: give a whole number, or all"),
        ("images", "some", r"explain.images = 'some' is not allowed; it should be a valid integer"),
        ("methods", "most", "explain.methods: 'most' is not allowed; give all, or a list of names"),
        ("methods", [], r"explain.methods: \[\] is not allowed; give all, or a list of names"),
        ("rows.rise", 3, "explain.rows.rise: 3 is not allowed; give options, such as {}, or false"),
        ("rows", {"../up": {}}, r"explain.rows.\.\./up.* should match pattern"),
    ],
)
def test_methods_and_rows_of_the_wrong_form_are_refused(committed, path, value, line):
    """What is no list of names, no options, no name of a file is one line, too."""
    with pytest.raises(parameters.ParameterError, match=line):
        parameters.resolve(changed(committed, f"explain.{path}", value), "explain")


def test_an_unknown_colour_map_is_refused(committed):
    """A plot setting is checked before the stage runs, too."""
    with pytest.raises(parameters.ParameterError, match=r"figures.*no colour map 'viridi'"):
        parameters.resolve(changed(committed, "figures.colour_map", "viridi"), "figures")


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
