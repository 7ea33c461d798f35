"""What a model may return, from all methods and metrics alike, and which score of a class they follow."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_explainers import TRANSFORMERS, explained, generated
from test_metrics import Odds, odds
from torch import nn

from xai_utils.evaluation.sanity import sanity
from xai_utils.explainers import CONTROLS, EXPLAINERS, explain, explain_many
from xai_utils.explainers.cam import grad_cam
from xai_utils.metrics import METRICS
from xai_utils.metrics.confidence import average_drop, percentage_in
from xai_utils.metrics.perturbation import perturbation_curves
from xai_utils.networks import (
    SCORES,
    Target,
    answering,
    class_scores,
    evaluating,
    inference_copy,
    layer_names,
    logits_of,
)

ASKING = [method for method in EXPLAINERS if method not in (*CONTROLS, "akd", "akd_unoptimised")]
SCORING = ("rise", "lime", "meaningful_perturbation")
UNTRAINED = [name for name in ASKING if EXPLAINERS[name].part is None or name == "amg"]
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
    """A random network of `count` logits, by default one z per image; `answer` makes others of them."""

    def __init__(self, answer=lambda logits: logits, count=1):
        super().__init__()
        torch.manual_seed(3)
        layers = nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU()
        self.layers, self.head, self.answer = nn.Sequential(*layers), nn.Linear(6, count), answer
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))

    def forward(self, images):
        return self.answer(20 * self.head(self.layers(images).mean((2, 3))))


def of_zero(logits):
    return torch.cat([torch.zeros_like(logits), logits], 1)


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
        hidden = {} if name == "road" else {"baseline": "black"}
        found = [METRICS[name].function(each, images, None, maps, **hidden) for each in (scripted, model)]
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4, equal_nan=True)
    if layer_names(scripted):  # a frozen model has no layers left
        for call in (grad_cam, partial(explain, method="smoe"), partial(explain, method="fastcam")):
            with pytest.raises(ValueError, match=r"is scripted or traced \(torch.jit\), and its layers run no hooks"):
                call(scripted, images)
    with pytest.raises(ValueError, match="scripted or traced; copy the module that it was made of"):
        inference_copy(scripted, images)


def test_scores_by_hand():
    """Of ln 1, ln 2, ln 5: the softmax k / 8, the sigmoid k / (1 + k), the logit."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().expand(3, 3)
    expected = {"softmax": [1 / 8, 2 / 8, 5 / 8], "sigmoid": odds(1, 2, 5), "logit": logits[0].tolist()}
    for score in SCORES:
        assert class_scores(logits, torch.arange(3), score).tolist() == pytest.approx(expected[score])
    with pytest.raises(ValueError, match="score 'odds' is unknown; choose one of softmax, sigmoid, logit"):
        class_scores(logits, torch.arange(3), "odds")


def test_one_logit_answers_for_two_classes_inside_alone(images):
    """(-z, z) inside the `with`, packed or not, then one again; several logits, and any under softmax, stay."""
    for pack in (lambda logits: logits, *PACKED.values()):
        model = Seeing(pack)
        with torch.no_grad(), evaluating(model):
            (z,) = Seeing()(images).T
            with answering(model, "sigmoid"):
                assert torch.equal(logits_of(model, images), torch.stack([-z, z], 1))
            with answering(model, "sigmoid", "softmax"), pytest.raises(ValueError, match="returns one logit"):
                logits_of(model, images)
    with answering(explained(), "logit"):
        assert logits_of(explained(), images).shape == (2, 4)


