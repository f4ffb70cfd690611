"""Where a class comes from: maps of relevance [batch step head key], one row of keys for CLS, as attention is.

| map | step t says | heads |
|---|---|---|
| attention | what CLS attends to in step t | each |
| gradient | (A dy/dA)+ of CLS in step t: attention times the gradient of the class's logit y | each |
| chefer | R <- R + E_h[(A dy/dA)+] R from R = I, after step t: relevance that steps 0 to t carried (Chefer et al., \
2021) | all |
| rollout | the product of (E_h[A] + I) / 2 over steps t to T - 1: what enters step t and reaches the end (Abnar & \
Zuidema, 2020) | all |

A is the pattern [batch head query key] of a step (``blocks.{t}.attn.hook_pattern``), where gradients are taken as well;
E_h is the mean over heads. Rows are given as shares of their sum; one without any relevance is zero throughout. All but
attention hold the patterns of every step of one batch at a time: choose a smaller --batch-size for many tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import einsum, rearrange
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from models import hooks

if TYPE_CHECKING:
    from models import BViT

OF_CLASS = ("gradient", "chefer")  # the maps that ask for the class's logit
OF_ALL_HEADS = ("chefer", "rollout")


def maps(model: BViT, images: Tensor, kind: str, target: Tensor | None = None) -> Tensor:
    """CLS's relevance [batch step head key], float32; `target` [batch] is the class of those in `OF_CLASS`."""
    if kind == "attention":
        with torch.inference_mode():
            return hooks.cls_attention(model, images)
    if kind == "rollout":
        with torch.inference_mode():
            return rollout(mean_patterns(model, images))
    products = relevant(*patterns(model, images, target))
    rows = gradient(products) if kind == "gradient" else chefer(products)
    return rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def patterns(model: BViT, images: Tensor, target: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Each step's pattern, and the gradient there of the target class's logit: [batch head query key] each."""
    kept: list[Tensor] = []

    def keep(pattern: Tensor, hook: HookPoint) -> None:
        kept.append(pattern)

    with torch.enable_grad():
        images = images.detach().requires_grad_()  # so that gradients flow through frozen weights too
        logits = model.run_with_hooks(images, fwd_hooks=[("blocks.*.attn.hook_pattern", keep)])
        gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), kept)
    return [pattern.detach() for pattern in kept], list(gradients)


def mean_patterns(model: BViT, images: Tensor) -> list[Tensor]:
    """Each step's pattern, mean over heads: [batch query key] each."""
    reduced = {"blocks.*.attn.hook_pattern": lambda pattern: pattern.float().mean(1)}
    _, cache = model.run_with_cache(images, names_filter=reduced, stop_at_step=model.config.n_steps)
    return [cache["pattern", t] for t in range(model.config.n_steps)]


def relevant(of_steps: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """(A dy/dA)+ of every step: [batch head query key] each, float32."""
    pairs = zip(of_steps, gradients, strict=True)
    return [(pattern.float() * gradient.float()).clamp(min=0) for pattern, gradient in pairs]


def gradient(products: list[Tensor]) -> Tensor:
    """The rows of CLS in each step: [batch step head key]."""
    return torch.stack([product[:, :, 0] for product in products], 1)


def chefer(products: list[Tensor]) -> Tensor:
    """CLS's row of R after each step: [batch step 1 key]."""
    n_images, _, n_tokens, _ = products[0].shape
    relevance, rows = torch.eye(n_tokens, device=products[0].device).expand(n_images, -1, -1), []
    for product in products:
        relevance = relevance + product.mean(1) @ relevance
        rows.append(relevance[:, 0])
    return rearrange(rows, "step batch key -> batch step 1 key")


def rollout(of_steps: list[Tensor]) -> Tensor:
    """CLS's row of the product over steps t to T - 1, for each t: [batch step 1 key].

    Multiplied from the last step backwards, so that one row is carried in place of the whole product.
    """
    row = torch.zeros(of_steps[0].shape[:2], device=of_steps[0].device)
    row[:, 0] = 1  # CLS
    rows = []
    for pattern in reversed(of_steps):
        row = (einsum(row, pattern, "batch query, batch query key -> batch key") + row) / 2
        rows.append(row)
    return rearrange(rows[::-1], "step batch key -> batch step 1 key")
