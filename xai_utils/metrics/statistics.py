"""Means with intervals, paired comparisons, and the correction for many of them. NaN marks a missing score."""

import numpy as np
from scipy import stats

BATCH_ELEMENTS = 4_000_000  # resampled values held at once: 32 MB


def _vector(values, name):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}; give one value per image, (N,)")
    return values


def bootstrap_interval(values, *, confidence=0.95, resamples=2000, seed):
    """Percentile bootstrap interval (low, high) of the mean of `values` (N,), the same for the same seed.

    One value, or equal values, are their own interval. ValueError when empty or when NaN has not been dropped:
    how many images failed is a number of its own.
    """
    values = _vector(values, "values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a share between 0 and 1, e.g. 0.95")
    if len(values) == 0 or not np.isfinite(values).all():
        broken = int((~np.isfinite(values)).sum())
        raise ValueError(f"{len(values)} values, {broken} of them not finite; drop and count the failures first")
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // len(values)),
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summary(values, seed, *, confidence=0.95, resamples=2000):
    """dict mean, low, high, n, failures: NaN values are left out and counted; all three are NaN when none is left."""
    values = _vector(values, "values")
    counted = values[~np.isnan(values)]
    result = {"mean": np.nan, "low": np.nan, "high": np.nan, "n": len(counted), "failures": len(values) - len(counted)}
    if len(counted):
        low, high = bootstrap_interval(counted, confidence=confidence, resamples=resamples, seed=seed)
        result |= {"mean": float(counted.mean()), "low": low, "high": high}
    return result


def paired_test(a, b, *, confidence=0.95, resamples=2000, permutations=9999, seed):
    """Is a better than b on the same images? dict difference, low, high, p, n.

    `difference` is the mean of a - b with its bootstrap interval; `p` is two-sided, from flipping the signs of the
    differences (every flip when there are at most `permutations`, else so many random ones). Pairs with NaN are left
    out.
    """
    a, b = _vector(a, "a"), _vector(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a has {len(a)} values and b {len(b)}; a paired test needs the same images in the same order")
    kept = ~np.isnan(a - b)
    options = {"confidence": confidence, "resamples": resamples, "permutations": permutations, "seed": seed}
    return paired_tests(a[None, kept], b[kept], **options)[0]


def paired_tests(rows, b, *, confidence=0.95, resamples=2000, permutations=9999, seed):
    """`paired_test` of each of several `rows` (M, N) against b (N,), without NaN: a list. All share their flips."""
    differences = np.asarray(rows, dtype=np.float64) - _vector(b, "b")  # (M, N)
    if not differences.shape[1]:
        return [{"difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "n": 0} for _ in differences]
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    intervals = [bootstrap_interval(values, **options) for values in differences]
    p_values = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, BATCH_ELEMENTS // differences.size),
        axis=-1,
        random_state=np.random.default_rng(seed),
    ).pvalue
    return [
        {"difference": float(values.mean()), "low": low, "high": high, "p": float(p), "n": len(values)}
        for values, (low, high), p in zip(differences, intervals, p_values, strict=True)
    ]


def holm(p_values):
    """Holm's step-down adjustment (N,) in the given order: adjusted p below 0.05 keeps all false alarms below 5 %.

    adjusted_(i) = max_{j <= i} min(1, (N - j + 1) p_(j)),   p_(1) <= p_(2) <= …
    """
    p_values = _vector(p_values, "p_values")
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p_values {p_values.tolist()} must lie in 0..1; drop the tests that had no images")
    order = np.argsort(p_values, kind="stable")
    steps = np.minimum(1, (len(p_values) - np.arange(len(p_values))) * p_values[order])
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def decide(low, high) -> str:
    """ "holds", "fails" or "undecided", for the interval of a difference that is claimed to be positive."""
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def compared(one, other, *, sign, digits, seed, **intervals) -> tuple[str, str]:
    """The verdict on "`one` is above `other` on the same images" (`sign` -1: below), and the difference as text.

    `intervals`: confidence and resamples of `paired_test`.
    """
    test = paired_test(one, other, seed=seed, **intervals)
    verdict = decide(*sorted((sign * test["low"], sign * test["high"])))
    return verdict, "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(
        *(test[k] for k in ("difference", "low", "high")), d=digits
    )
