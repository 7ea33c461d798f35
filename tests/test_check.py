"""What is wrong in params.yaml or DVC's files is told before any stage runs: a line of key, value, what is allowed."""

# ruff: noqa: E501 (a case a line)

import copy
import json
import random

import pytest
import torch
from conftest import ROOT
from PIL import Image
from ruamel.yaml import YAML

from xai_utils import networks
from xai_utils.pipeline import check, parameters, preflight

# a change of params.yaml -> a part of the one line that tells it. "key: value" sets a value, "key+: {…}" adds keys to
# a mapping, "-key" takes a key away.
VALUES = {
    # keys and sections
    "sead: 1": "unknown key 'sead'; allowed are compute, dataset",
    "'a b': 1": "unknown key ''a b''; allowed are compute, dataset",
    "finetune_target.epoch: 3": "unknown key 'finetune_target.epoch'; allowed are epochs, batch_size",
    "compute.cores: 2": "unknown key 'compute.cores'; allowed are device, precision, threads, processes, engine, prefetch",
    "distill_surrogate.student.lr: 1": "unknown key 'distill_surrogate.student.lr'; allowed are epochs, batch_size",
    "finetune_target: 3": "finetune_target = 3 is not allowed; it holds the keys epochs, batch_size",
    "finetune_target: []": "finetune_target = [] is not allowed; it holds the keys epochs",
    "explain:": "explain = None is not allowed; it holds the keys images, mosaics, methods, rows",
    "compute: 2": "compute = 2 is not allowed; it holds the keys device, precision, threads, processes, engine, prefetch",
    "intervals: [0.95]": "intervals = [0.95] is not allowed; it holds the keys confidence, resamples",
    "distill_surrogate.student: 3": "distill_surrogate.student = 3 is not allowed; it holds the keys epochs, batch_size",
    "train_mask_predictor.mgnet: yes": "train_mask_predictor.mgnet = 'yes' is not allowed; it holds the keys area",
    "-finetune_target.momentum": "finetune_target.momentum is missing; a value is needed there",
    "-evaluate": "evaluate = None is not allowed; it holds the keys metrics",
    "-seed": "seed is missing; a value is needed there",
    "-train_attention.gate.epochs": "train_attention.gate.epochs is missing",
    # scales
    "scale: huge": "scale = 'huge' is not allowed; it must be one of default, real, paper, smoke, rehearsal",
    "scale: [default]": "scale = ['default'] is not allowed; it must be one of default",
    "scale:": "scale = None is not allowed; it must be one of default",
    "scales: {default: {}}": "scales = {'default': {}} is not allowed; list the names of scales, default among them",
    "scales: [real]": "scales = ['real'] is not allowed; list the names of scales, default among them",
    "scales: [default, 3]": "scales = ['default', 3] is not allowed; list the names of scales",
    "finetune_target.epochs: {default: 3, papr: 9}": "finetune_target.epochs.papr is the value of no scale; there are",
    "finetune_target.epochs: {default: 1, paper: -9}": "finetune_target.epochs = -9 is not allowed",  # not chosen
    "explain.images: {default: 1, paper: none}": "explain.images = 'none' is not allowed",
    "seed: {default: 0, paper: x}": "seed = 'x' is not allowed; it should be a valid integer",
    # types
    "finetune_target.epochs: '3'": "finetune_target.epochs = '3' is not allowed; it should be a valid integer",
    "finetune_target.epochs: 2.5": "finetune_target.epochs = 2.5 is not allowed; it should be a valid integer",
    "finetune_target.epochs: 2.0": "finetune_target.epochs = 2.0 is not allowed; it should be a valid integer",
    "finetune_target.epochs: true": "finetune_target.epochs = True is not allowed; it should be a valid integer",
    "finetune_target.epochs: [3]": "finetune_target.epochs = [3] is not allowed; it should be a valid integer",
    "finetune_target.epochs:": "finetune_target.epochs is empty; a value is needed there",
    "finetune_target.momentum: high": "finetune_target.momentum = 'high' is not allowed; it should be a valid number",
    "finetune_target.momentum: {a: 1}": "finetune_target.momentum = {'a': 1} is not allowed; it should be a valid number",
    "prepare_data.skip_corrupt: 1": "prepare_data.skip_corrupt = 1 is not allowed; it should be a valid boolean",
    "prepare_data.drop_blacklisted: yes": "drop_blacklisted = 'yes' is not allowed; it should be a valid boolean",
    "dataset: 3": "dataset = 3 is not allowed; it should be a valid string",
    "dataset: [data/birds]": "dataset = ['data/birds'] is not allowed; it should be a valid string",
    "dataset: ''": "dataset = '' is not allowed; it should have at least 1 character",
    "target: 50": "target = 50 is not allowed; it should be a valid string",
    "target: ''": "target = '' is not allowed; it should have at least 1 character",
    'target: "a\\nb"': r"target = 'a\nb' is not allowed; it holds signs that cannot be printed",
    'dataset: "data/birds\\0"': r"dataset = 'data/birds\x00' is not allowed; it holds signs that cannot be printed",
    "distill_surrogate.trunk: 18": "distill_surrogate.trunk = 18 is not allowed; it should be a valid string",
    "distill_surrogate.student.milestones: 3": "milestones = 3 is not allowed; it should be a valid list",
    "distill_surrogate.student.milestones: [0]": "milestones.0 = 0 is not allowed; it should be greater than or equal to 1",
    "train_attention.networks: small_vgg": "networks = 'small_vgg' is not allowed; it should be a valid list",
    "train_attention.networks: [{}]": "train_attention.networks.0 = {} is not allowed; it should be a valid string",
    "compute.scheduler: nowhere": "compute.scheduler = 'nowhere' is not allowed; give PROTOCOL://HOST:PORT",
    "compute.scheduler: tcp://here:x": "compute.scheduler = 'tcp://here:x' is not allowed; give PROTOCOL://HOST:PORT",
    "compute.scheduler: tcp://127.0.0.1:9": "compute.scheduler = 'tcp://127.0.0.1:9' cannot be reached (",
    "remove_and_retrain.rows: 3": "remove_and_retrain.rows = 3 is not allowed; it should be a valid dictionary",
    "remove_and_retrain.rows+: {mine: smoe}": "remove_and_retrain.rows.mine = 'smoe' is not allowed; it holds the keys method",
    "remove_and_retrain.rows+: {mine: {}}": "remove_and_retrain.rows.mine.method is missing",
    "remove_and_retrain.rows+: {mine: {method: 3}}": "rows.mine.method = 3 is not allowed; it should be a valid string",
    "explain.rows: [rise]": "explain.rows = ['rise'] is not allowed; it should be a valid dictionary",
    "explain.rows.rise: 3": "explain.rows.rise = 3 is not allowed; give options, such as {}, or false",
    "explain.rows.rise: true": "explain.rows.rise = True is not allowed; give options, such as {}, or false",
    "explain.images:": "explain.images is empty; give a whole number, or all",
    "explain.images: some": "explain.images = 'some' is not allowed; it should be a valid integer",
    "explain.methods: most": "explain.methods = 'most' is not allowed; give all, or a list of names",
    "explain.methods: []": "explain.methods = [] is not allowed; give all, or a list of names",
    "explain.methods: [3]": "explain.methods = [3] is not allowed; give all, or a list of names",
    "evaluate.metrics: {insertion: 1}": "evaluate.metrics = {'insertion': 1} is not allowed; give all, or a list of names",
    # choices
    "finetune_target.optimizer: adam": "optimizer = 'adam' is not allowed; it should be 'sgd' or 'adamw'",
    "finetune_target.schedule: step": "schedule = 'step' is not allowed; it should be 'cosine' or 'halving'",
    "compute.device: tpu": "compute.device = 'tpu' is not allowed; it should be 'auto', 'cpu' or 'cuda'",
    "compute.precision: half": "compute.precision = 'half' is not allowed; it should be 'auto', 'float32' or 'bfloat16'",
    "prepare_data.geometry: cut": "geometry = 'cut' is not allowed; it should be 'crop' or 'squash'",
    "prepare_data.annotation_level: order": "annotation_level = 'order' is not allowed; it should be 'variant', 'family'",
    "distill_surrogate.attention: se": "attention = 'se' is not allowed; it should be 'cbam' or 'bam'",
    "distill_surrogate.delta_source: first": "delta_source = 'first' is not allowed; it should be 'last' or 'mean'",
    "train_mask_predictor.predictors: [dgle]": "predictors.0 = 'dgle' is not allowed; it should be 'dgle_bf', 'dgle_cf'",
    "train_mask_predictor.predictors: []": "predictors = [] is not allowed; it",
    "train_mask_predictor.predictors: [mgnet, mgnet]": "it names 'mgnet' twice; name each once",
    "train_mask_predictor.upsampler: nearest": "upsampler = 'nearest' is not allowed; it should be 'subpixel_blur'",
    "train_attention.objective: l2": "objective = 'l2' is not allowed; it should be 'cross_entropy', 'mask' or 'none'",
    "evaluate.deletion_baseline: white": "deletion_baseline = 'white' is not allowed; it should be 'rise_blur'",
    "evaluate.metrics: [deletion, deletion]": "it names 'deletion' twice; name each once",
    "remove_and_retrain.fill: white": "fill = 'white' is not allowed; it should be 'mean' or 'black'",
    "remove_and_retrain.percentages: [50, 10]": "percentages = [50, 10] is not allowed; they must ascend, each once",
    "remove_and_retrain.percentages: [10, 10]": "percentages = [10, 10] is not allowed; they must ascend, each once",
    "remove_and_retrain.percentages: [100]": "percentages.0 = 100 is not allowed; it should be less than 100",
    "remove_and_retrain.statistics: [random]": "the stage itself makes 'random'; give yours another name",
    "remove_and_retrain.rows+: {none: {method: smoe}}": "the stage itself makes 'none'; give yours another name",
    "distill_surrogate.l1_weights: {student: 1.0}": "the stage itself makes 'student'; give yours another name",
    "figures.colour_map: viridi": "figures.colour_map = 'viridi' is not allowed; matplotlib has e.g. viridis, magma",
    # numbers that are a slip of the finger
    "compute.threads: 100000": "compute.threads = 100000 is not allowed; it should be less than or equal to",
    "compute.processes: 100000": "compute.processes = 100000 is not allowed; it should be less than or equal to",
    "compute+: {threads: 64, processes: 64}": "is not allowed; 64 threads in each of 64 processes are 4096 at work",
    "compute.threads: 0": "compute.threads = 0 is not allowed; it should be greater than or equal to 1",
    "compute.prefetch: -1": "compute.prefetch = -1 is not allowed; it should be greater than or equal to 0",
    "seed: 2147483648": "seed = 2147483648 is not allowed; it should be less than 2147483648",
    "prepare_data.image_size: 4000": "image_size = 4000 is not allowed; it should be less than or equal to 1024",
    "prepare_data.validation_fraction: 1.5": "validation_fraction = 1.5 is not allowed; it should be less than or equal to 1",
    "finetune_target.epochs: 1000000": "epochs = 1000000 is not allowed; it should be less than or equal to 10000",
    "finetune_target.batch_size: 1000000000": "batch_size = 1000000000 is not allowed; it should be less than or equal to",
    "finetune_target.learning_rate: 1e9": "learning_rate = 1000000000.0 is not allowed; it should be less than or equal to 100",
    "finetune_target.learning_rate: 0": "learning_rate = 0 is not allowed; it should be greater than 0",
    "evaluate.pixels_per_step: 1000000": "pixels_per_step = 1000000 is not allowed; it should be less than or equal to 50176",
    "figures.rows: 5000": "figures.rows = 5000 is not allowed; it should be less than or equal to 100",
    "intervals.confidence: 95": "intervals.confidence = 95 is not allowed; it should be less than 1",
    "intervals.resamples: 1e9": "intervals.resamples = 1000000000.0 is not allowed; it should be a valid integer",
    # names that become names of files
    "explain.rows+: {../up: {}}": "explain.rows: '../up' cannot be the name of a file; give up to 100 letters, digits",
    "explain.rows+: {/etc/passwd: {}}": "explain.rows: '/etc/passwd' cannot be the name of a file",
    "explain.rows+: {..: {}}": "explain.rows: '..' cannot be the name of a file",
    "explain.rows+: {'': {}}": "explain.rows: '' cannot be the name of a file",
    "explain.rows+: {a b: {}}": "explain.rows: 'a b' cannot be the name of a file",
    "explain.rows+: {a\\b: {}}": r"explain.rows: 'a\\b' cannot be the name of a file",
    "explain.rows+: {.hidden: {}}": "explain.rows: '.hidden' cannot be the name of a file",
    "explain.rows+: {end.: {}}": "explain.rows: 'end.' cannot be the name of a file",
    "explain.rows+: {CON: {}}": "explain.rows: 'CON' cannot be the name of a file",
    "explain.rows+: {nul.b: {}}": "explain.rows: 'nul.b' cannot be the name of a file",
    f"explain.rows+: {{{'a' * 101}: {{}}}}": "cannot be the name of a file; give up to 100 letters",
    "remove_and_retrain.rows+: {a/b: {method: smoe}}": "remove_and_retrain.rows: 'a/b' cannot be the name of a file",
    "distill_surrogate.l1_weights: {../../../evil: 1e-5}": "distill_surrogate.l1_weights: '../../../evil' cannot be the name",
    "distill_surrogate.l1_weights: {akd: -1}": "l1_weights.akd = -1 is not allowed; it should be greater than or equal to 0",
    "distill_surrogate.l1_weights: {}": "distill_surrogate.l1_weights = {} is not allowed; it",
}
NAMES = {
    # networks
    "target: resnet51": "target: no target 'resnet51'; checkpoints in data/weights: broken; or an architecture",
    "target: 'small_resnet:'": "target: no target 'small_resnet:'; checkpoints in",
    "target: :mine.pth": "target: no target ':mine.pth'; checkpoints in",
    "target: timm:test_vitt": "target: timm has no network 'test_vitt'; close names: test_vit",
    "target: timm:test_vit.in1k": "target: timm has no weights 'in1k' of test_vit; it has: r160_in1k",
    "target: timm:test_vit:../../evil.pth": "target: '../../evil.pth' is no path inside data/weights/; give one relative",
    "target: hf:models/vit": "target: 'hf:models/vit' names no folder in data/weights/; put it there and write hf:data/weights/N",
    "target: hf:data/weights/../../vit": "target: 'hf:data/weights/../../vit' names no folder in data/weights/",
    "target: hf:data/weights/none": "target: data/weights/none holds no config.json; give a folder that save_pretrained",
    "remove_and_retrain.network: timm:test_vitt": "remove_and_retrain.network: timm has no network 'test_vitt'; close",
    "remove_and_retrain.network: hf:data/weights/vit": "remove_and_retrain.network: 'hf:data/weights/vit' is unknown",
    "target: small_resnet:IMAGENET1K_V1": "target: small_resnet has no weights 'IMAGENET1K_V1'; give a file",
    "target: resnet50:IMAGENET1K_V9": "target: resnet50 has no weights 'IMAGENET1K_V9'; give a file (.bin",
    "target: resnet18:mine": "target: resnet18 has no weights 'mine'; give a file (.bin .ckpt .pt .pth .safetensors)",
    "target: small_resnet:../../evil.pth": "target: '../../evil.pth' is no path inside data/weights/; give one relative",
    "target: small_resnet:/evil.pth": "target: '/evil.pth' is no path inside data/weights/; give one relative to it",
    "target: ../../evil": "target: no target '../../evil'; checkpoints in",
    "distill_surrogate.trunk: resnet51": "distill_surrogate.trunk: no target 'resnet51'; checkpoints in",
    "train_attention.networks: [small_vgg, lenet]": "train_attention.networks: no target 'lenet'; checkpoints in",
    "train_attention.networks: {default: [small_vgg], paper: [lenet]}": "train_attention.networks: no target 'lenet'",
    "remove_and_retrain.network: lenet": "remove_and_retrain.network: 'lenet' is unknown; choose among target, alexnet",
    "remove_and_retrain.network: resnet18:mine.pth": "remove_and_retrain.network: 'resnet18:mine.pth' is unknown",
    # methods and their options
    "explain.methods: [gradcam]": "explain.methods: 'gradcam' is unknown; choose one of akd, ",
    "explain.rows+: {mine: {}}": "explain.rows.mine: method 'mine' is unknown; choose one of akd, ",
    "explain.rows+: {mine: {method: gradcam}}": "explain.rows.mine: method 'gradcam' is unknown; choose one of akd",
    "explain.rows+: {mine: {method: [smoe]}}": "explain.rows.mine: method ['smoe'] is unknown; choose one of akd",
    "explain.rows+: {mine: {method: null}}": "explain.rows.mine: method None is unknown; choose one of akd",
    "explain.rows.rise: {mask: 3}": "explain.rows.rise: rise has no option 'mask'; its options: masks, cells",
    "explain.rows.rise: {masks: 2.5}": "explain.rows.rise: rise: masks is 2.5; give a whole number, 1 to 1000000",
    "explain.rows.rise: {masks: many}": "explain.rows.rise: rise: masks is 'many'; give a whole number",
    "explain.rows.rise: {masks: 100000000000}": "explain.rows.rise: rise: masks is 100000000000; give a whole number, 1 to",
    "explain.rows.rise: {masks: {default: 8, paper: -1}}": "explain.rows.rise: rise: masks is -1; give a whole number",
    "explain.rows.rise: {probability: 3}": "explain.rows.rise: rise: probability is 3; give a number, 0 to 1",
    "explain.rows.rise: {chunk: 0}": "explain.rows.rise: rise: chunk is 0; give a whole number",
    "explain.rows.lime: {seed: -1}": "explain.rows.lime: lime: seed is -1; give a whole number, 0 to",
    "explain.rows.smoe_equal.weights: heavy": "explain.rows.smoe_equal: smoe: weights is 'heavy'; give one of",
    "explain.rows.smoe_equal.statistic: median": "explain.rows.smoe_equal: smoe: statistic is 'median'; give one of smoe_scale",
    "explain.rows.smoe_equal.layers: layer4": "explain.rows.smoe_equal: smoe: layers is 'layer4'; give two names of layers",
    "explain.rows+: {smooth_grad: {over: nothing}}": "explain.rows.smooth_grad: smooth_grad: over is 'nothing'; give one of",
    "explain.rows+: {smooth_grad: {generator: 3}}": "smooth_grad: generator is 3; give a torch.Generator, from code",
    "explain.rows+: {grad_cam: {layer: 4}}": "explain.rows.grad_cam: grad_cam: layer is 4; give the name of a layer",
    "explain.rows+: {akd: {surrogate: 5}}": "explain.rows.akd: akd: surrogate is 5; train one (`dvc repro distill_surrogate`)",
    "explain.rows+: {akd: {surrogate: null}}": "explain.rows.akd: akd: surrogate is None; train one (`dvc repro distill_surrogate`)",
    "explain.rows.amg_last_convolution.gate: [a]": "amg: gate is list; train one (`dvc repro train_attention`)",
    "{explain.methods: [lime], explain.rows.lime: false}": "explain.methods: lime is asked for and left out (false) at once",
    "remove_and_retrain.rows.gradient: {method: grad}": "remove_and_retrain.rows.gradient: method 'grad' is unknown",
    "remove_and_retrain.rows.fastcam.cam: best": "remove_and_retrain.rows.fastcam: fastcam: cam is 'best'; give one of",
    # metrics, statistics, pictures
    "evaluate.metrics: [inserton]": "evaluate.metrics: metric 'inserton' is unknown; choose among insertion, deletion",
    "remove_and_retrain.statistics: [median]": "remove_and_retrain.statistics: 'median' is unknown; choose among smoe_scale",
    "figures.methods: [gradcam]": "figures.methods: 'gradcam' is unknown; choose among akd, ",
}
if not torch.cuda.is_available():
    NAMES["compute.device: cuda"] = 'compute: device is "cuda", but torch finds no GPU; use "auto" or "cpu"'
