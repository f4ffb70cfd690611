"""Images, labels and masks, by spec."""

from models.data.shapes import Shapes


def open_data(spec, split="val", *, like=None):
    config = getattr(like, "config", like)
    kind, _, n = spec.partition(":")
    size = {} if config is None else dict(image_size=config.image_size, mean=config.mean, std=config.std)
    return Shapes(split, easy=kind == "shapes-easy", n=int(n) if n and split == "train" else None, **size)
