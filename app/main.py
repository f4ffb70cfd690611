"""The dashboard, served: ``streamlit run app/main.py -- --runs DIR`` (default runs/).

Streamlit imports this file once, when it starts; `navigation` runs for every visitor.
"""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

from streamlit.starlette import App

from app import door

IMPORT_LAZILY = [
    "app.live",
    "app.results",
    "app.words",
    "analyses.hdf5",
    "analyses.study",
    "analyses.trajectories",
    "models.data.parquet",
    "models.source",
    "probes.methods.one_image",
]
LARGE = ["app.image", "analyses.features", "analyses.steps", "plotly.graph_objs", "plotly.validators"]


@asynccontextmanager
async def prepared(_: App) -> AsyncIterator[None]:
    """Import, before the first visitor, what sets up lazy imports: while it does, Python's import is replaced in all
    threads. What is imported is never garbage, and the collector would take half a second to look through it each time.
    """
    for name in IMPORT_LAZILY + LARGE:
        import_module(name)
    gc.collect()
    gc.freeze()
    yield


door.say_who_may_look()
script = Path(__file__).with_name("navigation.py")
dashboard = App(script, lifespan=prepared, middleware=[door.MIDDLEWARE], routes=door.ROUTES)
