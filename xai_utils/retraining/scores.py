"""What ROAR and KAR accuracies say of a statistic or a method (FastCAM §2.4; arrays whose last axis is the layers).

Accuracies are fractions, not percent. KAR keeps the most salient positions, ROAR only the least salient ones; the
random rows are those of masks of the same size at random positions.
"""

import numpy as np

FLOOR = 1e-3  # the lowest accuracy that the information score tells apart from none: its logarithm needs one
QUARTILES = (0.25, 0.5, 0.75)


def _accuracies(*arrays):
    arrays = np.broadcast_arrays(*(np.asarray(array, dtype=np.float64) for array in arrays))
    for array in arrays:
        if not ((array >= 0) & (array <= 1)).all():  # "not": NaN is refused too
            outside = array[~((array >= 0) & (array <= 1))].flat[0]
            raise ValueError(f"an accuracy is {outside:g}; give fractions in [0, 1] (percent: divide by 100)")
    return arrays


def difference_terms(kar, roar, random_kar, random_roar):
    """Per layer (KAR - random KAR) + (random ROAR - ROAR), the terms of the difference score (eq. 8); in [-2, 2]."""
    kar, roar, random_kar, random_roar = _accuracies(kar, roar, random_kar, random_roar)
    return (kar - random_kar) + (random_roar - roar)


def information_terms(kar, roar, random_kar, random_roar):
    """Per layer Z^K ln(K / Z^K) + R ln(Z^R / R), the terms of the information score (eq. 9, natural logarithm).

    K, R are the method's KAR and ROAR, Z^K, Z^R those of random masks. The weights are the random KAR and the method's
    own ROAR: only so do the paper's Tables 1 and 7 follow from its Table 4. Accuracies below 0.001 count as 0.001.
    """
    kar, roar, random_kar, random_roar = (
        np.maximum(array, FLOOR) for array in _accuracies(kar, roar, random_kar, random_roar)
    )
    return random_kar * np.log(kar / random_kar) + roar * np.log(random_roar / roar)


def difference_score(kar, roar, random_kar, random_roar):
    """The sum of `difference_terms` over the layers (eq. 8); 0 for random masks, higher is better."""
    return difference_terms(kar, roar, random_kar, random_roar).sum(-1)


def information_score(kar, roar, random_kar, random_roar):
    """The sum of `information_terms` over the layers (eq. 9); 0 for random masks, higher is better."""
    return information_terms(kar, roar, random_kar, random_roar).sum(-1)


def _ranks(terms):
    """1 + the number of methods that are strictly better, per condition: ties share the better rank."""
    terms = np.asarray(terms, dtype=np.float64)
    if terms.ndim != 2:
        raise ValueError(f"terms have shape {terms.shape}; give (methods, conditions)")
    return terms, 1 + (terms[None] > terms[:, None]).sum(1)  # [method, rival, condition]


def quartile_ranking(terms):
    """Share of the conditions in which a method is among the best 25, 50 and 75 % (Table 7): (methods, 3).

    terms (methods, conditions), a condition being a layer of a data set. Of nine methods these are ranks up to 3, 5
    and 7.
    """
    terms, ranks = _ranks(terms)
    return np.stack([(ranks <= np.ceil(share * len(terms))).mean(1) for share in QUARTILES], 1)


def failure_cases(terms):
    """The paper's countable failures, per method: conditions in the bottom quartile, and with a term of 0 or less.

    terms (methods, conditions) -> two integer arrays (methods,).
    """
    terms, ranks = _ranks(terms)
    return (ranks > np.ceil(QUARTILES[-1] * len(terms))).sum(1), (terms <= 0).sum(1)
