"""Photographs with one mask each: ImageNet-S folders and Pascal VOC folders.

The files' own encodings differ; `Images` serves them all as 0 = other, label + 1 = the class, -1 = ignored.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from models.config import ViTConfig
from models.data.folder import folders
from models.data.images import EXTENSIONS, Images, Item, check_ids, check_size, existing, pictures, raw_mask
from models.errors import InputError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
IMAGENET_S_FOLDERS = {
    "val": ("validation", "validation-segmentation"),
    "train": ("train-semi", "train-semi-segmentation"),
}
IMAGENET_S_IGNORE, VOC_IGNORE = 1000, 255

# ImageNet-S (Gao et al., 2022)


def open_imagenet_s(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """The official layout of the 50, 300 and 919 sets; split val is `validation`, train is `train-semi` (10 masks per
    class).

    A mask is RGB with id = R + 256 G: 0 other, 1000 ignore, k the k-th class of the split's list sorted by wnid. The
    folder is the label: 13 % of the images stand in another class folder than their ImageNet-1K label.
    """
    if split not in IMAGENET_S_FOLDERS:
        raise InputError(f"{spec} has no split {split!r}; it has val (validation) and train (train-semi)")
    images, masks = (existing(path, spec) / name for name in IMAGENET_S_FOLDERS[split])
    for folder in (images, masks):
        if not folder.is_dir():
            there = ", ".join(folders(path)[:8]) if path.is_dir() else ""
            raise InputError(
                f"{spec} has no split {split!r}: it lacks the folder {folder.name} and holds {there or 'no folders'}"
            )
    classes = imagenet_s_classes(spec, path, folders(images))
    items = [
        _imagenet_s_item(spec, file, images, masks, classes) for name in classes for file in pictures(images / name)
    ]
    return Images(spec, split, classes, items, like)


def imagenet_s_classes(spec: str, path: Path, present: list[str]) -> tuple[str, ...]:
    """wnids, sorted: from the shortest ``ImageNetS_categories_im*.txt`` with all class folders, else the folders
    themselves.
    """
    listings = [sorted(set(file.read_text().split())) for file in path.glob("ImageNetS_categories_im*.txt")]
    listings.sort(key=len)
    complete = [listing for listing in listings if set(present) <= set(listing)]
    if listings and not complete:
        unknown = sorted(set(present) - set(listings[-1]))
        raise InputError(
            f"{spec}: class folder {unknown[0]} is not in ImageNetS_categories_im*.txt ({len(listings[-1])} classes)"
        )
    return tuple(complete[0] if complete else present)


def _imagenet_s_item(spec: str, file: Path, images: Path, masks: Path, classes: tuple[str, ...]) -> Item:
    name = str(file.relative_to(images))
    mask = (masks / name).with_suffix(".png")
    if not mask.exists():
        raise InputError(
            f"{spec}: {name} has no mask {masks.name}/{Path(name).with_suffix('.png')}; restore it or remove the image"
        )
    read = partial(imagenet_s_mask, mask, name, len(classes))
    return Item(file, name, classes.index(Path(name).parts[0]), read, str(mask.stat().st_size))


def imagenet_s_mask(path: Path, name: str, n_classes: int, size: tuple[int, int]) -> np.ndarray:
    raw = raw_mask(path, name)
    ids = raw[..., 0] + 256 * raw[..., 1] if raw.ndim == 3 else raw
    return check_ids(check_size(ids, size, name), n_classes=n_classes, ignore=IMAGENET_S_IGNORE, name=name)


# Pascal VOC (Everingham et al., 2010)


def open_voc(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """One item per image and class that its mask shows (so every mask is read once: 3 ms each); classes of
    PATH/classes.txt, else VOC's.
    """
    listing = existing(path, spec) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.exists():
        there = ", ".join(sorted(file.stem for file in listing.parent.glob("*.txt"))) or "no lists"
        raise InputError(f"{spec} has no ImageSets/Segmentation/{split}.txt; that folder holds {there}")
    own = path / "classes.txt"
    classes = (
        tuple(line.strip() for line in own.read_text().splitlines() if line.strip()) if own.exists() else VOC_CLASSES
    )
    items = [item for name in listing.read_text().split() for item in _voc_items(spec, path, name, len(classes))]
    return Images(spec, split, classes, items, like)


def _voc_items(spec: str, path: Path, name: str, n_classes: int) -> list[Item]:
    image = next((file for ext in EXTENSIONS if (file := path / "JPEGImages" / f"{name}{ext}").exists()), None)
    mask = path / "SegmentationClass" / f"{name}.png"
    if image is None or not mask.exists():
        raise InputError(
            f"{spec}: {name} of the list lacks its "
            f"{'image in JPEGImages' if image is None else 'mask in SegmentationClass'}"
        )
    ids = voc_ids(mask, image.name, n_classes)
    read = partial(voc_mask, mask, image.name, n_classes)
    return [Item(image, image.name, int(k) - 1, read, str(mask.stat().st_size)) for k in np.unique(ids[ids > 0])]


def voc_mask(path: Path, name: str, n_classes: int, size: tuple[int, int]) -> np.ndarray:
    return check_size(voc_ids(path, name, n_classes), size, name)


def voc_ids(path: Path, name: str, n_classes: int) -> np.ndarray:
    raw = raw_mask(path, name)
    if raw.ndim != 2:
        raise InputError(
            f"{name}: a VOC mask has one channel, {path.name} has {raw.shape[-1]}; is this an ImageNet-S set?"
        )
    return check_ids(raw, n_classes=n_classes, ignore=VOC_IGNORE, name=name)
