"""A small data set that is loaded onto the device as a whole, for training loops with many epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from models.data.about import describe
from models.data.stream import Stream, evenly
from models.errors import InputError
from models.loop import generator

LARGEST = 16 * 2**30  # bytes


@dataclass(frozen=True)
class InMemory:
    """Every image and label of a data set: images [image 3 height width], labels [image]."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, data: Any, device: torch.device, limit: int | None = None) -> InMemory:
        """Loads a data set, or `limit` evenly spaced images of it. Raises `InputError` if it would exceed `LARGEST`."""
        n = len(data) if limit is None else min(limit, len(data))
        n_bytes = n * data[0][0].numel() * 4
        if n_bytes > LARGEST:
            raise InputError(
                f"{describe(data).spec} would take {n_bytes / 2**30:.0f} GiB of memory; this loop is for small data, "
                "choose fewer or smaller images"
            )
        subset = data if n == len(data) else Subset(data, evenly(len(data), n))
        images, labels = zip(*((batch.images, batch.labels) for batch in Stream(subset, 500)), strict=True)
        return cls(torch.cat(images).to(device), torch.cat(labels).to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def flipped(self, places: Tensor, *keys: int) -> tuple[Tensor, Tensor]:
        """Images and labels at these positions; each image is mirrored with probability 1/2, seeded by `keys`."""
        flips = (torch.rand(len(self), generator=generator(*keys)) < 0.5)[places].to(self.images.device)
        images = self.images[places]
        return torch.where(flips[:, None, None, None], images.flip(-1), images), self.labels[places]
