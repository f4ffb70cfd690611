"""A model from whatever names one: a run folder, a checkpoint file, timm, the hub, or a module at hand.

This is the only place that knows all of them.
"""

from __future__ import annotations

from pathlib import Path

from etils import epy
from torch import nn

from models import run_folder
from models.checkpoint import Weights, fresh, load_file, state_sha256
from models.errors import InputError
from models.origin import Origin
from models.vit import BViT

with epy.lazy_imports():  # seconds each, and only some sources need them
    import huggingface_hub

    from models import timm_bridge


def load(source: str | Path | nn.Module, weights: Weights = "ema") -> BViT:
    """A model in eval mode, float32, on the CPU, with ``model.origin`` saying where it comes from.

    `source`: a run folder, a ``ckpt.pt``, ``timm:NAME``, ``timm:NAME@FILE`` (state dict in timm's names), ``hf:REPO``,
    or a timm VisionTransformer. `weights`: ``ema`` (raw if there is none), ``raw``, or ``init``, the untrained control
    rebuilt from config and seed. Raises `InputError` for a file that is not a checkpoint.
    """
    if weights not in ("ema", "raw", "init"):
        raise InputError(f"weights is {weights!r}, not ema, raw or init")
    if isinstance(source, nn.Module):
        return _of_timm(source, f"timm:{type(source).__name__}", weights)
    kind, _, rest = str(source).partition(":")
    if kind == "timm":
        name, _, file = rest.partition("@")
        return _of_timm(timm_bridge.create(name, Path(file) if file else None), str(source), weights)
    if kind == "hf":
        return load_file(hub_file(rest), weights, run=named_run(rest))
    return load_file(file_of(Path(source)), weights)


def _of_timm(module: nn.Module, source: str, weights: Weights) -> BViT:
    """A timm model as ours; ``init`` is the same shape untrained, from seed 0."""
    model = timm_bridge.from_timm(module)
    if weights == "init":
        model = fresh(model.config, 0)
    model.origin = Origin(
        source,
        "init" if weights == "init" else "raw",
        state_sha256(model.state_dict()),
        run=named_run(source.removeprefix("timm:").partition("@")[0]),
    )
    return model.eval()


def named_run(name: str) -> Path:
    """Where the results of a model that has no folder lie."""
    return Path("runs") / name.replace("/", "--")


def file_of(source: Path) -> Path:
    """The checkpoint file of a run folder, or the file itself."""
    path = run_folder.checkpoint(source) if source.is_dir() else source
    if not path.exists():
        missing = f"{source} holds no ckpt.pt" if source.is_dir() else f"there is no file or folder {source}"
        raise InputError(
            f"{missing}; train one with python -m models.train, or name a run folder, a ckpt.pt, timm:NAME or hf:REPO"
        )
    return path


def hub_file(repo: str) -> Path:
    """``ckpt.pt`` of a repository on the Hugging Face hub."""
    try:
        return Path(huggingface_hub.hf_hub_download(repo, "ckpt.pt"))
    except Exception as error:  # the hub's errors have no common class
        raise InputError(
            f"hf:{repo}: its ckpt.pt cannot be fetched ({type(error).__name__}); download it and name the file"
        ) from None
