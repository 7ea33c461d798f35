"""What a model may return, from all methods and metrics alike."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_explainers import explained, generated
from torch import nn

from xai_utils.explainers import CONTROLS, EXPLAINERS, explain
from xai_utils.explainers.cam import grad_cam
from xai_utils.metrics import METRICS
from xai_utils.networks import (
    Target,
    inference_copy,
    layer_names,
    logits_of,
)

ASKING = [method for method in EXPLAINERS if method not in (*CONTROLS, "akd", "akd_unoptimised")]
SCORING = ("rise", "lime", "meaningful_perturbation")
SCORED = [name for name, metric in METRICS.items() if metric.needs == "model"]


def as_transformers_do(logits):
    outputs = pytest.importorskip("transformers.modeling_outputs", reason="of the extra `transformers`")
    return outputs.ImageClassifierOutput(logits=logits, hidden_states=(logits,))


PACKED = {
    "ModelOutput": as_transformers_do,
    "an own class": lambda logits: SimpleNamespace(logits=logits),
    "a tuple": lambda logits: (logits, None),
    "a list": lambda logits: [logits, logits],
}
REFUSED = {
    r"\(2, 4, 1, 1\)": lambda logits: logits[:, :, None, None],
    r"\(4,\)": lambda logits: logits[0],
    "dict": lambda logits: {"scores": logits},
    "NoneType": lambda logits: None,
    "tuple": lambda logits: (),
    r"tuple with \(2, 4, 1, 1\)": lambda logits: (logits[:, :, None, None],),
    r"\(1, 4\) for 2 images": lambda logits: logits[:1],
}


class Packing(Target):
    """The test's target, whose answer comes packed."""

    def __init__(self, pack, method=None):
        network = explained(method)
        super().__init__(network.network, network.architecture, network.classes)
        self.pack = pack

    def forward(self, images):
        return self.pack(super().forward(images))


class Seeing(nn.Module):
    """A random network of `count` logits; `answer` makes of them what it returns."""

    def __init__(self, answer=lambda logits: logits, count=1):
        super().__init__()
        torch.manual_seed(3)
        layers = nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU()
        self.layers, self.head, self.answer = nn.Sequential(*layers), nn.Linear(6, count), answer
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))

    def forward(self, images):
        return self.answer(20 * self.head(self.layers(images).mean((2, 3))))


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def maps():
    return torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(6))


def few(method):
    return {"gate": None} if method == "amg" else generated(method)


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("method", EXPLAINERS)
def test_maps_do_not_depend_on_how_logits_are_packed(method, pack, images):
    """Bit for bit those of the model that returns the tensor; trained parts take it for their own."""
    found = [
        explain(model, images, method=method, **generated(method))
        for model in (Packing(pack, method), explained(method))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("name", SCORED)
def test_scores_do_not_depend_on_how_logits_are_packed(name, pack, images, maps):
    """Bit for bit."""
    found = [METRICS[name].function(model, images, None, maps) for model in (Packing(pack), explained())]
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("named", REFUSED)
@pytest.mark.parametrize("name", [*ASKING, *SCORED])
def test_any_other_answer_is_one_error(name, named, images, maps):
    """Whatever asks: what the model returns, and how to wrap it."""
    call = partial(METRICS[name].function, maps=maps) if name in SCORED else partial(explain, method=name)
    options = {} if name in SCORED else generated(name)
    with pytest.raises(ValueError, match=rf"^the model returns {named}; wrap it so that it returns logits \(N, K\)"):
        call(Packing(REFUSED[named], name), images, None, **options)


def test_the_network_of_a_target_may_pack_its_logits(images):
    """So a Hugging Face network needs no wrapper of its own; one that returns no logits is named."""
    network = Seeing(PACKED["ModelOutput"], 4)
    target = Target(network, "one of Hugging Face's", "abcd").eval()
    normalised = (images - target.mean[:, None, None]) / target.std[:, None, None]
    assert torch.equal(target(images), network(normalised).logits)
    assert explain(target, images, layer="layers.2").shape == (2, 32, 32)
    with pytest.raises(ValueError, match="the model returns dict; wrap it"):
        Target(Seeing(lambda logits: {"answer": logits}, 4), "mine", "abcd")(images)


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_an_inference_copy_packs_as_its_model(pack, images):
    """Norms are folded, and logits and maps are the model's up to rounding."""
    copied = inference_copy(Packing(pack), images)
    assert not isinstance(copied.network.bn1, nn.BatchNorm2d)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(copied, images), explained()(images), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(explain(copied, images), explain(explained(), images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.rand(2, 3, 32, 32)),
                                      lambda model: torch.jit.freeze(torch.jit.script(model.eval()))],
                         ids=["script", "trace", "freeze"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_model_is_explained_where_no_layer_is_read(compiled, images, maps):
    """Torch runs no hooks inside: what needs none gives the model's own maps and scores, all else says why not."""
    model = explained()
    scripted = compiled(model)
    for method in (*SCORING, "gradient", "integrated_gradients", "smooth_grad"):
        options = generated(method) | ({"baseline": "black"} if method == "rise" else {})
        found = [explain(each, images, method=method, **options | few(method)) for each in (scripted, model)]
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
    for name in SCORED:
        hidden = {"baseline": "black"}
        found = [METRICS[name].function(each, images, None, maps, **hidden) for each in (scripted, model)]
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4, equal_nan=True)
    if layer_names(scripted):  # a frozen model has no layers left
        for call in (grad_cam, partial(explain, method="smoe"), partial(explain, method="fastcam")):
            with pytest.raises(ValueError, match=r"is scripted or traced \(torch.jit\), and its layers run no hooks"):
                call(scripted, images)
    with pytest.raises(ValueError, match="scripted or traced; copy the module that it was made of"):
        inference_copy(scripted, images)
