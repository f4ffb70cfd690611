"""One image through all steps: what every head sees, what every token would answer, and what each head is worth.

The numbers behind the story that the dashboard tells. A head that is off writes nothing at its step: its z is zero. The
worth of each head is measured as in `probes.ablation`, for this image alone: all heads of a step run in one batch from
the state that enters it, and beside each stands a change just as far in a random direction.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

import models
from models import hooks
from probes.methods import parts, patches, reading

Cell = tuple[int, int]  # a step and a head
SEED = 0  # of the random directions
ROWS = 32  # of a batch


def switched_off(off: Collection[Cell]) -> list[tuple[str, Any]]:
    """Hooks without these heads."""
    return [(f"blocks.{step}.attn.hook_z", hooks.head(head, hooks.zero)) for step, head in off]


def trace(
    model: models.BViT, image: Tensor, off: Collection[Cell] = (), target: int | None = None
) -> dict[str, Tensor]:
    """What the run of an image [3 h w] shows: attention from CLS [step head row column], to_cls [step head], norm
    [state pos]; and where there is a head to read out, probability [state class] and, of every patch in the place of
    what the head reads [state row column], patch_answer, how sure it is, patch_certainty, and patch_target, the
    probability of a class, by default of the answer.
    """
    steps, n_prefix = range(model.config.n_steps), model.config.n_prefix
    side = model.config.side
    wanted = {
        "hook_embed": lambda activation: activation,
        "hook_pos_embed": lambda activation: activation,
        "blocks.*.hook_resid_post": lambda activation: activation,
        "blocks.*.attn.hook_pattern": lambda pattern: pattern[:, :, 0],  # the row of CLS
    }
    with model.hooks(switched_off(off)):
        _, cache = model.run_with_cache(image[None], names_filter=wanted)
    states = [cache["hook_embed"] + cache["hook_pos_embed"]]
    states += [cache[f"blocks.{t}.hook_resid_post"] for t in steps]
    rows = torch.stack([cache[f"blocks.{t}.attn.hook_pattern"][0] for t in steps])
    traced = {
        "attention": rows[:, :, n_prefix:].unflatten(-1, (side, side)),
        "to_cls": rows[:, :, 0],
        "norm": torch.stack([state[0].norm(dim=-1) for state in states]),
    }
    if model.config.n_classes:
        readout = reading.Readout(model)
        traced["probability"] = torch.cat([model.read_out(state) for state in states]).softmax(-1)
        target = int(traced["probability"][-1].argmax()) if target is None else target
        by_patch = torch.cat([readout.of_tokens(state[:, n_prefix:]) for state in states]).softmax(-1)
        by_patch = by_patch.unflatten(1, (side, side))  # [state row column class]
        traced["patch_certainty"], traced["patch_answer"] = by_patch.max(-1)
        traced["patch_target"] = by_patch[..., target]
    return traced


def flipped(model: models.BViT, state: Tensor, step: int, off: Collection[Cell] = ()) -> Tensor:
    """Class probabilities at the end of the run whose state [1 pos d_model] enters a step, with one head of that step
    off that was on, or on that was off; and with a change as large in a random direction, NaN for heads that were off:
    [2 head class].
    """
    config, device = model.config, model.pos_embed.device
    heads = [parts.Part(f"head {h}", "attn.hook_z", ((h,),) * config.n_blocks) for h in range(config.n_heads)]
    zeros = parts.Substitute(
        {"attn.hook_z": torch.zeros(config.n_steps, 1, 1, 1, 1, device=device)}, torch.tensor([-1])
    )
    position = torch.zeros(1, dtype=torch.long)
    direction = parts.directions(position, config.n_steps, config.d_model, SEED).to(state)
    switch = parts.Switch(model, heads, zeros, position, direction)
    with model.hooks([*switched_off(off), *switch.hooks(step)]):
        ends = model.run_steps(state.expand(2 * len(heads), -1, -1), step, config.n_steps)
    probability = model.read_out(ends).softmax(-1).unflatten(0, (2, len(heads)))
    for head in (head for at, head in off if at == step):
        with model.hooks(switched_off([cell for cell in off if cell != (step, head)])):
            probability[0, head] = model.read_out(model.run_steps(state, step, config.n_steps))[0].softmax(-1)
        probability[1, head] = torch.nan
    return probability


def after_step(model: models.BViT, state: Tensor, step: int, off: Collection[Cell] = ()) -> Tensor:
    """The state after a step, without the heads that are off."""
    with model.hooks(switched_off(off)):
        return model.run_steps(state, step, step + 1)


def transplanted(model: models.BViT, state: Tensor, other: Tensor, step: int, tokens: Tensor) -> Tensor:
    """Class probabilities at the end of the run whose state [1 pos d_model] enters a step, some of its tokens being
    those of another run's state there: [set class], of tokens bool [set pos].
    """
    return patches.patched(model, state, step, "resid", other, tokens[None, ..., None], ROWS)[0].softmax(-1)
