"""Photographs from disk: decoded, cut by one geometric transform together with their masks, normalised.

Geometry, stated once: picture and mask are turned upright (EXIF), the shorter side is resized to image_size / 0.875
(ImageNet's crop of 87.5 %) from 160 px up and to image_size below, and the centre is cut out, all in one resampling:
bicubic and antialiased for pictures, nearest for masks.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig, is_text
from models.data import items as of_files
from models.data.items import Item
from models.data.stream import evenly
from models.errors import InputError, UnreadableImage, brief

SCALES = {"I": (255,), "F": (1, 255)}  # what white may be in 32 bits, beside the 65535 of 16
N_SAMPLED = 20_000  # photographs whose EXIF orientation is looked up when a set with masks is opened


class Images(Dataset):
    """Items are ``(image float32 [3 h w], label, mask int64 [h w] or None)``.

    Masks hold 0 for other, label + 1 for an object of that class, -1 for ignored pixels, whatever the file's encoding.
    A mask has the size of its picture as stored, and is turned with it where EXIF turns it; one that has the size of
    the upright picture alone is taken as upright.
    """

    def __init__(
        self, spec: str, split: str, classes: tuple[str, ...], items: Sequence[Item], like: ViTConfig | None = None
    ):
        if not len(items):
            raise InputError(f"{spec} holds no images for split {split!r}; add pictures to it, or name another --split")
        for name in classes:
            if not is_text(name):
                raise InputError(f"{spec}: the class name {name!r} is no text in UTF-8; rename it")
        self.spec, self.split, self.classes, self.items = spec, split, classes, items
        self.image_size = like.image_size if like else 224
        self.mean, self.std = (like.mean, like.std) if like else (IMAGENET_MEAN, IMAGENET_STD)
        lazy = isinstance(items, of_files.Lazy)
        self.has_masks = items.has_masks if lazy else items[0].mask is not None
        self.labels = items.labels if lazy else np.array([item.label for item in items], dtype=np.int64)
        self.fingerprint = self._fingerprint()
        if self.has_masks:
            self._say_what_is_turned()

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(
            "\n".join([self.spec.partition(":")[0], self.split, str(self.image_size), *self.classes]).encode()
        )
        for fact in of_files.facts(self.items):
            digest.update(b"\n")
            digest.update(fact.encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    @cached_property
    def photographs(self) -> np.ndarray:
        """Which photograph each item is from: [image] int64."""
        return of_files.photographs(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def pil(self, index: int) -> Image.Image:
        """The whole picture as RGB, before any geometry."""
        item = self.items[index]
        return decode(item.path, item.name)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor | None]:
        item = self.items[index]
        picture, size, orientation = read(item.path, item.name)
        image = normalised(picture, self.image_size, self.mean, self.std)
        if item.mask is None:
            return image, item.label, None
        mask, is_upright = fitting_mask(item, size, orientation)
        return image, item.label, torch.from_numpy(cut_mask(mask, self.image_size, 1 if is_upright else orientation))

    def _say_what_is_turned(self) -> None:
        """One line on standard error where EXIF turns pictures that have masks."""
        firsts = np.unique(self.photographs, return_index=True)[1]
        sampled, as_stored, upright = [int(firsts[i]) for i in evenly(len(firsts), N_SAMPLED)], [], []
        for index in sampled:
            try:
                item = self.items[index]
                size, orientation = header(item.path)
                is_upright = orientation >= 5 and fitting_mask(item, size, orientation)[1]
            except InputError:
                continue  # a wrong picture or mask is named when it is asked for
            if orientation != 1:
                (upright if is_upright else as_stored).append(item.name)
        if as_stored or upright:
            parts = [
                counted(as_stored, "mask is", "masks are", "taken as drawn on the stored pixels, and turned"),
                counted(upright, "mask has the upright size and is", "masks have the upright size and are", "taken so"),
            ]
            print(
                f"warning: {self.spec}, split {self.split}: EXIF turns {len(as_stored) + len(upright)} of "
                f"{len(sampled)} images: {'; '.join(filter(None, parts))}; where masks were drawn upright, store these "
                "images upright",
                file=sys.stderr,
            )


def counted(names: list[str], one: str, several: str, what: str) -> str:
    """How many files, in the singular or the plural, what about them, and the first of their names; "" for none."""
    shown = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    return f"{len(names)} {one if len(names) == 1 else several} {what} ({shown})" if names else ""


def fitting_mask(item: Item, size: tuple[int, int], orientation: int) -> tuple[np.ndarray, bool]:
    """The mask [h w] of a picture stored as `size` (width, height); and whether it fits only the upright picture."""
    on_its_side = orientation >= 5
    try:
        mask = item.mask(size)
    except InputError:
        if not on_its_side:
            raise
        mask = item.mask(size[::-1])
    if on_its_side and mask.shape != size[::-1] and mask.shape == size:
        return mask, True
    return check_size(mask, size, item.name), False


def header(file: Path | BinaryIO) -> tuple[tuple[int, int], int]:
    """Size (width, height) as stored and EXIF orientation, from a picture's header; 1 = upright, and what cannot be
    read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with opened(file) as content, Image.open(content) as picture:
                return _stored(picture)
    except Exception:  # a damaged file raises anything inside a decoder, and is named when it is asked for
        return (0, 0), 1


