"""Pictures described once and drawn twice: by matplotlib for paper and report, by plotly for the dashboard.

`Curves` over steps, states or rounds; `Map` of cells, steps by heads or steps by steps; `grid` of images.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib import rcParams, ticker, transforms
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from plotly import colors

from analyses import hover, style

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}  # plotly's, matplotlib's
LEVELS = ("dot", "dashdot", "longdash", "dash")  # dashes of several chance levels, in order
MARKS = {"o": "circle", "s": "square", "^": "triangle-up"}
SMALL = dict(fontsize=7, frameon=False, handlelength=3)
LEGEND_ROW, FEW = 19, 4  # height of a legend row in pixels; rows that a figure has room for
MOST_GAPS = 24  # a map with more rows (or columns) has no gaps between them
BELOW = dict(orientation="h", yanchor="top", y=-0.22)
MARGIN = dict(l=50, r=10, t=25, b=45)
WHITE = dict(template="plotly_white", margin=MARGIN, hoverlabel=hover.LIGHT)
# As rgb, not hex: Streamlit replaces some hex colours by its own, the darkest of this map among them.
GLOW = [[place, f"rgb{colors.hex_to_rgb(colour)}"] for place, colour in colors.get_colorscale(style.ATTENTION)]


def panels(
    rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.3, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure that pyplot does not keep track of, and its axes row by row."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=0.8 * rcParams["font.size"])
    return figure, axes


def legend_under(ax: Axes) -> None:
    """Places a panel's legend below the panel, where it covers no line."""
    lines, labels = ax.get_legend_handles_labels()
    columns = 3 if max(map(len, labels), default=0) < 18 else 2
    below = ax.transAxes + transforms.ScaledTranslation(0, -0.42, ax.figure.dpi_scale_trans)
    ax.legend(lines, labels, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=columns, **SMALL)


def legend_below(figure: Figure, ax: Axes, columns: int = 4) -> None:
    """Places a legend that several panels share below all of them."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns, **SMALL)


def grid(
    draw: Callable[[Axes, int, int], str], titles: Sequence[str], labels: Sequence[str], heading: str = ""
) -> Figure:
    """Images in rows and columns: `draw(ax, row, column)` draws one and returns what is written below it."""
    figure, axes = panels(len(labels), len(titles), width=1.05, height=1.25)
    for cell, ax in enumerate(axes):
        row, column = divmod(cell, len(titles))
        ax.set_xlabel(draw(ax, row, column), fontsize=6, labelpad=3)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if row == 0:
            ax.set_title(titles[column], fontsize=7)
        if column == 0:
            ax.set_ylabel(labels[row], fontsize=7)
    figure.suptitle(heading, fontsize=7)
    return figure


# A page of its own

CONFIG = {  # removes plotly's button that uploads a figure to its cloud
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],  # few cover little
    "plotlyServerURL": "",
}
POLICY = (  # of a saved page: the browser loads nothing from the network and sends nothing to it
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'"
)
LINK = re.compile(r"<(?=\s*/?\s*a\b)", re.IGNORECASE)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light">
<title>{title}</title>
<style>body {{ font-family: sans-serif; margin: 0.5em }} h1 {{ font-size: 1.3em }} :empty {{ margin: 0 }}</style></head>
<body><h1>{title}</h1>
{figure}
<p>{caption}</p></body></html>
"""


def as_html(figure: go.Figure, title: str = "", caption: str = "", **options: Any) -> str:
    """A plotly figure as a self-contained page, which loads nothing from the network and sends nothing to it."""
    options = dict(div_id="figure", include_plotlyjs=True) | options
    drawn = without_links(figure).to_html(full_html=False, config=CONFIG, **options)
    words = dict(title=html.escape(title), caption=html.escape(caption))
    return PAGE.format(**words, figure=drawn, policy=POLICY)


def on_dark(figure: go.Figure) -> go.Figure:
    """The same figure with light ink and a transparent background, for a dark page."""
    clear, content = "rgba(0, 0, 0, 0)", _changed(figure.to_plotly_json(), lambda word: style.ON_DARK.get(word, word))
    look = dict(template="plotly_dark", paper_bgcolor=clear, plot_bgcolor=clear, hoverlabel=hover.DARK)
    return go.Figure(content).update_layout(look)


def without_links(figure: go.Figure) -> go.Figure:
    """The figure with links escaped to plain text: its labels may come from untrusted file names."""
    content = figure.to_plotly_json()
    return go.Figure(_changed(content, lambda word: LINK.sub("&lt;", word))) if _has_link(content) else figure


