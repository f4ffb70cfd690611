"""The model with hook points for every step that a probe runs, up to far beyond those it was trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import InputError

if TYPE_CHECKING:
    from models import BViT


def to(model: BViT, max_steps: int | None, times: int) -> BViT:
    """`model` run on to `max_steps`, by default to `times` its trained steps (a stacked ViT has no more than those).

    Raises `InputError` for a model that answers nothing after a step, and for fewer steps than it was trained for.
    """
    trained = model.trained
    if not trained.n_classes:
        raise InputError("the model has no classifier to read out; name a checkpoint with one")
    last = max_steps
    if last is None:
        last = times * trained.n_steps if trained.n_blocks == 1 else trained.n_steps
    if last < trained.n_steps:
        raise InputError(f"--max-steps is {last}, it must be at least the model's {trained.n_steps} steps")
    return model.at_steps(last) if last > trained.n_steps else model
