"""Photographs from disk: decoded, cut by one geometric transform together with their masks, normalised.

Geometry, stated once: the shorter side is resized to image_size / 0.875 (ImageNet's crop of 87.5 %) from 160 px up and to
image_size below, then the centre is cut out; images bicubic and antialiased, masks to their nearest pixel.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from models.errors import InputError, UnreadableImage

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


@dataclass(frozen=True)
class Item:
    """One picture of a set: its file, its name in messages, its label, and how to read its mask, if it has one.

    ``mask(size)`` gives int64 [height width] for a picture of ``size`` = (width, height), in the house's encoding.
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

    def __init__(self, spec: str, split: str, classes: tuple[str, ...], items: list[Item], like: ViTConfig | None = None):
        if not items:
            raise InputError(f"{spec} holds no images for split {split!r}")
        self.spec, self.split, self.classes, self.items = spec, split, classes, items
        self.image_size = like.image_size if like else 224
        self.mean, self.std = (like.mean, like.std) if like else (IMAGENET_MEAN, IMAGENET_STD)
        self.has_masks = items[0].mask is not None
        self.labels = np.array([item.label for item in items], dtype=np.int64)
        facts = [f"{item.name} {item.path.stat().st_size} {item.label} {item.version}" for item in items]
        digest = hashlib.sha256("\n".join([spec.partition(":")[0], split, str(self.image_size), *classes, *facts]).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.items)

    def pil(self, index: int) -> Image.Image:
        """The whole picture as RGB, before any geometry."""
        return decode(self.items[index].path, self.items[index].name)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor | None]:
        item = self.items[index]
        picture = self.pil(index)
        image = torch.from_numpy(np.array(cut(picture, self.image_size, Image.Resampling.BICUBIC))).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        mask = None if item.mask is None else torch.from_numpy(cut_mask(item.mask(picture.size), self.image_size))
        return (image - mean) / std, item.label, mask


def decode(path: Path, name: str) -> Image.Image:
    """Any readable picture as 8-bit RGB, upright, first frame; raises `UnreadableImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return to_rgb(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(name, f"it has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnreadableImage(name, str(error).splitlines()[0][:80] if str(error) else type(error).__name__) from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB; 16-bit values are scaled, transparent pixels are laid on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        scale = 65535 if picture.mode.startswith("I") or values.max() > 255 else 255
        picture = Image.fromarray((np.clip(values / scale, 0, 1) * 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")


def shorter_side(image_size: int) -> int:
    """To what the shorter side is resized before the centre is cut out."""
    return round(image_size / 0.875) if image_size >= 160 else image_size


def cut(picture: Image.Image, image_size: int, resampling: Image.Resampling) -> Image.Image:
    """The one geometric transform: shorter side to `shorter_side`, then the centre square of `image_size`."""
    scale = shorter_side(image_size) / min(picture.size)
    width, height = (max(image_size, round(side * scale)) for side in picture.size)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return picture.resize((width, height), resampling).crop((left, top, left + image_size, top + image_size))


def cut_mask(mask: np.ndarray, image_size: int) -> np.ndarray:
    """The same transform of a mask [height width], to its nearest pixels; int64 [h w]."""
    return np.array(cut(Image.fromarray(mask.astype(np.int32)), image_size, Image.Resampling.NEAREST), dtype=np.int64)


def from_ids(ids: np.ndarray, *, n_classes: int, ignore: int, size: tuple[int, int], name: str) -> np.ndarray:
    """Mask ids (0 other, 1..N, `ignore`) in the house's encoding; checks the size against the picture's and the range."""
    if ids.shape != size[::-1]:
        raise InputError(f"{name}: the mask is {ids.shape[1]} x {ids.shape[0]} pixels, its image {size[0]} x {size[1]}; they must be equal")
    wrong = ids[(ids > n_classes) & (ids != ignore)]
    if wrong.size:
        raise InputError(f"{name}: the mask holds id {wrong[0]}, outside 0..{n_classes} and {ignore} (ignore); is it of another split?")
    return np.where(ids == ignore, -1, ids.astype(np.int64))


def raw_mask(path: Path, name: str) -> np.ndarray:
    """A mask file's own numbers: palette indices and single channels [h w], or RGB [h w 3]."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: the mask {path.name} cannot be read ({str(error)[:60]}); restore it from the data set") from None


def existing(path: Path, spec: str) -> Path:
    if not path.exists():
        raise InputError(f"{spec}: there is no file or folder {path}")
    return path


def pictures(folder: Path) -> list[Path]:
    """Image files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
