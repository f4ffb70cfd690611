"""What is known of every image and patch, as concepts: a factor and one of its values, which holds or does not.

The embedded data says what an image was made from; masks say what a patch shows (its centre pixel, as in the pointing
game); of photographs without them the class alone is known.
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

MOST = 60  # classes that are held against features: the first ones, where there are more
THIRDS = ("first third", "middle third", "last third")
OBJECTS = ("background", "target", "another object")


@dataclass(frozen=True)
class Factor:
    """Which of its values holds, -1 for none: number [image patch], with one column where it is of the image. A place
    is the same in all images.
    """

    name: str
    values: tuple[str, ...]
    number: np.ndarray
    is_place: bool = False

    def shuffled(self, seed: int) -> Factor:
        """The values of other images, every patch in its place; places are exchanged within each image."""
        draw = np.random.default_rng([seed, 1])
        if self.is_place:
            return replace(self, number=draw.permuted(self.number, axis=1))
        return replace(self, number=self.number[draw.permutation(len(self.number))])


@dataclass(frozen=True)
class Known:
    """The factors that one kind of tokens has."""

    factors: tuple[Factor, ...]

    @property
    def names(self) -> list[tuple[str, str]]:
        """Factor and value of every concept."""
        return [(factor.name, value) for factor in self.factors for value in factor.values]

    def held(self, images: Any) -> Tensor:
        """Whether each concept holds, for images by position: [image patch concept], 0 or 1."""
        each = [
            torch.from_numpy(factor.number[images])[..., None] == torch.arange(len(factor.values))
            for factor in self.factors
        ]
        return torch.cat(each, -1).float()

    def shuffled(self, seed: int) -> Known:
        """The null: what holds elsewhere. All factors of an image go to the same other one."""
        return Known(tuple(factor.shuffled(seed) for factor in self.factors))


def of_images(images: Pass, patch_size: int) -> dict[str, Known]:
    """What CLS and what patches could know, by kind of token."""
    about, made = images.about, varied_factors(images)
    of_class = classes(about.classes, about.labels[:, None])
    whole = (of_class, *(() if made is None else of_scene(made)))
    side = about.image_size // patch_size
    thirds = np.arange(side) * 3 // side
    everywhere = np.zeros((len(images), 1), dtype=np.int64)
    places = tuple(
        Factor(name, THIRDS, (np.ravel(of) + everywhere).astype(np.int16), is_place=True)
        for name, of in zip(("row", "column"), np.meshgrid(thirds, thirds, indexing="ij"), strict=True)
    )
    local = of_masks(images, patch_size, made) if about.has_masks else (widened(of_class, side),)
    return {"cls": Known(whole), "patch": Known((*local, *places))}


def classes(names: Sequence[str], number: np.ndarray) -> Factor:
    return Factor("class", tuple(map(str, names[:MOST])), np.where(number < MOST, number, -1).astype(np.int16))


def widened(factor: Factor, side: int) -> Factor:
    """A factor of the image, as one of each of its patches."""
    return replace(factor, number=np.repeat(factor.number, side * side, 1))


def of_scene(made: dict[str, np.ndarray]) -> tuple[Factor, ...]:
    """What an embedded image was made from, beside its class; continuous values in equal parts of their range."""
    numbers = {
        "shape": (shapes.SHAPES, made["shape"]),
        "fill": (shapes.FILLS, made["texture"]),
        "hue": (tuple(f"{60 * i} to {60 * i + 60} degrees" for i in range(6)), made["hue"] * 6),
        "x": (THIRDS, 3 * made["x"].clip(0, 0.999)),
        "y": (THIRDS, 3 * made["y"].clip(0, 0.999)),
        "scale": (THIRDS, parts(made["scale"])),
        "rotation": (
            tuple(f"{45 * i} to {45 * i + 45} degrees" for i in range(4)),
            made["rotation"] % np.pi / np.pi * 4,
        ),
    }
    if "occlusion" in made:
        numbers |= {
            "occlusion": (("none", "bar"), made["occlusion"] > 0),
            "distractors": (tuple(map(str, range(shapes.MAX_DISTRACTORS + 1))), made["n_distractors"]),
        }
    return tuple(Factor(name, values, as_numbers(of)[:, None]) for name, (values, of) in numbers.items())


def parts(values: np.ndarray) -> np.ndarray:
    """Which third of their range values lie in, as a number below 3."""
    low, high = values.min(), values.max()
    return 2.999 * (values - low) / max(high - low, 1e-12)


def as_numbers(values: np.ndarray) -> np.ndarray:
    return np.floor(values).astype(np.int16)


def of_masks(images: Pass, patch_size: int, made: dict[str, np.ndarray] | None) -> tuple[Factor, ...]:
    """What each patch shows; one pass over the masks, a number per patch is kept. Ignored pixels are nothing."""
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
    shown, edge = (np.full((len(images), measured.sizes["patch"]), -1, np.int16) for _ in range(2))
    position = measured["position"].values
    shown[position], edge[position] = measured["shown"].values, measured["edge"].values
    is_target = shown == about.labels[:, None] + 1
    of_class = np.where(shown > 0, shown - 1, -1)
    factors = [
        Factor("object", OBJECTS, np.where(is_target, 1, np.where(shown > 0, 2, shown)).astype(np.int16)),
        Factor("edge", ("none", "edge"), edge),
        classes(about.classes, of_class),
    ]
    if made is not None:
        for name, values, number in (
            ("shape", shapes.SHAPES, of_class // len(shapes.FILLS)),
            ("fill", shapes.FILLS, of_class % len(shapes.FILLS)),
        ):
            factors.append(Factor(name, values, np.where(of_class >= 0, number, -1).astype(np.int16)))
        hue = next(factor for factor in of_scene(made) if factor.name == "hue")
        factors.append(replace(hue, number=np.where(is_target, hue.number, -1).astype(np.int16)))
    return tuple(factors)


def varied_factors(images: Pass) -> dict[str, np.ndarray] | None:
    """What the images were rendered from, without what no image of the data has; None for any other data."""
    factors = images.factors()
    if factors is not None and datasets.unwrapped(images.data).difficulty.clutter == 0:
        del factors["occlusion"], factors["n_distractors"]
    return factors
