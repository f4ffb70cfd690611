"""``folder:PATH``: photographs under folders of splits, whatever tells their classes.

* class folders: PATH/{train,val}/<class>/<image>; PATH/<class>/<image> is val;
* a table beside a flat folder: Kaggle's ImageNet (ILSVRC/Data/CLS-LOC and LOC_val_solution.csv, wherever PATH points in
  it), Tiny ImageNet's val_annotations.txt, a val.csv or val.txt;
* the class in the file name: ILSVRC2012_val_00033334_n02106550.JPEG, n02106550_123.JPEG, cat.17.jpg.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.config import ViTConfig
from models.data.files import (
    EMPTY,
    MASK,
    MASK_FOLDERS,
    OTHER,
    OUTSIDE,
    PICTURE_FOLDERS,
    LeftOut,
    Trail,
    Walk,
    What,
    existing,
    in_order,
    stem,
)
from models.data.found import layout_hint
from models.data.images import Images
from models.data.items import Files, Names
from models.data.lists import rows
from models.data.splits import SPLIT_NAMES, find_split, is_of, names_of, no_split
from models.errors import InputError

INSIDE = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "ILSVRC2012/Data/CLS-LOC")  # where Kaggle's splits lie
ABOVE = 6  # levels above a flat folder on which Kaggle's table is looked for; others lie beside or in it
KAGGLE = "LOC_{}_solution.csv"
TABLES = ("{}_annotations.txt", "{}.csv", "{}.tsv", "{}.txt", "{}_labels.csv", "{}_labels.txt", "labels.csv")
LISTS = frozenset(f"{name}.txt" for name in SPLIT_NAMES)
WNID = re.compile(r"(?<![A-Za-z0-9])(n\d{8})(?![A-Za-z0-9])")
NUMBERED = re.compile(r"(.*[^\W\d_].*?)[ ._-]*[(]?\d+[)]?")  # cat.17, Abyssinian_3, benign (7)
NUMBER_FIRST = re.compile(r"\d+[ ._-]+(.*[^\W\d_].*)")  # 17_cat
UNLISTED: What = ("picture without a line in the table", "pictures without a line in the table")
NAMELESS: What = ("picture without a class in its name", "pictures without a class in their names")


@dataclass(frozen=True)
class Sorted:
    """The pictures of a split by class. codes: [image] places in `classes`, which stand in order."""

    names: Names
    codes: np.ndarray
    classes: list[str]
    by_name: bool = False
    table: str = ""  # that tells them


def open_folder(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """Labels are the places of the classes in order: those of train where they hold all of the split's, else the
    split's own.
    """
    root, folder = places_of(existing(path, spec), split)
    folder, left_out = folder or place_without_splits(spec, path, split), LeftOut()
    own = by_class(spec, folder, split, left_out)
    trained = classes_of_training(spec, root, folder, own)
    own = numbered_by_place(spec, split, own, trained)
    classes = trained if set(own.classes) <= set(trained) else own.classes
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place[name] for name in own.classes], dtype=np.int64)[own.codes]
    left_out.say(spec, split)
    if own.by_name:
        shown = ", ".join(own.classes[:5]) + (", ..." if len(own.classes) > 5 else "")
        print(f"{spec}, split {split}: {len(own.classes):,} classes by the names of files: {shown}", file=sys.stderr)
    return Images(spec, split, tuple(classes), Files(folder, own.names, labels), like)


def numbered_by_place(spec: str, split: str, own: Sorted, trained: list[str]) -> Sorted:
    """Where a table has numbers and the training split has names, a number from 0 is a name's place (Caffe's val.txt).

    Without a 0 nobody can tell whether they start at 1, or are ImageNet's own numbers: they stay numbers.
    """
    names = set(own.classes)
    is_place = own.table and "0" in names and names <= set(map(str, range(len(trained))))
    if not is_place or all(map(str.isdecimal, trained)):
        return own
    print(f"{spec}, split {split}: numbers in {own.table} are places of classes, 0 is {trained[0]}", file=sys.stderr)
    return replace(own, classes=[trained[int(name)] for name in own.classes])


def places_of(path: Path, split: str) -> tuple[Path, Path | None]:
    """The folder of the splits and that of one split: below PATH, at a known place in it, or PATH itself."""
    for root in (path / inner for inner in INSIDE):
        folder = find_split(root, split)
        if folder is not None:
            return root, folder
    return (path.parent, path) if is_of(split, path.name) else (path, None)


def place_without_splits(spec: str, path: Path, split: str) -> Path:
    """Class folders and flat folders that lie in no folder of a split are val."""
    if split != "val" or not path.is_dir() or not (is_bare(path) or is_flat(path, split)):
        raise no_split(spec, path, split)
    print(f"{spec}: there are no folders of splits in it, so all of it is val", file=sys.stderr)
    return path


def is_bare(path: Path) -> bool:
    """Whether a folder holds several class folders and no tables, as for torchvision's ImageFolder."""
    walk = Walk(str(path))
    outside, inside = walk.scan()
    names = {name.casefold() for name in (path.name, *inside)}
    if outside or names & (SPLIT_NAMES | PICTURE_FOLDERS | MASK_FOLDERS) or any(map(is_table, path.iterdir())):
        return False
    without = [name for name in inside if not walk.has_pictures(f"{name}/")]
    return len(inside) - len(without) > 1 and not any(walk.scan(f"{name}/", inside[name])[1] for name in without)


