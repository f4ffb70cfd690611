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
GROUPS = ("cls", "object", "background", "patches")  # of tokens, patched together


class Pairs(Dataset):
    """Items are ``(images [clean corrupt unrelated] [3 channel h w], label, masks int64 [2 h w] or None)``.

    `n` images, spread evenly over the data, are the clean ones. The corrupt one is the same with another ``shape`` or
    ``fill`` of its target (the embedded data renders it), or, for the factor ``image``, some photograph of another
    class. The unrelated one is of a third class. All are chosen by an image's place in the data alone. Raises
    `InputError` for fewer than three classes, and for a factor that the data cannot render.
    """

    def __init__(self, data: Any, factor: str, n: int):
        whole = datasets.describe(data)
        require(
            (factor in FACTORS, f"--factor is {factor!r}, not {', '.join(FACTORS[:-1])} or {FACTORS[-1]}"),
            (len(np.unique(whole.labels)) >= 3, f"{whole.spec}: pairs and images unrelated to them need three classes"),
        )
        self.data, self.positions = data, np.array(stream.evenly(len(data), n))
        vars(self).update(vars(datasets.describe(Subset(data, self.positions))))  # labels and all, of the clean images
        if factor == "image":
            self.others = data
            self.corrupt = np.array([elsewhere(whole, position, position) for position in self.positions])
        else:
            self.others, self.corrupt = with_changed(data, factor), self.positions
        corrupt = datasets.describe(self.others).labels[self.corrupt]
        self.answers = np.stack([self.labels, corrupt], 1)  # [pair 2]: the labels of the clean and the corrupt image
        self.unrelated = np.array(
            [elsewhere(whole, *of) for of in zip(self.corrupt, self.positions, corrupt, strict=True)]
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, torch.Tensor | None]:
        clean, corrupt = self.data[int(self.positions[index])], self.others[int(self.corrupt[index])]
        images = torch.stack([clean[0], corrupt[0], self.data[int(self.unrelated[index])][0]])
        masks = None if clean[2] is None else torch.stack([clean[2], corrupt[2]])
        return images, int(clean[1]), masks


def elsewhere(whole: datasets.About, start: int, clean: int, corrupt_label: int | None = None) -> int:
    """The first image, from half the data beyond `start` on, that is neither of the class (nor of the photograph) of
    the `clean` one nor of the corrupt one's class.
    """
    order = (start + len(whole.labels) // 2 + np.arange(len(whole.labels))) % len(whole.labels)
    taken = [whole.labels[clean], -1 if corrupt_label is None else corrupt_label]
    is_free = ~np.isin(whole.labels[order], taken) & (whole.photographs[order] != whole.photographs[clean])
    if not is_free.any():
        raise InputError(f"{whole.spec}: nothing is unrelated to image {whole.indices[clean]}; use more classes")
    return int(order[np.argmax(is_free)])


def default_factors(data: Any) -> tuple[str, ...]:
    """The factors that the data can render, else other images."""
    return shapes.FACTORS if hasattr(innermost(data), "with_changed") else ("image",)


def innermost(data: Any) -> Any:
    return innermost(data.dataset) if isinstance(data, Subset) else data


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
    """Tokens of every group of GROUPS: bool [pair group pos], from masks [pair 2 h w] and answers [pair 2].

    A patch is the object's where a pixel of it is, in either image; without masks the object and what is around it are
    empty.
    """
    tokens = torch.zeros(len(answers), len(GROUPS), n_tokens, dtype=torch.bool)
    tokens[:, GROUPS.index("cls"), 0] = True
    tokens[:, GROUPS.index("patches"), n_prefix:] = True
    if masks is not None:
        shown = (masks == (answers + 1)[..., None, None]).any(1).float()
        inside = torch.nn.functional.max_pool2d(shown[:, None], patch).flatten(1) > 0
        tokens[:, GROUPS.index("object"), n_prefix:] = inside
        tokens[:, GROUPS.index("background"), n_prefix:] = ~inside
    return tokens
