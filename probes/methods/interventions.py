"""Interventions on recurrence: small pure functions that stand in for what one step leaves, or is told, or runs under.

z is the state that enters a step, B(z) the one that it leaves, z_0 the embedding, T the steps trained for.

| what | settings | instead |
|---|---|---|
| damp | factor a on the update | z + a (B(z) - z) is left; 1 would be the untouched model |
| reinject | share a | (1 - a) B(z) + a z_0 is left |
| hold_patches | step s | B(z) is left, from step s on with the patches as they entered it |
| hold_cls | step s | the same with CLS, where CLS is not what is read out |
| hold_registers | step s | the same with the registers |
| late_cls | step s | B(z) is left, before step s with CLS as in z_0 |
| permute_embedding | reversed, draw n | step t is told the step embedding of another step, up to T |
| freeze_embedding | step s | every step is told that of step s |
| extrapolate_embedding | cycle, linear, mean | a step beyond T is told that of t mod T, what the last difference gone \
on with gives, or the mean; untouched, a learned one repeats the last |
| permute_masks | reversed, draw n | step t of a pruned model runs under the masks of another step, up to T |
| freeze_masks | step s | every step runs under those of step s |

The null of each is a random change of the same size: of the same norm at every token, along a direction that is drawn
once for each step; or masks drawn with the same number of weights kept in each matrix.
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
MOST = 4  # steps from which, or up to which, a token is held, spread evenly


@dataclass(frozen=True)
class Moment:
    """Where a run is: the step, and the states that entered it and the first step: [batch pos d_model]."""

    step: int
    before: Tensor
    start: Tensor


Change = Callable[[Tensor, Moment], Tensor]  # an activation at its hook point -> what stands there instead


@dataclass(frozen=True)
class Case:
    """One intervention at one setting: the model that runs, and what is changed at a hook point of each step."""

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
        of_matrix = list(masks.sizes(self.model.config).values())
        drawn = lottery.altered(masks.taken_from(self.model).cpu(), "random", seed, of_matrix)
        return replace(self, model=under(self.model, drawn))


def at_random(change: Change, seed: int, is_common: bool, now: Tensor, moment: Moment) -> Tensor:
    """`now` moved as far as `change` would move it at each token, along one random direction for each token.

    The directions are the same for all images, and for all tokens where `is_common`.
    """
    size = (change(now, moment) - now).norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(100_003 * seed + moment.step)
    directions = torch.randn(1 if is_common else now.shape[1], now.shape[2], generator=generator)
    return now + size * F.normalize(directions, dim=-1).to(now)


# Of the state


def damp(factor: float, now: Tensor, moment: Moment) -> Tensor:
    return moment.before + factor * (now - moment.before)


def reinject(share: float, now: Tensor, moment: Moment) -> Tensor:
    return (1 - share) * now + share * moment.start


def hold(tokens: slice, steps: range, now: Tensor, moment: Moment) -> Tensor:
    """`now` with the tokens as they entered the step, at these steps."""
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
    return held("hold_patches", model, slice(model.config.n_prefix, None), onwards=True)


def held_cls(model: BViT, seed: int) -> list[Case]:
    return held("hold_cls", model, slice(0, 1), onwards=True)


def held_registers(model: BViT, seed: int) -> list[Case]:
    return held("hold_registers", model, slice(n_read(model), model.config.n_prefix), onwards=True)


def late_cls(model: BViT, seed: int) -> list[Case]:
    return held("late_cls", model, slice(0, n_read(model)), onwards=False)


def n_read(model: BViT) -> int:
    """Prefix tokens that are no registers: CLS, and DeiT's distillation token."""
    return 2 if model.config.pool == "distilled" else 1


def held(what: str, model: BViT, tokens: slice, *, onwards: bool) -> list[Case]:
    """Tokens held from a step onwards, or before it."""
    steps = [s for s in some_steps(model) if s or onwards]
    ranges = [range(s, model.config.n_steps) if onwards else range(s) for s in steps]
    return [Case(what, f"step {s}", model, partial(hold, tokens, at)) for s, at in zip(steps, ranges, strict=True)]


# Of the step embedding


def tell(table: Tensor, now: Tensor, moment: Moment) -> Tensor:
    """The step's row of another table of step embeddings: [step d_model]."""
    return table[moment.step].expand_as(now)


def permuted_embedding(model: BViT, seed: int) -> list[Case]:
    return told("permute_embedding", model, {name: embeddings(model)[rows] for name, rows in orders(model, seed)})


def frozen_embedding(model: BViT, seed: int) -> list[Case]:
    table = embeddings(model)
    return told("freeze_embedding", model, {f"step {s}": table[s].expand_as(table) for s in some_steps(model)})


def extrapolated_embedding(model: BViT, seed: int) -> list[Case]:
    table = embeddings(model)
    trained, beyond = table[: model.trained.n_steps], range(model.config.n_steps - model.trained.n_steps)
    ways = {
        "cycle": [trained[k % len(trained)] for k in beyond],
        "linear": [trained[-1] + (k + 1) * (trained[-1] - trained[-2]) for k in beyond],
        "mean": [trained.mean(0) for _ in beyond],
    }
    return told("extrapolate_embedding", model, {way: torch.stack([*trained, *rows]) for way, rows in ways.items()})


def embeddings(model: BViT) -> Tensor:
    """What the untouched model tells its steps: [step d_model]."""
    return torch.stack([model.step_embedding(t) for t in range(model.config.n_steps)]).detach()


def told(what: str, model: BViT, tables: dict[str, Tensor]) -> list[Case]:
    return [Case(what, setting, model, partial(tell, table), "hook_step_embed") for setting, table in tables.items()]


# Of the masks


def permuted_masks(model: BViT, seed: int) -> list[Case]:
    rows = masks.taken_from(model)
    return [Case("permute_masks", name, under(model, rows[order])) for name, order in orders(model, seed)]


def frozen_masks(model: BViT, seed: int) -> list[Case]:
    rows = masks.taken_from(model)
    return [Case("freeze_masks", f"step {s}", under(model, rows[s].expand_as(rows))) for s in some_steps(model)]


def under(model: BViT, cut: masks.Masks) -> BViT:
    """The same weights, shared and not copied, under other masks."""
    return masks.put_on(model.at_steps(model.config.n_steps), cut)


# Which apply


def some_steps(model: BViT) -> range:
    """At most `MOST` of the steps trained for, from the first on."""
    n_steps = model.trained.n_steps
    return range(0, n_steps, -(-n_steps // MOST))


def orders(model: BViT, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Other orders of the steps trained for, by name; steps beyond them stay as they are."""
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
    """The untouched model and the cases named (all that apply where none is), and why the others do not apply.

    Raises `InputError` for one that is named and does not apply.
    """
    for name in what:
        if name not in KINDS:
            raise InputError(f"--what names {name!r}, which is no intervention; there are {', '.join(KINDS)}")
        if KINDS[name][0](model):
            raise InputError(f"--what {name} does not apply: {KINDS[name][0](model)}; leave it out")
    wanted = dict.fromkeys(what or KINDS)
    left_out = {name: KINDS[name][0](model) for name in wanted if KINDS[name][0](model)}
    cases = [case for name in wanted if name not in left_out for case in KINDS[name][1](model, seed)]
    return [Case(UNTOUCHED, "", model), *cases], left_out
