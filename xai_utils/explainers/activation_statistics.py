"""Statistics of a column of activations: all channels at one position, summed up in one number (FastCAM, table 1).

Each is a function of one layer's activation (N, C, h, w) -> (N, h, w) float32, one value per position; high is
salient. Those named in `PRE_ACTIVATION` take the tensor before the ReLU, all others the ReLU's output: no negative
values (ValueError). NaN is a ValueError for all. Below x is the column of C values, x + eps the same with
EPSILON = 1e-7 added to each value, mu its mean; the statistics that take logarithms depend on EPSILON.
"""

import math

import torch

EPSILON = 1e-7
LARGEST = torch.finfo(torch.float32).max
WORKSPACE = 200_000  # values per image of the batch held beside the activation: 0.8 MB
CANCELLING = 0.03  # bits; below it the difference of two float32 logarithms has lost its digits


def _checked(activation, *, rectified=True):
    if activation.ndim != 4 or activation.shape[1] < 2:
        raise ValueError(
            f"the activation has shape {tuple(activation.shape)}; give (N, C, h, w) with two channels or more"
        )
    low, high = activation.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"the activation contains {'NaN' if low.isnan() else 'infinite values'}; check the weights")
    if rectified and low < 0:
        raise ValueError(
            f"the activation reaches down to {low.item():.4g}; this statistic needs a ReLU's output, without negative "
            "values: choose a layer behind a ReLU, or one of the truncated-normal statistics"
        )
    return activation


def smoe_scale(activation):
    """SMOE Scale: mean times the excess of the mean's logarithm (FastCAM eq. 1, 14; eq. 2, 15 is the same number).

    phi = mu * (log2 mu - mean_k log2(x_k + eps))   with mu of x + eps; >= 0, 0 for constant columns
    """
    return fast_smoe_scale(_checked(activation))


def fast_smoe_scale(activation):
    """`smoe_scale` without the check for negative values: for tensors that a ReLU has just made.

    NaN stays NaN. Half the time of the formula as written, and at most 1 MB of memory per image beside the
    activation: a block that fits the cache is read once, and one logarithm serves four channels, for
    log a + log b = log ab, and the product of four values between 1e-7 and 1e9 is a normal float32.
    """
    columns = _columns(activation.detach())
    total, logarithm = (columns.new_empty(columns.shape[0], columns.shape[2]) for _ in range(2))  # (N, h * w)
    for rows, places, block in _blocks(columns):
        torch.add(columns[rows, :, places], EPSILON, out=block)
        torch.sum(block, 1, out=total[rows, places])
        torch.sum(_products(block).log2_(), 1, out=logarithm[rows, places])
    mean = total / columns.shape[1]
    excess = mean.log2() - logarithm / columns.shape[1]  # bits, >= 0 (Jensen)
    _repair(excess, mean, columns)
    return (mean * excess.clamp_(min=0)).view(len(activation), *activation.shape[2:])


def _columns(activation):
    """(N, C, h * w) without a copy where memory allows: float32, positions in the order of the activation."""
    return activation.float().flatten(2)  # a view for channels-last tensors too: h and w merge


