"""Ridge regression from streamed sums: exact, and of the same memory however many rows there are.

Features are standardised, targets are numbers or one-hot classes. The penalty is the one of least generalised
cross-validation (Golub, Heath & Wahba, 1979), which the same sums give in closed form; every degree of freedom counts
for 1.4, without which it now and then all but interpolates few rows (Kim & Gu, 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PENALTIES = tuple(np.logspace(-6, 1, 15))  # on |w|^2, beside the mean squared error of standardised features
COUNTS_FOR = 1.4  # of a degree of freedom
CONSTANT = 1e-10  # a feature whose variance is a smaller share of its mean square is rounding alone


@dataclass
class Sums:
    """Sums over rows, float64, for cells that share their targets: count [cell], features x [cell d], targets y
    [cell column], and their products xx [cell d d], xy [cell d column], yy [cell column].
    """

    count: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def none(cls, cells: int, width: int, columns: int, device: torch.device | None = None) -> Sums:
        sizes = ((), (width,), (columns,), (width, width), (width, columns), (columns,))
        return cls(*(torch.zeros(cells, *size, dtype=torch.float64, device=device) for size in sizes))

    def add(self, x: Tensor, y: Tensor, is_there: Tensor) -> None:
        """Rows x [cell row d] with targets y [row column]; a cell takes those that are there [cell row]."""
        weight = is_there.double()
        x = torch.where(is_there[..., None], x.double(), 0.0)
        self.count += weight.sum(1)
        self.x += x.sum(1)
        self.y += weight @ y
        self.xx.baddbmm_(x.mT, x)
        self.xy += x.mT @ y
        self.yy += weight @ y.square()


@dataclass(frozen=True)
class Ridge:
    """Linear probes ``(x - x_mean) @ weight + y_mean`` of every cell: weight [cell d column], x_mean [cell d], y_mean
    [cell column], and the penalty of each column [cell column].
    """

    weight: Tensor
    x_mean: Tensor
    y_mean: Tensor
    penalty: Tensor


def fitted(sums: Sums, parts: Sequence[slice], n_chosen: int | None = None) -> Ridge:
    """The probes of least penalised error.

    Columns of one part share a penalty: the one of `PENALTIES` that is best for them. Parts beyond the first `n_chosen`
    are not asked: they take the penalties of the first ones in turn.
    """
    n = sums.count.clamp(min=1)
    x_mean, y_mean = sums.x / n[:, None], sums.y / n[:, None]
    covariance = sums.xx / n[:, None, None] - x_mean[:, :, None] * x_mean[:, None]
    cross = sums.xy / n[:, None, None] - x_mean[:, :, None] * y_mean[:, None]
    variance = covariance.diagonal(dim1=1, dim2=2)
    square = (sums.xx / n[:, None, None]).diagonal(dim1=1, dim2=2)
    scale = torch.where(variance > CONSTANT * square, variance.clamp(min=0).rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(covariance * scale[:, :, None] * scale[:, None])
    values = values.clamp(min=0)[..., None]  # [cell d 1]
    along = vectors.mT @ (scale[..., None] * cross)  # [cell d column]
    error = sums.yy / n[:, None] - y_mean.square()
    best = best_penalties(values, along, error, n, parts[:n_chosen])
    penalty = torch.empty_like(y_mean)
    for i, part in enumerate(parts):
        penalty[:, part] = best[:, i % best.shape[1], None]
    weight = scale[..., None] * (vectors @ (along / (values + penalty[:, None])))
    return Ridge(weight, x_mean, y_mean, penalty)


def best_penalties(values: Tensor, along: Tensor, error: Tensor, n: Tensor, parts: Sequence[slice]) -> Tensor:
    """The penalty of least generalised cross-validation of every part: [cell part].

    values: eigenvalues of the features' correlations [cell d 1]; along: covariances of their directions with the
    targets [cell d column]; error: variances of the targets [cell column].
    """
    tried = []
    for penalty in PENALTIES:
        kept = values / (values + penalty)
        left = error - (along.square() * (values + 2 * penalty) / (values + penalty).square()).sum(1)
        free = (1 - COUNTS_FOR * (1 + kept.sum((1, 2))) / n).clamp(min=1e-9)
        tried.append(torch.stack([left[:, part].clamp(min=0).sum(1) / free.square() for part in parts], 1))
    best = torch.stack(tried).argmin(0)
    return torch.tensor(PENALTIES, dtype=values.dtype, device=values.device)[best]
