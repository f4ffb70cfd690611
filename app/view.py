"""How every page shows a figure, lets it be taken away, and speaks of what is wrong or missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import streamlit as st

from models.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

WIDE = dict(displaylogo=False, toImageButtonOptions=dict(format="png", scale=3))


@contextmanager
def complaints() -> Iterator[None]:
    """Bad input inside is shown as its one sentence, in place of the rest of the page."""
    try:
        yield
    except InputError as error:
        st.error(str(error), icon="⚠️")
    except OSError as error:
        st.error(f"{error.filename or 'a file'} cannot be read ({error.strerror or error})", icon="⚠️")


def chart(fig: go.Figure, name: str, table: pd.DataFrame | None = None, **kwargs: Any) -> Any:
    """The figure, with its export beside it: a page of its own (HTML), the numbers (CSV); PNG is in the figure's own bar.

    `name` is the key of the chart and the name of the files; `kwargs` as ``st.plotly_chart``.
    """
    config = WIDE | dict(toImageButtonOptions=WIDE["toImageButtonOptions"] | dict(filename=name))
    shown = st.plotly_chart(fig, key=name, config=config, **kwargs)
    with st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        st.download_button(
            "HTML", lambda: fig.to_html(include_plotlyjs=True), f"{name}.html", "text/html", key=f"{name}-html", on_click="ignore", type="tertiary"
        )
        if table is not None:
            st.download_button(
                "CSV", lambda: table.to_csv(index=False), f"{name}.csv", "text/csv", key=f"{name}-csv", on_click="ignore", type="tertiary"
            )
    return shown


def missing(what: str, command: str) -> None:
    """A part that has nothing to show yet, and the command that makes it."""
    st.info(f"{what} Run this, then reload the page:", icon="ℹ️")
    st.code(command, language="bash")
