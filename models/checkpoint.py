"""Save, load and describe a model. Loading never unpickles code.

A checkpoint is one dict that ``torch.load(weights_only=True)`` reads: format and version, config,
weights, EMA weights, data spec, metrics, the hash of the initialisation, provenance; a pruned model's
also the masks of its steps. It is enough for every probe, wherever it is copied.
"""

import hashlib
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models import masks, run_folder
from models.config import ViTConfig
from models.errors import InputError, brief
from models.origin import Origin
from models.vit import BViT

FORMAT, VERSION = "bvit-toolkit", 1
Weights = Literal["ema", "raw", "init"]
State = dict[str, Tensor]


def fresh(config: ViTConfig, seed: int) -> BViT:
    """An untrained model: the same float32 weights for the same config and seed, drawn on the CPU."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            torch.set_default_dtype(torch.float32)
            torch.manual_seed(seed)
            return BViT(config)
        finally:
            torch.set_default_dtype(default)


def state_sha256(state: State) -> str:
    """Hash of names and float32 values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save(
    path: Path,
    model: BViT,
    *,
    ema: State | None = None,
    data: str | None = None,
    metrics: dict[str, Any] | None = None,
    init_sha256: str = "",
    provenance: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model` (and its EMA) to `path`, atomically; `dtype` stores half-precision weights.

    Raises `InputError` for a model with adapters, which are files of their own.
    """
    if any(".lora_" in name for name in model.state_dict()):
        raise InputError("a model with adapters is no checkpoint; save them with models.adapters.save")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.trained.to_dict(),
        "weights": _stored(model.state_dict(), dtype),
        "ema": None if ema is None else _stored(ema, dtype),
        "data": data,
        "metrics": metrics or {},
        "init_sha256": init_sha256,
        "provenance": provenance or {},
    }
    found = masks.taken_from(model)
    if found is not None:
        content["masks"] = masks.packed(found)
    run_folder.write_tensors(path, content)


def _stored(state: State, dtype: torch.dtype | None) -> State:
    return {name: value.detach().to("cpu", dtype or value.dtype).clone() for name, value in state.items()}


def load_file(path: Path, weights: Weights = "ema", *, run: Path | None = None) -> BViT:
    """The model in one checkpoint file, in eval mode; its results lie in `run`, by default the file's folder."""
    content = read(path)
    config = ViTConfig.from_dict(content["config"])
    if weights == "init":
        model = _untrained(config, content["provenance"].get("seed", 0), content["init_sha256"], path)
    else:
        state, weights = _chosen(content, weights)
        model = filled(config, state, path)
    if "masks" in content:
        masks.put_on(model, masks.unpacked(content["masks"], config))
    model.origin = Origin(
        str(path),
        weights,
        _file_sha256(path),
        run=run or path.parent,
        data=content["data"],
        metrics=content["metrics"],
        provenance=content["provenance"],
    )
    return model.eval()


def _chosen(content: dict[str, Any], weights: Weights) -> tuple[State, Weights]:
    """The weights asked for, and which they are: ``raw`` where there is no EMA."""
    if weights == "raw" or content["ema"] is None:
        return content["weights"], "raw"
    return content["ema"], "ema"


def filled(config: ViTConfig, state: State, path: Path) -> BViT:
    """A model with the given weights in float32, made without drawing any of its own."""
    with torch.device("meta"):
        model = BViT(config)
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit the config stored beside them ({brief(error, -1)})") from None
    return model


def _untrained(config: ViTConfig, seed: int, expected: str, path: Path) -> BViT:
    model = fresh(config, seed)
    if state_sha256(model.state_dict()) != expected:
        raise InputError(
            f"{path}: its initialisation cannot be rebuilt with this version of torch ({torch.__version__}): the hash "
            "differs; use the versions in its provenance"
        )
    return model


# What torch's readers raise on a damaged file, beside pickle's own refusal of code
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, struct.error)


def load_plain(path: Path) -> Any:
    """What a torch file holds, without executing anything in it; raises `InputError`, also for a file that was
    damaged.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a file; name the checkpoint in it") from None
    if start == b"PK":
        refuse_damaged(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if start != b"PK" and not (start[:1] == b"\x80" and start[1:] in b"\x02\x03\x04\x05"):
            raise InputError(f"{path} is not readable as a checkpoint: it is no file of torch's") from None
        raise InputError(
            f"{path} holds more than plain tensors (loading it could run code), it was not opened; export its state "
            "dict"
        ) from None
    except DAMAGED as error:
        raise InputError(f"{path} is not readable as a checkpoint, it may be truncated ({brief(error)})") from None


def refuse_damaged(path: Path) -> None:
    """Compare every part of a torch archive with the checksum that is stored beside it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, *DAMAGED) as error:
        raise InputError(f"{path} is not readable as a checkpoint, it may be truncated ({brief(error)})") from None
    if damaged:
        raise InputError(f"{path} is damaged: the checksum of {damaged} differs; fetch or make the file anew")


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, checked. Nothing in the file is executed."""
    content = load_plain(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of this toolkit; weights in timm's names are loaded with timm:NAME@{path}"
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has checkpoint version {content.get('version')}, this toolkit reads version {VERSION}; update "
            "the toolkit"
        )
    missing = {"config", "weights", "ema", "data", "metrics", "init_sha256", "provenance"} - set(content)
    if missing:
        raise InputError(
            f"{path} is a checkpoint without {', '.join(sorted(missing))}; write it with models.checkpoint.save"
        )
    return content


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(model: BViT) -> dict[str, Any]:
    """What a reader wants to know of a model first, as plain values."""
    config, origin = model.trained, model.origin
    stacked = ViTConfig.from_dict(config.to_dict() | {"n_blocks": config.n_steps})
    return {
        "steps": config.n_steps,
        "blocks": config.n_blocks,
        "width": config.d_model,
        "heads": config.n_heads,
        "tokens": config.n_tokens,
        "parameters": n_parameters(config),
        "parameters_stacked": n_parameters(stacked),
        "data": origin.data,
        "metrics": origin.metrics,
    }


def n_parameters(config: ViTConfig) -> int:
    """Parameters of a model of this config, without building its weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in BViT(config).parameters())
