"""Statistics, tables and figures of the paths that images take (figure 9 of the paper), and how far a picture of them can be trusted."""

import json
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib import colormaps
from matplotlib.figure import Figure
from plotly.colors import sample_colorscale

from analyses import style

PICTURES = {"pacmap": "PaCMAP", "pca": "PCA"}
MANY = 20  # classes beyond which mean paths are no longer drawn


def nearest(points: np.ndarray, n: int) -> np.ndarray:
    """The n nearest images of every image, itself left out, within each state: [state image n] from points [image state d]."""
    from sklearn.neighbors import NearestNeighbors

    found = []
    for state in np.moveaxis(np.asarray(points), 1, 0):
        found.append(NearestNeighbors(n_neighbors=n).fit(state).kneighbors(return_distance=False))
    return np.stack(found)


def purity(near: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the nearest images with the image's own label: [state] from near [state image n]."""
    return (labels[near] == labels[None, :, None]).mean((1, 2))


def purity_chance(labels: np.ndarray) -> float:
    """The same share for neighbours drawn at random among the other images."""
    counts = np.bincount(labels)
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def kept(near: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Share of the nearest images that are still among the nearest in a picture: [state]. Chance is n / (images - 1)."""
    return (near[..., :, None] == found[..., None, :]).any(-1).mean((1, 2))


def state_label(state: int) -> str:
    return "before step 1" if state == 0 else style.step_label(state - 1)


def is_one_point(result: xr.Dataset) -> bool:
    """Whether z_0 is the same for all images, as that of a CLS token is: then it has no neighbours to speak of."""
    first = result["pca"].sel(state=0).values
    return bool((first == first[:1]).all())


def measured_states(result: xr.Dataset) -> np.ndarray:
    """The states whose neighbours mean something."""
    return result["state"].values[int(is_one_point(result)) :]


def table(result: xr.Dataset) -> str:
    """What the command prints."""
    attrs, explained = result.attrs, 100 * result["explained"].values
    chance = 100 * attrs["purity_chance"]
    lines = [
        f"trajectories: {result.sizes['image']} images x {result.sizes['state']} states of the {attrs['token']} token; "
        f"two principal components hold {explained.sum():.0f} % of the variance ({explained[0]:.0f} + {explained[1]:.0f})",
        f"of the {attrs['neighbors']} nearest images, same label (chance {chance:.1f} %)   neighbours kept (chance {100 * attrs['kept_chance']:.1f} %)",
        f"{'':22}{'states':>9}{'PaCMAP':>9}{'PCA':>9}{'untrained':>11}{'PaCMAP':>12}{'PCA':>9}",
    ]
    for state in measured_states(result):
        row = result.sel(state=state)
        same = "".join(f"{100 * float(value):9.1f}" for value in row["purity"])
        control = f"{100 * float(row['control_purity']):11.1f}" if "control_purity" in result else f"{'-':>11}"
        left, right = (100 * float(value) for value in row["kept"])
        lines.append(f"{state_label(state):22}{same}{control}{left:12.1f}{right:9.1f}")
    if is_one_point(result):
        lines.append(f"before step 1 the {attrs['token']} state is the same for all images: one point")
    return "\n".join(lines)


def class_paths(result: xr.Dataset, picture: str = "pacmap") -> np.ndarray:
    """Mean position of every class at every state: [class state axis], NaN for a class without an image."""
    points, labels = result[picture].values.astype(np.float64), result["label"].values
    classes = range(len(result.attrs["classes"]))
    return np.stack([points[labels == c].mean(0) if (labels == c).any() else np.full(points.shape[1:], np.nan) for c in classes])


def class_colours(n: int) -> list[str]:
    """A colour for every class, as hex."""
    from matplotlib.colors import to_hex

    spread = colormaps["tab10"].colors if n <= 10 else colormaps["tab20"].colors if n <= 20 else colormaps["hsv"](np.arange(n) / n)
    return [to_hex(colour) for colour in spread[:n]]


def figure(result: xr.Dataset) -> Figure:
    """Figure 9: PaCMAP by step and by class with mean paths, PCA beside it, and the share of neighbours with the same label."""
    fig, axes = style.panels(1, 4, width=3.8, height=3.6)
    draw_steps(axes[0], result, "pacmap")
    draw_classes(axes[1], result, "pacmap")
    draw_classes(axes[2], result, "pca")
    draw_purity(axes[3], result)
    return fig


def draw_points(ax, result: xr.Dataset, picture: str, colours: object, **options: object) -> object:
    points = result[picture].values.reshape(-1, 2)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.scatter(*points.T, c=colours, s=2, lw=0, rasterized=True, **options)


def draw_steps(ax, result: xr.Dataset, picture: str) -> None:
    """All points, coloured by step."""
    colours = np.broadcast_to(result["state"].values, result[picture].shape[:2]).ravel()
    drawn = draw_points(ax, result, picture, colours, cmap=style.MAP, alpha=0.6)
    ax.figure.colorbar(drawn, ax=ax, label="after step", shrink=0.7)
    ax.set_title(f"{PICTURES[picture]}, by step", fontsize=9)


def draw_classes(ax, result: xr.Dataset, picture: str) -> None:
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


def draw_purity(ax, result: xr.Dataset) -> None:
    """Share of the nearest images with the same label, in the full space and both pictures, beside chance and the untrained model."""
    states = measured_states(result)
    seen = result.sel(state=states)
    for colour, space in zip(style.SEQUENCE, result["space"].values, strict=False):
        ax.plot(states, 100 * seen["purity"].sel(space=space), color=colour, label="full space" if space == "states" else PICTURES[str(space)])
    if "control_purity" in result:
        ax.plot(states, 100 * seen["control_purity"], "--", color=style.CONTROL, label="untrained")
    ax.axhline(100 * result.attrs["purity_chance"], ls=":", color=style.CHANCE, label="chance")
    ax.set(xlabel="after step", ylabel="%", ylim=(0, None))
    ax.set_title(f"of {result.attrs['neighbors']} nearest images, same label", fontsize=9)
    ax.legend(fontsize=7, frameon=False)


def interactive(result: xr.Dataset, picture: str = "pacmap", colour: str = "class", follow: int | None = None) -> go.Figure:
    """The picture with a slider and a play button over the states; colour is "class" or "step"; `follow` draws one image's path.

    Every point carries the place of its image along `image` as `customdata[0]`.
    """
    points, labels, states = result[picture].values, result["label"].values, result["state"].values
    classes = list(result.attrs["classes"])
    names = np.array(classes, dtype=object)[labels]
    shades = class_colours(len(classes)) if colour == "class" else sample_colorscale(style.MAP, states / max(states[-1], 1))
    paths = class_paths(result, picture) if len(classes) <= MANY else np.empty((0, len(states), 2))

    def cloud(chosen: np.ndarray) -> go.Scattergl:
        """The points of the chosen states."""
        xy = points[:, chosen].reshape(-1, 2)
        state, image = np.tile(states[chosen], len(points)), np.repeat(np.arange(len(points)), len(chosen))
        marks = np.array(shades, dtype=object)[labels[image] if colour == "class" else state]
        hover = np.stack([image, result["index"].values[image], names[image], state], 1).astype(object)
        return go.Scattergl(
            x=xy[:, 0], y=xy[:, 1], customdata=hover, mode="markers", marker=dict(size=5, color=marks, opacity=0.35 if len(chosen) > 1 else 0.8),
            hovertemplate="image %{customdata[1]}: %{customdata[2]}<br>after step %{customdata[3]}<extra></extra>", showlegend=False,
        )  # fmt: skip

    def means(last: int) -> go.Scatter:
        """The classes' mean paths up to a state, as one line with gaps."""
        walked = np.concatenate([paths[:, : last + 1], np.full((len(paths), 1, 2), np.nan)], 1).reshape(-1, 2)
        return go.Scatter(x=walked[:, 0], y=walked[:, 1], mode="lines", line=dict(color="rgba(60,60,60,0.6)", width=1.5), hoverinfo="skip", name="class means")

    def one(last: int) -> go.Scatter:
        xy = points[follow, : last + 1] if follow is not None else np.empty((0, 2))
        name = f"image {int(result['index'][follow])}" if follow is not None else ""
        return go.Scatter(
            x=xy[:, 0], y=xy[:, 1], mode="lines+markers", line=dict(color="black", width=2), marker=dict(size=6), hoverinfo="skip", name=name,
            showlegend=follow is not None,
        )  # fmt: skip

    last = len(states) - 1
    frames = [go.Frame(name=state_label(k), data=[cloud(np.array([k])), means(k), one(k)]) for k in range(last + 1)]
    frames.append(go.Frame(name="all", data=[cloud(np.arange(last + 1)), means(last), one(last)]))
    figure = go.Figure(data=frames[-1].data, frames=frames)
    for name, shade in zip(classes if colour == "class" else map(state_label, states), shades, strict=True) if len(shades) <= MANY else ():
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=dict(size=7, color=shade), name=name)
    jump = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    play = dict(fromcurrent=False, mode="immediate", frame=dict(duration=700, redraw=True), transition=dict(duration=0))
    figure.update_layout(
        height=640, margin=dict(l=10, r=10, t=10, b=10), xaxis=span(points[..., 0]), yaxis=span(points[..., 1]), template="plotly_white",
        hovermode="closest",
        updatemenus=[dict(type="buttons", direction="left", x=0, y=0, xanchor="left", yanchor="top", pad=dict(t=45), showactive=False, buttons=[
            dict(label="▶ play", method="animate", args=[[frame.name for frame in frames], play]),
            dict(label="❚❚", method="animate", args=[[None], jump]),
        ])],
        sliders=[dict(active=last + 1, x=0.15, len=0.85, pad=dict(t=30), currentvalue=dict(visible=True, xanchor="left"), steps=[
            dict(label="all" if frame.name == "all" else str(k), method="animate", args=[[frame.name], jump]) for k, frame in enumerate(frames)
        ])],
    )  # fmt: skip
    return figure


def span(values: np.ndarray) -> dict:
    """An axis without ticks that does not move while the steps play."""
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low or 1)
    return dict(range=[low - room, high + room], showticklabels=False, showgrid=False, zeroline=False, title="")


