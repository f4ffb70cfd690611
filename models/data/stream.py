"""Batches of a data set: in order, over processes, past unreadable images (counted and named)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from models.errors import InputError, UnreadableImage, require

MOST_WORKERS = 256  # processes: more would stop the machine before they read anything
LARGEST = 1e6  # a normalised pixel: far beyond the 65,535 of 16 bits, far below what overflows in a norm


@dataclass(frozen=True)
class Batch:
    """index: [n] positions in the data set; images: [n 3 h w]; labels: [n]; masks: [n h w] or None."""

    index: np.ndarray
    images: Tensor
    labels: Tensor
    masks: Tensor | None


def refuse_options(batch_size: int, workers: int) -> None:
    """`InputError` for options that nothing can be read with."""
    require((batch_size >= 1, f"the batch size is {batch_size}, it must be at least 1"))
    refuse_workers(workers)


def refuse_workers(workers: int) -> None:
    """`InputError` for a number of loading processes that cannot be started."""
    require(
        (0 <= workers <= MOST_WORKERS, f"--workers is {workers}, it must lie between 0 and {MOST_WORKERS}"),
    )


class Stream:
    """Iterates `data` in batches; with ``shard=(rank, world)`` batch b belongs to process b modulo `world`.

    Whole batches are dealt out, so that every number is the same on any number of processes. Unreadable images are
    left out and their names kept in `unreadable`; more than 1 % of the data (at least two) stops with `InputError`.
    """

    def __init__(self, data: Any, batch_size: int, *, workers: int = 0, shard: tuple[int, int] = (0, 1)):
        refuse_options(batch_size, workers)
        self.data, self.workers, self.unreadable = data, workers, []
        rank, world = shard
        everything = [range(first, min(first + batch_size, len(data))) for first in range(0, len(data), batch_size)]
        self.batches = [list(batch) for batch in everything[rank::world]]

    def __iter__(self) -> Iterator[Batch]:
        left_out = Unreadable(len(self.data))
        self.unreadable = left_out.names
        try:
            for items in loader(self.data, self.batches, self.workers):
                kept = left_out.without(items)
                if kept:
                    yield _stacked(kept)
        finally:
            left_out.say()


def labelled(data: Any, batches: Iterable[Any], workers: int, *, full: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [n 3 h w] and labels [n] of given batches of keys.

    Unreadable images are left out; where batches must stay `full`, their places are taken by others of the batch.
    """
    left_out = Unreadable(len(data))
    try:
        for items in loader(data, batches, workers):
            kept = left_out.without(items)
            if kept and full:
                kept = [kept[i % len(kept)] for i in range(len(items))]
            if kept:
                yield torch.stack([item[0] for _, item in kept]), torch.tensor([int(item[1]) for _, item in kept])
    finally:
        left_out.say()


class Unreadable:
    """The images of a data set of `n` that could not be read, by name."""

    def __init__(self, n: int):
        self.n, self.names = n, []

    def without(self, items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """The (key, item) pairs that could be read; raises any other error, and one where too many could not."""
        for _, item in items:
            if isinstance(item, InputError) and not isinstance(item, UnreadableImage):
                raise item
            if isinstance(item, UnreadableImage) and item.name not in self.names:
                self.names.append(item.name)
        if len(self.names) > max(1, 0.01 * self.n):
            raise InputError(
                f"more than 1 % of the {self.n} images cannot be read ({len(self.names)} so far, the last is "
                f"{self.names[-1]}); repair or remove them"
            )
        return [(key, item) for key, item in items if not isinstance(item, InputError)]

    def say(self) -> None:
        if self.names:
            more = f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
            print(f"left out {len(self.names)} unreadable images: {', '.join(self.names[:5])}{more}", file=sys.stderr)


def loader(data: Any, batches: Iterable[Any], workers: int) -> DataLoader:
    """Batches of (key, item or error) pairs, for given batches of keys, in order, whatever starts the worker
    processes.
    """
    return DataLoader(
        Tolerant(data),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_leave_signals_to_the_parent,
        prefetch_factor=4 if workers else None,
    )


def _leave_signals_to_the_parent(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)


class Tolerant:
    """A data set whose items are (key, item or error); a whole batch at once where it can.

    Errors travel as values, because a loading process would wrap a raised one in its traceback.
    """

    def __init__(self, data: Any):
        self.data = data

    def __getitems__(self, keys: list[Any]) -> list[tuple[Any, Any]]:
        together = getattr(self.data, "__getitems__", None)
        if together is not None:
            try:
                return [(key, self._checked(key, item)) for key, item in zip(keys, together(keys), strict=True)]
            except InputError:
                pass  # one by one, to know which
        return [(key, self._one(key)) for key in keys]

    def _one(self, key: Any) -> Any:
        try:
            return self._checked(key, self.data[key])
        except InputError as error:
            return error

    def _checked(self, key: Any, item: Any) -> Any:
        """The item, if its pixels are finite, and no larger than any that were normalised."""
        low, high = item[0].aminmax()
        if low >= -LARGEST and high <= LARGEST:  # which NaN is not
            return item
        if not item[0].isfinite().all():
            wrong = "pixels that are not finite (NaN or infinite); repair it"
        else:
            largest = f"{max(-low, high):.3g} where {LARGEST:,.0f} is the most"
            wrong = f"a pixel of {largest}; repair it, or the mean and std by which it was normalised"
        return InputError(f"{name_of(self.data, key)} holds {wrong}")


def name_of(data: Any, key: Any) -> str:
    """What a message calls an image: its file where the data set says which, its number in the whole set otherwise."""
    index = key[1] if isinstance(key, tuple) else key  # a training image has its epoch before it
    while hasattr(data, "dataset" if isinstance(data, Subset) else "data"):
        index, data = (data.indices[index], data.dataset) if isinstance(data, Subset) else (index, data.data)
    has_names = hasattr(getattr(data, "items", None), "__getitem__")
    return data.items[index].name if has_names else f"image {index} (counted from 0)"


def _stacked(items: list[tuple[int, Any]]) -> Batch:
    index = np.array([position for position, _ in items], dtype=np.int64)
    images, labels, masks = zip(*(item for _, item in items), strict=True)
    stacked = None if masks[0] is None else torch.stack(masks)
    return Batch(index, torch.stack(images), torch.tensor([int(label) for label in labels]), stacked)


def evenly(n: int, limit: int) -> list[int]:
    """At most `limit` of `n` positions, spread evenly, so that all classes of a sorted folder stay in."""
    limit = min(n, limit)
    return [i * n // limit for i in range(limit)]
