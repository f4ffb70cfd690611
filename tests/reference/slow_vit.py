"""The model once more: plain loops over steps, images and heads, no fused operation, no hooks: what `BViT` must be."""

import math

import torch
from torch import Tensor

from models.config import ViTConfig
from models.vit import sinusoid


def norm(x: Tensor, weights: dict[str, Tensor], name: str, config: ViTConfig) -> Tensor:
    if config.norm == "rms":
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weights[f"{name}.weight"]
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(x: Tensor, weights: dict[str, Tensor], block: str, config: ViTConfig) -> Tensor:
    """x: [pos d_model] of one image."""
    d, out = config.d_head, []
    q, k, v = linear(x, weights, f"{block}.attn.qkv").split(config.d_model, -1)
    for head in range(config.n_heads):
        own = slice(head * d, (head + 1) * d)
        scores = q[:, own] @ k[:, own].T / math.sqrt(d)
        weight = (scores - scores.max(-1, keepdim=True).values).exp()
        out.append(weight / weight.sum(-1, keepdim=True) @ v[:, own])
    return linear(torch.cat(out, -1), weights, f"{block}.attn.proj")


def mlp(x: Tensor, weights: dict[str, Tensor], block: str) -> Tensor:
    hidden = linear(x, weights, f"{block}.mlp.fc1")
    return linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), weights, f"{block}.mlp.fc2")


def forward(image: Tensor, weights: dict[str, Tensor], config: ViTConfig, n_steps: int | None = None) -> Tensor:
    """Logits [class] of one image [3 height width]."""
    p, n_steps = config.patch_size, config.n_steps if n_steps is None else n_steps
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    patches = [
        kernel @ image[:, y : y + p, x : x + p].flatten() + weights["patch_embed.proj.bias"]
        for y in range(0, config.image_size, p)
        for x in range(0, config.image_size, p)
    ]
    registers = [weights["reg_token"][0, k] for k in range(config.n_registers)]
    z = torch.stack([weights["cls_token"][0, 0], *registers, *patches]) + weights["pos_embed"][0]
    for t in range(n_steps):
        block = f"core.{min(t * config.n_blocks // config.n_steps, config.n_blocks - 1)}"
        if config.step_embedding == "learned":
            z = z + weights["step_embed"][min(t, config.n_steps - 1)]
        if config.step_embedding == "sinusoidal":
            z = z + sinusoid(t, config.d_model, z)
        z = z + attention(norm(z, weights, f"{block}.norm1", config), weights, block, config) * weights.get(
            f"{block}.ls1.gamma", 1
        )
        z = z + mlp(norm(z, weights, f"{block}.norm2", config), weights, block) * weights.get(f"{block}.ls2.gamma", 1)
    pooled = z[0] if config.pool == "cls" else z[1 + config.n_registers :].mean(0)
    return linear(norm(pooled, weights, "norm", config), weights, "head")
