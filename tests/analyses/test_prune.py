"""Run with: pytest tests/analyses/test_prune.py"""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses import overlap, prune

from .conftest import shipped

SIZES = {"qkv": 40, "proj": 24}


@pytest.fixture(scope="module")
def result() -> xr.Dataset:
    """Two rounds of three steps: all weights, then steps 1 and 2 that share half of theirs, and step 3 alone."""
    n = sum(SIZES.values())
    masks, replicates = np.ones((2, 3, n), bool), np.ones((2, 2, 1, n), bool)
    masks[1], replicates[1] = False, False
    masks[1, 0, :16], masks[1, 1, 8:24], masks[1, 2, 48:] = True, True, True
    replicates[1, 0, 0, :12] = replicates[1, 1, 0, 8:16] = True  # of steps 1 and 2
    made = prune.statistics(np.packbits(masks, axis=-1), np.packbits(replicates, axis=-1), SIZES, [0, 1])
    numbers = {"accuracy": ("round", [0.5, 1.0]), "accuracy_cut": ("round", [np.nan, 0.25])}
    return made.assign(numbers).assign_attrs(chance=0.05, n_val=20, note="few images")


def test_statistics_are_those_of_the_planted_masks(result) -> None:
    last = result.sel(round=1, weight="all")
    assert last["kept"].values.tolist() == [16, 16, 16] and np.allclose(last["density"], 0.25)
    assert last["jaccard"].sel(step=0, other_step=1) == 8 / 24 and last["jaccard"].sel(step=0, other_step=2) == 0
    assert np.allclose(last["specialization"], [0.5, 0.5, 1])
    assert np.allclose(last["categories"], [24 / 64, 32 / 64, 8 / 64, 0]) and last["union_density"] == 40 / 64
    assert last["replicate_jaccard"].values.tolist() == [[12 / 16], [8 / 16]]
    of_qkv = result.sel(round=1, weight="qkv")
    assert of_qkv["kept_by_weight"].values.tolist() == [16, 16, 0]
    assert of_qkv["specialization_random"].sel(step=0) == pytest.approx((1 - 16 / 40) * (1 - 0))


def test_shipped_statistics_follow_from_the_shipped_masks() -> None:
    result = shipped("pruned/prune").isel(round=[0, 4, 8])
    sizes = {name: int(result["usage"].sel(weight=name).isel(round=0).sum()) for name in result["weight"].values[1:]}
    masks, steps = result["mask"].values, prune.replicated(result)
    replicates = result["replicate_mask"].values.reshape(len(masks), len(steps), -1, masks.shape[-1])
    again = prune.statistics(masks, replicates, sizes, steps)
    for name, values in again.data_vars.items():
        assert np.allclose(values.values.ravel(), result[name].values.ravel(), atol=1e-12), name


def test_nulls_are_those_of_the_densities(result) -> None:
    density = result["kept_by_weight"].sel(round=1, weight=list(SIZES)).values.T / np.array([*SIZES.values()])[:, None]
    expected = overlap.random_jaccard([*SIZES.values()], density)
    assert np.allclose(result["jaccard_random"].sel(round=1, weight="all"), expected)


def test_the_table_and_the_frame_have_a_line_a_round(result) -> None:
    lines = prune.table(result).splitlines()
    assert lines[0] == "step-specific pruning: 3 steps, 64 weights, chance 5.0 %" and lines[-1] == "note: few images"
    assert lines[3].split()[:6] == ["round", "1", "25.00", "%", "100.0", "%"] and "50.0->25.0" in lines[3]
    frame = prune.frame(result)
    assert frame["jaccard"].tolist() == pytest.approx([1, 8 / 24 / 3]) and frame["jaccard_replicates"][1] == 0.625
    expected = stats.binomtest(20, 20).proportion_ci(method="wilson")  # 20 of 20 is not certain
    assert np.allclose(frame.loc[1, ["accuracy_low", "accuracy_high"]].astype(float), expected)


def test_without_replicates_their_column_is_empty(result) -> None:
    alone = result.isel(pair=slice(0))
    assert np.isnan(prune.replicate_jaccard(alone)).all() and "nan" in prune.table(alone).splitlines()[3]
    assert "replicates" not in prune.pair_map(alone).title


def test_figures_show_the_masks(result) -> None:
    bars, pairs, accuracy, _ = prune.figure(result).axes
    dead = bars.containers[0]
    assert [bar.get_height() for bar in dead] == pytest.approx([0, 100 * 24 / 64])
    assert np.isnan(pairs.images[0].get_array().filled(np.nan)[0, 0])
    assert accuracy.get_xlim()[0] > accuracy.get_xlim()[1]  # density falls
    assert np.allclose(accuracy.lines[0].get_ydata(), [50, 100])
    assert len(prune.specialization_figure(result).axes) == 6
    swap = xr.Dataset({"swap": (("round", "step", "other_step"), [[[0.5, 0.2], [0.4, 0.4]]])}, {"round": [3]})
    assert np.allclose(prune.swap_map(swap).values, [[0, -30], [0, 0]])


def test_interactive_figures_show_the_chosen_round_and_matrix(result) -> None:
    (pairs,) = prune.interactive(result, round=1, weight="qkv", name="overlap").data
    assert np.asarray(pairs.z)[0, 1] == 0.5 and np.allclose(np.asarray(pairs.customdata)[0, 1], 16 / 40)
    bars = prune.shares(result).data
    assert len(bars) == 8 and list(bars[0].y) == pytest.approx([0, 37.5])
    curves = prune.specialization_curves(result, weight="proj").data
    assert [trace.name for trace in curves] == ["step 1", "step 2", "step 3", "random masks"]
    assert curves[2].y[1] == 100


def test_with_one_step_there_is_no_mask_to_swap_with(result) -> None:
    swap = xr.Dataset({"swap": (("round", "step", "mask"), [[[0.5]]])}, {"round": [1]})
    assert prune.compared(swap, result).endswith("round 1: own masks 100.0, with one step there is none to swap with")
