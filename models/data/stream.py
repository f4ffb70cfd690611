"""Batches of a data set for a probe: in order, over processes, past unreadable images (counted and named)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from models.errors import InputError, UnreadableImage


@dataclass(frozen=True)
class Batch:
    """index: [n] positions in the data set; images: [n 3 h w]; labels: [n]; masks: [n h w] or None."""

    index: np.ndarray
    images: Tensor
    labels: Tensor
    masks: Tensor | None


class Stream:
    """Iterates `data` in batches; with ``shard=(rank, world)`` batch b belongs to process b modulo `world`.

    Whole batches are dealt out, so that every number is the same on any number of processes. Unreadable images are
    left out and their names kept in `unreadable`; more than 1 % of the data (at least two) stops the run with `InputError`.
    """

    def __init__(self, data: Any, batch_size: int, *, workers: int = 0, shard: tuple[int, int] = (0, 1)):
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size}, it must be at least 1")
        self.data, self.workers, self.unreadable = data, workers, []
        rank, world = shard
        everything = [range(first, min(first + batch_size, len(data))) for first in range(0, len(data), batch_size)]
        self.batches = [list(batch) for batch in everything[rank::world]]

    def __iter__(self) -> Iterator[Batch]:
        self.unreadable = []
        loader = DataLoader(_Tolerant(self.data), batch_sampler=self.batches, num_workers=self.workers, collate_fn=_collate)
        for batch, errors in loader:
            self._note(errors)
            if batch is not None:
                yield batch
        if self.unreadable:
            shown = ", ".join(self.unreadable[:5]) + (f" and {len(self.unreadable) - 5} more" if len(self.unreadable) > 5 else "")
            print(f"left out {len(self.unreadable)} unreadable images: {shown}", file=sys.stderr)

    def _note(self, errors: list[InputError]) -> None:
        for error in errors:
            if not isinstance(error, UnreadableImage):
                raise error
            self.unreadable.append(error.name)
        if len(self.unreadable) > max(1, 0.01 * len(self.data)):
            raise InputError(
                f"more than 1 % of the {len(self.data)} images cannot be read ({len(self.unreadable)} so far, the last is "
                f"{self.unreadable[-1]}); repair or remove them"
            )


class _Tolerant:
    """A data set whose items are (position, item or error); a whole batch at once where it can.

    Errors travel as values, because a loading process would wrap a raised one in its traceback.
    """

    def __init__(self, data: Any):
        self.data = data

    def __getitems__(self, positions: list[int]) -> list[tuple[int, Any]]:
        together = getattr(self.data, "__getitems__", None)
        if together is not None:
            try:
                return list(zip(positions, together(positions), strict=True))
            except InputError:
                pass  # one by one, to know which
        return [(position, self._one(position)) for position in positions]

    def _one(self, position: int) -> Any:
        try:
            return self.data[position]
        except InputError as error:
            return error


def _collate(items: list[tuple[int, Any]]) -> tuple[Batch | None, list[InputError]]:
    errors = [item for _, item in items if isinstance(item, InputError)]
    kept = [(position, item) for position, item in items if not isinstance(item, InputError)]
    if not kept:
        return None, errors
    images, labels, masks = zip(*(item for _, item in kept), strict=True)
    stacked = None if masks[0] is None else torch.stack(masks)
    index = np.array([position for position, _ in kept], dtype=np.int64)
    return Batch(index, torch.stack(images), torch.tensor([int(label) for label in labels]), stacked), errors
