"""ONE resumable training loop, used for models, pruned models and grafts, optimised images, adapters and dictionaries.

The caller writes the update; the loop counts updates and keeps the state. It resumes from the file at `path`, saves
every minute and at the end, never saves a state that is not finite, and stops between two updates on SIGINT or SIGTERM.
Randomness in an update depends on (seed, update) alone, so a killed and resumed run ends as an uninterrupted one.
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
Part = Any  # a module, an optimiser, or a dict of tensors and numbers that is restored in place


class Loop:
    """Iterates over the updates of one training, each yielded once: ``for update in loop: ...``.

    ``note(loss)`` adds to a running mean, which ``averaged()`` returns; the mean is part of the saved state.

    Args:
        path: file of the state; None to keep no state.
        parts: everything that an update changes, by name.
        updates: number of updates of the whole training.
        key: options that determine the training; a state saved under another key is refused.
        may_fall: names of the key's numbers that may be lower than in the saved state.
        restart: discard a refused state with a message and start over, instead of raising.
        stop_after: end this session after so many updates.
        until: end this session at this time of `time.monotonic`.
        images: images per update, for the progress bar; so are `unit` and `label`.
        accelerator: the processes that train together and share signals and losses.
        advice: for the error message of a training that diverged, what to do about it.
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
        """A progress bar over images (over updates if `images` is 1), on the main process only."""
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
        """Add this update's loss to the mean: a detached scalar, or one value for each of several models [model]."""
        self.mean.add(loss)

    def averaged(self) -> Tensor:
        """The mean loss since the last call, over all processes; raises `InputError` if it is not finite."""
        mean = self.mean.taken()
        mean = mean if self.accelerator is None else self.accelerator.reduce(mean, "mean")
        if not mean.isfinite().all():
            self.refuse(f"the loss is not finite at update {self.update + 1}")
        return mean

    def stop_if_asked(self) -> None:
        """Save and raise `Stopped` if any process has received a signal. Call it only between two updates."""
        asked = self._asked.signal
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            flag = torch.tensor(asked, device=self.accelerator.device)
            asked = int(self.accelerator.gather(flag[None]).max())
        if asked:
            self.save()
            raise Stopped(asked)

    def save(self) -> None:
        """Write the state; raises `InputError` if it is not finite."""
        if self.path is None or not self.is_main:
            return
        parts = {name: _state(part) for name, part in self.parts.items()}
        if not is_finite(parts):
            self.refuse(f"weights are not finite after update {self.update}")
        state = {"key": self.key, "update": self.update, "mean": self.mean.state(), "parts": parts}
        run_folder.write_tensors(self.path, state)

    def refuse(self, what: str) -> None:
        """Raise the error of a training that diverged."""
        saved = f"the last finite state is in {self.path}" if self.path and self.path.exists() else "nothing was saved"
        raise InputError(f"{what}; {saved}: {self.advice}")

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
        """Raises `InputError` for a state saved under another key; the numbers in `may_fall` may be lower now."""

        def may_differ(name: str) -> bool:
            return name in self.may_fall and is_bearable(before.get(name), float) and self.key[name] < before[name]

        changed = [name for name, now in self.key.items() if before.get(name) != now and not may_differ(name)]
        if changed:
            started = ", ".join(f"{name}={quoted(before.get(name))} (now {quoted(self.key[name])})" for name in changed)
            raise InputError(f"{path.parent} was started with {started}; resume it with the same options and data")


