"""Reads segmentation masks of several file encodings into one: 0 other, label + 1 an object of that class, -1 ignored.

Files may hold: RGB with id = R + 256 G and 1000 = ignored (ImageNet-S); one channel of 8 bits, or three equal ones,
with 255 = ignored (VOC); 16 bits with 1000, 255 or 65535 = ignored; black and white, where white is the object of the
image's class. `Coding.of` detects the encoding from a sample of a data set's masks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from models.errors import InputError, brief

TWO_BYTES_IGNORE, ONE_BYTE_IGNORE = 1000, 255
WIDE_IGNORE = (1000, 65535, 255)  # candidates for the ignored id of one channel of 16 bits, the most usual first
# Of at least FEW masks, at least the share OWN must show their image's class.
FEW, OWN = 8, 0.25
N_SAMPLED = 64  # masks of a data set from which its encoding is detected
COLOURS = ("CMYK", "YCbCr", "LAB", "HSV")  # modes whose channels cannot be class numbers

RawMask = tuple[str, int, np.ndarray]  # name, label, and the numbers stored in the file


@dataclass(frozen=True)
class Coding:
    """How the masks of one data set store class ids."""

    n_classes: int
    equal: bool = False  # three channels of equal content
    wide_ignore: int = WIDE_IGNORE[0]  # the ignored id in one channel of 16 bits
    white: int = 0  # the value of the object in black and white masks; 0 if masks store ids

    @classmethod
    def of(cls, sampled: Iterable[RawMask], n_classes: int) -> Coding:
        """The coding that a sample of a data set's masks has."""
        sampled = list(sampled)
        colour = [raw for *_, raw in sampled if raw.ndim == 3]
        uses_blue = any(raw[..., 2:3].any() for raw in colour)  # R + 256 G leaves B empty
        equal = uses_blue and all(map(_is_grey, colour))
        single = [(label, raw[..., 0] if raw.ndim == 3 else raw) for _, label, raw in sampled if equal or raw.ndim == 2]
        values = {int(value) for _, raw in single for value in np.unique(raw)}
        wide_ignore = next((value for value in WIDE_IGNORE if value > n_classes and value in values), WIDE_IGNORE[0])
        return cls(n_classes, equal, wide_ignore, _white(single, values))

    def ids(self, raw: np.ndarray, name: str, label: int) -> np.ndarray:
        """Ids [h w] int64 from the numbers stored in a file; raises `InputError` for numbers that are no ids."""
        if raw.ndim == 3 and not self.equal:
            if raw[..., 2].any():
                raise InputError(
                    f"{name}: the mask is coloured, but ids are R + 256 G with B = 0; store class numbers, not colours"
                )
            ids, ignore = raw[..., 0] + 256 * raw[..., 1].astype(np.int64), TWO_BYTES_IGNORE
        else:
            ids = raw[..., 0] if raw.ndim == 3 else raw
            ignore = ONE_BYTE_IGNORE if ids.dtype.itemsize == 1 else self.wide_ignore
        if self.white and set(np.unique(ids)) <= {0, self.white, ONE_BYTE_IGNORE}:
            encoded = np.zeros(ids.shape, dtype=np.int64)
            encoded[ids == ONE_BYTE_IGNORE] = -1
            encoded[ids == self.white] = label + 1  # last, because white may be 255
            return encoded
        return check_ids(ids, n_classes=self.n_classes, ignore=ignore, name=name)

    def read(self, file: Path | BinaryIO, name: str, label: int, size: tuple[int, int]) -> np.ndarray:
        """The mask of a file, at its stored size; `size` is the image's and is not used."""
        return self.ids(raw_mask(file, name), name, label)

    @classmethod
    def checked(cls, sampled: Iterable[RawMask], n_classes: int, spec: str) -> Coding:
        """The coding of a sample of masks; raises `InputError` if one of them contradicts it."""
        sampled = list(sampled)
        coding = cls.of(sampled, n_classes)
        coding.check_labels(((label, coding.ids(raw, name, label)) for name, label, raw in sampled), spec)
        return coding

    def check_labels(self, masks: Iterable[tuple[int, np.ndarray]], spec: str) -> None:
        """Raise `InputError` if no mask shows an object, or too few show the class of their image."""
        n_masks, shows_own_class = 0, []  # the latter of masks with an object
        for label, ids in masks:
            n_masks += 1
            if (ids > 0).any():
                shows_own_class.append(bool((ids == label + 1).any()))
        n_own, n_objects = sum(shows_own_class), len(shows_own_class)
        if n_masks >= FEW and not n_objects:
            raise InputError(
                f"{spec}: none of {n_masks} sampled masks shows an object; store class numbers in their first "
                "channel, not in transparency"
            )
        if n_objects >= FEW and n_own < OWN * n_objects:
            raise InputError(
                f"{spec}: only {n_own} of {n_objects} sampled masks show the class of their image (label + 1); "
                "labels and masks follow different class lists, give the list or the labels that the masks follow"
            )


