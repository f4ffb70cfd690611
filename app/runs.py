"""Which runs the dashboard shows, what each of them holds, and the command that makes what is missing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from models import run_folder
from models.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

RESULTS = {"pointing_game": "Pointing game"}  # probe: its page


def folder() -> Path:
    """The folder after ``--runs`` on the command line: one that holds run folders, or a run itself."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    return parser.parse_known_args(sys.argv[1:])[0].runs


def found(root: Path) -> dict[str, Path]:
    """Every folder in `root` (or `root` itself) with a checkpoint or a result, by name."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; name the one that holds your runs with -- --runs DIR")
    if is_run(root):
        return {root.resolve().name: root}
    return {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and is_run(path)}


def is_run(path: Path) -> bool:
    return run_folder.checkpoint(path).exists() or any(run_folder.result(path, probe).exists() for probe in RESULTS)


def sidebar() -> None:
    """Choose the run; say what it holds, and how to make the rest."""
    runs = found(folder())
    if not runs:
        raise InputError(f"{folder()} holds no run yet; train one with python -m models.train --data shapes --model bvit_shapes --out runs/mine")
    with st.sidebar:
        name = st.selectbox("Run", list(runs), key="run", bind="query-params", help="A folder with a checkpoint and the results of probes.")
        run = runs[name]
        st.session_state["path"] = run
        has_model = run_folder.checkpoint(run).exists()
        st.caption(("✅ checkpoint" if has_model else "▫️ no checkpoint: `python -m models.train --data shapes --model bvit_shapes --out " + f"{run}`"))
        for probe, title in RESULTS.items():
            here = run_folder.result(run, probe).exists()
            st.caption(f"✅ {title.lower()}" if here else f"▫️ no {title.lower()} yet: `{command(probe, run)}`")


def chosen() -> Path:
    """The folder of the run that the sidebar shows."""
    return st.session_state["path"]


def command(probe: str, run: Path) -> str:
    """What to type to get a result."""
    return f"python -m probes.{probe} {run}"


def open_result(run: Path, probe: str) -> xr.Dataset | None:
    """A probe's result, read whole; None where it was not measured, `InputError` for a file that cannot be read."""
    path = run_folder.result(run, probe)
    return _read(path, probe, path.stat().st_mtime_ns) if path.exists() else None


@st.cache_resource(max_entries=8, show_spinner="Reading the result")
def _read(path: Path, probe: str, changed: int) -> xr.Dataset:
    import xarray as xr

    try:
        with xr.open_dataset(path, engine="h5netcdf") as result:
            return result.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:80]
        raise InputError(f"{path} cannot be read as a result ({reason}); make it again with {command(probe, path.parent)}") from None


def training_log(run: Path) -> list[dict[str, Any]]:
    """The lines of the training log; empty where there is none. A half-written last line is left out."""
    path = run_folder.log(run)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record for record in map(_record, lines) if record]


def _record(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}
