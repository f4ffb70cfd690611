"""Masks as files hold them, in the house's encoding: 0 other, label + 1 an object of that class, -1 ignored.

What is met: RGB with id = R + 256 G and 1000 = ignored (ImageNet-S); one channel of 8 bits with 255 = ignored (VOC),
also spread over three equal channels; 16 bits with 1000, 255 or 65535 = ignored; black and white, where white is the
object of the image's class. `Coding.of` looks at a sample of a set's masks and says which.
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
WIDE_IGNORE = (1000, 65535, 255)  # of one channel of 16 bits, the usual first
FEW, OWN = 8, 0.25  # masks, from which on a smaller share that show their image's class is refused
N_SAMPLED = 64  # masks of a set from which its coding is told
COLOURS = ("CMYK", "YCbCr", "LAB", "HSV")  # modes whose channels are no numbers

RawMask = tuple[str, int, np.ndarray]  # name, label, and the numbers as the file holds them


@dataclass(frozen=True)
class Coding:
    """How the masks of one set of `n_classes` hold ids. `equal`: three channels that say the same thrice.

    `white`: the value of the object in black and white masks, 0 where masks hold ids.
    """

    n_classes: int
    equal: bool = False
    wide_ignore: int = WIDE_IGNORE[0]
    white: int = 0

    @classmethod
    def of(cls, sampled: Iterable[RawMask], n_classes: int) -> Coding:
        """The coding that a sample of a set's masks has."""
        sampled = list(sampled)
        colour = [raw for *_, raw in sampled if raw.ndim == 3]
        equal = bool(colour) and any(raw[..., 2:3].any() for raw in colour) and all(map(_is_grey, colour))
        flat = [(label, raw[..., 0] if raw.ndim == 3 else raw) for _, label, raw in sampled if equal or raw.ndim == 2]
        values = {int(value) for _, raw in flat for value in np.unique(raw)}
        wide = next((value for value in WIDE_IGNORE if value > n_classes and value in values), WIDE_IGNORE[0])
        return cls(n_classes, equal, wide, _white(flat, values))

    def ids(self, raw: np.ndarray, name: str, label: int) -> np.ndarray:
        """Checked ids [h w] int64 from what a file holds."""
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
            return np.where(ids == self.white, label + 1, np.where(ids == ONE_BYTE_IGNORE, -1, 0)).astype(np.int64)
        return check_ids(ids, n_classes=self.n_classes, ignore=ignore, name=name)

    def read(self, file: Path | BinaryIO, name: str, label: int, size: tuple[int, int]) -> np.ndarray:
        """The mask of a file, at its own size."""
        return self.ids(raw_mask(file, name), name, label)

    @classmethod
    def checked(cls, sampled: Iterable[RawMask], n_classes: int, spec: str) -> Coding:
        """The coding of a sample of masks; `InputError` where one of them is wrong by it."""
        sampled = list(sampled)
        coding = cls.of(sampled, n_classes)
        coding.check_labels(((label, coding.ids(raw, name, label)) for name, label, raw in sampled), spec)
        return coding

    def check_labels(self, masks: Iterable[tuple[int, np.ndarray]], spec: str) -> None:
        """Raise `InputError` where masks show no object, or hardly ever the class of their image."""
        looked = [((ids > 0).any(), (ids == label + 1).any()) for label, ids in masks]
        shown = [shows_its_class for has_objects, shows_its_class in looked if has_objects]
        if len(looked) >= FEW and not shown:
            raise InputError(
                f"{spec}: none of {len(looked)} masks looked at shows an object; store class numbers in their first "
                "channel, not in transparency"
            )
        if len(shown) >= FEW and sum(shown) < OWN * len(shown):
            raise InputError(
                f"{spec}: only {sum(shown)} of {len(shown)} masks looked at show the class of their image (label + 1); "
                "labels and masks follow different class lists, give the list or the labels that the masks follow"
            )


def _is_grey(raw: np.ndarray) -> bool:
    return bool((raw[..., :1] == raw[..., 1:3]).all())


def _white(flat: list[tuple[int, np.ndarray]], values: set[int]) -> int:
    """255 or 1 where the masks can only be black and white: the object's class is the image's."""
    if values and values <= {0, 255} and 255 in values:
        return 255
    return int(values <= {0, 1, 255} and any(label > 0 and (raw == 1).any() for label, raw in flat))


def check_ids(ids: np.ndarray, *, n_classes: int, ignore: int, name: str) -> np.ndarray:
    """Mask ids (0 other, 1..N, `ignore`) in the house's encoding, int64."""
    ids = ids.astype(np.int64)
    wrong = ids[(ids < 0) | ((ids > n_classes) & (ids != ignore))]
    if wrong.size:
        raise InputError(
            f"{name}: the mask holds id {wrong[0]}, outside 0..{n_classes} and {ignore} (ignore); is it of another "
            "data set?"
        )
    return np.where(ids == ignore, -1, ids)


def raw_mask(file: Path | BinaryIO, name: str) -> np.ndarray:
    """A mask file's own numbers, in its own type: palette indices and single channels [h w], or RGB [h w 3]."""
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
        held = "fractions" if raw.dtype.kind == "f" else f"values of type {raw.dtype}"
        raise InputError(f"{name}: {what} holds {held}, not class numbers; store it as integers")
    if raw.ndim == 3 and raw.shape[-1] in (1, 2):  # grey, with transparency or without
        raw = raw[..., 0]
    if raw.ndim != 2 and not (raw.ndim == 3 and 3 <= raw.shape[-1] <= 4):
        raise InputError(f"{name}: {what} is of shape {raw.shape}; it has height and width, and one channel or three")
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
    """A mask has a bound of pixels as a picture has, looked at before any is read."""
    if math.prod(shape[:2]) > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _pixels(content: BinaryIO) -> tuple[str | None, np.ndarray]:
    content.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(content) as picture:
            return picture.mode if picture.mode in COLOURS else picture.format, np.asarray(picture)
