"""Class names as words: ``parachute``, not ``n03888257``."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

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


def of_all(names: Sequence[Any]) -> list[Any]:
    """The same of all classes, each to be told from the others: where two have one word, as ImageNet's two kinds of
    cranes, it is followed by the class's own name, or by its number where that is the same as well.
    """
    shown = list(map(of, names))
    words, own = Counter(map(str, shown)), Counter(map(str, names))
    return [
        word if words[str(word)] == 1 else f"{word} ({name if own[str(name)] == 1 else i})"
        for i, (name, word) in enumerate(zip(names, shown, strict=True))
    ]


@cache
def imagenet() -> "data.ImageNetInfo":
    return data.ImageNetInfo()
