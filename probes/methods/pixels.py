"""Pixels that a result keeps for its figure and its page: uint8 [image y x channel], at most 224 a side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ViTConfig

LARGEST = 224


def shown(data: Any, positions: Sequence[int], config: ViTConfig) -> np.ndarray:
    """Images of a data set as they look, by their positions in it."""
    images = torch.stack([data[int(position)][0] for position in positions])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    return as_bytes((images * std + mean).clamp(0, 1))


def as_bytes(pictures: Tensor) -> np.ndarray:
    """Pictures in [0, 1] [image 3 y x] in steps of 1/255."""
    whole = (pictures * 255).round()
    if whole.shape[-1] > LARGEST:
        whole = F.interpolate(whole, (LARGEST, LARGEST), mode="area").round()
    return whole.byte().permute(0, 2, 3, 1).cpu().numpy()