def _has_link(value: Any) -> bool:
    if isinstance(value, str):
        return LINK.search(value) is not None
    if isinstance(value, dict):
        return any(map(_has_link, value.values()))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "OUT" and any(map(_has_link, value.ravel().tolist()))
    return isinstance(value, list | tuple) and any(map(_has_link, value))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """A figure's content with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(part, change) for part in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUT":
        return np.array([_changed(part, change) for part in value.ravel()], dtype=object).reshape(value.shape)
    return value


# Curves


@dataclass(frozen=True)
class Line:
    """One line: its points, their interval, its appearance, and the hover text of each point."""

    x: Any
    y: Any
    low: Any = None
    high: Any = None
    label: str = ""
    colour: str = style.MAIN
    dash: str = "solid"
    mark: str = ""
    width: float = 1.5
    hover: Sequence[str] | None = None

    def draw(self, ax: Axes) -> None:
        look = dict(color=self.colour, lw=self.width, label=self.label, markersize=4)
        ax.plot(self.x, self.y, ls=DASHES[self.dash], marker=self.mark, **look)
        if self.low is not None:
            ax.fill_between(self.x, self.low, self.high, color=self.colour, alpha=0.15, lw=0)

    def trace(self, x: str = "", y: str = "") -> go.Scatter:
        """The line for plotly; its hover text gives its label, the position on the axis `x`, and the value `y`."""
        mode = "lines+markers" if self.mark else "lines"
        texts, position = self.hover, f"{hover.placed(x, '%{x}')}: " if x else ""
        if texts is None and x == "step":
            texts, position = [style.step_label(int(step) - 1) for step in self.x], "%{text}: "
        template = "%{text}" if self.hover is not None else position + hover.number(y, "y")
        template = f"{self.label}<br>{template}" if self.label else template
        line = dict(color=self.colour, dash=self.dash, width=self.width + 0.5)
        trace = go.Scatter(x=self.x, y=self.y, name=self.label, mode=mode, line=line, text=texts)
        return trace.update(hovertemplate=f"{template}<extra></extra>", marker_symbol=MARKS.get(self.mark))

    def band(self) -> go.Scatter | None:
        """The interval as a filled outline."""
        if self.low is None:
            return None
        is_finite = ~np.isnan(np.asarray(self.low, np.float64))
        x, low, high = (np.asarray(values)[is_finite] for values in (self.x, self.low, self.high))
        outline = dict(x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]))
        look = dict(fill="toself", fillcolor=self.colour, opacity=0.15, line=dict(width=0), mode="lines")
        return go.Scatter(**outline, **look, name=self.label, showlegend=False, hoverinfo="skip")


@dataclass(frozen=True)
class Curves:
    """Lines over one axis of whole numbers, with horizontal chance levels and vertical marks."""

    lines: Sequence[Line]
    x: str = "step"
    y: str = ""
    title: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)
    ticks: Sequence[float] | None = None  # where they are not whole steps
    log: str = ""  # axes that are logarithmic: "x", "y"
    base: int = 10
    low: float | None = None  # limits of the vertical axis
    high: float | None = None

    def draw(self, ax: Axes, *, legend: bool = True) -> None:
        for line in self.lines:
            line.draw(ax)
        for level in self._levels():
            ax.axhline(level.y[0], ls=DASHES[level.dash], color=level.colour, lw=level.width, label=level.label)
        for place in self.marks.values():
            ax.axvline(place, ls=":", color=style.CHANCE, lw=0.8)
        self._scale(ax)
        ax.set(xlabel=self.x, ylabel=self.y)
        ax.set_title(self.title, fontsize=9)
        if legend and (len(self.lines) > 1 or self.levels):
            legend_under(ax)

    def _scale(self, ax: Axes) -> None:
        for axis in self.log:
            getattr(ax, f"set_{axis}scale")("log", base=self.base)
            getattr(ax, f"{axis}axis").set_major_formatter("{x:g}")
        if self.ticks is not None:
            ax.set_xticks(self.ticks, [f"{tick:.3g}" for tick in self.ticks])
            ax.minorticks_off()
        elif "x" not in self.log:
            ax.xaxis.set_major_locator(ticker.MaxNLocator(13, integer=True, steps=[1, 2, 4, 5, 10]))
        if self.low is not None:
            ax.set_ylim(bottom=self.low)
        if self.high is not None:
            ax.set_ylim(top=self.high)

    def traces(self) -> list[go.Scatter]:
        """Bands, lines, levels, in this order, so that lines lie above bands."""
        bands = [line.band() for line in self.lines]
        levels = [level.trace("", self.y) for level in self._levels()]
        return [band for band in bands if band] + [line.trace(self.x, self.y) for line in self.lines] + levels

    def interactive(self, height: int = 380) -> go.Figure:
        """For plotly; a legend of many lines increases the figure's height, so that the plot keeps its own."""
        figure = go.Figure(self.traces())
        n_named = sum(trace.showlegend is not False and bool(trace.name) for trace in figure.data)
        height += LEGEND_ROW * max(0, n_named - FEW)
        for name, place in self.marks.items():
            figure.add_vline(place, line=dict(color=style.CHANCE, width=1), annotation_text=name)
        figure.update_annotations(yanchor="bottom", xanchor="center", y=1)
        x, y = (dict(type="log" if axis in self.log else "linear") for axis in "xy")
        if self.ticks is not None:
            x["tickvals"] = self.ticks
        elif self._ends()[1] <= 16:
            x["dtick"] = 1
        if self.low == 0:
            y["rangemode"] = "tozero"
        figure.update_layout(xaxis=dict(title=self.x, **x), yaxis=dict(title=self.y, **y), legend=BELOW)
        return figure.update_layout(height=height, **WHITE)

    def _ends(self) -> tuple[float, float]:
        x = np.concatenate([np.asarray(line.x, np.float64) for line in self.lines] or [np.zeros(1)])
        return float(x.min()), float(x.max())

    def _levels(self) -> list[Line]:
        named = zip(self.levels.items(), LEVELS * len(self.levels), strict=False)
        look = dict(colour=style.CHANCE, width=1.0)
        return [Line(self._ends(), (level, level), label=name, dash=dash, **look) for (name, level), dash in named]


