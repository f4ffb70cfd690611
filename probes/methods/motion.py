"""Per-image measures of how states change from step to step, and the row of a state that represents its image."""

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
    """Extracts from every state the row that represents its image, for one model or for two models side by side."""

    model: BViT
    other: BViT | None
    asked: str | None  # "cls" or "mean"; None for the one that each model's head reads

    @property
    def name(self) -> str:
        return "" if self.other is None else self.other.origin.source

    @property
    def counts(self) -> list[int]:
        """The number of states of each model."""
        return [model.config.n_steps + 1 for model in (self.model, self.other) if model is not None]

    def token(self, model: BViT) -> str:
        return self.asked or ("mean" if model.config.pool == "mean" else "cls")

    def of(self, model: BViT, state: Tensor) -> Tensor:
        """The row that represents each image of a state: CLS, or the mean of the patches [batch d_model]."""
        is_mean = self.token(model) == "mean"
        return state[:, model.config.n_prefix :].mean(1) if is_mean else state[:, 0]

    def stacked(self, states: list[Tensor], images: Tensor) -> Tensor:
        """The rows of the model's states, followed by those of the other model: [batch set d].

        The rows of a narrower model are padded with zeros.
        """
        rows = [self.of(self.model, z) for z in states]
        if self.other is not None:
            rows += [self.of(self.other, z) for z in states_of(self.other, images)]
        width = max(row.shape[1] for row in rows)
        return torch.stack([functional.pad(row, (0, width - row.shape[1])) for row in rows], 1)

    def increments(self, rows: Tensor) -> Tensor:
        """The change of the rows at each step: [batch set d]."""
        return torch.cat([states.diff(dim=1) for states in rows.split(self.counts, 1)], 1)


def moves(states: list[Tensor], n_prefix: int) -> tuple[Values, Tensor]:
    """Measures of every image's path through its states, and the sum over images of all tokens at unit length.

    Measures: relative size (`update`) and angle in degrees of each step, the angle of a random step of the same size
    (`null_angle`), the cosine to the last state, and the mean cosine of two patches (`coherence`). The sum is [state
    pos d_model].
    """
    z = torch.stack(states)
    length = z.norm(dim=-1, keepdim=True)
    unit = z / length

    def of_tokens(values: Tensor) -> Tensor:
        """CLS and the mean of the patches: [step batch pos] -> [token step batch]."""
        return torch.stack([values[:, :, 0], values[:, :, n_prefix:].mean(2)])

    update = (z[1:] - z[:-1]).norm(dim=-1) / length[:-1, ..., 0]
    half_angle = torch.atan2((unit[1:] - unit[:-1]).norm(dim=-1), (unit[1:] + unit[:-1]).norm(dim=-1))
    n = z.shape[2] - n_prefix
    cosine_sum = unit[:, :, n_prefix:].sum(2).square().sum(-1)  # over all pairs, each patch with itself included
    coherence = (cosine_sum - n) / (n * (n - 1)) if n > 1 else torch.full_like(cosine_sum, torch.nan)
    values = {
        "update": (("token", "step"), of_tokens(update)),
        "angle": (("token", "step"), of_tokens(2 * half_angle).rad2deg()),
        "null_angle": (("token", "step"), of_tokens(update.atan()).rad2deg()),
        "cosine_to_final": (("token", "state"), of_tokens((unit * unit[-1]).sum(-1))),
        "coherence": (("state",), coherence),
    }
    return values, unit.sum(1)


def stable_rank(updates: Tensor) -> Tensor:
    """Stable rank |U|_F^2 / |U|_2^2 of every image's update U [pos d_model]: [batch]."""
    narrow = updates if updates.shape[1] <= updates.shape[2] else updates.mT
    energy = torch.linalg.eigvalsh((narrow @ narrow.mT).double())
    return energy.sum(-1) / energy[:, -1]
