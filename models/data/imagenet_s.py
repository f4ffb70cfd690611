"""``imagenet-s:PATH`` and ``imagenet-s:MASKS@IMAGES``: ImageNet-S (Gao et al., 2022), as released or in two trees.

A mask is RGB with id = R + 256 G: 0 other, 1000 ignore, k the k-th class of the set's list sorted by wnid. The folder
of the mask is the label: 13 % of the images stand in another class folder than their ImageNet-1K label.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from models.config import ViTConfig
from models.data.codings import N_SAMPLED, Coding, RawMask, raw_mask
from models.data.files import LeftOut, Walk, existing, folders, place, stem, text_of
from models.data.folder import all_pictures
from models.data.found import layout_hint
from models.data.images import Images
from models.data.items import Item
from models.data.stream import evenly
from models.errors import InputError

FOLDERS = {
    "val": ("validation", "validation-segmentation"),
    "train": ("train-semi", "train-semi-segmentation"),
}
LISTS = "ImageNetS_categories_im*.txt"
WITH_CLASS = re.compile(r"(ILSVRC2012_(?:val|test)_\d{8})_n\d{8}")  # as Kaggle users and Hugging Face name images
UNPAIRED = ("mask without an image", "masks without an image")

Pair = tuple[Path, str, Path]  # image, class/name, mask


def open_imagenet_s(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """Split val is `validation`, train is `train-semi` (10 masks per class) of the 50, 300 and 919 sets.

    With ``MASKS@IMAGES`` the images are found by the masks' file names, in anything that ``folder:`` reads.
    """
    if split not in FOLDERS:
        raise InputError(f"{spec} has no split {split!r}; it has val (validation) and train (train-semi)")
    apart, left_out = parted(spec, path), LeftOut()
    if apart is None:
        pairs, present, places = official(spec, existing(path, spec), split, left_out)
    else:
        pairs, present, places = joined(spec, *apart, split, left_out)
    classes = classes_of(spec, places, present)
    left_out.say(spec, split)
    label_of = {name: label for label, name in enumerate(classes)}
    labelled = [(image, name, mask, label_of[name.partition("/")[0]]) for image, name, mask in pairs]
    sampled = list(_readable([labelled[i][1:] for i in evenly(len(labelled), N_SAMPLED)]))
    coding = Coding.of(sampled, len(classes))
    coding.check_labels(_right(sampled, coding), spec)
    items = [
        Item(image, name, label, partial(coding.read, mask, name, label), str(mask.stat().st_size))
        for image, name, mask, label in labelled
    ]
    return Images(spec, split, classes, items, like)


def _readable(masks: Iterable[tuple[str, Path, int]]) -> Iterator[RawMask]:
    for name, mask, label in masks:
        try:
            yield name, label, raw_mask(mask, name)
        except InputError:
            continue  # a wrong mask is named when it is asked for


def _right(sampled: Iterable[RawMask], coding: Coding) -> Iterator[tuple[int, np.ndarray]]:
    for name, label, raw in sampled:
        try:
            yield label, coding.ids(raw, name, label)
        except InputError:
            continue


def official(spec: str, path: Path, split: str, left_out: LeftOut) -> tuple[list[Pair], list[str], list[Path]]:
    """Images with their masks, the class folders, and where the lists of classes lie."""
    images, masks = (path / name for name in FOLDERS[split])
    for folder in (images, masks):
        if not folder.is_dir():
            there = ", ".join(folders(path)[:8]) if path.is_dir() else ""
            raise InputError(
                f"{spec} has no split {split!r}: it lacks the folder {folder.name} and holds {there or 'no folders'}"
                f"{layout_hint(path, spec)}"
            )
    present, names = below(images, left_out, with_masks=False)
    pairs = [(images / name, name, (masks / name).with_suffix(".png")) for name in names]
    lost = [name for _, name, mask in pairs if not mask.exists()]
    if lost:
        mask = Path(masks.name, lost[0]).with_suffix(".png")
        raise InputError(f"{spec}: {lost[0]} has no mask {mask}; restore it or remove the image")
    known = {name.rpartition(".")[0] for name in names}
    for mask in below(masks, LeftOut(), with_masks=True)[1]:
        if mask.rpartition(".")[0] not in known:
            left_out.add(UNPAIRED, mask)
    return pairs, present, [path]


def below(root: Path, left_out: LeftOut, *, with_masks: bool) -> tuple[list[str], list[str]]:
    """The class folders, and class/name of the pictures in them, in order."""
    walk = Walk(str(root), left_out, with_masks)
    inside = walk.scan()[1]
    return sorted(inside), [
        f"{name}/{file}" for name in sorted(inside) for file in walk.below(f"{name}/", inside[name])
    ]


def parted(spec: str, path: Path) -> tuple[Path, Path] | None:
    """MASKS and IMAGES of ``MASKS@IMAGES``; None for one place."""
    whole = str(path)
    if "@" not in whole or os.path.exists(path):
        return None
    cuts = [(whole[:at], whole[at + 1 :]) for at, letter in enumerate(whole) if letter == "@"]
    masks, images = next((cut for cut in cuts if os.path.exists(place(cut[0]))), cuts[0])
    if not masks or not images:
        raise InputError(f"{spec} names one place only; write imagenet-s:MASKS@IMAGES")
    return existing(place(masks), spec), existing(place(images), spec)


def joined(
    spec: str, masks: Path, images: Path, split: str, left_out: LeftOut
) -> tuple[list[Pair], list[str], list[Path]]:
    """The masks of one tree with the images of another; every mask needs its image."""
    root = masks_folder(spec, masks, split)
    present, names = below(root, left_out, with_masks=True)
    if not names:
        raise InputError(f"{spec}: {root} holds no class folders with masks{layout_hint(root, spec)}")
    image_of = images_by_key(images, split, {key_of(name) for name in names})
    lost = [name for name in names if key_of(name) not in image_of]
    if lost:
        raise InputError(
            f"{spec}: {len(lost):,} of {len(names):,} masks have no image of their name below {images}, the first is "
            f"{lost[0]}; behind the @ stands where the images of split {split} are{layout_hint(images, spec)}"
        )
    pairs = []
    for name in names:
        image = own_image(spec, name, image_of[key_of(name)])
        pairs.append((image, f"{name.rpartition('/')[0]}/{image.name}", root / name))
    return pairs, present, [root, root.parent]


def masks_folder(spec: str, masks: Path, split: str) -> Path:
    """The masks of a split: below the root of an ImageNet-S, or the folder itself."""
    name = FOLDERS[split][1]
    if (masks / name).is_dir():
        return masks / name
    others = {folder for key, (_, folder) in FOLDERS.items() if key != split}
    elsewhere = masks.name in others or any((masks / other).is_dir() for other in others)
    if elsewhere or (split != "val" and masks.name != name):
        raise InputError(
            f"{spec} has no split {split!r}: there is no folder {name} in {masks}{layout_hint(masks, spec)}"
        )
    return masks


def key_of(name: str) -> str:
    """What mask and image share: the file name without ending, and without the class that some carry behind it."""
    match = WITH_CLASS.fullmatch(stem(name))
    return match[1] if match else stem(name)


def images_by_key(images: Path, split: str, wanted: set[str]) -> dict[str, list[Path]]:
    folder, names = all_pictures(images, split)
    found_there: dict[str, list[Path]] = defaultdict(list)
    for name in names:
        if key_of(name) in wanted:
            found_there[key_of(name)].append(folder / name)
    return found_there


def own_image(spec: str, name: str, images: Sequence[Path]) -> Path:
    """The image of a mask; of several with its name the one in a folder of the mask's class."""
    own = [image for image in images if image.parent.name == name.partition("/")[0]] if len(images) > 1 else images
    if len(own) != 1:
        raise InputError(
            f"{spec}: {len(images)} images bear the name of the mask {name}, such as {images[0]} and {images[1]}; "
            "leave one of them behind the @"
        )
    return own[0]


def classes_of(spec: str, places: Sequence[Path], present: list[str]) -> tuple[str, ...]:
    """wnids, sorted: from the shortest ``ImageNetS_categories_im*.txt`` with all class folders, else the folders
    themselves.
    """
    listings = [sorted(set(text_of(file, spec).split())) for place in places for file in place.glob(LISTS)]
    listings.sort(key=len)
    complete = [listing for listing in listings if set(present) <= set(listing)]
    if listings and not complete:
        unknown = sorted(set(present) - set(listings[-1]))
        raise InputError(f"{spec}: class folder {unknown[0]} is not in {LISTS} ({len(listings[-1])} classes)")
    return tuple(complete[0] if complete else present)
