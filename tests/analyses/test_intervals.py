"""Run with: pytest tests/analyses/test_intervals.py"""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from analyses import intervals


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 7), (30, 100), (1, 1), (4990, 5000)])
def test_wilson_is_scipy_s(hits: int, n: int, level: float) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    assert np.allclose(intervals.wilson(hits, n, level), expected, atol=1e-12)
    assert np.allclose(intervals.of_ratio(hits / n, n, 100), 100 * np.array(intervals.wilson(hits, n)))
    assert np.allclose(intervals.of_ratio(hits / n, n), intervals.wilson(hits, n))
    short = np.array([hits / n], np.float32)
    assert np.array_equal(intervals.of_ratio(short, n), intervals.wilson(short.astype(np.float64) * n, n))


def test_wilson_of_nothing_is_everything_and_all_right_is_not_certain() -> None:
    assert np.allclose(intervals.wilson([0, 10], [0, 10]), [[0, 0.722], [1, 1]], atol=1e-3)


def test_wilson_of_half_a_hit_is_wilson_s_formula_and_no_interval_leaves_0_to_1() -> None:
    """A tie counts as a part of a hit."""
    z = stats.norm.ppf(0.975)
    half = z * (0.25 + z**2 / 4) ** 0.5 / (1 + z**2)
    assert np.allclose(intervals.wilson(0.5, 1), [0.5 - half, 0.5 + half])
    n = np.arange(2000)
    assert intervals.wilson(n, n)[1].max() == 1 and intervals.wilson(0 * n, n)[0].min() == 0


def test_a_bootstrap_that_has_nothing_to_vary_leaves_open_what_wilson_does_and_shares_stay_within_0_and_1() -> None:
    open_by = 1 - stats.binomtest(40, 40).proportion_ci(method="wilson").low
    low, high = intervals.unless_constant([0.2, 0.5, 0], [0.4, 0.5, 0], [0.3, 0.5, 0], 40)
    assert np.allclose(low, [0.2, 0.5 - open_by, 0]) and np.allclose(high, [0.4, 0.5 + open_by, open_by])


def test_averages_of_short_floats_are_summed_in_long_ones() -> None:
    short, labels = np.random.default_rng(0).random((3000, 2)).astype(np.float32), np.arange(3000) % 7
    assert np.array_equal(intervals.averages(short, labels), intervals.averages(short.astype(np.float64), labels))


def test_averages_equal_loops() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.random((30, 3)), rng.integers(0, 4, 30)
    values[5, 0] = np.nan
    keep = np.arange(30) != 5
    micro, macro = intervals.averages(values, labels)
    assert micro[0] == pytest.approx(values[keep, 0].mean()) and micro[2] == pytest.approx(values[:, 2].mean())
    assert macro[0] == pytest.approx(np.mean([values[keep & (labels == c), 0].mean() for c in range(4)]))
    assert np.isnan(intervals.averages(np.full((3, 1), np.nan), np.zeros(3))).all()


# Bootstrap


def slow(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    """Micro and macro mean of one resample: photographs as often as drawn, item by item."""
    taken = [i for photo, times in enumerate(drawn) for i in np.flatnonzero(groups == photo) for _ in range(times)]
    by_class = {}
    for i in taken:
        if not np.isnan(values[i]):
            by_class.setdefault(labels[i], []).append(values[i])
    return np.mean(np.concatenate([*by_class.values()])), np.mean([np.mean(of_class) for of_class in by_class.values()])


def test_bootstrap_equals_one_that_draws_photographs_one_by_one() -> None:
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 12, 40), rng.integers(0, 3, 40)
    groups[:12] = np.arange(12)
    values = rng.random((40, 2))
    values[rng.random(40) < 0.2, 0] = np.nan
    counts = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=200)
    low, high = intervals.bootstrap(values, labels, groups, resamples=200, seed=7)
    for cell in range(2):
        expected = [slow(values[:, cell], labels, groups, drawn) for drawn in counts]
        assert np.allclose([low[:, cell], high[:, cell]], np.quantile(expected, [0.025, 0.975], axis=0), atol=1e-5)


def test_photographs_of_one_class_are_drawn_within_it() -> None:
    """One photograph a class: it is drawn whatever happens, and the macro mean cannot move; the micro mean does."""
    low, high = intervals.bootstrap(np.array([[1.0], [2.0], [6.0]]), np.arange(3), np.array([7, 8, 9]))
    assert low[1, 0] == high[1, 0] == 3 and low[0, 0] < 3 < high[0, 0]


