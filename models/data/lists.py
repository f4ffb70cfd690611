"""``list:FILE``: a text or CSV with a picture and its class a line, and with its mask where there is one.

Columns are parted by tabs, commas, semicolons or spaces, and named by a header or not: file, path or image; wnid,
class or label; split and mask where wanted. Paths are relative to the list; bare names may lie anywhere below it.
``{split}`` in FILE stands for the split,
and a folder with ``train.txt`` and ``val.txt`` does too. The same reader serves the tables beside flat folders.
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
PEEK, PEEK_AT = 50, 100_000  # lines by which a list's form is told, and letters


class Row(NamedTuple):
    line: int
    file: str
    label: str
    split: str | None
    mask: str | None


@dataclass(frozen=True)
class Form:
    """How the lines of a list are parted, and the places of its columns; `header`: whether line 1 names them."""

    separator: str | None
    header: bool
    file: int
    label: int
    split: int | None = None
    mask: int | None = None
    first_word: bool = False  # the class is the first word (Kaggle's PredictionString: a wnid and a box)
    spaced: bool = False  # paths or classes hold the spaces that part them


@dataclass(frozen=True)
class Listed:
    """names: [image]; codes: [image] places in `classes`, which stand in order; masks: [image] or None."""

    names: Names
    codes: np.ndarray
    classes: list[str]
    masks: Names | None


def open_list(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """Classes are those of the training list where it holds all of the split's, in numeric order where all are
    numbers, else in text order.
    """
    file = list_of(spec, path, split)
    listed, trained = read_list(spec, file, split), None
    if split != "train":
        try:
            trained = read_list(spec, list_of(spec, path, "train"), "train").classes
        except InputError:
            trained = None  # a list without a training part
    classes = trained if trained and set(listed.classes) <= set(trained) else listed.classes
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place[name] for name in listed.classes], dtype=np.int64)[listed.codes]
    listed = replace(listed, names=located(listed.names, file.parent, split))
    complain_of_missing(spec, file, listed)
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
    """The list of a split."""
    if "{split}" in str(path):
        return _with_split(spec, path, split)
    if existing(path, spec).is_dir():
        return _in_folder(spec, path, split)
    mark = path.stem.casefold()
    if is_of(split, mark) or columns_of(spec, path).split is not None or (split == "val" and mark not in SPLIT_NAMES):
        return path
    kind = f"the list of split {mark}" if mark in SPLIT_NAMES else "one list without a column split, which is val"
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
    code_of: dict[str, int] = {}
    blocks, masks, kinds, others = bytearray(), bytearray(), endings(), set()
    for row in rows(spec, file):
        if row.split is not None and not is_of(split, row.split):
            others.add(row.split)
            continue
        blocks += os.fsencode(_completed(file.parent, row.file, kinds)) + b"\0"
        codes.append(code_of.setdefault(row.label, len(code_of)))
        if row.mask is not None:
            masks += os.fsencode(row.mask.replace("\\", "/")) + b"\0"
    if not codes:
        there = f"its lines are of {', '.join(sorted(others)[:5])}" if others else "it has a header and no line"
        raise InputError(f"{spec} has no split {split!r}: {file.name} holds no line of it, {there}")
    classes = in_order(code_of)
    place = {name: k for k, name in enumerate(classes)}
    ordered = np.array([place[name] for name in code_of], dtype=np.int64)[codes]
    return Listed(Names([bytes(blocks)]), ordered, classes, Names([bytes(masks)]) if masks else None)


def located(names: Names, root: Path, split: str) -> Names:
    """The pictures of a list, relative to it; where they lie elsewhere, by their names among all below it.

    Of several of a name that in a folder of the split is meant.
    """
    if any(os.path.isfile(os.path.join(root, names[i])) for i in sample(len(names))):
        return names
    places: dict[str, list[str]] = defaultdict(list)
    for place in Walk(str(root)).below(""):
        for key in {place.rpartition("/")[2], stem(place)}:
            places[key].append(place)

    def where(name: str) -> str:
        fitting = [
            place
            for place in places.get(name.rpartition("/")[2], ())
            if f"/{place}".endswith(f"/{name}") or f"/{place}".rpartition(".")[0].endswith(f"/{name}")
        ]
        own = [place for place in fitting if any(is_of(split, part) for part in place.split("/")[:-1])]
        return (own or fitting)[0] if len(own) == 1 or len(fitting) == 1 else name

    return Names([Names.packed([where(name) for name in names])])


def complain_of_missing(spec: str, file: Path, listed: Listed) -> None:
    """`InputError` where pictures or masks of the list are not there; of a large list a sample is looked up."""
    for what, names in (("pictures", listed.names), ("masks", listed.masks or ())):
        sampled = range(len(names)) if len(names) <= LARGE else sample(len(names))
        missing = [names[i] for i in sampled if not os.path.isfile(os.path.join(file.parent, names[i]))]
        if missing:
            raise InputError(
                f"{spec}: {len(missing):,} of {len(sampled):,} {what} of {file.name} are not there, the first is "
                f"{missing[0]}; paths are relative to {file.parent}, and a bare name is that of one picture below it"
            )


def rows(spec: str, file: Path) -> Iterator[Row]:
    """The lines of a list or table."""
    form = columns_of(spec, file)
    last = max(place for place in (form.file, form.label, form.split, form.mask) if place is not None)
    table = _cells(io.StringIO(text_of(file, spec), newline=None), form.separator, form.spaced)
    for number, cells in itertools.islice(parsed(table, spec, file), int(form.header), None):
        if len(cells) <= last or not cells[form.file] or not cells[form.label]:
            raise InputError(f"{spec}: line {number} of {file.name} lacks a value; it needs a picture and its class")
        mask = None if form.mask is None else cells[form.mask]
        if mask == "":
            raise InputError(f"{spec}: line {number} of {file.name} has no mask; give every picture one, or none")
        label = cells[form.label].split()[0] if form.first_word else cells[form.label]
        yield Row(number, cells[form.file], as_class(label), None if form.split is None else cells[form.split], mask)


def _completed(root: Path, name: str, kinds: frozenset[str]) -> str:
    """A path of a list with forward slashes, and with its ending where the list leaves it out."""
    name = name.replace("\\", "/")
    if ending(name) in kinds or os.path.isfile(os.path.join(root, name)):
        return name
    candidates = (name + kind for kind in (".JPEG", ".jpg", ".png", *sorted(kinds)))
    return next((file for file in candidates if os.path.isfile(os.path.join(root, file))), name)


def columns_of(spec: str, file: Path) -> Form:
    """The form of a list, told by its first lines."""
    lines = [line for line in io.StringIO(text_of(file, spec)[:PEEK_AT], newline=None) if line.strip()][:PEEK]
    if not lines:
        raise InputError(f"{spec}: {file.name} is empty; it needs a picture and its class a line")
    for separator, spaced in (("\t", False), (",", False), (";", False), (None, False), (None, True)):
        table = [cells for _, cells in _cells(lines, separator, spaced)]
        form = table and (_named(table[0], separator) or _unnamed(table, separator, spaced))
        if form:
            return form
    raise InputError(
        f"{spec}: the lines of {file.name} are no picture and its class parted by tab, comma or space, the first is "
        f"{lines[0].strip()[:60]!r}; name the columns file and label in a first line, or write lines such as "
        "cat/1.jpg cat"
    )


def _named(header: Sequence[str], separator: str | None) -> Form | None:
    names = [name.strip().casefold() for name in header]

    def place(wanted: str) -> int | None:
        return next((names.index(name) for name in wanted.split(", ") if name in names), None)

    file, label = place(FILE), place(LABEL)
    if file is None or (label is None and len(names) != 2):
        return None
    label = 1 - file if label is None else label
    return Form(separator, True, file, label, place(SPLIT), place(MASK), names[label] == "predictionstring")


def _unnamed(table: list[list[str]], separator: str | None, spaced: bool) -> Form | None:
    """Columns without names: the file is the one with endings of pictures, the class the first other."""
    width, kinds = min(map(len, table)), endings()
    files = [place for place in range(width) if all(ending(cells[place]) in kinds for cells in table)]
    if width < 2 or width != max(map(len, table)) or (width > 2 and not files):
        return None
    if separator is None and width > 2 and files[0] > 0:
        return None  # rather spaces inside of paths
    masks = files[1:] if width > len(files) else []
    file = files[0] if files else 0
    label = next(place for place in range(width) if place not in {file, *masks})
    return Form(separator, False, file, label, mask=masks[0] if masks else None, spaced=spaced)


def _cells(lines: Iterable[str], separator: str | None, spaced: bool) -> Iterator[tuple[int, list[str]]]:
    """Line numbers from 1 and cells; empty lines and comments are left out."""
    if separator is not None:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        table = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
    else:
        split = _around_the_ending(endings()) if spaced else str.split
        table = ((number, split(line)) for number, line in enumerate(lines, 1))
    for number, cells in table:
        if any(cells) and not cells[0].startswith("#"):
            yield number, cells


def _around_the_ending(kinds: frozenset[str]) -> Callable[[str], list[str]]:
    """Parts a line into a path and a class that may have spaces in them, behind the path's ending."""
    pattern = re.compile(rf"^(.*?(?:{'|'.join(map(re.escape, sorted(kinds)))}))\s+(\S.*)$", re.IGNORECASE)

    def split(line: str) -> list[str]:
        match = pattern.match(line.strip())
        return [match[1], match[2]] if match else line.split()

    return split
