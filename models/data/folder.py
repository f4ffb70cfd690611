"""``folder:PATH``: ImageNet-style class folders, PATH/{train,val}/<class>/<image>."""

from pathlib import Path

from models.config import ViTConfig
from models.data.images import Images, Item, existing, pictures
from models.errors import InputError

NAMES = {
    "val": ("val", "validation", "valid", "test"),
    "train": ("train", "training", "train-semi"),
}  # what a split's folder may be called


def open_folder(spec: str, path: Path, split: str, like: ViTConfig | None) -> Images:
    """Labels are the class folders' places in sorted order: those of train where they hold all of the split's, else
    the split's own.
    """
    root = split_folder(spec, existing(path, spec), split)
    own, trained = folders(root), folders(find_split(path, "train") or root)
    if not own:
        raise InputError(f"{spec}: {root} has no class folders; it must hold one folder of images per class")
    classes = tuple(trained if set(own) <= set(trained) else own)
    items = [
        Item(file, str(file.relative_to(root)), classes.index(name)) for name in own for file in pictures(root / name)
    ]
    return Images(spec, split, classes, items, like)


def split_folder(spec: str, path: Path, split: str) -> Path:
    """PATH/split under any of its usual names; `InputError` says what is there."""
    found = find_split(path, split)
    if found is None:
        there = folders(path) if path.is_dir() else ()
        shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more folders" if len(there) > 8 else "")
        raise InputError(f"{spec} has no split {split!r}; it holds {shown or 'no folders'}, and needs a folder {split}")
    return found


def find_split(path: Path, split: str) -> Path | None:
    return next((path / name for name in NAMES.get(split, (split,)) if (path / name).is_dir()), None)


def folders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
