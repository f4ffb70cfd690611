"""Every kind of file that the toolkit opens: a good one, how it is opened, and how it is damaged."""

import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import torch
import xarray as xr
from PIL import Image
from pyarrow import parquet

from analyses import results
from models import ViTConfig, checkpoint, load, loop, open_data, source, study, train
from models.data import codings
from probes import prune

CONFIG = ViTConfig.preset(
    "bvit_easy", n_steps=2, d_model=16, n_heads=2, n_classes=20, classes=open_data("shapes-easy").classes
)
STRANGE = (
    -1,
    10**9,
    10**30,
    0.5,
    float("nan"),
    "2",
    "",
    "x" * 5000,
    None,
    True,
    [],
    {},
    [[[]]],
    b"\0",
    "![](http://1.2.3.4)",
)


@dataclass(frozen=True)
class Kind:
    """`prepare` writes a good file (and what it needs) into a folder, and gives what opens it; `name` is the file."""

    name: str
    prepare: Callable[[Path], Callable[[], object]]
    damage: Callable[[bytes, random.Random, Path], bytes]
    says_value_error: bool = False  # analyses know no InputError

    def file(self, folder: Path) -> Path:
        return folder / self.name


# Damage

WORDS = (b"\0" * 9, b"\xff\xfe", b"9" * 400, b"\n\n", b",,,", b'"', b"../../etc/")


def flipped(whole: bytes, rng: random.Random, outside: Path | None = None) -> bytes:
    """Bits flipped, bytes gone, doubled or strange, or an end that is missing."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 3, 20))):
        place, how = rng.randrange(len(content) or 1), rng.randrange(6)
        if not content or how == 0:
            content = content[:place]
        elif how == 1:
            content[place] ^= 1 << rng.randrange(8)
        elif how == 2:
            del content[place : place + rng.randrange(1, 40)]
        elif how == 3:
            content[place:place] = content[max(0, place - 30) : place]
        elif how == 4:
            content[place] = rng.choice((0, 255, 127, 128, 10, 44, 34))
        else:
            content[place:place] = rng.choice(WORDS)
    return bytes(content)


class Bomb:
    """A pickle that would run code: it would leave a file in `outside`."""

    def __init__(self, outside: Path):
        self.command = f"mkdir -p {outside}; touch {outside}/executed"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def repacked(whole: bytes, rng: random.Random, outside: Path) -> bytes:
    """A torch file: raw damage, a pickle that was damaged or runs code under right checksums, or entries exchanged."""
    how = rng.randrange(4)
    if how == 0:
        return flipped(whole, rng)
    buffer = io.BytesIO()
    if how == 1:
        bomb = {"format": Bomb(outside)}
        return pickle.dumps(bomb) if rng.random() < 0.3 else _torch(bomb)
    if how == 2:
        with zipfile.ZipFile(io.BytesIO(whole)) as before, zipfile.ZipFile(buffer, "w") as after:
            for part in before.namelist():
                content = before.read(part)
                after.writestr(part, flipped(content, rng) if part.endswith("data.pkl") else content)
        return buffer.getvalue()
    return _torch(exchanged(torch.load(io.BytesIO(whole), weights_only=True), rng))


def _torch(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def exchanged(content: object, rng: random.Random) -> object:
    """Plain values and tensors with one of them, at any depth, exchanged for a strange one or gone."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        if rng.random() < 0.1:
            return {name: value for name, value in content.items() if name != key}
        return content | {key: exchanged(content[key], rng)}
    if isinstance(content, torch.Tensor) and content.ndim and rng.random() < 0.7:
        others = (content[:-1].clone(), content.double(), content.to_sparse(), content.long(), content[None])
        return rng.choice((*others, content * torch.nan, content[:1].expand(10**4, *content.shape[1:])))
    return rng.choice(STRANGE)


def as_text(whole: bytes, rng: random.Random, outside: Path) -> bytes:
    """JSON: raw damage, or a value exchanged."""
    if rng.random() < 0.5:
        return flipped(whole, rng)
    return json.dumps(exchanged(json.loads(whole), rng), default=str).encode()


