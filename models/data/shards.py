"""``wds/NAME:FOLDER``: WebDataset shards, read by random access, without unpacking and without the package webdataset.

A sample consists of the files of a shard that share a key, the name up to the first full stop: ``a.jpg``, ``a.png``,
``a.cls``. Options after the folder say which file is which: ``wds/NAME:FOLDER?image=jpg&mask=png&label=cls``. Without
them the picture is preferably a photograph (a png next to a jpg is taken for a mask), the label is in ``cls`` or in the
field `label` of ``json``, and there are no masks. If shards contain only pictures, classes are the folders within them,
or each shard is one class, as ImageNet's n01440764.tar. FOLDER holds timm's ``_info.json``, or shards named after their
splits.
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

Parts = dict[str, tuple[int, int]]  # position of a sample's files within the shard, by their kind: offset and bytes


@dataclass
class Index:
    """Positions of the files of all samples, as columns. A file's kind is its name after the key, such as "jpg"."""

    keys: bytearray = field(default_factory=bytearray)
    shard: array = field(default_factory=lambda: array("i"))
    labels: list[int | str | None] = field(default_factory=list)
    columns: dict[str, tuple[array, array, array]] = field(default_factory=dict)  # by kind: samples, offsets, bytes
    kinds: set[frozenset[str]] = field(default_factory=set)  # combinations of kinds that occur in a sample

    def add(self, shard: int, key: str, parts: Parts, label: int | str | None) -> None:
        for kind, (offset, size) in parts.items():
            samples, offsets, sizes = self.columns.setdefault(kind, (array("q"), array("q"), array("q")))
            samples.append(len(self.shard))
            offsets.append(offset)
            sizes.append(size)
        self.keys += key.encode(errors="surrogateescape") + b"\0"
        self.shard.append(shard)
        self.labels.append(label)
        self.kinds.add(frozenset(parts))

    def places(self, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Offset and bytes [sample 2] of each sample's first file among `kinds`, and that kind's index, -1 for none."""
        position = np.zeros((len(self.shard), 2), dtype=np.int64)
        kind_index = np.full(len(self.shard), -1, dtype=np.int8)
        for i, kind in reversed(list(enumerate(kinds))):  # earlier kinds overwrite later ones
            samples, offsets, sizes = map(np.asarray, self.columns[kind])
            position[samples] = np.stack([offsets, sizes], 1)
            kind_index[samples] = i
        return position, kind_index


def open_shards(spec: str, rest: str, split: str, like: ViTConfig | None) -> Images:
    place, options = with_options(spec, rest, OPTIONS) if rest else ("", {})
    if not place or not (any(letter in place for letter in "*{") or os.path.exists(place)):
        raise InputError(f"{spec}: there is no folder {place or '(none given)'}; write {spec.partition(':')[0]}:FOLDER")
    shards, info_label_key = shards_of(spec, place, split)
    left_out, label_key = LeftOut(), options.get("label") or info_label_key
    index = index_of(spec, shards, label_key, left_out)
    images = image_kinds(spec, index, options.get("image"))
    position, kind_index = index.places(images)
    has_only_pictures = index.kinds <= {frozenset([kind]) for kind in images}
    if label_key is None and has_only_pictures:
        index.labels = by_place(spec, index, shards)
    has_picture = kind_index >= 0
    has_label = np.array([label is not None for label in index.labels], dtype=bool)
    keys = Names([bytes(index.keys)])
    for what, lacking in ((PICTURELESS, ~has_picture), (UNLABELLED, has_picture & ~has_label)):
        left_out.add(what, keys[int(lacking.argmax())] if lacking.any() else "", int(lacking.sum()))
    kept = np.flatnonzero(has_picture & has_label)
    if not len(kept):
        raise InputError(f"{spec}: no sample of {shards[0].name} has a picture and a label{kinds_there(index)}")
    values = np.array([index.labels[i] for i in kept])
    folder = Path(place) if Path(place).is_dir() else shards[0].parent
    classes, labels = coded(spec, values, folder)
    left_out.say(spec, split)
    names = Names([Names.packed([f"{keys[int(i)]}.{images[kind_index[i]]}" for i in kept])])
    samples = Samples(shards, np.asarray(index.shard)[kept], names, position[kept], labels)
    if "mask" in options:
        samples.masks = mask_places(spec, index, options["mask"], kept, keys)
        samples.coding = Coding.checked(samples.raw_masks(evenly(len(kept), N_SAMPLED)), len(classes), spec)
    return Images(spec, split, classes, samples, like)


class Samples(Lazy):
    """Samples of shards.

    shard: index of the shard [image]; names: [image]; images: offset and bytes of the picture [image 2]; masks: offset
    and bytes of the mask [image 2], or None.
    """

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
        """Yields the masks of the samples at these positions, as stored in the shards."""
        for i in places:
            name = self.name(i)
            yield name, int(self.labels[i]), raw_mask(self._part(i, self.masks), name)

    def facts(self) -> Iterator[str]:
        sizes = [self.images[:, 1]] if self.masks is None else [self.images[:, 1], self.masks[:, 1]]
        for i, label in enumerate(self.labels):
            yield f"{self.name(i)} {label} {' '.join(str(size[i]) for size in sizes)}"


def shards_of(spec: str, place: str, split: str) -> tuple[list[Path], str | None]:
    """The shards of a split, and the key of the label if timm's ``_info.json`` gives one."""
    info = next((Path(place, name) for name in INFO if Path(place, name).is_file()), None)
    if info is None:
        return files_of_split(spec, place, split, "tar"), None
    text = text_of(info, spec)
    try:
        splits = dict(json.loads(text)["splits"])
        own = next((splits[name] for name in names_of(split) if name in splits), {"filenames": ()})
        shards = [info.parent / name for name in own["filenames"]]
        label_field = own.get("alt_label")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise InputError(
            f"{spec}: {info.name} is not timm's list of splits with their filenames; mend or remove it"
        ) from None
    if not splits.keys() & names_of(split):
        raise InputError(f"{spec} has no split {split!r}; {info.name} lists {', '.join(splits) or 'none'}")
    missing = [shard.name for shard in shards if not os.path.isfile(shard)]
    if not shards:
        raise InputError(f"{spec}: {info.name} lists no shard of split {split!r}; add its filenames")
    if missing:
        raise InputError(
            f"{spec}: {len(missing)} of {len(shards)} shards of {info.name} do not exist, the first is {missing[0]}; "
            "restore them"
        )
    return shards, f"json.{label_field}" if label_field else None


def index_of(spec: str, shards: Sequence[Path], label_key: str | None, left_out: LeftOut) -> Index:
    index = Index()
    for number, shard in enumerate(shards):
        if shard.stat().st_size % tarfile.BLOCKSIZE:
            raise InputError(
                f"{spec}: {shard.name} cannot be read as a tar (its size is no multiple of {tarfile.BLOCKSIZE}: it is "
                "cut off or compressed); restore it, uncompressed"
            )
        try:
            with tarfile.open(shard, "r:") as tar:
                for key, parts in samples_in(tar, left_out).items():
                    index.add(number, key, parts, label_of(spec, tar, f"{shard.name}: {key}", parts, label_key))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"{spec}: {shard.name} cannot be read as a tar ({brief(error)}); restore it, uncompressed"
            ) from None
    return index


