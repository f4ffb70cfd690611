"""``voc:PATH``: Pascal VOC (Everingham et al., 2010) and what is laid out like it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from models.config import ViTConfig
from models.data.codings import check_ids, raw_mask
from models.data.files import LeftOut, Walk, existing, stem, text_of
from models.data.found import layout_hint
from models.data.images import Images
from models.data.items import Item
from models.errors import InputError

VOC_IGNORE = 255
NO_CLASSES = ("background", "bg", "ignore", "void")  # what lists of classes begin with, for the mask's 0 and -1
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


def open_voc(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """One item per image and class that its mask shows (so every mask is read once: 3 ms each); classes of
    PATH/classes.txt, else VOC's. Masks hold ids, or the colours that VOC gives them.
    """
    listing = existing(path, spec) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.exists():
        there = ", ".join(sorted(file.stem for file in listing.parent.glob("*.txt"))) or "no lists"
        raise InputError(
            f"{spec} has no ImageSets/Segmentation/{split}.txt; that folder holds {there}{layout_hint(path, spec)}"
        )
    own = path / "classes.txt"
    classes = VOC_CLASSES
    if own.exists():
        classes = tuple(line.strip() for line in text_of(own, spec).splitlines() if line.strip())
        while classes and classes[0].strip("_").casefold() in NO_CLASSES:
            classes = classes[1:]
    image_of, left_out = images_of(path), LeftOut()
    lines = [line.strip() for line in text_of(listing, spec).splitlines() if line.strip()]
    names = [line if line in image_of else line.split()[0] for line in lines]
    items = [item for name in names for item in _items(spec, path, name, image_of.get(name), len(classes))]
    for name in set(names) - {stem(item.name) for item in items}:
        left_out.add(("image whose mask shows no class", "images whose masks show no class"), name)
    left_out.say(spec, split)
    return Images(spec, split, classes, items, like)


def images_of(path: Path) -> dict[str, Path]:
    """The images by their names without endings."""
    folder = path / "JPEGImages"
    names = Walk(str(folder), with_masks=True).scan()[0] if folder.is_dir() else []
    return {stem(name): folder / name for name in reversed(names)}


def _items(spec: str, path: Path, name: str, image: Path | None, n_classes: int) -> list[Item]:
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
    return voc_ids(path, name, n_classes)


def voc_ids(path: Path, name: str, n_classes: int) -> np.ndarray:
    """The ids of a mask at its own size: [height width]."""
    raw = raw_mask(path, name)
    if raw.ndim == 3:
        colours, raw = raw[..., :3], ids_of(raw[..., :3])
        if raw is None:
            raise InputError(
                f"{name}: the mask {path.name} has the colour {foreign_colour(colours)}, which VOC gives no class; is "
                "this an ImageNet-S set?"
            )
    elif n_classes == len(VOC_CLASSES):
        raw = as_coloured(path, raw)
    return check_ids(raw, n_classes=n_classes, ignore=VOC_IGNORE, name=name)


def as_coloured(path: Path, raw: np.ndarray) -> np.ndarray:
    """The ids of a palette's indices: tools that pack palettes anew keep VOC's colours and change the indices."""
    with Image.open(path) as picture:
        palette = np.array(picture.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    used = np.unique(raw)
    if not len(palette) > used.max(initial=0):
        return raw
    ids = ids_of(palette[used][None])
    return raw if ids is None else ids[0][np.searchsorted(used, raw)]


def ids_of(colours: np.ndarray) -> np.ndarray | None:
    """The ids that VOC paints so: [height width] from [height width 3]; None where one is none of its colours."""
    codes = packed(COLOURS)
    order, wanted = np.argsort(codes), packed(colours)
    places = order[np.searchsorted(codes[order], wanted).clip(max=255)]
    return places.astype(np.uint8) if (codes[places] == wanted).all() else None


def foreign_colour(colours: np.ndarray) -> tuple[int, ...]:
    return next(tuple(map(int, c)) for c in np.unique(colours.reshape(-1, 3), axis=0) if ids_of(c[None, None]) is None)


def packed(colours: np.ndarray) -> np.ndarray:
    return colours.astype(np.int64) @ [65536, 256, 1]


def colour_map() -> np.ndarray:
    """VOC's colours of the ids 0 to 255, whose bits are dealt out to red, green and blue: [id 3]."""
    ids = np.arange(256)
    return np.stack(
        [sum(((ids >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)], -1
    ).astype(np.uint8)


COLOURS = colour_map()
