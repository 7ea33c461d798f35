"""Column statistics against slow float64 formulas, scipy's distributions, and values known by hand."""

import math

import numpy as np
import pandas
import pytest
import torch
from conftest import ROOT
from scipy import optimize, special, stats

from xai_utils.explainers.activation_statistics import (
    EPSILON,
    PRE_ACTIVATION,
    STATISTICS,
    WORKSPACE,
    gamma_scale,
    gamma_shape,
    gamma_shape_start,
    smoe_scale,
)


def column(values, repeats=1):
    """One position with these channel values: (1, C, 1, 1)."""
    return torch.tensor(list(values) * repeats, dtype=torch.float64)[None, :, None, None]


def exact_smoe(activation):
    """SMOE Scale as eq. 2 writes it, in float64."""
    x = activation.double() + EPSILON
    mu = x.mean(1, keepdim=True)
    return (mu * (mu / x).log2()).mean(1)


def rectified(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).relu()


@pytest.mark.parametrize(("values", "expected"), [((0.5, 1), 0.0637219), ((1, 2), 0.1274438), ((2, 3), 0.0736171)])
@pytest.mark.parametrize("repeats", [1, 3, 16])
def test_smoe_by_hand(values, expected, repeats):
    """Alternating values have a SMOE Scale known on paper, whatever the number of channels."""
    assert smoe_scale(column(values, repeats)).item() == pytest.approx(expected, abs=1e-6)


def test_the_papers_table_3():
    """Table 3: SMOE Scale, mean and population deviation of two alternating values, to the printed digits."""
    table = pandas.read_csv(ROOT / "data" / "published" / "fastcam_table3_smoe_examples.csv")
    assert len(table) == 7
    for row in table.itertuples():
        x = column((row.value_a, row.value_b), 8)
        assert smoe_scale(x).item() == pytest.approx(row.smoe_scale, abs=5e-4)
        assert x.mean().item() == pytest.approx(row.mean, abs=1e-9)
        assert x.std(correction=0).item() == pytest.approx(row.std, abs=1e-9)


@pytest.mark.parametrize("channels", [2, 3, 5, 6, 64, 90, 257])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_smoe_agrees_with_the_formula(channels, layout):
    """Blocks, products of four and both memory layouts change nothing: 1e-4 of the float64 formula, from 0 to 1e4."""
    base = rectified(3, channels, 9, 11, seed=channels) * 10 ** torch.linspace(-4, 4, 99).view(9, 11)
    base = base.clamp(max=1e4)
    base[0, :, 4, 4] = 1e4 * torch.rand(channels)
    base[1, :, 0, 0] = torch.linspace(0, 1e4, channels)
    values = smoe_scale(base.contiguous(memory_format=layout))
    torch.testing.assert_close(values.double(), exact_smoe(base), rtol=1e-4, atol=1e-11)


def test_smoe_in_many_blocks():
    """An activation many times the workspace gives the same values as its parts, also from a strided view."""
    big = rectified(2, 16, 200, 130)
    assert big[0].numel() > 2 * WORKSPACE
    torch.testing.assert_close(smoe_scale(big).double(), exact_smoe(big), rtol=1e-4, atol=1e-11)
    part = big[:, 3:14, 5:80, ::2]
    torch.testing.assert_close(smoe_scale(part).double(), exact_smoe(part), rtol=1e-4, atol=1e-11)


