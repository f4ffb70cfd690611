"""Table and figures of any result, for probes that have no analysis of their own; the untrained model beside.

What is drawn depends on a variable's dimensions: (step), (state) or (round) is a curve, with one short dimension more
several of them, (step, head) a map, (step, other_step) and (state, other_state) maps as well, and a single number a
line of the table. The rest is named.
"""

from dataclasses import replace
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import looks, style
from analyses.style import Results

AXES = {"step": "step", "state": "after step", "round": "round"}  # and how they are titled
LABELS = {"step": style.step_label, "state": style.state_label, "round": lambda number: f"round {number}"}
PAIRS = ({"step", "other_step"}, {"state", "other_state"})
DRAWN = ("curve", "heads", "pairs")
FEW = 8  # lines of one picture
MOST = 12  # pictures of one figure


def kind(values: xr.DataArray) -> str:
    """How a variable is shown: "number", "curve", "heads", "pairs", or not at all, ""."""
    dims = set(values.dims)
    rest = dims - AXES.keys()
    if values.dtype.kind not in "biuf" or "image" in dims:
        return ""
    if not dims:
        return "number"
    if dims == {"step", "head"}:
        return "heads"
    if dims in PAIRS:
        return "pairs"
    is_short = all(values.sizes[dim] <= FEW for dim in rest)
    return "curve" if len(dims) - len(rest) == 1 and len(rest) <= 1 and is_short else ""


def of_kind(result: xr.Dataset, *kinds: str) -> list[str]:
    """The trained model's variables that are shown in one of these ways."""
    variables = style.models(result)["trained"].data_vars
    return [str(name) for name, values in variables.items() if kind(values) in kinds]


def axis_of(values: xr.DataArray) -> str:
    """The dimension that a curve runs along."""
    return next(str(dim) for dim in values.dims if dim in AXES)


def places(values: xr.DataArray) -> np.ndarray:
    """Places along that dimension as readers count them: steps from 1."""
    axis = axis_of(values)
    return values[axis].values + (axis == "step")


def parts(values: xr.DataArray) -> dict[str, np.ndarray]:
    """The curves that a variable holds, by what tells them apart; of a map of heads, its mean and its best head."""
    rest = [dim for dim in values.dims if dim != axis_of(values)]
    if not rest:
        return {"": values.values}
    if rest == ["head"]:
        return {"mean head": values.mean("head").values, "best head": values.max("head").values}
    return {str(place): values.sel({rest[0]: place}).values for place in values[rest[0]].values}


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: a table a kind of axis, the lone numbers, and what else the result holds."""
    shown = of_kind(result, "number", *DRAWN)
    rest = {name: v.dims for name, v in style.models(result)["trained"].data_vars.items() if name not in shown}
    named = ", ".join(f"{name} ({', '.join(dims)})" for name, dims in rest.items())
    lines = [style.caption(result), *(_along(result, axis) for axis in AXES), _numbers(result)]
    return "\n".join(line for line in [*lines, named and f"also there: {named}"] if line)


def _along(result: xr.Dataset, axis: str) -> str:
    """Every curve along an axis as a column."""
    columns = {}
    for name in of_kind(result, "curve", "heads"):
        for model in style.series(result, name):
            if axis_of(model.numbers[name]) == axis:
                for what, values in parts(model.numbers[name]).items():
                    label = (name, what, "" if model.is_trained else "untrained")
                    columns[", ".join(word for word in label if word)] = values
    rows = [LABELS[axis](int(place)) for place in result[axis].values] if columns else []
    return style.aligned(pd.DataFrame({"": rows} | columns)) if columns else ""


def _numbers(result: xr.Dataset) -> str:
    """The lone numbers, and of maps of steps by steps the mean over different ones."""
    rows = []
    for name in of_kind(result, "number", "pairs"):
        cells = {"": name + (", different steps" if result[name].ndim else "")}
        for model in style.series(result, name):
            values = model.numbers[name].values
            off = values[~np.eye(len(values), dtype=bool)] if values.ndim else values
            cells[model.label()] = off.mean() if off.size else np.nan
        rows.append(cells)
    return style.aligned(pd.DataFrame(rows)) if rows else ""


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every number that is shown: variable, model, its place along each dimension, value."""
    tables = []
    for name in of_kind(result, "number", *DRAWN):
        for model in style.series(result, name):
            values = model.numbers[name].reset_coords(drop=True)
            cells = (
                values.to_dataframe("value").reset_index() if values.ndim else pd.DataFrame({"value": [values.item()]})
            )
            tables.append(cells.assign(variable=name, model=model.label()))
    numbers = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["variable", "model", "value"])
    dims = [name for name in numbers.columns if name not in ("variable", "model", "value")]
    return numbers[["variable", "model", *dims, "value"]].convert_dtypes()


# Figures


def curve(results: Results, name: str) -> looks.Curves:
    """One variable over its axis, of every model; a colour per line where it has several."""
    lines, axis = [], ""
    for model in style.series(results, name):
        values, axis = model.numbers[name], axis_of(model.numbers[name])
        for colour, (what, part) in zip(cycle(style.SEQUENCE), parts(values).items(), strict=False):
            look = model.look(what, **(dict(colour=colour) if what else {}))
            lines.append(looks.Line(places(values), part, **look))
    return looks.Curves(lines, x=AXES[axis], title=name)


def maps(results: Results, name: str) -> list[looks.Map]:
    """One variable as maps, one per model."""
    return [_map(model.numbers[name], f"{name}, {model.label()}") for model in style.series(results, name)]


def _map(values: xr.DataArray, title: str) -> looks.Map:
    if kind(values) == "heads":
        return looks.head_map(values, title=title)
    axis = axis_of(values)
    matrix, names = values.transpose(axis, f"other_{axis}").values, places(values)
    return looks.Map(matrix, names, names, x=AXES[axis], y=AXES[axis], title=title, is_square=True)


def figure(results: Results) -> Figure | None:
    """Every variable that can be drawn, a panel each (of maps a panel per model); None where there is none."""
    first = next(iter(style.named(results).values()))
    pictures = [curve(results, name) for name in of_kind(first, "curve")]
    pictures += [one for name in of_kind(first, "heads", "pairs") for one in maps(results, name)]
    if not pictures:
        return None
    pictures, columns = pictures[:MOST], min(3, len(pictures))
    fig, axes = looks.panels(-(-len(pictures) // columns), columns)
    for ax, picture in zip(axes, pictures, strict=False):
        picture.draw(ax)
    for ax in axes[len(pictures) :]:
        ax.remove()
    return fig


FIGURES = {"variables": figure}


def interactive(result: xr.Dataset, name: str | None = None) -> go.Figure:
    """One variable to hover over, by default the first that can be drawn. Raises ValueError where there is none."""
    there = of_kind(result, *DRAWN)
    if not there:
        raise ValueError("this result holds nothing over steps, states or rounds that could be drawn; read its table")
    name = there[0] if name is None else name
    if kind(result[name]) == "curve":
        return curve(result, name).interactive().update_layout(title=name)
    trained, *others = maps(result, name)
    beside = {other.title.removeprefix(f"{name}, "): other.values for other in others}
    return replace(trained, beside=beside).interactive().update_layout(title=name)