def _is_grey(raw: np.ndarray) -> bool:
    return bool((raw[..., :1] == raw[..., 1:3]).all())


def _white(single: list[tuple[int, np.ndarray]], values: set[int]) -> int:
    """The value of white (255 or 1) if the masks can only be black and white; else 0.

    1 counts as white if it appears in the mask of an image whose own id, label + 1, is another number.
    """
    if 255 in values and values <= {0, 255}:
        return 255
    return int(values <= {0, 1, 255} and any(label > 0 and (raw == 1).any() for label, raw in single))


def check_ids(ids: np.ndarray, *, n_classes: int, ignore: int, name: str) -> np.ndarray:
    """Mask ids (0 other, 1..N, `ignore`) in this module's encoding, int64; raises `InputError` for other ids."""
    ids = ids.astype(np.int64)
    wrong = ids[(ids < 0) | ((ids > n_classes) & (ids != ignore))]
    if wrong.size:
        raise InputError(
            f"{name}: the mask holds id {wrong[0]}, outside 0..{n_classes} and {ignore} (ignored); check that it "
            "belongs to this data set"
        )
    return np.where(ids == ignore, -1, ids)


def raw_mask(file: Path | BinaryIO, name: str) -> np.ndarray:
    """The numbers stored in a mask file, in their own type: palette indices or one channel [h w], or RGB [h w 3]."""
    what = f"the mask {file.name}" if isinstance(file, Path) else "its mask"
    try:
        content = BytesIO(file.read_bytes()) if isinstance(file, Path) else file
        content.seek(0)
        kind, raw = _array(content) if content.read(6) == b"\x93NUMPY" else _pixels(content)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{name}: {what} has more than {Image.MAX_IMAGE_PIXELS} pixels; restore it") from None
    except Exception as error:  # a damaged file raises anything inside a decoder
        raise InputError(f"{name}: {what} cannot be read ({brief(error)}); restore it from the data set") from None
    if kind in ("JPEG", "MPO"):
        raise InputError(f"{name}: {what} is a JPEG, which does not keep class numbers; store it as PNG")
    if kind in COLOURS:
        raise InputError(f"{name}: {what} holds colours ({kind}), not class numbers; store them in one channel")
    if raw.dtype.kind not in "bui":
        content_kind = "fractions" if raw.dtype.kind == "f" else f"values of type {raw.dtype}"
        raise InputError(f"{name}: {what} holds {content_kind}, not class numbers; store it as integers")
    if raw.ndim == 3 and raw.shape[-1] in (1, 2):  # grey, with transparency or without
        raw = raw[..., 0]
    if raw.ndim != 2 and not (raw.ndim == 3 and 3 <= raw.shape[-1] <= 4):
        raise InputError(f"{name}: {what} has shape {raw.shape}; store it as height x width, with one channel or three")
    return raw.astype(np.uint8) if raw.dtype == bool else raw


def _array(content: BinaryIO) -> tuple[str, np.ndarray]:
    content.seek(0)
    version = np.lib.format.read_magic(content)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, *_ = read_header(content)
    refuse_too_many(shape)
    content.seek(0)
    return "NPY", np.load(content, allow_pickle=False)


def refuse_too_many(shape: tuple[int, ...]) -> None:
    """Raises Pillow's error for a mask with more pixels than Pillow allows, before its pixels are read."""
    if math.prod(shape[:2]) > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _pixels(content: BinaryIO) -> tuple[str | None, np.ndarray]:
    content.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(content) as picture:
            return picture.mode if picture.mode in COLOURS else picture.format, np.asarray(picture)
