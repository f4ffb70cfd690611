"""Figures of one image seen step by step: attention of every head, the answer as it forms, token norms.

Pure functions of arrays; the dashboard and notebooks call them.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style


def attention(picture: np.ndarray, maps: np.ndarray, mask: np.ndarray | None = None, *, columns: int = 6) -> go.Figure:
    """CLS attention of every head over the picture, the arg-max marked, the object outlined.

    picture: [y x channel] uint8; maps: [head row column]; mask: [y x] of 0 and 1, or None.
    """
    heads, rows, _ = maps.shape
    across = min(columns, heads)
    titles = [f"head {h} · {100 * m.max() / max(m.sum(), 1e-12):.0f} % at the peak" for h, m in enumerate(maps)]
    fig = make_subplots(-(-heads // across), across, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=0.12)
    size, patch = len(picture), len(picture) / rows
    for h, values in enumerate(maps):
        place = dict(row=h // across + 1, col=h % across + 1)
        fig.add_image(z=picture, hoverinfo="skip", **place)
        centres = (np.arange(rows) + 0.5) * patch - 0.5
        fig.add_heatmap(
            z=values,
            x=centres,
            y=centres,
            colorscale="Inferno",
            opacity=0.6,
            showscale=False,
            hovertemplate="%{z:.3f}<extra></extra>",
            zsmooth="best",
            **place,
        )
        if mask is not None and mask.any():
            line = dict(color="white", width=1.5)
            fig.add_contour(
                z=mask,
                contours=dict(start=0.5, end=0.5, coloring="none"),
                line=line,
                showscale=False,
                showlegend=False,
                hoverinfo="skip",
                **place,
            )
        row, column = np.unravel_index(values.argmax(), values.shape)
        fig.add_scatter(
            x=[centres[column]],
            y=[centres[row]],
            mode="markers",
            marker=dict(symbol="x", color="cyan", size=9),
            showlegend=False,
            hoverinfo="skip",
            **place,
        )
    fig.update_xaxes(visible=False, range=[-0.5, size - 0.5])
    fig.update_yaxes(visible=False, range=[size - 0.5, -0.5])
    fig.update_annotations(font_size=12)
    fig.update_layout(height=70 + 230 * -(-heads // across), margin=dict(l=5, r=5, t=30, b=5))
    return fig


def lens(
    probabilities: np.ndarray, classes: Sequence[str], *, step: int | None = None, truth: int | None = None, top: int = 5
) -> go.Figure:
    """Class probabilities read out of every state z_0 .. z_T: [state class]; the classes that are ever likely, the true one dashed."""
    shown = list(np.argsort(-probabilities.max(0), kind="stable")[:top])
    if truth is not None and truth not in shown:
        shown.append(truth)
    fig = go.Figure()
    for colour, k in zip(style.SEQUENCE * len(shown), shown, strict=False):
        is_truth = k == truth
        fig.add_scatter(
            x=np.arange(len(probabilities)), y=100 * probabilities[:, k], name=classes[k] + (" (true)" if is_truth else ""),
            line=dict(color=colour, width=3 if is_truth else 1.5), mode="lines+markers",
        )  # fmt: skip
    fig.add_hline(100 / probabilities.shape[1], line=dict(dash="dot", color=style.CHANCE), annotation_text="chance")
    if step is not None:
        fig.add_vline(step + 1, line=dict(color=style.CHANCE, width=1))
    fig.update_layout(
        xaxis=dict(title="read out after step (0 is the embedding)", dtick=1), yaxis=dict(title="probability (%)", range=[0, 102]),
        legend=dict(orientation="h", y=1.2), margin=dict(l=50, r=10, t=10, b=45), height=340,
    )  # fmt: skip
    return fig


def norms(values: np.ndarray, cls: np.ndarray, registers: np.ndarray, *, step: int) -> go.Figure:
    """Token norms: a map of the patches at `step` [row column], and CLS, registers and the mean patch over the states.

    values: [state row column]; cls: [state]; registers: [state register].
    """
    fig = make_subplots(
        1, 2, column_widths=[0.45, 0.55], horizontal_spacing=0.25, subplot_titles=[f"patches after step {step + 1}", "over the steps"]
    )
    fig.add_heatmap(z=values[step + 1], colorscale=style.MAP, colorbar=dict(x=0.38, thickness=10), row=1, col=1)
    fig.update_yaxes(autorange="reversed", visible=False, scaleanchor="x", row=1, col=1)
    fig.update_xaxes(visible=False, row=1, col=1)
    states = np.arange(len(cls))
    lines = {"CLS": cls, "mean patch": values.mean((1, 2)), "largest patch": values.max((1, 2))}
    lines |= {f"register {k}": registers[:, k] for k in range(registers.shape[1])}
    for colour, (name, line) in zip(style.SEQUENCE * len(lines), lines.items(), strict=False):
        fig.add_scatter(x=states, y=line, name=name, line_color=colour, row=1, col=2)
    fig.add_vline(step + 1, line=dict(color=style.CHANCE, width=1), row=1, col=2)
    fig.update_xaxes(title="after step", dtick=3, range=[-0.3, len(cls) - 0.7], row=1, col=2)
    fig.update_yaxes(rangemode="tozero", row=1, col=2)
    fig.update_annotations(font_size=13)
    fig.update_layout(height=340, margin=dict(l=10, r=10, t=30, b=45), legend=dict(orientation="h", y=-0.25))
    return fig


def accuracy(ratio: np.ndarray, spread: np.ndarray, n_classes: int, n_images: int) -> go.Figure:
    """Top-1 read out after each step [state], with 95 % intervals of half width `spread` [state], and chance."""
    fig = go.Figure(
        go.Scatter(
            x=np.arange(len(ratio)),
            y=100 * ratio,
            error_y=dict(array=100 * spread, thickness=1),
            line_color=style.MAIN,
            name="top-1",
            mode="lines+markers",
        )
    )
    fig.add_hline(100 / n_classes, line=dict(dash="dot", color=style.CHANCE), annotation_text="chance")
    title = f"top-1 of {n_images} images (%)"
    fig.update_layout(
        xaxis=dict(title="read out after step (0 is the embedding)", dtick=1), yaxis=dict(title=title, range=[0, 102]), height=340,
        margin=dict(l=50, r=10, t=10, b=45),
    )  # fmt: skip
    return fig


def training(records: Sequence[dict]) -> go.Figure:
    """The training log: loss, and top-1 of the validation split where it was measured, over images seen."""
    fig = make_subplots(specs=[[{"secondary_y": True}]])
    losses = [r for r in records if "loss" in r]
    scores = [r for r in records if "top1" in r]
    fig.add_scatter(x=[r["images"] for r in losses], y=[r["loss"] for r in losses], name="training loss", line_color=style.CONTROL)
    fig.add_scatter(
        x=[r["images"] for r in scores], y=[100 * r["top1"] for r in scores], name="top-1 (%)", line_color=style.MAIN, secondary_y=True
    )
    fig.update_layout(xaxis_title="images seen", height=300, margin=dict(l=50, r=50, t=10, b=45), legend=dict(orientation="h", y=1.15))
    fig.update_yaxes(title="loss", secondary_y=False)
    fig.update_yaxes(title="top-1 (%)", range=[0, 102], secondary_y=True)
    return fig
