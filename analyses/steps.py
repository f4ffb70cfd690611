"""What happens to one image, step by step: attention maps, logit lens, token norms, the effect of a head (plotly figures).

Every function takes plain arrays and costs milliseconds; the dashboard feeds them.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from contourpy import contour_generator
from matplotlib import colormaps
from PIL import Image
from plotly.subplots import make_subplots

from analyses.style import CHANCE, CONTROL, MAIN, MAP, SECOND, SEQUENCE, step_label

OUTLINE, POINT = "#ffffff", "#00e5ff"  # the object's outline and the arg-max, on any image
MARGIN = dict(l=55, r=15, t=35, b=45)


@dataclass(frozen=True)
class Panel:
    """One picture under one attention map.

    pixels: uint8 [y x channel]; attention: [row column], any scale; mask: [y x] of 0 and 1, or None.
    """

    title: str
    pixels: np.ndarray
    attention: np.ndarray
    mask: np.ndarray | None = None


def overlays(panels: Sequence[Panel], *, columns: int = 6, side: int = 190) -> go.Figure:
    """Attention over the image, one small picture a panel, each map scaled to its own peak.

    The object is outlined in white, the patch with the highest attention marked with a cross. `side` is the size of a picture in px.
    """
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    height, width = rows * (side + 34) + 6, columns * (side + 12)
    titles = [panel.title for panel in panels]
    fig = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=12 / width, vertical_spacing=34 / height if rows > 1 else 0
    )
    for place, panel in enumerate(panels):
        _overlay(fig, panel, place // columns + 1, place % columns + 1)
    fig.update_annotations(font_size=12)
    fig.update_layout(height=height, margin=dict(l=0, r=0, t=28, b=4), showlegend=False)
    return fig


def _overlay(fig: go.Figure, panel: Panel, row: int, column: int) -> None:
    size = len(panel.pixels)
    grid = panel.attention.shape[0]
    at = dict(row=row, col=column)
    centres = (np.arange(grid) + 0.5) * size / grid
    fig.add_image(source=png(panel.pixels), x0=0.5, y0=0.5, hoverinfo="skip", **at)
    peak = max(float(np.nanmax(panel.attention)), 1e-12)
    share = 100 * panel.attention / max(float(panel.attention.sum()), 1e-12)
    fig.add_heatmap(
        z=panel.attention, x=centres, y=centres, zmin=0, zmax=peak, zsmooth="best", colorscale=GLOW, showscale=False, customdata=share,
        hovertemplate="%{customdata:.1f} % of the attention to patches<extra></extra>", **at,
    )  # fmt: skip
    for line in outline(panel.mask):
        fig.add_scatter(x=line[:, 0], y=line[:, 1], mode="lines", line=dict(color=OUTLINE, width=1.5), hoverinfo="skip", **at)
    y, x = np.unravel_index(np.nanargmax(panel.attention), panel.attention.shape)
    cross = dict(symbol="x-thin", size=11, line=dict(color=POINT, width=3))
    fig.add_scatter(x=centres[[x]], y=centres[[y]], mode="markers", marker=cross, hoverinfo="skip", **at)
    fig.update_xaxes(range=[0, size], visible=False, constrain="domain", **at)
    fig.update_yaxes(range=[size, 0], visible=False, scaleanchor=fig.get_subplot(row, column).xaxis.plotly_name.replace("axis", ""), **at)


def glow() -> list[list]:
    """Inferno that lets the image through where attention is low."""
    stops = np.linspace(0, 1, 11)
    colours = (255 * colormaps["inferno"](0.1 + 0.9 * stops)[:, :3]).round().astype(int)
    return [[float(s), f"rgba({r},{g},{b},{0.35 + 0.35 * s:.2f})"] for s, (r, g, b) in zip(stops, colours, strict=True)]


GLOW = glow()


def outline(mask: np.ndarray | None) -> list[np.ndarray]:
    """Lines [point (x, y)] around the ones of a mask [y x], in pixels from the image's corner."""
    if mask is None or not mask.any():
        return []
    padded = np.pad(mask.astype(float), 1)
    return [line - 0.5 for line in contour_generator(z=padded).lines(0.5)]