def _blocks(columns):
    """(slice of images, slice of positions, uninitialised block) in turn; the blocks share one small memory."""
    count, channels, positions = columns.shape
    limit = WORKSPACE * count
    rows = max(1, min(count, limit // (channels * positions)))
    places = max(1, min(positions, limit // channels))
    nearest = columns.stride(1) < columns.stride(2)  # channels last: neighbouring channels lie side by side
    memory = columns.new_empty(rows * places * channels)
    for row in range(0, count, rows):
        for place in range(0, positions, places):
            size = min(rows, count - row), min(places, positions - place)
            block = memory[: size[0] * size[1] * channels]
            block = block.view(*size, channels).transpose(1, 2) if nearest else block.view(size[0], channels, size[1])
            yield slice(row, row + rows), slice(place, place + places), block


def _products(block):
    """Products of four values (or of two, or the values) of the block (n, C, p), made in place: fewer logarithms."""
    for _ in range(2):
        half, odd = divmod(block.shape[1], 2)
        if odd:
            break
        block = block[:, :half].mul_(block[:, half:])
    return block


def _repair(excess, mean, columns):
    """Recompute in float64, in place, where the two logarithms nearly cancel (columns of nearly equal values)."""
    rows, places = ((excess < CANCELLING) & (mean > 2 * EPSILON)).nonzero(as_tuple=True)
    for row, place in zip(rows.split(WORKSPACE // 20), places.split(WORKSPACE // 20), strict=True):
        exact = columns[row, :, place].double() + EPSILON  # (M, C)
        excess[row, place] = (exact.mean(1).log2() - exact.log2().mean(1)).float()


def maximum(activation):
    """The largest value: max_k x_k. In the published code, not in the paper."""
    return _checked(activation).amax(1).float()


def mean(activation):
    """The mean: (1/C) sum_k x_k ("Normal Mean" in the paper's tables)."""
    return _checked(activation).mean(1, dtype=torch.float32)


def standard_deviation(activation):
    """The unbiased standard deviation: sqrt(sum_k (x_k - mean)^2 / (C - 1))."""
    return _checked(activation).float().std(1)


def shannon_entropy(activation):
    """Shannon's entropy in bits of the column as a distribution over channels: H = -sum_k p_k log2 p_k.

    p_k = (x_k + eps) / sum_j (x_j + eps). From 0 to log2 C, which constant columns reach, the all-zero one too.
    """
    values = _checked(activation).double() + EPSILON
    total = values.sum(1)
    return (total.log2() - torch.special.xlogy(values, values).sum(1) / (total * math.log(2))).clamp_(min=0).float()


def _log_moments(activation):
    """Mean and unbiased standard deviation of ln(x + eps), float64."""
    logarithms = (_checked(activation).double() + EPSILON).log_()
    return logarithms.mean(1), logarithms.std(1)


def log_normal_mean(activation):
    """The mean of the log-normal distribution with the column's moments: exp(m + v / 2), at most float32's largest.

    m and v are the mean and the unbiased variance of ln(x + eps). A constant column gives its value.
    """
    m, deviation = _log_moments(activation)
    return (m + deviation**2 / 2).exp_().clamp_(max=LARGEST).float()


def log_normal_entropy(activation):
    """The entropy in nats of that log-normal distribution: m + 1/2 + ln(sqrt(2 pi v)).

    sqrt(v) is at least EPSILON, so that a constant column gives a finite, very low value.
    """
    m, deviation = _log_moments(activation)
    return (m + 0.5 + (deviation.clamp_(min=EPSILON) * math.sqrt(2 * math.pi)).log_()).float()


def _truncated(activation):
    """mu, sigma, alpha = -mu / sigma and the inverse Mills ratio phi(alpha) / Z, Z = 1 - Phi(alpha), all float64.

    Truncated to [0, inf) is the normal distribution with the moments of the column before the ReLU (sigma unbiased,
    at least EPSILON). The ratio is taken through log Z, exact where Z itself underflows.
    """
    values = _checked(activation, rectified=False).double()
    mu, sigma = values.mean(1), values.std(1).clamp_(min=EPSILON)
    alpha = -mu / sigma
    log_z = torch.special.log_ndtr(-alpha)
    ratio = (-0.5 * alpha**2 - 0.5 * math.log(2 * math.pi) - log_z).exp_()
    return mu, sigma, alpha, log_z, ratio


def truncated_normal_mean(activation):
    """The mean of the normal distribution truncated to [0, inf): mu + sigma phi / Z. Takes the tensor before ReLU."""
    mu, sigma, alpha, _, ratio = _truncated(activation)
    far = alpha > 1e4  # there the two terms cancel, and the tail is exponential with rate alpha / sigma
    return torch.where(far, sigma / alpha.clamp(min=1), mu + sigma * ratio).clamp_(min=0).float()


def truncated_normal_standard_deviation(activation):
    """Its standard deviation: sigma sqrt(1 + alpha phi / Z - (phi / Z)^2). Takes the tensor before ReLU."""
    _, sigma, alpha, _, ratio = _truncated(activation)
    variance = torch.where(alpha > 1e4, alpha.clamp(min=1) ** -2.0, 1 + alpha * ratio - ratio**2)
    return (sigma * variance.clamp_(min=0).sqrt_()).float()


def truncated_normal_entropy(activation):
    """Its entropy in nats: ln(sqrt(2 pi e) sigma Z) + alpha phi / (2 Z). Takes the tensor before ReLU."""
    _, sigma, alpha, log_z, ratio = _truncated(activation)
    far = alpha > 1e4  # an exponential tail: 1 + ln(sigma / alpha)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + sigma.log() + log_z + alpha * ratio / 2
    return torch.where(far, 1 + (sigma / alpha.clamp(min=1)).log(), entropy).float()


def gamma_shape(spread):
    """The maximum-likelihood shape k of a gamma distribution with ln(mean) - mean(ln) = `spread` (FastCAM eq. 10-13).

    ln k - psi(k) = spread, by Newton's method from k0 = (3 - s + sqrt((s - 3)^2 + 24 s)) / (12 s), which is within
    1.5 % of it. Float64; infinite where spread is 0 (or below 1e-12, where rounding decides).
    """
    spread = torch.as_tensor(spread, dtype=torch.float64)
    safe = spread.clamp(min=1e-12)
    k = gamma_shape_start(safe)
    for _ in range(10):
        step = (k.log() - torch.special.digamma(k) - safe) / (1 / k - torch.special.polygamma(1, k))
        k = torch.where((k - step > 0) & (k < 1e5), k - step, k)  # above 1e5 the start is exact, the slope is rounding
    return torch.where(spread > 1e-12, k, math.inf)


def gamma_shape_start(spread):
    """The closed form k0 that `gamma_shape` starts from (FastCAM eq. 12)."""
    return (3 - spread + ((spread - 3) ** 2 + 24 * spread).sqrt()) / (12 * spread)


def gamma_scale(activation):
    """The scale theta = mu / k of the gamma distribution fitted by maximum likelihood (FastCAM eq. 10-13).

    The slow statistic that SMOE Scale stands for: their orders agree nearly, not exactly. 0 for constant columns.
    """
    values = _checked(activation).double() + EPSILON
    mu = values.mean(1)
    return (mu / gamma_shape(mu.log() - values.log().mean(1))).float()


STATISTICS = {
    "smoe_scale": smoe_scale,
    "standard_deviation": standard_deviation,
    "mean": mean,
    "maximum": maximum,
    "shannon_entropy": shannon_entropy,
    "log_normal_mean": log_normal_mean,
    "log_normal_entropy": log_normal_entropy,
    "truncated_normal_mean": truncated_normal_mean,
    "truncated_normal_standard_deviation": truncated_normal_standard_deviation,
    "truncated_normal_entropy": truncated_normal_entropy,
    "gamma_scale": gamma_scale,
}
PRE_ACTIVATION = frozenset(name for name in STATISTICS if name.startswith("truncated_normal"))