def test_smoe_of_nearly_equal_values():
    """Where the two logarithms cancel, the column is computed again in float64: no digits are lost."""
    x = 1000 * (1 + 1e-3 * torch.rand(2, 64, 3, 3, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(smoe_scale(x).double(), exact_smoe(x), rtol=1e-4, atol=0)


def test_smoe_scales_with_its_input():
    """phi(a x) = a phi(x) where the values are large beside epsilon."""
    x = 1 + torch.rand(1, 32, 4, 4)
    for factor in (0.5, 8.0, 1000.0):
        torch.testing.assert_close(smoe_scale(factor * x), factor * smoe_scale(x), rtol=1e-4, atol=0)


def test_smoe_depends_on_epsilon_as_stated():
    """64 ones among 256 channels give 3.86 at epsilon 1e-7."""
    assert smoe_scale(column([1.0] * 64 + [0.0] * 192)).item() == pytest.approx(3.86, abs=5e-3)


CONSTANTS = {  # of a constant column of value c: what each statistic gives
    "smoe_scale": lambda c: 0,
    "standard_deviation": lambda c: 0,
    "mean": lambda c: c,
    "maximum": lambda c: c,
    "shannon_entropy": lambda c: math.log2(12),
    "log_normal_mean": lambda c: c + EPSILON,
    "log_normal_entropy": lambda c: math.log(c + EPSILON) + 0.5 + math.log(EPSILON * math.sqrt(2 * math.pi)),
    "truncated_normal_mean": lambda c: c,
    "truncated_normal_standard_deviation": lambda c: 0,
    "truncated_normal_entropy": lambda c: (
        0.5 * math.log(2 * math.pi * math.e) + math.log(EPSILON) - (math.log(2) if c == 0 else 0)
    ),
    "gamma_scale": lambda c: 0,
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_columns(name, value):
    """Zero and constant columns give the limit that the formula has, 0 for every measure of spread, never NaN."""
    result = STATISTICS[name](torch.full((1, 12, 2, 2), value))
    assert result.isfinite().all()
    expected = CONSTANTS[name](value)
    torch.testing.assert_close(result, torch.full((1, 2, 2), float(expected)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_is_one_float_per_position(name):
    """Shape, type, finiteness, and independence of positions and images, for values from 0 to 1e4."""
    x = rectified(3, 24, 4, 5, seed=2) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None, None]
    result = STATISTICS[name](x)
    assert result.shape == (3, 4, 5)
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    torch.testing.assert_close(STATISTICS[name](x[1:2, :, 2:3, 3:]), result[1:2, 2:3, 3:], rtol=1e-5, atol=1e-7)


def test_moments_and_entropies_against_numpy_and_scipy():
    """Mean, maximum, deviation, Shannon's entropy and the log-normal's moments, against independent code."""
    x = rectified(1, 40, 3, 3, seed=3)
    columns = x[0].flatten(1).T.double().numpy()  # (9, C)
    logs = np.log(columns + EPSILON)
    m, sd = logs.mean(1), logs.std(1, ddof=1)
    expected = {
        "mean": columns.mean(1),
        "maximum": columns.max(1),
        "standard_deviation": columns.std(1, ddof=1),
        "shannon_entropy": stats.entropy(columns + EPSILON, base=2, axis=1),
        "log_normal_mean": stats.lognorm.mean(sd, scale=np.exp(m)),
        "log_normal_entropy": stats.lognorm.entropy(sd, scale=np.exp(m)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(STATISTICS[name](x).flatten().numpy(), values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("shift", [-3.0, -0.4, 0.0, 2.0])
def test_truncated_normal_against_scipy(shift):
    """Mean, deviation and entropy of scipy's normal truncated to [0, inf), with the moments of the raw column."""
    x = torch.randn(1, 50, 2, 3, generator=torch.Generator().manual_seed(4)) + shift
    columns = x[0].flatten(1).T.double().numpy()
    mu, sigma = columns.mean(1), columns.std(1, ddof=1)
    # scipy has no entropy up to infinity; at 40 deviations nothing is left
    law = stats.truncnorm(-mu / sigma, np.inf, loc=mu, scale=sigma)
    expected = {"mean": law.mean(), "standard_deviation": law.std()}
    expected["entropy"] = [stats.truncnorm(-m / s, 40.0, m, s).entropy() for m, s in zip(mu, sigma, strict=True)]
    for name, values in expected.items():
        values = np.asarray(values, dtype=np.float64)
        result = STATISTICS[f"truncated_normal_{name}"](x).flatten().numpy()
        np.testing.assert_allclose(result, values, rtol=2e-5, atol=1e-6, err_msg=name)


def test_truncated_normal_far_below_zero():
    """Columns far below zero, where Z underflows, keep an exponential tail: mean and deviation sigma^2 / |mu|."""
    x = column([-101.0, -100.0, -99.0])
    assert STATISTICS["truncated_normal_mean"](x).item() == pytest.approx(0.01, rel=1e-3)
    assert STATISTICS["truncated_normal_standard_deviation"](x).item() == pytest.approx(0.01, rel=1e-3)
    assert STATISTICS["truncated_normal_entropy"](x).item() == pytest.approx(1 + math.log(0.01), rel=1e-3)


def test_gamma_scale_against_a_slow_fit():
    """Newton's shape maximises the likelihood: scipy's fit of the same columns, with the place fixed at 0."""
    x = torch.from_numpy(stats.gamma.rvs(1.7, scale=0.6, size=(1, 300, 1, 3), random_state=0))
    fits = [stats.gamma.fit((x[0, :, 0, n] + EPSILON).numpy(), floc=0)[2] for n in range(3)]
    np.testing.assert_allclose(gamma_scale(x).flatten().numpy(), fits, rtol=1e-4)
    spreads = [1e-6, 1e-3, 0.1, 1.0, 5.0, 12.0]
    for spread, k in zip(spreads, gamma_shape(torch.tensor(spreads)).tolist(), strict=True):
        root = optimize.brentq(lambda k, s=spread: math.log(k) - special.digamma(k) - s, 1e-3, 1e7, xtol=1e-12)
        assert k == pytest.approx(root, rel=1e-4)
        assert gamma_shape_start(torch.tensor(spread)).item() == pytest.approx(root, rel=0.015)
    assert gamma_shape(0.0) == math.inf


@pytest.mark.parametrize("name", STATISTICS)
def test_bad_activations(name):
    """Negative values are refused where a ReLU's output is needed; NaN, infinities and wrong shapes always."""
    function, x = STATISTICS[name], torch.rand(1, 4, 3, 3)
    if name in PRE_ACTIVATION:
        assert function(x - 0.5).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"reaches down to -0\.4.*without negative values: choose a layer behind"):
            function(x * 0 - 0.4)
    for value, word in ((math.nan, "NaN"), (math.inf, "infinite")):
        broken = x.clone()
        broken[0, 1, 2, 0] = value
        with pytest.raises(ValueError, match=f"contains {word}"):
            function(broken)
    for wrong in (x[0], x[:, :1]):
        with pytest.raises(ValueError, match=r"give \(N, C, h, w\) with two channels or more"):
            function(wrong)