def opened(file: Path | BinaryIO) -> Any:
    """A file's content. Pillow is not given paths: by its path it maps a TIFF, and shears it where EXIF turns it."""
    return open(file, "rb") if isinstance(file, str | Path) else nullcontext(file)


def _stored(picture: Image.Image) -> tuple[tuple[int, int], int]:
    # the base class's getexif: a PNG's own would decode the pixels to look behind them
    orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    turned = picture.format == "TIFF" and orientation >= 5  # Pillow gives the upright size of a TIFF
    return (picture.size[::-1] if turned else picture.size), orientation


def read(path: Path | BinaryIO, name: str) -> tuple[Image.Image, tuple[int, int], int]:
    """A picture as 8-bit RGB, upright, first frame; its size (width, height) as stored; and its EXIF orientation (1 =
    upright).

    Raises `UnreadableImage`, also for a picture of more than ``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened(path) as file, Image.open(file) as picture:
                size, orientation = _stored(picture)
                picture.load()
                if orientation == 1:
                    size, orientation = _stored(picture)  # some formats keep it behind the pixels
                return to_rgb(ImageOps.exif_transpose(picture)), size, orientation
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(name, f"it has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:  # whose text names an absolute path or an address
        raise UnreadableImage(name, "it is of no known format") from None
    except Exception as error:  # a damaged file raises anything inside a decoder
        raise UnreadableImage(name, brief(error)) from None


def decode(path: Path | BinaryIO, name: str) -> Image.Image:
    """Any readable picture as 8-bit RGB, upright, first frame; raises `UnreadableImage`."""
    return read(path, name)[0]


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB; values of 16 bits, 32 bits and floats are scaled, transparent pixels are laid on white. Raises
    ValueError for pixels that are not finite.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("its pixels are not finite")
        scale = next((scale for scale in SCALES.get(picture.mode, ()) if values.max() <= scale), 65535)
        picture = Image.fromarray((np.clip(values / scale, 0, 1) * 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")


def shorter_side(image_size: int) -> int:
    """To what the shorter side is resized before the centre is cut out."""
    return round(image_size / 0.875) if image_size >= 160 else image_size


def cut(picture: Image.Image, image_size: int, resampling: Image.Resampling) -> Image.Image:
    """The one geometric transform: the centre square that fills image_size once the shorter side is `shorter_side`
    long.
    """
    side = min(picture.size) * image_size / shorter_side(image_size)
    left, top = ((length - side) / 2 for length in picture.size)
    return picture.resize((image_size, image_size), resampling, box=(left, top, left + side, top + side))


def cut_mask(mask: np.ndarray, image_size: int, orientation: int = 1) -> np.ndarray:
    """The same transform of a mask [height width] of the stored pixels, to its nearest pixels; int64 [h w]."""
    picture = Image.fromarray(mask.astype(np.int32))
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return np.array(cut(ImageOps.exif_transpose(picture), image_size, Image.Resampling.NEAREST), dtype=np.int64)


def normalised(picture: Image.Image, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A picture cut and normalised: float32 [3 h w]."""
    pixels = np.asarray(cut(picture, image_size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy(((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1).copy())


def check_size(mask: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """The mask, if it has the size (width, height) of its picture."""
    if mask.shape != size[::-1]:
        height, width = mask.shape
        raise InputError(
            f"{name}: the mask is {width} x {height} pixels, its image {size[0]} x {size[1]} (as stored); they must "
            "be equal"
        )
    return mask