NETWORKS = {
    "target: small_resnet:mine.pth": "target: data/weights/mine.pth does not exist; give a .safetensors file of weights",
    "target: small_resnet:notes.pth": "target: data/weights/notes.pth is damaged, or holds more than weights",
    "target: tiny_resnet:other.pth": "target: data/weights/other.pth does not hold weights of tiny_resnet",
    "target: broken": "target: data/weights/broken/target.json is corrupt",
    "{target: small_vgg, distill_surrogate.delta_source: mean}": "distill_surrogate: delta_source 'mean' is for ResNets",
    "target: timm:test_vit:other.pth": "target: data/weights/other.pth does not hold weights of timm:test_vit (missing: hea",
    "{target: timm:test_vit, prepare_data.image_size: 72}": "target: timm:test_vit takes no images of 72 x 72 pixels (Inp",
    "target: hf:data/weights/bare": "target: data/weights/bare holds no model.safetensors; save the network with save_",
    "train_attention.networks: [small_vgg, inception_v3]": "train_attention.networks: inception_v3 takes no images of 64",
    "distill_surrogate.reduction: 512": "distill_surrogate: 32 channels cannot be reduced by 512; give at least 512",
    "train_attention.reduction: 512": "train_attention: 128 channels cannot be reduced by 512; give at least 512",
    "explain.rows+: {grad_cam: {layer: layer9}}": "explain.rows.grad_cam: layer 'layer9' is unknown; close names: layer4",
    "explain.rows.smoe_equal.weights: [1, 2]": "explain.rows.smoe_equal: weights [1, 2] have shape (2,); give one for each of 5",
    "explain.rows.smoe_equal.weights: [a, b]": "explain.rows.smoe_equal: ",
    "explain.rows.smoe_equal.layers: [layer4]": "explain.rows.smoe_equal: layers are ['layer4']; name two or more",
    "explain.rows.rise: {masks: 8, probability: 1}": "explain.rows.rise: probability is 1; give a number above 0 and below 1",
    "explain.rows.rise: {masks: 8, cells: 900}": "explain.rows.rise: cells is 900 on images of 64 x 64; give 1..64",
    "explain.rows.amg_last_convolution.gate: data/none": "explain.rows.amg_last_convolution: {here}/data/none holds no attention gate",
    "explain.rows+: {akd: {surrogate: build/surrogate/typo}}": "explain.rows.akd: {here}/build/surrogate/typo holds no surrogate",
    "remove_and_retrain.rows.fastcam.layer: layer9": "remove_and_retrain.rows.fastcam: layer 'layer9' is unknown",
    "{remove_and_retrain.network: resnet18, remove_and_retrain.rows.fastcam.layer: layer4}": (
        "remove_and_retrain.rows.fastcam: layer 'layer4' returns (N, 512, 1, 1)"
    ),
}


