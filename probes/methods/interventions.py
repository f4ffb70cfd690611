"""Interventions on recurrence: pure functions that replace a step's output, its step embedding, or its mask.

z is a step's input state, B(z) its output state, z_0 the embedding, T the number of steps trained for.

| what | settings | replacement |
|---|---|---|
| damp | factor a on the update | the output is z + a (B(z) - z); a = 1 is the untouched model |
| reinject | share a | the output is (1 - a) B(z) + a z_0 |
| hold_patches | step s | from step s on, the output is B(z) with the patches of z |
| hold_cls | step s | the same for CLS, if CLS is not read out |
| hold_registers | step s | the same for the registers |
| late_cls | step s | before step s, the output is B(z) with the CLS of z, which is that of z_0 |
| permute_embedding | reversed, draw n | step t gets the step embedding of another step, up to T |
| freeze_embedding | step s | every step gets the step embedding of step s |
| extrapolate_embedding | cycle, linear, mean | a step beyond T gets the step embedding of step t mod T, a linear \
continuation of the last two, or the mean; an untouched model with learned embeddings repeats the last |
| permute_masks | reversed, draw n | step t of a pruned model runs under the mask of another step, up to T |
| freeze_masks | step s | every step runs under the mask of step s |

The null of each is a random change of the same size: at every token of the same norm, along a direction that is random
but the same for all images; or random masks that keep the same number of weights in each matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from models import BViT, masks
from models.errors import InputError
from probes.methods import lottery

UNTOUCHED = "untouched"
FACTORS = (0.5, 0.75, 1.25, 1.5)
SHARES = (0.05, 0.1, 0.25)
DRAWS = 2  # random orders of the steps
MOST = 4  # steps at which a setting "step s" is tried, evenly spaced


@dataclass(frozen=True)
class Moment:
    """The position of a run: a step and its input state."""

    step: int
    before: Tensor  # the step's input state [batch pos d_model]
    start: Tensor  # z_0 [batch pos d_model]


Change = Callable[[Tensor, Moment], Tensor]  # an activation at a hook point -> its replacement


@dataclass(frozen=True)
class Case:
    """One intervention at one setting: the model that runs, and the change to a hook point at each step."""

    what: str
    setting: str
    model: BViT
    change: Change | None = None
    point: str = "hook_resid_post"

    @property
    def name(self) -> str:
        return f"{self.what} {self.setting}".strip()

    def states(self, images: Tensor) -> Iterator[Tensor]:
        """The states z_0, z_1, ... [batch pos d_model] of a run under the intervention, one at a time."""
        z = start = self.model.embed(images)
        yield z
        for step in range(self.model.config.n_steps):
            hook = partial(self._at, Moment(step, z, start))
            with self.model.hooks([] if self.change is None else [(f"blocks.{step}.{self.point}", hook)]):
                z = self.model.run_steps(z, step, step + 1)
            yield z

    def _at(self, moment: Moment, now: Tensor, hook: HookPoint) -> Tensor:
        return self.change(now, moment)

    def null(self, seed: int) -> Case:
        """The same intervention with a random change of the same size."""
        if self.change is not None:
            return replace(self, change=partial(at_random, self.change, seed, self.point == "hook_step_embed"))
        sizes = list(masks.sizes(self.model.config).values())
        random_masks = lottery.altered(masks.taken_from(self.model).cpu(), "random", seed, sizes)
        return replace(self, model=under(self.model, random_masks))


def at_random(change: Change, seed: int, is_common: bool, now: Tensor, moment: Moment) -> Tensor:
    """The null of `change`: moves each token of `now` by the same distance in a random direction.

    The directions are the same for all images, and if `is_common` also for all tokens.
    """
    size = (change(now, moment) - now).norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(100_003 * seed + moment.step)
    directions = torch.randn(1 if is_common else now.shape[1], now.shape[2], generator=generator)
    return now + size * F.normalize(directions, dim=-1).to(now)


# Changes of the state


def damp(factor: float, now: Tensor, moment: Moment) -> Tensor:
    """The step's output with its update scaled by `factor`."""
    return moment.before + factor * (now - moment.before)


