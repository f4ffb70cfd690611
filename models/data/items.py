"""The items of a data set, created on access instead of all at once.

A list of a million `Item`s takes half a gigabyte, and every loading process ends up with a copy of its own; `Files`
takes 50 bytes per file, in arrays that the processes share.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from models.data.stream import evenly

LARGE = 100_000  # with more files than this, only a sample of them is looked up on disk
SAMPLE = 1_000  # size of that sample


@dataclass(frozen=True)
class Item:
    """One image of a data set: its file, its name in messages, its label, and a reader of its mask, if it has one.

    ``mask(size)`` returns int64 [height width] in the encoding of `models.data.codings`, for an image stored with
    ``size`` = (width, height).
    """

    path: Path | BinaryIO
    name: str
    label: int
    mask: Callable[[tuple[int, int]], np.ndarray] | None = None
    version: str = ""  # whatever else determines the item, for the fingerprint


class Names(Sequence[str]):
    """Names in one block of bytes, each ended by a zero byte, with an array of the positions of the zeros."""

    def __init__(self, packed: Iterable[bytes]):
        self.block = b"".join(packed)
        self.ends = np.flatnonzero(np.frombuffer(self.block, dtype=np.uint8) == 0)

    @staticmethod
    def packed(names: Sequence[str], prefix: str = "") -> bytes:
        """Part of a block: the names, each with the prefix."""
        return os.fsencode(prefix + f"\0{prefix}".join(names) + "\0") if names else b""

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.block[start : self.ends[index]])

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends:
            yield os.fsdecode(self.block[start:end])
            start = end + 1


class Lazy(Sequence[Item]):
    """A sequence of items that ``item(index)`` creates on access; `labels` holds the labels of all items."""

    labels: np.ndarray
    has_masks = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        positions = range(len(self))[index]
        return self.item(positions) if isinstance(positions, int) else [self.item(i) for i in positions]

    def item(self, index: int) -> Item:
        raise NotImplementedError


class Files(Lazy):
    """Plain files, by their paths relative to `root`, with the paths of their masks if they have any.

    ``read_mask(mask file, name, label, size)`` reads a mask. `repeat`: whether one photograph may be several items.
    """

    def __init__(
        self,
        root: Path,
        names: Names,
        labels: np.ndarray,
        masks: Names | None = None,
        read_mask: Any = None,
        repeat: bool = False,
    ):
        self.root, self.names, self.labels, self.masks, self.read_mask = root, names, labels, masks, read_mask
        self.repeat, self.has_masks = repeat, masks is not None

    def item(self, index: int) -> Item:
        name, label = self.names[index], int(self.labels[index])
        if self.masks is None:
            return Item(self.root / name, name, label)
        file = self.root / self.masks[index]
        return Item(self.root / name, name, label, partial(self.read_mask, file, name, label), str(file.stat().st_size))

    def facts(self) -> Iterator[str]:
        """Everything that determines the data set, for the fingerprint; of a large set only a sample of file sizes."""
        if len(self) <= LARGE:
            for i, name in enumerate(self.names):
                version = "" if self.masks is None else self._size(self.masks[i])
                yield f"{name} {self._size(name)} {self.labels[i]} {version}"
            return
        yield hashlib.sha256(self.names.block).hexdigest()
        yield hashlib.sha256(np.ascontiguousarray(self.labels, dtype=np.int64)).hexdigest()
        for names in (self.names, self.masks or ()):
            for i in sample(len(names)):
                yield f"{names[i]} {self._size(names[i])}"

    def _size(self, name: str) -> int:
        return os.stat(os.path.join(self.root, name)).st_size


def sample(n: int) -> list[int]:
    """At most `SAMPLE` of `n` positions, evenly spaced."""
    return evenly(n, SAMPLE)


def facts(items: Sequence[Item]) -> Iterable[str]:
    """Everything that determines a data set, for the fingerprint: names, sizes, labels and versions of its files."""
    if hasattr(items, "facts"):
        return items.facts()
    return (f"{item.name} {item.path.stat().st_size} {item.label} {item.version}" for item in items)


def photographs(items: Sequence[Item]) -> np.ndarray:
    """The photograph of each item, given by the position of the photograph's first item: [image] int64."""
    if isinstance(items, Lazy) and not getattr(items, "repeat", False):
        return np.arange(len(items))
    names = items.names if isinstance(items, Files) else [item.path for item in items]
    first_position: dict[Any, int] = {}
    return np.array([first_position.setdefault(name, i) for i, name in enumerate(names)], dtype=np.int64)