def samples_in(tar: tarfile.TarFile, left_out: LeftOut) -> dict[str, Parts]:
    """Positions of the files of one shard, by key and kind."""
    samples: dict[str, Parts] = defaultdict(dict)
    while (member := tar.next()) is not None:
        tar.members = []  # otherwise the tar would keep every member in memory
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
    """A sample's label from the file `label_key` (``cls``, ``json``, ``json.FIELD``), by default cls, then json.label.

    None if the sample has no such file, or a label that is empty or negative.
    """
    default_key = "cls" if "cls" in parts else "json"
    kind, _, json_field = (label_key or default_key).partition(".")
    if kind not in parts:
        return None
    offset, size = parts[kind]
    tar.fileobj.seek(offset)
    try:
        value: Any = tar.fileobj.read(size).decode("utf-8-sig").strip()
        if kind == "json":
            value = json.loads(value).get(json_field or "label")
    except (ValueError, AttributeError, RecursionError):
        expected = "JSON object" if kind == "json" else "text"
        raise InputError(f"{spec}: {name}.{kind} is no {expected}; mend it") from None
    if value is None or value == "":
        return None
    value = as_class(str(value))
    if not value.isprintable():
        raise InputError(f"{spec}: {name}.{kind} holds {quoted(value)}, which is no class; write its number or name")
    if not re.fullmatch(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}", value):
        return value
    return int(value) if int(value) >= 0 else None  # -1 stands for no label


