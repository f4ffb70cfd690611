"""The dashboard, served: ``streamlit run app/main.py -- --runs DIR`` (default runs/).

Streamlit imports this file once, when it starts; `navigation` runs for every visitor.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

from streamlit.starlette import App

from app import door

IMPORT_LAZILY = [
    *("app.live", "app.results", "app.words", "analyses.study", "analyses.trajectories"),
    *("models.data.parquet", "models.source", "probes.methods.one_image"),
]


@asynccontextmanager
async def prepared(_: App) -> AsyncIterator[None]:
    """Before anybody comes: while a file sets up its lazy imports, Python's import is another one in all threads."""
    for name in IMPORT_LAZILY:
        import_module(name)
    yield


door.say_who_may_look()
script = Path(__file__).with_name("navigation.py")
dashboard = App(script, lifespan=prepared, middleware=[door.MIDDLEWARE], routes=door.ROUTES)
