"""``parquet:PATH``: pictures, labels and masks as columns of Parquet files, as Hugging Face packs them.

PATH is a file, a folder or a pattern; files belong to a split by their names (train-*, validation-*, ...). Columns are
image and mask (bytes, or a struct with bytes and path), label (numbers, whose names Hugging Face keeps in the schema,
or words), filename; others are named behind the place: ``parquet:PATH?image=img&label=fine_label&mask=seg``.
Row groups are read when they are needed, and few are held: memory stays flat. One that is too large to hold is read
page by page, which is quick in order only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from models.config import ViTConfig
from models.data.codings import N_SAMPLED, Coding, RawMask, raw_mask
from models.data.files import LeftOut
from models.data.images import Images
from models.data.items import Item, Lazy
from models.data.naming import coded
from models.data.splits import files_at, files_of_split, with_options
from models.data.stream import evenly
from models.errors import InputError, UnreadableImage, brief

with epy.lazy_imports():  # loaded where somebody reads Parquet
    import pyarrow as pa
    from pyarrow import parquet as pq

COLUMNS = {
    "image": ("image", "img", "picture", "photo", "jpg", "png", "image_bytes"),
    "label": ("label", "labels", "class", "cls", "wnid", "fine_label", "category", "target", "class_id"),
    "mask": ("mask", "segmentation", "segmentation_mask", "semantic_mask", "seg", "annotation"),
    "filename": ("filename", "file_name", "name", "path", "image_id", "id"),
}
HELD = 128 * 2**20  # bytes of row groups that are held; a larger row group is read in steps
STEP = 16  # rows
UNLABELLED = ("row without a label", "rows without a label")


def open_parquet(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """Classes by the schema's names, else by a list beside the data, else numbers; words in order."""
    place, options = with_options(spec, str(path), tuple(COLUMNS))
    files = files_of_split(spec, place, split, "parquet")
    store = Store(spec, files, options)
    column = store.columns["label"]
    values, kept = without_missing(label_values(spec, files, column))
    names, more, training = store.class_names(), 0, None
    if names is None:
        more, training = other_labels(spec, place, column)
    folder = Path(place) if Path(place).is_dir() else files[0].parent
    classes, labels = coded(spec, values, folder, names, training, more)
    left_out = LeftOut()
    lacking = np.flatnonzero(~kept)
    left_out.add(UNLABELLED, store.name(int(lacking[0])) if len(lacking) else "", len(lacking))
    left_out.say(spec, split)
    rows = Rows(store, np.flatnonzero(kept), labels)
    if "mask" in store.columns and len(rows):
        rows.coding = Coding.checked(rows.raw_masks(evenly(len(rows), N_SAMPLED)), len(classes), spec)
    return Images(spec, split, classes, rows, like)