@pytest.fixture(scope="module")
def committed():
    return parameters.read(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with images and with weights that are none, are another network's, or are broken."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data" / "birds").mkdir(parents=True)
    (folder / "data" / "birds" / "species.yaml").touch()
    weights = folder / "data" / "weights"
    networks.save(networks.build("small_resnet", "ab"), weights / "broken")
    (weights / "broken" / "target.json").write_text("{")
    (weights / "notes.pth").write_text("no weights")
    torch.save(networks.build("small_vgg", "ab").network.state_dict(), weights / "other.pth")
    (weights / "bare").mkdir()
    (weights / "bare" / "config.json").write_text('{"model_type": "convnext"}')
    return folder


def changed(values, change):
    """`values` with a change as the tables write it."""
    values, change = copy.deepcopy(values), YAML(typ="safe").load(change)
    for key, value in change.items() if isinstance(change, dict) else [(change[1:], KeyError)]:
        *above, last = key.rstrip("+").split(".")
        place = values
        for part in above:
            place = place[part]
        if value is KeyError:
            del place[last]
        else:
            place[last] = {**(place[last] or {}), **value} if key.endswith("+") else value
    return values


@pytest.mark.parametrize(("change", "line"), [*VALUES.items(), *NAMES.items()])
def test_what_is_wrong_is_one_line(committed, project, change, line, monkeypatch):
    """Key, value and what is allowed, and nothing else; without opening a network."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(preflight, "networks", lambda given: [])
    [said] = check.problems(changed(committed, change))
    assert said.startswith("params.yaml: ")
    assert line in said
    assert said.isprintable()


@pytest.mark.parametrize(("change", "line"), NETWORKS.items())
def test_what_networks_would_stumble_over_is_told(committed, project, change, line, monkeypatch):
    """Weights, sizes, layers and options that only a network can refuse, before it is trained."""
    monkeypatch.chdir(project)
    rows = committed["remove_and_retrain"]["rows"]
    few = {"networks": []}, {"rows": {name: rows[name] for name in ("guided_backprop", "fastcam")}}
    values = committed | {"scale": "smoke", "train_attention": committed["train_attention"] | few[0]}
    values = changed(values | {"remove_and_retrain": committed["remove_and_retrain"] | few[1]}, change)
    [said] = check.problems(values)
    assert said.startswith(f"params.yaml: {line}".replace("{here}", str(project)))
    assert said.isprintable()


SHAPES = {  # the bytes of a file -> a part of the one line that tells what is wrong with it
    b"": "is empty; it needs keys with values",
    b"# nothing": "is empty; it needs keys with values",
    b"[1, 2]": "is a list; it needs keys with values",
    b"text": "is a str; it needs keys with values",
    b"a: [1, 2": "is no YAML: expected ',' or ']', but got '<stream end>', line 1",
    b"a:\n\tb: 1": "is no YAML: found character '\\t' that cannot start any token, line 2",
    b"a: 1\na: 2": 'is no YAML: found duplicate key "a" with value "2"',
    b"a: *b": "is no YAML: found undefined alias 'b', line 1",
    b"a: {<<: 3}": "is no YAML: expected a mapping or list of mappings for merging",
    b"<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> x": "is no YAML: ",
    b"a: 1\n---\nb: 2": "is no YAML: but found another document, line 2",
    b"a: !!python/object:os.system x": "is no YAML: could not determine a constructor for the tag",
    b"a: !ours x": "is no YAML: could not determine a constructor for the tag '!ours'",
    b"a: !!bool x": "is no YAML: 'x'",
    b"a: !!int ''": "is no YAML: string index out of range",
    b"a: 2024-99-99": "is no YAML: month must be in 1..12",
    b"a: " + b"9" * 5000: "is no YAML: Exceeds the limit (4300 digits)",
    b"a: 0x" + b"f" * 5000: "has a number of more than 18 digits for a; give a smaller one",
    b"a: 2024-01-01": "has a date for a; give a word, a number, true, false, a list or a mapping",
    b"a: {b: [!!binary aGk=]}": "has a bytes for a.b.0; give a word, a number",
    b"a: !!set {b, c}": "has a set for a; give a word, a number",
    b"a: {b: .nan}": "has nan for a.b; give a finite number",
    b"a: -.inf": "has -inf for a; give a finite number",
    b"1: a": "has the key 1; keys are words: put it into quotes",
    b"a: {true: 1}": "has the key True in a; keys are words: put it into quotes",
    b"a: {? [b, c] : d}": "has the key ('b', 'c') in a; keys are words",
    b"a: {? {b: c} : d}": "is no YAML: found unhashable key",
    b"a: &a [*a]": "holds too much: more than 100000 values, or values below more than 20 keys",
    b"a: &a {b: *a}": "holds too much: more than 100000 values, or values below more than 20 keys",
    b"a: " + b"[" * 1000 + b"]" * 1000: "holds values below more than 20 keys; none lies so deep",
    b"".join(
        b" " * depth + b"a:\n" for depth in range(1000)
    ): "holds values below more than 20 keys; none lies so deep",
    b"a: &a [1, 1]\n"
    + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 116)): "holds too much",
    b"a: \xff": "is no text in UTF-8 (byte 0xff at position 3); save it as UTF-8",
    "a: 1".encode("utf-16"): "is no text in UTF-8 (byte 0xff at position 0); save it as UTF-8",
    b"a: \0": "is no YAML: ",
    b"%YAML 9.9\n---\na: 1": "is no YAML: found incompatible YAML document",
}


@pytest.mark.parametrize("file", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_a_damaged_file_is_one_line(project, file, monkeypatch):
    """Whatever YAML allows, and what it does not: the file is named, and the fix."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(preflight, "names", lambda given: [])
    monkeypatch.setattr(preflight, "networks", lambda given: [])
    read = check.problems if file == "params.yaml" else lambda: check.problems(good)
    good, place = parameters.read(ROOT / "params.yaml"), project / file
    try:
        for content, line in list(SHAPES.items())[:: 1 if file == "params.yaml" else 5]:
            place.write_bytes(content)
            [said] = read()
            assert said.startswith(f"{file} {line}"), content[:60]
            assert said.isprintable()
        place.unlink()
        place.mkdir()
        assert read() == [f"{file} cannot be read (Is a directory); restore it with: git checkout {file}"]
    finally:
        place.rmdir() if place.is_dir() else place.unlink(missing_ok=True)
    if file == "params.yaml":
        assert read() == [
            "params.yaml cannot be read (No such file or directory); restore it with: git checkout params.yaml"
        ]


def test_anchors_merges_and_marks_of_windows_are_read(project, tmp_path):
    """What YAML allows and means the same: aliases, merged mappings, a byte order mark, carriage returns."""
    (file := tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbfa: &a {b: 1}\r\nc: {<<: *a, d: 1e-3}\r\ne: *a\r\n")
    assert parameters.read(file) == {"a": {"b": 1}, "c": {"b": 1, "d": 0.001}, "e": {"b": 1}}


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("dvc.lock", {"schema": "2.0"}, "dvc.lock is damaged (stages: Field required); restore it with: git checkout"),
        ("dvc.lock", {"stages": []}, "dvc.lock is damaged (stages: Input should be a valid dictionary"),
        ("dvc.lock", {"stages": {"explain": 3}}, "dvc.lock is damaged (stages.explain: Input should be a valid dict"),
        ("dvc.lock", {"stages": {"explain": {"deps": [{}]}}}, "dvc.lock is damaged (stages.explain.deps.0.path: Field"),
        ("dvc.lock", {"stages": {"explain": {"params": [1]}}}, "dvc.lock is damaged (stages.explain.params: Input"),
        (
            "dvc.yaml",
            {"stages": {"explain": None}},
            "dvc.yaml is damaged (stages.explain: Input should be a valid dict",
        ),
        ("dvc.yaml", {"stages": {}}, "dvc.yaml lacks the stages prepare_data, finetune_target"),
    ],
)
def test_dvc_files_of_another_form_are_one_line(committed, project, file, content, line, monkeypatch):
    """YAML that is no pipeline, or no record of one."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(preflight, "networks", lambda given: [])
    (project / file).write_text(json.dumps(content))
    [said] = check.problems(committed)
    (project / file).unlink()
    assert said.startswith(line)


def leaves(value, path=()):
    """(path, value) of all that is no mapping."""
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in leaves(each, (*path, key))]
    return [(path, value)]


def test_no_number_takes_what_is_absurd(committed):
    """Every number of params.yaml refuses what is not finite, too large, negative or no number, and names its key."""
    numbers = 0
    for stage in parameters.STAGES:
        given = parameters.resolve(committed, stage)
        for path, value in leaves(given):
            if type(value) not in (int, float) or ("rows" in path and stage != "figures"):
                continue
            numbers += 1
            shared = path[0] in parameters.SHARED
            for bad in (float("nan"), float("inf"), -1, 10**12, 1e300, "3", True, {"a": 1}):
                values = committed | ({} if shared else {stage: given})
                values = json.loads(json.dumps(values))
                place = values if shared else values[stage]
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = bad
                with pytest.raises(parameters.ParameterError, match=path[-1]) as caught:
                    parameters.resolve(values, stage)
                assert str(caught.value).isprintable()
    assert numbers > 100


def shape(draw, depth=0):
    """YAML that nobody would write, as flow text."""
    kind = draw.choice(
        ["word", "word", "number", "list", "mapping", "mapping", "odd"] if depth < 4 else ["word", "odd"]
    )
    if kind == "list":
        return "[" + ", ".join(shape(draw, depth + 1) for _ in range(draw.randrange(4))) + "]"
    if kind == "mapping":
        pairs = [f"{shape(draw, 4)}: {shape(draw, depth + 1)}" for _ in range(draw.randrange(4))]
        return "{" + ", ".join(pairs) + "}"
    if kind == "number":
        return draw.choice(["0", "-1", "1e400", ".nan", "-.inf", "0x10", "1_000", "9" * 30, "3.5", "1e-3", "0o7", "08"])
    if kind == "odd":
        return draw.choice(["&a x", "*a", "!!binary aGk=", "2024-01-01", "!!set {a}", "<<", "null", "~", "''", '"\\0"',
                            "!x y", "? a", "- a", "|", ">", "%", "@", "`", "\t", "{", "]", "\u00e9", "\U0001f600", "\x85"])  # fmt: skip
    return draw.choice(
        ["default", "paper", "all", "method", "smoe", "epochs", "compute", "rows", "true", "a.b", "../x"]
    )


def test_no_shape_of_yaml_ends_in_a_traceback(committed, project, monkeypatch):
    """Shapes drawn at random, in place of sections and of what is in them: told in lines, or right."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(preflight, "networks", lambda given: [])
    draw, told = random.Random(0), 0
    for _ in range(150):
        keys = draw.sample([*parameters.STAGES, *parameters.SHARED, "scale", "scales"], 3)
        text = "\n".join(["scale: default", *(f"{key}: {shape(draw)}" for key in keys)])
        (project / "params.yaml").write_text(text, encoding="utf-8")
        lines = check.problems()
        assert lines
        assert all(line.startswith("params.yaml") and line.isprintable() for line in lines), text
    (project / "params.yaml").unlink()
    places = [path for path, _ in leaves(committed)]
    for _ in range(150):
        values = copy.deepcopy(committed)
        path = draw.choice(places)
        path = path[: draw.randint(1, len(path))]
        place = values
        for key in path[:-1]:
            place = place[key]
        try:
            place[path[-1]] = YAML(typ="safe").load(shape(draw).replace("\0", ""))
        except Exception:
            continue
        lines = check.problems(values)
        told += bool(lines)
        assert all(line.isprintable() for line in lines), (path, place[path[-1]])
    assert told > 50


