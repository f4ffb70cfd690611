"""What a data set is, seen through any `torch.utils.data.Subset` of it; and what a probe may ask of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from etils import epy
from torch.utils.data import Subset

from models.config import ViTConfig
from models.data.folder import WNID
from models.errors import InputError

with epy.lazy_imports():  # timm takes seconds
    from timm.data import imagenet_info

WITH_MASKS = (
    "shapes, shapes-easy, imagenet-s:PATH, imagenet-s:MASKS@IMAGES, voc:PATH and boxes:PATH, and list:FILE, "
    "parquet:PATH and wds/NAME:FOLDER?mask=KEY where they hold masks"
)

# The attributes that every data set has
ATTRIBUTES = ("spec", "split", "classes", "labels", "fingerprint", "has_masks", "image_size")


@dataclass(frozen=True)
class About:
    """What a data set says of itself, or of the images that a Subset holds."""

    spec: str
    split: str
    classes: tuple[str, ...]
    labels: np.ndarray  # [image] int64
    indices: np.ndarray  # [image] positions in the whole set
    fingerprint: str  # of content, geometry and selection
    has_masks: bool
    image_size: int
    photographs: np.ndarray  # [image] int64, which photograph an item is from: VOC and boxes give one per class in it


def describe(data: Any) -> About:
    """The facts of a data set; a Subset has those of the whole for the images it holds."""
    if isinstance(data, Subset):
        whole, rows = describe(data.dataset), np.asarray(data.indices, dtype=np.int64)
        return replace(
            whole,
            labels=whole.labels[rows],
            indices=whole.indices[rows],
            fingerprint=hashlib.sha256(whole.fingerprint.encode() + rows.tobytes()).hexdigest()[:16],
            photographs=whole.photographs[rows],
        )
    lacking = [name for name in ATTRIBUTES if not hasattr(data, name)]
    if lacking:
        raise InputError(
            f"a {type(data).__name__} does not say its {', '.join(lacking)}; open the data with models.open_data, or "
            "give it these attributes"
        )
    indices = np.arange(len(data))
    return About(
        spec=data.spec,
        split=data.split,
        classes=tuple(data.classes),
        labels=np.asarray(data.labels),
        indices=indices,
        fingerprint=data.fingerprint,
        has_masks=data.has_masks,
        image_size=data.image_size,
        photographs=np.asarray(getattr(data, "photographs", indices)),
    )


def unwrapped(data: Any) -> Any:
    """The data set that a Subset, or a Subset of one, is taken from."""
    while isinstance(data, Subset):
        data = data.dataset
    return data


def require_masks(data: Any) -> None:
    """Refuse a data set without masks, where a probe needs them."""
    about = describe(data)
    if not about.has_masks:
        raise InputError(
            f"{about.spec} has no masks; name data that has them with --data ({WITH_MASKS}), or run a probe that "
            "needs none, such as python -m probes.trajectories"
        )


def names_of_classes(config: ViTConfig, of_data: Sequence[str]) -> Sequence[str]:
    """A model's class names; of one that knows none (timm's) the wnids of ImageNet-1k where it tells 1,000 classes and
    those of the data are wnids, else numbers.
    """
    if config.classes is None and config.n_classes == 1000 and all(WNID.fullmatch(name) for name in of_data):
        return imagenet_info.ImageNetInfo("imagenet-1k").label_names()
    return config.classes or list(map(str, range(config.n_classes)))


def match_classes(data_classes: Sequence[str], model_classes: Sequence[str] | None) -> list[int]:
    """The model's index of each class of the data, matched by name; by place where both name the same classes in the
    same order, so that two of one name (ImageNet has cranes of two kinds) stay two.

    Raises `InputError` for a class that the model lacks, or has twice where the order differs.
    """
    if list(data_classes) == list(model_classes or ()):
        return list(range(len(data_classes)))
    place = {name: i for i, name in enumerate(model_classes or ())}
    shared = set(data_classes) & place.keys()
    for whose, names in (("the data", data_classes), ("the model", model_classes or ())):
        twice = [name for name, n in Counter(names).items() if n > 1 and name in shared]
        if twice:
            raise InputError(
                f"{whose} has several classes of the name {twice[0]}, and data and model list their classes otherwise; "
                "rename them so that they can be matched"
            )
    missing = [name for name in data_classes if name not in place]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(
            f"the model has no class {shown} that the data has; choose data whose classes are among the model's"
        )
    return [place[name] for name in data_classes]
