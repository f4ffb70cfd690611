"""What a model costs beside the stacked ViT of its width and steps: tables and figures.

Times of two models are compared run by run: both ran in turn, so that the median of their ratios, and its range, hold
on a machine that does other things too.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import looks, style
from analyses.style import Results

NAMES = {"bvit": "bViT", "vit": "stacked ViT"}


def ratio(result: xr.Dataset, phase: str, name: str = "seconds_of_round") -> tuple[float, float, float]:
    """The bViT's time over the stacked ViT's: median, least and greatest of the rounds; NaN where one is missing."""
    if name not in result or not {"bvit", "vit"} <= set(result["model"].values):
        return (np.nan,) * 3
    seconds = result[name].sel(phase=phase)
    ratios = (seconds.sel(model="bvit") / seconds.sel(model="vit")).values
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def table(result: xr.Dataset) -> str:
    """What the command prints: operations of one image, then parameters, memory and time of both models."""
    steps, attrs = result["flops"].values, result.attrs
    lines = [
        f"FLOPs of one image: {int(result['flops_forward']):,} (embedding {int(result['flops_embedding']):,}, "
        f"{len(steps)} steps of {int(steps[0]):,}, head {int(result['flops_head']):,}); training is three times that",
        f"batches of {attrs['batch_size']} on {attrs['device']}, {attrs['threads']} threads; medians of "
        f"{result.sizes['repeat']} runs in turn",
        f"{'':14}{'parameters':>12}" + "".join(f"{phase + ' ms':>16}{'MB':>9}" for phase in result["phase"].values),
    ]
    for model in result["model"].values:
        cells = [result[name].sel(model=model) for name in ("seconds", "memory")]
        both = (f"{1000 * float(s):16.1f}{float(m) / 1e6:9.1f}" for s, m in zip(*cells, strict=True))
        lines.append(f"{NAMES[model]:14}{int(result['parameters'].sel(model=model)):12,}" + "".join(both))
    for phase in result["phase"].values:
        middle, low, high = ratio(result, phase)
        if not np.isnan(middle):
            lines.append(f"{phase}: the bViT takes {middle:.2f} times as long as the ViT ({low:.2f} to {high:.2f})")
    if "compile_seconds" in result:
        lines += compile_lines(result)
    return "\n".join(lines)


def compile_lines(result: xr.Dataset) -> list[str]:
    of_model = (
        f"{NAMES[model]} in {float(result['compile_seconds'].sel(model=model)):.1f} s, then "
        + " and ".join(
            f"{1000 * float(result['compiled_seconds'].sel(model=model, phase=phase)):.1f} ms ({phase})"
            for phase in result["phase"].values
        )
        for model in result["model"].values
    )
    return [f"compiled: {line}" for line in of_model]


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Parameters, memory and time, one line per model and phase."""
    names = [name for name in ("seconds", "memory", "compiled_seconds") if name in result]
    lines = result[names].to_dataframe().reset_index()
    return lines.merge(result["parameters"].to_dataframe().reset_index(), on="model")


BARS = {"parameters": ("parameters", 1), "memory": ("memory (MB)", 1e-6), "seconds": ("time (ms)", 1000)}


def heights(result: xr.Dataset, name: str) -> dict[str, tuple[list[str], list[float]]]:
    """Bars of one quantity: labels and heights of every model."""
    scale, values = BARS[name][1], result[name]
    bars = {}
    for model in result["model"].values:
        of_model = values.sel(model=model)
        phases = list(of_model["phase"].values) if "phase" in of_model.dims else [""]
        bars[NAMES[model]] = phases, [scale * float(height) for height in np.atleast_1d(of_model.values)]
    return bars


def figure(results: Results) -> Figure:
    """Parameters, memory and time of both models as bars, a row per result."""
    named = style.named(results)
    drawn, axes = looks.panels(len(named), len(BARS), width=3.4, height=2.8)
    for row, (name, result) in enumerate(named.items()):
        for ax, quantity in zip(axes[row * len(BARS) :], BARS, strict=False):
            for i, (model, (phases, values)) in enumerate(heights(result, quantity).items()):
                places = np.arange(len(values)) + 0.4 * i
                ax.bar(places, values, 0.36, color=style.SEQUENCE[i], label=model)
                ax.set_xticks(np.arange(len(phases)) + 0.2, phases)
            ax.set_title(f"{name} {BARS[quantity][0]}".strip(), fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    return drawn


def interactive(result: xr.Dataset) -> go.Figure:
    """Time of both models and phases as bars; parameters and memory under the mouse."""
    drawn = go.Figure()
    memory = heights(result, "memory")
    for colour, (model, (phases, values)) in zip(style.SEQUENCE, heights(result, "seconds").items(), strict=False):
        said = [
            f"{model}, {phase}: {ms:.1f} ms, {mb:.1f} MB"
            for phase, ms, mb in zip(phases, values, memory[model][1], strict=True)
        ]
        drawn.add_bar(
            x=phases,
            y=values,
            name=model,
            marker_color=colour,
            text=said,
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    return drawn.update_layout(yaxis_title="time (ms)", height=380, **looks.WHITE)


FIGURES = {"cost": figure}
