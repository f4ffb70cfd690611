"""What all probes share: open model and data, stream batches over processes, attributes, save."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from models.errors import InputError

if TYPE_CHECKING:
    import torch
    import xarray as xr
    from torch import Tensor

    from models.vit import BViT


@dataclass(frozen=True)
class Common:
    """The options every probe has."""

    source: Positional[str]
    """Model: run folder, ckpt.pt, timm:NAME, timm:NAME@FILE or hf:REPO."""
    data: str | None = None
    """Data spec (shapes, folder:PATH, imagenet-s:PATH, voc:PATH, boxes:PATH, ...); the checkpoint's own by default."""
    split: str = "val"
    """Split of the data."""
    limit: int | None = None
    """At most this many images, spread evenly over the split."""
    out: Path | None = None
    """Result file; <run>/<probe>.nc by default."""
    device: str = "auto"
    """auto, cpu or cuda."""
    batch_size: int = 64
    """Images per forward pass."""
    workers: int = 0
    """Processes that load images."""
    seed: int = 0
    """Of everything random in the measurement."""
    weights: Literal["ema", "raw", "init"] = "ema"
    """Which weights of the checkpoint; init is the untrained control."""


def open_model(common: Common, weights: str | None = None) -> BViT:
    """The model on its device."""
    from models import load

    return load(common.source, weights or common.weights).to(device(common.device))


def untrained_of(common: Common) -> BViT | None:
    """The untrained control, or None with a word where it cannot be rebuilt."""
    try:
        return open_model(common, "init")
    except InputError as error:
        print(f"no untrained control: {error}", file=sys.stderr)
        return None


def open_images(common: Common, model: BViT) -> Any:
    """The data set, at most `limit` images of it spread evenly (so that all classes of a sorted folder stay in)."""
    from models import open_data

    spec = common.data or model.origin.data
    if spec is None:
        raise InputError(f"{common.source} does not say which data it was trained on; name some with --data")
    return limited(open_data(spec, common.split, like=model), common.limit)


def limited(data: Any, limit: int | None) -> Any:
    """At most `limit` images, evenly spread."""
    from torch.utils.data import Subset

    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}, it must be at least 1")
    if limit is None or limit >= len(data):
        return data
    return Subset(data, [i * len(data) // limit for i in range(limit)])


def device(name: str) -> torch.device:
    import torch
    from accelerate import PartialState

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device; use --device cpu")
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is {name!r}, not auto, cpu or cuda")
    return PartialState(cpu=name == "cpu").device


def progress(batches: Any, n_images: int, label: str) -> Iterator[Any]:
    """The batches of a `Stream`, with a bar over this process's share of the images."""
    from tqdm import tqdm

    rank, world = processes()
    with tqdm(total=-(-n_images // world), desc=label, unit=" images", disable=rank > 0, mininterval=1, dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.images))


def processes() -> tuple[int, int]:
    """(rank, number) of processes under ``accelerate launch`` or ``torchrun``; (0, 1) otherwise."""
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def gathered(records: list[tuple[int, Any]]) -> list[Any]:
    """Everybody's (position, record) pairs as one list of records in order of position, on every process."""
    from accelerate.utils import gather_object

    return [record for _, record in sorted(gather_object(records), key=lambda pair: pair[0])]


def cls_attention(model: BViT, images: Tensor) -> Tensor:
    """Attention of the CLS token at every step and head: [batch step head key], float32.

    Made from q and k while attention stays fused, so it costs no more than the forward itself.
    Raises `InputError` that names the first step whose activations are not finite.
    """
    import torch

    queries: dict[str, Tensor] = {}
    rows: list[Tensor] = []

    def keep_query(q: Tensor, hook: Any) -> None:
        queries["cls"] = q[:, 0].float()

    def row(k: Tensor, hook: Any) -> None:
        scores = torch.einsum("bhd,bkhd->bhk", queries["cls"] * k.shape[-1] ** -0.5, k.float())
        rows.append(scores.softmax(-1))

    with torch.inference_mode():
        model.run_with_hooks(images, fwd_hooks=[("blocks.*.attn.hook_q", keep_query), ("blocks.*.attn.hook_k", row)])
    attention = torch.stack(rows, 1)
    refuse_nonfinite(attention.flatten(2).sum((0, 2)))
    return attention


def refuse_nonfinite(per_step: Tensor) -> None:
    """Stop with the first step whose number is NaN or infinite: [step]."""
    bad = (~per_step.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise InputError(f"activations are not finite from step {step + 1} (blocks.{step}) on; the checkpoint diverged, use an earlier one")


def attributes(model: BViT, data: Any, *, seed: int, started: float, **more: Any) -> dict[str, Any]:
    """What a result says of where it comes from; plain strings and numbers."""
    from models import checkpoint
    from models import data as data_module

    about, origin = data_module.describe(data), model.origin
    provenance = checkpoint.provenance(seed)
    return {
        "source": checkpoint.relative(origin.source),
        "weights": origin.weights,
        "checkpoint_sha256": origin.sha256,
        "config": json.dumps(model.trained.to_dict()),
        "data": checkpoint.relative(about.spec),
        "split": about.split,
        "data_fingerprint": about.fingerprint,
        "n_images": len(data),
        "seed": seed,
        "command": provenance["command"],
        "versions": json.dumps(provenance["versions"]),
        "machine": provenance["machine"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started, 1),
        **more,
    }


def save(result: xr.Dataset, path: Path) -> None:
    """Write a result as NetCDF-4, compressed and atomically, from the main process.

    It is made in memory first: HDF5 may crash the interpreter when the disk is full.
    """
    from models.run_folder import atomic

    if processes()[0] == 0:
        encoding = {name: {"zlib": True} for name in result.data_vars if result[name].ndim}
        content = result.to_netcdf(engine="h5netcdf", encoding=encoding)
        with atomic(path) as temporary:
            temporary.write_bytes(content)
        print(f"wrote {path}", file=sys.stderr)


def result_path(common: Common, model: BViT, probe: str) -> Path:
    from models.run_folder import result

    return common.out or result(model.origin.run, probe)
