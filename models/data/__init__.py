"""Images, labels and masks, by spec: ``open_data("shapes")``, ``open_data("imagenet-s:PATH")``, ...

Every data set is map-style: ``data[i] -> (image float32 [3 h w], label int, mask int64 [h w] or None)``, where the
mask holds 0 for other, label + 1 for an object of that class, -1 for ignored pixels. A `torch.utils.data.Subset` of
one is as good as the whole.
"""

from __future__ import annotations

import re
from typing import Any

from etils import epy

from models.config import ViTConfig
from models.data.about import About, describe, match_classes, names_of_classes, require_masks, unwrapped
from models.data.boxes import open_boxes
from models.data.files import place
from models.data.folder import open_folder
from models.data.imagenet_s import open_imagenet_s
from models.data.lists import open_list
from models.data.parquet import open_parquet
from models.data.shapes import Shapes
from models.data.shards import open_shards
from models.data.stream import Batch, Stream
from models.data.voc import open_voc
from models.errors import InputError, quoted, require

with epy.lazy_imports():  # timm takes seconds
    from models.data import timm_reader

__all__ = [
    "About",
    "Batch",
    "Stream",
    "describe",
    "match_classes",
    "names_of_classes",
    "open_data",
    "require_masks",
    "unwrapped",
]

ON_DISK = {
    "folder": open_folder,
    "list": open_list,
    "parquet": open_parquet,
    "imagenet-s": open_imagenet_s,
    "voc": open_voc,
    "boxes": open_boxes,
}
OF_TIMM = ("hfds/", "torch/")
FORMS = (
    "shapes, shapes:N, shapes-easy, shapes-easy:N, folder:PATH, imagenet-s:PATH, voc:PATH, boxes:PATH, list:FILE, "
    "parquet:PATH, imagenet-s:MASKS@IMAGES, wds/NAME:FOLDER, and timm's hfds/, torch/"
)


def open_data(spec: str, split: str = "val", *, like: Any = None) -> Any:
    """A data set by spec; `like` (a model or its config) gives image_size, mean and std.

    Without `like`, `shapes` is 64 px (`shapes-easy` 32) with mean = std = 0.5, everything else 224 px with ImageNet's.
    ``shapes:N`` has N training images; its validation split stays as it is. Raises `InputError`.
    """
    require((is_name(split), f"--split is {quoted(split)}, which names no split; choose val or train"))
    config: ViTConfig | None = getattr(like, "config", like)
    require(
        (isinstance(spec, str), f"a data set is named by a text such as folder:PATH, not by a {type(spec).__name__}"),
        (config is None or isinstance(config, ViTConfig), f"like is a model or its config, not {quoted(like)}"),
    )
    kind, colon, rest = spec.partition(":")
    if kind in ("shapes", "shapes-easy"):
        return _shapes(spec, kind, rest if colon else None, split, config)
    if kind in ON_DISK:
        if not rest:
            raise InputError(f"{spec!r} names no place; write {kind}:PATH")
        return ON_DISK[kind](spec, place(rest), split, config)
    if spec.startswith("wds/"):
        return open_shards(spec, rest, split, config)
    if spec.startswith(OF_TIMM):
        return timm_reader.TimmImages(spec, split, config)
    raise InputError(f"no data set is called {spec!r}; there are {FORMS}")


def is_name(split: str) -> bool:
    """Whether a split may be called so: not a path, which would lead elsewhere."""
    return split not in ("", ".", "..") and not set("/\0") & set(split)


def _shapes(spec: str, kind: str, size: str | None, split: str, config: ViTConfig | None) -> Shapes:
    if size is not None and not re.fullmatch("0*[1-9][0-9]{0,7}", size):
        raise InputError(
            f"{spec!r}: after the colon stands the number of training images, below 100,000,000, as in {kind}:100000"
        )
    geometry = {} if config is None else dict(image_size=config.image_size, mean=config.mean, std=config.std)
    return Shapes(split, easy=kind == "shapes-easy", n=int(size) if size and split == "train" else None, **geometry)
