"""Class names as words: ``parachute``, not ``n03888257``."""

import re
from functools import cache

from etils import epy

with epy.lazy_imports():
    from timm import data

WNID = re.compile(r"n\d{8}")  # of WordNet, as ImageNet names its classes


def of(name: str) -> str:
    """The first word that WordNet has for an ImageNet class; any other name as it is."""
    if not (isinstance(name, str) and WNID.fullmatch(name)):
        return name
    try:
        return imagenet().label_name_to_description(name).split(",")[0]
    except LookupError:
        return name


@cache
def imagenet() -> "data.ImageNetInfo":
    return data.ImageNetInfo()
