"""Gradient maps: the gradient, guided backpropagation, integrated gradients, and their means over noise."""

import copy
import inspect

import pytest
import torch
from captum.attr import GradientShap
from test_layers import Repeating, same, settled, snapshot
from torch import nn
from torch.nn import functional

from xai_utils.explainers import gradients
from xai_utils.explainers.gradients import (
    expected_gradients,
    gradient,
    guided_backprop,
    integrated_gradients,
    smooth_grad,
    smooth_grad_squared,
)
from xai_utils.images import resize
from xai_utils.networks import ARCHITECTURES, build, inference_copy

METHODS = {
    gradient: {},
    guided_backprop: {},
    integrated_gradients: {"steps": 3},
    expected_gradients: {"samples": 2},
    smooth_grad: {"samples": 2},
    smooth_grad_squared: {"samples": 2, "over": "integrated_gradients", "steps": 2},
}


class GuidedReLU(torch.autograd.Function):
    """Springenberg's rule, written by hand: pass g where the input and g are positive."""

    @staticmethod
    def forward(context, values, in_place):
        context.save_for_backward(values.clone())
        if in_place:
            context.mark_dirty(values)
            return values.clamp_(min=0)
        return values.clamp(min=0)

    @staticmethod
    def backward(context, g):
        (values,) = context.saved_tensors
        return torch.where((values > 0) & (g > 0), g, 0), None


class ByHand(nn.Module):
    """A ReLU with the rule above as its backward pass."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, values):
        return GuidedReLU.apply(values, self.in_place)


class Preactivated(nn.Module):
    """A ReLU whose input also goes around it, as in pre-activation residual blocks; in place, it goes rectified."""

    def __init__(self, in_place=True):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=in_place), nn.Linear(4, 5)

    def forward(self, images):
        features = self.first(images)
        features = features - self.second(self.relu(features))
        return self.head(self.relu(features).mean((2, 3)))


class Quadratic(nn.Module):
    """Logits sum_p w_kp x_p^2 + v_kp x_p, whose integrated gradients are known in closed form."""

    def __init__(self, classes=3, size=4):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(classes, 3, size, size)), torch.randn(classes, 3, size, size)

    def forward(self, images):
        return (self.w * images[:, None] ** 2 + self.v * images[:, None]).sum((2, 3, 4))


def by_hand(model):
    """A copy in which each ReLU module follows the hand-written rule."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, ByHand(module.inplace))
    return model


def differentiated(model, images, target):
    """dz_c / dx (N, 3, H, W) from autograd alone."""
    images = images.clone().requires_grad_()
    return torch.autograd.grad(model(images).gather(1, target[:, None]).sum(), images)[0]


def seeded():
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(4)
    return settled(build("small_resnet", range(4)))


@pytest.fixture
def images():
    return torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(6))


TARGET = torch.tensor([2, 0, 3])


def test_gradient_is_autograds(small, images):
    """The map is the largest channel of |dz_c / dx|, and of the predicted class where no target is given."""
    torch.testing.assert_close(gradient(small, images, TARGET), differentiated(small, images, TARGET).abs().amax(1))
    assert torch.equal(gradient(small, images), gradient(small, images, small(images).argmax(1)))
    assert torch.equal(gradient(small, images, 1), gradient(small, images, torch.ones(3, dtype=torch.long)))


def test_pixels_are_what_is_differentiated(small, images):
    """The gradient is that of the pixels: the one behind the normalisation, over each channel's std."""
    normalised = (images - small.mean[:, None, None]) / small.std[:, None, None]
    inner = differentiated(small.network, normalised, TARGET) / small.std[:, None, None]
    torch.testing.assert_close(gradient(small, images, TARGET), inner.abs().amax(1))


@pytest.mark.parametrize("make", [lambda: settled(build("small_resnet", range(5))), Repeating, Preactivated,
                                  lambda: Preactivated(in_place=False),
                                  lambda: inference_copy(build("tiny_resnet", range(5)).eval())])  # fmt: skip
def test_guided_backprop_is_the_rule_by_hand(make, images):
    """Equal to a hand-written backward pass for reused, in-place and bypassed ReLUs, and unlike the plain gradient."""
    torch.manual_seed(3)
    model, target = make(), torch.tensor([1, 4, 0])
    images = images[..., :8, :8] if isinstance(model, Repeating) else images
    expected = differentiated(by_hand(model), images, target).abs().amax(1)
    torch.testing.assert_close(guided_backprop(model, images, target), expected)
    assert expected.max() > 0
    assert (expected - gradient(model, images, target)).abs().max() > 0.1 * expected.max()


