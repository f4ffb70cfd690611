"""Lottery pruning's arithmetic on masks: which weights go, which are alive, and what other masks would be.

Masks are bool [step weight], one row per step (or a graft): the matrices of `models.masks.WEIGHTS`, flattened.
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
    """Each row without the smallest floor(rate n) of the n weights it keeps in each group; ties go by position.

    `groups` are numbers of weights: all of them for one threshold over the block, those of each matrix for one apiece.
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
    """What a control trains under: random masks of the same densities in each group, the steps' masks in another order
    (none in its place, where there are several), or their union at every step."""
    rng = np.random.default_rng(seed)
    if kind == "union":
        return masks.any(0).expand_as(masks)
    if kind == "shuffled":
        return masks[torch.from_numpy(derangement(len(masks), rng))]
    parts = [torch.from_numpy(rng.permuted(part.numpy(), axis=1)) for part in masks.split(list(groups), 1)]
    return torch.cat(parts, 1)


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random order in which nothing stays in its place; as it is for n = 1."""
    while True:
        order = rng.permutation(n)
        if n == 1 or (order != np.arange(n)).all():
            return order


def alive(masks: Masks, config: ViTConfig) -> dict[str, Tensor]:
    """Which weights of each block any of its steps keeps, by parameter name."""
    kept = {}
    for k in range(config.n_blocks):
        steps = [t for t in range(config.n_steps) if config.block_of(t) == k]
        for name, mask in split(masks[steps].any(0), config).items():
            kept[f"core.{k}.{WEIGHTS[name]}"] = mask
    return kept


def groups(config: ViTConfig, scope: str) -> list[int]:
    """Numbers of weights that are compared with one another: those of the block (global), or of each matrix."""
    return [sum(sizes(config).values())] if scope == "global" else list(sizes(config).values())
