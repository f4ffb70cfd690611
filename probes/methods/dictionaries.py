"""Sparse dictionaries: rows as sums of a few out of many learned directions, and sparse maps of what a layer does.

An autoencoder gives its input back, a transcoder the output of a layer from its input (Dunefsky et al., arXiv
2406.11944). BatchTopK (Bussmann et al., arXiv 2412.06410): while it is trained the largest activations of a batch are
kept, so many that each row has k on average, and rows that need more get more; afterwards whatever exceeds one fixed
threshold, so that no feature depends on another or on the batch. Features that have not fired for a while learn from
what the others leave (Gao et al., arXiv 2406.04093). Decoder directions have unit norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.loop import Loop, generator

LEARNING_RATE = 4e-3  # Adam's, falling to 0
IDLE = 50  # updates without firing after which a feature counts as dead in training
LEFT_OVER = 1 / 32  # weight of the loss of features that are dead in training
Batch = Mapping[str, tuple[Tensor, Tensor]]  # by site: what goes in and what should come out, [place row width] each


@dataclass(frozen=True)
class Dictionary:
    """One dictionary for all places (states or steps), or a group of features for each place.

    encoder: [group width feature]; bias: [group feature]; decoder: [group feature width]; offset: [group width];
    threshold: what an activation must exceed.
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    offset: Tensor
    threshold: Tensor

    @property
    def n_features(self) -> int:
        """Features at one place."""
        return self.decoder.shape[1]

    def group(self, place: int) -> int:
        return place if len(self.decoder) > 1 else 0

    def codes(self, rows: Tensor, place: int, features: Any = slice(None)) -> Tensor:
        """Activations of features, of rows [... width]: [... feature], zero where a feature does not fire."""
        g = self.group(place)
        activation = rows @ self.encoder[g][:, features] + self.bias[g][features]
        return activation * (activation > self.threshold)

    def decoded(self, codes: Tensor, place: int) -> Tensor:
        """[... width]"""
        g = self.group(place)
        return codes @ self.decoder[g] + self.offset[g]

    def rotated(self, seed: int) -> Dictionary:
        """The same directions, turned together by a random rotation: all angles among them stay."""
        width = self.decoder.shape[-1]
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator(seed, width)))[0].to(self.decoder)
        return Dictionary(turn @ self.encoder, self.bias, self.decoder @ turn.T, self.offset @ turn.T, self.threshold)

    def calibrated(self, batches: Sequence[Tensor], k: float) -> Dictionary:
        """With the threshold at which k features fire on average, on batches of rows [place row width]: between two
        activations, so that rounding moves none across.
        """
        activations = [rising(vars(self), rows) for rows in batches]
        between = torch.stack([(kth_largest(batch, k) + kth_largest(batch, k, 1)) / 2 for batch in activations])
        return Dictionary(self.encoder, self.bias, self.decoder, self.offset, between.mean())


@dataclass(frozen=True)
class Plan:
    """A dictionary to be trained: what it is fed with, its groups, and its sizes."""

    site: str
    groups: int
    n_features: int
    width: int
    is_transcoder: bool = False

    def fresh(self, seed: int, device: Any) -> dict[str, Tensor]:
        """Random unit directions; an autoencoder reads where it writes."""
        size, draw = (self.groups, self.n_features, self.width), generator(seed)
        decoder, other = (torch.nn.functional.normalize(torch.randn(size, generator=draw), dim=-1) for _ in range(2))
        encoder = (other if self.is_transcoder else decoder).transpose(1, 2).contiguous()
        bias, offset = torch.zeros(size[:2]), torch.zeros(self.groups, self.width)
        weights = dict(encoder=encoder, bias=bias, decoder=decoder, offset=offset)
        return {name: value.to(device).requires_grad_() for name, value in weights.items()}


def rising(weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Activations before the threshold (ReLU alone), of rows [place row width]: [group row feature]."""
    grouped = rows.reshape(len(weights["encoder"]), -1, rows.shape[-1])
    return torch.baddbmm(weights["bias"][:, None], grouped, weights["encoder"]).relu()


def kth_largest(activations: Tensor, k: float, more: int = 0) -> Tensor:
    """The value that k activations of each row [group row feature] reach on average, and `more` further ones in all."""
    flat = activations.detach().flatten()
    n_kept = max(1, round(k * flat.numel() / activations.shape[-1])) + more
    return flat.kthvalue(flat.numel() - min(n_kept, flat.numel()) + 1).values


def largest(activations: Tensor, k: float) -> Tensor:
    """Those that are kept, the others 0."""
    return activations * (activations >= kth_largest(activations, k))


def loss_of(weights: Mapping[str, Tensor], rows: Tensor, wanted: Tensor, k: float, idle: Tensor) -> Tensor:
    """Mean squared error, and that of the dead features on what is left over; counts up how long each is `idle`."""
    activations = rising(weights, rows)
    codes = largest(activations, k)
    reconstruction = torch.baddbmm(weights["offset"][:, None], codes, weights["decoder"])
    left = wanted.reshape(len(codes), -1, wanted.shape[-1]) - reconstruction
    idle += 1
    idle[(codes.detach() > 0).any(1)] = 0
    loss, is_dead = left.square().mean(), idle > IDLE
    if is_dead.any():
        others = largest(activations * is_dead[:, None], k)
        loss = loss + LEFT_OVER * (left.detach() - others @ weights["decoder"]).square().mean()
    return loss


def fitted(
    plans: Mapping[str, Plan],
    batches: Any,
    *,
    k: float,
    updates: int,
    seed: int,
    device: Any,
    kept: Any,
    key: Mapping[str, Any],
    label: str = "",
) -> dict[str, Dictionary]:
    """All dictionaries from one stream; ``batches(first, last)`` gives the `Batch` of each update.

    A killed fit goes on from `kept` to the same weights. Raises `InputError` where the loss is not finite.
    """
    weights_of = {name: plan.fresh(seed, device) for name, plan in plans.items()}
    idle = {name: torch.zeros(plan.groups, plan.n_features, device=device) for name, plan in plans.items()}
    parameters = {f"{name} {what}": value for name, weights in weights_of.items() for what, value in weights.items()}
    optimiser = torch.optim.Adam(parameters.values(), LEARNING_RATE)
    parts = {"weights": parameters, "idle": idle, "optimiser": optimiser}
    loop = Loop(
        kept,
        parts,
        updates=updates,
        key=key,
        restart=True,
        unit=" updates",
        label=f"{label}: dictionaries".removeprefix(": "),
        advice="choose fewer --updates",
    )
    stream: Iterator[Batch] = batches(loop.update, updates)
    for update, batch in zip(loop, stream, strict=False):
        losses = [loss_of(weights_of[name], *batch[plan.site], k, idle[name]) for name, plan in plans.items()]
        gradients = torch.autograd.grad(sum(losses), [*parameters.values()])
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - update / updates)
        optimiser.step()
        with torch.no_grad():
            for weights in weights_of.values():
                weights["decoder"].div_(weights["decoder"].norm(dim=-1, keepdim=True))
        loop.note(torch.stack(losses).detach().mean())
    loop.averaged()
    samples = list(batches(0, min(8, updates)))
    trained = {}
    for name, plan in plans.items():
        weights = {what: value.detach() for what, value in weights_of[name].items()}
        uncalibrated = Dictionary(**weights, threshold=torch.zeros((), device=device))
        trained[name] = uncalibrated.calibrated([batch[plan.site][0] for batch in samples], k)
    return trained
