"""Figures of a transplant: predictions of one image's run after a part of another image's state replaces its own."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from analyses import looks, style, tiles
from analyses.style import as_percent


def flips_at(flips: np.ndarray) -> str:
    """The steps at which the answer flips, in words; `flips` is boolean [step]."""
    steps = (np.flatnonzero(flips) + 1).tolist()
    runs = [[step, step] for step in steps[:1]]
    for step in steps[1:]:
        if step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    if not runs:
        return "at no step"
    ranges = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
    return f"at step {ranges}" if len(steps) == 1 else f"at steps {ranges}"


def curves(
    moved: Mapping[str, np.ndarray], unrelated: Mapping[str, np.ndarray], answer: str, n_classes: int
) -> looks.Curves:
    """Probability of the donor's answer after a transplant at each step, by part [step]; dashed, transplants of the
    same part from an unrelated image.
    """
    lines, steps = [], np.arange(len(next(iter(moved.values())))) + 1
    for (part, values), colour in zip(moved.items(), style.SEQUENCE, strict=False):
        lines.append(looks.Line(steps, as_percent(values), label=part, colour=colour, mark="o"))
        if part in unrelated:
            label = f"{part}, of an unrelated image"
            lines.append(looks.Line(steps, as_percent(unrelated[part]), label=label, colour=colour, dash="dash"))
    title = f"probability of {answer} (%)"
    return looks.Curves(lines, x="step", y=title, levels={"chance": 100 / n_classes}, low=0, high=102)


def effect(found: np.ndarray, before: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Normalised effect of transplants on the logit difference between the donor's and the receiver's answer.

    0 means no change from the receiver's run, 1 the logit difference of the donor's run. Class probabilities: found
    [... class] after the transplants, before [class] in the receiver's run, donor [class] in the donor's run.
    """
    own_answer, donor_answer = int(before.argmax()), int(donor.argmax())

    def logit_difference(probability: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(probability.astype(np.float64), 1e-30))
        return logs[..., donor_answer] - logs[..., own_answer]

    baseline = logit_difference(before)
    return (logit_difference(found) - baseline) / (logit_difference(donor) - baseline)


def grid(effects: np.ndarray, flips: np.ndarray, of_cls: np.ndarray) -> go.Figure:
    """A map a step: the effect of every patch put in alone, a cross where the answer flips, both [step row column];
    above each, the effect of CLS alone [step].
    """
    side = effects.shape[-1]
    limit = 100 * max(float(np.abs(effects).max()), 0.01)
    across = min(6, len(effects))
    down = -(-len(effects) // across)
    titles = [f"step {t + 1}<br>CLS {100 * effect:z.0f} %" for t, effect in enumerate(of_cls)]
    drawn = tiles.panels(titles, down, across)
    for t, (values, flipped) in enumerate(zip(effects, flips, strict=True)):
        place = dict(row=t // across + 1, col=t % across + 1)
        said = "patch %{y}, %{x}: %{z:.1f} %<extra></extra>"
        drawn.add_trace(go.Heatmap(z=100 * values, coloraxis="coloraxis", hovertemplate=said), **place)
        rows, columns = np.nonzero(flipped)
        mark = dict(symbol="x", size=8, color="white", line=dict(color="black", width=1))
        look = dict(mode="markers", marker=mark, showlegend=False, hoverinfo="skip")
        drawn.add_trace(go.Scatter(x=columns, y=rows, **look), **place)
    drawn.update_xaxes(range=[-0.5, side - 0.5]).update_yaxes(range=[side - 0.5, -0.5])
    bar = dict(colorscale=style.CHANGE, cmin=-limit, cmax=limit, colorbar=tiles.bar("effect (%)"))
    return tiles.settled(drawn.update_layout(coloraxis=bar))


def chooser(picture: np.ndarray, chosen: list[int], side: int) -> go.Figure:
    """A picture whose patches can be chosen by a box, or by clicks while plotly pans (Streamlit allows one of both at a
    time); those that are, are framed.
    """
    size = len(picture)
    patch = size / side
    rows, columns = np.indices((side, side))
    x, y = (patch * (place.ravel() + 0.5) - 0.5 for place in (columns, rows))
    drawn = go.Figure(go.Image(z=picture, hoverinfo="skip"))
    names = [f"patch {row}, {column}" for row, column in zip(rows.ravel(), columns.ravel(), strict=True)]
    look = dict(symbol="square-open", size=max(6, 300 // side - 6), color="white")
    shown = [1.0 if place in chosen else 0.0 for place in range(side * side)]
    texts = dict(text=names, hovertemplate="%{text}<extra></extra>", showlegend=False)
    drawn.add_scatter(x=x, y=y, mode="markers", marker=dict(opacity=shown, **look), **texts)
    drawn.update_xaxes(visible=False, range=[-0.5, size - 0.5])
    drawn.update_yaxes(visible=False, range=[size - 0.5, -0.5], scaleanchor="x")
    clear = "rgba(0, 0, 0, 0)"
    look = looks.WHITE | dict(margin=dict(l=0, r=0, t=0, b=0), paper_bgcolor=clear, plot_bgcolor=clear)
    return drawn.update_layout(height=320, dragmode="select", **look)
