"""``list:FILE``: a text or CSV file with one image and its class per line, and optionally its mask.

Columns are separated by tabs, commas, semicolons or spaces. A header may name them: file, path or image; wnid, class or
label; optionally split and mask. Paths are relative to the list; a bare file name may be anywhere below the list's
folder. ``{split}`` in FILE stands for the split's name; FILE may also be a folder with ``train.txt`` and ``val.txt``.
The same reader serves the tables in folders of unsorted images.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.config import ViTConfig
from models.data.codings import N_SAMPLED, Coding, raw_mask
from models.data.files import Walk, as_class, ending, endings, existing, in_order, parsed, stem, text_of
from models.data.found import layout_hint
from models.data.images import Images
from models.data.items import LARGE, Files, Names, sample
from models.data.splits import SPLIT_NAMES, is_of, names_of
from models.data.stream import evenly
from models.errors import InputError

FILE = (
    "file, path, filename, file_name, fname, filepath, file_path, image, image_name, image_path, img, img_name, "
    "img_path, imageid, image_id, id"
)
LABEL = (
    "wnid, synset, class_name, classname, label_name, class, category, breed, species, label, labels, target, "
    "predictionstring, class_id, category_id, label_id"
)
SPLIT, MASK = "split, set, subset, partition", "mask, mask_path, mask_file, segmentation"
LIST_ENDINGS = (".txt", ".csv", ".tsv", ".lst", ".list")
PEEK, PEEK_AT = 50, 100_000  # lines, among so many first characters, from which a list's form is detected


class Row(NamedTuple):
    line: int
    file: str
    label: str
    split: str | None
    mask: str | None


@dataclass(frozen=True)
class Form:
    """How a list separates its columns, and the index of each column."""

    separator: str | None  # None: any white space
    header: bool  # whether line 1 names the columns
    file: int
    label: int
    split: int | None = None
    mask: int | None = None
    first_word: bool = False  # the class is its cell's first word (Kaggle's PredictionString: a wnid and a box)
    spaced: bool = False  # columns are separated by spaces, and paths or classes contain spaces too


@dataclass(frozen=True)
class Listed:
    """The content of a list: of each image its path, its class and its mask."""

    names: Names  # [image]
    codes: np.ndarray  # indices into `classes` [image]
    classes: list[str]  # sorted
    masks: Names | None  # [image]


def open_list(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """The images of a list's split.

    The classes are those of the training list if it contains all of the split's classes, else the split's own; in
    numeric order if all are numbers, else in alphabetical order.
    """
    file = list_of(spec, path, split)
    listed, training_classes = read_list(spec, file, split), None
    if split != "train":
        try:
            training_classes = read_list(spec, list_of(spec, path, "train"), "train").classes
        except InputError:
            training_classes = None  # there is no training list
    covers_split = training_classes and set(listed.classes) <= set(training_classes)
    classes = training_classes if covers_split else listed.classes
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[name] for name in listed.classes], dtype=np.int64)[listed.codes]
    listed = replace(listed, names=located(listed.names, file.parent, split))
    refuse_missing(spec, file, listed)
    if listed.masks is None:
        return Images(spec, split, tuple(classes), Files(file.parent, listed.names, labels, repeat=True), like)
    sampled = [
        (listed.names[i], int(labels[i]), raw_mask(file.parent / listed.masks[i], listed.names[i]))
        for i in evenly(len(labels), N_SAMPLED)
    ]
    coding = Coding.checked(sampled, len(classes), spec)
    files = Files(file.parent, listed.names, labels, listed.masks, coding.read, repeat=True)
    return Images(spec, split, tuple(classes), files, like)


def list_of(spec: str, path: Path, split: str) -> Path:
    """The file that lists a split."""
    if "{split}" in str(path):
        return _with_split(spec, path, split)
    if existing(path, spec).is_dir():
        return _in_folder(spec, path, split)
    list_name = path.stem.casefold()
    is_named_for_a_split = list_name in SPLIT_NAMES
    is_val_by_default = split == "val" and not is_named_for_a_split
    if is_of(split, list_name) or columns_of(spec, path).split is not None or is_val_by_default:
        return path
    kind = (
        f"the list of split {list_name}"
        if is_named_for_a_split
        else "a single list without a column split, taken as val"
    )
    raise InputError(
        f"{spec} has no split {split!r}; {path.name} is {kind}: write list:{path.with_stem('{split}')}, add a column "
        f"split, or ask for that split"
    )


def _with_split(spec: str, path: Path, split: str) -> Path:
    for name in names_of(split):
        file = Path(str(path).replace("{split}", name))
        if file.is_file():
            return file
    raise InputError(f"{spec}: there is no {path.name.replace('{split}', split)} in {path.parent}")


def _in_folder(spec: str, path: Path, split: str) -> Path:
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in LIST_ENDINGS and file.is_file()]
    for name in names_of(split):
        for file in files:
            if file.stem.casefold() == name:
                return file
    tables = [file for file in files if file.stem.casefold() not in SPLIT_NAMES and file.suffix.lower() != ".txt"]
    if len(tables) == 1:
        return list_of(spec, tables[0], split)
    raise InputError(
        f"{spec} has no split {split!r}: there is no list {split}.txt or {split}.csv in it{layout_hint(path, spec)}"
    )


def read_list(spec: str, file: Path, split: str) -> Listed:
    """The rows of a list that belong to the split, packed."""
    codes: list[int] = []
    code_of: dict[str, int] = {}  # in order of appearance
    names, masks = bytearray(), bytearray()
    image_endings, other_splits = endings(), set()
    for row in rows(spec, file):
        if row.split is not None and not is_of(split, row.split):
            other_splits.add(row.split)
            continue
        names += os.fsencode(_completed(file.parent, row.file, image_endings)) + b"\0"
        codes.append(code_of.setdefault(row.label, len(code_of)))
        if row.mask is not None:
            masks += os.fsencode(row.mask.replace("\\", "/")) + b"\0"
    if not codes:
        content = "it has a header and no line"
        if other_splits:
            content = f"its lines are of {', '.join(sorted(other_splits)[:5])}"
        raise InputError(f"{spec} has no split {split!r}: {file.name} holds no line of it, {content}")
    classes = in_order(code_of)
    sorted_code = {name: code for code, name in enumerate(classes)}
    sorted_codes = np.array([sorted_code[name] for name in code_of], dtype=np.int64)[codes]
    return Listed(Names([bytes(names)]), sorted_codes, classes, Names([bytes(masks)]) if masks else None)


def located(names: Names, root: Path, split: str) -> Names:
    """Paths of a list's images, relative to the list's folder `root`.

    If none of a sample is at its listed path, each image is searched for by name below `root`. Of several files of that
    name, the one in a folder named for the split is taken; if that leaves no single file, the listed path is kept.
    """
    if any(os.path.isfile(os.path.join(root, names[i])) for i in sample(len(names))):
        return names
    paths: dict[str, list[str]] = defaultdict(list)  # by file name, with and without ending
    for path in Walk(str(root)).below(""):
        for key in {path.rpartition("/")[2], stem(path)}:
            paths[key].append(path)

    def path_of(name: str) -> str:
        matching = [
            path
            for path in paths.get(name.rpartition("/")[2], ())
            if f"/{path}".endswith(f"/{name}") or f"/{path}".rpartition(".")[0].endswith(f"/{name}")
        ]
        of_split = [path for path in matching if any(is_of(split, part) for part in path.split("/")[:-1])]
        if len(of_split) == 1:
            return of_split[0]
        return matching[0] if len(matching) == 1 else name

    return Names([Names.packed([path_of(name) for name in names])])


def refuse_missing(spec: str, file: Path, listed: Listed) -> None:
    """Raises `InputError` if images or masks of the list do not exist; of a large list only a sample is checked."""
    for what, names in (("pictures", listed.names), ("masks", listed.masks or ())):
        sampled = range(len(names)) if len(names) <= LARGE else sample(len(names))
        missing = [names[i] for i in sampled if not os.path.isfile(os.path.join(file.parent, names[i]))]
        if missing:
            raise InputError(
                f"{spec}: {len(missing):,} of {len(sampled):,} {what} of {file.name} do not exist, the first is "
                f"{missing[0]}; give paths relative to {file.parent}, or file names that occur once below it"
            )


def rows(spec: str, file: Path) -> Iterator[Row]:
    """The lines of a list or table."""
    form = columns_of(spec, file)
    last = max(column for column in (form.file, form.label, form.split, form.mask) if column is not None)
    table = _cells(io.StringIO(text_of(file, spec), newline=None), form.separator, form.spaced)
    for number, cells in itertools.islice(parsed(table, spec, file), int(form.header), None):
        if len(cells) <= last or not cells[form.file] or not cells[form.label]:
            raise InputError(f"{spec}: line {number} of {file.name} lacks a value; it needs a picture and its class")
        mask = None if form.mask is None else cells[form.mask]
        if mask == "":
            raise InputError(f"{spec}: line {number} of {file.name} has no mask; give every picture one, or none")
        label = cells[form.label].split()[0] if form.first_word else cells[form.label]
        split = None if form.split is None else cells[form.split]
        yield Row(number, cells[form.file], as_class(label), split, mask)


def _completed(root: Path, name: str, image_endings: frozenset[str]) -> str:
    """A path of a list with forward slashes, and with the file's ending if the list omits it."""
    name = name.replace("\\", "/")
    if ending(name) in image_endings or os.path.isfile(os.path.join(root, name)):
        return name
    candidates = (name + suffix for suffix in (".JPEG", ".jpg", ".png", *sorted(image_endings)))
    return next((file for file in candidates if os.path.isfile(os.path.join(root, file))), name)


