"""Train all grafts of one pruning round in one pass over the data.

A graft is the block's initialisation under one step's mask, trained at that step alone while the model around it is frozen. The grafts do
not depend on each other. Steps before a graft are shared and need no gradient; the T graft blocks run as one batched block; and behind
them all diverged runs pass each step as one batch, because its frozen weights are the same for all. That is 179 block
passes where one after the other takes 234 (T = 12), with the same gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

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


def stacked_block(h: Tensor, w: Stack, config: ViTConfig) -> Tensor:
    """B(h) with weights of its own for each graft: [graft batch pos d_model] -> the same. The arithmetic of `models.block.Block`."""
    u = h + scaled(attention(norm(h, w, "norm1", config), w, config), w, "ls1")
    hidden = F.gelu(linear(norm(u, w, "norm2", config), w, "mlp.fc1"))
    return u + scaled(linear(hidden, w, "mlp.fc2"), w, "ls2")


def attention(x: Tensor, w: Stack, config: ViTConfig) -> Tensor:
    """Multi-head attention, the grafts folded into the batch (vmap would run fused attention in a loop)."""
    pattern = "graft batch pos (three head d) -> three (graft batch) head pos d"
    q, k, v = rearrange(linear(x, w, "attn.qkv"), pattern, three=3, head=config.n_heads)
    z = F.scaled_dot_product_attention(q, k, v)
    return linear(rearrange(z, "(graft batch) head pos d -> graft batch pos (head d)", graft=len(x)), w, "attn.proj")


def linear(x: Tensor, w: Stack, name: str) -> Tensor:
    out = torch.baddbmm(w[f"{name}.bias"][:, None], x.flatten(1, 2), w[f"{name}.weight"].transpose(1, 2))
    return out.unflatten(1, x.shape[1:3])


def norm(x: Tensor, w: Stack, name: str, config: ViTConfig) -> Tensor:
    weight = w[f"{name}.weight"][:, None, None]
    if config.norm == "rms":
        return F.rms_norm(x, x.shape[-1:], eps=config.norm_eps) * weight
    return F.layer_norm(x, x.shape[-1:], eps=config.norm_eps) * weight + w[f"{name}.bias"][:, None, None]


def scaled(x: Tensor, w: Stack, name: str) -> Tensor:
    return x * w[f"{name}.gamma"][:, None, None] if f"{name}.gamma" in w else x


def losses(model: BViT, grafts: Stack, masks: Tensor, steps: Sequence[int], images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the model with each graft in its place, alone: [graft].

    `steps` ascend and say where each graft stands; `model` is frozen and runs under its own masks.
    """
    config = model.config
    entering = dict(enumerate(states(model, images, max(steps))))
    h = torch.stack([entering[t] for t in steps])
    diverged = stacked_block(h, masked(grafts, masks, config), config)
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