class Store:
    """Rows of Parquet files by their number over all files, in any process."""

    def __init__(self, spec: str, files: Sequence[Path], options: dict[str, str]):
        self.spec, self.files = spec, list(files)
        self.columns = columns_of(spec, self.files[0], schema_of(spec, self.files[0]), options)
        groups = [  # file, row group, rows, bytes
            (i, group, table.row_group(group).num_rows, table.row_group(group).total_byte_size)
            for i, table in enumerate(self._metadata(file) for file in self.files)
            for group in range(table.num_row_groups)
        ]
        self.groups = np.array(groups, dtype=np.int64).reshape(-1, 4)
        self.starts = np.concatenate([[0], np.cumsum(self.groups[:, 2])])
        self._forget()

    def _metadata(self, file: Path) -> Any:
        missing = set(self.columns.values()) - set(schema_of(self.spec, file).names)
        if missing:
            raise InputError(f"{self.spec}: {file.name} lacks the column {min(missing)} that {self.files[0].name} has")
        with readable(self.spec, file):
            return pq.read_metadata(file)

    def _forget(self) -> None:
        """Nothing open, nothing held: how a process begins."""
        self.process = os.getpid()
        self.held: dict[int, Any] = {}  # tables by row group
        self.step: tuple[int, int, Any, Any] | None = None  # row group, first row, rows, and what follows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "held": {}, "step": None, "process": 0}

    def class_names(self) -> list[str] | None:
        """The names of the labels in Hugging Face's part of the schema."""
        try:
            told = json.loads((schema_of(self.spec, self.files[0]).metadata or {})[b"huggingface"])
            return list(map(str, told["info"]["features"][self.columns["label"]]["names"])) or None
        except (KeyError, TypeError, ValueError, RecursionError):
            return None

    def name(self, row: int) -> str:
        """``val-00000.parquet: row 3``, counted from 0 in its file."""
        file = self.groups[self._group(row), 0]
        before = self.starts[:-1][self.groups[:, 0] == file][0]
        return f"{self.files[file].name}: row {row - before}"

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def record(self, row: int, columns: Sequence[str] = ("image", "mask", "filename")) -> dict[str, Any]:
        """The values of a row, None where there are none."""
        if self.process != os.getpid():
            self._forget()
        group = self._group(row)
        wanted = [self.columns[column] for column in ("image", "mask", "filename") if column in self.columns]
        with readable(self.spec, self.files[self.groups[group, 0]]):
            if self.groups[group, 3] <= HELD:
                table, first = self._whole(group, wanted), self.starts[group]
            else:
                table, first = self._stepped(group, row, wanted)
            values = table.select([self.columns[name] for name in columns if name in self.columns])
            cells = values.slice(row - first, 1).to_pylist()[0]
        return {column: cells.get(self.columns.get(column)) for column in columns}

    def _whole(self, group: int, columns: list[str]) -> Any:
        if group not in self.held:
            while self.held and self.groups[[*self.held, group], 3].sum() > HELD:
                del self.held[next(iter(self.held))]
            file, number = self.groups[group, :2]
            table = pq.ParquetFile(self.files[file])
            self.held[group] = table.read_row_group(int(number), columns=columns, use_threads=False)
        return self.held[group]

    def _stepped(self, group: int, row: int, columns: list[str]) -> tuple[Any, int]:
        if self.step is None or self.step[0] != group or row < self.step[1]:
            self.step, (file, number) = None, self.groups[group, :2]
            table = pq.ParquetFile(self.files[file], buffer_size=2**20, pre_buffer=False)
            batches = table.iter_batches(STEP, row_groups=[int(number)], columns=columns, use_threads=False)
            self.step = group, int(self.starts[group]), next(batches), batches
        _, first, batch, batches = self.step
        while row >= first + batch.num_rows:
            first, batch = first + batch.num_rows, next(batches)
        self.step = group, first, batch, batches
        return batch, first


class Rows(Lazy):
    """The items of a store. `rows`: [image] their numbers in it."""

    def __init__(self, store: Store, rows: np.ndarray, labels: np.ndarray, coding: Coding | None = None):
        self.store, self.rows, self.labels, self.coding = store, rows, labels, coding

    @property
    def has_masks(self) -> bool:
        return self.coding is not None

    def item(self, index: int) -> Item:
        row, label = int(self.rows[index]), int(self.labels[index])
        record = self.store.record(row)
        name = self._name(row, record)
        content = bytes_of(record["image"], self.store.files[self.store.groups[self.store._group(row), 0]].parent)
        if content is None:
            raise UnreadableImage(name, "the row holds no picture")
        if self.coding is None:
            return Item(BytesIO(content), name, label)
        return Item(BytesIO(content), name, label, partial(self.coding.read, self._mask(record, name), name, label))

    def _name(self, row: int, record: dict[str, Any]) -> str:
        image = record["image"] if isinstance(record["image"], dict) else {}
        told = record["filename"] or image.get("path")
        return self.store.name(row) + (f" ({told})" if told else "")

    def _mask(self, record: dict[str, Any], name: str) -> BytesIO:
        content = bytes_of(record["mask"], self.store.files[0].parent)
        if content is None:
            raise InputError(f"{name} has no mask; give every row one, or leave the column out")
        return BytesIO(content)

    def raw_masks(self, places: Sequence[int]) -> Iterator[RawMask]:
        """Masks as the files hold them."""
        for place in places:
            row = int(self.rows[place])
            record = self.store.record(row, ("mask",))
            name = self.store.name(row)
            yield name, int(self.labels[place]), raw_mask(self._mask(record, name), name)

    def facts(self) -> Iterator[str]:
        yield " ".join(f"{role}={column}" for role, column in self.store.columns.items())
        yield from (f"{file.name} {file.stat().st_size}" for file in self.store.files)
        yield hashlib.sha256(self.rows.tobytes() + self.labels.tobytes()).hexdigest()


