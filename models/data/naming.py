"""The classes of sets that come packed, whose labels are numbers or words: their names in order, and labels in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.config import LIMITS
from models.data.files import in_order, text_of
from models.data.imagenet_s import LISTS
from models.errors import InputError

BESIDE = ("classes.txt", "classnames.txt", "class_names.txt", "labels.txt")  # a name per line, in the labels' order

MOST_CLASSES = LIMITS["n_classes"][1]


def coded(
    spec: str,
    values: np.ndarray,
    folder: Path,
    names: Sequence[str] | None = None,
    training: np.ndarray | None = None,
    more: int = 0,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, and labels [image] int64 in them, for `values` that are all numbers or all words.

    Numbers are named by `names`, else by a list beside the data, else by themselves, and there are at least `more`.
    Words are in order, as one of the lists or the training split has them where it holds all.
    """
    if values.dtype.kind in "iu":
        return numbered(spec, values.astype(np.int64), folder, names, more)
    own, codes = np.unique(values, return_inverse=True)
    candidates = [*listings(spec, folder), *([in_order(set(training))] if training is not None else [])]
    fitting = [listing for listing in candidates if set(own) <= set(listing)]
    classes = fitting[0] if fitting else in_order(own)
    place = {name: label for label, name in enumerate(classes)}
    return tuple(map(str, classes)), np.array([place[name] for name in own], dtype=np.int64)[codes]


def numbered(
    spec: str, values: np.ndarray, folder: Path, names: Sequence[str] | None, more: int
) -> tuple[tuple[str, ...], np.ndarray]:
    least = int(values.max(initial=-1)) + 1
    if max(least, more) > MOST_CLASSES:
        raise InputError(
            f"{spec} holds the label {max(least, more) - 1}, an id rather than a class; labels are words, or 0, 1, 2, "
            f"... below {MOST_CLASSES:,}"
        )
    if names is not None and len(names) < least:
        raise InputError(f"{spec} names {len(names)} classes, but holds the label {least - 1}; mend its list of names")
    listed = names or next((listing for listing in listings(spec, folder) if len(listing) >= max(least, more)), None)
    return tuple(listed or map(str, range(max(least, more)))), values


def listings(spec: str, folder: Path) -> list[list[str]]:
    """Lists of class names beside the data, ImageNet-S's own among them, shortest first."""
    plain = [text_of(folder / name, spec).splitlines() for name in BESIDE if (folder / name).is_file()]
    wnids = sorted((sorted(set(text_of(file, spec).split())) for file in folder.glob(LISTS)), key=len)
    return [[name.strip() for name in lines if name.strip()] for lines in plain] + wnids
