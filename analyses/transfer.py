"""Tables and figures of transfer to other classes: accuracy against trained parameters, and of a linear probe per step.

Every number is a mean over seeds with its standard deviation, beside the untrained model's, chance, and what always
answering with the commonest training class would reach.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import intervals, looks, style
from analyses.style import Results, as_percent

NAMES = {
    "linear": "linear probe",
    "block": "the shared block",
    "full": "all weights",
    "lora": "LoRA, one for all steps",
    "step-lora": "LoRA, one for each step",
}

# Statistics


def mean_and_sd(accuracy: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n - 1) over seeds, in %; NaN for the deviation of a single one."""
    n = accuracy.sizes["seed"]
    sd = accuracy.std("seed", ddof=1) if n > 1 else np.full_like(accuracy.mean("seed"), np.nan)
    return as_percent(accuracy.mean("seed")), as_percent(sd)


def interval(accuracy: xr.DataArray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean -+ one standard deviation over seeds, in %; of a single one Wilson's 95 % over its n images."""
    mean, sd = mean_and_sd(accuracy)
    return intervals.of_ratio(mean / 100, n, 100) if np.isnan(sd).all() else (mean - sd, mean + sd)


def best_state(numbers: xr.Dataset) -> int:
    """The state whose linear probe is best on held-out training images, by the mean over seeds; the first of equals."""
    return int(numbers["state_held_out"].mean("seed").values.argmax())


def levels(result: xr.Dataset) -> dict[str, float]:
    """What guessing reaches, in %."""
    named = {"chance": "chance", "majority": "commonest class"}
    return {title: 100 * result.attrs[name] for name, title in named.items()}


# Tables


def said(mean: float, sd: float) -> str:
    """A mean, with the deviation where there is one."""
    return f"{mean:.1f}" if np.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"


def table(result: xr.Dataset) -> str:
    """What the command prints: a line per way to transfer, then the linear probe after each step."""
    about, n_seeds = result.attrs, result.sizes["seed"]
    guesses = ", ".join(f"{name} {level:.1f} %" for name, level in levels(result).items())
    seeds = f"{n_seeds} seeds, mean ± sd" if n_seeds > 1 else "one seed"
    lines = [
        f"transfer to {about.get('data', 'other data')}: {about['n_classes']} classes, {about['n_train']} training "
        f"images, scored on {about['n_images']} others; {guesses}",
        f"top-1 in %, {seeds}; the 95 % interval of the mean is over images; adapters of rank {about['rank']}",
        style.row("", ["parameters", "of all", "top-1", "95 %", "untrained"], 14, 24),
        *(how_line(result, how) for how in result["how"].values),
    ]
    return "\n".join([*lines, *(state_lines(result) if "state" in result.dims else [])])


def how_line(result: xr.Dataset, how: str) -> str:
    """One way to transfer: trained parameters, their share of all, accuracy, its interval, the untrained model's."""
    parameters = int(result["trainable_parameters"].sel(how=how)[0])
    mean, sd = mean_and_sd(result["accuracy"].sel(how=how))
    low, high = intervals.of_ratio(mean / 100, result.attrs["n_images"], 100)
    untrained = style.untrained(result, "accuracy")
    beside = "-" if untrained is None else said(*mean_and_sd(untrained.sel(how=how)))
    share = f"{100 * parameters / result.attrs['n_parameters']:.1f} %"
    cells = [f"{parameters:,}", share, said(mean, sd), f"{low:.1f} to {high:.1f}", beside]
    return style.row(NAMES[how], cells, 14, 24)


def state_lines(result: xr.Dataset) -> Iterator[str]:
    """The linear probe after each step, and which step is best."""
    last = result.sizes["state"] - 1
    yield f"\nlinear probe of the CLS state, {last} steps"
    columns = [mean_and_sd(numbers["state_accuracy"]) for numbers in style.models(result).values()]
    yield style.row("", style.models(result), 14, 24)
    for k in result["state"].values:
        yield style.row(style.state_label(int(k)), [said(mean[k], sd[k]) for mean, sd in columns], 14, 24)
    best = best_state(result)
    yield (
        f"chosen on held-out training images: {'' if best == 0 else 'after '}{style.state_label(best)}, "
        f"{said(*(values[best] for values in columns[0]))} %"
    )


def frame(result: xr.Dataset) -> pd.DataFrame:
    """One line per way, seed and model, and one per state, seed and model."""
    parts = [style.tidy(result, "trainable_parameters", "lr", "accuracy")]
    if "state" in result.dims:
        parts.append(style.tidy(result, "state_accuracy", "state_held_out", "state_l2"))
    return pd.concat(parts, ignore_index=True)


# Figures


def line_of(accuracy: xr.DataArray, n: int, x: np.ndarray, **look: object) -> looks.Line:
    """A line of mean accuracies in %, with its interval."""
    return looks.Line(x, mean_and_sd(accuracy)[0], *interval(accuracy, n), **look)


def by_parameters(results: Results) -> looks.Curves:
    """Accuracy of every way to transfer against the parameters that it trains."""
    lines = []
    for model in style.series(results, "accuracy"):
        of_how = model.result["trainable_parameters"].isel(seed=0)
        order = of_how.argsort().values
        accuracy, parameters = model.numbers["accuracy"].isel(how=order), of_how.values[order]
        means = zip(accuracy["how"].values, parameters, *mean_and_sd(accuracy), strict=True)
        hover = [f"{NAMES[how]}: {said(mean, sd)} %, {n:,} parameters" for how, n, mean, sd in means]
        look = model.look() | dict(width=0.8, mark="o" if model.is_trained else "s", hover=hover)
        lines.append(line_of(accuracy, model.result.attrs["n_images"], parameters, **look))
    return looks.Curves(lines, "trained parameters", "top-1 (%)", levels=style.levels(results, levels), log="x", low=0)


def by_state(results: Results) -> looks.Curves:
    """Accuracy of the linear probe after every number of steps."""
    lines = []
    for model in style.series(results, "state_accuracy"):
        accuracy, n = model.numbers["state_accuracy"], model.result.attrs["n_images"]
        lines.append(line_of(accuracy, n, model.result["state"].values, **model.look()))
    title = "linear probe of CLS"
    return looks.Curves(lines, "after step", "top-1 (%)", title, levels=style.levels(results, levels), low=0)


def figure(results: Results) -> Figure:
    """Accuracy against trained parameters, and of the linear probe after each step."""
    has_states = any("state" in result.dims for result in style.named(results).values())
    drawn, axes = looks.panels(1, 2 if has_states else 1, width=4.8, height=3.8)
    by_parameters(results).draw(axes[0])
    for model in style.series(results, "accuracy"):
        if model.is_trained:
            name_points(axes[0], model)
    if has_states:
        by_state(results).draw(axes[1])
    return drawn


def name_points(ax: Axes, model: style.Model) -> None:
    """The way to transfer beside its point."""
    for how in model.result["how"].values:
        place = (
            int(model.result["trainable_parameters"].sel(how=how)[0]),
            mean_and_sd(model.numbers["accuracy"].sel(how=how))[0],
        )
        ax.annotate(how, place, (0, 7), textcoords="offset points", ha="center", fontsize=7, color=model.colour)


FIGURES = {"transfer": figure}
CURVES = {"trained parameters": by_parameters, "steps": by_state}


def interactive(result: xr.Dataset, over: str = "trained parameters") -> go.Figure:
    """Accuracy over trained parameters, or of the linear probe over steps, to hover over."""
    return CURVES[over](result).interactive()
