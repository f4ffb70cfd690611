"""Numbers of single images as their states move from step to step, and the rows that stand for an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.vit import BViT
from probes.methods.means import Values
from probes.methods.reading import states_of

TOKENS = ("cls", "patches")


@dataclass(frozen=True)
class Rows:
    """Which row of every state stands for an image, of one model or of two side by side."""

    model: BViT
    other: BViT | None
    asked: str | None

    @property
    def name(self) -> str:
        return "" if self.other is None else self.other.origin.source

    @property
    def counts(self) -> list[int]:
        """States of each model."""
        return [model.config.n_steps + 1 for model in (self.model, self.other) if model is not None]

    def token(self, model: BViT) -> str:
        return self.asked or ("mean" if model.config.pool == "mean" else "cls")

    def of(self, model: BViT, state: Tensor) -> Tensor:
        """[batch d_model]"""
        is_mean = self.token(model) == "mean"
        return state[:, model.config.n_prefix :].mean(1) if is_mean else state[:, 0]

    def stacked(self, states: list[Tensor], images: Tensor) -> Tensor:
        """Rows of the model's states, and after them those of the other: [batch set d]; the narrower have zeros."""
        rows = [self.of(self.model, z) for z in states]
        if self.other is not None:
            rows += [self.of(self.other, z) for z in states_of(self.other, images)]
        width = max(row.shape[1] for row in rows)
        return torch.stack([functional.pad(row, (0, width - row.shape[1])) for row in rows], 1)

    def increments(self, rows: Tensor) -> Tensor:
        """What each step adds to the rows: [batch set d]."""
        return torch.cat([states.diff(dim=1) for states in rows.split(self.counts, 1)], 1)


def moves(states: list[Tensor], n_prefix: int) -> tuple[Values, Tensor]:
    """Of every image the size and angle (degrees) of its steps, the cosine to its last state, and how alike its patches
    are; and the sum over images of all tokens at unit length [state pos d].
    """
    z = torch.stack(states)
    length = z.norm(dim=-1, keepdim=True)
    unit = z / length

    def of_tokens(values: Tensor) -> Tensor:
        """[step batch pos] -> [token step batch]"""
        return torch.stack([values[:, :, 0], values[:, :, n_prefix:].mean(2)])

    update = (z[1:] - z[:-1]).norm(dim=-1) / length[:-1, ..., 0]
    half = torch.atan2((unit[1:] - unit[:-1]).norm(dim=-1), (unit[1:] + unit[:-1]).norm(dim=-1))
    n = z.shape[2] - n_prefix
    together = unit[:, :, n_prefix:].sum(2).square().sum(-1)
    values = {
        "update": (("token", "step"), of_tokens(update)),
        "angle": (("token", "step"), of_tokens(2 * half).rad2deg()),
        "null_angle": (("token", "step"), of_tokens(update.atan()).rad2deg()),
        "cosine_to_final": (("token", "state"), of_tokens((unit * unit[-1]).sum(-1))),
        "coherence": (("state",), (together - n) / (n * (n - 1)) if n > 1 else torch.full_like(together, torch.nan)),
    }
    return values, unit.sum(1)


def stable_rank(updates: Tensor) -> Tensor:
    """|U|_F^2 over the square of the largest singular value, of the update [pos d_model] of every image: [batch]."""
    narrow = updates if updates.shape[1] <= updates.shape[2] else updates.mT
    energy = torch.linalg.eigvalsh((narrow @ narrow.mT).double())
    return energy.sum(-1) / energy[:, -1]
