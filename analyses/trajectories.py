"""The paths that images take (figure 9 of the paper): statistics, tables, figures, and how far to trust a picture."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from etils import epy
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.colors import sample_colorscale

from analyses import looks, style
from analyses.style import Results, as_percent, state_label

with epy.lazy_imports():
    from sklearn import neighbors

PICTURES = {"pacmap": "PaCMAP", "pca": "PCA"}
SPACES = {"states": "full space"} | PICTURES
MANY = 20  # classes beyond which mean paths are no longer drawn

# Statistics


def nearest(points: np.ndarray, n: int) -> np.ndarray:
    """The n nearest images of each, itself left out, within a state: [state image n] from points [image state d]."""
    of_state = (neighbors.NearestNeighbors(n_neighbors=n).fit(state) for state in np.moveaxis(np.asarray(points), 1, 0))
    return np.stack([fit.kneighbors(return_distance=False) for fit in of_state])


def purity(near: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the nearest images with the image's own label: [state] from near [state image n]."""
    return (labels[near] == labels[None, :, None]).mean((1, 2))


def purity_chance(labels: np.ndarray) -> float:
    """The same share for neighbours drawn at random among the other images."""
    counts = np.bincount(labels)
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def kept(near: np.ndarray, in_picture: np.ndarray) -> np.ndarray:
    """Share of the nearest images that are so in a picture too: [state]; n / (images - 1) by chance."""
    return (near[..., :, None] == in_picture[..., None, :]).any(-1).mean((1, 2))


def is_one_point(result: xr.Dataset) -> bool:
    """Whether z_0 is the same for all images, as that of a CLS token is: then it has no neighbours to speak of."""
    first = result["pca"].sel(state=0).values
    return bool((first == first[:1]).all())


def measured_states(result: xr.Dataset) -> np.ndarray:
    """The states whose neighbours mean something."""
    return result["state"].values[int(is_one_point(result)) :]


def class_paths(result: xr.Dataset, picture: str = "pacmap") -> np.ndarray:
    """Mean position of every class at every state: [class state axis], NaN for a class without an image."""
    points, labels = result[picture].values.astype(np.float64), result["label"].values
    nowhere = np.full(points.shape[1:], np.nan)
    members = (labels == c for c in range(len(result.attrs["classes"])))
    return np.stack([points[of_class].mean(0) if of_class.any() else nowhere for of_class in members])


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: per state, neighbours with the same label and neighbours that the pictures keep."""
    attrs, explained, untrained = result.attrs, as_percent(result["explained"]), style.untrained(result, "purity")
    lines = [
        f"trajectories: {result.sizes['image']} images x {result.sizes['state']} states of the {attrs['token']} token; "
        f"two principal components hold {explained.sum():.0f} % of the variance "
        f"({explained[0]:.0f} + {explained[1]:.0f})",
        f"of the {attrs['neighbors']} nearest images, same label (chance {100 * attrs['purity_chance']:.1f} %)   "
        f"neighbours kept (chance {100 * attrs['kept_chance']:.1f} %)",
        f"{'':22}{'states':>9}{'PaCMAP':>9}{'PCA':>9}{'untrained':>11}{'PaCMAP':>12}{'PCA':>9}",
    ]
    for state in measured_states(result):
        control = f"{'-':>11}" if untrained is None else f"{100 * float(untrained.sel(state=state)):11.1f}"
        left, right = as_percent(result["kept"].sel(state=state))
        cells = style.row(state_label(state), (f"{same:.1f}" for same in as_percent(result["purity"].sel(state=state))))
        lines.append(f"{cells}{control}{left:12.1f}{right:9.1f}")
    if is_one_point(result):
        lines.append(f"before step 1 the {attrs['token']} state is the same for all images: one point")
    return "\n".join(lines)


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Neighbours with the same label and neighbours kept, one line a state; columns name the space or the picture."""
    columns = {f"purity_{space}": result["purity"].sel(space=space) for space in result["space"].values}
    columns |= {"purity_untrained": style.untrained(result, "purity")}
    columns |= {f"kept_{name}": result["kept"].sel(picture=name) for name in result["picture"].values}
    there = {name: values.values for name, values in columns.items() if values is not None}
    return pd.DataFrame({"state": result["state"].values} | there)


# Figures


def class_colours(n: int) -> list[str]:
    """A colour for every class, as hex."""
    if n <= len(style.SEQUENCE):
        return list(style.SEQUENCE[:n])
    spread = colormaps["tab10" if n <= 10 else "tab20"].colors if n <= 20 else colormaps["hsv"](np.arange(n) / n)
    return [colors.to_hex(colour) for colour in spread[:n]]


def figure(results: Results) -> Figure:
    """Figure 9: PaCMAP by step and by class with mean paths, PCA beside it, and neighbours with the same label."""
    every = style.named(results)
    fig, axes = looks.panels(len(every), 4, width=3.8, height=3.6)
    for panels, (name, result) in zip(zip(*[iter(axes)] * 4, strict=True), every.items(), strict=True):
        draw_steps(panels[0], result, "pacmap")
        draw_classes(panels[1], result, "pacmap")
        draw_classes(panels[2], result, "pca")
        purity_curves(result).draw(panels[3])
        panels[0].set_ylabel(name)
    return fig


