"""Statistics over the seeds of a study: mean, deviation, interval, and a test of equivalence.

The interval is the expanded percentile bootstrap (Hesterberg 2015, "What Teachers Should Know about
the Bootstrap"). The usual percentile interval is too short for few values: a sample of n values
varies less than what it was drawn from, by the factor sqrt((n - 1) / n), and its deviation is only
an estimate. So the percentiles are taken further out, by the amount that makes the interval as long
as Student's for normally distributed values.

The bootstrap never leaves the range of its values. Therefore no such interval of three or four
values can contain the mean as often as it should. `FEW` is the number below which a report says so.

Functions work on the last axis of an array and on all leading axes at once, `[..., n]`.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtr, stdtrit

CONFIDENCE = 0.95
"""How often the interval should contain the mean."""

LEVEL = 0.05
"""Equivalence is shown where its p-value is below this level."""

FEW = 5
"""With fewer seeds an interval contains the mean clearly less often than `CONFIDENCE`."""

COVERAGE = {2: 0.50, 3: 0.75, 4: 0.87, 5: 0.92, 10: 0.95}
"""How often an interval of so many normally distributed values contains their mean."""

_RESAMPLES = 10_000


class Summary(NamedTuple):
    """Some values in numbers.

    Args:
        n: Number of values.
        mean: Their mean.
        deviation: Sample deviation (divided by n - 1), or None for a single value.
        low: Lower end of the interval of the mean, or None for a single value.
        high: Upper end.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def summarize(values: ArrayLike) -> Summary:
    """Return mean, deviation and interval of one or more values."""
    array = np.asarray(values, float)
    if len(array) == 1:
        return Summary(1, float(array[0]), None, None, None)
    low, high = bootstrap_interval(array)
    return Summary(
        len(array), float(array.mean()), float(array.std(ddof=1)), float(low), float(high)
    )


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interval that contains the mean of the distribution of some values.

    The draws are the same in every call, so the same values give the same interval.

    Args:
        values: float [..., n], n of 2 or more.

    Returns:
        Lower and upper end, float [...] each.
    """
    n = values.shape[-1]
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - CONFIDENCE) / 2))
    mean = values.mean(-1, keepdims=True)
    shifts = (values - mean) @ _resamples(n).T
    low, high = mean[..., 0] + np.quantile(shifts, [tail, 1 - tail], axis=-1)
    return low, high


def equivalence_p_value(differences: np.ndarray, margin: float) -> np.ndarray:
    """Test whether the mean of paired differences lies inside (-margin, margin).

    These are two one-sided t-tests (TOST, Schuirmann 1987): one against a mean of -margin or less,
    one against a mean of margin or more. Equivalence is shown at a level if both reject there, so
    the p-value is the larger one of the two.

    Args:
        differences: float [..., n], n of 2 or more, one for each pair.
        margin: Largest difference that does not matter, more than 0.

    Returns:
        p-values, float [...]. Where all differences are equal it is 0 inside the margin and 1
        elsewhere.
    """
    n = differences.shape[-1]
    mean = differences.mean(-1)
    error = differences.std(-1, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stdtr(n - 1, (np.abs(mean) - margin) / error)
    return np.where(error == 0, np.abs(mean) >= margin, p)


@functools.cache
def _resamples(n: int) -> np.ndarray:
    """Return the weight of each of n values in each resample, float64 [resamples, n]."""
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    return draws / n
