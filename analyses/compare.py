"""Figures of two models on one image: attention on one colour scale, its difference, and both answers as they form."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import looks, style, tiles
from analyses.style import as_percent

LONGEST = 18  # letters of a model's name over its maps; the page says it in full


def attention(maps: Mapping[str, np.ndarray], *, columns: int = 6) -> go.Figure:
    """Attention of CLS of every head [head row column] of two models at one step, all on one colour scale, each model's
    mean over heads in front; beneath, the difference of the means where both have the same patches.
    """
    (first, a), (second, b) = maps.items()
    highest = 100 * max(float(a.max()), float(b.max()))
    rows = [(first, a), (second, b)]
    across = min(columns, 1 + max(len(a), len(b)))
    has_difference = a.shape[1:] == b.shape[1:]
    titles = []
    for name, of in rows:
        titles += [f"{name[:LONGEST]}<br>mean", *[f"head {h}" for h in range(len(of))]][:across]
        titles += [""] * (across - 1 - len(of))
    titles += ["difference<br>(second − first)"] if has_difference else []
    drawn = tiles.panels(titles, 2 + has_difference, across)
    for row, (_, of) in enumerate(rows):
        for column, values in enumerate([of.mean(0), *of][:across]):
            drawn.add_trace(cells(100 * values, "coloraxis"), row=row + 1, col=column + 1)
    if has_difference:
        difference = 100 * (b.mean(0) - a.mean(0))
        limit = max(float(np.abs(difference).max()), 1e-6)
        drawn.add_trace(cells(difference, "coloraxis2"), row=3, col=1)
        bar = tiles.bar("difference (points)", 1, 2)
        drawn.update_layout(coloraxis2=dict(colorscale=style.CHANGE, cmin=-limit, cmax=limit, colorbar=bar))
    drawn.update_yaxes(autorange="reversed")
    bar = tiles.bar("attention (%)", 0, 1 + has_difference)
    shared = dict(colorscale=looks.GLOW, cmin=0, cmax=highest, colorbar=bar)
    return tiles.settled(drawn.update_layout(coloraxis=shared))


def frame(maps: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The same as a table, all heads by their model: a line a patch, in % of what CLS attends to."""
    tables = []
    for name, of in maps.items():
        places = pd.MultiIndex.from_product([range(n) for n in of.shape], names=["head", "row", "column"])
        table = pd.DataFrame({"attention (%)": as_percent(of).ravel()}, places).reset_index()
        tables.append(table.assign(model=name))
    return pd.concat(tables, ignore_index=True)[["model", "head", "row", "column", "attention (%)"]]


def cells(values: np.ndarray, axis: str) -> go.Heatmap:
    return go.Heatmap(z=values, coloraxis=axis, hovertemplate="patch %{y}, %{x}: %{z:.2f}<extra></extra>")


def answers(
    probability: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]], names: Sequence[str]
) -> looks.Curves:
    """The answer as it forms: probability [state class] of each of these classes, solid in the first model, dashed in
    the second; chance of each where they have not as many classes.
    """
    chance = {f"{model}: chance": 100 / of.shape[1] for model, of in probability.items()}
    if len(set(chance.values())) == 1:
        chance = {"chance": next(iter(chance.values()))}
    lines = []
    for (model, probabilities), dash in zip(probability.items(), ("solid", "dash"), strict=True):
        for name, colour in zip(names, style.SEQUENCE, strict=False):
            if name in classes[model]:
                values = as_percent(probabilities[:, list(classes[model]).index(name)])
                lines.append(
                    looks.Line(
                        np.arange(len(values)),
                        values,
                        label=f"{model}: {name}",
                        colour=colour,
                        dash=dash,
                        mark="o" if dash == "solid" else "",
                    )
                )
    return looks.Curves(
        lines,
        x="read out after step (0 is the embedding)",
        y="probability (%)",
        levels=chance,
        low=0,
        high=102,
    )
