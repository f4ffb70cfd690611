"""The model once more, written apart from `models.vit`: plain products over a dict of weights, head by head, no module,
no hook, no fused operation. `models.verify` holds a checkpoint's hooked model against it.

Weights carry the names of `BViT.state_dict()`; masks, where a pruned model has them, are those of each step by matrix.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from models.config import ViTConfig

Weights = dict[str, Tensor]
Masks = list[dict[str, Tensor]] | None  # [step], matrix -> [out in]
Stream = Float[Tensor, "batch pos d_model"]


def logits(weights: Weights, config: ViTConfig, images: Tensor, masks: Masks = None) -> Tensor:
    """The answer to images [batch 3 height width]: [batch class], or pooled features of a model without a head."""
    z = embed(weights, config, images)
    return read_out(weights, config, run(weights, config, z, 0, config.n_steps, masks))


def embed(weights: Weights, config: ViTConfig, images: Tensor) -> Stream:
    """z_0: CLS, registers, patches in reading order, plus positions, then CLIP's norm where there is one."""
    p = config.patch_size
    cut = images.unfold(2, p, p).unfold(3, p, p)  # [batch 3 row column y x]
    pixels = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    patches = pixels @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    first = [weights[name].expand(len(images), -1, -1) for name in ("cls_token", "reg_token") if name in weights]
    z = torch.cat([*first, patches], 1) + weights["pos_embed"]
    return norm(z, weights, "norm_pre", config) if config.pre_norm else z


def run(weights: Weights, config: ViTConfig, z: Stream, first: int, last: int, masks: Masks = None) -> Stream:
    """The stream after steps `first` .. `last` - 1: ``u = z + attention(norm(z)); z' = u + mlp(norm(u))``."""
    for t in range(first, last):
        block = f"core.{t * config.n_blocks // config.n_steps}"
        own = {name: value for name, value in weights.items() if name.startswith(f"{block}.")}
        for name, mask in (masks[t] if masks else {}).items():
            own[f"{block}.{name}"] = own[f"{block}.{name}"] * mask
        z = z + step_embedding(weights, config, t)
        attended = attention(norm(z, own, f"{block}.norm1", config), own, f"{block}.attn", config)
        u = z + attended * own.get(f"{block}.ls1.gamma", 1)
        computed = mlp(norm(u, own, f"{block}.norm2", config), own, f"{block}.mlp", config)
        z = u + computed * own.get(f"{block}.ls2.gamma", 1)
    return z


def read_out(weights: Weights, config: ViTConfig, z: Stream) -> Tensor:
    """Final norm and head: on CLS, on the mean of the patches, or on CLS and DeiT's distillation token, averaged."""
    if config.pool == "mean":
        return head(norm(z[:, 1 + config.n_registers :].mean(1), weights, "norm", config), weights, "head")
    z = norm(z, weights, "norm", config)
    if config.pool == "distilled":
        return (head(z[:, 0], weights, "head") + head(z[:, 1], weights, "head_dist")) / 2
    return head(z[:, 0], weights, "head")


def head(x: Tensor, weights: Weights, name: str) -> Tensor:
    return linear(x, weights, name) if f"{name}.weight" in weights else x


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x: Tensor, weights: Weights, name: str, config: ViTConfig) -> Tensor:
    """LayerNorm, or RMSNorm, which subtracts no mean and adds no bias."""
    centred = x - x.mean(-1, keepdim=True) if config.norm == "ln" else x
    length = (centred.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt()
    return centred / length * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)


def step_embedding(weights: Weights, config: ViTConfig, t: int) -> Tensor | float:
    """What is added to every token before step t (TE)."""
    if config.step_embedding == "learned":
        return weights["step_embed"][t]
    if config.step_embedding == "none":
        return 0.0
    angles = [t / 10_000 ** (2 * (i // 2) / config.d_model) for i in range(config.d_model)]
    waves = [math.cos(angle) if i % 2 else math.sin(angle) for i, angle in enumerate(angles)]
    return 0.02 * torch.tensor(waves).to(weights["pos_embed"])


def attention(x: Stream, weights: Weights, name: str, config: ViTConfig) -> Stream:
    d, out = config.d_model // config.n_heads, []
    q, k, v = linear(x, weights, f"{name}.qkv").split(config.d_model, -1)
    for index in range(config.n_heads):
        own = slice(index * d, (index + 1) * d)
        query, key = q[..., own], k[..., own]
        if config.qk_norm:
            query, key = norm(query, weights, f"{name}.q_norm", config), norm(key, weights, f"{name}.k_norm", config)
        if config.position == "rotary":
            query, key = rotated(query, config), rotated(key, config)
        scores = query @ key.mT / math.sqrt(d)
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        out.append(weight / weight.sum(-1, keepdim=True) @ v[..., own])
    return linear(torch.cat(out, -1), weights, f"{name}.proj")


def mlp(x: Stream, weights: Weights, name: str, config: ViTConfig) -> Stream:
    hidden = linear(x, weights, f"{name}.fc1")
    quick = config.activation == "quick_gelu"
    share = 1 / (1 + (-1.702 * hidden).exp()) if quick else 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return linear(hidden * share, weights, f"{name}.fc2")


def rotated(x: Tensor, config: ViTConfig) -> Tensor:
    """DINOv3's rotary positions of one head [batch pos d_head]: channels i and i + d/2 turn by an angle of the patch's
    row (first quarter) or column (second), in [-1, 1] over the image, with periods 100^(i / quarter).
    """
    side, half = config.side, x.shape[-1] // 2
    quarter, out = half // 2, x.clone()
    for index in range(side * side):
        token = x.shape[1] - side * side + index
        for i in range(half):
            place = (index // side if i < quarter else index % side) + 0.5
            angle = 2 * math.pi * (2 * place / side - 1) / 100 ** ((i % quarter) / quarter)
            a, b = x[:, token, i], x[:, token, half + i]
            out[:, token, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, token, half + i] = b * math.cos(angle) + a * math.sin(angle)
    return out
