"""Statistics of a study equal scipy's, and hold what they promise on known distributions.

The simulations draw thousands of samples at once from distributions whose mean is known.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from spt_jax.studies.statistics import (
    COVERAGE,
    FEW,
    LEVEL,
    bootstrap_interval,
    equivalence_p_value,
    summarize,
)

ROOT = Path(__file__).parents[1]
SCORES = np.array([39.1, 40.4, 41.0, 38.2, 44.9])


def normal_samples(count, n, seed=0):
    return np.random.default_rng(seed).standard_normal((count, n))


def test_mean_and_deviation_are_those_of_the_sample():
    summary = summarize(SCORES.tolist())
    assert (summary.n, summary.mean) == (5, pytest.approx(40.72))
    assert summary.deviation == pytest.approx(stats.sem(SCORES) * 5**0.5)
    assert summary.low is not None and summary.high is not None
    assert 38.2 <= summary.low < 40.72 < summary.high <= 44.9


def test_a_single_value_has_neither_deviation_nor_interval():
    assert summarize([40.5]) == (1, 40.5, None, None, None)


def test_equal_values_have_an_interval_of_no_length():
    assert summarize([50.0, 50.0, 50.0])[1:] == (50, 0, 50, 50)


def test_the_same_values_have_the_same_interval():
    assert summarize(SCORES) == summarize(SCORES.copy())


@pytest.mark.parametrize("n", [2, 5, 12, 40])
def test_the_interval_is_scipys_percentile_bootstrap_at_the_expanded_confidence(n):
    values = normal_samples(1, n, seed=n)[0] ** 2  # skewed
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    expected = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=1 - 2 * tail,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    tolerance = 0.1 * values.std() / np.sqrt(n)
    assert bootstrap_interval(values) == pytest.approx(tuple(expected), abs=tolerance)


def test_the_interval_of_many_values_is_students():
    values = normal_samples(1, 400)[0]
    student = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert bootstrap_interval(values) == pytest.approx(student, abs=0.006)


def test_many_samples_have_the_intervals_that_each_has_alone():
    samples = normal_samples(6, 5).reshape(2, 3, 5)
    low, high = bootstrap_interval(samples)
    assert low.shape == high.shape == (2, 3)
    alone = bootstrap_interval(samples[1, 2])
    np.testing.assert_allclose((low[1, 2], high[1, 2]), alone, rtol=1e-12)


@pytest.mark.parametrize(("n", "expected"), COVERAGE.items())
def test_the_interval_of_normal_values_contains_their_mean_as_often_as_the_report_says(n, expected):
    low, high = bootstrap_interval(normal_samples(2500, n))
    covered = np.mean((low <= 0) & (high >= 0))
    error = np.sqrt(expected * (1 - expected) / 2500)  # of the simulation
    assert covered == pytest.approx(expected, abs=3 * error)


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda rng, shape: rng.random(shape), 0.5),
        (lambda rng, shape: rng.exponential(size=shape), 1.0),
        (lambda rng, shape: -rng.gamma(2, size=shape), -2.0),
        (lambda rng, shape: rng.standard_t(3, size=shape), 0.0),
    ],
    ids=["uniform", "exponential", "negative gamma", "t with 3 degrees"],
)
@pytest.mark.parametrize(("n", "least"), [(5, 0.85), (10, 0.9), (30, 0.925)])
def test_the_interval_covers_other_distributions_nearly_as_often(draw, mean, n, least):
    samples = draw(np.random.default_rng(0), (1500, n))
    low, high = bootstrap_interval(samples)
    covered = np.mean((low <= mean) & (mean <= high))
    assert least < covered < 0.97
    # The usual percentile interval, which this one replaces, covers less.
    student = stats.t.ppf(0.975, n - 1) * stats.sem(samples, axis=-1)
    usual = 1.96 * samples.std(-1) / np.sqrt(n)
    assert np.median(usual) < np.median(high - low) / 2 < 1.02 * np.median(student)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_scipys_intervals_of_five_values_cover_less(method):
    samples = normal_samples(400, 5)
    options = dict(axis=-1, n_resamples=1000, vectorized=True, method=method)
    rng = np.random.default_rng(0)
    theirs = stats.bootstrap((samples,), np.mean, random_state=rng, **options)
    low, high = theirs.confidence_interval
    ours_low, ours_high = bootstrap_interval(samples)
    covered = np.mean((low <= 0) & (high >= 0))
    assert covered < 0.87 < np.mean((ours_low <= 0) & (ours_high >= 0))


def test_few_seeds_are_those_whose_coverage_is_clearly_too_low():
    assert {n for n, covered in COVERAGE.items() if covered < 0.9} == {2, 3, 4}
    assert FEW == 5


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_equivalence_is_scipys_two_one_sided_t_tests(margin):
    for shift in (-2.0, -0.4, 0.0, 0.7):
        differences = normal_samples(1, 6, seed=3)[0] + shift
        p = max(
            stats.ttest_1samp(differences, -margin, alternative="greater").pvalue,
            stats.ttest_1samp(differences, margin, alternative="less").pvalue,
        )
        assert equivalence_p_value(differences, margin) == pytest.approx(p, rel=1e-9)


def test_equivalence_of_pairs_is_scipys_paired_test():
    ours, theirs = SCORES, SCORES[::-1] + 0.2
    p = max(
        stats.ttest_rel(ours, theirs - 1.5, alternative="greater").pvalue,
        stats.ttest_rel(ours, theirs + 1.5, alternative="less").pvalue,
    )
    assert equivalence_p_value(ours - theirs, 1.5) == pytest.approx(p, rel=1e-9)


def test_equal_differences_are_equivalent_inside_the_margin_alone():
    differences = np.array([[0.5] * 4, [1.0] * 4, [-1.5] * 4, [0.0] * 4])
    assert equivalence_p_value(differences, 1.0).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("n", [3, 5, 10])
def test_at_the_margin_equivalence_is_claimed_as_rarely_as_its_level_says(n):
    """The size of the test: the mean lies on the margin, so every claim is an error."""
    samples = normal_samples(20_000, n)
    for margin in (5.0, -5.0):
        claimed = np.mean(equivalence_p_value(samples + margin, 5.0) < LEVEL)
        assert claimed == pytest.approx(LEVEL, abs=0.005)
    # A margin of half a deviation can hardly ever be shown, and never too often.
    assert np.mean(equivalence_p_value(samples + 0.5, 0.5) < LEVEL) < LEVEL + 0.005


def test_equal_cells_are_found_equivalent_where_the_margin_is_wide_enough():
    p = equivalence_p_value(normal_samples(5000, 5), 3.0)
    assert np.mean(p < LEVEL) > 0.95
    narrow = equivalence_p_value(normal_samples(5000, 5), 0.5)
    assert np.mean(narrow < LEVEL) < 0.2


@pytest.mark.slow
def test_the_tables_of_the_documentation_are_those_of_the_benchmark():
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "benchmarks" / "seeds.py")
    assert spec is not None and spec.loader is not None
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    lines = (ROOT / "docs" / "studies.md").read_text().splitlines()
    rows = {}
    for line in lines:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[name] = cells
    assert rows["seeds"] == [str(n) for n in seeds.SEEDS]
    for margin in seeds.MARGINS:
        found = [f"{seeds.power(margin, n):.0%}" for n in seeds.SEEDS]
        assert rows[f"{margin:g}"] == found
    for name, distribution in seeds.DISTRIBUTIONS.items():
        assert rows[name][0] == f"{seeds.coverage(*distribution, seeds.SEEDS[0]):.0%}"
