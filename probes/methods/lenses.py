"""Lenses: affine maps that carry what the head reads of a state to what it would read of the last one.

The logit lens is the identity (nostalgebraist, 2020). The tuned lens is one map per state, started there and trained by
the divergence of its answer from the final one (Belrose et al., arXiv 2303.08112); beside it one map that is applied as
often as there are steps left, and one that is the same for all states. The Jacobian lens is the mean derivative of the
last state by this one, which is the mean product of the remaining steps' Jacobians; with the mean states put in it is
the first-order expansion about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.loop import Loop, Order
from probes.methods.reading import Readout, states_from

FITTED = ("tuned", "powers", "same")
JACOBIAN = ("jacobian", "expansion")
BATCH, LEARNING_RATE = 256, 1e-3  # of the fit
AT_ONCE = 16  # images whose Jacobians are taken together


@dataclass(frozen=True)
class Lens:
    """Maps of all states but the last, which is read as it is: weight [state out in], bias [state out]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def identity(cls, n_states: int, width: int, device: Any = None) -> Lens:
        weight = torch.eye(width, device=device).repeat(n_states, 1, 1)
        return cls(weight, torch.zeros(n_states, width, device=device))

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [batch state width], the last state among them or not, as the lens sees them."""
        n = len(self.weight)
        translated = torch.einsum("bsi,soi->bso", rows[:, :n], self.weight) + self.bias
        return torch.cat([translated, rows[:, n:]], 1)


def divergence(final: Tensor, logits: Tensor) -> Tensor:
    """KL(final || lens) in nats [...], from log-probabilities and logits [... class]."""
    return (final.exp() * (final - logits.log_softmax(-1))).sum(-1)


# Fitted lenses


def powers(weight: Tensor, bias: Tensor, n: int) -> Lens:
    """One map applied n times at the first state, once at the last but one."""
    maps = [(weight, bias)]
    for _ in range(n - 1):
        maps.append((weight @ maps[-1][0], weight @ maps[-1][1] + bias))
    return Lens(*map(torch.stack, zip(*reversed(maps), strict=True)))


def lens_of(kind: str, weight: Tensor, bias: Tensor, n: int) -> Lens:
    """A fitted lens from its parameters, the differences from the identity."""
    weight = weight + torch.eye(weight.shape[-1], device=weight.device)
    if kind == "powers":
        return powers(weight, bias, n)
    return Lens(weight.expand(n, -1, -1), bias.expand(n, -1))


def fitted(readout: Readout, rows: Tensor, *, updates: int, seed: int, kept: Any, key: Mapping) -> dict[str, Lens]:
    """The lenses in FITTED from rows [image state width], all states in one pass; Adam, the rate falling to 0."""
    n, width = rows.shape[1] - 1, rows.shape[2]
    sizes = {"tuned": n, "powers": 1, "same": 1}
    maps = {
        f"{kind} {what}": torch.zeros(*shape, device=rows.device, requires_grad=True)
        for kind, size in sizes.items()
        for what, shape in (("weight", (size, width, width)), ("bias", (size, width)))
    }

    def lens(kind: str) -> Lens:
        weight, bias = maps[f"{kind} weight"], maps[f"{kind} bias"]
        return lens_of(kind, *((weight[0], bias[0]) if kind == "powers" else (weight, bias)), n)

    optimiser = torch.optim.Adam(maps.values(), LEARNING_RATE)
    order = Order(len(rows), min(BATCH, len(rows)), seed)
    parts = {"maps": maps, "optimiser": optimiser}
    loop = Loop(kept, parts, updates=updates, key=key, restart=True, label="lenses", advice="use an earlier checkpoint")
    for update in loop:
        part = rows[order.batch(update)[1].to(rows.device)]
        with torch.no_grad():
            final = readout.logits(part[:, -1:]).log_softmax(-1)
        losses = [divergence(final, readout.logits(lens(kind)(part[:, :-1]))).mean(0).sum() for kind in FITTED]
        for parameter, gradient in zip(maps.values(), torch.autograd.grad(sum(losses), [*maps.values()]), strict=True):
            parameter.grad = gradient
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - update / updates)
        optimiser.step()
    with torch.no_grad():
        return {kind: lens(kind) for kind in FITTED}


# The Jacobian lens


def jacobian_sum(readout: Readout, images: Tensor) -> Tensor:
    """d (rows of the last state) / d (rows of each state before it), summed over images: [state out in], float64.

    One backward an output, each through all steps.
    """
    model = readout.model
    with torch.enable_grad():
        states = list(states_from(model, model.embed(images).detach().requires_grad_()))
        last = readout.rows(states.pop())
        by_output = []
        for i in range(last.shape[1]):
            gradients = torch.autograd.grad(last[:, i].sum(), states, retain_graph=i + 1 < last.shape[1])
            by_output.append(torch.stack([readout.pulled_back(gradient).double().sum(0) for gradient in gradients]))
    return torch.stack(by_output, 1)


def jacobian(readout: Readout, walk: Any, positions: np.ndarray, *, kept: Any, key: Mapping) -> Tensor:
    """The mean Jacobian over images by their positions, shared by the processes: [state out in]."""
    rank, world = walk.shard
    device, width = readout.model.pos_embed.device, readout.width
    chunks = np.array_split(positions, -(-len(positions) // AT_ONCE))[rank::world]
    total = torch.zeros(readout.model.config.n_steps, width, width, dtype=torch.float64, device=device)
    path = kept if rank == 0 else None
    for i in Loop(path, {"jacobian": {"sum": total}}, updates=len(chunks), key=key, restart=True, label="Jacobians"):
        images = torch.stack([walk.data[int(place)][0] for place in chunks[i]])
        total += jacobian_sum(readout, images.to(device))
    return (walk.sum(total) / len(positions)).float()


def jacobian_lenses(weight: Tensor, mean: Tensor) -> dict[str, Lens]:
    """The lenses in JACOBIAN, from the mean Jacobian and the mean rows [state width] of all states."""
    offset = mean[-1] - torch.einsum("soi,si->so", weight, mean[:-1])
    return {"jacobian": Lens(weight, torch.zeros_like(offset)), "expansion": Lens(weight, offset)}
