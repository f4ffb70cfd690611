"""The items of a set of files: one object for an item that is asked for, and next to nothing for the others.

A list of a million `Item`s takes half a gigabyte, which every loading process copies bit by bit; `Files` takes 50 bytes
a file, in arrays that they share.
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

LARGE = 100_000  # files; above it only a sample of their sizes is looked up
SAMPLE = 1_000


@dataclass(frozen=True)
class Item:
    """One picture of a set: its file, its name in messages, its label, and how to read its mask, if it has one.

    ``mask(size)`` gives int64 [height width] for a picture stored as ``size`` = (width, height), in the house's
    encoding.
    """

    path: Path | BinaryIO
    name: str
    label: int
    mask: Callable[[tuple[int, int]], np.ndarray] | None = None
    version: str = ""  # what else decides the item, for the fingerprint


class Names(Sequence[str]):
    """Names in one block of bytes, each ended by a zero, with the places of the ends beside it."""

    def __init__(self, packed: Iterable[bytes]):
        self.block = b"".join(packed)
        self.ends = np.flatnonzero(np.frombuffer(self.block, dtype=np.uint8) == 0)

    @staticmethod
    def packed(names: Sequence[str], prefix: str = "") -> bytes:
        """A part of the block: each name with a prefix."""
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
    """Items that are made when they are asked for, by ``item(index)``; `labels` holds those of all."""

    labels: np.ndarray
    has_masks = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return self.item(places) if isinstance(places, int) else [self.item(place) for place in places]

    def item(self, index: int) -> Item:
        raise NotImplementedError


class Files(Lazy):
    """Plain files below `root` by their names, with ``read_mask(mask file, name, label, size)`` where they have masks.

    `repeat`: whether one photograph may be several items.
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
        """What decides the set, for the fingerprint."""
        if len(self) <= LARGE:
            for i, name in enumerate(self.names):
                version = "" if self.masks is None else self._size(self.masks[i])
                yield f"{name} {self._size(name)} {self.labels[i]} {version}"
        else:
            yield hashlib.sha256(self.names.block).hexdigest()
            yield hashlib.sha256(np.ascontiguousarray(self.labels, dtype=np.int64)).hexdigest()
            for name in (names[i] for names in (self.names, self.masks or ()) for i in sample(len(names))):
                yield f"{name} {self._size(name)}"

    def _size(self, name: str) -> int:
        return os.stat(os.path.join(self.root, name)).st_size


def sample(n: int) -> list[int]:
    """At most a thousand of `n` places, spread evenly."""
    return evenly(n, SAMPLE)


def facts(items: Sequence[Item]) -> Iterable[str]:
    """What decides a set, for the fingerprint: names, sizes, labels and versions of its files."""
    if hasattr(items, "facts"):
        return items.facts()
    return (f"{item.name} {item.path.stat().st_size} {item.label} {item.version}" for item in items)


def photographs(items: Sequence[Item]) -> np.ndarray:
    """Which photograph each item is from, by the place of its first item: [image] int64."""
    if isinstance(items, Lazy) and not getattr(items, "repeat", False):
        return np.arange(len(items))
    names = items.names if isinstance(items, Files) else [item.path for item in items]
    first: dict[Any, int] = {}
    return np.array([first.setdefault(name, place) for place, name in enumerate(names)], dtype=np.int64)
