"""Photographs from disk: decoded, cut by one geometric transform together with their masks, normalised.

Geometry, stated once: picture and mask are turned upright (EXIF), the shorter side is resized to image_size / 0.875
(ImageNet's crop of 87.5 %) from 160 px up and to image_size below, and the centre is cut out, all in one resampling:
bicubic and antialiased for pictures, nearest for masks.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from models.errors import InputError, UnreadableImage, brief

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


@dataclass(frozen=True)
class Item:
    """One picture of a set: its file, its name in messages, its label, and how to read its mask, if it has one.

    ``mask(size)`` gives int64 [height width] for a picture stored as ``size`` = (width, height), in the house's
    encoding.
    """

    path: Path
    name: str
    label: int
    mask: Callable[[tuple[int, int]], np.ndarray] | None = None
    version: str = ""  # what else decides the item, for the fingerprint


class Images(Dataset):
    """Items are ``(image float32 [3 h w], label, mask int64 [h w] or None)``.

    Masks hold 0 for other, label + 1 for an object of that class, -1 for ignored pixels, whatever the file's encoding.
    """

    def __init__(
        self, spec: str, split: str, classes: tuple[str, ...], items: list[Item], like: ViTConfig | None = None
    ):
        if not items:
            raise InputError(f"{spec} holds no images for split {split!r}")
        self.spec, self.split, self.classes, self.items = spec, split, classes, items
        self.image_size = like.image_size if like else 224
        self.mean, self.std = (like.mean, like.std) if like else (IMAGENET_MEAN, IMAGENET_STD)
        self.has_masks = items[0].mask is not None
        self.labels = np.array([item.label for item in items], dtype=np.int64)
        facts = [f"{item.name} {item.path.stat().st_size} {item.label} {item.version}" for item in items]
        digest = hashlib.sha256(
            "\n".join([spec.partition(":")[0], split, str(self.image_size), *classes, *facts]).encode()
        )
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.items)

    def pil(self, index: int) -> Image.Image:
        """The whole picture as RGB, before any geometry."""
        return decode(self.items[index].path, self.items[index].name)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor | None]:
        item = self.items[index]
        picture, size, orientation = read(item.path, item.name)
        mask = None if item.mask is None else torch.from_numpy(cut_mask(item.mask(size), self.image_size, orientation))
        return normalised(picture, self.image_size, self.mean, self.std), item.label, mask


def read(path: Path | BinaryIO, name: str) -> tuple[Image.Image, tuple[int, int], int]:
    """A picture as 8-bit RGB, upright, first frame; its size (width, height) as stored; and its EXIF orientation (1 =
    upright).

    Raises `UnreadableImage`, also for a picture of more than ``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as stored:
                stored.load()
                return (
                    to_rgb(ImageOps.exif_transpose(stored)),
                    stored.size,
                    stored.getexif().get(ExifTags.Base.Orientation, 1),
                )
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(name, f"it has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except Exception as error:  # a damaged file raises anything inside a decoder
        raise UnreadableImage(name, brief(error)) from None


def decode(path: Path | BinaryIO, name: str) -> Image.Image:
    """Any readable picture as 8-bit RGB, upright, first frame; raises `UnreadableImage`."""
    return read(path, name)[0]


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB; 16-bit and float values are scaled, transparent pixels are laid on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        scales = (65535,) if picture.mode.startswith("I") else (1, 255, 65535)
        scale = next((scale for scale in scales if values.max() <= scale), 65535)
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


def check_ids(ids: np.ndarray, *, n_classes: int, ignore: int, name: str) -> np.ndarray:
    """Mask ids (0 other, 1..N, `ignore`) in the house's encoding, int64."""
    wrong = ids[(ids < 0) | ((ids > n_classes) & (ids != ignore))]
    if wrong.size:
        raise InputError(
            f"{name}: the mask holds id {wrong[0]}, outside 0..{n_classes} and {ignore} (ignore); is it of another "
            "data set?"
        )
    return np.where(ids == ignore, -1, ids.astype(np.int64))


def check_size(mask: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """The mask, if it has the size (width, height) of its picture."""
    if mask.shape != size[::-1]:
        height, width = mask.shape
        raise InputError(
            f"{name}: the mask is {width} x {height} pixels, its image {size[0]} x {size[1]} (as stored); they must "
            "be equal"
        )
    return mask


def raw_mask(path: Path, name: str) -> np.ndarray:
    """A mask file's own numbers, int64: palette indices and single channels [h w], or RGB [h w 3]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                return np.asarray(picture, dtype=np.int64)
    except Exception as error:  # a damaged file raises anything inside a decoder
        raise InputError(
            f"{name}: the mask {path.name} cannot be read ({brief(error)}); restore it from the data set"
        ) from None


def existing(path: Path, spec: str) -> Path:
    if not path.exists():
        raise InputError(f"{spec}: there is no file or folder {path}")
    return path


def pictures(folder: Path) -> list[Path]:
    """Image files below a folder, sorted; hidden ones are left out."""
    files = [
        os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if not name.startswith(".")
    ]
    return sorted(Path(file) for file in files if file.lower().endswith(EXTENSIONS) and os.path.isfile(file))