class Mean:
    """A running mean of losses that does not synchronise with the device before it is read."""

    def __init__(self, total: Tensor | None = None, count: int = 0):
        self.total, self.count = total, count

    def add(self, value: Tensor) -> None:
        self.total = value if self.total is None else self.total.to(value) + value
        self.count += 1

    def taken(self) -> Tensor:
        """Returns the mean and resets it."""
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
        # Learning rates and weight decays come from this run's options, moments from the file.
        groups = part.state_dict()["param_groups"]
        for group, saved in zip(groups, state["param_groups"], strict=True):
            group["params"] = saved["params"]
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
    """Raises ValueError if an optimiser's state does not fit its parameters.

    After an update the state of each parameter holds moments of the parameter's shape, and numbers. It is empty for a
    parameter that has had no gradient yet.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(optimizer.state[parameter] for parameter in parameters):
        raise ValueError("it is empty")
    for parameter in parameters:
        state = optimizer.state[parameter]
        moments = [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]
        if state and not moments:
            raise ValueError(f"it has no moments of a parameter of shape {[*parameter.shape]}")
        for name, value in state.items():
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
    """The number of the signal that was received; 0 if none was."""

    signal = 0


@contextmanager
def signals() -> Iterator[StopRequest]:
    """Records Ctrl-C and SIGTERM instead of stopping at once; a second signal raises `Stopped`."""
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
    """The images of each update: every epoch has its own random order, seeded by `keys` (a seed, and its purpose).

    With `repeats` (repeated augmentation) each image occurs that many times in succession, and an epoch covers
    correspondingly fewer images.
    """

    def __init__(self, n: int, batch_size: int, *keys: int, repeats: int = 1):
        self.n, self.batch_size, self.keys, self.repeats = n, batch_size, keys, repeats
        self.per_epoch = n // batch_size
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))

    def of_epoch(self, epoch: int) -> Tensor:
        """The images of an epoch, in order: [image]."""
        if self._drawn[0] != epoch:
            order = torch.randperm(self.n, generator=generator(*self.keys, epoch))
            self._drawn = epoch, order.repeat_interleave(self.repeats)[: self.n]
        return self._drawn[1]

    def batch(self, update: int) -> tuple[int, Tensor, Tensor]:
        """The epoch of an update, its images [image], and the number of each image's repeat [image]."""
        epoch, batch = divmod(update, self.per_epoch)
        positions = torch.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        return epoch, self.of_epoch(epoch)[positions], positions % self.repeats

    def shares(self, first: int, last: int, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int, int]]]:
        """Yields a process's share of the batches of updates `first` .. `last` - 1, as (epoch, image, repeat).

        Batches are built lazily, because a long training has hundreds of millions of images.
        """
        for update in range(first, last):
            epoch, images, repeats = self.batch(update)
            batch = zip(images.tolist(), repeats.tolist(), strict=True)
            yield share([(epoch, image, repeat) for image, repeat in batch], rank, world)


def share(batch: Sequence[Any], rank: int, world: int) -> list[Any]:
    """A process's share of a batch: pairs (i, n - 1 - i) of the batch's n images, in the batch's order.

    Mixing pairs the i-th image from the start with the i-th from the end, so its pairs do not depend on the number of
    processes.
    """
    if world == 1:
        return list(batch)
    first_half = range(rank, len(batch) // 2, world)
    second_half = [len(batch) - 1 - i for i in reversed(first_half)]
    return [batch[i] for i in [*first_half, *second_half]]


def refuse_unequal(batch_size: int, world: int) -> None:
    """Raises `InputError` for unequal shares, with which the mean over processes is not the mean over the batch."""
    if world > 1 and batch_size % (2 * world):
        raise InputError(
            f"the batch of {batch_size} cannot be shared by {world} processes evenly and in pairs; "
            f"choose --batch-size {math.ceil(batch_size / (2 * world)) * 2 * world}"
        )


def hash_of(*keys: int) -> int:
    """A 32-bit seed from several integers, the same on every machine."""
    return int.from_bytes(hashlib.blake2s(repr(keys).encode(), digest_size=4).digest())


def generator(*keys: int) -> torch.Generator:
    """A random generator seeded by these keys."""
    return torch.Generator().manual_seed(hash_of(*keys))


def seed_all(*keys: int) -> None:
    """Seed every generator that augmentation, mixing and drop path draw from."""
    set_seed(hash_of(*keys))
