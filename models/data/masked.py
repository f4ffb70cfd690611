"""Photographs with masks: ImageNet-S folders, Pascal VOC folders, and box files.

The files' own encodings differ; `Images` serves them all as 0 = other, label + 1 = the class, -1 = ignored.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from models.config import ViTConfig
from models.data.images import EXTENSIONS, Images, Item, existing, from_ids, pictures, raw_mask
from models.errors import InputError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IMAGENET_S_FOLDERS = {"val": ("validation", "validation-segmentation"), "train": ("train-semi", "train-semi-segmentation")}
IMAGENET_S_IGNORE, VOC_IGNORE = 1000, 255

# ImageNet-S (Gao et al., 2022)


def open_imagenet_s(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """The official layout of the 50, 300 and 919 sets; split val is `validation`, train is `train-semi` (10 masks per class).

    A mask is RGB with id = R + 256 G: 0 other, 1000 ignore, k the k-th class of the split's list sorted by wnid. The folder is
    the label: 13 % of the images stand in another class folder than their ImageNet-1K label.
    """
    if split not in IMAGENET_S_FOLDERS:
        raise InputError(f"{spec} has no split {split!r}; it has val (validation) and train (train-semi)")
    images, masks = (existing(path, spec) / name for name in IMAGENET_S_FOLDERS[split])
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(f"{spec} has no folder {folder.name}; the official layout holds {' and '.join(IMAGENET_S_FOLDERS[split])}")
    classes = imagenet_s_classes(spec, path, images)
    unknown = sorted(folder.name for folder in images.iterdir() if folder.is_dir() and folder.name not in classes)
    if unknown:
        raise InputError(f"{spec}: folder {unknown[0]} is not in its list of {len(classes)} classes")
    items = [_imagenet_s_item(spec, file, images, masks, classes) for name in classes for file in pictures(images / name)]
    return Images(spec, split, classes, items, like)


def imagenet_s_classes(spec: str, path: Path, images: Path) -> tuple[str, ...]:
    """wnids, sorted: from ``ImageNetS_categories_im*.txt`` where there is one, else the class folders."""
    for listing in sorted(path.glob("ImageNetS_categories_im*.txt")):
        return tuple(sorted(line.split()[0] for line in listing.read_text().splitlines() if line.strip()))
    classes = tuple(sorted(folder.name for folder in images.iterdir() if folder.is_dir()))
    if not classes:
        raise InputError(f"{spec}: {images.name} has no class folders")
    return classes


def _imagenet_s_item(spec: str, file: Path, images: Path, masks: Path, classes: tuple[str, ...]) -> Item:
    name = str(file.relative_to(images))
    mask = (masks / name).with_suffix(".png")
    if not mask.exists():
        raise InputError(f"{spec}: {name} has no mask {masks.name}/{Path(name).with_suffix('.png')}; restore it or remove the image")
    read = partial(imagenet_s_mask, mask, name, len(classes))
    return Item(file, name, classes.index(file.parent.name), read, str(mask.stat().st_size))


def imagenet_s_mask(path: Path, name: str, n_classes: int, size: tuple[int, int]) -> np.ndarray:
    raw = raw_mask(path, name).astype(np.int64)  # widened before the multiplication
    ids = raw[..., 0] + 256 * raw[..., 1] if raw.ndim == 3 else raw
    return from_ids(ids, n_classes=n_classes, ignore=IMAGENET_S_IGNORE, size=size, name=name)


# Pascal VOC (Everingham et al., 2010)


def open_voc(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """One item per image and class that its mask shows; classes from PATH/classes.txt, else VOC's twenty."""
    listing = existing(path, spec) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.exists():
        there = ", ".join(sorted(file.stem for file in listing.parent.glob("*.txt"))) or "nothing"
        raise InputError(f"{spec} has no ImageSets/Segmentation/{split}.txt; that folder holds {there}")
    own = path / "classes.txt"
    classes = tuple(own.read_text().split("\n")[: len(own.read_text().strip().split("\n"))]) if own.exists() else VOC_CLASSES
    items = [item for name in listing.read_text().split() for item in _voc_items(spec, path, name, classes)]
    return Images(spec, split, classes, items, like)


