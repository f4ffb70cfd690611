"""Figures of one image seen step by step: attention of every head, the answer as it forms, token norms.

Pure functions of arrays; the dashboard and notebooks call them.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import intervals, looks, style, tiles
from analyses.style import as_percent

READ_OUT = "read out after step (0 is the embedding)"


def attention(picture: np.ndarray, maps: np.ndarray, mask: np.ndarray | None = None, *, columns: int = 6) -> go.Figure:
    """CLS attention of every head over the picture, the arg-max marked, the object outlined.

    picture: [y x channel] uint8; maps: [head row column]; mask: [y x] of 0 and 1, or None.
    """
    across = min(columns, len(maps))
    down = -(-len(maps) // across)
    titles = [f"head {h}<br>peak {100 * m.max() / max(m.sum(), 1e-12):.0f} %" for h, m in enumerate(maps)]
    fig = tiles.panels(titles, down, across, has_bar=False, row=220)
    for head, values in enumerate(maps):
        place = dict(row=head // across + 1, col=head % across + 1)
        for trace in over_picture(picture, values, mask):
            fig.add_trace(trace, **place)
    size = len(picture)
    fig.update_xaxes(range=[-0.5, size - 0.5]).update_yaxes(range=[size - 0.5, -0.5])
    return tiles.settled(fig)


def over_picture(picture: np.ndarray, values: np.ndarray, mask: np.ndarray | None) -> list[Any]:
    """One picture under one attention map [row column]: traces from the bottom up."""
    patch = len(picture) / len(values)
    centres = (np.arange(len(values)) + 0.5) * patch - 0.5
    names = [[f"patch {row}, {column}" for column in range(len(values))] for row in range(len(values))]
    traces = [
        go.Image(z=picture, hoverinfo="skip"),
        go.Heatmap(
            z=values,
            x=centres,
            y=centres,
            colorscale=looks.GLOW,
            opacity=0.6,
            zsmooth="best",
            text=names,
            hovertemplate="%{text}: %{z:.1%} of the attention<extra></extra>",
            showscale=False,
        ),
    ]
    if mask is not None and mask.any():
        traces.append(
            go.Contour(
                z=mask,
                contours=dict(start=0.5, end=0.5, coloring="none"),
                line=dict(color="white", width=1.5),
                showscale=False,
                showlegend=False,
                hoverinfo="skip",
            )
        )
    row, column = np.unravel_index(values.argmax(), values.shape)
    return [
        *traces,
        go.Scatter(
            x=[centres[column]],
            y=[centres[row]],
            mode="markers",
            marker=dict(symbol="x", color="cyan", size=9),
            showlegend=False,
            hoverinfo="skip",
        ),
    ]


def lens(
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    step: int | None = None,
    truth: int | None = None,
    top: int = 5,
) -> go.Figure:
    """Class probabilities read out of every state z_0 .. z_T [state class]: those ever likely, the true one thick."""
    likely = list(np.argsort(-probabilities.max(0), kind="stable")[:top])
    if truth is not None and truth not in likely:
        likely.append(truth)
    lines, states = [], np.arange(len(probabilities))
    for colour, k in zip(cycle(style.SEQUENCE), likely, strict=False):
        look = dict(label=f"{classes[k]} (true)", width=2.5) if k == truth else dict(label=classes[k], width=1.0)
        lines.append(looks.Line(states, as_percent(probabilities[:, k]), colour=colour, mark="o", **look))
    marks = {} if step is None else {"": step + 1}
    chance = {"chance": 100 / probabilities.shape[1]}
    drawn = looks.Curves(lines, x=READ_OUT, y="probability (%)", levels=chance, marks=marks).interactive(340)
    return drawn.update_yaxes(range=[0, 102])


def norms(values: np.ndarray, cls: np.ndarray, registers: np.ndarray, *, step: int) -> go.Figure:
    """Token norms: a map of the patches at `step`, and CLS, registers and the mean patch over the states.

    values: [state row column]; cls: [state]; registers: [state register].
    """
    titles = [f"patches after step {step + 1}", "over the steps"]
    fig = make_subplots(1, 2, column_widths=[0.45, 0.55], horizontal_spacing=0.25, subplot_titles=titles)
    said = "patch %{y}, %{x}: norm %{z:.4~g}<extra></extra>"
    fig.add_heatmap(
        z=values[step + 1], hovertemplate=said, colorscale=style.MAP, colorbar=dict(x=0.38, thickness=10), row=1, col=1
    )
    fig.update_yaxes(autorange="reversed", visible=False, scaleanchor="x", row=1, col=1)
    fig.update_xaxes(visible=False, row=1, col=1)
    tokens = {"CLS": cls, "mean patch": values.mean((1, 2)), "largest patch": values.max((1, 2))}
    tokens |= {f"register {k}": registers[:, k] for k in range(registers.shape[1])}
    for colour, (name, norm) in zip(cycle(style.SEQUENCE), tokens.items(), strict=False):
        line = looks.Line(np.arange(len(cls)), norm, label=name, colour=colour)
        fig.add_trace(line.trace("after step", "norm"), row=1, col=2)
    fig.add_vline(step + 1, line=dict(color=style.CHANCE, width=1), row=1, col=2)
    fig.update_xaxes(title="after step", dtick=3, range=[-0.3, len(cls) - 0.7], row=1, col=2)
    fig.update_yaxes(rangemode="tozero", row=1, col=2)
    fig.update_annotations(font_size=13)
    return fig.update_layout(height=340, legend=looks.BELOW, **looks.WHITE)


def accuracy(ratio: np.ndarray, n_classes: int, n_images: int) -> go.Figure:
    """Top-1 read out after each step [state], measured on so many images, with Wilson's interval, and chance."""
    bounds = intervals.of_ratio(ratio, n_images, 100)
    line = looks.Line(np.arange(len(ratio)), as_percent(ratio), *bounds, label="top-1", mark="o")
    title = f"top-1 of {n_images} images (%)"
    drawn = looks.Curves([line], x=READ_OUT, y=title, levels={"chance": 100 / n_classes}).interactive(340)
    return drawn.update_yaxes(range=[0, 102])


def training(records: Sequence[dict[str, Any]]) -> go.Figure:
    """The training log: loss, and top-1 of the validation split where it was measured, over images seen."""
    fig = make_subplots(specs=[[{"secondary_y": True}]])
    for key, scale, label, colour in (
        ("loss", 1, "training loss", style.CHANCE),
        ("top1", 100, "top-1 (%)", style.MAIN),
    ):
        there = [record for record in records if key in record]
        images, values = [record["images"] for record in there], [scale * record[key] for record in there]
        line = looks.Line(images, values, label=label, colour=colour, width=1.0)
        fig.add_trace(line.trace("images seen", label), secondary_y=key == "top1")
    fig.update_layout(height=300, legend=looks.BELOW, **looks.WHITE).update_layout(margin_r=50)
    fig.update_xaxes(title="images seen")
    fig.update_yaxes(title="loss", secondary_y=False)
    return fig.update_yaxes(
        title="top-1 (%)", range=[0, 102], dtick=20, tickmode="linear", tick0=0, showgrid=False, secondary_y=True
    )
