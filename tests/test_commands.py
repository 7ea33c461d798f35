"""Commands with arguments: a bad one is an answer in one line, before anything is done."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT
from PIL import Image

from xai_utils.pipeline import compare, kept, parameters, site, stage
from xai_utils.training import __main__ as training
from xai_utils.training import loop


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (None, "request.json is no request of a training (FileNotFoundError: "),
        ("{", "request.json is no request of a training (JSONDecodeError: "),
        ("[]", "request.json is no request of a training (TypeError: "),
        ({}, "request.json is no request of a training (KeyError: 'task')"),
        ({"task": "no colon"}, "(ValueError: not enough values to unpack"),
        ({"task": "nowhere:task"}, "(ModuleNotFoundError: No module named 'nowhere')"),
        ({"task": "json:task"}, "(AttributeError: module 'json' has no attribute 'task')"),
        ({"task": "json:loads", "compute": {"cores": 2}}, "unexpected keyword argument 'cores'"),
        ({"task": "json:loads", "compute": {"device": "tpu"}}, "(ValueError: device is one of"),
        ({"task": "json:loads"}, "(TypeError: missing a required argument: 'settings')"),
        ({"task": "json:loads", "settings": {}, "checkpoints": "x", "data_hash": "", "more": 1}, "argument 'more')"),
    ],
)
def test_a_request_of_a_training_that_is_none(request_, line, tmp_path, monkeypatch):
    """No file, no JSON, no task, another argument: what is wrong, and what a request holds."""
    monkeypatch.chdir(tmp_path)
    if request_ is not None:
        Path("request.json").write_text(request_ if isinstance(request_, str) else json.dumps(request_))
    with pytest.raises(SystemExit) as end:
        training.main(["request.json"])
    assert line in end.value.code
    assert end.value.code.endswith("the other arguments of xai_utils.training.loop.fit")
    assert "\n" not in end.value.code


@pytest.mark.parametrize(
    ("main", "arguments", "line"),
    [
        (stage.main, [], "one of the arguments stage --check --plan --write --strip --headlines --readme is required"),
        (stage.main, ["--chek"], "one of the arguments stage --check"),
        (stage.main, ["explain", "--check"], "argument --check: not allowed with argument stage"),
        (stage.main, ["explain", "figures"], "unrecognized arguments: figures"),
        (stage.main, ["evalute"], "no stage 'evalute'; there are prepare_data, finetune_target"),
        (stage.main, ["../explain"], "no stage '../explain'; there are prepare_data, finetune_target"),
        (site.main, [], "the following arguments are required: command"),
        (site.main, ["publish"], "the following arguments are required: remote"),
        (site.main, ["publish", ""], "name the git remote to publish to: make publish REMOTE=origin"),
        (kept.main, [""], "name the run: make keep NAME=pets"),
        (compare.main, ["nobody"], "no run is kept as 'nobody'; choose among "),
        (kept.main, ["../x"], "'../x' cannot be the name of a file"),
        (kept.main, ["x", "--from", "nowhere"], "params.yaml is missing: there is no run of the pipeline in"),
        (kept.main, ["x", "--rev", "nowhere"], "REV=nowhere is neither a revision of git nor the name of an"),
        (kept.main, ["x", "--rev", "main", "--from", "."], "argument --from: not allowed with argument --rev"),
    ],
)
def test_a_bad_argument_is_answered(main, arguments, line, monkeypatch, capsys):
    """Stages and the site: what was given, and what there is."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert line in capsys.readouterr().err + str(end.value.code)


def notebook(name):
    """The notebook of a stage."""
    return nbformat.read(stage.notebooks(ROOT / "notebooks")[name], as_version=4)


# train_attention is several trainings: test_training_distributed.py holds their keys against the notebook's calls
@pytest.mark.parametrize("name", [stage for stage in training.STAGES if stage != "train_attention"])
def test_a_stage_is_trained_as_its_notebook_does(name, monkeypatch):
    """The command hands over the settings, options and function that the notebook's cells do, so its key is theirs."""
    monkeypatch.chdir(ROOT)
    module, function = training.STAGES[name].split(":")
    called = []
    monkeypatch.setattr(f"{module}.{function}", lambda *given, **options: called.append((given, options)))
    training.main([name])
    (((settings,), options),) = called
    given = parameters.resolve(parameters.read(), name)
    cells = [cell.source for cell in notebook(name).cells if cell.cell_type == "code"]
    exec(next(cell for cell in cells if cell.startswith("settings = ")).split("\n}\n")[0].rstrip("}") + "}", given)
    assert settings == given["settings"]
    assert any(f"{function}(settings, " in cell for cell in cells)
    assert options == {
        "compute": loop.Compute(**given["compute"]).resolved(),
        "checkpoint_steps": given["checkpoint_steps"],
        "log": print,
    }


def test_what_a_stage_lacks_is_said(tmp_path, monkeypatch):
    """Without params.yaml, and without prepared data, the answer is one line."""
    monkeypatch.chdir(tmp_path)
    for line in ("params.yaml cannot be read", "build/data is not a prepared data set"):
        with pytest.raises(SystemExit, match=line):
            training.main(["finetune_target"])
        (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--rounds", "0"], "argument --rounds: '0' is no whole number of 1 or more"),
        (["--rounds", "many"], "argument --rounds: 'many' is no whole number of 1 or more"),
        (["--json", "nowhere/x.json"], "argument --json: 'nowhere/x.json' is no file in a folder that exists"),
        (["--json", "benchmarks"], "argument --json: 'benchmarks' is no file in a folder that exists"),
    ],
)
def test_a_benchmark_that_could_not_write_does_not_begin(arguments, line, monkeypatch, capsys):
    """Minutes of measuring must not end in a folder that is not there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import timing

    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit):
        timing.run("", None, None, {})
    assert line in capsys.readouterr().err


def test_the_data_path_is_measured_in_the_parts_of_a_training(tmp_path, monkeypatch):
    """The CPU part ends in bytes and places of crops, and a process counts the images that it reads."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import data_path

    data, images = data_path.prepared(tmp_path, 12, 32)
    read, handled = data_path.parts(data, images)["CPU part"]
    labels, pixels, shapes, places = read()  # of whole images, one behind the other
    assert (pixels.dtype, labels.shape, shapes.shape, places.shape) == (torch.uint8, (10,), (10, 3), (10, 5))
    assert pixels.shape[1] == 3
    assert handled == images == 10
    settings = data_path.SETTINGS | {"data": data, "target": "tiny_resnet", "batch_size": 4, "counts": str(tmp_path)}
    loop.fit(data_path.counting_task, settings, checkpoints=tmp_path, data_hash="", compute=loop.Compute("cpu"))
    assert (tmp_path / "0").read_text() == "10"


def test_masks_of_rise_are_measured_on_photographs(tmp_path, monkeypatch):
    """A folder's images meet the network trained on ImageNet: each estimator, number of masks and score has a value."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import rise

    monkeypatch.setattr(rise, "COUNTS", (4, 8))
    for number in range(3):
        Image.new("RGB", (50, 40), (number, 90, 200)).save(tmp_path / f"{number}.JPEG")
    target, images, begins = rise.of_photographs(2, tmp_path, 32)
    assert (len(target.classes), tuple(images.shape)) == (1000, (2, 3, 32, 32))
    found = rise.of_one(target, images[:1], begins, 8, 0)
    assert set(found) == set(rise.SCORES)
    for score in found.values():
        assert {name: [*values] for name, values in score.items()} == {"balanced": [4, 8], "paper": [4, 8]}