SHOW_PICTURE = """
const plot = document.getElementById('{plot_id}'), pictures = PICTURES;
const shown = document.createElement('img');
shown.style.cssText = 'position:fixed;pointer-events:none;display:none;width:128px;image-rendering:pixelated;border:1px solid #888;background:#fff;z-index:9';
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


def page(drawn: go.Figure, pictures: Mapping[int, str]) -> str:
    """The interactive figure as a page of its own that shows an image while the mouse is on one of its points.

    pictures: data URI of the image at each place.
    """
    script = SHOW_PICTURE.replace("PICTURES", json.dumps({int(place): uri for place, uri in pictures.items()}))
    return drawn.to_html(include_plotlyjs=True, full_html=True, post_script=script, auto_play=False, config={"displaylogo": False, "responsive": True})


def curves(result: xr.Dataset) -> go.Figure:
    """Share of the nearest images with the same label over the states, beside chance and the untrained model."""
    states = measured_states(result)
    seen, figure = result.sel(state=states), go.Figure()
    for colour, space in zip(style.SEQUENCE, result["space"].values, strict=False):
        name = "full space" if space == "states" else PICTURES[str(space)]
        figure.add_scatter(x=states, y=100 * seen["purity"].sel(space=space).values, mode="lines+markers", name=name, line=dict(color=colour))
    if "control_purity" in result:
        figure.add_scatter(x=states, y=100 * seen["control_purity"].values, mode="lines", name="untrained", line=dict(dash="dash", color=style.CONTROL))
    figure.add_hline(100 * result.attrs["purity_chance"], line_dash="dot", annotation_text="chance")
    figure.update_layout(xaxis_title="after step", yaxis_title="same label (%)", yaxis_rangemode="tozero", height=340, margin=dict(l=10, r=10, t=20, b=10))
    return figure
