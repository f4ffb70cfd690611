"""Linear CKA between many sets of rows, debiased, from sums that are streamed.

CKA is HSIC(K, L) over the root of HSIC(K, K) HSIC(L, L) (Kornblith et al., arXiv 1905.00414). The plain estimator of
HSIC is biased: of independent Gaussians of n rows in d dimensions its CKA is about d / (n + d). The U-statistic of Song
et al. (2012) leaves the diagonals of K and L out and has the mean 0 there. Nguyen et al. (arXiv 2010.15327) average it
over minibatches; for linear kernels it is made of sums over rows, so that the number of the whole set is
computed exactly without ever holding a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from analyses import intervals

GROUPS = 20  # of the jackknife
CONSTANT = 1e-10  # share of the energy about zero below which rows are the same for all images


@dataclass
class Grams:
    """Sums over rows x - shift of `set` many sets (states, say), float64: all that HSIC needs.

    Memory is (set x d)^2 numbers, whatever the number of rows. The shift [set d], a fixed point near the mean, changes
    nothing but keeps a large mean out of the products. Sums of the same shift add and subtract.
    """

    shift: Tensor
    count: Tensor
    total: Tensor  # [set d] of x
    product: Tensor  # [set d other d] of x y'
    norm: Tensor  # [set] of |x|^2
    norms: Tensor  # [set other] of |x|^2 |y|^2
    weighted: Tensor  # [set d other] of x |y|^2

    @classmethod
    def about(cls, shift: Tensor) -> Grams:
        """Nothing added yet, about a point [set d]."""
        n, d = shift.shape
        shapes = dict(count=(), total=(n, d), product=(n, d, n, d), norm=(n,), norms=(n, n), weighted=(n, d, n))
        return cls(
            shift.double(), **{name: shift.new_zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        )

    def add(self, rows: Tensor) -> None:
        """One batch of rows [row set d]."""
        x = rows.double() - self.shift
        flat, norm = x.flatten(1), x.square().sum(-1)
        self.count += len(x)
        self.total += x.sum(0)
        self.product += (flat.T @ flat).view_as(self.product)
        self.norm += norm.sum(0)
        self.norms += norm.T @ norm
        self.weighted += (flat.T @ norm).view_as(self.weighted)

    @property
    def sums(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)[1:]]

    def with_sums(self, sums: Sequence[Tensor]) -> Grams:
        return Grams(self.shift, *sums)

    def without(self, part: Grams) -> Grams:
        """The sums of the other rows."""
        return self.with_sums([all_of - of for all_of, of in zip(self.sums, part.sums, strict=True)])

    def covariance(self) -> Tensor:
        """Sums of products about the means: [set d other d]."""
        return self.product - torch.einsum("sd,te->sdte", self.total, self.total) / self.count

    def varies(self) -> Tensor:
        """Which sets are not the same in all rows, as far as float32 states can tell: [set]."""
        spread = self.norm - self.total.square().sum(-1) / self.count
        return spread > CONSTANT * (spread + self.count * (self.shift + self.total / self.count).square().sum(-1))

    def hsic(self) -> Tensor:
        """The U-statistic: [set other]."""
        n, ones = self.count, self.total.square().sum(-1) - self.norm  # 1'K1, the diagonal left out
        trace = self.product.square().sum((1, 3)) - self.norms
        through = torch.einsum("sd,sdte,te->st", self.total, self.product, self.total)
        across = torch.einsum("sd,sdt->st", self.total, self.weighted)
        through = through - across - across.T + self.norms  # 1'KL1
        outer = ones[:, None] * ones / ((n - 1) * (n - 2))
        return (trace + outer - 2 / (n - 2) * through) / (n * (n - 3))

    def cka(self, *, debiased: bool = True) -> Tensor:
        """CKA of every two sets, NaN for one that does not vary: [set other]. Debiased, it may lie below 0."""
        hsic = self.hsic() if debiased else self.covariance().square().sum((1, 3))
        own = hsic.diagonal()
        own = own.where(self.varies() & (own > 0), torch.nan)
        return hsic / (own[:, None] * own).sqrt()

    def participation_ratio(self) -> Tensor:
        """(sum of eigenvalues)^2 over the sum of their squares, of the covariance of every set: [set]."""
        sets = torch.arange(len(self.shift))
        covariance = self.covariance()[sets, :, sets]
        ratio = covariance.diagonal(dim1=1, dim2=2).sum(-1).square() / covariance.square().sum((1, 2))
        return ratio.where(self.varies(), torch.nan)


def of_rows(rows: Tensor, shift: Tensor | None = None) -> Grams:
    """The sums of rows [row set d] that are all in memory, about their mean or another point."""
    grams = Grams.about(rows.double().mean(0) if shift is None else shift)
    grams.add(rows)
    return grams


# How sure


def left_out_of(rows: Tensor, order: Tensor) -> Iterator[Grams]:
    """Sums of rows [row set d] without one group of them each, groups drawn by a random order; one at a time."""
    whole = of_rows(rows)
    for part in order.chunk(GROUPS):
        yield whole.without(of_rows(rows[part], whole.shift))


def with_bounds(value: Tensor, left_out: Sequence[Tensor], narrower: float) -> list[np.ndarray]:
    """A number and the ends of its interval: the jackknife's, so much narrower."""
    half = narrower * intervals.jackknife(torch.stack([*left_out]).cpu().numpy())
    of_all = value.cpu().numpy()
    return [of_all, of_all - half, of_all + half]
