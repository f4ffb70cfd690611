"""Where things run: one device, or several processes under ``torchrun`` and ``accelerate launch``."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import AutocastKwargs

from models.errors import InputError

NAMES = ("auto", "cpu", "cuda", "mps")


def checked(name: str) -> str:
    """`name` if it is a kind of device that this machine has, else `InputError`."""
    if name not in NAMES:
        raise InputError(f"--device is {name!r}, not {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    is_there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name in is_there and not is_there[name]():
        raise InputError(f"--device {name}: this machine has no {name.upper()} device; use --device cpu")
    return name


def device(name: str = "auto") -> torch.device:
    """The device of this process; `auto` is the fastest kind that the machine has."""
    return PartialState(cpu=checked(name) == "cpu").device


def processes() -> tuple[int, int]:
    """(rank, number) of processes under ``accelerate launch`` or ``torchrun``; (0, 1) otherwise."""
    state = PartialState()
    return state.process_index, state.num_processes


def accelerator(precision: str, name: str) -> Accelerator:
    """Device, processes and autocast: `precision` is auto (bf16 where the device has it), bf16 or no.

    Each use of a shared weight casts for itself, so that the gradients of its T uses sum in float32.
    """
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and checked(name) != "cpu" else "no"
    handlers = [AutocastKwargs(cache_enabled=False)]
    return Accelerator(cpu=checked(name) == "cpu", mixed_precision=precision, kwargs_handlers=handlers)