def draw_points(ax: Axes, result: xr.Dataset, picture: str, colours: Any, **look: Any) -> Any:
    """All states of all images."""
    points = result[picture].values.reshape(-1, 2)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.scatter(*points.T, c=colours, s=2, lw=0, rasterized=True, **look)


def draw_steps(ax: Axes, result: xr.Dataset, picture: str) -> None:
    """All points, coloured by step."""
    colours = np.broadcast_to(result["state"].values, result[picture].shape[:2]).ravel()
    drawn = draw_points(ax, result, picture, colours, cmap=style.MAP, alpha=0.6)
    ax.figure.colorbar(drawn, ax=ax, label="after step", shrink=0.7)
    ax.set_title(f"{PICTURES[picture]}, by step", fontsize=9)


def draw_classes(ax: Axes, result: xr.Dataset, picture: str) -> None:
    """All points, coloured by class, with the classes' mean paths from ring to dot where there are few enough."""
    classes = list(result.attrs["classes"])
    colours = np.array(class_colours(len(classes)))
    draw_points(ax, result, picture, np.repeat(colours[result["label"].values], result.sizes["state"]), alpha=0.25)
    if len(classes) <= MANY:
        for colour, path in zip(colours, class_paths(result, picture), strict=True):
            ax.plot(*path.T, color=colour, lw=1)
            ax.plot(*path[0], "o", mfc="white", mec=colour, ms=4)
            ax.plot(*path[-1], "o", color=colour, ms=4)
    explained = f" ({100 * float(result['explained'].sum()):.0f} % of the variance)" if picture == "pca" else ""
    ax.set_title(f"{PICTURES[picture]}, by class{explained}", fontsize=9)


def purity_curves(result: xr.Dataset) -> looks.Curves:
    """Share of the nearest images with the same label, in the full space and both pictures, beside chance."""
    states, lines = measured_states(result), []
    for model in style.series(result, "purity"):
        values = 100 * model.numbers["purity"].sel(state=states)
        if not model.is_trained:
            lines.append(looks.Line(states, values.values, **model.look()))
            continue
        for colour, space in zip(style.SEQUENCE, values["space"].values, strict=False):
            look = dict(label=SPACES[str(space)], colour=colour)
            lines.append(looks.Line(states, values.sel(space=space).values, **look))
    levels = {"chance": 100 * result.attrs["purity_chance"]}
    title = f"of {result.attrs['neighbors']} nearest images, same label"
    return looks.Curves(lines, x="after step", y="same label (%)", title=title, levels=levels, low=0)


FIGURES = {"paths": figure}

# Interactive


def interactive(
    result: xr.Dataset, picture: str = "pacmap", colour: str = "class", follow: int | None = None
) -> go.Figure:
    """The picture with a slider and a play button over the states; colour is "class" or "step".

    `follow` draws one image's path. Every point carries the place of its image along `image` as `customdata[0]`.
    """
    points, states, names = result[picture].values, result["state"].values, list(result.attrs["classes"])
    paths = class_paths(result, picture) if len(names) <= MANY else np.empty((0, len(states), 2))
    if colour == "class":
        shades = class_colours(len(names))
        marks = np.repeat(result["label"].values[:, None], len(states), 1)
    else:
        names, shades = (
            [state_label(state) for state in states],
            sample_colorscale(style.MAP, states / max(states[-1], 1)),
        )
        marks = np.repeat(np.arange(len(states))[None], len(points), 0)

    def frame(name: str, which: Sequence[int], last: int) -> go.Frame:
        followed = points[[] if follow is None else [follow], : last + 1]
        image = "" if follow is None else f"image {int(result['index'][follow])}"
        one = dict(line=dict(color=style.INK, width=2), mode="lines+markers", showlegend=follow is not None, name=image)
        means = dict(line=dict(color=style.CHANCE, width=1.5), mode="lines", name="class means")
        drawn = [
            cloud(result, picture, which, marks, shades),
            path(paths[:, : last + 1], **means),
            path(followed, **one),
        ]
        return go.Frame(name=name, data=drawn)

    frames = [frame(state_label(k), [k], k) for k in range(len(states))]
    frames.append(frame("all", range(len(states)), len(states) - 1))
    few = zip(names, shades, strict=True) if len(names) <= MANY else ()
    legend = [
        go.Scatter(x=[None], y=[None], mode="markers", marker=dict(size=7, color=c), name=name) for name, c in few
    ]
    figure = go.Figure(data=[*frames[-1].data, *legend], frames=frames)
    above = dict(orientation="h", yanchor="bottom", y=1)
    look = looks.WHITE | dict(margin=dict(l=10, r=10, t=10, b=10), legend=above)
    figure.update_layout(height=640, hovermode="closest", **look)
    figure.update_layout(xaxis=span(points[..., 0]), yaxis=span(points[..., 1]))
    return figure.update_layout(**controls([one.name for one in frames]))


