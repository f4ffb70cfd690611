"""Operations on lottery pruning's masks (Frankle & Carbin, arXiv 1803.03635; appendix G of the paper): prune the
smallest weights, list the weights in use, and build the controls' masks.

Masks are bool [step weight], one row per step or graft: the matrices of `models.masks.WEIGHTS`, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.config import ViTConfig
from models.masks import WEIGHTS, Masks, sizes, split

Kind = Literal["random", "shuffled", "union"]


def without_smallest(weights: Tensor, masks: Masks, rate: float, groups: Sequence[int]) -> Masks:
    """Removes from each row the smallest floor(rate n) of the n weights it keeps in each group; ties by position.

    `groups` gives the number of weights per group: one group for a threshold over the whole block, one group per matrix
    for a threshold of its own in each.
    """
    parts = zip(weights.abs().split(list(groups), 1), masks.split(list(groups), 1), strict=True)
    return torch.cat([_pruned(magnitude, mask, rate) for magnitude, mask in parts], 1)


def _pruned(magnitude: Tensor, masks: Masks, rate: float) -> Masks:
    order = magnitude.masked_fill(~masks, torch.inf).argsort(dim=1, stable=True)
    pruned = masks.clone()
    for row, places in zip(pruned, order, strict=True):
        row[places[: math.floor(rate * int(row.sum()) + 1e-9)]] = False
    return pruned


def altered(masks: Masks, kind: Kind, seed: int, groups: Sequence[int]) -> Masks:
    """The masks that a control trains under.

    random: each row shuffled within its groups, so that densities are kept; shuffled: the steps' masks in another order
    in which none stays at its step (unless there is only one); union: the union of all masks, at every step.
    """
    rng = np.random.default_rng(seed)
    if kind == "union":
        return masks.any(0).expand_as(masks)
    if kind == "shuffled":
        return masks[torch.from_numpy(derangement(len(masks), rng))]
    parts = [torch.from_numpy(rng.permuted(part.numpy(), axis=1)) for part in masks.split(list(groups), 1)]
    return torch.cat(parts, 1)


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation without a fixed point; for n = 1 the identity."""
    while True:
        order = rng.permutation(n)
        if n == 1 or (order != np.arange(n)).all():
            return order


def alive(masks: Masks, config: ViTConfig) -> dict[str, Tensor]:
    """Masks of the weights of each block that at least one of its steps keeps, by parameter name."""
    in_use = {}
    for block in range(config.n_blocks):
        steps = [t for t in range(config.n_steps) if config.block_of(t) == block]
        for name, mask in split(masks[steps].any(0), config).items():
            in_use[f"core.{block}.{WEIGHTS[name]}"] = mask
    return in_use


def groups(config: ViTConfig, scope: str) -> list[int]:
    """The number of weights in each group that shares a threshold: the whole block (global), or each matrix."""
    by_matrix = list(sizes(config).values())
    return [sum(by_matrix)] if scope == "global" else by_matrix
