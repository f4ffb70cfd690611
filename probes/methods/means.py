"""Means over images with their 95 % intervals, of sums that are streamed: nothing grows with the images.

A bootstrap with Poisson weights by photograph: neither batches nor processes change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from analyses import intervals

RESAMPLES = 400
Values = Mapping[str, tuple[Sequence[str], Tensor]]  # variable -> dimensions, and values [... image]; NaN is left out


def sums(values: Values, photographs: np.ndarray, seed: int) -> dict[str, Any]:
    """Of a batch, as `Pass.over` takes them: sums over the images and counts, as they are and resampled."""
    drawn = torch.from_numpy(intervals.poisson_weights(photographs, RESAMPLES, seed))
    weights = torch.cat([torch.ones(1, drawn.shape[1], dtype=drawn.dtype), drawn]).T
    reading = {}
    for name, (dims, of_image) in values.items():
        of_image = of_image.double().cpu()
        is_there = ~of_image.isnan()
        reading[f"{name}.sum"] = (*dims, "draw"), of_image.nan_to_num(0) @ weights
        reading[f"{name}.count"] = (*dims, "draw"), is_there.double() @ weights
    return reading


def drawn(measured: xr.Dataset) -> dict[str, xr.DataArray]:
    """Every mean by name, as it is (draw 0) and of every resample; NaN where nothing was there."""
    names = [str(name).removesuffix(".sum") for name in measured.data_vars if str(name).endswith(".sum")]
    return {name: measured[f"{name}.sum"] / measured[f"{name}.count"].where(lambda count: count > 0) for name in names}


def with_interval(name: str, means: xr.DataArray, n: int | None = None, least: float = 0.0) -> dict[str, xr.DataArray]:
    """The mean, and its interval as ``_low`` and ``_high``; of values between `least` and 1, given over how many
    images, `intervals.unless_constant`.
    """
    resampled = means[{"draw": slice(1, None)}]
    is_there = resampled.notnull().any("draw")
    bounds = resampled.where(is_there, 0).quantile([0.025, 0.975], "draw").where(is_there).drop_vars("quantile")
    mean, low, high = means[{"draw": 0}], bounds[{"quantile": 0}], bounds[{"quantile": 1}]
    if n is not None:
        low, high = (mean.copy(data=bound) for bound in intervals.unless_constant(low, high, mean, n, least))
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
