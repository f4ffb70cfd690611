"""What lies in the folders of runs: results, held against the checkpoint beside them, and the log of training."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st
import xarray as xr
from etils import epy

import analyses.results
from analyses import looks, style
from app import page, words
from app.contents import CHECKPOINT, RESULTS, Result
from app.text import text
from models.errors import InputError

with epy.lazy_imports():
    from models import checkpoint, config

SHOWN = "shown"  # in the session: the file of the page's result, and by what it was known when the page was drawn
UNTRAINED = "These are numbers of the **untrained** model: the result was measured with its weights at initialisation."


def folders() -> argparse.Namespace:
    """What ``streamlit run app/main.py -- --runs DIR --data-root DIR`` names."""
    parser = argparse.ArgumentParser(prog="streamlit run app/main.py --")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the runs")
    parser.add_argument("--data-root", type=Path, help="the only folder from which data are opened")
    return parser.parse_known_args()[0]


def root() -> Path:
    """The folder that holds the runs."""
    return folders().runs


def stamp(path: Path) -> tuple[int, ...]:
    """What differs once a file was written anew, by which caches know it."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def runs() -> list[str]:
    """Folders that hold a checkpoint or a result."""
    return [name for name in every_run() if config.is_text(name)]


def unnamed() -> list[str]:
    """Runs that no page and no link can name: bytes in the folder's name are no text."""
    return [name for name in every_run() if not config.is_text(name)]


def every_run() -> list[str]:
    return sorted(folder.name for folder in inside() if CHECKPOINT.is_here(folder) or any(folder.glob("*.nc")))


def inside() -> list[Path]:
    return [folder for folder in root().glob("*") if os.path.isdir(folder)]


def closed() -> list[str]:
    """Folders beside the runs that this server may not look into."""
    return sorted(folder.name for folder in inside() if is_closed(folder))


def is_closed(folder: Path) -> bool:
    return os.path.exists(folder) and not (os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK))


def chosen() -> Path:
    """The run chosen in the sidebar; a browser may say anything."""
    name = st.session_state["run"]
    if name not in runs():
        raise InputError(f"{root()} holds no run {name}; choose one in the sidebar")
    return root() / name


def others(run: Path) -> list[Path]:
    """Results that no page of their own shows."""
    known = {result.file for result in RESULTS}
    return sorted(path for path in run.glob("*.nc") if path.name not in known and config.is_text(path.name))


# Results


def read(path: Path) -> xr.Dataset:
    """A result, which nobody may change; `InputError` where the file is none."""
    result = _read(str(path), stamp(path))
    if isinstance(result, str):
        raise InputError(result)
    return result


@st.cache_resource(max_entries=16, show_spinner="reading the result")
def _read(path: str, changed: tuple[int, ...]) -> xr.Dataset | str:
    """A result, or what is wrong with it, which is remembered too: finding it out may take seconds."""
    try:
        result = analyses.results.read(path)
        names = result.attrs.get("classes")
        return result.assign_attrs(classes=words.of_all(names)) if isinstance(names, list) else result
    except ValueError as error:
        return str(error)


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
    """The chosen run's result, and whose it is; where there is none the page ends with a message and the command."""
    run = chosen()
    path = run / kind.file
    st.session_state[SHOWN] = (path, stamp(path)) if kind.is_here(run) else None
    result = of(run, kind)
    if result is None:
        st.info(missing)
        st.code(kind.made_by(run), language=None)
        st.stop()
    introduce(result, run, kind)
    st.session_state[page.WHOSE] = "; ".join(filter(None, (style.caption(result), mismatch(result, run, kind))))
    return result


def drawn(kind: Result, draw: Callable[..., Any], *choices: Any, **more: Any) -> Any:
    """What `draw`, a function of a module, makes of the chosen run's result of this kind: once for all visitors, who do
    not change it. A part of a page that is drawn by itself draws all of it anew where the file was exchanged since.
    """
    path = chosen() / kind.file
    changed, (shown, before) = stamp(path), st.session_state.get(SHOWN) or (None, None)
    if shown == path and before != changed:
        st.rerun()
    return _drawn(str(path), changed, draw, *choices, **more)


