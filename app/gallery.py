"""The moments of a run that are worth a look, with their pictures: what the story's front door shows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import streamlit as st

from analyses import moments
from app import live, results
from app.contents import ATTRIBUTION, LENS, POINTING_GAME, RECURRENCE, Result
from models.errors import InputError

LOG = logging.getLogger(__name__)
SOURCES = (RECURRENCE, LENS, ATTRIBUTION, POINTING_GAME)


def of(run: Path, model: live.Model) -> list[dict[str, Any]]:
    """Index, title, step, head and picture of each; none where the run's images or results are elsewhere."""
    try:
        images = model.images()
    except InputError:
        return []
    there = [kind for kind in SOURCES if kind.is_here(run) and is_of(run, kind, model, images)]
    stamps = tuple((kind.file, *results.stamp(run / kind.file)) for kind in there)
    try:
        return _of(str(run), stamps, model, tuple(there))
    except Exception:  # results may be anybody's; the story goes on without them
        LOG.exception("no moments could be found in the results")
        return []


def is_of(run: Path, kind: Result, model: live.Model, images: Any) -> bool:
    """Whether a result can be read, and is of this very model and of these images."""
    try:
        result = results.of(run, kind)
    except InputError:
        return False
    return results.speaks_for(result, run, model.origin.weights) and live.is_of_data(images, result.attrs)


@st.cache_data(max_entries=8, show_spinner=False, hash_funcs=live.BY_WEIGHTS | {Result: lambda kind: kind.file})
def _of(run: str, stamps: tuple, model: live.Model, kinds: tuple[Result, ...]) -> list[dict[str, Any]]:
    images = model.images()
    found = moments.worth_a_look({Path(kind.file).stem: results.of(Path(run), kind) for kind in kinds})
    config = model.config
    return [
        {
            "index": moment.index,
            "title": moment.title,
            "step": moment.step,
            "head": moment.head,
            "picture": live.data_uri(live.pixels(config, images[moment.index][0].numpy())),
        }
        for moment in found
        if 0 <= moment.index < len(images)
    ]
