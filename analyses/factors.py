"""Statistics, tables and figures of when each factor becomes readable, and whether one code serves all steps."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import looks, style
from analyses.style import Results, as_percent

TOKENS = {
    "CLS": "CLS",
    "patches": "mean of all patches",
    "object": "mean of the object's",
    "background": "mean of the others",
}
COLUMNS = 4  # panels in a row of the figure

# Statistics


def own(transfer: xr.DataArray) -> xr.DataArray:
    """Each state read by its own probe: [... state], of scores [... state other_state]."""
    diagonal = xr.DataArray(np.arange(transfer.sizes["state"]), dims="state")
    return transfer.isel(state=diagonal, other_state=diagonal)


def is_clear(score: xr.DataArray, chance: xr.DataArray) -> xr.DataArray:
    """Where a factor is read at least half as well, above chance, as in its best state: [... state]."""
    gained = (score - chance).fillna(0)
    return (gained > 0) & (gained >= gained.max("state") / 2)


def half(score: xr.DataArray, chance: xr.DataArray) -> xr.DataArray:
    """The first state in which a factor `is_clear`: [...]; NaN where it is above chance in none."""
    clear = is_clear(score, chance)
    return clear.argmax("state").where(clear.any("state"))


def shared(transfer: xr.DataArray, chance: xr.DataArray, clear: xr.DataArray) -> xr.DataArray:
    """The share of what its own probe reads of a state, above chance, that the probes of other states read: [...].

    Over all pairs of different states in which the factor is `clear` [... state], but for the embedding; what lies
    below chance counts as nothing.
    """
    clear = clear & (xr.DataArray(np.arange(clear.sizes["state"]), dims="state") > 0)
    read, states = clear.rename(state="other_state"), np.arange(clear.sizes["state"])
    fitted, other = (xr.DataArray(states, dims=dim) for dim in ("state", "other_state"))
    counts = clear & read & (fitted != other)
    gained = (transfer - chance).clip(min=0).where(counts, 0).sum(("state", "other_state"))
    by_own = own(transfer).rename(state="other_state") - chance
    most = by_own.where(counts, 0).sum(("state", "other_state"))
    return (gained / most).where(counts.any(("state", "other_state")))


def best(numbers: xr.Dataset, factor: str, token: str) -> int:
    """The state in which a factor is read best."""
    return int(numbers["score"].sel(factor=factor, token=token).fillna(-np.inf).argmax("state"))


def is_asked(numbers: xr.Dataset, factor: str, token: str) -> bool:
    """Whether a factor was read from a token; where patches lie gives away the position of their object."""
    return bool(numbers["score"].sel(factor=factor, token=token).notnull().any())


def measure_of(result: xr.Dataset, factor: str) -> str:
    """What a factor's score is."""
    return "right (%)" if int(result["n_classes"].sel(factor=factor)) else "variance explained (%)"


# Tables

LEGEND = (
    "half way: the first step whose score is half way from chance to the best; shuffled: the same probe of shuffled",
    "values; other steps': what their probes read of what a step's own reads above chance, among the steps that are at",
    "least half way; untrained: its best step; -: not read above chance, or given away by the choice of the patches",
)


def table(result: xr.Dataset) -> str:
    """What the command prints: a line per factor, a block per token."""
    attrs = result.attrs
    lines = [
        f"factors: {attrs['n_measured']} images, linear probes fitted on {attrs['n_fitted']} others, {n_steps(result)} "
        "steps; of classes the",
        "share that is right, of numbers the share of their variance that is explained (R2), in %, 95 % intervals",
    ]
    for token in result["token"].values:
        titles = ["chance", "best", "after", "half way", "shuffled", "other steps'", "untrained"]
        lines += ["", line(TOKENS[token], titles)]
        lines += [line(f"  {factor}", cells(result, factor, token)) for factor in result["factor"].values]
    return "\n".join([*lines, "", *LEGEND])


def n_steps(result: xr.Dataset) -> int:
    return result.sizes["state"] - 1


