"""What belongs to which split, by the names of folders and files; and the options that may stand behind a place."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from models.data.files import Walk, folders, is_leftover
from models.data.files import place as written
from models.data.found import layout_hint
from models.errors import InputError

NAMES = {  # what a split's folder may be called
    "val": ("val", "validation", "valid", "test"),
    "train": ("train", "training", "train-semi"),
}
SPLIT_NAMES = frozenset(name for names in NAMES.values() for name in names)


def names_of(split: str) -> tuple[str, ...]:
    return NAMES.get(split, (split,))


def is_of(split: str, name: str) -> bool:
    """Whether a folder, a file or a value of that name belongs to the split."""
    return name.casefold() in names_of(split)


def find_split(path: Path, split: str) -> Path | None:
    """PATH/split under any of its usual names, in any case."""
    exact = next((path / name for name in names_of(split) if (path / name).is_dir()), None)
    if exact is not None or not path.is_dir():
        return exact
    there = {name.casefold(): path / name for name in reversed(folders(path))}
    return next((there[name] for name in names_of(split) if name in there), None)


def split_folder(spec: str, path: Path, split: str) -> Path:
    """PATH/split under any of its usual names; `InputError` says what is there."""
    folder = find_split(path, split)
    if folder is None:
        raise no_split(spec, path, split)
    return folder


def no_split(spec: str, path: Path, split: str) -> InputError:
    there = folders(path) if path.is_dir() else []
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more folders" if len(there) > 8 else "")
    above = f"; for all splits name the folder above, {path.parent}" if path.name.casefold() in SPLIT_NAMES else ""
    return InputError(
        f"{spec} has no split {split!r}; it holds {shown or 'no folders'}, and needs a folder {split} of class "
        f"folders{above}{layout_hint(path, spec)}"
    )


def files_of_split(spec: str, place: str, split: str, kind: str) -> list[Path]:
    """The files that end in ``.kind`` at a place (a file, a folder, or a pattern with ``*`` or ``{000..012}``) that
    belong to a split by their names or folders; files that name no split are val.
    """
    files = files_at(spec, place, kind)
    root = fixed_part(place)
    marks = [mark_of(file, root) for file in files]
    if not any(marks):
        marks = ["val"] * len(files)
    for name in names_of(split):
        own = [file for file, mark in zip(files, marks, strict=True) if mark == name]
        if own:
            return own
    there = ", ".join(sorted({mark for mark in marks if mark}))
    raise InputError(
        f"{spec} has no split {split!r}; its {len(files)} .{kind} files are of {there}, by their names; name them "
        f"{split}-*.{kind}, or put them into a folder {split}"
    )


def files_at(spec: str, place: str, kind: str) -> list[Path]:
    path = Path(place)
    if os.path.isdir(place):
        files = [path / name for name in Walk(place, kinds=frozenset({f".{kind}"}), with_masks=True).below("")]
    elif os.path.isfile(place):
        files = [path]
    else:
        files = sorted(Path(file) for pattern in expanded(place) for file in glob.glob(pattern, recursive=True))
    if not files:
        raise InputError(f"{spec}: there is no .{kind} file at {place}{layout_hint(path, spec)}")
    return [file for file in files if not is_leftover(file.name)]


def expanded(pattern: str) -> list[str]:
    """``a-{000..002}.tar`` as three names."""
    braces = re.search(r"\{([0-9]{1,6})\.\.([0-9]{1,6})\}", pattern)
    if braces is None:
        return [pattern]
    first, last = braces.groups()
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [whole for n in numbers for whole in expanded(pattern[: braces.start()] + n + pattern[braces.end() :])]


def fixed_part(place: str) -> Path:
    """The folder of a file, or before the first folder or name that is a pattern."""
    path = Path(place)
    if os.path.isdir(place):
        return path
    return next((level for level in path.parents if not any(letter in str(level) for letter in "*?[{")), path.parent)


def mark_of(file: Path, root: Path) -> str | None:
    """The split that a file's name tells, else those of the folders above it, nearest first, up to `root`.

    ``imagenet-val-003`` tells val; but `root`, which was named by hand, does so only with its whole name.
    """
    for part in (file.name, *file.relative_to(root).parts[-2::-1]):
        words = re.findall(r"train-semi|[a-z]+", part.lower())
        mark = next((word for word in words if word in SPLIT_NAMES), None)
        if mark is not None:
            return mark
    return root.name.casefold() if root.name.casefold() in SPLIT_NAMES else None


def with_options(spec: str, rest: str, allowed: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A place and the options behind it: ``/data?image=jpg&mask=png`` as ``/data`` and a dict."""
    place, mark, query = rest.rpartition("?")
    if not mark or os.path.exists(rest) or ("=" not in query and not os.path.exists(place)):
        return str(written(rest)), {}
    options = dict(parse_qsl(query, keep_blank_values=True))
    wrong = [name for name in options if name not in allowed]
    if wrong or not all(options.values()) or not options:
        raise InputError(
            f"{spec}: after the question mark stand {', '.join(f'{name}=NAME' for name in allowed)}, joined by &, "
            f"not {query or 'nothing'}"
        )
    return str(written(place)), options
