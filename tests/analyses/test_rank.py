"""Run with: pytest tests/analyses/test_rank.py"""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses import capacity
from analyses import rank as analysis

SITES = list(analysis.SITES)


def test_energy_rank_is_the_least_that_holds_the_share() -> None:
    assert analysis.energy_rank(np.ones(20)) == 19  # 95 % exactly
    assert analysis.energy_rank(np.ones(21)) == 20
    assert analysis.energy_rank(np.array([95.0, 5, 0])) == 1
    assert analysis.energy_rank(np.array([94.0, 6, 0])) == 2
    assert analysis.energy_rank(np.ones(10), energy=0.5) == 5
    assert list(analysis.energy_rank(np.array([[3.0, 3, 3, np.nan], [0, 0, 0, 0]]))) == [3, 0]


def test_closed_forms_of_participation_ratio_and_stable_rank() -> None:
    assert analysis.participation_ratio(np.ones(7)) == pytest.approx(7)
    assert analysis.stable_rank(np.ones(7)) == pytest.approx(7)
    spectrum = np.array([4.0, 2, 1, 1, np.nan])
    assert analysis.participation_ratio(spectrum) == pytest.approx(64 / 22)
    assert analysis.stable_rank(spectrum) == pytest.approx(2)
    assert analysis.participation_ratio(np.zeros(3)) == analysis.stable_rank(np.zeros(3)) == 0


def basis(*columns: int, d: int = 6) -> np.ndarray:
    return np.eye(d)[:, list(columns)]


def test_overlap_of_known_subspaces() -> None:
    assert analysis.subspace_overlap(basis(0, 1), basis(1, 0)) == 1
    assert analysis.subspace_overlap(basis(0, 1), basis(2, 3, 4)) == 0
    assert analysis.subspace_overlap(basis(0, 1), basis(1, 2, 3)) == 0.5
    assert analysis.subspace_overlap(basis(1), basis(1, 2, 3)) == 1  # inside
    angle = np.deg2rad(30)
    assert analysis.subspace_overlap(basis(0, d=2), np.array([[np.cos(angle)], [np.sin(angle)]])) == pytest.approx(0.75)
    assert np.isnan(analysis.subspace_overlap(basis(0), basis()))


def test_random_subspaces_overlap_by_the_chance_level() -> None:
    rng = np.random.default_rng(0)
    dims, d = (5, 12), 40
    drawn = [
        analysis.subspace_overlap(*(np.linalg.qr(rng.standard_normal((d, k)))[0] for k in dims)) for _ in range(300)
    ]
    assert analysis.chance_overlap(np.array(dims), d)[0, 1] == 12 / 40
    assert abs(np.mean(drawn) - 12 / 40) < 5 * np.std(drawn) / 300**0.5


