"""Make the tables of docs/studies.md: how good an interval and a test of so many seeds are.

    python benchmarks/seeds.py

Samples are drawn from distributions whose mean is known. The first table counts how often the
interval of a report contains that mean. The second counts how often the test of equivalence says
yes where two settings are equally good. Both take a minute, and their numbers are the same every
time.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spt_jax.studies.statistics import LEVEL, bootstrap_interval, equivalence_p_value
from spt_jax.studies.tables import table

SEEDS = (3, 4, 5, 8, 10, 20)
MARGINS = (1.0, 1.5, 2.0, 3.0)
"""Margins, in deviations of the differences."""

SAMPLES = 2500

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def draw_failing(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw scores around 40, of which one in ten is around 12: runs that learned nothing."""
    return np.where(rng.random(shape) < 0.1, 12.0, 40.0) + rng.standard_normal(shape)


DISTRIBUTIONS: Mapping[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.standard_normal(shape), 0.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "one run in ten fails": (draw_failing, 0.1 * 12 + 0.9 * 40),
}
"""How to draw from each distribution, and its mean."""


def coverage(draw: Draw, mean: float, seeds: int) -> float:
    """Return how often the interval contains the mean, 0 to 1."""
    low, high = bootstrap_interval(draw(np.random.default_rng(0), (SAMPLES, seeds)))
    return float(np.mean((low <= mean) & (mean <= high)))


def power(margin: float, seeds: int) -> float:
    """Return how often equivalence is shown where the mean difference is 0, 0 to 1."""
    differences = np.random.default_rng(0).standard_normal((20 * SAMPLES, seeds))
    return float(np.mean(equivalence_p_value(differences, margin) < LEVEL))


def _row(name: str, values: Sequence[float]) -> list[str]:
    return [name, *(f"{value:.0%}" for value in values)]


def main() -> None:
    """Print both tables."""
    header = ("seeds", *map(str, SEEDS))
    rows = [
        _row(name, [coverage(draw, mean, seeds) for seeds in SEEDS])
        for name, (draw, mean) in DISTRIBUTIONS.items()
    ]
    print(table(header, rows))
    print(table(header, [_row(f"{m:g}", [power(m, seeds) for seeds in SEEDS]) for m in MARGINS]))


if __name__ == "__main__":
    main()