@pytest.mark.parametrize("wrapped", [nn.DataParallel, partial(torch.compile, backend="eager")])
@pytest.mark.parametrize("method", ["grad_cam", "gradient", "rise", *TRANSFORMERS])
def test_one_logit_answers_for_two_classes_in_a_wrapper(method, wrapped, images):
    """DataParallel and compiled models, whose inside some methods call, have the maps of what they hold."""
    model = Packing(lambda logits: logits[:, :1], method)
    found = [explain(each, images, 0, method=method, score="logit", **few(method)) for each in (wrapped(model), model)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", [*ASKING, *SCORED])
def test_one_logit_under_softmax_is_refused(name, images, maps):
    """By every method and metric, called by its name or directly, with the score to give."""
    record = EXPLAINERS.get(name)
    call = record.function if record else partial(METRICS[name].function, maps=maps)
    with pytest.raises(ValueError, match=r'the model returns one logit per image.*give score="sigmoid"'):
        call(Packing(lambda logits: logits[:, :1], name), images, None, **(generated(name) if record else {}))
    if record:
        with pytest.raises(ValueError, match='give score="sigmoid"'):
            explain_many(Packing(lambda logits: logits[:, :1], name), images, methods={name: generated(name)})


@pytest.mark.parametrize("name", [*SCORING, *SCORED])
def test_the_sigmoid_of_one_logit_is_the_softmax_of_two(name, images, maps):
    """sigmoid(z) is the softmax of (0, z), and of (-z / 2, z / 2), for either class and the predicted one."""
    record, found = EXPLAINERS.get(name), []
    call = record.function if record else partial(METRICS[name].function, maps=maps)
    options = few(name) if record else {"min_gap": 0} if name.startswith("faithfulness") else {}
    for target in (None, 0, 1):
        one, *two = [
            call(Seeing(answer), images, target, score=score, **options)
            for answer, score in (
                (lambda z: z, "sigmoid"),
                (of_zero, "softmax"),
                (lambda z: torch.cat([-z / 2, z / 2], 1), "softmax"),
            )
        ]
        for other in two:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
        found.append(one.flatten())
    found = torch.cat(found)
    assert found[found.isfinite()].std() > 0


@pytest.mark.parametrize("score", ["sigmoid", "logit"])
@pytest.mark.parametrize("method", [method for method in UNTRAINED if method not in TRANSFORMERS])
def test_class_0_of_one_logit_is_explained_by_its_negative(method, score, images):
    """The map of class 0 of z is that of class 1 of -z, and without a target that of the sign's class."""
    found = {
        (name, target): explain(Seeing(answer), images, target, method=method, score=score, **few(method))
        for name, answer in (("z", lambda z: z), ("-z", lambda z: -z))
        for target in (0, 1, None)
    }
    for one, other in ((0, 1), (1, 0), (None, None)):
        torch.testing.assert_close(found["z", one], found["-z", other])
    predicted = (Seeing()(images)[:, 0] > 0).long()
    given = explain(Seeing(), images, predicted, method=method, score=score, **few(method))
    torch.testing.assert_close(found["z", None], given)


@pytest.mark.parametrize("score", ["sigmoid", "logit"])
@pytest.mark.parametrize("name", [*SCORING, *SCORED])
def test_scores_of_a_class_do_not_see_the_others(name, score, images, maps):
    """Of many logits, class c has by sigmoid and logit the map and the score of a model with that logit alone."""
    pair = []
    for answer, target in ((lambda logits: logits, 2), (lambda logits: logits[:, 2:3], 1)):
        model = Seeing(answer, 4)
        if name in EXPLAINERS:
            pair.append(explain(model, images, target, method=name, score=score, **few(name)))
        else:
            pair.append(METRICS[name].function(model, images, target, maps, score=score))
    torch.testing.assert_close(*pair, equal_nan=True)


@pytest.mark.parametrize("method", [method for method in ASKING if method not in SCORING])
def test_methods_that_differentiate_explain_the_logit_whatever_the_score(method, images):
    """Of several logits: as in their papers."""
    found = [explain(explained(method), images, 1, method=method, score=score, **generated(method)) for score in SCORES]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_score_of_all_rows_and_of_one(images):
    """`explain_many` has one for the rows that name none; those made in one pass have it, too."""
    methods = {"rise": {"masks": 8}, "probability": {"method": "rise", "masks": 8, "score": "sigmoid"},
               "grad_cam": {}, "xgrad_cam": {}}  # fmt: skip
    found = explain_many(Seeing(), images, 1, methods, score="logit")
    for row, score in (("rise", "logit"), ("probability", "sigmoid"), ("xgrad_cam", "sigmoid")):
        method, own = ("rise", {"masks": 8}) if row != "xgrad_cam" else (row, {})
        expected = explain(Seeing(), images, 1, method=method, score=score, **own)
        torch.testing.assert_close(found[row], expected)
    for method in ("rise", "grad_cam"):
        with pytest.raises(ValueError, match=f"{method}: score is 'odds'; give one of softmax, sigmoid, logit"):
            explain(Seeing(), images, method=method, score="odds")


@pytest.mark.parametrize("method", ["grad_cam", "lime", "smooth_grad"])
def test_one_logit_is_checked_for_sanity(method, images):
    """The class is that of the logit's sign, with the score or without one that the checks would have to know."""
    options = few(method) | {"score": "sigmoid"}
    options.pop("generator", None)
    checked = sanity(method, Seeing(), images, options=options)
    assert checked.target.shape == (2,)
    predicted = (Seeing()(images)[:, 0] > 0).long()
    given = sanity(method, Seeing(), images, predicted, options=options)
    assert torch.equal(checked.noise, given.noise)


def test_curves_of_several_scores_share_their_passes():
    """Odds 2, 3, 5, 1 kept in the order 5, 3, 2, 1: logits 0, ln 5, ln 15, ln 30 of the same five images."""
    model, maps = Odds([[2, 3], [5, 1]]), torch.tensor([[[2.0, 3.0], [4.0, 1.0]]])
    asked, step = [], {"pixels_per_step": 224 * 224 / 4, "baseline": "black"}
    model.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    found = perturbation_curves(
        model, torch.ones(1, 1, 2, 2), 0, maps, curves=("insertion", "faithfulness"),
        insertion=step | {"score": "logit"}, faithfulness={"steps": 4, "baseline": "black"},
    )  # fmt: skip
    assert asked == [1, 5]
    assert found["insertion"][0].exp().tolist() == pytest.approx([1, 5, 15, 30, 30])
    assert found["faithfulness"][0].tolist() == pytest.approx(odds(1, 5, 15, 30, 30))


def test_a_logit_that_is_not_positive_has_no_share_to_lose():
    """From ln 6 to ln 2 it loses 1 - ln 2 / ln 6; from -ln 6 to -ln 12 no share of anything; a rise is no drop."""
    images, maps = torch.ones(1, 1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    for values, expected in (((2, 3), 1 - 0.6931 / 1.7918), ((1 / 2, 1 / 3), 0), ((1 / 12, 2), None)):
        model = Odds([[values[0], values[1]], [1, 1]])
        drop = average_drop(model, images, 0, maps, score="logit").item()
        assert drop == pytest.approx(100 * expected, abs=0.01) if expected is not None else drop != drop
    with pytest.raises(ValueError, match="score 'rank' is unknown; choose one of softmax, sigmoid, logit, accuracy"):
        percentage_in(model, images, 0, maps, score="rank")
    given = Seeing(), torch.rand(2, 3, 32, 32), None, torch.rand(2, 32, 32)
    assert percentage_in(*given, percent=100, score="accuracy").tolist() == [1, 1]
