"""Run with: pytest tests/analyses/test_dynamics.py"""

from itertools import combinations

import numpy as np
import pytest

from analyses import dynamics as analysis
from analyses import intervals, phases


def similar(n: int, generator: np.random.Generator) -> np.ndarray:
    drawn = generator.random((n, n))
    return np.maximum(drawn, drawn.T) * (1 - np.eye(n)) + np.eye(n)


def cut_value(similarity: np.ndarray, of: np.ndarray) -> float:
    return float((1 - similarity)[of[:, None] != of].sum())


@pytest.mark.parametrize("n_phases", phases.PHASES)
def test_phases_are_the_maximal_cut_of_all_ways_to_cut(n_phases: int) -> None:
    generator = np.random.default_rng(0)
    for n in (n_phases, 5, 9):
        similarity = similar(n, generator)
        every = [np.searchsorted(ends, np.arange(n), "right") for ends in combinations(range(1, n), n_phases - 1)]
        best = max(every, key=lambda of: cut_value(similarity, of))
        assert phases.cut(similarity, n_phases).tolist() == best.tolist()


def test_planted_phases_are_the_maximal_cut_of_any_two_sets_too() -> None:
    of = np.repeat([0, 1], [3, 5])
    similarity = np.where(of[:, None] == of, 0.9, 0.2) + 0.1 * np.eye(8)
    every = [np.array([member >> i & 1 for i in range(8)]) for member in range(1, 2**7)]
    best = max(every, key=lambda sets: cut_value(similarity, sets))
    assert (phases.cut(similarity, 2) == of).all() and abs(best - best[0]).tolist() == of.tolist()
    assert phases.contrast(similarity, of) == pytest.approx(0.7)


def test_a_steady_path_keeps_what_depends_on_the_distance_alone() -> None:
    lag = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    assert np.allclose(phases.steady(0.8**lag), 0.8**lag)
    blocks = np.kron(np.eye(2), np.ones((3, 3)))
    assert phases.steady(blocks)[0].tolist() == pytest.approx([1, 4 / 5, 2 / 4, 0, 0, 0])
    cut = phases.cut(phases.steady(blocks), 2)
    assert phases.contrast(blocks, phases.cut(blocks, 2)) > phases.contrast(phases.steady(blocks), cut)


def test_what_cannot_be_cut_has_no_phases() -> None:
    missing = np.full((4, 4), np.nan)
    assert phases.cut(missing, 2).tolist() == [-1] * 4 and phases.cut(np.eye(2), 3).tolist() == [-1] * 2
    assert np.isnan(phases.contrast(np.eye(3), np.zeros(3)))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    drawn = np.random.default_rng(0).normal(size=(50, 3))
    left_out = np.stack([np.delete(drawn, i, 0).mean(0) for i in range(50)])
    assert intervals.jackknife(left_out) == pytest.approx(1.959964 * drawn.std(0, ddof=1) / 50**0.5)


def test_a_random_jacobian_keeps_volumes_until_its_circle_holds_0() -> None:
    assert analysis.random_log_det(np.array([0.0, 0.5, 1.0]), 7).tolist() == [0, 0, 0]
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 400_000)
    radius = 2 * np.sqrt(np.random.default_rng(1).uniform(0, 1, 400_000))
    of_disc = np.log(np.abs(1 + radius * np.exp(1j * angle))).mean()
    assert float(analysis.random_log_det(np.array(2.0), 1)) == pytest.approx(of_disc, abs=0.005)
