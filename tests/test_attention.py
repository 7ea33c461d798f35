"""Attention gates against nested loops."""

import math

import pytest
import torch
from torch import nn

from xai_utils.networks.attention import ATTENTION, BAM, CBAM, ChannelGate


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def linear(layer, row):
    weight, bias = layer.weight.detach().flatten(1).tolist(), layer.bias.tolist()
    return [sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(weight, bias, strict=True)]


def norm(layer, value, place):
    """A batch norm in eval mode, at one channel."""
    mean, variance = layer.running_mean[place].item(), layer.running_var[place].item()
    scaled = (value - mean) / math.sqrt(variance + layer.eps)
    return scaled * layer.weight[place].item() + layer.bias[place].item()


def convolved(layer, maps):
    """A convolution with zero padding, pixel by pixel: maps [C][h][w] -> [out][h][w]."""
    height, width, kernel = len(maps[0]), len(maps[0][0]), layer.kernel_size[0]
    padding, dilation, weight = layer.padding[0], layer.dilation[0], layer.weight.tolist()
    result = []
    for out, line in enumerate(weight):
        bias = 0.0 if layer.bias is None else layer.bias[out].item()
        rows = [[bias] * width for _ in range(height)]
        for y in range(height):
            for x in range(width):
                for channel, map_ in enumerate(maps):
                    for i in range(kernel):
                        for j in range(kernel):
                            row, column = y + dilation * i - padding, x + dilation * j - padding
                            if 0 <= row < height and 0 <= column < width:
                                rows[y][x] += line[channel][i][j] * map_[row][column]
        result.append(rows)
    return result


def randomised(module):
    """The module in eval mode, in float64, with nothing left at a neutral value."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape) + 0.1 if tensor.ndim == 1 else torch.randn(tensor.shape) / 4
    return module.double().eval()


def test_cbam_is_its_formula_pixel_by_pixel():
    """Channel gate of averages and maxima through one MLP, then a 7×7 gate of [max; mean] of the gated features."""
    module = randomised(CBAM(4, reduction=2))
    features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    first, _, last = module.channel.mlp
    for image, found in zip(features, module(features), strict=True):
        average = [sum(map(sum, map_)) / 30 for map_ in image.tolist()]
        largest = [max(map(max, map_)) for map_ in image.tolist()]
        hidden = [[max(0.0, value) for value in linear(first, row)] for row in (average, largest)]
        gate = [sigmoid(a + b) for a, b in zip(*(linear(last, row) for row in hidden), strict=True)]
        gated = [[[gate[c] * x for x in row] for row in map_] for c, map_ in enumerate(image.tolist())]
        pooled = [[[f(gated[c][y][x] for c in range(4)) for x in range(6)] for y in range(5)] for f in (max, sum)]
        pooled[1] = [[x / 4 for x in row] for row in pooled[1]]
        (score,) = convolved(module.spatial.conv, pooled)
        for c in range(4):
            for y in range(5):
                for x in range(6):
                    expected = gated[c][y][x] * sigmoid(norm(module.spatial.norm, score[y][x], 0))
                    assert found[c, y, x].item() == pytest.approx(expected, abs=1e-12)


def test_bam_is_its_formula_pixel_by_pixel():
    """The sum of the MLP's and the dilated branch's scores, through a sigmoid; dilation 4 reaches 4 pixels away."""
    module = randomised(BAM(4, reduction=2))
    features = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    _, down, channel_norm, _, up = module.channel
    for image, found in zip(features, module(features), strict=True):
        average = [sum(map(sum, map_)) / 30 for map_ in image.tolist()]
        hidden = [max(0.0, norm(channel_norm, value, place)) for place, value in enumerate(linear(down, average))]
        channel, maps = linear(up, hidden), image.tolist()
        for conv, batch_norm in ((0, 1), (3, 4), (6, 7)):
            maps = convolved(module.spatial[conv], maps)
            maps = [
                [[max(0.0, norm(module.spatial[batch_norm], x, place)) for x in row] for row in map_]
                for place, map_ in enumerate(maps)
            ]
        (spatial,) = convolved(module.spatial[9], maps)
        for c in range(4):
            for y in range(6):
                for x in range(5):
                    expected = image[c, y, x].item() * sigmoid(channel[c] + spatial[y][x])
                    assert found[c, y, x].item() == pytest.approx(expected, abs=1e-12)


def test_sizes_are_the_papers():
    """CBAM's MLP for 2048 channels has 526,464 parameters and its spatial gate 98 weights; BAM looks 8 pixels away."""
    assert sum(weight.numel() for weight in ChannelGate(2048).parameters()) == 526_464
    assert CBAM(16).spatial.conv.weight.numel() == 98
    module = BAM(16).eval()
    for conv in module.spatial:
        if isinstance(conv, nn.Conv2d):
            nn.init.ones_(conv.weight)
    impulse = torch.zeros(1, 16, 21, 21)
    impulse[:, :, 10, 10] = 1
    with torch.no_grad():
        scores = module.spatial(impulse)[0, 0]
    seen = (scores != scores[0, 0]).nonzero()
    assert seen.amin(0).tolist() == [2, 2]
    assert seen.amax(0).tolist() == [18, 18]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_only_weakens(name):
    """Every output lies between 0 and its input, whatever the input, and gradients are finite, also for zeros."""
    features = torch.cat([torch.randn(2, 32, 4, 4) * 100, torch.zeros(1, 32, 4, 4)]).requires_grad_()
    gated = ATTENTION[name](32)(features)
    ratio = (gated / features)[:2]
    assert ratio.min() >= 0
    assert ratio.max() <= 1
    gated.square().sum().backward()
    assert features.grad.isfinite().all()


def test_a_new_cbam_is_even_over_the_image():
    """Before training the spatial gate is 1/2 everywhere: a pretrained trunk is scaled, not disturbed."""
    gate = CBAM(16).spatial(torch.randn(2, 16, 5, 5))
    assert torch.equal(gate, torch.full((2, 1, 5, 5), 0.5))


@pytest.mark.parametrize("name", ATTENTION)
def test_too_few_channels_are_refused(name):
    """Fewer channels than the reduction leave no bottleneck."""
    with pytest.raises(ValueError, match="8 channels cannot be reduced by 16"):
        ATTENTION[name](8)


@pytest.mark.parametrize(("name", "halves", "opened"), [("cbam", 0.25, 0.907), ("bam", 0.5, 0.953)])
def test_opened_gates_let_nearly_all_through(name, halves, opened):
    """What a new module leaves of faint features: σ(3) per gate where it begins opened, 1/2 per gate where not."""
    torch.manual_seed(0)
    features = 1e-3 * torch.rand(2, 16, 8, 8)
    for begun, share in ((False, halves), (True, opened)):
        gated = ATTENTION[name](16, reduction=4, opened=begun).eval()(features)
        assert (gated / features).mean().item() == pytest.approx(share, abs=0.01 if begun else 0.15)