def test_guided_backprop_refuses_what_it_cannot_guide(images):
    """Without ReLU modules, or with a ReLU beside them, it says so instead of returning the plain gradient."""

    class Mixed(Preactivated):
        def forward(self, images):
            return functional.relu(super().forward(images))

    for model, calls in ((ARCHITECTURES["googlenet"](3).eval(), "0 of them and rectifies 57"), (Mixed(), "2 .* 1"),
                         (ARCHITECTURES["mobilenet_v2"](3).eval(), "0 .* 35")):  # fmt: skip
        before = snapshot(model)
        with pytest.raises(ValueError, match=rf"calls {calls} times without .* choose the method 'gradient'"):
            guided_backprop(model, images)
        assert same(before, snapshot(model))


@pytest.mark.parametrize(("rectify", "seen"), [
    (functional.relu6, "hardtanh 1"), (lambda x: x.clamp(min=0), "clamp 1"), (lambda x: x.clip(0, 6), "clamp 1"),
    (lambda x: torch.maximum(x, torch.zeros(())), "maximum 1"), (lambda x: torch.where(x > 0, x, 0.0), "gt 1, where 1"),
    (lambda x: functional.threshold(x, 0, 0), "threshold 1"), (lambda x: x * (x.detach() > 0), "gt 1"),
    (lambda x: x.masked_fill(x < 0, 0), "lt 1, masked_fill 1"), (lambda x: (x + x.abs()) / 2, "abs 1"),
    (functional.leaky_relu, "leaky_relu 1"),
    (lambda x: GuidedReLU.apply(x, False), "clamp 1"),
])  # fmt: skip
def test_guided_backprop_sees_every_rectifier(rectify, seen, images):
    """However it is written, also inside a function of autograd's, it is counted and named."""

    class Mixed(Preactivated):
        def forward(self, images):
            return rectify(super().forward(images))

    with pytest.raises(gradients.NotApplicable, match=rf"rectifies \d times without \({seen}\)"):
        guided_backprop(Mixed(), images)


def test_guided_backprop_accepts_what_does_not_rectify(images):
    """A bound that keeps from zero before a division, softmax and pooling are no rectifiers."""

    class Normalised(Preactivated):
        def forward(self, images):
            return functional.normalize(super().forward(images)).softmax(1)

    assert guided_backprop(Normalised(), images).max() > 0


def test_guided_backprop_is_silent(small, images, recwarn):
    """No warning of captum's or torch's reaches the user."""
    guided_backprop(small, images)
    assert not recwarn.list


def test_integrated_gradients_of_a_quadratic():
    """sum_channels |(x - x')(w (2 x' + (1 + 1/m)(x - x')) + v)|: the right Riemann sum of a linear gradient."""
    model, images, target = Quadratic(), torch.rand(2, 3, 4, 4), torch.tensor([2, 1])
    start = torch.rand(3, 1, 1)
    for baseline, begin in (("black", torch.zeros(())), (start, start)):
        difference = images - begin
        expected = difference * (model.w[target] * (2 * begin + (1 + 1 / 5) * difference) + model.v[target])
        got = integrated_gradients(model, images, target, steps=5, baseline=baseline)
        torch.testing.assert_close(got, expected.abs().sum(1).detach())


def test_integrated_gradients_are_the_loop(small, images):
    """Equal to a loop over the steps k / m, k = 1 … m, written from the equation."""
    colour = small.mean[:, None, None]
    grads = [differentiated(small, colour + k / 4 * (images - colour), TARGET) for k in range(1, 5)]
    expected = ((images - colour) * sum(grads) / 4).abs().sum(1)
    torch.testing.assert_close(integrated_gradients(small, images, TARGET, steps=4, baseline="mean"), expected)


