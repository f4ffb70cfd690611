"""``wds/NAME:FOLDER``: WebDataset shards, read at random places, without unpacking and without the package.

A sample is the files of a shard that share a key, the name up to the first full stop: ``a.jpg``, ``a.png``, ``a.cls``.
Which is what may be told behind the folder: ``wds/NAME:FOLDER?image=jpg&mask=png&label=cls``. Without that the picture
is a photograph before anything else (a png beside a jpg is a mask), the label is in ``cls`` or in the field `label`
of ``json``, and there are no masks. Shards of pictures alone have their classes by folders in them, or are a class
each, as ImageNet's n01440764.tar. FOLDER holds ``_info.json`` (timm's), or shards named for their splits.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from models.config import ViTConfig
from models.data.codings import N_SAMPLED, Coding, RawMask, raw_mask
from models.data.files import (
    MASK_NAME,
    MOST_DIGITS,
    PHOTOGRAPHS,
    SYSTEM,
    LeftOut,
    What,
    as_class,
    endings,
    is_leftover,
    text_of,
)
from models.data.folder import WNID, wnid_of
from models.data.images import Images
from models.data.items import Item, Lazy, Names
from models.data.naming import coded
from models.data.splits import files_of_split, names_of, with_options
from models.data.stream import evenly
from models.errors import InputError, brief, quoted

OPTIONS = ("image", "mask", "label")
INFO = ("_info.json", "info.json")
PICTURELESS: What = ("sample without a picture", "samples without a picture")
REPLACED: What = ("file that a later one of its name replaces", "files that later ones of their names replace")
UNLABELLED: What = ("sample without a label", "samples without a label")

Parts = dict[str, tuple[int, int]]  # where the files of a sample lie, by their kind: offset and bytes


@dataclass
class Index:
    """Where the files of all samples lie: columns instead of objects. `kinds`: which kinds occur together."""

    keys: bytearray = field(default_factory=bytearray)
    shard: array = field(default_factory=lambda: array("i"))
    labels: list[int | str | None] = field(default_factory=list)
    columns: dict[str, tuple[array, array, array]] = field(default_factory=dict)  # samples, offsets, bytes
    kinds: set[frozenset[str]] = field(default_factory=set)

    def add(self, shard: int, key: str, parts: Parts, label: int | str | None) -> None:
        for kind, (offset, size) in parts.items():
            sample = self.columns.setdefault(kind, (array("q"), array("q"), array("q")))
            for column, value in zip(sample, (len(self.shard), offset, size), strict=True):
                column.append(value)
        self.keys += key.encode(errors="surrogateescape") + b"\0"
        self.shard.append(shard)
        self.labels.append(label)
        self.kinds.add(frozenset(parts))

    def places(self, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Offset and bytes [sample 2] of the first of some kinds that a sample has, and the number of that kind, -1
        for none.
        """
        where = np.zeros((len(self.shard), 2), dtype=np.int64)
        which = np.full(len(self.shard), -1, dtype=np.int8)
        for number, kind in reversed(list(enumerate(kinds))):
            sample, *place = map(np.asarray, self.columns[kind])
            where[sample], which[sample] = np.stack(place, 1), number
        return where, which


def open_shards(spec: str, rest: str, split: str, like: ViTConfig | None) -> Images:
    place, options = with_options(spec, rest, OPTIONS) if rest else ("", {})
    if not place or not (any(letter in place for letter in "*{") or os.path.exists(place)):
        raise InputError(f"{spec}: there is no folder {place or '(none given)'}; write {spec.partition(':')[0]}:FOLDER")
    shards, told = shards_of(spec, place, split)
    left_out, label_key = LeftOut(), options.get("label") or told
    index = index_of(spec, shards, label_key, left_out)
    images = image_kinds(spec, index, options.get("image"))
    where, which = index.places(images)
    if label_key is None and index.kinds <= set(map(frozenset, ([kind] for kind in images))):
        index.labels = by_place(spec, index, shards)
    labelled = np.array([label is not None for label in index.labels], dtype=bool)
    keys = Names([bytes(index.keys)])
    for what, lacking in ((PICTURELESS, which < 0), (UNLABELLED, (which >= 0) & ~labelled)):
        left_out.add(what, keys[int(lacking.argmax())] if lacking.any() else "", int(lacking.sum()))
    kept = np.flatnonzero((which >= 0) & labelled)
    if not len(kept):
        raise InputError(f"{spec}: no sample of {shards[0].name} has a picture and a label{kinds_there(index)}")
    values = np.array([index.labels[i] for i in kept])
    folder = Path(place) if Path(place).is_dir() else shards[0].parent
    classes, labels = coded(spec, values, folder)
    left_out.say(spec, split)
    names = [f"{keys[int(i)]}.{images[which[i]]}" for i in kept]
    samples = Samples(shards, np.asarray(index.shard)[kept], Names([Names.packed(names)]), where[kept], labels)
    if "mask" in options:
        samples.masks = mask_places(spec, index, options["mask"], kept, keys)
        samples.coding = Coding.checked(samples.raw_masks(evenly(len(kept), N_SAMPLED)), len(classes), spec)
    return Images(spec, split, classes, samples, like)


