"""The files that a probe leaves: which may be written over, and how results and figures are written."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from etils import epy

from models.errors import InputError, require

with epy.lazy_imports():
    import xarray as xr

    import models
    from analyses import draw, results
    from models import run_folder


def refuse_unwritable(out: Path, figure: Path | None) -> None:
    """What would fail after the measurement fails before it."""
    run_folder.refuse_unwritable(out.parent)
    if figure is not None:
        run_folder.refuse_unwritable(figure.parent, "--figure")
    require(
        (out.name != "-", "--out is -, but a result is no text for a pipe; name a file"),
        (not out.is_dir(), f"--out is {out}, a folder; name a file, such as {out / 'result.nc'}"),
        (is_result(out), f"--out is {out}, which is no result of a probe; name another file"),
    )


def refuse_other_result(model: models.BViT, out: Path) -> None:
    """What was measured on other weights, at another image size or, outside of run folders, on another model is not
    written over unasked.
    """
    try:
        attrs = results.read(out).attrs
    except ValueError:
        return  # nothing that anybody could read
    measured, weights = str(attrs.get("source", "")), attrs.get("weights", model.origin.weights)
    sizes = {re.search(r"( at \d+ px)?$", source)[0] for source in (model.origin.source, measured)}
    is_other = attrs.get("checkpoint_sha256") != model.origin.sha256 and measured.startswith(("timm:", "hf:"))
    if weights != model.origin.weights or len(sizes) > 1 or is_other:
        raise InputError(
            f"{out} holds what was measured on {measured} ({weights} weights), which this would replace; name another "
            "file with --out, or move it away"
        )


def is_result(out: Path) -> bool:
    """Whether a file may be written over: it is not there, empty, or HDF5, and not where a checkpoint belongs."""
    if out.suffix == ".pt":
        return False
    if not out.is_file():
        return not out.exists()
    with open(out, "rb") as file:
        return file.read(8) in (b"", b"\x89HDF\r\n\x1a\n")


def refuse_undrawable(figure: Path | None) -> None:
    """A --figure of a kind that cannot be drawn is an `InputError`."""
    try:
        if figure is not None:
            draw.check(figure)
    except ValueError as error:
        raise InputError(f"--figure: {error}") from None


def save_figure(result: xr.Dataset, analysis: Any, figure: Path | None) -> None:
    """The analysis' figure of a result, where one is asked for."""
    if figure is None:
        return
    try:
        content = draw.drawn(result, analysis, figure.suffix, figure.stem)
    except ValueError as error:
        raise InputError(f"--figure: {error}") from None
    with run_folder.atomic(figure) as temporary:
        temporary.write_bytes(content)
    print(f"wrote {figure}", file=sys.stderr)


def save(result: xr.Dataset, path: Path) -> None:
    """Write a result as NetCDF-4, compressed and atomically.

    It is made in memory first: HDF5 may crash the interpreter when the disk is full.
    """
    encoding = {name: {"zlib": True} for name in result.data_vars if result[name].ndim}
    content = result.to_netcdf(engine="h5netcdf", encoding=encoding)
    with run_folder.atomic(path) as temporary:
        temporary.write_bytes(content)
    print(f"wrote {path}", file=sys.stderr)
