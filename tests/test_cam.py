"""Class activation maps against slow references, closed forms and another library."""

import numpy as np
import pytest
import torch
from test_layers import settled
from torch import nn

from xai_utils.explainers import EXPLAINERS, cam_maps, explain
from xai_utils.explainers.cam import grad_cam_plus_plus, smooth_grad_cam_plus_plus, xgrad_cam
from xai_utils.images import resize, unit_range
from xai_utils.networks import build, head_gradient


def curved():
    """A network whose class gradients vary over positions and images: hidden layer, no pooling; map before 'b'."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 16, 12),
        nn.Tanh(),
        nn.Linear(12, 4),
    ).eval()  # 16 pixels -> 4x4


def pooled():
    """Convolution, ReLU, global average pooling, linear: gradients are constant (closed forms)."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 5, stride=4, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)
    ).eval()


def activation_and_gradient(model, images, target, last):
    """A (N, C, h, w) after module `last` and dz_c/dA in float64, from an ordinary recorded pass."""
    activation = model[: last + 1].double()(images.double())
    logits = model[last + 1 :].double()(activation)
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), activation)
    model.float()
    return activation.detach().numpy(), gradient.numpy()


def slow_map(weights, activation, size):
    """relu(sum_k w_k A_k) by loops, then resized."""
    count, channels, height, width = activation.shape
    low = np.zeros((count, height, width))
    for n in range(count):
        for i in range(height):
            for j in range(width):
                low[n, i, j] = max(0.0, sum(weights[n, k] * activation[n, k, i, j] for k in range(channels)))
    return resize(torch.from_numpy(low).float(), size)


def slow_weights(method, activation, gradient):
    """The channel weights straight from the papers' equations, position by position."""
    count, channels, height, width = activation.shape
    weights = np.zeros((count, channels))
    for n in range(count):
        for k in range(channels):
            total = activation[n, k].sum()
            for i in range(height):
                for j in range(width):
                    g = gradient[n, k, i, j]
                    if method == "grad_cam":
                        weights[n, k] += g / (height * width)
                    elif method == "xgrad_cam":
                        weights[n, k] += g * activation[n, k, i, j] / (total + 1e-7)
                    elif g != 0:
                        weights[n, k] += g**2 / (2 * g**2 + total * g**3) * max(0.0, g)
    return weights


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(2)
    return settled(build("small_resnet", range(4)))


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_plus_plus", "xgrad_cam"])
def test_cam_equals_the_slow_reference(method):
    """Each map equals nested loops over the paper's equation, where gradients vary over positions."""
    model, images, target = curved(), torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    activation, gradient = activation_and_gradient(model, images, target, 3)
    assert gradient.std((2, 3)).min() > 1e-6
    expected = slow_map(slow_weights(method, activation, gradient), activation, (16, 16))
    assert (expected.amax((1, 2)) > 0).sum() >= 4
    torch.testing.assert_close(EXPLAINERS[method](model, images, target, layer="3"), expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_plus_plus_of_a_vgg_head_cubes_outside_the_sum():
    """Behind pooling and a flattened ReLU head: eq. 19 by loops, not the variant that cubes inside the sum over A."""
    model = nn.Sequential(
        *curved()[:4], nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 12), nn.ReLU(),
        nn.Linear(12, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[9].weight *= 100  # gradients near 1, where the two forms differ
    images, target = torch.rand(8, 3, 24, 24), torch.arange(8) % 4
    activation, gradient = activation_and_gradient(model, images, target, 3)
    assert (np.ptp(gradient, axis=(2, 3)).max(1) > 0.1).all()
    expected = slow_map(slow_weights("grad_cam_plus_plus", activation, gradient), activation, (24, 24))
    found = grad_cam_plus_plus(model, images, target, layer="3")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    inside = (activation * gradient**3).sum((2, 3), keepdims=True)
    denominator = 2 * gradient**2 + inside
    alpha = np.divide(gradient**2, denominator, out=np.zeros_like(gradient), where=denominator != 0)
    other = slow_map((alpha * np.maximum(gradient, 0)).sum((2, 3)), activation, (24, 24))
    assert (unit_range(found) - unit_range(other)).abs().amax((1, 2)).max() > 0.05


def test_xgrad_cam_conserves_the_score():
    """Without biases behind the layer, the map's mass before the ReLU sums to the logit (conservation)."""
    model, images, target = curved(), torch.rand(2, 3, 16, 16), torch.tensor([2, 1])
    model = nn.Sequential(*model[:5], nn.Linear(80, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False)).eval()
    activation, gradient, logits, _ = head_gradient(model, images, "3", target)
    weights = torch.from_numpy(slow_weights("xgrad_cam", activation.numpy(), gradient.numpy())).float()
    mass = (weights[:, :, None, None] * activation).sum((1, 2, 3))
    torch.testing.assert_close(mass, logits.gather(1, target[:, None])[:, 0], rtol=1e-4, atol=1e-6)
    low = (weights[:, :, None, None] * activation).sum(1).relu()
    torch.testing.assert_close(xgrad_cam(model, images, target, layer="3"), resize(low, 16))


def test_closed_forms_of_pooling_networks():
    """With global average pooling Grad-CAM is CAM, XGrad-CAM equals it, and Grad-CAM++ is hw relu(g) / (2 + g S)."""
    model, images, target = pooled(), torch.rand(3, 3, 32, 32), torch.tensor([0, 2, 3])
    activation = model[:2](images).detach()  # (N, 7, 8, 8)
    head = model[4].weight[target].detach() / 64  # (N, 7)
    maps = cam_maps(model, images, target, methods=["grad_cam", "xgrad_cam", "grad_cam_plus_plus"])
    cam = resize(torch.einsum("nc,nchw->nhw", head, activation).relu(), 32)
    torch.testing.assert_close(maps["grad_cam"], cam)
    assert (unit_range(maps["grad_cam"]) - unit_range(maps["xgrad_cam"])).abs().max() < 1e-5
    weights = 64 * head.relu() / (2 + head * activation.sum((2, 3)))
    plus = resize(torch.einsum("nc,nchw->nhw", weights, activation).relu(), 32)
    torch.testing.assert_close(maps["grad_cam_plus_plus"], plus)
    assert (unit_range(plus) - unit_range(cam)).abs().max() > 0.01
    before = cam_maps(model, images, target, methods=["grad_cam", "xgrad_cam"], layer="0")  # before the ReLU
    assert (unit_range(before["grad_cam"]) - unit_range(before["xgrad_cam"])).abs().max() > 1e-3


def test_cam_agrees_with_grad_cam_library():
    """The grad-cam package makes the same three maps, up to its [0, 1] stretching.

    The heads are scaled up because that package adds an absolute 1e-6 to Grad-CAM++'s denominator, which shows where
    squared gradients are as small (4e-4 of the range with ordinary weights); the equation has no such term.
    """
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    classes = {
        "grad_cam": library.GradCAM,
        "grad_cam_plus_plus": library.GradCAMPlusPlus,
        "xgrad_cam": library.XGradCAM,
    }
    residual = settled(build("resnet18", range(6)))
    chained = curved()
    for head in (residual.network.fc, chained[7]):
        nn.init.normal_(head.weight, std=3000)
    cases = ((residual, residual.network.layer4, "layer4", 96), (residual, residual.network.layer3, "layer3", 96),
             (chained, chained[3], "3", 16))  # fmt: skip
    for model, module, layer, size in cases:
        images, target = torch.rand(3, 3, size, size), torch.tensor([3, 0, 2])
        ours = cam_maps(model, images, target, methods=list(classes), layer=layer)
        for name, maps in ours.items():
            with classes[name](model=model, target_layers=[module]) as cam:
                theirs = cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in target])
            model.zero_grad()
            assert (unit_range(maps) - torch.from_numpy(theirs)).abs().max() < 1e-5, (name, layer)


