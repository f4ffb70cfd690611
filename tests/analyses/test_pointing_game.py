"""Run with: pytest tests/analyses/test_pointing_game.py"""

import numpy as np
import pytest

from analyses import pointing_game as analysis


def test_averages_equal_loops() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.random((2, 30, 3)), rng.integers(0, 4, 30)
    values[0, 5] = np.nan
    micro, macro = np.moveaxis(analysis.average(values, labels, axis=1), 1, 0)
    assert np.allclose(micro[0], np.delete(values[0], 5, 0).mean(0))
    keep = np.arange(30) != 5
    assert np.allclose(macro[0], np.mean([values[0][keep & (labels == c)].mean(0) for c in range(4)], axis=0))


def test_bootstrap_interval_covers_as_it_says() -> None:
    """95 % intervals of a coin of 0.3 cover 0.3 in 95 % of 200 cells, within the sampling error of that count."""
    rng = np.random.default_rng(1)
    hit = (rng.random((1, 1, 400, 200, 1)) < 0.3).astype(np.float32)
    found = analysis.ratios(hit, np.zeros(400, int))
    covered = (found["hit_low"] <= 0.3) & (found["hit_high"] >= 0.3)
    assert 0.89 <= covered[0, 0, 0].mean() <= 0.99
    assert np.allclose(found["hit_ratio"][0, 0, 0, :, 0], hit[0, 0].mean(0)[:, 0])


def test_chance_of_a_maximum_equals_a_simulation_of_coins() -> None:
    rng = np.random.default_rng(2)
    simulated = rng.binomial(500, 0.28, (2000, 144)).max(1) / 500
    mean, high = analysis.chance_of_maximum(np.full(500, 0.28), 144)
    assert mean == pytest.approx(simulated.mean(), abs=0.002)  # about .333
    assert high == pytest.approx(np.quantile(simulated, 0.95), abs=0.003)


def test_best_head_of_pure_chance_is_not_better_on_the_other_half() -> None:
    import xarray as xr

    rng = np.random.default_rng(3)
    hit = (rng.random((1, 1, 1000, 12, 12)) < 0.28).astype(np.float32)
    result = xr.Dataset(
        {
            "hit": (("tolerance", "target", "image", "step", "head"), hit),
            "baseline_per_image": (("kind", "tolerance", "target", "image"), np.full((1, 1, 1, 1000), 0.28)),
        },
        coords={"tolerance": [0], "target": ["class"], "kind": ["uniform"]},
    )
    best = analysis.best_head(result)
    assert best["chosen_on"] > 0.31 and abs(best["held_out"] - 0.28) < 4 * (0.28 * 0.72 / 500) ** 0.5
    assert abs(best["chosen_on"] - best["chance"]) < 0.02
