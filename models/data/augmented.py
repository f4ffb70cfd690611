"""The training images as a recipe augments them: each draw a function of (seed, epoch, index, repeat) alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models import recipe as recipes
from models.config import ViTConfig
from models.loop import hash_of, seed_all
from models.recipe import Recipe

Key = tuple[int, int, int]  # epoch, index, and which repeat of the image it is


class Augmented:
    """Items are (image float32 [3 h w], label), by `Key`: the same in any process and at any time."""

    def __init__(self, data: Any, recipe: Recipe, config: ViTConfig, seed: int):
        self.data, self.seed, self.transform = data, seed, recipes.augmentation(recipe, config)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        if self.transform is None:
            return self._flipped(self.data[key[1]], key)
        seed_all(self.seed, *key)
        return self.transform(self.data.pil(key[1])), int(self.data.labels[key[1]])

    def __getitems__(self, keys: list[Key]) -> list[tuple[Tensor, int]]:
        """A batch at once, which a data set that renders its images does faster."""
        if self.transform is None and hasattr(self.data, "__getitems__"):
            items = self.data.__getitems__([index for _, index, _ in keys])
            return [self._flipped(item, key) for item, key in zip(items, keys, strict=True)]
        return [self[key] for key in keys]

    def _flipped(self, item: tuple, key: Key) -> tuple[Tensor, int]:
        image, label = item[:2]
        return image.flip(-1) if hash_of(self.seed, *key) % 2 else image, label
