"""Statistics, tables and figures of running on (figure 8 of the paper): accuracy after every number of steps, and leaving early."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import style

CRITERIA = ("confidence", "entropy")
THRESHOLDS = np.concatenate([1 - np.logspace(0, -6, 61), [1.0]])  # dense near 1, where trained models are


def settled(answers: np.ndarray) -> np.ndarray:
    """The first state from which each image's answer never changes again: [image], from answers [image state]."""
    other = answers != answers[:, -1:]
    return np.where(other.any(1), answers.shape[1] - other[:, ::-1].argmax(1), 0)


def early_exit(confidence: np.ndarray, entropy: np.ndarray, correct: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean number of steps when each image leaves at the first state that is sure enough: two of [criterion threshold].

    confidence, entropy (nats), correct: [image state] of states 1 .. T. Sure is confidence >= threshold, or 1 - entropy / log(classes)
    >= threshold; whoever never is leaves at T.
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


def interval(ratio: np.ndarray, n: int) -> np.ndarray:
    """95 % Wilson interval of ratios measured on n images: [bound ...]."""
    z = 1.96
    centre = (ratio + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(ratio * (1 - ratio) / n + z**2 / (4 * n**2))
    return np.stack([centre - half, centre + half])


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


def table(result: xr.Dataset) -> str:
    """What the command prints."""
    trained, n = result.attrs["trained_steps"], result.sizes["image"]
    lines = [
        f"recurrence: {n} images, chance {100 * result.attrs['chance']:.1f} %, trained for {trained} steps",
        f"{'after':10}{'top-1':>8}{'95 %':>15}{'untrained':>11}{'loss':>9}{'confidence':>12}{'entropy':>9}{'update':>9}",
    ]
    for k in result["state"].values:
        if k <= trained + 2 or k % trained == 0 or k == result["state"].values[-1]:
            row = result.sel(state=k)
            low, high = 100 * interval(row["accuracy"].values, n)
            control = f"{100 * float(row['control_accuracy']):9.1f} %" if "control_accuracy" in result else f"{'-':>11}"
            lines.append(
                f"step {k:<5d}{100 * float(row['accuracy']):6.1f} %{low:7.1f} to{high:5.1f}{control}{float(row['loss']):9.3f}"
                f"{float(row['confidence']):12.3f}{float(row['entropy']):9.3f}{float(row['update']):9.3f}"
            )
    best, accuracy = peak(result)
    steps, reached = exit_at(result)
    lines.append(f"highest after {best} steps ({100 * accuracy:.1f} %); the answer is final after {float(result['settled'].mean()):.1f} steps on average")
    lines.append(f"leaving when sure: {100 * reached:.1f} % at {steps:.1f} steps on average (within one point of all {trained})")
    if result.attrs["overflow_state"] >= 0:
        lines.append(f"states overflow from step {result.attrs['overflow_state']} on in some images; they count as wrong")
    return "\n".join(lines)


def figure(results: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Figure 8: accuracy, update, and leaving early; the trained number of steps, the peak, chance and the untrained model marked."""
    named = {"": results} if isinstance(results, xr.Dataset) else dict(results)
    fig, (left, middle, right) = style.panels(1, 3, width=4.0)
    for colour, (name, result) in zip(style.SEQUENCE * len(named), named.items(), strict=False):
        states, n = result["state"].values, result.sizes["image"]
        low, high = 100 * interval(result["accuracy"].values, n)
        left.plot(states, 100 * result["accuracy"], color=colour, label=name or "trained")
        left.fill_between(states, low, high, color=colour, alpha=0.15, lw=0)
        if "control_accuracy" in result:
            left.plot(states, 100 * result["control_accuracy"], "--", color=colour, lw=1, label=f"{name} untrained".strip())
        best, accuracy = peak(result)
        left.plot(best, 100 * accuracy, "v", color=colour)
        left.annotate(f"{best}: {100 * accuracy:.1f} %", (best, 100 * accuracy), xytext=(4, 4), textcoords="offset points", fontsize=7)
        left.axvline(result.attrs["trained_steps"], color=colour, lw=0.8, ls=":")
        middle.semilogy(states[1:], result["update"][1:], color=colour, label=name or "update")
        middle.axvline(result.attrs["trained_steps"], color=colour, lw=0.8, ls=":")
        draw_exits(right, result, colour, name)
    left.axhline(100 * next(iter(named.values())).attrs["chance"], ls=":", color=style.CHANCE, lw=1, label="chance")
    left.set(xlabel="steps run", ylabel="top-1 (%)", title="")
    left.set_title("read out after k steps (dotted: trained for)", fontsize=9)
    middle.set(xlabel="step", ylabel="|B(h) - h| / |h|")
    middle.set_title("relative update", fontsize=9)
    left.legend(fontsize=7, frameon=False)
    right.legend(fontsize=7, frameon=False)
    return fig


def draw_exits(ax, result: xr.Dataset, colour: str, name: str) -> None:
    """Accuracy against mean steps when leaving early, beside stopping every image after the same number of steps."""
    for line, criterion in zip(("-", "--"), CRITERIA, strict=True):
        row = result.sel(criterion=criterion)
        ax.plot(row["exit_steps"], 100 * row["exit_accuracy"], line, color=colour, label=f"{name} {criterion}".strip())
    fixed = result["accuracy"].sel(state=slice(1, result.attrs["trained_steps"]))
    ax.plot(fixed["state"], 100 * fixed, ":", color=style.CONTROL, label="same step for all")
    ax.set(xlabel="mean steps", ylabel="top-1 (%)")
    ax.set_title("leaving when sure", fontsize=9)


def interactive(result: xr.Dataset, name: str = "accuracy") -> go.Figure:
    """One curve over the states, with the untrained model and the trained number of steps."""
    scale = 100 if name == "accuracy" else 1
    figure = go.Figure(go.Scatter(x=result["state"].values, y=scale * result[name].values, mode="lines+markers", name="trained"))
    if f"control_{name}" in result:
        figure.add_scatter(
            x=result["state"].values, y=scale * result[f"control_{name}"].values, mode="lines", name="untrained", line=dict(dash="dash", color=style.CONTROL)
        )
    if name == "accuracy":
        figure.add_hline(100 * result.attrs["chance"], line_dash="dot", annotation_text="chance")
    figure.add_vline(result.attrs["trained_steps"], line_color=style.CHANCE, line_width=1, annotation_text="trained for")
    title = {"accuracy": "top-1 (%)", "update": "|B(h) - h| / |h|"}.get(name, name)
    kind = "log" if name == "update" else "linear"
    figure.update_layout(xaxis_title="steps run", yaxis_title=title, yaxis_type=kind, height=380, margin=dict(l=10, r=10, t=20, b=10))
    return figure


def exits(result: xr.Dataset) -> go.Figure:
    """Accuracy against mean steps when each image leaves once it is sure."""
    figure = go.Figure()
    for criterion in CRITERIA:
        row = result.sel(criterion=criterion)
        hover = "threshold %{customdata:.6f}<br>%{x:.2f} steps, %{y:.1f} %<extra></extra>"
        figure.add_scatter(
            x=row["exit_steps"].values, y=100 * row["exit_accuracy"].values, customdata=row["threshold"].values, mode="lines+markers", name=criterion,
            hovertemplate=hover,
        )  # fmt: skip
    fixed = result["accuracy"].sel(state=slice(1, result.attrs["trained_steps"]))
    figure.add_scatter(x=fixed["state"].values, y=100 * fixed.values, mode="lines", name="same step for all", line=dict(dash="dot", color=style.CONTROL))
    figure.update_layout(xaxis_title="mean steps", yaxis_title="top-1 (%)", height=380, margin=dict(l=10, r=10, t=20, b=10))
    return figure


def settling(result: xr.Dataset) -> go.Figure:
    """How many images have their final answer from which step on."""
    counts = np.bincount(result["settled"].values, minlength=result.attrs["trained_steps"] + 1)
    figure = go.Figure(go.Bar(x=np.arange(len(counts)), y=100 * counts / counts.sum()))
    figure.update_layout(xaxis_title="final from step", yaxis_title="images (%)", height=380, margin=dict(l=10, r=10, t=20, b=10))
    return figure


def per_class(result: xr.Dataset) -> go.Figure:
    """Accuracy of every class after every number of steps: class x state."""
    classes = list(result.attrs["classes"])
    z = 100 * result["class_accuracy"].values.T
    figure = go.Figure(go.Heatmap(z=z, x=result["state"].values, y=classes, colorscale=style.MAP, hovertemplate="%{y}, step %{x}: %{z:.0f} %<extra></extra>"))
    figure.update_layout(xaxis_title="steps run", height=max(300, 18 * len(classes)), margin=dict(l=10, r=10, t=20, b=10))
    return figure
