"""Finding files on somebody's disk: one fast walk that follows links, takes what Pillow decodes, and counts the rest.

Leftovers of file systems are never classes nor pictures, and a mask that lies beside its picture is no picture either.
What is left out is counted and named in one line on standard error. 1.28 million files take about as long as with
torchvision, and 50 bytes per file (`models.data.items.Names`).
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import EpsImagePlugin, Image, ImageFile

from models.errors import InputError

# What NAS, macOS, Windows, Linux and Python leave in folders, in lower case; and whatever starts with a full stop
LEFTOVERS = frozenset(
    [
        "@eadir",
        "#recycle",
        "@recycle",
        "#snapshot",
        "@snapshot",
        "@recently-snapshot",
        "~snapshot",
        "@tmp",
        "@__thumb",
        "@sharebin",
        "__macosx",
        "network trash folder",
        "temporary items",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "picasa.ini",
        "lost+found",
        "found.000",
        "lost.dir",
        "_gsdata_",
        "msdownld.tmp",
        "icon\r",
        "__pycache__",
    ]
)
PICTURE_FOLDERS = frozenset({"image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "photos"})
MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations", "segmentationclass", "annotations", "gt"})
MASK_WORDS = ("mask", "seg", "gt", "label", "matte", "trimap")
MASK_NAME = re.compile(
    r"[ _.-]+(masks?|seg|segm|segmentation|gt|labels?|labelids|matte|trimap)([ _.-]*\d+)?$", re.IGNORECASE
)
MOST_DIGITS = 18  # of a class that is a number; more are a word
PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})  # beside one of these a .png of its name is a mask

What = tuple[str, str]  # one, several
SYSTEM: What = ("leftover of a file system", "leftovers of file systems")
OTHER: What = ("file that is no picture", "files that are no pictures")
EMPTY: What = ("class folder without pictures", "class folders without pictures")
NOWHERE: What = ("link that leads nowhere", "links that lead nowhere")
CIRCLE: What = ("link that leads in a circle", "links that lead in a circle")
MASK: What = ("mask beside its picture", "masks beside their pictures")
OUTSIDE: What = ("picture outside the class folders", "pictures outside the class folders")

Image.preinit()  # Pillow's plugins, once, so that no data set pays for them: the usual formats first, which are then
Image.init()  # tried first with every picture
Trail = tuple[str, ...]  # real paths of the folders that were left through a link on the way to a folder


class LeftOut:
    """What was left out of a data set, by what it is: how many, and the names of the first few."""

    shown = 3

    def __init__(self) -> None:
        self.counts: dict[What, int] = {}
        self.names: dict[What, list[str]] = {}

    def add(self, what: What, name: str, n: int = 1) -> None:
        if n:
            self.counts[what] = self.counts.get(what, 0) + n
            self.names.setdefault(what, []).append(name)
            del self.names[what][self.shown :]

    def take_back(self, what: What, name: str) -> None:
        """One that was counted and turned out to be of use."""
        self.counts[what] -= 1
        self.names[what] = [other for other in self.names[what] if other != name]
        if not self.counts[what]:
            del self.counts[what], self.names[what]

    def __str__(self) -> str:
        return ", ".join(self._of(what, n) for what, n in self.counts.items())

    def _of(self, what: What, n: int) -> str:
        more = ", ..." if n > len(self.names[what]) else ""
        return f"{n:,} {what[n > 1]} ({', '.join(map(printable, self.names[what]))}{more})"

    def say(self, spec: str, split: str) -> None:
        if self.counts:
            print(f"{spec}, split {split}: left out {self}", file=sys.stderr)


def endings() -> frozenset[str]:
    """Endings of the files that Pillow decodes here, with its plugins: in lower case, with the full stop."""
    kinds = {kind for kind in Image.OPEN if _decodes(kind)} | {"MPO"}  # an MPO is opened as a JPEG
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in kinds)


def _decodes(kind: str) -> bool:
    """False for the formats that Pillow knows by their first bytes only."""
    factory = Image.OPEN[kind][0]
    if kind == "EPS":
        return bool(EpsImagePlugin.has_ghostscript())
    return kind != "MPEG" and not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))


def ending(name: str) -> str:
    """``.jpg`` of ``a.JPG``; no ending of a picture where the name has none."""
    return name[name.rfind(".") :].lower()


def stem(name: str) -> str:
    """``b`` of ``a/b.jpg``."""
    return name[name.rfind("/") + 1 :].rpartition(".")[0]


def is_leftover(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LEFTOVERS


def in_order(names: Iterable[str]) -> list[str]:
    """Class names in order: numeric where all are numbers, else as text."""
    names = list(names)
    are_numbers = all(name.isdecimal() and len(name) <= MOST_DIGITS for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if are_numbers else sorted(names)


def as_class(label: str) -> str:
    """A class as a table calls it; a whole number that was written as a fraction (pandas': 3.0) is that number."""
    whole = re.fullmatch(r"([0-9]+)\.0+", label)
    return whole[1] if whole else label


@dataclass(frozen=True)
class Walk:
    """A walk below `root`; places are relative to it, and end in a slash."""

    root: str
    left_out: LeftOut = field(default_factory=LeftOut)
    with_masks: bool = False  # whether masks beside pictures count as pictures
    kinds: frozenset[str] = field(default_factory=endings)

    def scan(self, place: str = "", trail: Trail = ()) -> tuple[list[str], dict[str, Trail]]:
        """The pictures in a folder, sorted, and the folders in it, each with the trail that leads there."""
        names: list[str] = []
        inside: dict[str, Trail] = {}
        kinds, kinds_here = self.kinds, set()
        with scanning(f"{self.root}/{place}") as entries:
            for entry in entries:
                name = entry.name
                kind = name[name.rfind(".") :].lower()  # `ending` without the call: this line runs a million times
                try:
                    if kind in kinds and name[0] != "." and entry.is_file():
                        names.append(name)
                        kinds_here.add(kind)
                    else:
                        self._other(entry, place, trail, inside)
                except OSError:  # a link to itself
                    self.left_out.add(CIRCLE, place + name)
        names.sort()
        return (names if self.with_masks else self._without_masks(names, kinds_here, place)), inside

    def _other(self, entry: os.DirEntry[str], place: str, trail: Trail, inside: dict[str, Trail]) -> None:
        """Enters a folder into `inside`, and counts anything else."""
        where = place + entry.name
        if is_leftover(entry.name):
            self.left_out.add(SYSTEM, where)
        elif not entry.is_dir():
            self.left_out.add(OTHER if entry.is_file() or not entry.is_symlink() else NOWHERE, where)
        elif not entry.is_symlink():
            inside[entry.name] = trail
        else:
            here = os.path.realpath(f"{self.root}/{place}")
            if leads_back(os.path.realpath(entry.path), (*trail, here)):
                self.left_out.add(CIRCLE, where)
            else:
                inside[entry.name] = (*trail, here)

    def _without_masks(self, names: list[str], kinds_here: set[str], place: str) -> list[str]:
        together = "\0".join(names).lower()
        if not (".png" in kinds_here and kinds_here & PHOTOGRAPHS) and not any(word in together for word in MASK_WORDS):
            return names
        masks = masks_among(names)
        for name in sorted(masks):
            self.left_out.add(MASK, place + name)
        return [name for name in names if name not in masks]

    def below(self, place: str, trail: Trail = ()) -> list[str]:
        """Names of the pictures below a folder, relative to it, sorted part by part."""
        names, inside = self.scan(place, trail)
        if not self.with_masks and (names or PICTURE_FOLDERS & {name.casefold() for name in inside}):
            for name in [name for name in inside if name.casefold() in MASK_FOLDERS]:
                self.left_out.add(MASK, f"{place}{name}", len(self.below(f"{place}{name}/", inside.pop(name))))
        if not inside:
            return names
        paths = []
        for name in sorted([*names, *inside]):
            if name in inside:
                paths += [f"{name}/{deeper}" for deeper in self.below(f"{place}{name}/", inside[name])]
            else:
                paths.append(name)
        return paths

    def has_pictures(self, place: str) -> bool:
        """Whether a folder itself holds a picture; it looks no further than to the first."""
        with scanning(f"{self.root}/{place}") as entries:
            return any(
                ending(entry.name) in self.kinds and entry.name[0] != "." and is_file(entry) for entry in entries
            )

    def any_below(self, place: str, trail: Trail = ()) -> bool:
        """Whether a folder holds a picture at any depth."""
        if self.has_pictures(place):
            return True
        inside = self.scan(place, trail)[1]
        return any(self.any_below(f"{place}{name}/", deeper) for name, deeper in inside.items())


def masks_among(names: list[str]) -> set[str]:
    """The masks among the files of one folder: ``a.png`` beside ``a.jpg``, ``a_mask.png`` beside ``a.png``."""
    stems = {name.rpartition(".")[0] for name in names}
    photographs = {name.rpartition(".")[0] for name in names if ending(name) in PHOTOGRAPHS}
    masks = set()
    for name in names:
        own = name.rpartition(".")[0]
        mark = MASK_NAME.search(own)
        if (ending(name) == ".png" and own in photographs) or (mark and own[: mark.start()] in stems):
            masks.add(name)
    return masks


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link that leads to one."""
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def leads_back(target: str, trail: Trail) -> bool:
    """Whether a link's target is one of the folders it was reached through, or above one."""
    return any(f"{place}/".startswith(f"{target.rstrip('/')}/") for place in trail)


def scanning(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read ({error.strerror}); make it readable") from None


def pictures(folder: Path | str) -> list[Path]:
    """Picture files below a folder, sorted, masks among them too."""
    return [Path(folder, name) for name in Walk(str(folder), with_masks=True).below("")]


def folders(path: Path | str) -> list[str]:
    """Names of the folders in a folder, in order; leftovers of file systems are left out."""
    return in_order(Walk(str(path)).scan()[1])


def place(written: str) -> Path:
    """The path that somebody wrote, with ``~`` for the home folder; that of nobody known stays as it is."""
    return Path(os.path.expanduser(written))


def existing(path: Path, spec: str) -> Path:
    """`path`; `InputError` where nothing is there, or nothing can be, by its name."""
    if not os.path.exists(path):
        raise InputError(f"{spec}: there is no file or folder {path}")
    return path


def text_of(path: Path, spec: str) -> str:
    """The text of a UTF-8 file, with or without byte order mark; `InputError` for any other encoding."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise InputError(f"{spec}: {path} cannot be read ({error.strerror}); make it readable") from None
    if "\0" in text:
        raise InputError(f"{spec}: {path.name} is not text in UTF-8 but binary or another encoding; save it as UTF-8")
    return text


def parsed(table: Iterable[Any], spec: str, file: Path) -> Iterator[Any]:
    """The records of a CSV; `InputError` where it is none."""
    try:
        yield from table
    except csv.Error as error:
        raise InputError(
            f"{spec}: {file.name} cannot be read as a table ({error}); close its quotation marks"
        ) from None


def printable(name: str) -> str:
    """A name that any terminal can show."""
    return os.fsencode(name).decode(errors="replace")
