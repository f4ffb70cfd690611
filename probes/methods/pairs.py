"""Pairs of images that differ in what decides the answer, and a third image that has to do with neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from models import data as datasets
from models.data import shapes, stream
from models.errors import InputError, require

FACTORS = (*shapes.FACTORS, "image")
GROUPS = {True: ("cls", "object", "background"), False: ("cls", "patches")}  # of tokens, with masks and without


class Pairs(Dataset):
    """Items are ``(images [clean corrupt unrelated] [3 channel h w], label, masks int64 [2 h w] or None)``.

    Clean and unrelated images are of `data`, the corrupt ones of `others`, by their positions there: each [pair].
    `answers` [pair 2] are the labels of the clean and of the corrupt image; everything else that is said of the pairs
    is said of their clean images.
    """

    def __init__(self, data: Any, others: Any, clean: np.ndarray, corrupt: np.ndarray, unrelated: np.ndarray):
        self.data, self.others, self.clean, self.corrupt, self.unrelated = data, others, clean, corrupt, unrelated
        vars(self).update(vars(datasets.describe(Subset(data, clean))))
        self.answers = np.stack([self.labels, datasets.describe(others).labels[corrupt]], 1)

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, torch.Tensor | None]:
        clean, corrupt = self.data[int(self.clean[index])], self.others[int(self.corrupt[index])]
        images = torch.stack([clean[0], corrupt[0], self.data[int(self.unrelated[index])][0]])
        masks = None if clean[2] is None else torch.stack([clean[2], corrupt[2]])
        return images, int(clean[1]), masks

    def only(self, kept: np.ndarray) -> Pairs:
        """Some of the pairs, by their places."""
        return Pairs(self.data, self.others, self.clean[kept], self.corrupt[kept], self.unrelated[kept])


def differing(data: Any, factor: str, n: int) -> Pairs:
    """Pairs whose clean images are `n` of the data, spread evenly.

    The corrupt image is the same with another ``shape`` or ``fill`` of its target (the embedded data renders it), or,
    for the factor ``image``, some photograph of another class. The unrelated one is of a third class. Both follow from
    an image's place in the data alone. Raises `InputError` for fewer than three classes, and for a factor that the data
    cannot render.
    """
    whole = datasets.describe(data)
    require(
        (factor in FACTORS, f"--factor is {factor!r}, not {', '.join(FACTORS[:-1])} or {FACTORS[-1]}"),
        (len(np.unique(whole.labels)) >= 3, f"{whole.spec}: pairs and images unrelated to them need three classes"),
    )
    others, clean = data, np.array(stream.evenly(len(data), n))
    if factor == "image":
        corrupt = np.array([elsewhere(whole, i, i, whole.labels[[i]]) for i in clean])
    else:
        others, corrupt = with_changed(data, factor), clean
    answers = np.stack([whole.labels[clean], datasets.describe(others).labels[corrupt]], 1)
    pairs = zip(corrupt, clean, answers, strict=True)
    unrelated = np.array([elsewhere(whole, start=i, clean=j, taken=labels) for i, j, labels in pairs])
    return Pairs(data, others, clean, corrupt, unrelated)


def elsewhere(whole: datasets.About, start: int, clean: int, taken: np.ndarray) -> int:
    """The first image, from half the data beyond `start` on, of another photograph than `clean` whose label is not
    taken.
    """
    order = (start + len(whole.labels) // 2 + np.arange(len(whole.labels))) % len(whole.labels)
    is_free = ~np.isin(whole.labels[order], taken) & (whole.photographs[order] != whole.photographs[clean])
    if not is_free.any():
        raise InputError(
            f"{whole.spec}: nothing is unrelated to image {whole.indices[clean]}; use data of more classes"
        )
    return int(order[np.argmax(is_free)])


def default_factors(data: Any) -> tuple[str, ...]:
    """The factors that the data can render, else other images."""
    return shapes.FACTORS if hasattr(datasets.unwrapped(data), "with_changed") else ("image",)


def with_changed(data: Any, factor: str) -> Any:
    """The same images with one factor changed; a Subset's too. Raises `InputError` for data that cannot render them."""
    if isinstance(data, Subset):
        return Subset(with_changed(data.dataset, factor), data.indices)
    if not hasattr(data, "with_changed"):
        raise InputError(
            f"--factor {factor} needs images that can be rendered anew, those of shapes and shapes-easy, not "
            f"{datasets.describe(data).spec}; use --factor image"
        )
    return data.with_changed(factor)


def groups(masks: torch.Tensor | None, answers: torch.Tensor, n_prefix: int, n_tokens: int, patch: int) -> torch.Tensor:
    """Tokens of every group of GROUPS: bool [pair group pos], from masks [pair 2 h w], labels `answers` [pair 2].

    A patch is the object's where a pixel of it is, in either image.
    """
    if masks is None:
        of_patches = torch.ones(len(answers), 1, n_tokens - n_prefix, dtype=torch.bool)
    else:
        shown = (masks == (answers + 1)[..., None, None]).any(1).float()
        inside = torch.nn.functional.max_pool2d(shown[:, None], patch).flatten(2) > 0
        of_patches = torch.cat([inside, ~inside], 1)
    tokens = torch.zeros(len(answers), 1 + of_patches.shape[1], n_tokens, dtype=torch.bool)
    tokens[:, 0, 0] = True
    tokens[:, 1:, n_prefix:] = of_patches
    return tokens