def reinject(share: float, now: Tensor, moment: Moment) -> Tensor:
    """The step's output mixed with a share of the embedding z_0."""
    return (1 - share) * now + share * moment.start


def hold(tokens: slice, steps: range, now: Tensor, moment: Moment) -> Tensor:
    """The step's output with some tokens of its input, at these steps; unchanged at others."""
    if moment.step not in steps:
        return now
    changed = now.clone()
    changed[:, tokens] = moment.before[:, tokens]
    return changed


def damped(model: BViT, seed: int) -> list[Case]:
    return [Case("damp", f"{factor:g}", model, partial(damp, factor)) for factor in FACTORS]


def reinjected(model: BViT, seed: int) -> list[Case]:
    return [Case("reinject", f"{share:g}", model, partial(reinject, share)) for share in SHARES]


def held_patches(model: BViT, seed: int) -> list[Case]:
    return hold_cases("hold_patches", model, slice(model.config.n_prefix, None), onwards=True)


def held_cls(model: BViT, seed: int) -> list[Case]:
    return hold_cases("hold_cls", model, slice(0, 1), onwards=True)


def held_registers(model: BViT, seed: int) -> list[Case]:
    return hold_cases("hold_registers", model, slice(n_read(model), model.config.n_prefix), onwards=True)


def late_cls(model: BViT, seed: int) -> list[Case]:
    return hold_cases("late_cls", model, slice(0, n_read(model)), onwards=False)


def n_read(model: BViT) -> int:
    """The number of prefix tokens that are not registers: CLS, and DeiT's distillation token."""
    return 2 if model.config.pool == "distilled" else 1


def hold_cases(what: str, model: BViT, tokens: slice, *, onwards: bool) -> list[Case]:
    """Cases that hold tokens from a step onwards, or before it."""
    cases = []
    for step in some_steps(model):
        steps = range(step, model.config.n_steps) if onwards else range(step)
        if step or onwards:
            cases.append(Case(what, f"step {step}", model, partial(hold, tokens, steps)))
    return cases


# Changes of the step embedding


def embedding_from(table: Tensor, now: Tensor, moment: Moment) -> Tensor:
    """The step's row of another table [step d_model] of step embeddings."""
    return table[moment.step].expand_as(now)


def permuted_embedding(model: BViT, seed: int) -> list[Case]:
    return embedding_cases(
        "permute_embedding", model, {name: embeddings(model)[rows] for name, rows in orders(model, seed)}
    )


def frozen_embedding(model: BViT, seed: int) -> list[Case]:
    table = embeddings(model)
    return embedding_cases(
        "freeze_embedding", model, {f"step {s}": table[s].expand_as(table) for s in some_steps(model)}
    )


def extrapolated_embedding(model: BViT, seed: int) -> list[Case]:
    table = embeddings(model)
    trained, beyond = table[: model.trained.n_steps], range(model.config.n_steps - model.trained.n_steps)
    ways = {
        "cycle": [trained[k % len(trained)] for k in beyond],
        "linear": [trained[-1] + (k + 1) * (trained[-1] - trained[-2]) for k in beyond],
        "mean": [trained.mean(0) for _ in beyond],
    }
    return embedding_cases(
        "extrapolate_embedding", model, {way: torch.stack([*trained, *rows]) for way, rows in ways.items()}
    )


def embeddings(model: BViT) -> Tensor:
    """The untouched model's step embeddings: [step d_model]."""
    return torch.stack([model.step_embedding(t) for t in range(model.config.n_steps)]).detach()


def embedding_cases(what: str, model: BViT, tables: dict[str, Tensor]) -> list[Case]:
    """One case for each table [step d_model] that replaces the model's step embeddings."""
    point = "hook_step_embed"
    return [Case(what, setting, model, partial(embedding_from, table), point) for setting, table in tables.items()]


# Changes of the masks


def permuted_masks(model: BViT, seed: int) -> list[Case]:
    rows = masks.taken_from(model)
    return [Case("permute_masks", name, under(model, rows[order])) for name, order in orders(model, seed)]