# Maps


@dataclass(frozen=True)
class Map:
    """Cells [row column], coloured by value; levels are named on the colour bar."""

    values: np.ndarray
    columns: Sequence[Any]
    rows: Sequence[Any]
    x: str = "step"
    y: str = "head"
    bar: str = ""  # what the colours mean
    title: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    colours: str = style.MAP
    is_square: bool = False
    hover: np.ndarray | None = None  # hover text [row column]; by default the position and the value
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)  # further values in the hover text, by name

    def limits(self) -> tuple[float, float]:
        finite = self.values[np.isfinite(self.values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        return float(low if self.low is None else self.low), float(high if self.high is None else self.high)

    def draw(self, ax: Axes, limits: tuple[float, float] | None = None, *, bar: Sequence[Axes] | None = None) -> None:
        """Draws the map and its colour bar, which stands beside the axes `bar` (default: `ax`); empty `bar`: none."""
        low, high = limits or self.limits()
        look = dict(cmap=self.colours, vmin=low, vmax=high, aspect="equal" if self.is_square else "auto")
        drawn = ax.imshow(self.values, interpolation="none", **look)
        for axis, names in (("x", self.columns), ("y", self.rows)):
            ticks = style.some(range(len(names)), 7 if self.is_square else 13)
            getattr(ax, f"set_{axis}ticks")(ticks, [str(names[tick]) for tick in ticks])
        ax.set(xlabel=self.x, ylabel=self.y)
        ax.tick_params(labelsize=7)
        ax.set_title(self.title, fontsize=9)
        if bar is None or len(bar):
            self._draw_bar(drawn, ax.figure.colorbar(drawn, ax=[ax] if bar is None else bar, shrink=0.9))

    def _draw_bar(self, drawn: AxesImage, bar: Colorbar) -> None:
        """Labels the colour bar, adds the levels to its ticks and marks each with a line across the bar."""
        bar.set_label(self.bar, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        if self.levels:
            ticks, labels = bar_ticks(*drawn.get_clim(), self.levels)
            bar.set_ticks(ticks, labels=labels)
            bar.ax.hlines(list(self.levels.values()), *bar.ax.get_xlim(), color="white", lw=1.5)

    def interactive(self, *, clickable: bool = False, height: int = 430) -> go.Figure:
        """The map for plotly. If it is clickable, a transparent scatter on top reports the x and y of a click."""
        low, high = self.limits()
        bar = dict(title=dict(text=self.bar, side="top" if self.levels else "right"))
        if self.levels:
            bar |= dict(zip(("tickvals", "ticktext"), bar_ticks(low, high, self.levels), strict=True))
        look = dict(colorscale=self.colours, zmin=low, zmax=high, colorbar=bar)
        look |= dict(xgap=int(len(self.columns) <= MOST_GAPS), ygap=int(len(self.rows) <= MOST_GAPS))
        figure = go.Figure(go.Heatmap(z=self.values, x=list(self.columns), y=list(self.rows), **look, **self._hover()))
        figure.update_xaxes(title=self.x, type="category", showgrid=False, tickangle=0)
        figure.update_yaxes(title=self.y, type="category", showgrid=False, autorange="reversed")
        if self.is_square:
            figure.update_yaxes(scaleanchor="x", constrain="domain")
            figure.update_xaxes(constrain="domain", constraintoward="right")
        if clickable:
            figure.update_traces(hoverinfo="skip", hovertemplate=None)
            figure.add_trace(self._overlay(max(26, (height - 110) // max(len(self.rows), 1))))
            ends = (min(self.columns) - 0.5, max(self.columns) + 0.5), (max(self.rows) + 0.5, min(self.rows) - 0.5)
            figure.update_xaxes(type="linear", tickvals=style.some(list(self.columns), 7), range=ends[0])
            figure.update_yaxes(type="linear", dtick=1, range=ends[1], autorange=False)
        return figure.update_layout(height=height, **WHITE)

    def _hover(self) -> dict[str, Any]:
        """Plotly's options for the hover text of a cell."""
        if self.hover is not None:
            return dict(text=self.hover, hovertemplate="%{text}<extra></extra>")
        lines = [f"{hover.placed(self.y, '%{y}')}, {hover.placed(self.x, '%{x}')}: {hover.number(self.bar, 'z')}"]
        lines += [f"{name}: %{{customdata[{i}]:.4~g}}" for i, name in enumerate(self.beside)]
        data = np.stack(list(self.beside.values()), -1) if self.beside else None
        return dict(customdata=data, hovertemplate="<br>".join(lines) + "<extra></extra>", hoverongaps=False)

    def _overlay(self, size: int) -> go.Scatter:
        rows, columns = np.indices(self.values.shape)
        position = dict(x=np.asarray(self.columns)[columns.ravel()], y=np.asarray(self.rows)[rows.ravel()])
        mark = dict(symbol="square", size=size, opacity=0)
        text = None if self.hover is None else self.hover.ravel()
        look = dict(mode="markers", marker=mark, showlegend=False, hovertemplate="%{text}<extra></extra>")
        return go.Scatter(**position, **look, text=text)


def bar_ticks(low: float, high: float, levels: Mapping[str, float]) -> tuple[list[float], list[str]]:
    """Ticks of a colour bar and their labels, levels included; a tick too close to a level is left out."""
    near = 0.05 * (high - low)
    labels: dict[float, str] = {}  # by position
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        neighbour = next((position for position in labels if abs(position - level) < near), level)
        labels[neighbour] = f"{labels[neighbour]}, {name}" if neighbour in labels else f"{level:.3g} {name}"
    for tick in ticker.MaxNLocator(5).tick_values(low, high):
        if low <= tick <= high and all(abs(tick - level) >= near for level in levels.values()):
            labels[float(tick)] = f"{tick:.3g}"
    return list(labels), list(labels.values())


def draw_maps(maps: Sequence[Map], *, width: float | None = None, height: float | None = None) -> Figure:
    """Maps of one quantity side by side under one colour bar."""
    rows, columns = maps[0].values.shape
    figure, axes = panels(1, len(maps), width=width or 1.2 + 0.32 * columns, height=height or 1.3 + 0.28 * rows)
    lows, highs = zip(*(drawn.limits() for drawn in maps), strict=True)
    for drawn, ax in zip(maps, axes, strict=True):
        drawn.draw(ax, (min(lows), max(highs)), bar=axes if ax is axes[-1] else ())
    return figure


def step_map(values: np.ndarray, steps: Sequence[int], *, diagonal: bool = True, **look: Any) -> Map:
    """A map of steps by steps, counted from 1; without its diagonal if `diagonal` is false."""
    values = np.array(values, np.float64)
    if not diagonal:
        np.fill_diagonal(values, np.nan)
    names = [int(step) + 1 for step in steps]
    return Map(values, names, names, **(dict(y="step", is_square=True) | look))


def head_map(values: xr.DataArray, **look: Any) -> Map:
    """A map of steps by heads, from values with those dimensions."""
    heads, steps = values["head"].values.tolist(), [int(step) + 1 for step in values["step"].values]
    return Map(values.transpose("head", "step").values, steps, heads, **look)