def bytes_of(value: Any, folder: Path) -> bytes | None:
    """The content of a cell: bytes, a struct with bytes or a path, or a path below the folder of the file."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        file = folder / value
        return file.read_bytes() if os.path.isfile(file) else None
    return value if isinstance(value, bytes) else None


def schema_of(spec: str, file: Path) -> Any:
    with readable(spec, file):
        return pq.read_schema(file)


@contextmanager
def readable(spec: str, file: Path) -> Iterator[None]:
    """What Arrow raises at a damaged file is one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{spec}: {file.name} cannot be read as Parquet ({brief(error)}); restore it") from None


def columns_of(spec: str, file: Path, schema: Any, options: dict[str, str]) -> dict[str, str]:
    """The columns of a file by what they are for; those of the options, else of the usual names and of a type that
    fits.
    """
    columns = {}
    for role, usual in COLUMNS.items():
        fits = [name for name in schema.names if _fits(role, schema.field(name).type)]
        wanted = (options[role],) if role in options else usual
        column = next((name for asked in wanted for name in fits if name.casefold() == asked.casefold()), None)
        if column is not None:
            columns[role] = column
        elif role in options or role in ("image", "label"):
            asked = options.get(role, f"{role} or ?{role}=NAME")
            raise InputError(
                f"{spec}: {file.name} has no column {asked} that can be the {role}; its columns are "
                f"{', '.join(f'{field.name} ({str(field.type)[:40]})' for field in schema)}"
            )
    return columns


def _fits(role: str, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if role in ("image", "mask"):
        return is_text or pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return is_text or pa.types.is_integer(kind)


def label_values(spec: str, files: Sequence[Path], column: str) -> Any:
    """The label column over all files, as one Arrow array."""
    chunks = []
    for file in files:
        with readable(spec, file):
            for chunk in pq.read_table(file, columns=[column], use_threads=False)[column].chunks:
                plain = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
                chunks.append(plain.cast(pa.int64()) if pa.types.is_integer(plain.type) else plain)
    if not chunks:
        raise InputError(f"{spec} holds no rows")
    return pa.concat_arrays(chunks)


def without_missing(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are there, as numbers or words; and where they are: [row] bool (-1 stands for none, too)."""
    if pa.types.is_integer(values.type):
        numbers = values.fill_null(-1).to_numpy(zero_copy_only=False)
        return numbers[numbers >= 0], numbers >= 0
    words = np.array([word or "" for word in values.to_pylist()], dtype=object)
    return words[words != ""].astype(str), words != ""


def other_labels(spec: str, place: str, column: str) -> tuple[int, np.ndarray | None]:
    """How many classes all splits together have where labels are numbers, and the words of the training split."""
    files = [file for file in files_at(spec, place, "parquet") if column in schema_of(spec, file).names]
    values = without_missing(label_values(spec, files, column))[0]
    if values.dtype.kind in "iu":
        return int(values.max(initial=-1)) + 1, None
    try:
        return 0, without_missing(label_values(spec, files_of_split(spec, place, "train", "parquet"), column))[0]
    except InputError:
        return 0, None
