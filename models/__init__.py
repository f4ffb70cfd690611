"""A hookable bViT, its stacked baseline, their data and their training.

Names are resolved on first use (PEP 562), so that ``import models`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.config import ViTConfig
    from models.data import open_data
    from models.looped import unroll
    from models.source import load
    from models.vit import BViT

_HOME = {
    "BViT": "models.vit",
    "ViTConfig": "models.config",
    "load": "models.source",
    "open_data": "models.data",
    "unroll": "models.looped",
}
__all__ = ["BViT", "ViTConfig", "load", "open_data", "unroll"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