def frozen_masks(model: BViT, seed: int) -> list[Case]:
    rows = masks.taken_from(model)
    return [Case("freeze_masks", f"step {s}", under(model, rows[s].expand_as(rows))) for s in some_steps(model)]


def under(model: BViT, cut: masks.Masks) -> BViT:
    """A model under other masks that shares this model's weights."""
    return masks.put_on(model.at_steps(model.config.n_steps), cut)


# Selection of the cases that apply


def some_steps(model: BViT) -> range:
    """At most `MOST` of the trained steps, evenly spaced from the first on."""
    n_steps = model.trained.n_steps
    return range(0, n_steps, -(-n_steps // MOST))


def orders(model: BViT, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Yields permutations of the trained steps, with names; steps beyond the trained ones stay in place."""
    n_steps, rng = model.trained.n_steps, np.random.default_rng(seed)
    beyond = range(n_steps, model.config.n_steps)
    yield "reversed", [*reversed(range(n_steps)), *beyond]
    for draw in range(DRAWS):
        yield f"draw {draw}", [*lottery.derangement(n_steps, rng).tolist(), *beyond]


def lacks_nothing(model: BViT) -> str:
    return ""


def lacks_steps(model: BViT) -> str:
    return "the model has one step" if model.trained.n_steps == 1 else ""


def reads_cls(model: BViT) -> str:
    return "" if model.config.pool == "mean" else "CLS is read out, and would answer as it did at that step"


def reads_patches(model: BViT) -> str:
    return "the patches are read out, and would answer as they did at that step" if model.config.pool == "mean" else ""


def lacks_registers(model: BViT) -> str:
    return "" if model.config.n_prefix > n_read(model) else "the model has no registers"


def lacks_embedding(model: BViT) -> str:
    return "the model has no step embedding" if model.config.step_embedding == "none" else lacks_steps(model)


def lacks_steps_beyond(model: BViT) -> str:
    is_within = model.config.n_steps == model.trained.n_steps
    return lacks_embedding(model) or ("the model is not run beyond its trained steps" if is_within else "")


def lacks_masks(model: BViT) -> str:
    if not model.blocks[0].is_masked:
        return "the model has no masks"
    rows = masks.taken_from(model)
    if (rows == rows[0]).all():
        return "its steps have the same masks (name a round of a pruning)"
    return lacks_steps(model)


KINDS: dict[str, tuple[Callable[[BViT], str], Callable[[BViT, int], list[Case]]]] = {
    "damp": (lacks_nothing, damped),
    "reinject": (lacks_nothing, reinjected),
    "hold_patches": (reads_patches, held_patches),
    "hold_cls": (reads_cls, held_cls),
    "hold_registers": (lacks_registers, held_registers),
    "late_cls": (lacks_steps, late_cls),
    "permute_embedding": (lacks_embedding, permuted_embedding),
    "freeze_embedding": (lacks_embedding, frozen_embedding),
    "extrapolate_embedding": (lacks_steps_beyond, extrapolated_embedding),
    "permute_masks": (lacks_masks, permuted_masks),
    "freeze_masks": (lacks_masks, frozen_masks),
}


def chosen(model: BViT, what: Sequence[str], seed: int) -> tuple[list[Case], dict[str, str]]:
    """The cases of the interventions `what` (by default all that apply), the untouched model first, and the reasons why
    interventions were left out, by name. Raises `InputError` for a named intervention that does not apply.
    """
    for name in what:
        if name not in KINDS:
            raise InputError(f"--what names {name!r}, which is no intervention; there are {', '.join(KINDS)}")
    cases, left_out = [Case(UNTOUCHED, "", model)], {}
    for name in dict.fromkeys(what or KINDS):
        reason_against, cases_of = KINDS[name]
        reason = reason_against(model)
        if reason and what:
            raise InputError(f"--what {name} does not apply: {reason}; leave it out")
        if reason:
            left_out[name] = reason
        else:
            cases += cases_of(model, seed)
    return cases, left_out
