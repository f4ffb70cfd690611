"""What ``timm.data`` reads: ``hfds/NAME`` and ``torch/NAME:FOLDER``, with timm's names; no masks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import Dataset

from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from models.data.images import decode, normalised, to_rgb
from models.data.splits import names_of
from models.errors import InputError, UnreadableImage, brief


class TimmImages(Dataset):
    """A timm data set under the house's contract. `spec` is timm's name of it, with ``:FOLDER`` for its root."""

    has_masks = False

    def __init__(self, spec: str, split: str, like: ViTConfig | None):
        self.spec, self.split = spec, split
        self.source = first_that_opens(spec, split)
        self.image_size = like.image_size if like else 224
        self.mean, self.std = (like.mean, like.std) if like else (IMAGENET_MEAN, IMAGENET_STD)
        self.labels = labels_of(self.source)
        if not len(self.labels):
            raise InputError(f"{spec} holds no images for split {split!r}")
        self.classes = classes_of(self.source, int(self.labels.max()) + 1)
        facts = [spec.partition(":")[0], split, str(self.image_size), *self.classes]
        self.fingerprint = hashlib.sha256("\n".join(facts).encode() + self.labels.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def pil(self, index: int) -> Image.Image:
        """The whole picture as RGB, before any geometry."""
        name = f"{self.spec}, image {index}"
        if hasattr(self.source, "samples"):  # torchvision's folders: (path, label)
            return decode(self.source.samples[index][0], name)
        try:
            picture = getattr(self.source, "reader", self.source)[index][0]
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(name, brief(error)) from None
        if isinstance(picture, Image.Image):
            return to_rgb(picture)
        with picture:
            return decode(picture, name)

    def __getitem__(self, index: int) -> tuple[Tensor, int, None]:
        return normalised(self.pil(index), self.image_size, self.mean, self.std), int(self.labels[index]), None


def first_that_opens(spec: str, split: str) -> Any:
    """The timm data set under the first of the split's usual names that it has."""
    name, _, root = spec.partition(":")
    names, errors = names_of(split), []
    if name.startswith("torch/"):
        names = ("validation" if split == "val" else split,)
    if name.startswith("torch/") and not (root and Path(root).exists()):
        raise InputError(f"{spec}: there is no folder {root or '(none given)'}; write {name}:FOLDER")
    for split_name in names:
        try:
            return create_dataset(name, root=root or None, split=split_name, download=False)
        except (RuntimeError, ValueError, OSError, AssertionError, ImportError, KeyError) as error:
            errors.append(brief(error))
    raise InputError(f"{spec}: timm cannot open its split {split!r} ({errors[0]})") from None


def labels_of(source: Any) -> np.ndarray:
    """Labels [image] int64, without decoding a picture where the data set can tell them."""
    reader = getattr(source, "reader", source)
    if hasattr(reader, "iter_targets"):
        return np.fromiter(reader.iter_targets(), dtype=np.int64)
    labels = next((getattr(source, name) for name in ("targets", "_labels", "labels") if hasattr(source, name)), None)
    if labels is None:
        labels = (source[i][1] for i in range(len(source)))  # decodes every picture
    return np.array([int(label) for label in labels], dtype=np.int64)


def classes_of(source: Any, at_least: int) -> tuple[str, ...]:
    """Class names in the order of their labels; numbers where the data set has none."""
    reader = getattr(source, "reader", source)
    names, places = getattr(source, "classes", None), getattr(reader, "class_to_idx", None)
    if names:
        return tuple(map(str, names))
    return tuple(sorted(places, key=places.get)) if places else tuple(map(str, range(at_least)))
