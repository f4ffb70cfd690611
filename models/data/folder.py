"""``folder:PATH``: ImageNet-style class folders, PATH/{train,val}/<class>/<image>."""

from pathlib import Path

from models.config import ViTConfig
from models.data.images import Images, Item, existing, pictures
from models.errors import InputError

NAMES = {"val": ("val", "validation", "valid", "test"), "train": ("train", "training")}  # what a split's folder may be called


def open_folder(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """Labels are the class folders' places in sorted order; all classes of the split count, empty ones too."""
    root = split_folder(spec, existing(path, spec), split)
    classes = tuple(sorted(folder.name for folder in root.iterdir() if folder.is_dir()))
    if not classes:
        raise InputError(f"{spec}: {root} has no class folders; it must hold one folder of images per class")
    items = [Item(file, str(file.relative_to(root)), label) for label, name in enumerate(classes) for file in pictures(root / name)]
    return Images(spec, split, classes, items, like)


def split_folder(spec: str, path: Path, split: str) -> Path:
    """PATH/split under any of its usual names."""
    for name in NAMES.get(split, (split,)):
        if (path / name).is_dir():
            return path / name
    there = ", ".join(sorted(folder.name for folder in path.iterdir() if folder.is_dir())[:8]) if path.is_dir() else ""
    raise InputError(f"{spec} has no split {split!r}; it holds {there or 'no folders'}")
