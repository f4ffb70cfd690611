"""Save, load and describe a model. Loading never unpickles code.

A checkpoint is one dict that ``torch.load(weights_only=True)`` reads: format and version, config,
weights, EMA weights, data spec, metrics, the hash of the initialisation, provenance; a pruned model's
also the masks of its steps. It is enough for every probe, wherever it is copied.
"""

import hashlib
import pickle
import platform
import struct
import sys
import warnings
import zipfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models import masks, run_folder
from models.config import ViTConfig
from models.errors import InputError, brief
from models.vit import BViT

FORMAT, VERSION = "bvit-toolkit", 1
Weights = Literal["ema", "raw", "init"]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """Where a loaded model comes from: what a result's attributes say of it."""

    source: str
    weights: str = "ema"
    sha256: str = ""
    run: Path | None = None  # the folder that holds its results
    data: str | None = None  # the spec it was trained on
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def fresh(config: ViTConfig, seed: int) -> BViT:
    """An untrained model: the same weights for the same config and seed, drawn on the CPU."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return BViT(config)


def state_sha256(state: State) -> str:
    """Hash of names and float32 values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def provenance(seed: int, **more: Any) -> dict[str, Any]:
    """Command, seed, versions and machine, as plain values."""
    packages = ("torch", "timm", "transformer_lens", "numpy")
    return {
        "command": " ".join(["python", *map(relative, sys.orig_argv[1:])]),
        "seed": seed,
        "versions": {name: version(name) for name in packages},
        "machine": f"{platform.machine()} {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        **more,
    }


def relative(argument: str) -> str:
    """A command-line argument without absolute paths: from here if it lies below, else its last part."""
    head, separator, path = (
        argument.rpartition(":") if ":/" in argument else argument.rpartition("@") if "@/" in argument else ("", "", argument)
    )
    if not path.startswith("/"):
        return argument
    here = Path.cwd()
    return head + separator + str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else Path(path).name)


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
    """Write `model` (and its EMA) to `path`, atomically; `dtype` stores half-precision weights."""
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


def load(source: str | Path | nn.Module, weights: Weights = "ema") -> BViT:
    """A model in eval mode, float32, on the CPU, with ``model.origin`` saying where it comes from.

    `source`: a run folder, a ``ckpt.pt``, ``timm:NAME``, ``timm:NAME@FILE`` (state dict in timm's names),
    ``hf:REPO``, or a timm VisionTransformer. `weights`: ``ema`` (raw if there is none), ``raw``, or ``init``, the
    untrained control rebuilt from config and seed. Raises `InputError` for a file that is not a checkpoint.
    """
    if weights not in ("ema", "raw", "init"):
        raise InputError(f"weights is {weights!r}, not ema, raw or init")
    if isinstance(source, nn.Module) or str(source).startswith(("timm:", "hf:")):
        from models import timm_bridge

        return timm_bridge.load(source, weights)
    return load_file(_file(Path(source)), weights)


def _file(source: Path) -> Path:
    path = run_folder.checkpoint(source) if source.is_dir() else source
    if not path.exists():
        missing = f"{source} holds no ckpt.pt" if source.is_dir() else f"there is no file or folder {source}"
        raise InputError(f"{missing}; train one with python -m models.train, or name a run folder, a ckpt.pt, timm:NAME or hf:REPO")
    return path


def load_file(path: Path, weights: Weights = "ema", *, run: Path | None = None) -> BViT:
    """The model in one checkpoint file."""
    content = read(path)
    config = ViTConfig.from_dict(content["config"])
    seed = content["provenance"].get("seed", 0)
    if weights == "init":
        model = _untrained(config, seed, content["init_sha256"], path)
    else:
        model = fresh(config, seed)
        state = content["weights"] if weights == "raw" or content["ema"] is None else content["ema"]
        _fill(model, state, path)
        weights = "raw" if content["ema"] is None else weights
    if "masks" in content:
        masks.put_on(model, masks.unpacked(content["masks"], config))
    model.origin = Origin(
        str(path), weights, _file_sha256(path), run or path.parent, content["data"], content["metrics"], content["provenance"]
    )
    return model.eval()


def _fill(model: BViT, state: State, path: Path) -> None:
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit the config stored beside them ({brief(error, -1)})") from None


def _untrained(config: ViTConfig, seed: int, expected: str, path: Path) -> BViT:
    model = fresh(config, seed)
    if state_sha256(model.state_dict()) != expected:
        raise InputError(
            f"{path}: its initialisation cannot be rebuilt with this version of torch ({torch.__version__}): the hash differs; "
            "use the versions in its provenance"
        )
    return model


def load_plain(path: Path) -> Any:
    """What a torch file holds, without executing anything in it; raises `InputError`."""
    with open(path, "rb") as file:
        is_torch_file = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError, zipfile.BadZipFile, struct.error) as error:
        raise InputError(f"{path} is not readable as a checkpoint, it may be truncated ({brief(error)})") from None
    except pickle.UnpicklingError:
        if not is_torch_file:
            raise InputError(f"{path} is not readable as a checkpoint: it is no file of torch's") from None
        raise InputError(
            f"{path} holds more than plain tensors (loading it could run code), it was not opened; export its state dict"
        ) from None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, checked. Nothing in the file is executed."""
    content = load_plain(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this toolkit; weights in timm's names are loaded with timm:NAME@{path}")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has checkpoint version {content.get('version')}, this toolkit reads version {VERSION}; update the toolkit"
        )
    missing = {"config", "weights", "ema", "data", "metrics", "init_sha256", "provenance"} - set(content)
    if missing:
        raise InputError(f"{path} is a checkpoint without {', '.join(sorted(missing))}; write it with models.checkpoint.save")
    return content


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(model: BViT) -> dict[str, Any]:
    """What a reader wants to know of a model first, as plain values."""
    config, origin = model.trained, getattr(model, "origin", None)
    stacked = ViTConfig.from_dict(config.to_dict() | {"n_blocks": config.n_steps})
    return {
        "steps": config.n_steps,
        "blocks": config.n_blocks,
        "width": config.d_model,
        "heads": config.n_heads,
        "tokens": config.n_tokens,
        "parameters": n_parameters(config),
        "parameters_stacked": n_parameters(stacked),
        "data": origin and origin.data,
        "metrics": origin.metrics if origin else {},
    }


def n_parameters(config: ViTConfig) -> int:
    """Parameters of a model of this config, without building its weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in BViT(config).parameters())
