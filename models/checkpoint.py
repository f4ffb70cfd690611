"""Save, load and describe a model. Loading never unpickles code.

A checkpoint is one dict that ``torch.load(weights_only=True)`` reads: format and version, config,
weights, EMA weights, data spec, metrics, the hash of the initialisation, provenance, and hashes of what
it holds; a pruned model's also the masks of its steps. It is enough for every probe, wherever it is copied.

A file is checked before any weight is read: the archive's checksums, the types of its entries, the fields of
its config, the shapes that this config asks for; then the weights against their hash.
"""

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import torch
from beartype.door import is_bearable
from torch import Tensor

from models import masks, run_folder
from models.config import ViTConfig, is_text
from models.errors import InputError, brief
from models.origin import Origin, State, state_sha256
from models.vit import BViT

FORMAT, VERSION = "bvit-toolkit", 1
Weights = Literal["ema", "raw", "init"]


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
        "weights": _copied(model.state_dict(), dtype),
        "ema": None if ema is None else _copied(ema, dtype),
        "data": data,
        "metrics": metrics or {},
        "init_sha256": init_sha256,
        "provenance": provenance or {},
    }
    own_masks = masks.taken_from(model)
    if own_masks is not None:
        content["masks"] = masks.packed(own_masks)
    content["sha256"] = {part: state_sha256(state) for part, state in _states(content).items()}
    run_folder.write_tensors(path, content)


def _states(content: dict[str, Any]) -> dict[str, State]:
    """The tensors of a checkpoint, by the part that holds them."""
    parts = {part: content[part] for part in ("weights", "ema") if content[part] is not None}
    return parts | ({"masks": {"masks": content["masks"]}} if "masks" in content else {})


def _copied(state: State, dtype: torch.dtype | None) -> State:
    """A copy on the CPU, in another dtype if one is given."""
    return {name: value.detach().to("cpu", dtype or value.dtype).clone() for name, value in state.items()}


def load_file(path: Path, weights: Weights = "ema", *, run: Path | None = None) -> BViT:
    """The model in one checkpoint file, in eval mode; its results lie in `run`, by default the file's folder."""
    content = read(path)
    config = ViTConfig.from_dict(content["config"])
    _refuse_other_blocks(config, content["weights"], path)
    state, kind = _state_of(content, weights)
    model = filled(config, state, path)
    _refuse_changed(content, path)
    if weights == "init":
        kind = "init"
        model = _untrained(config, content["provenance"].get("seed", 0), content["init_sha256"], path)
    if "masks" in content:
        masks.put_on(model, masks.unpacked(content["masks"], config, path=path))
    model.origin = Origin(
        str(path),
        kind,
        _file_sha256(path),
        run=run or path.parent,
        data=content["data"],
        metrics=content["metrics"],
        provenance=content["provenance"],
    )
    return model.eval()


def _state_of(content: dict[str, Any], weights: Weights) -> tuple[State, Weights]:
    """The weights asked for, and which they are: ``raw`` where there is no EMA."""
    if weights == "raw" or content["ema"] is None:
        return content["weights"], "raw"
    return content["ema"], "ema"


def _refuse_changed(content: dict[str, Any], path: Path) -> None:
    """`InputError` where a file does not hold what was saved; files of earlier versions have no hashes to tell."""
    if "sha256" not in content:
        return
    for part, state in _states(content).items():
        if content["sha256"].get(part) != state_sha256(state):
            raise InputError(
                f"{path} is damaged: its {part} are not those that were saved; fetch or make the file anew"
            )


def _refuse_other_blocks(config: ViTConfig, state: State, path: Path) -> None:
    """`InputError` where the config has another number of blocks than are stored: it is not even built."""
    matches = map(re.compile(r"core\.(\d+)\.").match, state)
    blocks = {match[1] for match in matches if match}
    if len(blocks) != config.n_blocks:
        raise InputError(
            f"{path}: the weights do not fit the config stored beside them ({len(blocks)} blocks, n_blocks is "
            f"{config.n_blocks})"
        )


