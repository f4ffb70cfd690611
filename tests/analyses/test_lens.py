"""Run with: pytest tests/analyses/test_lens.py"""

import numpy as np
import pytest

from analyses import lens as analysis


def test_depth_and_flips_of_answers_written_out() -> None:
    answers = np.array([[[1, 2, 2, 2], [5, 5, 5, 5], [1, 2, 1, 2]]])
    assert analysis.depth(answers).tolist() == [[1, 0, 3]] and analysis.flips(answers).tolist() == [[1, 0, 3]]


def test_independent_states_are_those_of_shuffled_answers() -> None:
    generator = np.random.default_rng(0)
    share = generator.dirichlet([0.3] * 4, (1, 5))
    drawn = np.stack([generator.choice(4, 40_000, p=of) for of in share[0]], -1)[None]
    standing, flips = analysis.independent(share)
    depth = analysis.depth(drawn)[0]
    assert flips == pytest.approx(analysis.flips(drawn).mean(), abs=0.02)
    assert standing[0] == pytest.approx([(depth <= state).mean() for state in range(5)], abs=0.01)