def png(pixels: np.ndarray) -> str:
    """uint8 [y x channel] as a data address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    values = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def leading(logits: np.ndarray, n: int = 5, label: int | None = None) -> list[int]:
    """The `n` classes with the highest final logit, best first, and the true one: logits [state class]."""
    order = np.argsort(-logits[-1], kind="stable")[:n].tolist()
    return order if label is None or label in order else [*order, label]


def logit_lens(logits: np.ndarray, classes: Sequence[str], step: int, *, label: int | None = None, n: int = 5) -> go.Figure:
    """Probability of the leading classes read out of every state z_0 .. z_T: logits [state class]; the state after `step` is marked."""
    fig, shares = go.Figure(), 100 * probabilities(logits)
    colours = [*SEQUENCE, CONTROL]
    for place, index in enumerate(leading(logits, n, label)):
        name = f"{classes[index]} (true)" if index == label else classes[index]
        line = dict(color=colours[place % len(colours)], width=3 if index == label else 1.8)
        hover = "%{y:.1f} % " + name + "<extra></extra>"
        fig.add_scatter(y=shares[:, index], mode="lines+markers", name=name, line=line, hovertemplate=hover)
    fig.add_vline(step + 1, line=dict(color=CHANCE, width=1.5, dash="dot"))
    fig.update_layout(hovermode="x unified", height=340, margin=MARGIN, yaxis=dict(title="probability (%)", range=[-2, 103]))
    fig.update_layout(xaxis=state_axis(len(logits)), legend=dict(orientation="h", y=-0.28, x=0))
    return fig


def state_axis(n_states: int) -> dict:
    """An axis over z_0 (the embedding, before any step) to z_T."""
    return dict(title="read out after step (0 = embedding)", tickvals=list(range(n_states)), range=[-0.3, n_states - 0.7])


def norm_map(norms: np.ndarray) -> go.Figure:
    """Length of every patch token [row column]."""
    fig = go.Figure(go.Heatmap(z=norms, colorscale=MAP, xgap=1, ygap=1, colorbar=dict(title="norm"), hovertemplate="row %{y}, column %{x}: %{z:.1f}<extra></extra>"))
    fig.update_yaxes(autorange="reversed", scaleanchor="x", visible=False, constrain="domain")
    fig.update_xaxes(visible=False, constrain="domain")
    return fig.update_layout(height=300, margin=dict(l=5, r=5, t=10, b=10))


def norm_curves(norms: np.ndarray, n_prefix: int, step: int) -> go.Figure:
    """Token lengths over the states: norms [state token] with CLS, then registers, then patches."""
    fig, patches, x = go.Figure(), norms[:, n_prefix:], np.arange(len(norms))
    low, high = np.quantile(patches, [0.1, 0.9], axis=1)
    band = dict(fill="toself", fillcolor="rgba(42,111,151,0.15)", line_width=0, hoverinfo="skip", name="patches, 10 to 90 %")
    fig.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]), **band)
    fig.add_scatter(x=x, y=patches.mean(1), name="patches, mean", line_color=MAIN, hovertemplate="%{y:.1f}")
    fig.add_scatter(x=x, y=norms[:, 0], name="CLS", line_color=SECOND, hovertemplate="%{y:.1f}")
    for r in range(1, n_prefix):
        colour = SEQUENCE[(r + 1) % len(SEQUENCE)]
        fig.add_scatter(x=x, y=norms[:, r], name=f"register {r - 1}", line=dict(color=colour, dash="dash"), hovertemplate="%{y:.1f}")
    fig.add_vline(step + 1, line=dict(color=CHANCE, width=1.5, dash="dot"))
    axes = dict(xaxis=state_axis(len(norms)) | dict(title="state after step (0 = embedding)"), yaxis=dict(title="norm", rangemode="tozero"))
    return fig.update_layout(**axes, hovermode="x unified", height=300, margin=MARGIN, legend=dict(orientation="h", y=-0.3, x=0))


def effect(before: np.ndarray, after: np.ndarray, classes: Sequence[str], *, n: int = 5) -> go.Figure:
    """Leading probabilities with and without an intervention: final logits [class] of both."""
    chosen = sorted({*leading(before[None], n), *leading(after[None], 1)}, key=lambda index: before[index])
    fig, names = go.Figure(), [classes[index] for index in chosen]
    for title, logits, colour in (("without the head", after, SECOND), ("as it is", before, MAIN)):
        shares = 100 * probabilities(logits)[chosen]
        fig.add_bar(y=names, x=shares, orientation="h", name=title, marker_color=colour, hovertemplate="%{x:.1f} %")
    fig.update_layout(barmode="group", height=70 + 42 * len(chosen), margin=MARGIN | dict(l=10), legend=dict(traceorder="reversed"))
    return fig.update_layout(xaxis=dict(title="probability (%)", range=[0, 100]), yaxis=dict(automargin=True))


def accuracy_curve(correct: np.ndarray, chance: float) -> go.Figure:
    """Share of right answers read out of every state: correct [image state] of 0 and 1, with 95 % intervals (Wilson)."""
    rate, (low, high) = correct.mean(0), wilson(correct.sum(0), len(correct))
    fig, x = go.Figure(), np.arange(correct.shape[1])
    bars = dict(array=100 * (high - rate), arrayminus=100 * (rate - low), thickness=1.2, width=3)
    hover = "after step %{x}: %{y:.1f} %<extra></extra>"
    fig.add_scatter(x=x, y=100 * rate, error_y=bars, mode="lines+markers", name="accuracy", line_color=MAIN, hovertemplate=hover)
    fig.add_hline(100 * chance, line=dict(color=CHANCE, dash="dash"), annotation_text=f"chance, {100 * chance:.3g} %", annotation_font_color=CHANCE)
    return fig.update_layout(
        xaxis=state_axis(len(rate)), yaxis=dict(title="accuracy (%)", range=[0, 103]), height=380, margin=MARGIN, showlegend=False
    )


def wilson(hits: np.ndarray, n: int, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a proportion."""
    share, scale = hits / n, 1 + z**2 / n
    middle = (share + z**2 / (2 * n)) / scale
    half = z / scale * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def training(records: Sequence[dict], name: str = "loss") -> go.Figure:
    """Training loss and validation accuracy over the images seen: the lines of a training log."""
    fig = make_subplots(specs=[[{"secondary_y": True}]])
    curves = (("loss", "training loss", CONTROL, 1.0, False), ("top1", "validation accuracy", MAIN, 100.0, True))
    for key, title, colour, scale, is_right in curves:
        rows = [record for record in records if key in record and "images" in record]
        x, y = [record["images"] for record in rows], [scale * record[key] for record in rows]
        mode = "lines+markers" if is_right else "lines"
        fig.add_scatter(x=x, y=y, mode=mode, name=title, line_color=colour, hovertemplate="%{y:.3g}", secondary_y=is_right)
    fig.update_yaxes(title_text="training loss", rangemode="tozero", secondary_y=False)
    fig.update_yaxes(title_text="validation accuracy (%)", range=[0, 103], showgrid=False, secondary_y=True)
    fig.update_xaxes(title_text="training images seen")
    return fig.update_layout(hovermode="x unified", height=380, margin=MARGIN | dict(r=55), legend=dict(orientation="h", y=-0.25, x=0))