@st.cache_resource(max_entries=512, show_spinner=False, hash_funcs=page.BY_NAME)
def _drawn(path: str, changed: tuple[int, ...], draw: Callable[..., Any], *choices: Any, **more: Any) -> Any:
    made = draw(read(Path(path)), *choices, **more)
    return made.interactive() if isinstance(made, looks.Curves | looks.Map) else made


def without_pixels(result: xr.Dataset, what: str) -> str:
    """Where the images of a result are that was made without their pixels."""
    attrs = result.attrs
    return f"This result was made without pixels; {what} those of {text(attrs['data'])}, split {text(attrs['split'])}."


# Which model a result is of


def introduce(result: xr.Dataset, run: Path, kind: Result | None = None) -> None:
    """Says which model a result is of; aloud where it is not the run's checkpoint, or not its trained weights."""
    st.caption(text(style.caption(result)))
    is_of_checkpoint = kind is None or kind.identity == CHECKPOINT.identity  # pruning starts from the initialisation
    if is_of_checkpoint and result.attrs.get("weights") == "init":
        st.warning(UNTRAINED)
    warning = another_model(result, run, kind)
    if warning:
        st.warning(warning)
        st.code(kind.made_by(run) if kind else result.attrs.get("command", ""), language=None)


def another_model(result: xr.Dataset, run: Path, kind: Result | None = None) -> str:
    """A warning where a result is of another model than the run's checkpoint; empty where not, or nobody knows."""
    said = mismatch(result, run, kind)
    return said and f"**This result is of another model** than {text(run / CHECKPOINT.file)}: {text(said)}. To measure:"


def mismatch(result: xr.Dataset, run: Path, kind: Result | None = None) -> str:
    """The same in plain words, with both hashes."""
    identity = kind.identity if kind else CHECKPOINT.identity
    here = sha256(run) if identity == CHECKPOINT.identity else init_sha256(run)
    return analyses.results.other_model(result, here, identity)


def speaks_for(result: xr.Dataset, run: Path, weights: str) -> bool:
    """Whether a result may stand for these weights of the run's checkpoint, at its own image size: a model at another
    one has a hash of its own. What an old result does not say is taken to be so.
    """
    here, said = sha256(run), result.attrs
    return said.get("checkpoint_sha256", here) in ("", here) and said.get("weights", weights) in ("", weights)


def sha256(run: Path) -> str:
    """Hash of the run's checkpoint file, which results carry; empty where there is none."""
    path = run / CHECKPOINT.file
    return _sha256(str(path), stamp(path)) if path.is_file() else ""


@st.cache_data(max_entries=64, show_spinner=False)
def _sha256(path: str, changed: tuple[int, ...]) -> str:
    return analyses.results.sha256(Path(path))


def init_sha256(run: Path) -> str:
    """Hash of the initialisation that the run's checkpoint was trained from; empty where nothing says it."""
    path = run / CHECKPOINT.file
    try:
        return str(_init_sha256(str(path), stamp(path))) if path.is_file() else ""
    except InputError:
        return ""  # the pages that need the checkpoint say what is wrong with it


@st.cache_data(max_entries=64, show_spinner=False)
def _init_sha256(path: str, changed: tuple[int, ...]) -> str:
    return checkpoint.read(Path(path))["init_sha256"]


# The log


LONGEST_LOG = 2**26  # bytes, of which the last are read


def log(run: Path) -> list[dict]:
    """The records of train.jsonl, but for half a line at the end of one that is being written."""
    path, records = run / "train.jsonl", []
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_LOG))
        lines = file.read(LONGEST_LOG).decode(errors="replace").splitlines()
    for line in lines:
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [record for record in records if isinstance(record, dict)]