class Samples(Lazy):
    """Samples of shards. shard: [image]; names, images: [image 2] offset and bytes; masks: the same, or None."""

    def __init__(self, shards: Sequence[Path], shard: np.ndarray, names: Names, images: np.ndarray, labels: np.ndarray):
        self.shards, self.shard, self.names, self.images, self.labels = shards, shard, names, images, labels
        self.masks: np.ndarray | None = None
        self.coding: Coding | None = None

    @property
    def has_masks(self) -> bool:
        return self.coding is not None

    def name(self, index: int) -> str:
        return f"{self.shards[self.shard[index]].name}: {self.names[index]}"

    def item(self, index: int) -> Item:
        name, label, image = self.name(index), int(self.labels[index]), self._part(index, self.images)
        if self.coding is None:
            return Item(image, name, label)
        return Item(image, name, label, partial(self.coding.read, self._part(index, self.masks), name, label))

    def _part(self, index: int, places: np.ndarray) -> BytesIO:
        offset, size = places[index].tolist()
        with open(self.shards[self.shard[index]], "rb") as file:
            file.seek(offset)
            return BytesIO(file.read(size))

    def raw_masks(self, places: Sequence[int]) -> Iterator[RawMask]:
        """Masks as the shards hold them."""
        for place in places:
            name = self.name(place)
            yield name, int(self.labels[place]), raw_mask(self._part(place, self.masks), name)

    def facts(self) -> Iterator[str]:
        sizes = [self.images[:, 1]] if self.masks is None else [self.images[:, 1], self.masks[:, 1]]
        for i, label in enumerate(self.labels):
            yield f"{self.name(i)} {label} {' '.join(str(size[i]) for size in sizes)}"


def shards_of(spec: str, place: str, split: str) -> tuple[list[Path], str | None]:
    """The shards of a split, and the label's key where timm's ``_info.json`` tells one."""
    info = next((Path(place, name) for name in INFO if Path(place, name).is_file()), None)
    if info is None:
        return files_of_split(spec, place, split, "tar"), None
    text = text_of(info, spec)
    try:
        splits = dict(json.loads(text)["splits"])
        own = next((splits[name] for name in names_of(split) if name in splits), {"filenames": ()})
        shards, alternative = [info.parent / name for name in own["filenames"]], own.get("alt_label")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise InputError(
            f"{spec}: {info.name} is not timm's list of splits with their filenames; mend or remove it"
        ) from None
    if not splits.keys() & names_of(split):
        raise InputError(f"{spec} has no split {split!r}; {info.name} tells of {', '.join(splits) or 'none'}")
    lost = [shard.name for shard in shards if not os.path.isfile(shard)]
    if lost or not shards:
        raise InputError(
            f"{spec}: {len(lost)} of {len(shards)} shards of {info.name} are not there, the first is "
            f"{lost[0] if lost else 'none'}; restore them"
        )
    return shards, f"json.{alternative}" if alternative else None


def index_of(spec: str, shards: Sequence[Path], label_key: str | None, left_out: LeftOut) -> Index:
    index = Index()
    for number, shard in enumerate(shards):
        if shard.stat().st_size % tarfile.BLOCKSIZE:
            raise InputError(
                f"{spec}: {shard.name} cannot be read as a tar (its size is no multiple of {tarfile.BLOCKSIZE}: it is "
                "cut off or packed); restore it, unpacked by gzip"
            )
        try:
            with tarfile.open(shard, "r:") as tar:
                for key, parts in samples_in(tar, left_out).items():
                    index.add(number, key, parts, label_of(spec, tar, f"{shard.name}: {key}", parts, label_key))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"{spec}: {shard.name} cannot be read as a tar ({brief(error)}); restore it, unpacked by gzip"
            ) from None
    return index


def samples_in(tar: tarfile.TarFile, left_out: LeftOut) -> dict[str, Parts]:
    """The files of one shard by key and kind."""
    samples: dict[str, Parts] = defaultdict(dict)
    while (member := tar.next()) is not None:
        tar.members = []  # or the tar would remember every member
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        if any(map(is_leftover, filter(None, (*folder.split("/"), name)))):
            left_out.add(SYSTEM, member.name)
        elif member.isreg() and "." in name:
            key, _, kind = name.partition(".")
            sample = samples[folder + slash + key]
            left_out.add(REPLACED, member.name, int(kind.lower() in sample))
            sample[kind.lower()] = member.offset_data, member.size
    return samples


