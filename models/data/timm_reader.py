"""What ``timm.data`` reads: ``wds/``, ``hfds/``, ``torch/`` and its other kinds, through timm's own data sets."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from models.data.images import cut, to_rgb
from models.errors import InputError, brief

KINDS = ("wds/", "hfds/", "torch/", "tfds/", "hfids/")


class TimmImages(Dataset):
    """A map-style timm data set under the house's contract, without masks. `spec` is timm's own name, with :PATH for the root."""

    has_masks = False

    def __init__(self, spec: str, split: str, like: ViTConfig | None):
        from timm.data import create_dataset

        name, _, root = spec.partition(":")
        try:
            self.data = create_dataset(name, root=root or None, split="validation" if split == "val" else split, download=False)
        except (RuntimeError, ValueError, OSError, AssertionError, ImportError) as error:
            raise InputError(f"{spec}: timm cannot open it ({brief(error)})") from None
        if not hasattr(self.data, "__getitem__") or isinstance(self.data, torch.utils.data.IterableDataset):
            raise InputError(f"{spec} is a stream without random access, which probes need; unpack it into class folders and use folder:PATH")
        self.spec, self.split = spec, split
        self.image_size = like.image_size if like else 224
        self.mean, self.std = (like.mean, like.std) if like else (IMAGENET_MEAN, IMAGENET_STD)
        self.labels = np.array([label for _, label in self._samples()], dtype=np.int64)
        self.classes = self._classes()
        facts = [spec.partition(":")[0], split, str(self.image_size), str(len(self.data)), *self.classes]
        self.fingerprint = hashlib.sha256("\n".join(facts).encode() + self.labels.tobytes()).hexdigest()[:16]

    def _samples(self) -> list:
        """(anything, label) of every item, without decoding where the data set can tell."""
        for source in (self.data, getattr(self.data, "reader", None)):
            for name in ("samples", "targets"):
                found = getattr(source, name, None)
                if found is not None:
                    return list(found) if name == "samples" else [(None, label) for label in found]
        return [(None, self.data[i][1]) for i in range(len(self.data))]

    def _classes(self) -> tuple[str, ...]:
        for source in (self.data, getattr(self.data, "reader", None)):
            names = getattr(source, "classes", None)
            if names:
                return tuple(map(str, names))
            places = getattr(source, "class_to_idx", None)
            if places:
                return tuple(sorted(places, key=places.get))
        return tuple(str(k) for k in range(int(self.labels.max()) + 1))

    def __len__(self) -> int:
        return len(self.data)

    def pil(self, index: int) -> Image.Image:
        return to_rgb(self.data[index][0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, None]:
        pixels = np.array(cut(self.pil(index), self.image_size, Image.Resampling.BICUBIC))
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return (image - mean) / std, int(self.labels[index]), None
