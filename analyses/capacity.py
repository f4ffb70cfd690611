"""Does what the steps use fit into the width they share? The capacity model (appendix A), from `probes.rank`'s results.

A block whose weights serve T steps has min(d, d_mlp) dimensions for all of them. Were the steps to use separate
subspaces, the sum of their utilised ranks would have to fit; where they share, the rank of their union does.
load = sum / d, shared load = union / d, sharing = 1 - union / sum: 0 for separate subspaces, 1 - 1/T where all steps
use the same one. The model's prediction is the share of the demand that fits: min(1, d / sum), with sharing
min(1, d / union).
"""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import looks, style
from analyses.style import Results

DEMANDS = {"fc1": "utilised by fc1", "fc2": "utilised by fc2", "mlp_out": "FFN output", "cls": "CLS state"}


def demand(result: xr.Dataset, name: str) -> np.ndarray:
    """Dimensions that each step uses [step]: the utilised rank of fc1 or fc2, or the centred 95 % rank of a site."""
    if name in result.matrix.values:
        return result["utilised_rank"].sel(matrix=name).values
    return result["k95"].sel(site=name, centred=True).values


def union(result: xr.Dataset, name: str) -> int:
    """Dimensions that all steps use together; of the separate blocks of a stacked model, their sum."""
    if name in result.matrix.values:
        return int(result["utilised_union"].sel(matrix=name).sum())
    return int(result["union_k95"].sel(site=name)[-1])


def load(result: xr.Dataset, name: str) -> dict[str, float]:
    """The capacity model's numbers for one demand (see the module); `d` are the dimensions that all blocks have.

    A site of the stream has d_model dimensions however many blocks there are.
    """
    d = result.attrs["d_model"] * (int(result.attrs["n_blocks"]) if name in result.matrix.values else 1)
    total, together = int(demand(result, name).sum()), union(result, name)
    return {
        "d": d,
        "sum": total,
        "union": together,
        "load": total / d,
        "shared_load": together / d,
        "sharing": 1 - together / total if total else np.nan,
        "fits": min(1.0, d / total) if total else 1.0,
        "fits_shared": min(1.0, d / together) if together else 1.0,
    }


def table(results: Results) -> str:
    """Sum and union of the steps' dimensions against those there are, one row per demand and model."""
    named = style.named(results)
    wide = max(map(len, named)) + 2 if any(named) else 0
    heads = f"{'d':>6}{'sum':>7}{'sum/d':>8}{'union':>7}{'union/d':>9}{'sharing':>9}"
    lines = [f"{'':{wide + 18}}{heads}  does the sum fit?"]
    for name, result in named.items():
        for key, title in DEMANDS.items():
            need = load(result, key)
            ranks = f"{need['d']:6}{need['sum']:7}{need['load']:8.2f}{need['union']:7}{need['shared_load']:9.2f}"
            lines.append(f"{name:{wide}}{title:18}{ranks}{need['sharing']:9.2f}  {_verdict(need)}")
    return "\n".join(lines)


def _verdict(need: Mapping[str, float]) -> str:
    if need["load"] <= 1:
        return "yes"
    return f"{100 * need['fits']:.0f} % of it" + ("; the union does" if need["shared_load"] <= 1 else "")


def frame(results: Results) -> pd.DataFrame:
    """The capacity model's numbers, one line per model and demand."""
    named = style.named(results)
    return pd.DataFrame(
        [dict(model=n, demand=key) | load(result, key) for n, result in named.items() for key in DEMANDS]
    )


def figure(results: Results) -> Figure:
    """Sum and union of the dimensions of steps 1..t against the width, for FFN outputs and CLS states.

    With several models their share that fits, predicted, stands beside the accuracy measured.
    """
    measured = {name: result for name, result in style.named(results).items() if "accuracy" in result}
    fig, axes = looks.panels(1, 3 if len(measured) > 1 else 2)
    for ax, site in zip(axes, ("mlp_out", "cls"), strict=False):
        accumulated(results, site).draw(ax, legend=False)
    axes[1].set_ylabel("")
    looks.legend_below(fig, axes[0])
    if len(measured) > 1:
        _predicted(axes[2], measured)
    return fig


def accumulated(results: Results, site: str) -> looks.Curves:
    """Sum and union of the 95 % dimensions of steps 1 to t, as shares of d; of the untrained model the union."""
    lines = []
    for model in style.series(results, "union_k95"):
        d, steps = model.result.attrs["d_model"], model.numbers.step.values + 1
        if model.is_trained:
            total = demand(model.numbers, site).cumsum()
            lines.append(looks.Line(steps, total / d, **model.look("sum of the steps", mark="^", dash="dashdot")))
        together = model.numbers["union_k95"].sel(site=site).values
        lines.append(looks.Line(steps, together / d, **model.look("union of the steps")))
    return looks.Curves(
        lines,
        x="steps 1 to t",
        y="95 % rank, share of d",
        title=DEMANDS[site],
        levels={"all dimensions": 1},
        log="y",
        base=2,
    )


def _predicted(ax: Axes, measured: Mapping[str, xr.Dataset]) -> None:
    for colour, (name, result) in zip(itertools.cycle(style.SEQUENCE), measured.items(), strict=False):
        need, top = load(result, "fc2"), 100 * float(result["accuracy"])
        ax.plot(need["fits"], top, "o", color=colour, label=f"{name} (d = {result.attrs['d_model']})")
        ax.plot(need["fits_shared"], top, "o", color=colour, fillstyle="none")
    ax.set(xlabel="predicted: share of fc2's demand that fits\n(hollow: with sharing)", ylabel="measured: top-1 (%)")
    ax.set_xlim(0, 1.05)
    ax.legend(**looks.SMALL)


FIGURES = {"capacity": figure}