def is_table(file: Path) -> bool:
    """Whether a file tells the classes of others, by its name."""
    return file.suffix.lower() in (".csv", ".tsv") or file.name.casefold() in LISTS


def is_flat(path: Path, split: str) -> bool:
    """Whether a folder holds pictures alone, whose classes their names or a table tell."""
    names, inside = Walk(str(path)).scan()
    return bool(names) and not inside and (labels_in(names) is not None or table_of(path, split) is not None)


def by_class(spec: str, folder: Path, split: str, left_out: LeftOut) -> Sorted:
    """The pictures of a split's folder, by class folders, by a table, or by their names."""
    walk = Walk(str(folder), left_out)
    outside, inside = walk.scan()
    if inside and not are_plain(inside):
        found_there = by_folders(walk, inside)
        if found_there.classes or not outside:
            if not found_there.classes and not left_out.counts.get(EMPTY):
                raise no_classes(spec, folder)
            left_out.add(OUTSIDE, outside[0] if outside else "", len(outside))
            return found_there
    names = [*outside, *(f"{name}/{deeper}" for name in sorted(inside) for deeper in below(walk, name, inside[name]))]
    table = table_of(folder, split)
    if names and table is not None:
        if table.parent == folder:
            left_out.take_back(OTHER, table.name)
        return by_table(spec, folder, names, table, left_out)
    labels = labels_in(names)
    if labels is None:
        raise no_classes(spec, folder, names, split)
    return _kept(names, labels, NAMELESS, left_out, by_name=True)


def are_plain(inside: dict[str, Trail]) -> bool:
    """Whether folders are no classes but ``images`` and what may stand beside it."""
    names = {name.casefold() for name in inside}
    return bool(names & PICTURE_FOLDERS) and names <= PICTURE_FOLDERS | MASK_FOLDERS


def below(walk: Walk, name: str, trail: Trail) -> list[str]:
    names = walk.below(f"{name}/", trail)
    if name.casefold() in MASK_FOLDERS:
        walk.left_out.add(MASK, name, len(names))
        return []
    return names


def by_folders(walk: Walk, inside: dict[str, Trail]) -> Sorted:
    packed, counts, classes = [], [], []
    for name in in_order(inside):
        names = walk.below(f"{name}/", inside[name])
        if names:
            packed.append(Names.packed(names, f"{name}/"))
            counts.append(len(names))
            classes.append(name)
        else:
            walk.left_out.add(EMPTY, name)
    return Sorted(Names(packed), np.repeat(np.arange(len(counts)), np.array(counts, dtype=np.int64)), classes)


