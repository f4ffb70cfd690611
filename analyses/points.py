"""The numbers of an interactive figure as a table, for whoever cannot rest a mouse on it."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go


def table(figure: go.Figure) -> pd.DataFrame:
    """One line a point or cell: its panel and series where there are several, its place and its value, in columns
    named as the axes and the colour bar are.
    """
    titles = [note.text.replace("<br>", " ") for note in figure.layout.annotations if note.xref == "paper"]
    panels = list(dict.fromkeys(trace.xaxis or "x" for trace in figure.data))
    parts = []
    for trace in figure.data:
        part = _points(figure, trace)
        if part is None:
            continue
        if len(titles) == len(panels) > 1:
            part.insert(0, "panel", titles[panels.index(trace.xaxis or "x")])
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _points(figure: go.Figure, trace: Any) -> pd.DataFrame | None:
    """Of one trace; None for what says nothing: bands, pictures, and what only catches clicks."""
    x, y = (_title(figure, trace, axis) for axis in "xy")
    if trace.type == "heatmap":
        values = np.asarray(trace.z, np.float64)
        rows, columns = np.indices(values.shape)
        down = range(len(values)) if trace.y is None else trace.y
        across = range(values.shape[1]) if trace.x is None else trace.x
        bar = (figure.layout.coloraxis if trace.coloraxis else trace).colorbar.title.text or "value"
        down_name, across_name = (f"{y} (row)", f"{x} (column)") if x and x == y else (y or "row", x or "column")
        place = {down_name: np.asarray(down)[rows.ravel()], across_name: np.asarray(across)[columns.ravel()]}
        return pd.DataFrame(place | {bar: values.ravel()})
    if trace.type not in ("scatter", "scattergl", "bar") or trace.hoverinfo == "skip" or trace.marker.opacity == 0:
        return None
    across = [" ".join(map(str, parts)) for parts in zip(*trace.x, strict=True)] if np.ndim(trace.x) == 2 else trace.x
    return pd.DataFrame({"series": trace.name, x or "x": across, y or "y": trace.y})


def _title(figure: go.Figure, trace: Any, axis: str) -> str | None:
    name = getattr(trace, f"{axis}axis") or axis
    return figure.layout[f"{axis}axis{name[1:]}"].title.text
