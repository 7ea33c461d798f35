"""A trained part serves the network that it was trained for, and no other one, however alike they look."""

import copy
import json

import pytest
import torch
from torch import nn

from xai_utils.explainers import EXPLAINERS, explain
from xai_utils.networks import (
    Surrogate,
    build,
    effect_predictor_of,
    gate_for,
    inference_copy,
    predictor_of,
    save_effect_predictor,
    save_gate,
    save_predictor,
    save_surrogate,
)
from xai_utils.networks.digests import digest, made_for

CLASSES = ("wren", "crow", "gull")
MADE = {  # method -> how its part is made, and saved
    "akd": (lambda target, images: Surrogate(target), save_surrogate),
    "amg": (lambda target, images: gate_for(target, images), save_gate),
    "fast_shap": (lambda target, images: effect_predictor_of(target, images, cells=3), save_effect_predictor),
    "dgle_cf": (lambda target, images: predictor_of(target, images, controller="customized"), save_predictor),
}


@pytest.fixture
def target():
    return build("small_resnet", CLASSES).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize("method", MADE)
def test_a_part_serves_its_own_network_alone(method, target, images, tmp_path):
    """Copies of it, also those that infer, count as it; the same head on another trunk, and a step of training, not."""
    make, save = MADE[method]
    save(make(target, images).eval(), tmp_path)
    given = {"method": method, EXPLAINERS[method].part.option: tmp_path}
    copied = inference_copy(target, images)
    for same in (target, copied, copy.deepcopy(copied), inference_copy(copied, images)):
        assert explain(same, images, **given).shape == (2, 64, 64)
    other = build("small_resnet", CLASSES).eval()
    other.network.fc.load_state_dict(target.network.fc.state_dict())
    trained = copy.deepcopy(target)
    with torch.no_grad():
        trained.network.conv1.weight[0, 0, 0, 0] += 1e-3
        copied.network.fc.bias[0] += 1e-3
    stage = EXPLAINERS[method].part.stage
    for stranger in (other, trained, copied, build("tiny_resnet", CLASSES).eval()):
        message = (
            rf"{tmp_path} was trained for a small_resnet of 3 classes with the weights \w+, not .* \(stage {stage}\)"
        )
        with pytest.raises(ValueError, match=message):
            explain(stranger, images, **given)
    part = EXPLAINERS[method].part.load(tmp_path)
    EXPLAINERS[method].part.adopt(part, other)
    assert explain(other, images, **given | {EXPLAINERS[method].part.option: part}).shape == (2, 64, 64)


@pytest.mark.parametrize("method", MADE)
def test_a_part_that_names_no_network_is_refused(method, target, images, tmp_path):
    """Files of an earlier version do not say for which network they were trained: train again."""
    make, save = MADE[method]
    save(make(target, images).eval(), tmp_path)
    part = EXPLAINERS[method].part
    facts = tmp_path / f"{part.kind}.json"
    about = json.loads(facts.read_text())
    assert about.pop("made_for") == made_for(target)
    facts.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"does not say for which network .* earlier version .*stage {part.stage}"):
        explain(target, images, method=method, **{part.option: tmp_path})


def test_a_digest_is_that_of_all_weights_and_buffers(target):
    """Whatever the format, the precision above, or the mode; a change of any tensor, or of a name, changes it."""
    first = digest(target)
    assert len(first) == 20
    same = copy.deepcopy(target).train().to(memory_format=torch.channels_last).double().requires_grad_(False)
    assert digest(same) == digest(target) == first
    seen = {first}
    for name in dict(target.state_dict()):
        with torch.no_grad():
            target.state_dict()[name].add_(1)
        seen.add(digest(target))
    assert len(seen) == 1 + len(target.state_dict())
    layers = nn.Sequential(nn.Linear(2, 2)), nn.ModuleDict({"a": nn.Linear(2, 2)})
    layers[1]["a"].load_state_dict(layers[0][0].state_dict())
    assert digest(layers[0]) != digest(layers[1])


def test_a_digest_sees_training_and_loading(target, images):
    """An optimizer's step, batch statistics, another state, other devices' tensors, also in inference mode."""
    seen = [digest(target)]
    target(images).sum().backward()
    torch.optim.SGD(target.parameters(), lr=0.1).step()
    seen.append(digest(target))
    with torch.inference_mode():
        target.train()(images)
        seen.append(digest(target.eval()))
        target.mean.add_(0.1)
        seen.append(digest(target))
    target.load_state_dict(build("small_resnet", CLASSES).state_dict())
    seen.append(digest(target))
    for weights in target.parameters():
        weights.data.mul_(0.9)
    seen.append(digest(target))
    assert len(set(seen)) == 6
    with torch.inference_mode():
        made = nn.Linear(2, 2)
        before = digest(made)
        made.weight.add_(1)
        assert digest(made) != before
