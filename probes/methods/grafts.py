"""Train all grafts of one pruning round in one pass over the data.

A graft is the block's initialisation under one step's mask, trained at that step alone while the model around it is
frozen. The grafts do not depend on each other. Steps before a graft are shared and need no gradient; the T graft
blocks run as one batched block; and behind them all diverged runs pass each step as one batch, because its frozen
weights are the same for all. That is 179 block passes where one after the other takes 234 (T = 12), with the same
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.config import ViTConfig
from models.masks import WEIGHTS, split
from models.vit import BViT

Stack = dict[str, Tensor]  # a block's parameters by name, [graft ...]


def stack(model: BViT, steps: Sequence[int], masks: Tensor) -> Stack:
    """The block's parameters for each graft, under its mask [graft weight]: what step `steps[i]` of `model` uses."""
    blocks = [dict(model.core[model.config.block_of(t)].named_parameters()) for t in steps]
    grafts = {name: torch.stack([block[name].detach() for block in blocks]) for name in blocks[0]}
    return {name: value.requires_grad_() for name, value in masked(grafts, masks, model.config).items()}


def masked(grafts: Stack, masks: Tensor, config: ViTConfig) -> Stack:
    """The grafts with their matrices times their masks [graft weight]."""
    return grafts | {WEIGHTS[name]: grafts[WEIGHTS[name]] * mask for name, mask in split(masks, config).items()}


def stacked_block(model: BViT, h: Tensor, grafts: Stack) -> Tensor:
    """B(h) with weights of its own for each graft: [graft batch pos d_model] -> the same.

    Fused attention has no batching rule, so vmap takes the plain one.
    """
    step, block = model.blocks[0], model.core[0]

    def run(weights: Stack, z: Tensor) -> Tensor:
        return functional_call(block, weights, (z, step))

    with sdpa_kernel(SDPBackend.MATH):
        return torch.vmap(run)(grafts, h)


def losses(model: BViT, grafts: Stack, masks: Tensor, steps: Sequence[int], images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the model with each graft in its place, alone: [graft].

    `steps` ascend and say where each graft stands; `model` is frozen and runs under its own masks.
    """
    config = model.config
    entering = dict(enumerate(states(model, images, max(steps))))
    h = torch.stack([entering[t] for t in steps])
    diverged = stacked_block(model, h, masked(grafts, masks, config))
    z = diverged[:0, 0]
    for t in range(min(steps), config.n_steps):
        z = model.run_steps(z, t, t + 1) if len(z) else z
        z = torch.cat([z, *(diverged[i] for i, step in enumerate(steps) if step == t)])
    logits = model.read_out(z).unflatten(0, (len(steps), -1))
    return F.cross_entropy(logits.movedim(-1, 1), labels.expand(len(steps), -1), reduction="none").mean(1)


@torch.no_grad()
def states(model: BViT, images: Tensor, last: int) -> list[Tensor]:
    """What enters each step 0 .. last of the frozen model, step embedding included: [batch pos d_model] each."""
    z, out = model.embed(images), []
    for t in range(last + 1):
        embedding = model.step_embedding(t)
        out.append(z if embedding is None else z + embedding)
        z = model.run_steps(z, t, t + 1) if t < last else z
    return out


def clip(grafts: Stack, limit: float) -> None:
    """Scale each graft's own gradient to a norm of at most `limit`, in place."""
    squares = sum(value.grad.flatten(1).square().sum(1) for value in grafts.values())
    factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1)
    for value in grafts.values():
        value.grad *= factor.view(-1, *[1] * (value.ndim - 1))


def optimizer(grafts: Stack, lr: float) -> torch.optim.Optimizer:
    """AdamW; only the grafts' matrices are decayed."""
    decayed = [grafts[name] for name in WEIGHTS.values()]
    rest = [value for name, value in grafts.items() if name not in WEIGHTS.values()]
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=0.05)
