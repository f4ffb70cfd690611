"""Patched runs: what a model answers when something of one run is put into another, many of them in a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import models

HOOKS = {"attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "z": "attn.hook_z"}
SITES = ("resid", "attn_out", "mlp_out")


def steps(model: models.BViT, images: Tensor) -> Iterator[dict[str, Tensor]]:
    """What every step of a plain run holds, step by step: resid, the state that enters it, attn_out, mlp_out [image pos
    d_model], z [image pos head d_head]. The state is that before the step embedding, where there is one.
    """
    state = model.embed(images)
    for t in range(model.config.n_steps):
        names = {f"blocks.{t}.{name}": site for site, name in HOOKS.items()}
        after, cache = model.cached(lambda state=state, t=t: model.run_steps(state, t, t + 1), list(names))
        yield {"resid": state} | {site: cache[name] for name, site in names.items()}
        state = after


def patched(model: models.BViT, state: Tensor, t: int, site: str, value: Tensor, mask: Tensor, rows: int) -> Tensor:
    """Logits [run patch class] of the runs whose states [run pos d_model] enter step t, each patched in several ways.

    At `site` of step t stands `value` [run ...], or [run patch ...] where each patch has its own, wherever `mask` [run
    patch ...] holds; both broadcast to the site's activation. The patches of all runs share batches of `rows`, which
    start at step t and so never repeat what comes before it.
    """
    run, patch = (place.flatten() for place in torch.meshgrid(*map(torch.arange, mask.shape[:2]), indexing="ij"))
    has_own = value.ndim == mask.ndim
    logits = [
        one_batch(model, state[r], t, site, value[r, p] if has_own else value[r], mask[r, p])
        for r, p in zip(run.split(rows), patch.split(rows), strict=True)
    ]
    return torch.cat(logits).unflatten(0, mask.shape[:2])


def one_batch(model: models.BViT, state: Tensor, t: int, site: str, value: Tensor, mask: Tensor) -> Tensor:
    """Logits [row class] from states [row pos d_model] that enter step t, with `value` where `mask` holds at `site`."""
    if site == "resid":
        return model.read_out(model.run_steps(torch.where(mask, value, state), t, model.config.n_steps))

    def put(activation: Tensor, hook: object) -> Tensor:
        return torch.where(mask, value, activation)

    with model.hooks([(f"blocks.{t}.{HOOKS[site]}", put)]):
        return model.read_out(model.run_steps(state, t, model.config.n_steps))


def each_head(model: models.BViT, n_runs: int) -> Tensor:
    """The mask of every head alone, as z has it: bool [run head 1 head 1]."""
    heads = torch.eye(model.config.n_heads, dtype=torch.bool, device=model.pos_embed.device)
    return heads[None, :, None, :, None].expand(n_runs, -1, -1, -1, -1)


def each_token(model: models.BViT, n_runs: int) -> Tensor:
    """The mask of every token alone: bool [run token pos 1]."""
    tokens = torch.eye(model.config.n_tokens, dtype=torch.bool, device=model.pos_embed.device)
    return tokens[None, ..., None].expand(n_runs, -1, -1, -1)
