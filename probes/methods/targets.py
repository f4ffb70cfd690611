"""What is known of images, as targets of a linear probe: the embedded data says what it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress, pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.data import shapes
from probes.walk import Pass

# Orientations of what looks the same after so many parts of a turn: its name, of which shapes or fills, the symmetry
TURNS = (
    ("rotation of squares and crosses", "shape", ("square", "cross"), 4),
    ("rotation of triangles", "shape", ("triangle",), 3),
    ("direction of stripes", "texture", ("stripes",), 2),
)


@dataclass(frozen=True)
class Factor:
    """One thing that is known: the number of a class [image], or numbers [image column] where `n_classes` is 0."""

    name: str
    values: np.ndarray
    n_classes: int = 0

    @property
    def n_columns(self) -> int:
        return self.n_classes or self.values.shape[1]

    def varies(self, images: np.ndarray) -> bool:
        """Whether it is not the same in all of these images."""
        return len(np.unique(self.values[images], axis=0)) > 1

    def columns(self, images: np.ndarray) -> Tensor:
        """What a probe is fitted to: one-hot classes, or the numbers: [image column] float64."""
        values = torch.from_numpy(self.values[images])
        return one_hot(values, self.n_classes).double() if self.n_classes else values

    def error(self, read: Tensor, images: np.ndarray) -> Tensor:
        """How wrong the columns that were read [... image column] are: 1 for another class, the squared distance of
        numbers.
        """
        values = torch.from_numpy(self.values[images]).to(read.device)
        if self.n_classes:
            return (read.argmax(-1) != values).double()
        return (read - values).square().sum(-1)


@dataclass(frozen=True)
class Group:
    """Factors that the same images have: which these are [image], the factors, and the same with their values exchanged
    among those images.
    """

    has: np.ndarray
    factors: tuple[Factor, ...]
    shuffled: tuple[Factor, ...]

    @classmethod
    def of(cls, has: np.ndarray, factors: Iterable[Factor], seed: int) -> Group:
        order, mine = np.arange(len(has)), np.flatnonzero(has)
        order[mine] = np.random.default_rng(seed).permutation(mine)
        factors = tuple(factors)
        return cls(has, factors, tuple(replace(factor, values=factor.values[order]) for factor in factors))

    def only(self, kept: Sequence[bool]) -> Group:
        """Some of its factors."""
        return replace(self, factors=tuple(compress(self.factors, kept)), shuffled=tuple(compress(self.shuffled, kept)))

    @property
    def parts(self) -> list[slice]:
        """Which columns are whose: first all factors', then their shuffled ones'."""
        ends = np.cumsum([0, *(factor.n_columns for factor in (*self.factors, *self.shuffled))]).tolist()
        return [slice(first, last) for first, last in pairwise(ends)]

    def columns(self, images: np.ndarray) -> Tensor:
        """Of all factors, then of the shuffled ones: [image column] float64."""
        return torch.cat([factor.columns(images) for factor in (*self.factors, *self.shuffled)], 1)


def of_parts(*parts: Pass) -> list[tuple[Group, ...]]:
    """`of_data` of several passes over parts of one data set, without the factors that do not vary in all of them."""
    varying = []
    for groups in zip(*map(of_data, parts), strict=True):
        varies = [[factor.varies(group.has) for factor in group.factors] for group in groups]
        in_all = [all(of_factor) for of_factor in zip(*varies, strict=True)]
        if any(in_all):
            varying.append(tuple(group.only(in_all) for group in groups))
    return varying


def of_data(images: Pass) -> list[Group]:
    """All factors of all images of a pass: the class, and on the embedded data what its images were made from.

    Angles are given by their sine and cosine; the rotation of an outline or a texture that looks the same after 1/k of
    a turn by those of k times the angle, and only where there is one to see (a disc has none).
    """
    about = images.about
    everywhere = np.ones(len(images), dtype=bool)
    of_class = Factor("class", about.labels, len(about.classes))
    known = images.factors()
    if known is None:
        return [Group.of(everywhere, (of_class,), images.seed)]
    numbers = {
        "hue": circular(2 * np.pi * known["hue"]),
        "position": np.stack([known["x"], known["y"]], 1),
        **{name: known[name][:, None] for name in ("scale", "clutter", "occlusion")},
        "distractors": known["n_distractors"][:, None].astype(np.float64),
    }
    factors = (
        of_class,
        Factor("shape", known["shape"], len(shapes.SHAPES)),
        Factor("fill", known["texture"], len(shapes.FILLS)),
        *(Factor(name, values) for name, values in numbers.items()),
    )
    names = {"shape": shapes.SHAPES, "texture": shapes.FILLS}
    turns = [
        Group.of(
            np.isin(known[of], [names[of].index(kind) for kind in kinds]),
            (Factor(name, circular(symmetry * known["rotation"])),),
            images.seed,
        )
        for name, of, kinds, symmetry in TURNS
    ]
    return [Group.of(everywhere, factors, images.seed), *turns]


def circular(angle: np.ndarray) -> np.ndarray:
    """Angles in radians [image] as cosine and sine [image 2]."""
    return np.stack([np.cos(angle), np.sin(angle)], 1)