def line(title: str, cells: list[str]) -> str:
    widths = (7, 22, 6, 13, 9, 16, 10)
    return f"{title:33}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def cells(result: xr.Dataset, factor: str, token: str) -> list[str]:
    """What a line says of a factor."""
    chance = f"{100 * float(result['chance'].sel(factor=factor)):.1f}"
    if not is_asked(result, factor, token):
        return [chance, *["-"] * 6]
    at = dict(factor=factor, token=token)
    state, untrained = best(result, factor, token), style.untrained(result, "score")
    return [
        chance,
        style.with_interval(result, "score", dict(at, state=state)),
        str(state),
        style.with_interval(result, "half", at, scale=1, digits=0),
        f"{100 * float(result['shuffled'].sel(dict(at, state=state))):.1f}",
        style.with_interval(result, "shared", at, digits=0),
        "-" if untrained is None else f"{100 * float(untrained.sel(at).max()):.1f}",
    ]


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Scores and selectivity with their intervals, one line per factor, token, state and model."""
    names = [f"{name}{end}" for name in ("score", "selectivity") for end in ("", "_low", "_high")]
    return style.tidy(result, *names, "shuffled", "chance")


def transfer_frame(result: xr.Dataset) -> pd.DataFrame:
    """What the probe of a state reads of another, one line per pair of states."""
    return style.tidy(result, "transfer", "transfer_low", "transfer_high")


# Figures


def curves(results: Results, factor: str, title: str = "") -> looks.Curves:
    """How well one factor is read from every token over the steps; dashed: the untrained model."""
    lines, first = [], next(iter(style.named(results).values()))
    for model in style.series(results, "score"):
        there = [token for token in TOKENS if token in model.numbers["token"].values]
        for token, colour in zip(TOKENS, (style.MAIN, style.SECOND, "#009e73", "#f0b73a"), strict=True):
            if token in there and is_asked(model.numbers, factor, token):
                at = dict(factor=factor, token=token)
                value, low, high = (as_percent(model.numbers[f"score{end}"].sel(at)) for end in ("", "_low", "_high"))
                look = model.look(TOKENS[token], colour=colour, mark="")
                lines.append(looks.Line(model.numbers["state"].values, value, low, high, **look))
    levels = style.levels(results, lambda result: {"chance": 100 * float(result["chance"].sel(factor=factor))})
    is_class = bool(first["n_classes"].sel(factor=factor))
    return looks.Curves(
        lines,
        levels=levels,
        x="after step",
        y=measure_of(first, factor),
        title=title,
        low=0 if is_class else -15,
        high=102,
    )


def transfer_map(numbers: xr.Dataset, factor: str, token: str = "CLS", *, chance: float, title: str = "") -> looks.Map:
    """What the probe that was fitted after one step reads after another, from chance on."""
    at = dict(factor=factor, token=token)
    values = as_percent(numbers["transfer"].sel(at).transpose("state", "other_state"))
    ends = (("95 % from", "low"), ("to", "high"))
    bounds = {
        name: as_percent(numbers[f"transfer_{end}"].sel(at).transpose("state", "other_state")) for name, end in ends
    }
    states = numbers["state"].values.tolist()
    return looks.Map(
        values,
        states,
        states,
        low=100 * chance,
        high=100,
        beside=bounds,
        x="read after step",
        y="fitted after step",
        is_square=True,
        title=title,
        bar="score (%)",
    )


def chance_of(result: xr.Dataset, factor: str) -> float:
    return float(result["chance"].sel(factor=factor))


def figure(results: Results) -> Figure:
    """A panel per factor: how well it is read from every token over the steps; a block of rows per result."""
    named = style.named(results)
    rows = [-(-result.sizes["factor"] // COLUMNS) for result in named.values()]
    most = max(result.sizes["factor"] for result in named.values())
    drawn, axes = looks.panels(sum(rows), min(COLUMNS, most), height=2.7)
    across = len(axes) // sum(rows)
    for ax in axes:
        ax.set_visible(False)
    for i, (name, result) in enumerate(named.items()):
        here = axes[across * sum(rows[:i]) :]
        for ax, factor in zip(here, result["factor"].values.tolist(), strict=False):
            ax.set_visible(True)
            curves(result, factor, f"{name} {factor}".strip()).draw(ax, legend=False)
    looks.legend_below(drawn, axes[0], 5)
    return drawn


def codes(results: Results, token: str = "CLS") -> Figure:
    """A map per factor that is read from CLS: every step's probe read at every step; a row per result."""
    shown = [
        (name, result, factor)
        for name, result in style.named(results).items()
        for factor in result["factor"].values.tolist()
        if np.isfinite(float(result["half"].sel(factor=factor, token=token)))
    ]
    drawn, axes = looks.panels(-(-len(shown) // COLUMNS) or 1, COLUMNS, width=3.4, height=3.0)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax, (name, result, factor) in zip(axes, shown, strict=False):
        numbers = style.models(result)["trained"]
        transfer_map(numbers, factor, token, chance=chance_of(result, factor), title=f"{name} {factor}").draw(ax)
    return drawn


FIGURES = {"factors": figure, "codes": codes}


def interactive(result: xr.Dataset, factor: str | None = None) -> go.Figure:
    """One factor, by default the first, from every token over the steps, to hover over."""
    return curves(result, factor or str(result["factor"].values[0])).interactive()