def planted(*, d: int = 8, k: int = 4, union: int = 8, accuracy: bool = True, blocks: int = 1) -> xr.Dataset:
    """Three steps of rank k each."""
    cells, pairs = ("site", "centred", "step"), ("site", "step", "other_step")
    k95 = np.full((4, 2, 3), k)
    result = xr.Dataset(
        {
            "k95": (cells, k95),
            "control_k95": (cells, k95 + 1),
            "participation_ratio": (cells, 1.0 * k95),
            "stable_rank": (cells, 1.0 * k95),
            "overlap": (pairs, np.tile(np.eye(3), (4, 1, 1))),
            "overlap_chance": (pairs, np.full((4, 3, 3), 0.5)),
            "union_k95": (("site", "step"), np.tile([k, union, union], (4, 1))),
            "width": ("site", [d] * 4),
            "utilised_rank": (("matrix", "step"), np.full((2, 3), k)),
            "utilised_union": (("matrix", "block"), np.full((2, blocks), union // blocks)),
        },
        {
            "site": SITES,
            "centred": [False, True],
            "step": range(3),
            "other_step": range(3),
            "rank": range(1, d + 1),
            "matrix": ["fc1", "fc2"],
        },
        attrs=dict(n_images=10, tokens=4, d_model=d, n_blocks=blocks, note=""),
    )
    if accuracy:
        curve = np.full((1, d), np.nan)
        curve[0, [0, 1, 3, 7]] = 0.1, 0.4, 0.795, 0.8
        result = result.assign_coords(cut=["plain"]).assign(
            svd_accuracy=(("cut", "rank"), curve),
            svd_parameters=(("cut", "rank"), 10 * curve),
            accuracy=0.8,
            accuracy_chance=0.1,
            n_accuracy=100,
        )
    return result


def test_the_capacity_model_adds_up() -> None:
    row = capacity.load(planted(), "fc2")
    assert (row["d"], row["sum"], row["union"]) == (8, 12, 8)
    assert row["load"] == 1.5 and row["shared_load"] == 1 and row["sharing"] == pytest.approx(1 / 3)
    assert row["fits"] == pytest.approx(8 / 12) and row["fits_shared"] == 1
    alike = capacity.load(planted(union=4), "mlp_out")
    assert alike["sharing"] == pytest.approx(1 - 1 / 3)  # all steps use one subspace: 1 - 1/T
    stacked = capacity.load(planted(blocks=2), "fc1")
    assert stacked["d"] == 16 and stacked["union"] == 8
    assert "67 % of it; the union does" in capacity.table(planted())
    assert "yes" in capacity.table({"wide": planted(d=16)})


def test_the_sufficient_rank_loses_at_most_what_is_allowed() -> None:
    assert analysis.sufficient_rank(planted(), "plain") == 4
    assert analysis.sufficient_rank(planted(), "plain", loss=0) == 8
    assert analysis.sufficient_rank(planted(), "plain", loss=0.5) == 2


def test_the_table_counts_steps_from_one_and_shows_controls_and_accuracies() -> None:
    text = analysis.table(planted())
    assert "step 3 (blocks.2)" in text and "untrained, mean" in text and "5 / 5" in text
    assert "0.00 / 0.50" in text and "8 / 12" in text
    assert text.splitlines()[-1].split()[-4:] == ["10.0", "40.0", "79.5", "80.0"]
    assert "top-1" not in analysis.table(planted(accuracy=False))


def test_figure_6_draws_every_site_with_its_control_and_share_of_the_width() -> None:
    for results in (planted(), {"a": planted(), "b": planted(d=16)}):
        fig = analysis.figure(results)
        assert len([ax for ax in fig.axes if ax.get_title()]) == 4
        n = 1 if isinstance(results, xr.Dataset) else 2
        assert all(len(ax.lines) == 3 * n for ax in fig.axes)
    line = analysis.figure(planted()).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata()) == [4, 4, 4]
    wider = analysis.figure({"a": planted(), "b": planted(d=16)}).axes[0].lines  # models of different width: shares
    assert wider[0].get_ydata()[0] == 0.5 and wider[3].get_ydata()[0] == 0.25


def test_figure_7_has_the_chance_line_and_is_none_without_accuracies() -> None:
    assert analysis.accuracy_figure(planted(accuracy=False)) is None
    fig = analysis.accuracy_figure(planted())
    curve, unharmed, chance = fig.axes[0].lines
    assert list(curve.get_xdata()) == [1, 2, 4, 8] and np.allclose(curve.get_ydata(), [10, 40, 79.5, 80])
    assert np.allclose(unharmed.get_ydata(), 80) and np.allclose(chance.get_ydata(), 10)


def test_accuracies_have_wilson_s_interval() -> None:
    line = analysis.accuracy_of(planted(), "rank").lines[0]
    for low, high, right in zip(line.low[[0, 1, 3]], line.high[[0, 1, 3]], (10, 40, 80), strict=True):
        expected = stats.binomtest(right, 100).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert line.hover[1] == "rank 2: 40.0 %, 4 numbers"


def test_overlaps_stand_beside_random_subspaces_and_the_untrained_model() -> None:
    result = planted().assign(control_overlap=planted()["overlap"] / 2 + 0.1)
    assert analysis.overlap_levels(result, "cls") == pytest.approx({"trained": 0, "untrained": 0.1, "random": 0.5})


def test_the_other_figures_draw_what_the_result_holds() -> None:
    assert np.allclose(analysis.overlap_map(planted()).axes[0].images[0].get_array(), np.eye(3))
    assert np.allclose(analysis.overlaps(planted(), "cls").data[0].customdata, 0.5)
    shown = analysis.interactive(planted())
    assert len(shown.data) == 8 and np.allclose(shown.data[0].y, 0.5) and list(shown.data[0].x) == [1, 2, 3]
    assert len(analysis.interactive(planted(), measure="stable_rank").data) == 4
    _, curve, unharmed, chance = analysis.accuracy_curves(planted()).data
    assert list(curve.x) == [1, 2, 4, 8] and unharmed.y[0] == pytest.approx(80) and chance.y[0] == pytest.approx(10)
    for results, panels in ((planted(), 2), ({"a": planted(), "b": planted(d=16)}, 3)):
        assert len(capacity.figure(results).axes) == panels
