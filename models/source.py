"""A model from whatever names one: a run folder, a checkpoint file, timm, the hub, or a module at hand.

This is the only place that knows all of them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from etils import epy
from torch import nn

from models import hub, masks, run_folder
from models.checkpoint import Weights, filled, fresh, load_file, state_sha256
from models.config import ViTConfig, presets
from models.errors import InputError
from models.origin import Origin
from models.vit import BViT

with epy.lazy_imports():  # seconds each, and only some sources need them
    import timm

    from models import timm_bridge


def load(source: str | Path | nn.Module, weights: Weights = "ema", image_size: int | None = None) -> BViT:
    """A model in eval mode, float32, on the CPU, with ``model.origin`` saying where it comes from.

    `source`: a run folder, a ``ckpt.pt``, ``timm:NAME``, ``timm:NAME@FILE`` (weights as people have them, see
    `models.foreign`), ``hf:REPO``, a timm ViT, or a preset's name (untrained). `weights`: ``ema`` (raw if there is
    none), ``raw``, or ``init``, the untrained control rebuilt from config and seed. `image_size`: another size in
    pixels, a multiple of the patch size; the position embedding is resampled to it. Raises `InputError` for a file
    that is not a checkpoint.
    """
    if weights not in ("ema", "raw", "init"):
        raise InputError(f"weights is {weights!r}, not ema, raw or init")
    model = _loaded(source, weights)
    return model if image_size in (None, model.config.image_size) else at_image_size(model, image_size)


def _loaded(source: str | Path | nn.Module, weights: Weights) -> BViT:
    if isinstance(source, nn.Module):
        return _of_timm(source, f"timm:{type(source).__name__}", "init" if weights == "init" else "raw")
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"load takes a run folder, a ckpt.pt, timm:NAME, timm:NAME@FILE, hf:REPO or a module, not a "
            f"{type(source).__name__}; save a state dict with torch.save and name its model: timm:NAME@FILE"
        )
    kind, _, rest = str(source).partition(":")
    if kind == "timm":
        name, at, file = rest.partition("@")
        if at and not file:
            raise InputError(f"{source} names no file after the @; write timm:{name}@FILE, or timm:{name} without")
        vit, kind_of_weights = timm_bridge.create(name, Path(os.path.expanduser(file)) if file else None, weights)
        return _of_timm(vit, str(source), "init" if weights == "init" else kind_of_weights)
    if kind == "hf":
        return _of_hub(rest, weights)
    if str(source) in presets() and not os.path.exists(source):
        return _of_preset(str(source))
    place = Path(os.path.expanduser(source))
    if os.path.isfile(place / hub.WEIGHTS) and not run_folder.checkpoint(place).exists():
        return _of_hub(str(place), weights)
    return load_file(file_of(place), weights)


def _of_hub(repo: str, weights: Weights) -> BViT:
    """A model of the hub, or of a folder laid out as one: its ``ckpt.pt`` where it has one, which holds the raw weights
    and rebuilds the untrained ones, else its safetensors.
    """
    run = Path(repo) if Path(repo).is_dir() else named_run(repo)
    try:
        path = hub.fetched(repo, "ckpt.pt", {})
    except InputError:
        model = BViT.from_pretrained(repo)
        if weights == "init" or (weights == "raw" and model.origin.weights != "raw"):
            raise InputError(
                f"hf:{repo} holds the {model.origin.weights} weights alone; {weights} needs its ckpt.pt"
            ) from None
        return model
    return load_file(path, weights, run=run)


def _of_preset(name: str) -> BViT:
    """An untrained model of a named size, from seed 0: for what depends on the shape alone, such as its cost."""
    model = fresh(ViTConfig.preset(name), 0).eval()
    model.origin = Origin(name, "init", state_sha256(model.state_dict()), run=named_run(name))
    return model


def _of_timm(module: nn.Module, source: str, weights: Weights) -> BViT:
    """A timm model as ours; ``init`` is the same shape untrained, from seed 0."""
    model = timm_bridge.from_timm(module)
    if weights == "init":
        model = fresh(model.config, 0)
    model.origin = Origin(
        source,
        weights,
        state_sha256(model.state_dict()),
        run=named_run(source.removeprefix("timm:").partition("@")[0]),
    )
    return model.eval()


def at_image_size(model: BViT, image_size: int) -> BViT:
    """The same weights (shared, not copied) for images of another size: the position embedding is resampled as timm
    does, bicubic and antialiased.
    """
    config = replace(model.config, image_size=image_size)
    state, side = model.state_dict(), image_size // config.patch_size
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(
        state["pos_embed"].float(), (side, side), num_prefix_tokens=config.n_prefix
    )
    other = masks.handed_on(model, filled(config, state, Path(model.origin.source)))
    source = f"{model.origin.source} at {image_size} px"
    other.origin = replace(model.origin, source=source, sha256=state_sha256(other.state_dict()))
    return other.train(model.training)


def named_run(name: str) -> Path:
    """Where the results of a model that has no folder lie."""
    return Path("runs") / name.replace("/", "--")


def file_of(source: Path) -> Path:
    """The checkpoint file of a run folder, or the file itself."""
    is_folder = os.path.isdir(source)
    path = run_folder.checkpoint(source) if is_folder else source
    if not os.path.exists(path):
        missing = f"{source} holds no ckpt.pt" if is_folder else f"there is no file or folder {source}"
        raise InputError(
            f"{missing}; train one with python -m models.train, or name a run folder, a ckpt.pt, timm:NAME or hf:REPO"
        )
    return path
