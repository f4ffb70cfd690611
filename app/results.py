"""What lies in the folders of runs: results, held against the checkpoint beside them, and the log of training."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import streamlit as st
import xarray as xr
from etils import epy

import analyses.results
from analyses import style
from app.contents import CHECKPOINT, RESULTS, Result
from models.errors import InputError

with epy.lazy_imports():
    from models import checkpoint

UNTRAINED = "These are numbers of the **untrained** model: the result was measured with its weights at initialisation."


def root() -> Path:
    """The folder named by ``streamlit run app/main.py -- --runs DIR``."""
    parser = argparse.ArgumentParser(prog="streamlit run app/main.py --")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the runs")
    return parser.parse_known_args()[0].runs


def runs() -> list[str]:
    """Folders that hold a checkpoint or a result."""
    folders = [folder for folder in root().glob("*") if folder.is_dir()]
    return sorted(folder.name for folder in folders if CHECKPOINT.is_here(folder) or any(folder.glob("*.nc")))


def chosen() -> Path:
    """The run chosen in the sidebar."""
    return root() / st.session_state["run"]


def others(run: Path) -> list[Path]:
    """Results that no page of their own shows."""
    return sorted(path for path in run.glob("*.nc") if path.name not in {result.file for result in RESULTS})


# Results


def read(path: Path) -> xr.Dataset:
    """A result, which nobody may change; `InputError` where the file is none."""
    return _read(str(path), path.stat().st_mtime_ns)


@st.cache_resource(max_entries=16, show_spinner="reading the result")
def _read(path: str, changed: int) -> xr.Dataset:
    try:
        return analyses.results.read(path)
    except ValueError as error:
        raise InputError(str(error)) from None


def of(run: Path, kind: Result) -> xr.Dataset | None:
    """A run's result of this kind, None where there is none; `InputError` for a file that is not what it should be."""
    if not kind.is_here(run):
        return None
    try:
        result = read(run / kind.file)
    except InputError as error:
        raise InputError(f"{error} with: {kind.made_by(run)}") from None
    if kind.holds not in result:
        raise InputError(f"{run / kind.file} has no variable {kind.holds}; make it anew with: {kind.made_by(run)}")
    return result


def required(kind: Result, missing: str) -> xr.Dataset:
    """The chosen run's result, and whose it is; where there is none the page ends with a word and the command."""
    run = chosen()
    result = of(run, kind)
    if result is None:
        st.info(missing)
        st.code(kind.made_by(run), language="bash")
        st.stop()
    introduce(result, run, kind)
    return result


def without_pixels(result: xr.Dataset, what: str) -> str:
    """Where the images of a result are that was made without their pixels."""
    said = result.attrs
    return f"This result was made without pixels; {what} those of `{said['data']}`, split {said['split']}."


# Which model a result is of


def introduce(result: xr.Dataset, run: Path, kind: Result | None = None) -> None:
    """Says which model a result is of; aloud where it is not the run's checkpoint, or not its trained weights."""
    st.caption(style.caption(result))
    is_of_checkpoint = kind is None or kind.identity == CHECKPOINT.identity  # pruning starts from the initialisation
    if is_of_checkpoint and result.attrs.get("weights") == "init":
        st.warning(UNTRAINED)
    warning = another_model(result, run, kind)
    if warning:
        st.warning(warning)
        st.code(kind.made_by(run) if kind else result.attrs.get("command", ""), language="bash")


def another_model(result: xr.Dataset, run: Path, kind: Result | None = None) -> str:
    """A warning where a result is of another model than the run's checkpoint; empty where not, or nobody knows."""
    identity = kind.identity if kind else CHECKPOINT.identity
    what, hash_of = ("checkpoint", sha256) if identity == CHECKPOINT.identity else ("initialisation", init_sha256)
    measured, here = result.attrs.get(identity, ""), hash_of(run)
    is_resampled = str(result.attrs.get("source", "")).endswith(" px")  # to another image size, under a hash of its own
    if not (measured and here) or measured == here or is_resampled:
        return ""
    return (
        f"**This result is of another model**: it was measured on the {what} {measured[:8]}, the one of "
        f"{run / CHECKPOINT.file} is {here[:8]}. This measures anew:"
    )


def sha256(run: Path) -> str:
    """Hash of the run's checkpoint file, which results carry; empty where there is none."""
    path = run / CHECKPOINT.file
    return _sha256(str(path), path.stat().st_mtime_ns) if path.exists() else ""


@st.cache_data(max_entries=64, show_spinner=False)
def _sha256(path: str, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def init_sha256(run: Path) -> str:
    """Hash of the initialisation that the run's checkpoint was trained from; empty where nothing says it."""
    path = run / CHECKPOINT.file
    try:
        return _init_sha256(str(path), path.stat().st_mtime_ns) if path.exists() else ""
    except InputError:
        return ""  # the pages that need the checkpoint say what is wrong with it


@st.cache_data(max_entries=64, show_spinner=False)
def _init_sha256(path: str, changed: int) -> str:
    return checkpoint.read(Path(path))["init_sha256"]


# The log


def log(run: Path) -> list[dict]:
    """The records of train.jsonl, but for half a line at the end of one that is being written."""
    path, records = run / "train.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]
