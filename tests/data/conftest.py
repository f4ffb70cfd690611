"""Tiny pictures on disk, in every form that people have them in."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as pq

WNIDS = ("n01440764", "n02102040", "n02979186")


def png(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format="PNG", **options)
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, columns: dict[str, list], names: tuple[str, ...] = (), group: int = 2) -> Path:
    """A file as Hugging Face writes it, with the names of the column `label` in the schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture
def plant(tmp_path) -> Callable[..., Path]:
    """``plant("val/cat/1.png", ...)``: small pictures below a new folder, each of its own colour; gives the folder."""

    def planted(*files: str, root: Path = tmp_path) -> Path:
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            red = sum(map(ord, file)) % 256
            Image.new("RGB", (30, 20), (red, len(file), 255)).save(root / file, format=_format(file))
        return root

    return planted


def _format(file: str) -> str | None:
    """By the ending; a PNG where Pillow cannot write that, since readers go by content."""
    Image.init()
    kind = Image.registered_extensions().get(Path(file).suffix.lower())
    return kind if kind in Image.SAVE and kind not in ("ICO", "XBM", "PDF") else "PNG"


@pytest.fixture
def tar() -> Callable[..., Path]:
    return write_tar


@pytest.fixture
def parquet() -> Callable[..., Path]:
    return write_parquet


@pytest.fixture
def imagenet_s_in_four_forms(tmp_path) -> dict[str, str]:
    """One tiny ImageNet-S val (3 classes, 2 images each), as four specs whose items are equal.

    In the tree of images the first one lies in another class folder, as 13 % of ImageNet's do; the mask's is right.
    """
    rng, samples = np.random.default_rng(0), []
    for label, wnid in enumerate(WNIDS):
        for i in range(2):
            height, width = rng.integers(24, 48, 2)
            ids = rng.choice([0, label + 1, label + 1, 1, 3, 1000], (height, width))
            image = png(rng.integers(0, 256, (height, width, 3)))
            mask = png(np.stack([ids % 256, ids // 256, 0 * ids], -1))
            samples.append((label, wnid, f"ILSVRC2012_val_{10 * label + i:08d}", image, mask))
    official, masks, images = tmp_path / "official", tmp_path / "masks", tmp_path / "images"
    for _, wnid, name, image, mask in samples:
        elsewhere = WNIDS[1] if name.endswith("00") else wnid
        for file, content in (
            (official / "validation" / wnid / f"{name}.JPEG", image),
            (official / "validation-segmentation" / wnid / f"{name}.png", mask),
            (masks / "validation-segmentation" / wnid / f"{name}.png", mask),
            (images / "val" / elsewhere / f"{name}.JPEG", image),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    for root in (official, masks):
        (root / "ImageNetS_categories_im3.txt").write_text("\n".join(reversed(WNIDS)))
    columns = {
        "image": [{"bytes": image, "path": f"{name}.JPEG"} for *_, name, image, _ in samples],
        "mask": [{"bytes": mask, "path": f"{name}.png"} for *_, name, _, mask in samples],
        "filename": [name for *_, name, _, _ in samples],
        "label": [label for label, *_ in samples],
    }
    write_parquet(tmp_path / "parquet" / "data" / "validation-00000-of-00001.parquet", columns, WNIDS)
    parts = {
        f"{name}.{kind}": content
        for label, _, name, image, mask in samples
        for kind, content in (("jpg", image), ("png", mask), ("cls", str(label).encode()))
    }
    write_tar(tmp_path / "shards" / "validation-0000.tar", parts)
    (tmp_path / "shards" / "classes.txt").write_text("\n".join(WNIDS))
    return {
        "official": f"imagenet-s:{official}",
        "two trees": f"imagenet-s:{masks}@{images}",
        "parquet": f"parquet:{tmp_path / 'parquet'}",
        "webdataset": f"wds/imagenet-s:{tmp_path / 'shards'}?mask=png",
    }


@pytest.fixture
def picture() -> Callable[[int], bytes]:
    """A PNG of 20 x 16 pixels of one red."""
    return lambda red: png(np.full((16, 20, 3), (red, 0, 0)))


@pytest.fixture
def mask_png() -> Callable[..., bytes]:
    """Ids as a PNG: ``rgb`` (R + 256 G), ``grey`` (8 bits) or ``wide`` (16 bits), padded to the width of `picture`."""

    def coded(ids: np.ndarray, coding: str) -> bytes:
        ids = np.pad(ids, ((0, 0), (2, 20 - 2 - ids.shape[1]))).astype(int)
        file = io.BytesIO()
        stored = {"rgb": np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8), "grey": ids.astype(np.uint8)}
        Image.fromarray(stored.get(coding, ids.astype(np.uint16))).save(file, format="PNG")
        return file.getvalue()

    return coded
