"""Sparse dictionaries: each row is approximated by a sum of a few out of many learned directions.

An autoencoder reconstructs its input; a transcoder predicts the output of a layer from the layer's input (Dunefsky et
al., arXiv 2406.11944). Activations are sparsified by BatchTopK (Bussmann et al., arXiv 2412.06410): training keeps the
largest activations of a batch, k per row on average, so that a row may keep more or fewer. Afterwards one fixed
threshold replaces the top-k, so that a feature depends neither on other features nor on the batch. Features that have
not fired for some updates are trained on the residual of the others (auxiliary loss of Gao et al., arXiv 2406.04093).
Decoder directions have unit norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.loop import Loop, generator

LEARNING_RATE = 4e-3  # Adam's, falling to 0
IDLE = 50  # updates without firing after which a feature counts as dead during training
LEFT_OVER = 1 / 32  # weight of the auxiliary loss of dead features
Batch = Mapping[str, tuple[Tensor, Tensor]]  # by site: input and target, [place row width] each


@dataclass(frozen=True)
class Dictionary:
    """A dictionary with one group of features for all places (states or steps), or with one group per place.

    encoder: [group width feature]; bias: [group feature]; decoder: [group feature width]; offset: [group width];
    threshold: scalar that an activation must exceed to fire.
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    offset: Tensor
    threshold: Tensor

    @property
    def n_features(self) -> int:
        """The number of features at one place."""
        return self.decoder.shape[1]

    def group(self, place: int) -> int:
        return place if len(self.decoder) > 1 else 0

    def codes(self, rows: Tensor, place: int, features: Any = slice(None)) -> Tensor:
        """Activations [... feature] of rows [... width], zero where a feature does not fire."""
        group = self.group(place)
        activation = rows @ self.encoder[group][:, features] + self.bias[group][features]
        return activation * (activation > self.threshold)

    def decoded(self, codes: Tensor, place: int) -> Tensor:
        """The reconstruction [... width] from codes [... feature]."""
        group = self.group(place)
        return codes @ self.decoder[group] + self.offset[group]

    def rotated(self, seed: int) -> Dictionary:
        """The same directions under one random rotation, which keeps all angles between them."""
        width = self.decoder.shape[-1]
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator(seed, width)))[0].to(self.decoder)
        return Dictionary(turn @ self.encoder, self.bias, self.decoder @ turn.T, self.offset @ turn.T, self.threshold)

    def calibrated(self, batches: Sequence[Tensor], k: float) -> Dictionary:
        """The dictionary with the threshold at which k features per row fire on average.

        batches: rows [place row width]. The threshold lies midway between two activations, so that rounding does not
        move an activation across it.
        """
        activations = [pre_threshold(vars(self), rows) for rows in batches]
        midpoints = torch.stack([(kth_largest(batch, k) + kth_largest(batch, k, 1)) / 2 for batch in activations])
        return Dictionary(self.encoder, self.bias, self.decoder, self.offset, midpoints.mean())


@dataclass(frozen=True)
class Plan:
    """A dictionary to be trained: the site whose rows it encodes, its number of groups, and its sizes."""

    site: str
    groups: int
    n_features: int
    width: int
    is_transcoder: bool = False

    def fresh(self, seed: int, device: Any) -> dict[str, Tensor]:
        """Initial weights: random unit directions; an autoencoder's encoder is its decoder, transposed."""
        size, rng = (self.groups, self.n_features, self.width), generator(seed)
        decoder = torch.nn.functional.normalize(torch.randn(size, generator=rng), dim=-1)
        independent = torch.nn.functional.normalize(torch.randn(size, generator=rng), dim=-1)
        encoder = (independent if self.is_transcoder else decoder).transpose(1, 2).contiguous()
        bias, offset = torch.zeros(size[:2]), torch.zeros(self.groups, self.width)
        weights = dict(encoder=encoder, bias=bias, decoder=decoder, offset=offset)
        return {name: value.to(device).requires_grad_() for name, value in weights.items()}


def pre_threshold(weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Activations [group row feature] of rows [place row width] before the threshold, after the ReLU."""
    grouped = rows.reshape(len(weights["encoder"]), -1, rows.shape[-1])
    return torch.baddbmm(weights["bias"][:, None], grouped, weights["encoder"]).relu()


def kth_largest(activations: Tensor, k: float, more: int = 0) -> Tensor:
    """The smallest kept activation if k per row are kept on average, and `more` further ones in total.

    activations: [group row feature].
    """
    flat = activations.detach().flatten()
    n_kept = max(1, round(k * flat.numel() / activations.shape[-1])) + more
    return flat.kthvalue(flat.numel() - min(n_kept, flat.numel()) + 1).values


def largest(activations: Tensor, k: float) -> Tensor:
    """The activations that BatchTopK keeps; all others are 0."""
    return activations * (activations >= kth_largest(activations, k))


def loss_of(weights: Mapping[str, Tensor], rows: Tensor, wanted: Tensor, k: float, idle: Tensor) -> Tensor:
    """Mean squared error of the reconstruction of `wanted`, plus that of the dead features on the residual.

    Updates `idle` in place: the number of updates since each feature last fired.
    """
    activations = pre_threshold(weights, rows)
    codes = largest(activations, k)
    reconstruction = torch.baddbmm(weights["offset"][:, None], codes, weights["decoder"])
    residual = wanted.reshape(len(codes), -1, wanted.shape[-1]) - reconstruction
    idle += 1
    idle[(codes.detach() > 0).any(1)] = 0
    loss = residual.square().mean()
    is_dead = idle > IDLE
    if is_dead.any():
        dead_codes = largest(activations * is_dead[:, None], k)
        loss = loss + LEFT_OVER * (residual.detach() - dead_codes @ weights["decoder"]).square().mean()
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
    """Trains all dictionaries on one stream; ``batches(first, last)`` yields the `Batch` of each update.

    A killed training resumes from the file `kept` and ends with the same weights. Raises `InputError` if the loss is
    not finite.
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