def cloud(
    result: xr.Dataset, picture: str, which: Sequence[int], marks: np.ndarray, shades: Sequence[str]
) -> go.Scattergl:
    """The points of some states, each in that one of the colours `shades` that `marks` [image state] says."""
    which, n = list(which), result.sizes["image"]
    xy, image = result[picture].values[:, which].reshape(-1, 2), np.repeat(np.arange(n), len(which))
    names = np.array(result.attrs["classes"], dtype=object)[result["label"].values[image]]
    state = np.tile(result["state"].values[which], n)
    about = np.stack([image, result["index"].values[image], names, state], 1).astype(object)
    said = "image %{customdata[1]}: %{customdata[2]}<br>after step %{customdata[3]}<extra></extra>"
    edges = np.arange(len(shades) + 1) / len(shades)
    scale = [[edge, shade] for i, shade in enumerate(shades) for edge in edges[i : i + 2]]
    colours = dict(color=marks[:, which].ravel(), colorscale=scale, cmin=-0.5, cmax=len(shades) - 0.5)
    marker = dict(size=5, **colours, opacity=0.35 if len(which) > 1 else 0.8)
    look = dict(mode="markers", marker=marker, hovertemplate=said, showlegend=False)
    return go.Scattergl(x=xy[:, 0], y=xy[:, 1], customdata=about, **look)


def path(points: np.ndarray, **look: Any) -> go.Scatter:
    """Paths [path state axis] as one line with gaps."""
    xy = np.concatenate([points, np.full((len(points), 1, 2), np.nan)], 1).reshape(-1, 2)[:-1]
    return go.Scatter(x=xy[:, 0], y=xy[:, 1], marker_size=6, hoverinfo="skip", **look)


def controls(names: list[str]) -> dict[str, Any]:
    """Play and pause, and a slider over the frames of these names, at the last."""
    jump = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    play = jump | dict(fromcurrent=False, frame=dict(duration=700, redraw=True))
    buttons = [
        dict(label="▶ play", method="animate", args=[names, play]),
        dict(label="❚❚", method="animate", args=[[None], jump]),
    ]
    steps = [dict(label=str(k), method="animate", args=[[name], jump]) for k, name in enumerate(names)]
    steps[-1]["label"] = "all"
    place = dict(type="buttons", direction="left", x=0, y=0, xanchor="left", yanchor="top", pad=dict(t=10))
    current = dict(visible=True, xanchor="left")
    slider = dict(active=len(names) - 1, pad=dict(t=55), currentvalue=current, steps=steps)
    return dict(updatemenus=[dict(place, showactive=False, buttons=buttons)], sliders=[slider])


def span(values: np.ndarray) -> dict[str, Any]:
    """An axis without ticks that does not move while the steps play."""
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low or 1)
    return dict(range=[low - room, high + room], showticklabels=False, showgrid=False, zeroline=False, title="")


SHOW_PICTURE = """
const plot = document.getElementById('{plot_id}');
const shown = document.createElement('img');
shown.style.cssText = 'position:fixed;pointer-events:none;display:none;width:128px;image-rendering:pixelated;' +
  'border:1px solid #888;background:#fff;z-index:9';
document.body.appendChild(shown);
plot.on('plotly_hover', event => {
  const point = event.points.find(point => point.customdata), picture = point && pictures[point.customdata[0]];
  if (!picture) return;
  shown.src = picture;
  const x = event.event.clientX, y = event.event.clientY;
  shown.style.left = (x + 150 > window.innerWidth ? x - 145 : x + 15) + 'px';
  shown.style.top = Math.min(y + 15, window.innerHeight - 135) + 'px';
  shown.style.display = 'block';
});
plot.on('plotly_unhover', () => { shown.style.display = 'none'; });
"""


def pictures_script(pictures: Mapping[int, str]) -> str:
    """The data URI of the image at each place, as a script that the page below finds."""
    uris = json.dumps({int(place): uri for place, uri in pictures.items()}).replace("<", r"\u003c")
    return f"const pictures = {uris};\n"


def page(
    drawn: go.Figure,
    pictures: Mapping[int, str] | str,
    library: bool | str = True,
    scheme: str = "light",
    titles: tuple[str, str] = ("", ""),
) -> str:
    """The interactive figure as a page of its own that shows an image while the mouse is on one of its points.

    pictures: data URI of the image at each place, or the address of their `pictures_script`.
    library: the address of plotly's script, True for its text.
    scheme: light or dark, of the page around it: a dark figure has no ground, so that its frame has that page's.
    titles: what stands above and below it, where no page around it says so.
    """
    if isinstance(pictures, str):
        script = f'<script src="{pictures}"></script>\n'
    else:
        script = f"<script>{pictures_script(pictures)}</script>\n"
    drawn = looks.on_dark(drawn) if scheme == "dark" else drawn
    options = dict(include_plotlyjs=library, post_script=SHOW_PICTURE, auto_play=False)
    return looks.as_html(drawn, *titles, **options).replace("<body>", f"<body>{script}", 1)


def curves(result: xr.Dataset) -> go.Figure:
    """Share of the nearest images with the same label over the states, beside chance and the untrained model."""
    return purity_curves(result).interactive(340)
