"""ONE resumable training loop: of a model, of pruning's models and grafts, of pictures, adapters and dictionaries.

Whoever trains writes the update; the loop keeps its place. It starts where the file at `path` was left, saves every
minute and at the end, never saves a state that is not finite, and stops between two updates when a signal asks for it.
What is random in an update is a function of (seed, update), so a killed run ends as one that was left alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from beartype.door import is_bearable
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from models import run_folder
from models.checkpoint import DAMAGED, load_plain
from models.device import processes
from models.errors import InputError, Stopped, brief, quoted

if TYPE_CHECKING:
    from accelerate import Accelerator

SAVE_EVERY = 60.0  # seconds
Part = Any  # a module or an optimiser, or a dict of tensors and plain values, which is filled in place


class Loop:
    """Updates of one training, each given out once: ``for update in loop: ...``.

    The mean of what ``note(loss)`` is given, which ``averaged()`` returns, is part of the state.

    Args:
        path: file of the state; None for none.
        parts: all that an update changes, by name.
        updates: of the whole training.
        key: what the state is made with; a state made with another key is refused.
        may_fall: numbers of the key that may be lower than before.
        restart: throw a state that is refused away, with a message, and start over.
        stop_after: end this sitting after so many updates.
        until: end this sitting at this time on the clock of `time.monotonic`.
        images: how many an update takes, for the progress bar; `unit` and `label` are the bar's too.
        accelerator: of several processes, whose signals and losses are shared.
        advice: what to do about a training that diverged, for the message.
    """

    def __init__(
        self,
        path: Path | None,
        parts: Mapping[str, Part],
        *,
        updates: int,
        key: Mapping[str, Any] | None = None,
        may_fall: Sequence[str] = (),
        restart: bool = False,
        stop_after: int | None = None,
        until: float | None = None,
        images: int = 1,
        unit: str = " images",
        label: str = "",
        accelerator: Accelerator | None = None,
        advice: str = "start over",
    ):
        self.path, self.parts, self.updates, self.images = path, parts, updates, images
        self.key = json.loads(json.dumps(key or {}))
        self.may_fall, self.restart, self.accelerator = may_fall, restart, accelerator
        self.advice, self.is_main, self.until = advice, processes()[0] == 0, until
        self.update, self.mean = 0, Mean()
        if path is not None and path.exists():
            self._restore(path)
        self.end = updates if stop_after is None else min(updates, self.update + stop_after)
        self.label, self.unit = label, unit

    def __iter__(self) -> Iterator[int]:
        saved = time.monotonic()
        with signals() as self._asked, self._progress() as bar:
            while self.update < self.end:
                yield self.update
                self.update += 1
                bar.update(self.images)
                self.stop_if_asked()
                if self.until is not None and time.monotonic() > self.until:
                    break
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _progress(self) -> tqdm:
        """A bar over images, or over updates where each takes one; on the main process alone."""
        return tqdm(
            desc=self.label or None,
            unit=self.unit,
            unit_scale=self.images > 1,
            total=self.updates * self.images,
            initial=self.update * self.images,
            disable=not self.is_main,
            mininterval=1,
            dynamic_ncols=True,
        )

    def note(self, loss: Tensor) -> None:
        """A loss of this update, a number or one for each of several trainings [training]; detached."""
        self.mean.add(loss)

    def averaged(self) -> Tensor:
        """The mean loss since the last call, over all processes; raises `InputError` where it is not finite."""
        mean = self.mean.taken()
        mean = mean if self.accelerator is None else self.accelerator.reduce(mean, "mean")
        if not mean.isfinite().all():
            self.refuse(f"the loss is not finite at update {self.update + 1}")
        return mean

    def stop_if_asked(self) -> None:
        """Save and raise `Stopped` if a signal has come to any process. Call it where everything is between two
        updates.
        """
        asked = self._asked.signal
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            flag = torch.tensor(asked, device=self.accelerator.device)
            asked = int(self.accelerator.gather(flag[None]).max())
        if asked:
            self.save()
            raise Stopped(asked)

    def save(self) -> None:
        """Write the state, if it is finite."""
        if self.path is None or not self.is_main:
            return
        parts = {name: _state(part) for name, part in self.parts.items()}
        if not is_finite(parts):
            self.refuse(f"weights are not finite after update {self.update}")
        state = {"key": self.key, "update": self.update, "mean": self.mean.state(), "parts": parts}
        run_folder.write_tensors(self.path, state)

    def refuse(self, what: str) -> None:
        """The end of a training that diverged."""
        kept = f"the last finite state is in {self.path}" if self.path and self.path.exists() else "nothing was saved"
        raise InputError(f"{what}; {kept}: {self.advice}")

    def _restore(self, path: Path) -> None:
        try:
            state = load_plain(path)
            if not is_state(state):
                raise InputError(f"{path} was not written by this version, or is damaged; remove it to start over")
            self._refuse_other(path, state["key"])
            if state["update"] > self.updates:
                raise InputError(f"{path} is damaged: it is past all {self.updates} updates; remove it to start over")
        except InputError as error:
            if not self.restart:
                raise
            print(f"starting anew: {error}", file=sys.stderr)
            return
        for name, part in self.parts.items():
            try:
                _fill(part, state["parts"][name])
                if isinstance(part, Optimizer) and state["update"]:
                    _refuse_other_moments(part)
            except DAMAGED as error:
                raise InputError(f"{path} is damaged: {name} ({brief(error, -1)}); remove it to start over") from None
        self.update, self.mean = state["update"], Mean(*state["mean"])

    def _refuse_other(self, path: Path, before: dict[str, Any]) -> None:
        """`InputError` for a state that was made with another key, but for numbers that may be lower than before."""

        def may_differ(name: str) -> bool:
            return name in self.may_fall and is_bearable(before.get(name), float) and self.key[name] < before[name]

        changed = [name for name, now in self.key.items() if before.get(name) != now and not may_differ(name)]
        if changed:
            started = ", ".join(f"{name}={quoted(before.get(name))} (now {quoted(self.key[name])})" for name in changed)
            raise InputError(f"{path.parent} was started with {started}; resume it with the same options and data")


class Mean:
    """A running mean of losses, which waits for the device only when it is taken."""

    def __init__(self, total: Tensor | None = None, count: int = 0):
        self.total, self.count = total, count

    def add(self, value: Tensor) -> None:
        self.total = value if self.total is None else self.total.to(value) + value
        self.count += 1

    def taken(self) -> Tensor:
        """The mean, which starts over."""
        mean = torch.full((), math.nan) if self.total is None else self.total / self.count
        self.total, self.count = None, 0
        return mean

    def state(self) -> tuple[Tensor | None, int]:
        return None if self.total is None else self.total.cpu(), self.count


def _state(part: Part) -> Any:
    if hasattr(part, "state_dict"):
        return part.state_dict()
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in part.items()}


def is_state(state: Any) -> bool:
    """Whether this is what `Loop.save` writes."""
    kinds = {"key": dict, "update": int, "mean": tuple[Tensor | None, int], "parts": dict}
    is_whole = isinstance(state, dict) and all(is_bearable(state.get(name), kind) for name, kind in kinds.items())
    return is_whole and not isinstance(state["update"], bool) and state["update"] >= 0


def _fill(part: Part, state: Any) -> None:
    if not is_finite(state):
        raise ValueError("it holds values that are not finite")
    if isinstance(part, Optimizer):
        own = part.state_dict()["param_groups"]  # rates and decays are this run's options, the moments are the file's
        groups = [now | {"params": then["params"]} for now, then in zip(own, state["param_groups"], strict=True)]
        part.load_state_dict({"state": state["state"], "param_groups": groups})
        return
    if hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
        return
    missing = part.keys() - state.keys()
    if missing:
        raise KeyError(min(missing))
    for name, value in state.items():
        if isinstance(value, Tensor):
            part[name].data.copy_(value)
        elif is_bearable(value, float | int) and is_bearable(part[name], float | int):
            part[name] = value
        else:
            raise TypeError(f"{name} is {quoted(value)}")


def _refuse_other_moments(optimizer: Optimizer) -> None:
    """After an update an optimiser keeps moments as large as their parameters, and numbers; but nothing of a parameter
    that has had no gradient yet.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(optimizer.state[parameter] for parameter in parameters):
        raise ValueError("it is empty")
    for parameter in parameters:
        kept = optimizer.state[parameter]
        moments = [value for value in kept.values() if isinstance(value, Tensor) and value.shape == parameter.shape]
        if kept and not moments:
            raise ValueError(f"it has no moments of a parameter of shape {[*parameter.shape]}")
        for name, value in kept.items():
            is_number = value.ndim == 0 if isinstance(value, Tensor) else is_bearable(value, float | int)
            if not is_number and not any(value is moment for moment in moments):
                raise ValueError(f"its {name} is of another kind or size")