def mutated(result: xr.Dataset, rng: random.Random) -> xr.Dataset:
    """A result with something of it gone, strange, cut to nothing or of another kind."""
    result, name = result.copy(), rng.choice(list(result.variables))
    dim, values = rng.choice(list(result.sizes)), result[name]
    how = rng.randrange(8)
    if how == 0:
        return result.drop_vars(name)
    if how == 1:
        return result.rename_dims({dim: "elsewhere"})
    if how == 2:
        return result.isel({dim: rng.choice(([], [0], [-1, 0]))})
    if how == 3:
        attribute = rng.choice([*result.attrs, "note", "classes"])
        return result.assign_attrs({attribute: rng.choice(STRANGE)})
    if how == 4:
        attribute = rng.choice(list(result.attrs))
        return result.drop_attrs().assign_attrs({key: said for key, said in result.attrs.items() if key != attribute})
    if how == 5 and name in result.data_vars:
        return result.assign({name: values.isel(dict.fromkeys(values.dims, 0), drop=True)})
    if how == 6:
        return result.assign(
            {name: (values.dims, np.full(values.shape, rng.choice((np.nan, np.inf, -1, 10**18, "x"))))}
        )
    return result.assign(
        {
            name: (
                values.dims[::-1],
                values.values.T.astype(rng.choice((str, "f4") if values.dtype.kind in "fiub" else (str, bool))),
            )
        }
    )


# Good files


def model(folder: Path) -> None:
    """A run folder with a small model."""
    made = checkpoint.fresh(CONFIG, 0)
    sha256 = checkpoint.state_sha256(made.state_dict())
    about = dict(data="shapes-easy:64", metrics={"top1": 0.1}, provenance={"seed": 0})
    checkpoint.save(folder / "ckpt.pt", made, init_sha256=sha256, **about)


def of_checkpoint(folder: Path) -> Callable[[], object]:
    model(folder)
    images = torch.zeros(1, 3, 32, 32)

    def opening() -> None:
        for weights in ("ema", "init"):
            load(folder, weights)(images)

    return opening


def of_weights(folder: Path) -> Callable[[], object]:
    state = source.timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=12).state_dict()
    torch.save(state, folder / "weights.pth")
    return lambda: checkpoint.load_plain(folder / "weights.pth")


def of_state(folder: Path) -> Callable[[], object]:
    def opened() -> loop.Loop:
        module = torch.nn.Linear(3, 3)
        optimizer = torch.optim.AdamW(module.parameters())
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        parts = {"model": module, "optimizer": optimizer, "position": {"best": -1.0}}
        return loop.Loop(folder / "last.pt", parts, updates=10, key={"lr": 0.1, "seed": 0}, may_fall=("lr",))

    opened().save()
    return opened


def of_log(folder: Path) -> Callable[[], object]:
    lines = [{"update": u, "images": 32 * u, "loss": 1 / u} for u in range(1, 20)]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return lambda: [line["update"] <= 5 for line in train.read_log(folder / "train.jsonl")]


def of_options(folder: Path) -> Callable[[], object]:
    noted = dict(source=None, preset="bvit_easy", fields=["n_steps=3"], data="shapes-easy:64", val_limit=10)
    (folder / "prune.json").write_text(json.dumps(noted | {"plan": {"rounds": 3, "rate": 0.2, "seed": 0}}))
    return lambda: prune.planned(prune.kept_options(folder), folder)


def pictures(folder: Path) -> list[Path]:
    rng, paths = np.random.default_rng(0), []
    for name in ("a", "b"):
        for i in range(3):
            path = folder / "val" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
            paths.append(path)
    return paths


def first_of(spec: str) -> Callable[[], object]:
    return lambda: open_data(spec, like=CONFIG)[0]


def of_list(folder: Path) -> Callable[[], object]:
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in pictures(folder)]
    (folder / "list.csv").write_text("\n".join(["path,class", *rows]))
    return first_of(f"list:{folder}/list.csv")