def label_of(spec: str, tar: tarfile.TarFile, name: str, parts: Parts, label_key: str | None) -> int | str | None:
    """A sample's label: of the key asked for (``cls``, ``json``, ``json.FIELD``), else of cls or of json's label."""
    kind, _, wanted = (label_key or ("cls" if "cls" in parts else "json")).partition(".")
    if kind not in parts:
        return None
    offset, size = parts[kind]
    tar.fileobj.seek(offset)
    try:
        value: Any = tar.fileobj.read(size).decode("utf-8-sig").strip()
        if kind == "json":
            value = json.loads(value).get(wanted or "label")
    except (ValueError, AttributeError, RecursionError):
        raise InputError(
            f"{spec}: {name}.{kind} is no {'JSON object' if kind == 'json' else 'text'}; mend it"
        ) from None
    if value is None or value == "":
        return None
    value = as_class(str(value))
    if not value.isprintable():
        raise InputError(f"{spec}: {name}.{kind} holds {quoted(value)}, which is no class; write its number or name")
    if not re.fullmatch(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}", value):
        return value
    return int(value) if int(value) >= 0 else None  # -1: none


def by_place(spec: str, index: Index, shards: Sequence[Path]) -> list[int | str | None]:
    """The classes of shards that hold nothing but pictures: by the folders in them, by wnids in names, or a class a
    shard, as ImageNet's training images come; the index's own, which are none, where these tell nothing.
    """
    keys, stems = Names([bytes(index.keys)]), [shard.stem for shard in shards]
    are_classes = all(WNID.fullmatch(stem) or not re.search("[0-9]", stem) for stem in stems)
    for told_by, labels in (
        ("folders", [key.rpartition("/")[0].rpartition("/")[2] for key in keys]),
        ("shards", [stems[shard] if are_classes else "" for shard in index.shard]),
        ("the names of files", [wnid_of(key) for key in keys]),
    ):
        known = set(labels)
        if all(known) and len(known) > 1:
            print(f"{spec}: shards of pictures alone; {len(known):,} classes by {told_by}", file=sys.stderr)
            return labels
    return index.labels


def image_kinds(spec: str, index: Index, asked: str | None) -> list[str]:
    """The kinds of file that are the picture, the first before the others.

    A kind that stands beside a likelier one in any sample is no picture in any: where one sample lacks its jpg, its
    png is no less a mask.
    """
    if asked is not None:
        if asked.lower() not in index.columns:
            raise InputError(f"{spec}: no sample has a file .{asked}{kinds_there(index)}")
        return [asked.lower()]
    pictures = {kind: likeliness(kind) for kind in index.columns if f".{kind.rpartition('.')[2]}" in endings()}
    for kinds in index.kinds:
        together = sorted((pictures[kind], kind) for kind in kinds if kind in pictures)
        for rank, kind in together[1:]:
            if rank == together[0][0]:
                raise InputError(
                    f"{spec}: {together[0][1]} and {kind} of a sample could both be the picture; say which with "
                    f"?image={kind}"
                )
    beside = {
        kind
        for kinds in index.kinds
        for kind in kinds & pictures.keys()
        if pictures[kind] > min(pictures[other] for other in kinds & pictures.keys())
    }
    return sorted(pictures.keys() - beside, key=lambda kind: (pictures[kind], kind))


def likeliness(kind: str) -> int:
    """How likely a kind of file is the picture, the lowest first: photographs, then others, then what says mask."""
    words, _, ending = kind.rpartition(".")
    if words:
        return 4 if MASK_NAME.search(f".{words}") else 0 if words in ("image", "img", "input") else 3
    return 0 if f".{ending}" in PHOTOGRAPHS else 2 if ending == "png" else 1


def mask_places(spec: str, index: Index, asked: str, kept: np.ndarray, keys: Names) -> np.ndarray:
    """Offset and bytes [image 2] of every image's mask."""
    if asked.lower() not in index.columns:
        raise InputError(f"{spec}: no sample has a mask .{asked}{kinds_there(index)}")
    where, which = index.places([asked.lower()])
    lost = kept[which[kept] < 0]
    if len(lost):
        raise InputError(
            f"{spec}: {len(lost):,} of {len(kept):,} samples have no mask .{asked}, the first is {keys[int(lost[0])]}; "
            "restore them"
        )
    return where[kept]


def kinds_there(index: Index) -> str:
    there = ", ".join(sorted(index.columns)) or "nothing"
    return f"; samples hold {there}, say which is what with ?image=, &mask= and &label="
