"""Means with intervals, paired comparisons, and what is concluded from several of them. NaN marks a missing score."""

import numpy as np
from scipy import stats

BATCH_ELEMENTS = 1_000_000  # resampled values held at once: 8 MB, and as much twice more while scipy draws them
SIGNIFICANT = 0.05
SAME = 1e-9  # relative differences of sizes that are rounding
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"


def _vector(values, name):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}; give one value per image, (N,)")
    return values


def _by_category(values, categories):
    """The values (N,) of each category, a list of arrays; all in one without `categories` (N,)."""
    if categories is None:
        return [values]
    categories = np.asarray(categories)
    if categories.shape != values.shape:
        raise ValueError(f"{len(values)} values and {len(categories)} categories; give one category per image")
    return [values[categories == name] for name in np.unique(categories)]


def _mean_of_means(*samples, axis=-1):
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)


def bootstrap_interval(values, *, categories=None, confidence=0.95, resamples=2000, seed):
    """Percentile bootstrap interval (low, high) of the mean of `values` (N,), the same for the same seed.

    With `categories` (N,): of the mean over categories of each one's mean, images drawn anew within their category, so
    that every one stays in it (a category of a single image adds no width).

    One value, or equal values, are their own interval: it tells of these images alone, and nothing is decided by it.
    ValueError when empty or when NaN has not been dropped: how many images failed is a number of its own.
    """
    values = _vector(values, "values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a share between 0 and 1, e.g. 0.95")
    if len(values) == 0 or not np.isfinite(values).all():
        broken = int((~np.isfinite(values)).sum())
        raise ValueError(f"{len(values)} values, {broken} of them not finite; drop and count the failures first")
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(  # which wants two values of each sample; of twice the same one any draw is that one
        [np.repeat(part, 2) if len(part) == 1 else part for part in _by_category(values, categories)],
        _mean_of_means,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // len(values)),
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summary(values, seed, *, hit=None, categories=None, confidence=0.95, resamples=2000):
    """dict mean, low, high, n, failures: NaN values are left out and counted; all three are NaN when none is left.

    With `hit` the values are 0 or that, and the interval is that of Clopper and Pearson: exact, also of 0 of 8 hits.
    With `categories` (N,) the mean is over theirs, and the interval is a bootstrap's (`bootstrap_interval`).
    """
    values = _vector(values, "values")
    kept = ~np.isnan(values)
    counted = values[kept]
    result = {"mean": np.nan, "low": np.nan, "high": np.nan, "n": len(counted), "failures": len(values) - len(counted)}
    if not len(counted):
        return result
    if hit is None or categories is not None:
        categories = None if categories is None else np.asarray(categories)[kept]
        options = {"confidence": confidence, "resamples": resamples, "seed": seed}
        low, high = bootstrap_interval(counted, categories=categories, **options)
        return result | {"mean": float(_mean_of_means(*_by_category(counted, categories))), "low": low, "high": high}
    if strange := sorted(set(counted) - {0, hit}):
        raise ValueError(f"hits are 0 or {hit:g}, and {strange[0]:g} is among the values; leave `hit` out")
    interval = stats.binomtest(int((counted == hit).sum()), len(counted)).proportion_ci(confidence)
    return result | {
        "mean": float(counted.mean()),
        "low": float(hit * interval.low),
        "high": float(hit * interval.high),
    }
    return result


def paired_test(a, b, *, confidence=0.95, resamples=2000, permutations=9999, seed):
    """Is a better than b on the same images? dict difference, low, high, p, n. `a`, `b`: (N,), or of R runs (R, N).

    `difference` is the mean of a - b with its bootstrap interval; `p` is two-sided, from flipping the signs of the
    differences (every flip when there are at most `permutations`, else so many random ones). Images with NaN are left
    out. Differences of one size are tested exactly (`_exact`), runs as `_over_runs` says.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"a has {a.shape[-1]} values and b {b.shape[-1]}; a paired test needs the same images in the same order"
        )
    differences = np.atleast_2d(a - b)
    differences = differences[:, ~np.isnan(differences).any(0)]
    options = {"confidence": confidence, "resamples": resamples, "permutations": permutations, "seed": seed}
    if (differences == differences[0]).all():  # one run, or several that agree on every image
        return paired_tests(differences[:1], np.zeros(differences.shape[1]), **options)[0]
    return _over_runs(differences, **options)


def paired_tests(rows, b, *, confidence=0.95, resamples=2000, permutations=9999, seed):
    """`paired_test` of each of several `rows` (M, N) against b (N,), without NaN: a list. All share their flips."""
    differences = np.asarray(rows, dtype=np.float64) - _vector(b, "b")  # (M, N)
    if not differences.shape[1]:
        return [{"difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "n": 0} for _ in differences]
    p_values = [_exact(values) for values in differences]
    flipped = [place for place, p in enumerate(p_values) if p is None]
    if flipped:
        for place, p in zip(flipped, _flipped(differences[flipped], permutations, seed), strict=True):
            p_values[place] = float(p)
    tests, options = [], {"confidence": confidence, "resamples": resamples, "seed": seed}
    for values, p in zip(differences, p_values, strict=True):
        low, high = _interval(values, **options)
        tests.append({"difference": float(values.mean()), "low": low, "high": high, "p": p, "n": len(values)})
    return tests


def _flipped(differences, permutations, seed):
    """p of each row of differences (M, N), by flipping signs: (M,)."""
    return stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, BATCH_ELEMENTS // differences.size),
        axis=-1,
        random_state=np.random.default_rng(seed),
    ).pvalue


def _exact(differences):
    """McNemar's exact p of differences that have one size where they are not 0, as those of hits have; None of others.

    It is what all flips give: the signs are binomial.
    """
    sizes = np.abs(differences[differences != 0])
    if not len(sizes):
        return 1.0
    if np.ptp(sizes) > SAME * sizes.max():
        return None
    return float(stats.binomtest(int((differences > 0).sum()), len(sizes)).pvalue)


def _interval(differences, confidence, **options):
    """Of the mean of differences: by bootstrap, but of N equal ones c, which it gives no width: c (2 s - 1) and c.

    There s is the least share of images with that sign that N of N are compatible with (Clopper and Pearson).
    """
    size = float(np.abs(differences).max())
    if not size or np.ptp(differences) > SAME * size:
        return bootstrap_interval(differences, confidence=confidence, **options)
    least = stats.binomtest(len(differences), len(differences)).proportion_ci(confidence).low
    low, high = sorted((float(differences[0]) * (2 * least - 1), float(differences[0])))
    return low, high


def _over_runs(differences, *, confidence, resamples, permutations, seed):
    """`paired_test` for differences (R, N) of R runs on the same images: would another training say the same?

    The interval resamples runs and, independently, images. Of few runs such an interval is too narrow (with three, one
    of four pairs of equal methods lies on one side of 0), and flips of three signs never reach p = 0.05. So p is the
    larger of two: from flipping the signs of the images' means over the runs, and from Student's t with the variances
    of both means added, A = var(run means) / R, B = var(image means) / N (what is neither's counts twice), and
    Satterthwaite's degrees of freedom, (A + B)² / (A² / (R - 1) + B² / (N - 1)).
    """
    (runs, images), generator, means = differences.shape, np.random.default_rng(seed), []
    batch = max(1, BATCH_ELEMENTS // images)
    for count in [batch] * (resamples // batch) + [resamples % batch]:
        of_runs = generator.multinomial(runs, np.full(runs, 1 / runs), size=count) / runs
        of_images = generator.multinomial(images, np.full(images, 1 / images), size=count) / images
        means.append(((of_runs @ differences) * of_images).sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    by_run, by_image, mean = differences.mean(1), differences.mean(0), float(differences.mean())
    p = float(_flipped(by_image[None], permutations, seed)[0])
    if images > 1:
        of_runs, of_images = by_run.var(ddof=1) / runs, by_image.var(ddof=1) / images
        variance = of_runs + of_images
        freedom = variance**2 / (of_runs**2 / (runs - 1) + of_images**2 / (images - 1)) if variance else 1
        p = max(p, float(2 * stats.t.sf(abs(mean) / np.sqrt(variance), freedom)) if variance else 0)
    return {"difference": mean, "low": float(low), "high": float(high), "p": p, "n": images}


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


def decide(test) -> str:
    """What one test says of "the difference is positive": holds or fails where p and the interval agree, or undecided.

    `test`: a dict as of `paired_test`, of which difference, low, high and p are read.
    """
    if not test["p"] < SIGNIFICANT:
        return UNDECIDED
    return HOLDS if test["low"] > 0 else FAILS if test["high"] < 0 else UNDECIDED


def decide_all(tests) -> tuple[str, float]:
    """What several tests say of "each of these differences is positive", and p.

    It holds where each holds by itself: an intersection-union test, which needs no correction, p is the largest. It
    fails where one fails after Holm's correction for their number, p is that one's.
    """
    corrected = holm([test["p"] for test in tests])
    against = [p for p, test in zip(corrected, tests, strict=True) if test["difference"] < 0]
    support = max(test["p"] if test["difference"] > 0 else 1.0 for test in tests)
    p = min([support, *map(float, against)])
    if all(decide(test) == HOLDS for test in tests):
        return HOLDS, p
    fails = any(decide(test | {"p": each}) == FAILS for each, test in zip(corrected, tests, strict=True))
    return FAILS if fails else UNDECIDED, p
