"""``boxes:PATH``: photographs with a CSV of boxes; a mask is the union of the boxes of its image's class."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from models.config import ViTConfig
from models.data.files import as_class, existing, in_order, parsed, pictures, text_of
from models.data.found import layout_hint
from models.data.images import Images
from models.data.items import Item
from models.data.splits import NAMES, find_split, split_folder
from models.errors import InputError

COLUMNS = ("w", "h", "x0", "y0", "x1", "y1")  # pixels, at an image size of w x h
SLACK = 1  # pixels that a box may stick out, and that w x h may be off the image's proportions, from rounding

Box = tuple[float, float, float, float]
Boxes = tuple[float, float, tuple[Box, ...]]  # w, h, and the boxes of one class in one image


def open_boxes(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """One item per image and class with boxes; `path` is the CSV or its folder.

    Columns are file, wnid or label, w, h, x0, y0, x1, y1; others are ignored. The images lie anywhere beside the CSV.
    Where they lie in folders of splits, the folder decides; a set without such folders is one split, val.
    """
    table = box_table(spec, existing(path, spec))
    rows = read_boxes(spec, table)
    classes = tuple(in_order({name for _, name in rows}))
    place = {name: label for label, name in enumerate(classes)}
    here, elsewhere = places(spec, table.parent, split)
    items = []
    for (file, name), (w, h, boxes) in sorted(rows.items()):
        keys = (f"{name}/{file}", file, Path(file).name)
        image = next((here[key] for key in keys if here.get(key)), None)
        if image is not None:
            label = place[name]
            items.append(Item(image, file, label, partial(box_mask, (w, h, boxes), label, file), repr((w, h, boxes))))
        elif not any(key in elsewhere for key in keys):
            raise InputError(
                f"{spec}: {file} of {table.name} is nowhere below {table.parent}, or at several places there"
            )
    return Images(spec, split, classes, items, like)


def box_table(spec: str, path: Path) -> Path:
    if path.is_file():
        return path
    tables = sorted(path.glob("*boxes*.csv")) or sorted(path.glob("*.csv"))
    if not tables:
        raise InputError(
            f"{spec} holds no CSV of boxes; it needs columns file, wnid or label, {', '.join(COLUMNS)}"
            f"{layout_hint(path, spec)}"
        )
    return tables[0]


def read_boxes(spec: str, table: Path) -> dict[tuple[str, str], Boxes]:
    """The boxes of a CSV by (file, class)."""
    boxes: dict[tuple[str, str], list[Box]] = defaultdict(list)
    sizes: dict[tuple[str, str], tuple[float, float]] = {}
    reader = csv.DictReader(io.StringIO(text_of(table, spec), newline=""), skipinitialspace=True)
    columns = set(reader.fieldnames or ())
    name = "wnid" if "wnid" in columns else "label"
    missing = [column for column in ("file", name, *COLUMNS) if column not in columns]
    if missing:
        raise InputError(
            f"{spec}: {table.name} lacks the columns {', '.join(missing).replace('label', 'wnid or label')}"
        )
    for row in parsed(reader, spec, table):
        where = f"{spec}: line {reader.line_num} of {table.name}"
        w, h, *box = _numbers(row, where)
        if not row["file"] or not row[name]:
            raise InputError(f"{where} lacks a value; it needs a picture and its class")
        key = row["file"].replace("\\", "/"), as_class(row[name].strip())
        if sizes.setdefault(key, (w, h)) != (w, h):
            raise InputError(f"{where} gives {row['file']} another size than an earlier line")
        boxes[key].append(tuple(box))
    return {key: (*sizes[key], tuple(boxes[key])) for key in boxes}


def _numbers(row: dict[str, str], where: str) -> list[float]:
    try:
        w, h, x0, y0, x1, y1 = numbers = [float(row[column]) for column in COLUMNS]
    except (TypeError, ValueError):
        raise InputError(f"{where} has a value that is not a number") from None
    if not (0 < w < math.inf and 0 < h < math.inf):
        raise InputError(f"{where} has an image of {w:g} x {h:g} pixels; give its width and height")
    if not (-SLACK <= x0 < x1 <= w + SLACK and -SLACK <= y0 < y1 <= h + SLACK):
        raise InputError(f"{where} has a box outside its image of {w:g} x {h:g} pixels, or an empty one")
    return numbers


def places(spec: str, root: Path, split: str) -> tuple[dict[str, Path | None], dict[str, Path | None]]:
    """Image files by name, class/name and path: those of the split, and those of other splits (when there are such
    folders).
    """
    others = [name for key, names in NAMES.items() if key != split for name in names if (root / name).is_dir()]
    if find_split(root, split) is None and (split != "val" or others):
        split_folder(spec, root, split)  # raises, saying what is there
    own = pictures(find_split(root, split) or root)
    return _by_name(root, own), _by_name(root, [file for name in others for file in pictures(root / name)])


def _by_name(root: Path, files: list[Path]) -> dict[str, Path | None]:
    """Files by every name that a CSV may give them; None where a name fits several."""
    by_name: dict[str, Path | None] = {}
    for file in files:
        for key in {file.name, f"{file.parent.name}/{file.name}", file.relative_to(root).as_posix()}:
            by_name[key] = None if key in by_name else file
    return by_name


def box_mask(boxes: Boxes, label: int, name: str, size: tuple[int, int]) -> np.ndarray:
    """label + 1 where a pixel's centre lies in a box: [height width]."""
    (w, h, corners), (width, height) = boxes, size
    if abs(w * height - h * width) > SLACK * max(w, h, width, height):
        raise InputError(
            f"{name}: its boxes are for an image of {w:g} x {h:g} pixels, but the file stores {width} x {height}"
        )
    x, y = (np.arange(width) + 0.5) * w / width, (np.arange(height) + 0.5) * h / height
    mask = np.zeros((height, width), dtype=np.int64)
    for x0, y0, x1, y1 in corners:
        mask[np.ix_((y0 <= y) & (y < y1), (x0 <= x) & (x < x1))] = label + 1
    return mask