def columns_of(spec: str, file: Path) -> Form:
    """The form of a list, detected from its first lines."""
    lines = [line for line in io.StringIO(text_of(file, spec)[:PEEK_AT], newline=None) if line.strip()][:PEEK]
    if not lines:
        raise InputError(f"{spec}: {file.name} is empty; it needs a picture and its class on each line")
    for separator, spaced in (("\t", False), (",", False), (";", False), (None, False), (None, True)):
        table = [cells for _, cells in _cells(lines, separator, spaced)]
        form = table and (_named(table[0], separator) or _unnamed(table, separator, spaced))
        if form:
            return form
    raise InputError(
        f"{spec}: the lines of {file.name} are not a picture and its class separated by tab, comma or space, the first "
        f"is {lines[0].strip()[:60]!r}; name the columns file and label in a first line, or write lines such as "
        "cat/1.jpg cat"
    )


def _named(header: Sequence[str], separator: str | None) -> Form | None:
    """The form of a list with this header; None if the header names no columns of files and classes."""
    names = [name.strip().casefold() for name in header]

    def column(wanted: str) -> int | None:
        return next((names.index(name) for name in wanted.split(", ") if name in names), None)

    file, label = column(FILE), column(LABEL)
    if file is None or (label is None and len(names) != 2):
        return None
    label = 1 - file if label is None else label
    return Form(separator, True, file, label, column(SPLIT), column(MASK), names[label] == "predictionstring")