def _voc_items(spec: str, path: Path, name: str, classes: tuple[str, ...]) -> list[Item]:
    image = next((file for ext in EXTENSIONS if (file := path / "JPEGImages" / f"{name}{ext}").exists()), None)
    mask = path / "SegmentationClass" / f"{name}.png"
    if image is None or not mask.exists():
        raise InputError(f"{spec}: {name} of the list lacks its {'image in JPEGImages' if image is None else 'mask in SegmentationClass'}")
    ids = np.unique(raw_mask(mask, name))
    labels = [int(k) - 1 for k in ids if 0 < k <= len(classes)]
    read = partial(voc_mask, mask, name, len(classes))
    if any(k > len(classes) and k != VOC_IGNORE for k in ids):
        read(raw_mask(mask, name).shape[1::-1])  # raises, naming the id
    return [Item(image, name, label, read, str(mask.stat().st_size)) for label in labels]


def voc_mask(path: Path, name: str, n_classes: int, size: tuple[int, int]) -> np.ndarray:
    raw = raw_mask(path, name)
    if raw.ndim != 2:
        raise InputError(f"{name}: a VOC mask has one channel, {path.name} has {raw.shape[-1]}; is this an ImageNet-S set?")
    return from_ids(raw.astype(np.int64), n_classes=n_classes, ignore=VOC_IGNORE, size=size, name=name)


# Box files

Box = tuple[float, float, float, float]


def open_boxes(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """A CSV with columns file, wnid or label, w, h, x0, y0, x1, y1 (pixels at size w x h); a mask is the union of its class's boxes.

    `path` is the CSV or its folder; other columns are ignored. Files are looked for beside the CSV, in its split folders and in class folders there.
    """
    table = existing(path, spec)
    if table.is_dir():
        found = sorted(table.glob("*boxes*.csv")) or sorted(table.glob("*.csv"))
        if not found:
            raise InputError(f"{spec} holds no CSV of boxes; it needs columns file, wnid or label, w, h, x0, y0, x1, y1")
        table = found[0]
    rows = _box_rows(spec, table)
    classes = tuple(sorted({wnid for _, wnid in rows}))
    places = _places(table.parent, split)
    items = []
    for (file, wnid), boxes in sorted(rows.items()):
        image = next((p for p in (table.parent / file, *(places.get(key) for key in (file, Path(file).name))) if p and p.is_file()), None)
        if image is None:
            raise InputError(f"{spec}: {file} of {table.name} is not below {table.parent}")
        label = classes.index(wnid)
        items.append(Item(image, file, label, partial(box_mask, tuple(boxes), label), repr(boxes)))
    return Images(spec, split, classes, items, like)


def _box_rows(spec: str, table: Path) -> dict[tuple[str, str], list[Box]]:
    """Boxes by (file, class), as fractions of the image."""
    boxes: dict[tuple[str, str], list[Box]] = defaultdict(list)
    with open(table, newline="") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        name = "wnid" if "wnid" in columns else "label"
        missing = {"file", name, "w", "h", "x0", "y0", "x1", "y1"} - columns
        if missing:
            raise InputError(f"{spec}: {table.name} lacks the columns {', '.join(sorted(missing))}")
        for number, row in enumerate(reader, 2):
            try:
                w, h, *corners = (float(row[key]) for key in ("w", "h", "x0", "y0", "x1", "y1"))
            except (TypeError, ValueError):
                raise InputError(f"{spec}: line {number} of {table.name} has a value that is not a number") from None
            x0, y0, x1, y1 = corners
            if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
                raise InputError(f"{spec}: line {number} of {table.name} has a box outside its image of {w:g} x {h:g}")
            boxes[row["file"], row[name]].append((x0 / w, y0 / h, x1 / w, y1 / h))
    return boxes


def _places(root: Path, split: str) -> dict[str, Path]:
    """Image files below `root` by name and by path; those of the split's own folder win."""
    preferred = {"val": ("val", "validation"), "train": ("train", "train-semi")}.get(split, (split,))
    files = sorted(pictures(root), key=lambda file: file.relative_to(root).parts[0] in preferred)
    files = [file for file in files if not file.relative_to(root).parts[0].endswith("-segmentation")]
    return {key: file for file in files for key in (file.name, str(file.relative_to(root)), f"{file.parent.name}/{file.name}")}


def box_mask(boxes: tuple[Box, ...], label: int, size: tuple[int, int]) -> np.ndarray:
    """label + 1 where a pixel's centre lies in a box: [height width]."""
    width, height = size
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    mask = np.zeros((height, width), dtype=np.int64)
    for x0, y0, x1, y1 in boxes:
        mask[np.ix_((y0 <= y) & (y < y1), (x0 <= x) & (x < x1))] = label + 1
    return mask
