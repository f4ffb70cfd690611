"""Run with: pytest tests/probes/test_means.py"""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from analyses import intervals
from probes.methods import means


def test_means_and_intervals_are_a_bootstrap_s_and_leave_nan_out() -> None:
    values = torch.randn(2, 300)
    values[1, 100:] = torch.nan
    walked = [
        means.sums({"x": (("k",), values[:, part])}, np.arange(300)[part], 0) for part in (slice(0, 90), slice(90, 300))
    ]
    summed = {name: (dims, sum(each[name][1] for each in walked).numpy()) for name, (dims, _) in walked[0].items()}
    drawn = means.drawn(xr.Dataset(summed))["x"]
    result = means.with_interval("x", drawn)
    assert np.allclose(result["x"], values.nanmean(1))
    error = [float(values[0].std() / 300**0.5), float(values[1, :100].std() / 100**0.5)]
    half = (result["x_high"] - result["x_low"]).values / 2
    assert half == pytest.approx(stats.norm.ppf(0.975) * np.array(error), rel=0.15)


def test_an_interval_is_of_the_resamples_alone_and_a_mean_may_be_of_one_image() -> None:
    resampled = np.linspace(0, 1, 41)
    result = means.with_interval("x", xr.DataArray([7.0, *resampled], dims="draw"))
    assert [float(of) for of in result.values()] == pytest.approx([7, 0.025, 0.975])
    once = means.sums({"x": ((), torch.tensor([torch.nan, 3.0]))}, np.arange(2), 0)
    drawn = means.drawn(xr.Dataset({name: (dims, of.numpy()) for name, (dims, of) in once.items()}))["x"]
    assert float(drawn[0]) == 3 and set(drawn[drawn.notnull()].values) == {3.0}


def test_sums_of_a_batch_equal_loops_over_its_images_and_draws() -> None:
    values, photographs = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan] * 3]), np.array([4, 5, 4])
    read = means.sums({"x": (("k",), values), "y": ((), values[0])}, photographs, 1)
    weights = intervals.poisson_weights(photographs, means.RESAMPLES, 1)
    assert set(read) == {"x.sum", "x.count", "y.sum", "y.count"}
    assert read["x.sum"][0] == ("k", "draw") and read["y.count"][0] == ("draw",)
    assert read["x.sum"][1].dtype == torch.float64
    assert read["x.sum"][1][0].tolist() == [4, *(weights[:, 0] + 3 * weights[:, 2])]
    assert read["x.count"][1][0].tolist() == [2, *(weights[:, 0] + weights[:, 2])]
    assert not read["x.sum"][1][1].any() and not read["x.count"][1][1].any()
    summed = {name: (dims, of.numpy()) for name, (dims, of) in read.items()} | {"other": ((), 0.0)}
    drawn = means.drawn(xr.Dataset(summed))
    assert set(drawn) == {"x", "y"}
    result = means.with_interval("x", drawn["x"])
    assert list(result) == ["x", "x_low", "x_high"] and all(of.dims == ("k",) for of in result.values())
    mean = (weights[:, 0] + 3 * weights[:, 2]) / np.where(weights[:, 0] > 0, weights[:, 0] + weights[:, 2], np.nan)
    assert float(result["x_low"][0]) == np.nanquantile(mean, 0.025)
    assert float(result["x_high"][0]) == np.nanquantile(mean, 0.975)
    assert result["x"].values[0] == 2 and all(np.isnan(of.values[1]) for of in result.values())


@pytest.mark.parametrize(("value", "least", "low", "high"), [(0, 0, 0, 1), (1, 0, 1, 0), (0, -1, 1, 1), (0.5, 0, 1, 1)])
def test_where_all_images_agree_the_interval_is_what_none_in_so_many_leaves_open(value, least, low, high) -> None:
    images = torch.tensor([[float(value)] * 40, [0.0, 1.0] * 20])
    read = means.sums({"x": (("k",), images)}, np.arange(40), 0)
    drawn = means.drawn(xr.Dataset({name: (dims, of.numpy()) for name, (dims, of) in read.items()}))["x"]
    plain, bounded = means.with_interval("x", drawn), means.with_interval("x", drawn, 40, least)
    none = stats.binomtest(0, 40).proportion_ci(0.95, method="wilson").high
    assert plain["x_low"][0] == plain["x_high"][0] == value
    assert [bounded["x_low"][0], bounded["x_high"][0]] == pytest.approx([value - low * none, value + high * none])
    assert all(float(plain[name][1]) == float(bounded[name][1]) for name in ("x", "x_low", "x_high"))


def test_an_interval_of_shares_does_not_go_below_none() -> None:
    assert means.with_interval("x", xr.DataArray(np.zeros(9), dims="draw"), 40)["x_low"] == 0