def test_items_of_one_photograph_are_not_independent() -> None:
    """Every item twice is as sure as once where it is the same photograph, and surer by sqrt(2) where it is not."""
    rng = np.random.default_rng(1)
    values, labels = rng.random((300, 1)), np.arange(300) % 3
    twice, once = np.repeat(values, 2, 0), np.arange(300)
    low, high = intervals.bootstrap(values, labels)
    together = intervals.bootstrap(twice, np.repeat(labels, 2), np.repeat(once, 2))
    assert np.allclose(together, (low, high), atol=1e-5)
    apart = np.subtract(*intervals.bootstrap(twice, np.repeat(labels, 2))[::-1])
    assert np.allclose((high - low) / apart, 2**0.5, rtol=0.15)


def test_bootstrap_interval_covers_as_it_says() -> None:
    """95 % intervals of a coin of 0.3 cover 0.3 in 95 % of 200 cells, within the sampling error of that count."""
    hit = (np.random.default_rng(1).random((400, 200)) < 0.3).astype(np.float32)
    low, high = intervals.bootstrap(hit, np.arange(400) % 2)
    for average in (0, 1):
        assert 0.89 <= ((low[average] <= 0.3) & (high[average] >= 0.3)).mean() <= 0.99


def test_bootstrap_keeps_the_shape_of_its_cells_and_leaves_nan_out() -> None:
    values = np.random.default_rng(2).random((20, 2, 3))
    low, high = intervals.bootstrap(values, np.zeros(20, int), resamples=50)
    assert low.shape == high.shape == (2, 2, 3) and (low < high).all()
    values[:, 0, 0] = np.nan
    low, _ = intervals.bootstrap(values, np.zeros(20, int), resamples=50)
    assert np.isnan(low[:, 0, 0]).all() and not np.isnan(low[:, 1]).any()


# The best of many


@pytest.mark.parametrize(("n", "cells", "mean", "high"), [(30, 36, 0.088, 0.133), (100, 144, 0.065, 0.080)])
def test_best_of_many_has_its_known_values(n: int, cells: int, mean: float, high: float) -> None:
    assert intervals.best_of(np.full(n, 0.02), cells) == pytest.approx((mean, high), abs=5e-4)


def test_best_of_many_is_exact_for_one_and_two_images() -> None:
    assert intervals.best_of([0.3], 5) == pytest.approx((1 - 0.7**5, 1.0))
    none, at_most_one = (0.7 * 0.8) ** 4, (1 - 0.3 * 0.2) ** 4
    assert intervals.best_of([0.3, 0.2], 4) == pytest.approx(((1 - none + 1 - at_most_one) / 2, 1.0))
    assert intervals.best_of([0.3, np.nan], 5) == intervals.best_of([0.3], 5)
    assert intervals.best_of([1.0, 1.0], 3) == (1, 1) and intervals.best_of([0.0], 3) == (0, 0)
    assert np.isnan(intervals.best_of([np.nan], 3)).all()


def test_the_best_of_many_reaches_its_level_with_at_least_that_probability() -> None:
    assert intervals.best_of([0.5], 1, level=0.5) == (0.5, 0.0)
    assert intervals.best_of([0.5], 1, level=0.5 + 1e-9) == (0.5, 1.0)


def test_best_of_many_equals_a_simulation_of_unequal_coins() -> None:
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.05, 0.6, 200)
    best = (rng.random((400, 36, 200)) < chance).mean(2).max(1)
    mean, high = intervals.best_of(chance, 36)
    assert mean == pytest.approx(best.mean(), abs=4 * best.std() / 20)
    assert abs((best > high).mean() - 0.05) < 0.05


def test_poisson_binomial_is_scipy_s_and_that_of_all_outcomes() -> None:
    chance = np.random.default_rng(3).random(6)
    outcomes = np.array(list(itertools.product([0, 1], repeat=6)))
    each = np.prod(np.where(outcomes, chance, 1 - chance), 1)
    assert np.allclose(intervals.poisson_binomial(chance), np.bincount(outcomes.sum(1), each))
    many = np.random.default_rng(4).random(301)
    assert np.allclose(intervals.poisson_binomial(many), stats.poisson_binom(many).pmf(np.arange(302)), atol=1e-12)


def test_few_trials_are_exact_in_their_tails_whatever_type_they_have() -> None:
    few = intervals.poisson_binomial(np.full(20, 0.01))
    assert np.allclose(few, stats.binom.pmf(np.arange(21), 20, 0.01), rtol=1e-12, atol=0)
    short = np.full(20, 0.01, np.float32)
    assert np.array_equal(intervals.poisson_binomial(short), intervals.poisson_binomial(short.astype(np.float64)))


def test_the_best_of_very_many_is_not_moved_by_rounding() -> None:
    expected = -np.expm1(144 * stats.binom.logcdf(np.arange(3000), 3000, 1e-4)).sum() / 3000
    assert intervals.best_of(np.full(3000, 1e-4), 144)[0] == pytest.approx(expected, rel=1e-9)