def test_integrated_gradients_are_complete(small, images):
    """The signed attributions add up to z_c(x) - z_c(x'), the closer the more steps."""
    with torch.no_grad():
        scores = (small(images) - small(torch.zeros_like(images))).gather(1, TARGET[:, None])[:, 0]
    errors = []
    for steps in (10, 200):
        signed = gradients._integrated_gradients(small, images, TARGET, steps=steps, chunk=30)
        errors.append(float((signed.sum((1, 2, 3)) - scores).abs().max() / scores.abs().max()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3


def test_expected_gradients_of_a_quadratic():
    """From one baseline x' sum_channels |(x - x')(w (2 x' + 2 a (x - x')) + v)|, a the mean of the drawn shares.

    Of many, each starts as often as any other; without, images of one colour do.
    """
    model, images, target = Quadratic(), torch.rand(2, 3, 4, 4), torch.tensor([2, 1])
    start = torch.rand(1, 3, 4, 4)
    share = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(9)).mean()
    difference = images - start
    expected = difference * (model.w[target] * 2 * (start + share * difference) + model.v[target])
    got = expected_gradients(model, images, target, samples=6, baselines=start, seed=9)
    torch.testing.assert_close(got, expected.abs().sum(1).detach())
    torch.nn.init.zeros_(model.w)
    many = torch.rand(5, 3, 4, 4)
    got = expected_gradients(model, images, target, samples=10, baselines=many)
    torch.testing.assert_close(got, ((images - many.mean(0)) * model.v[target]).abs().sum(1))
    with torch.no_grad():
        model.v.fill_(1)
    far = expected_gradients(model, torch.ones(1, 3, 4, 4), 0, samples=7)
    torch.testing.assert_close(far, far[:, :1, :1].expand_as(far))
    assert 0 < far[0, 0, 0] < 3


def test_expected_gradients_are_complete_and_captums():
    """Signed, they add up to the mean of z_c(x) - z_c(x'); captum's GradientShap without noise has the same mean."""
    torch.manual_seed(0)
    model, images, many = Quadratic(), torch.rand(2, 3, 4, 4), torch.rand(5, 3, 4, 4)
    target, options = torch.tensor([2, 1]), {"samples": 4000, "baselines": many, "seed": 1, "chunk": 1000}
    signed = gradients._expected_gradients(model, images, target, **options)
    with torch.no_grad():
        gained = model(images).gather(1, target[:, None])[:, 0] - model(many)[:, target].mean(0)
    torch.testing.assert_close(signed.sum((1, 2, 3)), gained, rtol=0, atol=0.05)
    theirs = GradientShap(model).attribute(images, many, n_samples=4000, stdevs=0.0, target=target)
    torch.testing.assert_close(signed, theirs, rtol=0, atol=0.1)


def test_baselines_are_resized_and_must_be_images(small, images):
    """Prepared data of another size do, as for mosaics; a stack of anything else is refused."""
    coarse = torch.rand(2, 3, 20, 20)
    got = expected_gradients(small, images, TARGET, samples=2, baselines=coarse)
    torch.testing.assert_close(
        got, expected_gradients(small, images, TARGET, samples=2, baselines=resize(coarse, (40, 40)))
    )
    for wrong in (coarse[0], coarse[:, :1], coarse[:0]):
        with pytest.raises(ValueError, match=r"give images \(B, 3, h, w\)"):
            expected_gradients(small, images, baselines=wrong)


@pytest.mark.parametrize("over", gradients.ATTRIBUTIONS)
def test_smoothing_by_hand(small, images, over):
    """The mean attribution, then the method's reduction; the mean square, then the sum: on the same noisy copies."""
    generator, copies = seeded(), []
    for image in images:
        noise = torch.stack([torch.randn(image.shape, generator=generator) for _ in range(3)])
        copies.append(image + 0.3 * (image.max() - image.min()) * noise)  # (3, 3, H, W)
    target, noisy = TARGET.repeat_interleave(3), torch.cat(copies)
    if over == "gradient":
        signed = differentiated(small, noisy, target)
    elif over == "guided_backprop":
        signed = differentiated(by_hand(small), noisy, target)
    else:
        signed = noisy * (differentiated(small, noisy / 2, target) + differentiated(small, noisy, target)) / 2
    signed = signed.unflatten(0, (3, 3))  # (N, samples, 3, H, W)
    options = {"over": over, "samples": 3, "noise_fraction": 0.3, "steps": 2}
    mean = signed.mean(1).abs()
    expected = mean.sum(1) if over == "integrated_gradients" else mean.amax(1)
    torch.testing.assert_close(smooth_grad(small, images, TARGET, generator=seeded(), **options), expected)
    expected = (signed**2).mean(1).sum(1)
    torch.testing.assert_close(smooth_grad_squared(small, images, TARGET, generator=seeded(), **options), expected)


def test_without_noise_smoothing_is_the_method(small, images):
    """Copies without noise give the method's own map, and the sum of its squared attributions."""
    options = {"samples": 2, "noise_fraction": 0}
    torch.testing.assert_close(smooth_grad(small, images, TARGET, **options), gradient(small, images, TARGET))
    squares = (differentiated(small, images, TARGET) ** 2).sum(1)
    torch.testing.assert_close(smooth_grad_squared(small, images, TARGET, **options), squares)


@pytest.mark.parametrize("method", [integrated_gradients, expected_gradients, smooth_grad, smooth_grad_squared])
def test_chunk_bounds_memory_and_changes_nothing(method, small, images):
    """No pass holds more than `chunk` images; any chunk gives the same map (float64: no ReLU flips by rounding)."""
    small, images = copy.deepcopy(small).double(), images[..., :24, :24].double()
    options = dict(METHODS[method])
    if method in (smooth_grad, smooth_grad_squared):
        options |= {"over": "integrated_gradients", "steps": 2}
    maps, largest = [], []
    handle = small.network.conv1.register_forward_hook(lambda _, inputs, __: largest.append(len(inputs[0])))
    for chunk in (1, 2, 5, 100):
        largest.clear()
        if "generator" in inspect.signature(method).parameters:
            options["generator"] = seeded()
        maps.append(method(small, images, chunk=chunk, **options))
        assert max(largest) <= chunk
    handle.remove()
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0])


