"""Known concepts of images and patches. A concept is one value of a factor, either present or absent.

The embedded data gives the factors that each image was rendered from. Masks give what each patch shows, judged by its
centre pixel as in the pointing game. For photographs without masks only the class is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import data as datasets
from models.data import shapes
from probes.walk import Pass

MOST = 60  # of more classes than this, only the first ones become concepts
THIRDS = ("first third", "middle third", "last third")
OBJECTS = ("background", "target", "another object")


@dataclass(frozen=True)
class Factor:
    """A factor, and which of its values each image or patch has."""

    name: str
    values: tuple[str, ...]
    number: np.ndarray  # index of the value [image patch], -1 for none; one column if it belongs to the whole image
    is_place: bool = False  # a position of the patch, the same in all images

    def shuffled(self, seed: int) -> Factor:
        """The null: images are permuted, their patches stay in place; for a position, patches within each image."""
        rng = np.random.default_rng([seed, 1])
        if self.is_place:
            return replace(self, number=rng.permuted(self.number, axis=1))
        return replace(self, number=self.number[rng.permutation(len(self.number))])


@dataclass(frozen=True)
class Known:
    """The known factors of one kind of token."""

    factors: tuple[Factor, ...]

    @property
    def names(self) -> list[tuple[str, str]]:
        """Factor and value of every concept."""
        return [(factor.name, value) for factor in self.factors for value in factor.values]

    def present(self, images: Any) -> Tensor:
        """Whether each concept is present in the images at these positions: [image patch concept], 0 or 1."""
        by_factor = [
            torch.from_numpy(factor.number[images])[..., None] == torch.arange(len(factor.values))
            for factor in self.factors
        ]
        return torch.cat(by_factor, -1).float()

    def shuffled(self, seed: int) -> Known:
        """The null: concepts of other images. All factors of an image move to the same other image."""
        return Known(tuple(factor.shuffled(seed) for factor in self.factors))


def of_images(images: Pass, patch_size: int) -> dict[str, Known]:
    """The known concepts of CLS (those of the image) and of patches, by kind of token."""
    about, rendered = images.about, varied_factors(images)
    image_class = classes(about.classes, about.labels[:, None])
    scene = () if rendered is None else of_scene(rendered)
    side = about.image_size // patch_size
    local = of_masks(images, patch_size, rendered) if about.has_masks else (widened(image_class, side),)
    return {"cls": Known((image_class, *scene)), "patch": Known((*local, *positions(len(images), side)))}


def positions(n_images: int, side: int) -> tuple[Factor, Factor]:
    """The row and the column of each patch, in thirds of the image; the same for all images."""
    thirds = np.arange(side) * 3 // side
    row, column = np.meshgrid(thirds, thirds, indexing="ij")
    return tuple(
        Factor(name, THIRDS, np.tile(third.ravel(), (n_images, 1)).astype(np.int16), is_place=True)
        for name, third in (("row", row), ("column", column))
    )


def classes(names: Sequence[str], number: np.ndarray) -> Factor:
    """The class [image] as a factor of the first `MOST` classes; -1, no concept, for the others."""
    return Factor("class", tuple(map(str, names[:MOST])), np.where(number < MOST, number, -1).astype(np.int16))


def widened(factor: Factor, side: int) -> Factor:
    """A factor of the image, repeated for each of its patches."""
    return replace(factor, number=np.repeat(factor.number, side * side, 1))


def of_scene(rendered: dict[str, np.ndarray]) -> tuple[Factor, ...]:
    """The factors that embedded images were rendered from, without the class; continuous ones in bins of equal width.

    `rendered` holds the value of each image, by factor.
    """
    hues = tuple(f"{60 * i} to {60 * i + 60} degrees" for i in range(6))
    rotations = tuple(f"{45 * i} to {45 * i + 45} degrees" for i in range(4))
    binned = {  # names of the values, and each image's value, scaled so that its integer part is the value's index
        "shape": (shapes.SHAPES, rendered["shape"]),
        "fill": (shapes.FILLS, rendered["texture"]),
        "hue": (hues, rendered["hue"] * 6),
        "x": (THIRDS, 3 * rendered["x"].clip(0, 0.999)),
        "y": (THIRDS, 3 * rendered["y"].clip(0, 0.999)),
        "scale": (THIRDS, in_thirds(rendered["scale"])),
        "rotation": (rotations, rendered["rotation"] % np.pi / np.pi * 4),
    }
    if "occlusion" in rendered:
        binned |= {
            "occlusion": (("none", "bar"), rendered["occlusion"] > 0),
            "distractors": (tuple(map(str, range(shapes.MAX_DISTRACTORS + 1))), rendered["n_distractors"]),
        }
    return tuple(Factor(name, values, as_numbers(scaled)[:, None]) for name, (values, scaled) in binned.items())


def in_thirds(values: np.ndarray) -> np.ndarray:
    """Values rescaled from their range to [0, 3), so that the integer part is the third they lie in."""
    low, high = values.min(), values.max()
    return 2.999 * (values - low) / max(high - low, 1e-12)


def as_numbers(values: np.ndarray) -> np.ndarray:
    """The bin that each value lies in: int16."""
    return np.floor(values).astype(np.int16)


def of_masks(images: Pass, patch_size: int, rendered: dict[str, np.ndarray] | None) -> tuple[Factor, ...]:
    """The factors of what each patch shows, from one pass over the masks; ignored pixels have no value."""
    about = images.about

    def read(batch: Any) -> dict[str, Any]:
        patches = (
            batch.masks.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size).flatten(3).flatten(1, 2)
        )
        centre = batch.masks[:, patch_size // 2 :: patch_size, patch_size // 2 :: patch_size].flatten(1)
        return {
            "shown": (("image", "patch"), centre.to(torch.int16)),
            "edge": (("image", "patch"), (patches.amin(-1) != patches.amax(-1)).to(torch.int16)),
        }

    measured = images.over(read)
    position = measured["position"].values
    shown = np.full((len(images), measured.sizes["patch"]), -1, np.int16)
    shown[position] = measured["shown"].values
    edge = np.full_like(shown, -1)
    edge[position] = measured["edge"].values
    is_target = shown == about.labels[:, None] + 1
    patch_class = np.where(shown > 0, shown - 1, -1)
    object_number = np.where(is_target, OBJECTS.index("target"), shown)  # 0 background, -1 ignored
    object_number[~is_target & (shown > 0)] = OBJECTS.index("another object")
    factors = [
        Factor("object", OBJECTS, object_number.astype(np.int16)),
        Factor("edge", ("none", "edge"), edge),
        classes(about.classes, patch_class),
    ]
    if rendered is not None:
        for name, values, number in (
            ("shape", shapes.SHAPES, patch_class // len(shapes.FILLS)),
            ("fill", shapes.FILLS, patch_class % len(shapes.FILLS)),
        ):
            factors.append(Factor(name, values, np.where(patch_class >= 0, number, -1).astype(np.int16)))
        hue = next(factor for factor in of_scene(rendered) if factor.name == "hue")
        factors.append(replace(hue, number=np.where(is_target, hue.number, -1).astype(np.int16)))
    return tuple(factors)


def varied_factors(images: Pass) -> dict[str, np.ndarray] | None:
    """The factors that the images were rendered from, without those that never vary; None for any other data."""
    factors = images.factors()
    if factors is not None and datasets.unwrapped(images.data).difficulty.clutter == 0:
        del factors["occlusion"], factors["n_distractors"]
    return factors
