"""Tables and figures of what is lost without a part: part x step, beside a random change as large and the untrained
model.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import looks, style
from analyses.style import Results

METRICS = {"accuracy": ("top-1 (points)", 100), "loss": ("loss (nats)", 1), "logit_diff": ("logit difference", 1)}
SCOPES = {"one": "at one step", "onwards": "from a step on"}
ABLATED, RANDOM = "ablated", "random direction"
IN_PLACE = {"mean": "its mean over the data", "zero": "zero", "resample": "its value on another image"}

# Statistics


def changes(numbers: xr.Dataset, metric: str = "accuracy", scope: str = "one", kind: str = ABLATED) -> np.ndarray:
    """Change of a metric [part step], accuracy in points."""
    values = numbers[metric].sel(scope=scope, kind=kind).transpose("part", "step")
    return METRICS[metric][1] * values.values


def strongest(result: xr.Dataset, scope: str = "one") -> tuple[str, int]:
    """The part and step of a scope whose absence costs most accuracy; loss decides between equals."""
    lost = result[["accuracy", "loss"]].sel(scope=scope, kind=ABLATED).stack(cell=("part", "step"))
    order = np.lexsort((-lost["loss"].values, lost["accuracy"].values))
    part, step = lost["cell"].values[order[0]]
    return str(part), int(step)


def beyond_random(result: xr.Dataset, metric: str = "accuracy", scope: str = "one") -> xr.DataArray:
    """Where the change lies outside of the interval of the random one, and the other way round: [part step]."""
    low, high = (result[f"{metric}_{end}"].sel(scope=scope) for end in ("low", "high"))
    apart = (high.sel(kind=ABLATED, drop=True) < low.sel(kind=RANDOM, drop=True)) | (
        low.sel(kind=ABLATED, drop=True) > high.sel(kind=RANDOM, drop=True)
    )
    return apart.transpose("part", "step")


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: points of accuracy lost, a line per part; * where a random change differs clearly."""
    attrs, top1 = result.attrs, 100 * float(result["untouched_accuracy"])
    lines = [
        f"ablation: {attrs['n_measured']} images, top-1 {top1:.1f} % untouched, chance {100 * attrs['chance']:.1f} %; "
        f"points lost or gained when a part is {IN_PLACE[attrs['how']]}",
        "(* the 95 % intervals of this change and of a random one of the same norm do not meet)",
    ]
    for scope, title in SCOPES.items():
        lines += ["", *scope_lines(result, scope, title)]
    part, step = strongest(result)
    cell = result.sel(scope="one", part=part, step=step)
    low, high = (100 * float(cell[f"accuracy_{end}"].sel(kind=ABLATED)) for end in ("low", "high"))
    lost, random = (100 * float(cell["accuracy"].sel(kind=kind)) for kind in (ABLATED, RANDOM))
    lines.append(
        f"\nthe single part that matters most: {part} at {style.step_label(step)}, {lost:+.1f} points "
        f"({low:+.1f} to {high:+.1f}), a random change {random:+.1f}"
    )
    return "\n".join(lines)


def scope_lines(result: xr.Dataset, scope: str, title: str) -> Iterator[str]:
    """Lines of one scope: parts by steps, then the means over parts of the random change and of the untrained model."""
    shown = style.some(result["step"].values.tolist())
    yield style.row(title, [f"step {step + 1}" for step in shown], 8)
    lost, stars = changes(result, scope=scope), beyond_random(result, scope=scope).values
    for i, part in enumerate(result["part"].values):
        yield style.row(part, [f"{lost[i, t]:+.1f}{'*' if stars[i, t] else ' '}" for t in shown], 8)
    random = changes(result, scope=scope, kind=RANDOM).mean(0)
    yield style.row("random, mean", [f"{random[t]:+.1f} " for t in shown], 8)
    untrained = style.models(result).get("untrained")
    if untrained is not None:
        of_untrained = changes(untrained, scope=scope).mean(0)
        yield style.row("untrained, mean", [f"{of_untrained[t]:+.1f} " for t in shown], 8)


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every change with its interval, one line per cell and model."""
    return style.tidy(result, *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")))


# Figures


def part_map(numbers: xr.Dataset, metric: str, scope: str, kind: str, *, limit: float, title: str = "") -> looks.Map:
    """Part x step, white where nothing changes."""
    bounds = {
        name: METRICS[metric][1]
        * numbers[f"{metric}_{end}"].sel(scope=scope, kind=kind).transpose("part", "step").values
        for name, end in (("95 % from", "low"), ("to", "high"))
    }
    steps = [int(step) + 1 for step in numbers["step"].values]
    values = changes(numbers, metric, scope, kind)
    return looks.Map(
        values,
        steps,
        numbers["part"].values.tolist(),
        y="",
        beside=bounds,
        low=-limit,
        high=limit,
        colours=style.CHANGE,
        bar=f"change of {METRICS[metric][0]}",
        title=title,
    )


def largest(result: xr.Dataset, metric: str) -> float:
    """The largest change of a metric: one colour scale for all maps."""
    return float(METRICS[metric][1] * np.abs(result[metric].values).max()) or 1.0


def figure(results: Results, metric: str = "accuracy") -> Figure:
    """Part x step: a row a scope and result; ablated, a random direction of the same norm, the untrained model."""
    named, columns = style.named(results), 3
    rows = [(name, result, scope) for name, result in named.items() for scope in SCOPES]
    drawn, axes = looks.panels(len(rows), columns, width=4.0, height=2.6)
    for i, (name, result, scope) in enumerate(rows):
        limit, models = largest(result, metric), style.models(result)
        cells = [("trained", ABLATED, SCOPES[scope]), ("trained", RANDOM, RANDOM), ("untrained", ABLATED, "untrained")]
        here = axes[i * columns : (i + 1) * columns]
        for ax, (model, kind, title) in zip(here, cells, strict=True):
            if model not in models:
                ax.set_visible(False)
                continue
            shown = part_map(models[model], metric, scope, kind, limit=limit, title=f"{name} {title}".strip())
            shown.draw(ax, bar=None if ax is here[-1] or "untrained" not in models else ())
    return drawn


FIGURES = {"parts": figure}


def interactive(result: xr.Dataset, metric: str = "accuracy", scope: str = "one", kind: str = ABLATED) -> go.Figure:
    """Part x step to hover over."""
    shown = part_map(style.models(result)["trained"], metric, scope, kind, limit=largest(result, metric))
    return shown.interactive(height=140 + 30 * result.sizes["part"])
