"""An inventory of a folder and the specs that could read it, for the message about an unknown layout."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from models.data.files import endings, is_leftover

ENOUGH = 20_000  # files and folders, after which the inventory stops
DEEP = 6  # levels of folders that are searched; Kaggle's ImageNet needs all of them
KINDS = {  # by ending; besides these there are pictures and other files
    ".csv": "CSV",
    ".tsv": "CSV",
    ".txt": "text",
    ".tar": "tar",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".zip": "archive to unpack",
    ".gz": "archive to unpack",
    ".tgz": "archive to unpack",
    ".rar": "archive to unpack",
    ".7z": "archive to unpack",
}
UNITS = {
    "folder": "folders",
    "picture": "pictures",
    "CSV": "CSVs",
    "text": "texts",
    "tar": "tars",
    "parquet": "parquet files",
    "arrow": "arrow files",
    "archive to unpack": "archives to unpack",
    "other file": "other files",
}
SPLITS = ("train", "val", "validation", "valid", "test", "training")


def layout_hint(path: Path, spec: str) -> str:
    """The end of a message about `spec`, such as ``; found 3 folders, 12 pictures there; what would fit:
    list:PATH/labels.csv``; empty if `path` is no folder.
    """
    if not os.path.isdir(path):
        return ""
    counts, places, complete = census(path)
    parts = [f"{n:,} {kind if n == 1 else UNITS[kind]}" for kind in UNITS if (n := counts[kind])]
    inventory = f"; found {'' if complete else 'at least '}{', '.join(parts) or 'nothing'} there"
    specs = [other for other in fitting(path, counts, places) if other != spec]
    if specs:
        return f"{inventory}; what would fit: {', '.join(specs)}"
    return f"{inventory}; the README's table of data shows every layout that is read"


def kind_of(name: str, pictures: Collection[str]) -> str:
    """A file's kind by its ending, given the endings of pictures."""
    ending = os.path.splitext(name)[1].lower()
    return "picture" if ending in pictures else KINDS.get(ending, "other file")


def census(path: Path) -> tuple[Counter[str], dict[str, list[str]], bool]:
    """The number of files of each kind below a folder, the first paths of each, and whether everything was counted."""
    counts: Counter[str] = Counter()
    places: dict[str, list[str]] = {kind: [] for kind in UNITS}
    pictures, queue, n_entries = endings(), [(str(path), 0)], 0
    while queue and n_entries < ENOUGH:
        folder, depth = queue.pop(0)
        for name, is_folder in listing(folder):
            n_entries += 1
            kind = "folder" if is_folder else kind_of(name, pictures)
            counts[kind] += 1
            if len(places[kind]) < 2_000:
                places[kind].append(os.path.relpath(os.path.join(folder, name), path))
            if is_folder and depth + 1 < DEEP:
                queue.append((os.path.join(folder, name), depth + 1))
            if n_entries >= ENOUGH:
                break
    return counts, places, n_entries < ENOUGH


def listing(folder: str) -> list[tuple[str, bool]]:
    """Sorted names in a folder, each with whether it is a folder (a link is none); without the system's leftovers."""
    try:
        with os.scandir(folder) as entries:
            pairs = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:
        return []
    return sorted((name, is_folder) for name, is_folder in pairs if not is_leftover(name))


def fitting(path: Path, counts: Counter[str], places: dict[str, list[str]]) -> list[str]:
    """Specs that could read the folder's content, the likeliest first."""
    folders = places["folder"]
    above = {name: str(Path(path, name).parent) for name in folders}
    named = {os.path.basename(name): name for name in reversed(folders)}
    specs = []
    if {"JPEGImages", "SegmentationClass"} <= named.keys():
        specs.append(f"voc:{above[named['JPEGImages']]}")
    masks = next((named[name] for name in ("validation-segmentation", "train-semi-segmentation") if name in named), "")
    if masks:
        images = masks.removesuffix("-segmentation") in folders
        specs.append(f"imagenet-s:{above[masks]}" + ("" if images else "@IMAGES"))
    specs += [f"parquet:{path}"] if counts["parquet"] else []
    specs += [f"wds/NAME:{path}"] if counts["tar"] else []
    return [*specs, *of_pictures(path, places, named)] if counts["picture"] else specs


def of_pictures(path: Path, places: dict[str, list[str]], named: dict[str, str]) -> list[str]:
    """Specs for folders of splits, lists and tables, and advice for class folders outside of splits."""
    inner = next((named[name] for name in SPLITS if name in named), None)
    specs = [] if inner is None else [f"folder:{Path(path, inner).parent}"]
    lists = [name for name in places["text"] if os.path.splitext(os.path.basename(name))[0].lower() in SPLITS]
    specs += [f"list:{Path(path, name).parent}" for name in lists[:1]]
    specs += [f"{kind}:{path / name}" for name in places["CSV"][:2] for kind in ("list", "boxes")]
    if not named:
        specs.append(
            f"folder:{path} once a table of its classes, such as LOC_val_solution.csv, lies beside or above it"
        )
    elif inner is None and any(os.path.dirname(name) == "" for name in named.values()):
        specs.append(f"folder:{path} once its class folders lie in {path / 'val'} or {path / 'train'}")
    return specs
