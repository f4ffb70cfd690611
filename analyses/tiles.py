"""Small maps side by side, for the dashboard: squares that stay so on a phone, where titles must not touch."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import looks

ROW, TITLE, BAR = 150, 36, 60  # pixels of a row of maps, of its titles in two lines, of a colour bar


def panels(titles: Sequence[str], down: int, across: int, *, has_bar: bool = True, row: int = ROW) -> go.Figure:
    """An empty figure of rows and columns; titles, in at most two lines, row by row."""
    inside, below = down * (row + TITLE) - TITLE, BAR if has_bar else 5
    drawn = make_subplots(down, across, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=TITLE / inside)
    margin = dict(l=5, r=5, t=TITLE, b=below)
    return drawn.update_layout(looks.WHITE | dict(height=TITLE + inside + below, margin=margin))


def settled(drawn: go.Figure) -> go.Figure:
    """The figure with its maps in place: squares without axes, right under their titles."""
    drawn.update_xaxes(visible=False, constrain="domain")
    drawn.update_yaxes(visible=False, constrain="domain", constraintoward="top")
    drawn.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    return drawn.update_annotations(font_size=11)


def bar(title: str, place: int = 0, n_bars: int = 1) -> dict[str, Any]:
    """A colour bar under the maps; several stand side by side."""
    width = 1 / n_bars
    where = dict(orientation="h", x=(place + 0.5) * width, len=0.9 * width, y=0, yanchor="top", ypad=0)
    return where | dict(title=dict(text=title, side="bottom"), thickness=12)
