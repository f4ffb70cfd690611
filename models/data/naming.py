"""Class names and integer labels of packed data sets, whose stored labels are numbers or words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.config import LIMITS
from models.data.files import in_order, text_of
from models.data.imagenet_s import LISTS
from models.errors import InputError

BESIDE = ("classes.txt", "classnames.txt", "class_names.txt", "labels.txt")  # one class name per line, by label

MOST_CLASSES = LIMITS["n_classes"][1]


def coded(
    spec: str,
    values: np.ndarray,
    folder: Path,
    names: Sequence[str] | None = None,
    training: np.ndarray | None = None,
    more: int = 0,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, and labels [image] int64 that index them, for `values` that are all numbers or all words.

    Numbers are labels already; their class names are `names`, else a list in the data's folder, else the numbers
    themselves, and there are at least `more` classes. Words are class names; their order is that of the first list that
    contains all of them (a list in the data's folder, or the values of the training split), else `in_order`.
    """
    if values.dtype.kind in "iu":
        return numbered(spec, values.astype(np.int64), folder, names, more)
    words, codes = np.unique(values, return_inverse=True)
    candidates = listings(spec, folder)
    if training is not None:
        candidates.append(in_order(set(training)))
    complete = [listing for listing in candidates if set(words) <= set(listing)]
    classes = complete[0] if complete else in_order(words)
    label_of = {name: label for label, name in enumerate(classes)}
    return tuple(map(str, classes)), np.array([label_of[word] for word in words], dtype=np.int64)[codes]


def numbered(
    spec: str, values: np.ndarray, folder: Path, names: Sequence[str] | None, more: int
) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names of labels that are numbers, and these labels; `more` is the least number of classes."""
    n_used = int(values.max(initial=-1)) + 1
    n_classes = max(n_used, more)
    if n_classes > MOST_CLASSES:
        raise InputError(
            f"{spec} holds the label {n_classes - 1}, an id rather than a class; labels are words, or 0, 1, 2, "
            f"... below {MOST_CLASSES:,}"
        )
    if names is not None and len(names) < n_used:
        raise InputError(f"{spec} names {len(names)} classes, but holds the label {n_used - 1}; mend its list of names")
    long_enough = (listing for listing in listings(spec, folder) if len(listing) >= n_classes)
    class_names = names or next(long_enough, None) or map(str, range(n_classes))
    return tuple(class_names), values


def listings(spec: str, folder: Path) -> list[list[str]]:
    """Lists of class names in the data's folder: those of `BESIDE`, then ImageNet-S's own, shortest first."""
    files = [folder / name for name in BESIDE if (folder / name).is_file()]
    plain = [[name.strip() for name in text_of(file, spec).splitlines() if name.strip()] for file in files]
    wnids = sorted((sorted(set(text_of(file, spec).split())) for file in folder.glob(LISTS)), key=len)
    return plain + wnids