def filled(config: ViTConfig, state: State, path: Path) -> BViT:
    """A model with the given weights, see `models.hub.Shareable.filled`."""
    return BViT.filled(config, state, path)


def _untrained(config: ViTConfig, seed: int, expected: str, path: Path) -> BViT:
    model = fresh(config, seed)
    if state_sha256(model.state_dict()) != expected:
        raise InputError(
            f"{path}: its initialisation cannot be rebuilt with this version of torch ({torch.__version__}): the hash "
            "differs; use the versions in its provenance"
        )
    return model


# What torch's readers raise on a damaged file, beside pickle's own refusal of code
DAMAGED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, struct.error),
    *(AssertionError, OverflowError, MemoryError),
)


def load_plain(path: Path, *, mapped: bool = False) -> Any:
    """What a torch file holds, without executing anything in it; `mapped` reads a tensor only when it is used.

    Raises `InputError`, also for a file that was damaged.
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
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and start == b"PK")
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
    """Compare every part of a torch archive with the checksum that is stored beside it. Torch packs nothing: an archive
    that would grow is none of its making.
    """
    damaged = None
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            grows = sum(part.file_size for part in parts) > path.stat().st_size
            if not grows and all(part.compress_type == zipfile.ZIP_STORED for part in parts):
                damaged = archive.testzip()
            else:
                raise InputError(f"{path} is packed, which torch's files are not; it was not opened")
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, *DAMAGED) as error:
        raise InputError(f"{path} is not readable as a checkpoint, it may be truncated ({brief(error)})") from None
    if damaged:
        raise InputError(f"{path} is damaged: the checksum of {damaged} differs; fetch or make the file anew")


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, checked. Nothing in the file is executed."""
    content = load_plain(path, mapped=True)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of this toolkit; weights in timm's names are loaded with timm:NAME@{path}"
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has checkpoint version {content.get('version')}, this toolkit reads version {VERSION}; update "
            "the toolkit"
        )
    missing = KINDS.keys() - content.keys() - {"masks", "sha256"}
    if missing:
        raise InputError(
            f"{path} is a checkpoint without {', '.join(sorted(missing))}; write it with models.checkpoint.save"
        )
    wrong = [name for name, kind in KINDS.items() if name in content and not is_a(content[name], kind)]
    if not wrong and not is_text(content["data"] or ""):
        wrong = ["data"]
    if wrong or not is_seed(content["provenance"].get("seed", 0)):
        raise InputError(f"{path} is damaged: its {(wrong or ['seed'])[0]} is not what a checkpoint holds")
    _refuse_other_tensors(path, content)
    return content


KINDS = {  # what a checkpoint holds beside format and version; not all have masks and hashes
    "config": dict,
    "weights": dict,
    "ema": dict | None,
    "data": str | None,
    "metrics": dict,
    "init_sha256": str,
    "provenance": dict,
    "masks": Tensor,
    "sha256": dict,
}


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; a dict has words for keys."""
    return is_bearable(value, kind) and (not isinstance(value, dict) or all(isinstance(key, str) for key in value))


def is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _refuse_other_tensors(path: Path, content: dict[str, Any]) -> None:
    """Weights are plain tensors that lie in the file as a whole."""
    size = path.stat().st_size
    for part, state in _states(content).items():
        for name, value in state.items():
            if not (isinstance(value, Tensor) and _is_plain(value, part)):
                raise InputError(f"{path} is damaged: {name} among its {part} is no plain tensor of numbers")
        if sum(value.numel() * value.element_size() for value in state.values()) > size:
            raise InputError(f"{path} is damaged: its {part} are larger than the file")


def _is_plain(value: Tensor, part: str) -> bool:
    kind = value.dtype == torch.uint8 if part == "masks" else value.is_floating_point()
    return kind and is_at_hand(value)


def is_at_hand(value: Tensor) -> bool:
    """Whether the numbers of a tensor lie in memory as they are: not packed, nor left out."""
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


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
