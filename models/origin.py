"""Where a model comes from, and by what a result was made: all that provenance says, without an absolute path."""

import hashlib
import platform
import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
PACKAGES = ("torch", "timm", "transformer_lens", "numpy")


@dataclass(frozen=True)
class Origin:
    """Where a loaded model comes from: what a result's attributes say of it."""

    source: str = "in memory"
    weights: str = "raw"
    sha256: str = ""  # of the checkpoint file; of names and values where there is no file
    run: Path | None = None  # the folder that holds its results
    data: str | None = None  # the spec it was trained on
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def state_sha256(state: State) -> str:
    """Hash of names and float32 values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def provenance(seed: int, **more: Any) -> dict[str, Any]:
    """Command, seed, versions and machine, as plain values."""
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "command": " ".join(["python", *map(relative, sys.orig_argv[1:])]),
        "seed": seed,
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()} {torch.get_num_threads()} threads{device}",
        **more,
    }


def relative(argument: str) -> str:
    """A command-line argument without absolute paths: from here if it lies below, else its last part."""
    return re.sub(r"(?:^|(?<=[:@=]))/[^:@?]*", lambda match: _from_here(Path(match[0])), argument)


def _from_here(place: Path) -> str:
    here = Path.cwd()
    return str(place.relative_to(here) if place.is_relative_to(here) else place.name)