def classes_of_training(spec: str, root: Path, folder: Path, own: Sorted) -> list[str]:
    """The classes of the training split; the split's own where there is none."""
    training = find_split(root, "train")
    if training is None or training == folder:
        return own.classes
    walk = Walk(str(training))
    outside, inside = walk.scan()
    if inside and not are_plain(inside):
        return in_order(name for name, trail in inside.items() if walk.any_below(f"{name}/", trail))
    if not outside and not inside:
        return own.classes
    try:
        return by_class(spec, training, "train", LeftOut()).classes
    except InputError:
        return own.classes  # training images of another kind, which are none of this split's business


def table_of(folder: Path, split: str) -> Path | None:
    """The table that tells the classes of a flat folder."""
    levels = [folder, *folder.absolute().parents[:ABOVE]]
    places = [(level, KAGGLE) for level in levels] + [(level, name) for level in levels[:2] for name in TABLES]
    for level, pattern in places:
        for name in dict.fromkeys([folder.name, *names_of(split)]):
            if (level / pattern.format(name)).is_file():
                return level / pattern.format(name)
    return None


def by_table(spec: str, folder: Path, names: Sequence[str], table: Path, left_out: LeftOut) -> Sorted:
    """Pictures that a table names by file, by path or without the ending."""
    of_name = {key: row.label for row in rows(spec, table) for key in _keys(row.file)}
    labels = [next((of_name[key] for key in _keys(name) if key in of_name), None) for name in names]
    if not any(labels):
        raise InputError(
            f"{spec}: {table.name} names none of the {len(names):,} pictures in {folder}, such as {names[0]}; it must "
            "name them by file name, a line each"
        )
    return replace(_kept(names, labels, UNLISTED, left_out), table=table.name)


def _keys(name: str) -> tuple[str, str, str]:
    """What a table may call a file: its path, its name, its name without the ending."""
    file = name[name.rfind("/") + 1 :]
    return name, file, stem(name) or file


def labels_in(names: Sequence[str]) -> list[str | None] | None:
    """The classes that pictures bear in their names; None where they do not.

    A wnid is a class wherever it stands. Other words are classes only where every picture has one beside a number, and
    there are several.
    """
    for read in (wnid_of, _numbered(NUMBERED), _numbered(NUMBER_FIRST)):
        labels = [read(name) for name in names]
        known = set(labels) - {None}
        if known and (read is wnid_of or (len(known) > 1 and None not in labels)):
            return labels
    return None


def wnid_of(name: str) -> str | None:
    match = WNID.search(name[name.rfind("/") + 1 :])
    return match and match[1]


def _numbered(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def read(name: str) -> str | None:
        match = pattern.fullmatch(stem(name))
        return match and match[1]

    return read


def _kept(
    names: Sequence[str], labels: Sequence[str | None], lacking: What, left_out: LeftOut, by_name: bool = False
) -> Sorted:
    """Pictures with a class, by class and name."""
    for name, label in zip(names, labels, strict=True):
        if label is None:
            left_out.add(lacking, name)
    classes = in_order({label for label in labels if label is not None})
    place = {name: k for k, name in enumerate(classes)}
    pairs = sorted((place[label], name) for name, label in zip(names, labels, strict=True) if label is not None)
    block, codes = Names.packed([name for _, name in pairs]), [k for k, _ in pairs]
    return Sorted(Names([block]), np.array(codes, dtype=np.int64), classes, by_name)


def no_classes(spec: str, folder: Path, names: Sequence[str] = (), split: str = "val") -> InputError:
    if not names:
        return InputError(
            f"{spec}: {folder} has no class folders; it must hold one folder of images per class"
            f"{layout_hint(folder, spec)}"
        )
    return InputError(
        f"{spec}: {folder} has no class folders but {len(names):,} pictures such as {names[0]}, whose names tell no "
        f"class, and there is no {KAGGLE.format(split)} in it or above, nor {TABLES[1].format(split)} beside it; put "
        f"them into one folder per class, or name a list with list:FILE{layout_hint(folder, spec)}"
    )


def all_pictures(path: Path, split: str) -> tuple[Path, list[str]]:
    """All pictures of a split of anything that ``folder:`` reads, or of a flat folder, whatever their classes."""
    folder = places_of(path, split)[1] or path
    return folder, Walk(str(folder)).below("")