def diagram(n_steps: int, n_blocks: int) -> go.Figure:
    """The model as boxes: embedding, a block per step (one colour a block), the classifier."""
    fig, n = go.Figure(), n_steps
    boxes = [("image<br>+ CLS", CONTROL)] + [(f"<b>{t + 1}</b>", SEQUENCE[t * n_blocks // n_steps % len(SEQUENCE)]) for t in range(n)] + [("answer", CONTROL)]
    for x, (text, colour) in enumerate(boxes):
        fig.add_shape(type="rect", x0=x - 0.38, x1=x + 0.38, y0=0, y1=1, fillcolor=colour, line_width=0)
        fig.add_annotation(x=x, y=0.5, text=text, showarrow=False, font=dict(color="white", size=12))
        if x:
            fig.add_annotation(x=x - 0.38, y=0.5, ax=x - 0.62, ay=0.5, xref="x", yref="y", axref="x", ayref="y", arrowhead=2, arrowcolor=CHANCE)
    if n_blocks == 1:
        fig.add_shape(type="path", path=f"M 0.6,1.15 L 0.6,1.3 L {n + 0.4},1.3 L {n + 0.4},1.15", line=dict(color=SEQUENCE[0], width=2))
        fig.add_annotation(x=(n + 1) / 2, y=1.62, text=f"the same block, the same weights, {n} times", showarrow=False, font=dict(color=SEQUENCE[0], size=14))
    fig.update_xaxes(visible=False, range=[-0.5, n + 1.5], fixedrange=True)
    fig.update_yaxes(visible=False, range=[-0.1, 1.9], fixedrange=True)
    return fig.update_layout(height=130, margin=dict(l=0, r=0, t=0, b=0), plot_bgcolor="rgba(0,0,0,0)")


def step_title(step: int, n_steps: int) -> str:
    """How a page names the step it shows."""
    return f"{step_label(step)} of {n_steps}"