def of_boxes(folder: Path) -> Callable[[], object]:
    rows = [f"{path.name},{path.parent.name},24,20,2,2,12,12" for path in pictures(folder)]
    (folder / "boxes.csv").write_text("\n".join(["file,label,w,h,x0,y0,x1,y1", *rows]))
    return first_of(f"boxes:{folder}/boxes.csv")


def of_picture(folder: Path, kind: str) -> Callable[[], object]:
    path = folder / "val" / "a" / f"0.{kind}"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    return first_of(f"folder:{folder}")


def of_mask(folder: Path) -> Callable[[], object]:
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (20, 24), dtype=np.uint8)).save(folder / "mask.png")
    return lambda: codings.Coding(20).read(folder / "mask.png", "a picture", 0, (24, 20))


def of_array(folder: Path) -> Callable[[], object]:
    np.save(folder / "mask.npy", np.ones((20, 24), np.int16))
    return lambda: codings.Coding(20).read(folder / "mask.npy", "a picture", 0, (24, 20))


def of_parquet(folder: Path) -> Callable[[], object]:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in pictures(folder / "pictures")]
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 0, 0, 1, 1, 1]}), folder / "val.parquet")
    return first_of(f"parquet:{folder}/val.parquet")


def of_shard(folder: Path) -> Callable[[], object]:
    with tarfile.open(folder / "val-000.tar", "w") as shard:
        for i, path in enumerate(pictures(folder / "pictures")):
            for ending, content in (("png", path.read_bytes()), ("cls", str(i // 3).encode())):
                part = tarfile.TarInfo(f"{i:03}.{ending}")
                part.size = len(content)
                shard.addfile(part, io.BytesIO(content))
    return first_of(f"wds/some:{folder}")


def of_study(folder: Path) -> Callable[[], object]:
    text = "data: shapes-easy:64\nimages: 640\nseeds: 2\ngroups:\n  - name: width\n    models: [bvit_easy]\n"
    text += "    fields: {n_steps: 3}\n    vary: {d_model: [16, 32], n_heads: [2, 4]}\n"
    (folder / "study.yaml").write_text(text)
    return lambda: list(study.read(folder / "study.yaml").cells())


def of_result(folder: Path) -> Callable[[], object]:
    values = np.random.default_rng(0).random((12, 3))
    made = xr.Dataset({"hit": (("step", "head"), values)}, attrs={"config": json.dumps(CONFIG.to_dict()), "seed": 0})
    made.to_netcdf(folder / "mine.nc", engine="h5netcdf", encoding={"hit": {"zlib": True}})
    return lambda: results.read(folder / "mine.nc")


KINDS = {
    "checkpoint": Kind("ckpt.pt", of_checkpoint, repacked),
    "weights in a torch file": Kind("weights.pth", of_weights, repacked),
    "state of a training": Kind("last.pt", of_state, repacked),
    "log of a training": Kind("train.jsonl", of_log, flipped),
    "options of a pruning": Kind("prune.json", of_options, as_text),
    "list of images": Kind("list.csv", of_list, flipped),
    "table of boxes": Kind("boxes.csv", of_boxes, flipped),
    "picture (PNG)": Kind("val/a/0.png", lambda folder: of_picture(folder, "png"), flipped),
    "picture (JPEG)": Kind("val/a/0.jpg", lambda folder: of_picture(folder, "jpg"), flipped),
    "picture (TIFF)": Kind("val/a/0.tif", lambda folder: of_picture(folder, "tif"), flipped),
    "mask (PNG)": Kind("mask.png", of_mask, flipped),
    "mask (NumPy)": Kind("mask.npy", of_array, flipped),
    "table of images (Parquet)": Kind("val.parquet", of_parquet, flipped),
    "shard (tar)": Kind("val-000.tar", of_shard, flipped),
    "study": Kind("study.yaml", of_study, flipped),
    "result": Kind("mine.nc", of_result, flipped, says_value_error=True),
}
