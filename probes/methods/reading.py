"""What a model's head reads of a state, and how: rows, a norm, and a direction for each class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.vit import BViT


@dataclass(frozen=True)
class Readout:
    """The head of a model, taken apart. It reads one row of a state (CLS, or the mean patch), or two (DeiT's)."""

    model: BViT

    @property
    def heads(self) -> list[torch.nn.Module]:
        """The classifier of each row that is read; their logits are averaged."""
        is_distilled = self.model.config.pool == "distilled"
        return [self.model.head, self.model.head_dist] if is_distilled else [self.model.head]

    @property
    def width(self) -> int:
        return len(self.heads) * self.model.config.d_model

    def pooled(self, x: Tensor) -> Tensor:
        """The rows that are read, of anything [batch pos ...] that adds to the stream: [batch row ...]."""
        if self.model.config.pool == "mean":
            return x[:, self.model.config.n_prefix :].mean(1, keepdim=True)
        return x[:, : len(self.heads)]

    def rows(self, state: Tensor) -> Tensor:
        """The rows that are read, one after the other: [batch width]."""
        return self.pooled(state).flatten(1)

    def pulled_back(self, gradient: Tensor) -> Tensor:
        """The gradient in the rows [batch width] from one in a state; the mean patch moves when all patches do."""
        if self.model.config.pool == "mean":
            return gradient[:, self.model.config.n_prefix :].sum(1)
        return self.rows(gradient)

    def logits(self, rows: Tensor) -> Tensor:
        """[... class], from rows [... width]."""
        normed = self.model.norm(rows.unflatten(-1, (len(self.heads), -1)))
        return torch.stack([head(normed[..., i, :]) for i, head in enumerate(self.heads)]).mean(0)

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """What each token would answer in the place of those that are read: [batch pos class]."""
        return self.logits(tokens.repeat(1, 1, len(self.heads)))

    def directions(self) -> Tensor:
        """What raises the logit of each class, per unit of the row over its scale: [row class d_model]."""
        weight = torch.stack([head.weight for head in self.heads]) * self.model.norm.weight / len(self.heads)
        return weight - weight.mean(-1, keepdim=True) if self.model.norm.is_centred else weight

    def biases(self) -> Tensor:
        """What each class has whatever the state is: [class]."""
        norm = self.model.norm.bias
        biases = [head.bias + (0 if norm is None else head.weight @ norm) for head in self.heads]
        return torch.stack(biases).mean(0)

    def scale(self, pooled: Tensor) -> Tensor:
        """What the final norm divides rows [batch row d_model] by: [batch row 1]."""
        centred = pooled - pooled.mean(-1, keepdim=True) if self.model.norm.is_centred else pooled
        return (centred.square().mean(-1, keepdim=True) + self.model.norm.eps).sqrt()


def states_of(model: BViT, images: Tensor) -> Iterator[Tensor]:
    """The states z_0 .. z_T of a run on images [batch 3 height width], one at a time: [batch pos d_model] each."""
    return states_from(model, model.embed(images.to(model.pos_embed.device)))


def states_from(model: BViT, z: Tensor) -> Iterator[Tensor]:
    """The states of the run that starts from z_0 = `z` [batch pos d_model], z_0 among them, one at a time."""
    yield z
    for t in range(model.config.n_steps):
        z = model.run_steps(z, t, t + 1)
        yield z


def best_other(logits: Tensor, target: Tensor) -> Tensor:
    """The class with the highest logit but for the target: [batch], of logits [batch class] and classes [batch]."""
    return logits.scatter(1, target[:, None], -torch.inf).argmax(1)
