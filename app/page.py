"""What every page is made of: figures with their files, numbers beside their chance levels, choices that are the link.

Choices are Streamlit's own widgets with ``bind="query-params"``: their key is their name in the link, their value
survives a change of page and a reload, and what a link names that is not there is ignored. What Streamlit writes there
is the option's label, so options that count are plain numbers, from 0 like all code; pages print them from 1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import streamlit as st

from analyses import looks, points
from app.text import text
from models.errors import InputError, brief

if TYPE_CHECKING:
    import pandas as pd

LOG = logging.getLogger(__name__)
LINKED = {"bind": "query-params"}
BY_NAME = {FunctionType: lambda function: f"{function.__module__}.{function.__qualname__}"}  # what caches know it by
WHOSE = "whose"  # in the session: of which model and data the page's result is, for the files that are saved
NUMBER = re.compile("[0-9]{1,9}")


@contextmanager
def one_sentence() -> Iterator[None]:
    """What goes wrong inside is one sentence on the page; what is no fault of the input is told to the terminal too."""
    try:
        yield
    except InputError as error:
        st.error(text(error))
    except OSError as error:  # taken away, or not to be read by this server
        LOG.exception("a file could not be read")
        st.error(f"{text(error.filename or 'A file')} cannot be read ({text(error.strerror or brief(error))}).")
    except Exception as error:  # whatever a result of somebody else's may lead to
        LOG.exception("a page could not be drawn")
        reason = f"{type(error).__name__}: {brief(error)}"
        st.error(
            f"This page could not be drawn to its end ({text(reason)}); make its result anew, the terminal says more."
        )


def part(draw: Callable[..., None]) -> Callable[..., None]:
    """A part of a page that is drawn anew by itself when a choice inside of it changes; the rest stays as it is."""

    @wraps(draw)
    def drawn(*args: Any) -> None:
        with one_sentence():
            draw(*args)

    return st.fragment(drawn)


@st.cache_resource(max_entries=512, show_spinner=False, hash_funcs=BY_NAME)
def drawn(draw: Callable[..., go.Figure], *arrays: Any, **options: Any) -> go.Figure:
    """The figure that `draw` makes of these, drawn once and shared by all visitors, so not to be changed: drawing takes
    longer than all else that a move of a slider asks for.
    """
    return draw(*arrays, **options)


class Clickable(go.Figure):
    """A figure of which no click is lost.

    plotly.js makes a list of selections at the second click where there is none, takes that for a change and says that
    nothing is selected; Streamlit sends both, and where the server is busy only the last arrives. So the list is there
    from the start, which plotly.py leaves out where it is empty.
    """

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        return content | {"layout": {"selections": []} | content["layout"]}


def show(
    figure: go.Figure,
    name: str,
    caption: str = "",
    *,
    table: Callable[[], pd.DataFrame] | None = None,
    key: str = "",
    **options: Any,
) -> None:
    """A figure in its own colours, and under it buttons for its files (PNG: the camera in its corner), its numbers
    too where no `table` says more.

    A figure of the same key, by default its name, is drawn over the one before, without a gap.
    """
    config = looks.CONFIG | {"toImageButtonOptions": {"filename": name.replace(" ", "_"), "scale": 2}}
    themed = looks.on_dark(figure) if st.context.theme.type == "dark" else figure
    shown = looks.without_links(themed)
    shown = Clickable(shown) if "on_select" in options else shown
    st.plotly_chart(shown, key=f"chart {key or name}", theme=None, config=config, **options)
    with st.container(horizontal=True):
        save(figure, name, caption)
        save_table(table or (lambda: points.table(figure)), name)


def save(figure: go.Figure, name: str, caption: str = "") -> None:
    """A button that saves a figure as a page that needs nothing from outside."""
    words = titles(name, caption)
    download("Save as HTML", lambda: looks.as_html(figure, *words), f"{name}.html", "text/html")


def titles(name: str, caption: str = "") -> tuple[str, str]:
    """What a saved page is called, and what it says of itself: the run and whose its result is."""
    run, whose = (st.session_state.get(key, "") for key in ("run", WHOSE))
    said = (caption, f"of the run {run}", whose)
    return f"{name.capitalize()}: {run}", "; ".join(part for part in said if part)


def save_table(table: Callable[[], pd.DataFrame], name: str, label: str = "Table as CSV") -> None:
    download(label, lambda: table().to_csv(index=False), f"{name}.csv", "text/csv")


def download(label: str, content: Callable[[], str | bytes], file: str, kind: str) -> None:
    """A button for a file that is made when it is asked for; the page stays as it is."""
    st.download_button(label, content, file.replace(" ", "_"), kind, key=f"save {file}", on_click="ignore")


def tiles(n: int, width: int) -> list[Any]:
    """`n` places of `width` pixels side by side, as many in a row as the window has room for."""
    row = st.container(horizontal=True)
    return [row.container(width=width) for _ in range(n)]


def metric(column: Any, title: str, value: str, beside: str | None = None, *, help: str | None = None) -> None:
    """A number, and under it, in grey, what it is to be read beside, in full: its chance level or interval."""
    place = column.container(gap=None)
    place.metric(title, value, help=help)
    if beside:
        place.caption(text(beside))


def number(column: Any, label: str, n: int, key: str, default: int = 0, *, shown: str = "%d") -> int:
    """One of 0 .. n - 1, on a slider that is part of the link; without one where there is no choice."""
    if n == 1:
        return 0
    keep_within(key, range(n), default)
    return column.slider(label, 0, n - 1, default, format=shown, key=key, **LINKED)


def linked_number(key: str) -> dict[str, str]:
    """`LINKED`, unless the link gives something that is no number, such as "infinite": a number input would fail."""
    return LINKED if NUMBER.fullmatch(st.query_params.get(key, "0")) else {}


def keep_within(key: str, allowed: Sequence[int], default: int) -> None:
    """Before a widget for numbers is drawn: another run may have fewer of them, which Streamlit takes for an error."""
    if st.session_state.get(key, default) not in allowed:
        st.session_state[key] = default


def keep_known(key: str, allowed: Collection[Any]) -> None:
    """Before a widget of several choices is drawn: those that another run does not have are left out."""
    choices = st.session_state.get(key, [])
    if not set(choices) <= set(allowed):
        st.session_state[key] = [choice for choice in choices if choice in allowed]


def segments(column: Any, label: str, options: Sequence[Any], key: str, *, help: str | None = None) -> Any:
    """One of a few options side by side, the first by default."""
    option = column.segmented_control(
        label, options, key=key, default=options[0], required=True, help=help, format_func=text, **LINKED
    )
    return options[0] if option is None else option  # a link may name an empty one
