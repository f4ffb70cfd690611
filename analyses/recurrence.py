"""Statistics, tables and figures of running on (figure 8 of the paper): accuracy after k steps, and leaving early."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import intervals, looks, style
from analyses.style import Results, as_percent

CRITERIA = ("confidence", "entropy")
THRESHOLDS = np.concatenate([1 - np.logspace(0, -6, 61), [1.0]])  # dense near 1, where trained models are
CURVES = {
    "accuracy": "top-1 (%)",
    "loss": "loss",
    "confidence": "confidence",
    "entropy": "entropy (nats)",
    "update": "|B(h) - h| / |h|",
}

# Statistics


def settled(answers: np.ndarray) -> np.ndarray:
    """The first state from which each image's answer never changes again: [image], from answers [image state]."""
    other = answers != answers[:, -1:]
    return np.where(other.any(1), answers.shape[1] - other[:, ::-1].argmax(1), 0)


def early_exit(
    confidence: np.ndarray, entropy: np.ndarray, correct: np.ndarray, n_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean steps when each image leaves at the first state that is sure enough: [criterion threshold].

    confidence, entropy (nats), correct: [image state] of states 1 .. T. Sure is confidence >= threshold, or
    1 - entropy / log(classes) >= threshold; whoever never is leaves at T.
    """
    sure = {"confidence": confidence, "entropy": 1 - entropy / np.log(max(n_classes, 2))}
    accuracy, steps = np.empty((2, len(THRESHOLDS))), np.empty((2, len(THRESHOLDS)))
    for i, name in enumerate(CRITERIA):
        for j, threshold in enumerate(THRESHOLDS):
            leaves = sure[name] >= threshold
            leaves[:, -1] = True
            at = leaves.argmax(1)
            accuracy[i, j], steps[i, j] = correct[np.arange(len(at)), at].mean(), at.mean() + 1
    return accuracy, steps


def peak(result: xr.Dataset) -> tuple[int, float]:
    """The state of highest accuracy, and that accuracy."""
    best = int(result["accuracy"].values.argmax())
    return best, float(result["accuracy"][best])


def exit_at(result: xr.Dataset, lost: float = 0.01, criterion: str = "confidence") -> tuple[float, float]:
    """The fewest mean steps that lose at most `lost` of the accuracy at T: (mean steps, accuracy)."""
    accuracy, steps = (result[name].sel(criterion=criterion).values for name in ("exit_accuracy", "exit_steps"))
    enough = accuracy >= float(result["accuracy"].sel(state=result.attrs["trained_steps"])) - lost
    best = np.flatnonzero(enough)[steps[enough].argmin()]
    return float(steps[best]), float(accuracy[best])


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: a line for every state up to T + 2, then for every T states."""
    trained, last = result.attrs["trained_steps"], result["state"].values[-1]
    names = f"{'loss':>9}{'confidence':>12}{'entropy':>9}{'update':>9}"
    shown = [k for k in result["state"].values if k <= trained + 2 or k % trained == 0 or k == last]
    lines = [
        f"recurrence: {result.sizes['image']} images, {by_chance(result)}, trained for {trained} steps",
        f"{'after':10}{'top-1':>8}{'95 %':>15}{'untrained':>11}{names}",
        *(_state_line(result, k) for k in shown),
        f"highest after {peak(result)[0]} steps ({100 * peak(result)[1]:.1f} %); the answer is final after "
        f"{float(result['settled'].mean()):.1f} steps on average",
        f"leaving when sure: {100 * exit_at(result)[1]:.1f} % at {exit_at(result)[0]:.1f} steps on average "
        f"(within one point of all {trained})",
    ]
    if result.attrs["overflow_state"] >= 0:
        first = result.attrs["overflow_state"]
        lines.append(f"states overflow from step {first} on in some images; they count as wrong")
    return "\n".join(lines)


def by_chance(result: xr.Dataset) -> str:
    """What answers at random, and always with the commonest class of these images, would reach."""
    named = {"chance": "chance", "constant": "best constant answer"}
    levels = (f"{said} {100 * result.attrs[name]:.1f} %" for name, said in named.items() if name in result.attrs)
    return ", ".join(levels)


def _state_line(result: xr.Dataset, k: int) -> str:
    accuracy, loss, confidence, entropy, update = (float(result[name].sel(state=k)) for name in CURVES)
    low, high = intervals.of_ratio(accuracy, result.sizes["image"], 100)
    untrained = style.untrained(result, "accuracy")
    control = f"{'-':>11}" if untrained is None else f"{100 * float(untrained.sel(state=k)):9.1f} %"
    return (
        f"step {k:<5d}{100 * accuracy:6.1f} %{low:7.1f} to{high:5.1f}{control}"
        f"{loss:9.3f}{confidence:12.3f}{entropy:9.3f}{update:9.3f}"
    )


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every curve, one line per state and model; the trained model's accuracy with its interval."""
    low, high = intervals.of_ratio(result["accuracy"].values, result.sizes["image"])
    bounds = {"accuracy_low": ("state", low), "accuracy_high": ("state", high)}
    return style.tidy(result.assign(bounds), *CURVES, *bounds)


# Figures


def curve(results: Results, name: str) -> looks.Curves:
    """One curve over the states, of every model; accuracy with its interval and chance, the trained steps marked."""
    lines, is_accuracy = [], name == "accuracy"
    scale = 100 if is_accuracy else 1
    for model in style.series(results, name):
        values = model.numbers[name].values
        bounds = intervals.of_ratio(values, model.result.sizes["image"], 100) if is_accuracy else ()
        lines.append(looks.Line(model.numbers["state"].values, scale * values, *bounds, **model.look(mark="")))
    levels = style.levels(results, lambda result: {"chance": 100 * result.attrs["chance"]}) if is_accuracy else {}
    marks = style.levels(results, lambda result: {"trained for": result.attrs["trained_steps"]})
    return looks.Curves(
        lines, levels=levels, marks=marks, x="steps run", y=CURVES[name], log="y" if name == "update" else ""
    )


def exit_curves(results: Results) -> looks.Curves:
    """Accuracy against mean steps when leaving early, beside stopping every image after the same number of steps."""
    lines = []
    for model in style.series(results, "exit_accuracy"):
        for dash, criterion in zip(("solid", "dash"), CRITERIA, strict=True):
            exits = model.numbers.sel(criterion=criterion)
            place = exits["exit_steps"].values, as_percent(exits["exit_accuracy"])
            said = [
                f"threshold {sure:.3g}<br>{steps:.2f} steps, {top:.1f} %"
                for sure, steps, top in zip(exits["threshold"].values, *place, strict=True)
            ]
            lines.append(looks.Line(*place, **model.look(criterion, dash=dash, mark="", hover=said)))
        fixed = model.numbers["accuracy"].sel(state=slice(1, model.numbers.attrs["trained_steps"]))
        colour = model.colour if model.name else style.CHANCE
        lines.append(
            looks.Line(
                fixed["state"].values,
                as_percent(fixed),
                label=f"{model.name} same step for all".strip(),
                colour=colour,
                dash="dot",
            )
        )
    return looks.Curves(lines, x="mean steps", y="top-1 (%)", title="leaving when sure")


def figure(results: Results) -> Figure:
    """Figure 8: accuracy, update, leaving early; the trained number of steps, the peak, chance and untrained marked."""
    fig, (left, middle, right) = looks.panels(1, 3, width=4.0)
    curve(results, "accuracy").draw(left)
    curve(results, "update").draw(middle)
    exit_curves(results).draw(right)
    trained = [model for model in style.series(results, "accuracy") if model.is_trained]
    for place, model in enumerate(trained):
        _mark_peak(left, model, place)
    left.set_title("read out after k steps (dotted: trained for)", fontsize=9)
    middle.set_title("relative update", fontsize=9)
    return fig


def _mark_peak(ax: Axes, model: style.Model, place: int) -> None:
    """A mark at the highest accuracy, said in words one below the other."""
    best, accuracy = peak(model.numbers)
    ax.plot(best, 100 * accuracy, "v", color=model.colour)
    ax.text(
        0.98,
        0.36 - 0.07 * place,
        f"peak {100 * accuracy:.1f} % after {best}",
        color=model.colour,
        fontsize=7,
        ha="right",
        transform=ax.transAxes,
    )


FIGURES = {"steps": figure}

# Interactive


def interactive(result: xr.Dataset, name: str = "accuracy") -> go.Figure:
    """One curve over the states, with the untrained model and the trained number of steps."""
    return curve(result, name).interactive()


def exits(result: xr.Dataset) -> go.Figure:
    """Accuracy against mean steps when each image leaves once it is sure."""
    return exit_curves(result).interactive()


def settling(result: xr.Dataset) -> go.Figure:
    """How many images have their final answer from which step on."""
    counts = np.bincount(result["settled"].values, minlength=result.attrs["trained_steps"] + 1)
    figure = go.Figure(
        go.Bar(
            x=np.arange(len(counts)),
            y=100 * counts / counts.sum(),
            marker_color=style.MAIN,
            hovertemplate="final from step %{x}: %{y:.1f} % of the images<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title="final from step", yaxis_title="images (%)", height=380, **looks.WHITE)
    return figure


def per_class(result: xr.Dataset) -> go.Figure:
    """Accuracy of every class after every number of steps: class x state."""
    classes, ratio = list(result.attrs["classes"]), as_percent(result["class_accuracy"].T)
    drawn = looks.Map(ratio, result["state"].values, classes, x="steps run", y="class", bar="top-1 (%)")
    return drawn.interactive(height=110 + max(200, 18 * len(classes))).update_yaxes(dtick=1, title="")