def test_smooth_without_noise_is_grad_cam_plus_plus(small, images):
    """One copy or many, without noise both forms are Grad-CAM++: stretched when maps are averaged, raw otherwise."""
    for model, layer in ((small, None), (small, "layer2")):
        plain = grad_cam_plus_plus(model, images, layer=layer)
        for samples in (1, 3):
            options = {"layer": layer, "samples": samples, "noise_fraction": 0}
            averaged = explain(model, images, method="smooth_grad_cam_plus_plus", **options)
            torch.testing.assert_close(averaged, unit_range(plain), rtol=0, atol=1e-5)
            formula = explain(model, images, method="smooth_grad_cam_plus_plus", average_cams=False, **options)
            torch.testing.assert_close(formula, plain, rtol=1e-3, atol=1e-6 * float(plain.max()))


def test_smooth_formula_equals_the_slow_reference():
    """The formula's moments are means over all noisy copies, the first derivative's too; the map is the clean one."""
    model, images, target = curved(), torch.rand(2, 3, 16, 16), torch.tensor([2, 0])
    generator = torch.Generator().manual_seed(9)
    moments = np.zeros((3, 2, 5, 4, 4))
    for n in range(2):
        spread = 0.3 * (images[n].max() - images[n].min())
        for _ in range(4):
            noisy = images[n] + spread * torch.randn(3, 16, 16, generator=generator)
            _, gradient = activation_and_gradient(model, noisy[None], target[n : n + 1], 3)
            for power in range(3):
                moments[power, n] += gradient[0] ** (power + 1) / 4
    activation, _ = activation_and_gradient(model, images, target, 3)
    alpha = moments[1] / (2 * moments[1] + activation.sum((2, 3), keepdims=True) * moments[2])
    weights = (alpha * np.maximum(moments[0], 0)).sum((2, 3))
    maps = smooth_grad_cam_plus_plus(
        model, images, target, layer="3", samples=4, noise_fraction=0.3, average_cams=False,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    torch.testing.assert_close(maps, slow_map(weights, activation, (16, 16)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("average_cams", [True, False])
def test_chunk_changes_nothing(small, images, average_cams):
    """However many noisy copies run at once, the map is the same."""
    maps = [
        explain(small, images, method="smooth_grad_cam_plus_plus", samples=5, chunk=chunk, average_cams=average_cams,
                generator=torch.Generator().manual_seed(1))
        for chunk in (1, 4, 64)
    ]  # fmt: skip
    assert maps[0].std() > 0
    for other in maps[1:]:
        torch.testing.assert_close(maps[0], other, rtol=1e-4, atol=1e-5 * float(maps[0].max()))
