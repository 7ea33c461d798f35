"""What no call may change: the caller's tensors, the passes of other threads, the global generators."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from test_explainers import asked, explained, generated
from test_layers import same, snapshot
from torch import nn

from xai_utils import networks
from xai_utils.explainers import CONTROLS, EXPLAINERS, cam_maps, smoe
from xai_utils.metrics import METRICS, cost
from xai_utils.metrics.confidence import all_scores
from xai_utils.networks import Target, captured, evaluating, inference_copy, stored

FEWEST = {  # what still makes each kind of pass
    "smooth_grad_cam_plus_plus": {"samples": 1},
    "rise": {"masks": 4},
    "lime": {"samples": 3},
    "meaningful_perturbation": {"iterations": 1},
    "integrated_gradients": {"steps": 2},
    "expected_gradients": {"samples": 2},
    "smooth_grad": {"samples": 1},
    "smooth_grad_squared": {"samples": 1},
}
COARSE = {"pixels_per_step": 20_000}  # of the curves at 224 pixels
SAVED = {
    "surrogate": networks.save_surrogate,
    "mask_predictor": networks.save_predictor,
    "attention_gate": networks.save_gate,
    "effect_predictor": networks.save_effect_predictor,
}


class Writing(Target):
    """The same network, which normalises into the tensor that it is given."""

    def forward(self, images):
        return self.network(images.sub_(self.mean[:, None, None]).div_(self.std[:, None, None]))


@pytest.fixture
def plain(request):
    return explained(asked(request))


@pytest.fixture
def writing(plain):
    return Writing(plain.network, plain.architecture, plain.classes).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of the trained part that a method brings: method -> folder."""
    folder = tmp_path_factory.mktemp("parts")
    for method, record in EXPLAINERS.items():
        if record.part is not None:
            SAVED[record.part.kind](generated(method)[record.part.option], folder / method)
    return lambda method: folder / method


def pictures(count=2, seed=5):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def options_of(method, seed=3):
    """The method's fewest passes, the network that it brings, and a fresh generator if it draws."""
    return generated(method, seed) | FEWEST.get(method, {})


def scored(name, *arguments):
    """A metric's values, with the masks that it needs, or few steps of its curve."""
    masks, metric = torch.zeros(2, 64, 64, dtype=torch.bool), METRICS[name]
    masks[:, 20:40, 10:50] = True
    given = {metric.needs: masks} if metric.needs.endswith("masks") else {}
    return metric.function(*arguments, **given | (COARSE if metric.curve in ("insertion", "deletion") else {}))


def unwritten(call, *tensors):
    """What `call(*tensors)` returns, if none of the tensors was written into, not even with what it held."""
    before = [(tensor.clone(), tensor._version) for tensor in tensors]
    found = call(*tensors)
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, values)
        assert tensor._version == version
    return found


@pytest.mark.parametrize("method", EXPLAINERS)
def test_a_model_that_writes_into_its_input_has_the_same_maps(method, plain, writing):
    """Bit for bit those of the model that does not, and the caller's images are never written into."""
    found = [
        unwritten(lambda images, model=model: EXPLAINERS[method](model, images, **options_of(method)), pictures())
        for model in (writing, plain)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", METRICS)
def test_a_model_that_writes_into_its_input_has_the_same_scores(name, plain, writing):
    """As for maps; images, classes and maps stay as they were."""
    given = pictures(), torch.tensor([2, 0]), pictures(seed=6)[:, 0]
    found = [
        unwritten(lambda *tensors, model=model: scored(name, model, *tensors), *given) for model in (writing, plain)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


def test_probes_and_costs_write_nothing(plain, writing):
    """So it is where only a layer is looked for, a pass counted, an inference copy made, or all scores of a mask."""
    bare = nn.Sequential(writing)  # of no known family: its layers are probed
    maps = pictures(seed=6)[:, 0]
    for call in (
        lambda model, images: networks.cam_layer(model, images),
        lambda model, images: networks.scale_layers(model, images),
        lambda model, images: cost.counted_passes(model, images, cost.plain_forward),
        lambda model, images: cost.times_over_a_pass(model, images, {"pass": cost.plain_forward}, rounds=1).keys(),
        lambda model, images: all_scores(model, images, None, maps)["accuracy_5"].tolist(),
        lambda model, images: inference_copy(model, images)(images.clone()).tolist(),
    ):
        found = unwritten(lambda images, call=call: call(bare, images), pictures())
        assert found == call(nn.Sequential(plain), pictures())


def test_a_hook_that_writes_into_the_input_writes_into_a_copy(plain):
    """A user's own pre-hook, registered before, meets the copy as well; inference tensors are kept, too."""
    with torch.inference_mode():
        images = pictures()
        handle = plain.register_forward_pre_hook(lambda _, inputs: (inputs[0].mul_(0.5),))
        try:
            with evaluating(plain):
                logits = plain(images)
        finally:
            handle.remove()
        assert torch.equal(images, pictures())
        assert torch.equal(logits, plain(images * 0.5))


@pytest.fixture
def slow(plain):
    """The network, which lets other threads run in the midst of each pass."""
    handles = [
        layer.register_forward_hook(lambda *_: time.sleep(0.001)) for layer in (plain.network.layer2, plain.network.fc)
    ]
    yield plain
    plain.eval()
    for handle in handles:
        handle.remove()


def together(*calls):
    """What the calls return, each made in a thread of its own, all begun at the same moment."""
    start = threading.Barrier(len(calls))

    def begun(call):
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(begun, call) for call in calls]]