def is_finite(content: Any) -> bool:
    """Whether no tensor inside holds NaN or infinity."""
    if isinstance(content, Tensor):
        return not content.is_floating_point() or bool(content.isfinite().all())
    if isinstance(content, Mapping):
        return all(map(is_finite, content.values()))
    return not isinstance(content, list | tuple) or all(map(is_finite, content))


class StopRequest:
    """The number of the signal that asked to stop; 0 while none has."""

    signal = 0


@contextmanager
def signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM are noted instead of obeyed at once; a second one is obeyed."""
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        if asked.signal:
            raise Stopped(number)
        asked.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Order:
    """Which images an update takes: every epoch in an order of its own, drawn from `keys` (a seed, and what it is for).

    With `repeats`, each image stands that often in a row, and an epoch has as many fewer images (repeated
    augmentation).
    """

    def __init__(self, n: int, batch_size: int, *keys: int, repeats: int = 1):
        self.n, self.batch_size, self.keys, self.repeats = n, batch_size, keys, repeats
        self.per_epoch = n // batch_size
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))

    def of_epoch(self, epoch: int) -> Tensor:
        """The images of an epoch in its order: [image]."""
        if self._drawn[0] != epoch:
            order = torch.randperm(self.n, generator=generator(*self.keys, epoch))
            self._drawn = epoch, order.repeat_interleave(self.repeats)[: self.n]
        return self._drawn[1]

    def batch(self, update: int) -> tuple[int, Tensor, Tensor]:
        """The epoch of an update, its images [image], and which of its repeats each is [image]."""
        epoch, place = divmod(update, self.per_epoch)
        places = torch.arange(place * self.batch_size, (place + 1) * self.batch_size)
        return epoch, self.of_epoch(epoch)[places], places % self.repeats

    def shares(self, first: int, last: int, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int, int]]]:
        """A process's part of the batches of updates `first` .. `last` - 1, as (epoch, image, repeat).

        Each is made when it is asked for: a long training has hundreds of millions of images.
        """
        for update in range(first, last):
            epoch, images, repeats = self.batch(update)
            batch = zip(images.tolist(), repeats.tolist(), strict=True)
            yield share([(epoch, image, repeat) for image, repeat in batch], rank, world)


def share(batch: Sequence[Any], rank: int, world: int) -> list[Any]:
    """A process's part of a batch: pairs that stand at equal distance from its two ends, in the batch's order.

    So mixing, which pairs an image with its mirror in the batch, makes the same pairs whatever the number of processes.
    """
    if world == 1:
        return list(batch)
    mine = range(rank, len(batch) // 2, world)
    return [batch[i] for i in (*mine, *(len(batch) - 1 - i for i in reversed(mine)))]


def refuse_unequal(batch_size: int, world: int) -> None:
    """Shares must be equal, so that the mean over processes is the mean over the batch."""
    if world > 1 and batch_size % (2 * world):
        raise InputError(
            f"the batch of {batch_size} cannot be shared by {world} processes evenly and in pairs; "
            f"choose --batch-size {math.ceil(batch_size / (2 * world)) * 2 * world}"
        )


def hash_of(*keys: int) -> int:
    """A 32-bit seed from several integers, the same on every machine."""
    return int.from_bytes(hashlib.blake2s(repr(keys).encode(), digest_size=4).digest())


def generator(*keys: int) -> torch.Generator:
    """A generator of its own for each combination of keys."""
    return torch.Generator().manual_seed(hash_of(*keys))


def seed_all(*keys: int) -> None:
    """Seed every generator that augmentation, mixing and drop path draw from."""
    set_seed(hash_of(*keys))