def test_a_poisson_binomial_of_no_trials_is_no_hit_and_of_many_has_no_negative_chance() -> None:
    assert intervals.poisson_binomial([]).tolist() == [1]
    many = intervals.poisson_binomial(np.full(3000, 0.5))
    assert many.min() >= 0 and np.allclose(many, stats.binom.pmf(np.arange(3001), 3000, 0.5), atol=1e-12)


def test_best_of_many_is_fast_on_a_whole_validation_set() -> None:
    start = time.process_time()
    mean, _ = intervals.best_of(np.full(12_419, 0.2), 144)
    assert time.process_time() - start < 1
    spread = stats.norm(0.2, (0.2 * 0.8 / 12_419) ** 0.5)
    assert mean == pytest.approx(spread.ppf(0.995), abs=1e-3)


def test_a_ratio_of_sums_and_its_interval_against_plain_loops() -> None:
    rng = np.random.default_rng(0)
    values, scale, groups = rng.normal(2, 1, (30, 2)), rng.uniform(1, 3, 30), np.repeat(np.arange(15), 2)
    values[:4, 1] = np.nan
    ratio, low, high = intervals.ratio_of_sums(values, scale, groups, resamples=4000)
    for cell in (0, 1):
        there = ~np.isnan(values[:, cell])
        assert ratio[cell] == pytest.approx(values[there, cell].sum() / scale[there].sum())
        drawn = []
        for _ in range(4000):
            items = [i for g in rng.integers(0, 15, 15) for i in (2 * g, 2 * g + 1) if there[i]]
            drawn.append(values[items, cell].sum() / scale[items].sum())
        assert np.allclose([low[cell], high[cell]], np.quantile(drawn, [0.025, 0.975]), atol=0.04)
    every_draw = intervals.draws(groups, np.random.default_rng(5), 50)
    ratio, low, high = intervals.ratio_of_sums(values, scale / 100, groups, resamples=50, level=0.8, seed=5)
    drawn = [(n * values[:, 0]).sum() / (n * scale / 100).sum() for n in every_draw]
    assert np.allclose([low[0], high[0]], np.quantile(drawn, [0.1, 0.9]), rtol=1e-9)
    nothing = intervals.ratio_of_sums(np.full((3, 1), np.nan), np.ones(3), np.arange(3))
    assert np.isnan(nothing).all()


def test_a_ratio_that_one_photograph_alone_has_is_sure_whenever_it_is_drawn() -> None:
    """Cell i is there for photograph i alone, so that every resample lacks some of the cells."""
    values = np.where(np.eye(12, dtype=bool), np.arange(1, 13.0), np.nan).reshape(12, 4, 3)
    for bound in intervals.ratio_of_sums(values, np.full(12, 2.0), np.arange(12)):
        assert np.allclose(bound, np.arange(1, 13).reshape(4, 3) / 2)


def test_intervals_are_those_of_a_thousand_draws_of_seed_0() -> None:
    values, n = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40)
    said = dict(resamples=1000, level=0.95, seed=0)
    for function, *about in ((intervals.ratio_of_sums, np.ones(40), n), (intervals.bootstrap, n % 3, n)):
        assert np.array_equal(function(values, *about), function(values, *about, **said))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    groups = np.random.default_rng(0).normal(size=(12, 3))
    left_out = np.stack([np.delete(groups, i, 0).mean(0) for i in range(12)])
    expected = groups.std(0, ddof=1) / np.sqrt(12)
    assert np.allclose(intervals.jackknife(left_out), 1.959964 * expected)
    assert np.allclose(intervals.jackknife(left_out, level=0.8), 1.281552 * expected)


def test_poisson_weights_are_of_the_photograph_and_the_seed_alone() -> None:
    weights = intervals.poisson_weights(np.array([7, 3, 7]), 5000, seed=2)
    assert weights.dtype == np.float64 and weights.shape == (5000, 3)
    assert np.array_equal(weights[:, 0], weights[:, 2]) and not np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 1:2], intervals.poisson_weights(np.array([3]), 5000, seed=2))
    assert not np.array_equal(weights[:, 1:2], intervals.poisson_weights(np.array([3]), 5000, seed=3))
    assert abs(weights.mean() - 1) < 0.05 and abs(weights.var() - 1) < 0.1


def test_a_class_that_is_not_drawn_is_left_out_of_the_macro_mean() -> None:
    """Photographs of two classes each are drawn together, so that many resamples lack a class; all values are 5."""
    values, labels = np.full((8, 1), 5.0), np.array([0, 1, 2, 3, 4, 5, 6, 7])
    low, high = intervals.bootstrap(values, labels, np.arange(8) // 2)
    assert np.allclose(low, 5) and np.allclose(high, 5)