def test_the_first_stage_of_a_run_looks_at_all_later_ones(committed, project, monkeypatch):
    """What dvc.lock does not record begins a run, and a typo of a later stage stops it; stages behind it need not ask."""
    monkeypatch.chdir(project)
    values = changed(committed | {"scale": "smoke"}, "evaluate.metrics: [inserton]")
    (project / "params.yaml").write_text(json.dumps(values))
    recorded = {"prepare_data": {"params": {"params.yaml": {"prepare_data": values["prepare_data"]}}}}
    (project / "dvc.lock").write_text(json.dumps({"stages": recorded}))
    with pytest.raises(
        parameters.ParameterError, match=r"^params\.yaml: evaluate.metrics: metric 'inserton' is unknown"
    ):
        check.require("finetune_target")
    check.require("prepare_data")
    check.require("explain")
    (project / "params.yaml").unlink()
    (project / "dvc.lock").unlink()


def test_nothing_can_be_trained_on_images_without_labels(tmp_path):
    """Every training that is asked for is named with the value that leaves it out; with those, nothing is said."""
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    values = parameters.read(ROOT / "params.yaml") | {"dataset": str(tmp_path)}
    given = {stage: parameters.resolve(values, stage) for stage in parameters.STAGES}
    asked = ("finetune_target.epochs = 16", "distill_surrogate.student.epochs = 3")
    asked += ("train_mask_predictor.generator.epochs = 3", "train_attention.gate.epochs = 3")
    asked += ("train_attention.networks = ['small_vgg', 'small_googlenet']",)
    asked += tuple(f"remove_and_retrain.{name} is not empty" for name in ("statistics", "rows"))
    lines = preflight.trainings(given)
    assert [line.split(", but ")[0].removeprefix("params.yaml: ") for line in lines] == list(asked)
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["0"] * 4 + ["[]", "[]", "{}"]
    for stage, section in preflight.TRAINED.items():
        (given[stage][section] if section else given[stage])["epochs"] = 0
    given["train_attention"]["networks"] = []
    given["remove_and_retrain"] |= {"statistics": [], "rows": {}}
    assert preflight.trainings(given) == []
    (tmp_path / "labels.csv").write_text("file,class\n1.png,a\n")
    given["finetune_target"]["epochs"] = 3
    assert preflight.trainings(given) == []
