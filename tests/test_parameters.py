"""params.yaml is checked before anything runs, and each problem is one clear line."""

import copy

import pytest
from conftest import ROOT

from xai_utils import parameters


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
def test_every_scale_gives_every_stage_a_value(committed, stage, scale):
    """No null is left that the chosen scale does not fill."""
    resolved = parameters.resolve(changed(committed, "scale", scale), stage)
    assert resolved["seed"] == committed["seed"]


def test_a_written_value_wins_over_the_scale(committed):
    """`dvc exp run -S finetune_target.epochs=3` takes effect at every scale."""
    for scale in committed["scales"]:
        values = changed(changed(committed, "finetune_target.epochs", 3), "scale", scale)
        assert parameters.resolve(values, "finetune_target")["epochs"] == 3
        values = changed(values, "explain.methods.smooth_grad_cam_plus_plus.samples", 5)
        assert parameters.resolve(values, "explain")["methods"]["smooth_grad_cam_plus_plus"]["samples"] == 5


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("finetune_target.epochs", -1, r"epochs = -1 is not allowed; it should be greater than or equal to 0"),
        ("finetune_target.epochs", "3", r"finetune_target\.epochs = '3' is not allowed; it should be a valid integer"),
        ("finetune_target.epochs", 2.5, r"finetune_target\.epochs = 2.5 is not allowed; it should be a valid integer"),
        ("finetune_target.schedule", "step", r"schedule = 'step' is not allowed; it should be 'cosine' or 'halving'"),
        ("finetune_target.momentum", KeyError, r"finetune_target\.momentum is missing"),
        ("finetune_target.epoch", 3, r"unknown key 'finetune_target\.epoch'; allowed are epochs, batch_size"),
        ("seed", "zero", r"seed = 'zero' is not allowed; it should be a valid integer"),
        ("sead", 1, r"unknown key 'sead'; allowed are compute, dataset"),
        ("scale", "huge", r"scale = 'huge' is not allowed; it must be one of default, real, paper, smoke"),
        ("compute.device", "tpu", r"compute\.device = 'tpu' is not allowed"),
        ("compute.cores", 2, r"unknown key 'compute\.cores'; allowed are device, precision, threads, processes"),
        ("scales.default.finetune_target.epoch", 3, r"unknown key 'scales\.default\.finetune_target\.epoch'"),
        ("scales.default.finetune_target.epochs", None, r"epochs is null and the scale gives no value"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line_with_key_value_and_what_is_allowed(committed, path, value, line):
    """Unknown key, missing key, wrong type, out of range: each names the key and what is allowed."""
    with pytest.raises(parameters.ParameterError, match=line) as caught:
        parameters.resolve(changed(committed, path, value), "finetune_target")
    assert "\n" not in str(caught.value)


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
