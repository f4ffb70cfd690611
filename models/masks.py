"""Step-specific masks: step t runs with the shared block's weights times M_t (lottery pruning of a model that runs in
steps).

The prunable weights of a block are its four matrices; biases, norms, embeddings and head stay whole. Masks live beside
a step's hook points, so hooks, caches and probes see the pruned model, and gradients reach the shared weights through
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from models.config import ViTConfig
from models.errors import InputError
from models.hooks import MATRICES

WEIGHTS = {name: f"{part}.{name}.weight" for part, name in MATRICES}  # matrix -> its parameter's name in the block
Masks = Bool[Tensor, "step weight"]  # one row per step: the matrices of WEIGHTS, flattened in this order


def shapes(config: ViTConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of each prunable matrix of a block."""
    d, hidden = config.d_model, config.d_mlp
    return {"qkv": (3 * d, d), "proj": (d, d), "fc1": (hidden, d), "fc2": (d, hidden)}


def sizes(config: ViTConfig) -> dict[str, int]:
    """Number of weights of each prunable matrix."""
    return {name: rows * columns for name, (rows, columns) in shapes(config).items()}


def split(flat: Tensor, config: ViTConfig) -> dict[str, Tensor]:
    """Rows of all prunable weights [... weight] as matrices [... out in], by name."""
    parts = flat.split(list(sizes(config).values()), -1)
    return {name: part.unflatten(-1, shape) for (name, shape), part in zip(shapes(config).items(), parts, strict=True)}


def joined(matrices: dict[str, Tensor]) -> Tensor:
    """The inverse of `split`: matrices [... out in] by name, or by parameter name, as rows [... weight]."""
    return torch.cat([matrices[name if name in matrices else WEIGHTS[name]].flatten(-2) for name in WEIGHTS], -1)


def put_on(model: Any, masks: Masks) -> Any:
    """Let every step of a `BViT` run under its own mask (in place, and returned); the masks move with the model."""
    expected = (model.config.n_steps, sum(sizes(model.config).values()))
    if tuple(masks.shape) != expected:
        raise InputError(
            f"masks are [step weight] = {list(expected)} for this model, they were given as {list(masks.shape)}"
        )
    for step, row in zip(model.blocks, masks, strict=True):
        for name, mask in split(row, model.config).items():
            step.part(name).register_buffer(f"mask_{name}", mask.to(model.pos_embed.device), persistent=False)
    return model


def taken_from(model: Any) -> Masks | None:
    """The masks [step weight] that a `BViT` runs under, or None."""
    if not model.blocks[0].is_masked:
        return None
    rows = [{name: getattr(step.part(name), f"mask_{name}") for name in WEIGHTS} for step in model.blocks]
    return torch.stack([joined(row) for row in rows])


def handed_on(model: Any, other: Any) -> Any:
    """`other`, a model of the same steps, under the masks of `model`, where it has any (in place, and returned)."""
    masks = taken_from(model)
    return other if masks is None else put_on(other, masks)


def packed(masks: Masks) -> Tensor:
    """Eight weights a byte, as `numpy.packbits`: uint8 [step byte]."""
    return torch.from_numpy(np.packbits(masks.cpu().numpy(), axis=-1))


def unpacked(content: Tensor, config: ViTConfig, rows: int | None = None, path: Path | str = "a file") -> Masks:
    """The inverse of `packed`, of as many rows as the model has steps if not said otherwise.

    Raises `InputError` for masks of another type or length: zeros in place of what is missing would prune by accident.
    """
    n = sum(sizes(config).values())
    expected = [config.n_steps if rows is None else rows, -(-n // 8)]
    if content.dtype != torch.uint8 or list(content.shape) != expected:
        given = f"{str(content.dtype).removeprefix('torch.')} {list(content.shape)}"
        raise InputError(f"{path}: masks are {given}, those of this model are uint8 [step byte] = {expected}")
    return torch.from_numpy(np.unpackbits(content.numpy(), axis=-1, count=n).astype(bool))