@pytest.mark.parametrize("method", [name for name in EXPLAINERS if name not in CONTROLS])
def test_threads_that_share_a_model_have_their_own_maps(method, slow):
    """Four threads at once, some with more images than others, have the maps that each has by itself."""
    slow.train()

    def call(seed):
        return EXPLAINERS[method](slow, pictures(1 + seed % 2, seed), **options_of(method, seed))

    calls = [partial(call, seed) for seed in range(4)]
    expected, before = [call() for call in calls], snapshot(slow)
    found = together(*calls)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert same(before, snapshot(slow))


def test_threads_with_different_methods(slow):
    """Methods, a metric and a pass that the user makes meanwhile do not see the hooks and modes of the others."""
    images = pictures()

    def user():
        with torch.no_grad():
            return slow(images)  # Grad-CAM's hook begins a graph in the midst of such a pass

    calls = [
        user,
        lambda: cam_maps(slow, images, methods=["grad_cam"], layer="layer1")["grad_cam"],
        lambda: EXPLAINERS["guided_backprop"](slow, images),
        lambda: smoe.statistic_maps(slow, images, layers=["layer1", "layer2"])["layer1"],
        lambda: scored("insertion", slow, images, None, images[:, 0]),
    ]
    expected = [call() for call in calls]
    for found in (together(*calls) for _ in range(5)):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert not found[0].requires_grad
    calls, expected = calls[1:], expected[1:]  # in train mode a pass of the user's would move the batch statistics
    before = snapshot(slow.train())
    found = together(*calls)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert same(before, snapshot(slow))


def test_a_copy_made_in_the_midst_of_a_pass_is_free(plain):
    """Hooks that came with a copy of a model under explanation do nothing in it, in whichever thread."""
    seen = []
    with captured(plain, ["layer1"], reduce=lambda name, _: seen.append(name)), evaluating(plain):
        copied = networks.inference_copy(plain, pictures(1))
        seen.clear()
    copied(pictures(1))
    assert seen == []


def states():
    numbers = np.random.get_state()[1].tobytes()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), numbers, random.getstate()


@pytest.mark.parametrize("method", EXPLAINERS)
def test_global_generators_rest(method, plain, saved):
    """Those of torch, numpy and Python stand where they stood, also where the method opens its trained part first."""
    record, options = EXPLAINERS[method], options_of(method)
    if record.part is not None:
        options[record.part.option] = saved(method)
    before = states()
    record(plain, pictures(1), **options)
    assert states() == before


def test_global_generators_rest_where_networks_are_opened(plain, saved, tmp_path):
    """A target, each kind of part and an inference copy are opened without a draw; so are scores."""
    networks.save(plain, tmp_path)
    maps, before = pictures()[:, 0], states()
    networks.load(tmp_path)
    for method, record in EXPLAINERS.items():
        if record.part is not None:
            record.part.load(saved(method))
    inference_copy(plain, pictures(1))
    for name in METRICS:
        scored(name, plain, pictures(), None, maps)
    assert states() == before


@pytest.mark.parametrize("name", ["small_resnet", "mobilenet_v3_small"])
def test_an_opened_network_is_the_saved_one_though_nothing_was_drawn(name, tmp_path):
    """No parameter is filled at random before it is read, and each is the one of the file."""
    given = networks.build(name, "ab").eval()
    networks.save(given, tmp_path)
    before = torch.get_rng_state()
    with stored.Undrawn():
        networks.build(name, "ab")
    assert torch.equal(torch.get_rng_state(), before)
    opened = networks.load(tmp_path).state_dict()
    assert opened.keys() == given.state_dict().keys()
    assert all(torch.equal(opened[key], tensor) for key, tensor in given.state_dict().items())


def test_a_random_map_does_not_depend_on_what_was_opened(plain, tmp_path):
    """The same global seed gives the same noise whether AKD's surrogate is opened meanwhile or was before."""
    networks.save_surrogate(generated("akd")["surrogate"], tmp_path)
    found = []
    for _ in range(2):  # the first opens it
        torch.manual_seed(7)
        EXPLAINERS["akd"](plain, pictures(1), surrogate=tmp_path)
        found.append(EXPLAINERS["random"](plain, pictures(1)))
    assert torch.equal(*found)