def _unnamed(table: list[list[str]], separator: str | None, spaced: bool) -> Form | None:
    """The form of a list without header: the file is the first column of image files, the class the first other."""
    width, image_endings = min(map(len, table)), endings()
    files = [column for column in range(width) if all(ending(cells[column]) in image_endings for cells in table)]
    if width < 2 or width != max(map(len, table)) or (width > 2 and not files):
        return None
    if separator is None and width > 2 and files[0] > 0:
        return None  # the spaces are rather part of the paths
    masks = files[1:] if width > len(files) else []
    file = files[0] if files else 0
    label = next(column for column in range(width) if column not in {file, *masks})
    return Form(separator, False, file, label, mask=masks[0] if masks else None, spaced=spaced)


def _cells(lines: Iterable[str], separator: str | None, spaced: bool) -> Iterator[tuple[int, list[str]]]:
    """Yields the number (from 1) and the cells of each line; empty lines and comments are left out."""
    if separator is not None:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        table = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
    else:
        split = _around_the_ending(endings()) if spaced else str.split
        table = ((number, split(line)) for number, line in enumerate(lines, 1))
    for number, cells in table:
        if any(cells) and not cells[0].startswith("#"):
            yield number, cells


def _around_the_ending(image_endings: frozenset[str]) -> Callable[[str], list[str]]:
    """A function that splits a line after the path's ending, so that path and class may contain spaces."""
    any_ending = "|".join(map(re.escape, sorted(image_endings)))
    pattern = re.compile(rf"^(.*?(?:{any_ending}))\s+(\S.*)$", re.IGNORECASE)

    def split(line: str) -> list[str]:
        match = pattern.match(line.strip())
        return [match[1], match[2]] if match else line.split()

    return split