@pytest.mark.parametrize(("method", "passes"), [(gradient, 1), (guided_backprop, 1), (integrated_gradients, 3),
                                                (expected_gradients, 2), (smooth_grad, 2)])  # fmt: skip
def test_no_needless_work(method, passes, small, images, monkeypatch):
    """One pass per gradient when the target is given, and no gradient of a parameter is asked for."""
    seen, wanted = [], []
    handle = small.network.conv1.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, *a, **k: wanted.extend(inputs) or plain(
        outputs, inputs, *a, **k))  # fmt: skip
    method(small, images, TARGET, **METHODS[method])
    handle.remove()
    assert sum(seen) == passes * len(images)
    assert all(tensor.shape[1:] == images.shape[1:] for tensor in wanted)
    assert wanted


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_as_found(method, small):
    """Images that require gradients, a target made in inference mode, and a model that writes into its input."""

    class Writing(nn.Sequential):
        def forward(self, images):
            return super().forward(images.sub_(0.5))

    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    before = images.detach().clone()
    with torch.inference_mode():
        target = torch.tensor([1, 2])
    options = METHODS[method] | ({"generator": seeded()} if method in (smooth_grad, smooth_grad_squared) else {})
    maps = method(Writing(small).eval(), images, target, **options)
    assert torch.equal(images, before)
    assert images.requires_grad
    assert images.grad is None
    assert not maps.requires_grad
    assert maps.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_errors(method, small, images):
    """Wrong targets, options and models are named together with what is allowed."""

    class Frozen(nn.Sequential):
        forward = torch.no_grad()(nn.Sequential.forward)

    cases = [
        (small, {"target": 4}, r"4 is not a class of this model; give 0\.\.3"),
        (small, {"target": torch.tensor([0, 1])}, r"shape \(2,\).*\(3,\)"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), {}, r"returns \(3, 2, 38, 38\); wrap it"),
        (Frozen(nn.ReLU(), nn.Flatten(), nn.Linear(4800, 4)), {}, "not depend differentiably on the images"),
    ]
    ranges = {"steps": (1, 2), "chunk": (0, 1), "samples": (0, 1), "noise_fraction": (-0.1, 0)}
    known = inspect.signature(method).parameters
    for name in ranges.keys() & known:
        value, lowest = ranges[name]
        cases.append((small, {name: value}, f"{name} is {value}; give {lowest} or more"))
    if "over" in known:
        cases.append((small, {"over": "x"}, "'x' is unknown; .* gradient, guided_backprop, integrated_gradients"))
    for model, options, message in cases:
        with pytest.raises(ValueError, match=message):
            method(model, images, **(METHODS[method] | options))