def by_place(spec: str, index: Index, shards: Sequence[Path]) -> list[int | str | None]:
    """The labels of shards that contain only pictures: their folders, else their shards, else wnids in file names.

    ImageNet's training images come as one shard per class. If none of these gives every picture a class, and at least
    two classes in all, the labels stay as they are in the index: None.
    """
    keys = Names([bytes(index.keys)])
    stems = [shard.stem for shard in shards]
    are_classes = all(WNID.fullmatch(stem) or not re.search("[0-9]", stem) for stem in stems)
    for source, labels in (
        ("folders", [key.rpartition("/")[0].rpartition("/")[2] for key in keys]),
        ("shards", [stems[shard] if are_classes else "" for shard in index.shard]),
        ("the names of files", [wnid_of(key) for key in keys]),
    ):
        classes = set(labels)
        if all(classes) and len(classes) > 1:
            print(f"{spec}: shards of pictures alone; {len(classes):,} classes by {source}", file=sys.stderr)
            return labels
    return index.labels


def image_kinds(spec: str, index: Index, asked: str | None) -> list[str]:
    """The kinds of file that may be a sample's picture, in order of preference.

    A kind that occurs next to a likelier one in any sample is excluded for all samples: if pngs are masks next to jpgs,
    then the png of a sample without a jpg is a mask too.
    """
    if asked is not None:
        if asked.lower() not in index.columns:
            raise InputError(f"{spec}: no sample has a file .{asked}{kinds_there(index)}")
        return [asked.lower()]
    ranks = {kind: likeliness(kind) for kind in index.columns if f".{kind.rpartition('.')[2]}" in endings()}
    excluded = set()
    for kinds in index.kinds:
        pictures = sorted(kinds & ranks.keys(), key=lambda kind: (ranks[kind], kind))
        for kind in pictures[1:]:
            if ranks[kind] == ranks[pictures[0]]:
                raise InputError(
                    f"{spec}: {pictures[0]} and {kind} of a sample could both be the picture; say which with "
                    f"?image={kind}"
                )
        excluded.update(pictures[1:])
    return sorted(ranks.keys() - excluded, key=lambda kind: (ranks[kind], kind))


def likeliness(kind: str) -> int:
    """The rank of a kind of file as a sample's picture: 0 for photographs, then other images, last those named mask."""
    words, _, ending = kind.rpartition(".")
    if words and MASK_NAME.search(f".{words}"):
        return 4
    if words:
        return 0 if words in ("image", "img", "input") else 3
    if f".{ending}" in PHOTOGRAPHS:
        return 0
    return 2 if ending == "png" else 1


def mask_places(spec: str, index: Index, asked: str, kept: np.ndarray, keys: Names) -> np.ndarray:
    """Offset and bytes [image 2] of every image's mask."""
    if asked.lower() not in index.columns:
        raise InputError(f"{spec}: no sample has a mask .{asked}{kinds_there(index)}")
    position, kind_index = index.places([asked.lower()])
    lacking = kept[kind_index[kept] < 0]
    if len(lacking):
        raise InputError(
            f"{spec}: {len(lacking):,} of {len(kept):,} samples have no mask .{asked}, the first is "
            f"{keys[int(lacking[0])]}; restore them"
        )
    return position[kept]


def kinds_there(index: Index) -> str:
    """The end of a message: the kinds of file that the samples have, and how to choose among them."""
    kinds = ", ".join(sorted(index.columns)) or "nothing"
    return f"; samples hold {kinds}, say which is what with ?image=, &mask= and &label="
