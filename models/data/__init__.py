"""Images, labels and masks, by spec."""

from models.data.about import About, describe, match_classes, require_masks
from models.data.shapes import Shapes
from models.data.stream import Batch, Stream

__all__ = ["About", "Batch", "Stream", "describe", "match_classes", "open_data", "require_masks"]


def open_data(spec, split="val", *, like=None):
    config = getattr(like, "config", like)
    kind, _, n = spec.partition(":")
    size = {} if config is None else dict(image_size=config.image_size, mean=config.mean, std=config.std)
    return Shapes(split, easy=kind == "shapes-easy", n=int(n) if n and split == "train" else None, **size)
