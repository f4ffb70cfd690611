"""Reads results, those of earlier versions as well: they get today's names of dimensions and variables.

It says too which model a result is of, by the hash of the checkpoint that it carries.
"""

import hashlib
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analyses import hdf5, style

TEXTS = ("source", "weights", "config", "data", "split", "checkpoint_sha256", "init_sha256", "data_fingerprint")
LONGEST = dict.fromkeys(("step", "other_step", "state", "other_state", "head", "round", "weight"), 2000)


def read(path: str | Path) -> xr.Dataset:
    """A result in memory, its file closed. Raises ValueError, in one sentence, where there is none that can be read.

    The file may be anybody's: `analyses.hdf5` has read the same bytes before, in a process of its own.
    """
    path = Path(path)
    content = hdf5.bytes_of(path)
    try:
        hdf5.check(content)
        result = updated(hdf5.read(content))
        refuse_long(result)
        refuse_strange(result.attrs)
    except Exception as error:  # a damaged file raises anything
        reason = error if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{path} is not a readable result ({reason}); make it anew") from None
    return result


def refuse_strange(attributes: Mapping[str, Any]) -> None:
    """Raises ValueError for what a result says of itself in another kind than every reader expects."""
    for name in TEXTS:
        if not isinstance(attributes.get(name, ""), str):
            raise ValueError(f"its {name} is no text")
    if not isinstance(attributes.get("n_images", 0), int | np.integer):
        raise ValueError("its n_images is no number")


def refuse_long(result: xr.Dataset) -> None:
    """Raises ValueError for more of what every page draws than there can be."""
    for dim, most in LONGEST.items():
        if result.sizes.get(dim, 0) > most:
            raise ValueError(f"it claims {result.sizes[dim]} along {dim}")


def updated(result: xr.Dataset) -> xr.Dataset:
    """A result under today's names; one that has them already as it is."""
    names = {"tolerance": "radius"} if "hit_ratio" in result else {}
    names |= {"method": "recipe"} if "picture" in result else {"method": "cut"} if "svd_accuracy" in result else {}
    result = result.rename({old: new for old, new in names.items() if old in result.dims})
    if "tolerance_pixels" in result.attrs:
        result.attrs["radius_pixels"] = result.attrs.pop("tolerance_pixels")
    if isinstance(result.attrs.get("classes"), str):  # NetCDF makes a word of a list of one
        result.attrs["classes"] = [result.attrs["classes"]]
    together = f"{style.PREFIX}companions"
    if together in result:
        values = result[together]
        apart = {f"{style.PREFIX}{name}": values.sel(companion=name, drop=True) for name in values.companion.values}
        result = result.drop_vars(together).assign(apart)
    return result


# Which model a result is of

IDENTITIES = {"checkpoint_sha256": "checkpoint", "init_sha256": "initialisation"}  # attributes that say it


def sha256(path: Path) -> str:
    """Hash of a checkpoint file, which results carry."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def init_sha256(path: Path) -> str:
    """Hash of the initialisation that a checkpoint file says it was trained from, which prunings carry; "" where it
    says none that can be found. Its pickle is read word by word, never run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > hdf5.SMALL:
                return ""
            words = [word for _, word, _ in pickletools.genops(archive.read(name)) if isinstance(word, str)]
        digest = words[words.index("init_sha256") + 1]
    except Exception:  # a damaged file raises anything
        return ""
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else ""


def other_model(result: xr.Dataset, here: str, identity: str = "checkpoint_sha256") -> str:
    """Says that a result is of another model than the one whose hash is `here`; empty where not, or nobody knows.

    A model resampled to another image size has a hash of its own, and a source that says so.
    """
    measured, is_resampled = str(result.attrs.get(identity, "")), str(result.attrs.get("source", "")).endswith(" px")
    if not (measured and here) or measured == here or is_resampled:
        return ""
    return f"it was measured on the {IDENTITIES[identity]} {measured[:8]}, the one here is {here[:8]}"


def of_checkpoint(path: Path) -> xr.Dataset:
    """A result that stands for the run it lies in. Raises ValueError where it is of another model than ``ckpt.pt``."""
    result, checkpoint = read(path), path.with_name("ckpt.pt")
    mismatch = other_model(result, sha256(checkpoint) if checkpoint.is_file() else "")
    if mismatch:
        raise ValueError(f"{path} is of another model ({mismatch}); measure it anew")
    return result
