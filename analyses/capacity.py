"""Does what the steps use fit into the width they share? The capacity model (appendix A of the paper), from results of `probes.rank`.

A block whose weights serve T steps has min(d, d_mlp) dimensions for all of them. Were the steps to use separate subspaces, the sum of
their utilised ranks would have to fit; where they share, the rank of their union does. load = sum / d, shared load = union / d,
sharing = 1 - union / sum: 0 for separate subspaces, 1 - 1/T where all steps use the same one.
The model's prediction is the share of the demand that fits: min(1, d / sum), and min(1, d / union) with sharing.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import style

DEMANDS = {"fc1": "utilised by fc1", "fc2": "utilised by fc2", "mlp_out": "FFN output", "cls": "CLS state"}


def demand(result: xr.Dataset, name: str) -> np.ndarray:
    """Dimensions that each step uses [step]: the utilised rank of fc1 or fc2, or the centred 95 % rank of a site."""
    if name in result.matrix.values:
        return result["utilised_rank"].sel(matrix=name).values
    return result["k95"].sel(dict(site=name, centred=True)).values


def union(result: xr.Dataset, name: str) -> int:
    """Dimensions that all steps use together; of the separate blocks of a stacked model, their sum."""
    if name in result.matrix.values:
        return int(result["utilised_union"].sel(matrix=name).sum())
    return int(result["union_k95"].sel(site=name)[-1])


def load(result: xr.Dataset, name: str) -> dict[str, float]:
    """The capacity model's numbers for one demand (see the module); `d` are the dimensions there are, those of every block together.

    A site of the stream has d_model dimensions however many blocks there are.
    """
    d = result.attrs["d_model"] * (int(result.attrs["n_blocks"]) if name in result.matrix.values else 1)
    total, together = int(demand(result, name).sum()), union(result, name)
    return {
        "d": d, "sum": total, "union": together, "load": total / d, "shared_load": together / d,
        "sharing": 1 - together / total if total else np.nan,
        "fits": min(1.0, d / total) if total else 1.0, "fits_shared": min(1.0, d / together) if together else 1.0,
    }  # fmt: skip


def _named(results: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    return {"": results} if isinstance(results, xr.Dataset) else dict(results)


def table(results: xr.Dataset | Mapping[str, xr.Dataset]) -> str:
    """Sum and union of the steps' dimensions against those there are, one row a demand and model."""
    named = _named(results)
    wide = max(map(len, named)) + 2 if any(named) else 0
    lines = [f"{'':{wide}}{'':18}{'d':>6}{'sum':>7}{'sum/d':>8}{'union':>7}{'union/d':>9}{'sharing':>9}  does the sum fit?"]
    for name, result in named.items():
        for key, title in DEMANDS.items():
            row = load(result, key)
            verdict = "yes" if row["load"] <= 1 else f"{100 * row['fits']:.0f} % of it" + ("; the union does" if row["shared_load"] <= 1 else "")
            lines.append(
                f"{name:{wide}}{title:18}{row['d']:6}{row['sum']:7}{row['load']:8.2f}{row['union']:7}{row['shared_load']:9.2f}{row['sharing']:9.2f}  {verdict}"
            )
    return "\n".join(lines)


def figure(results: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Sum and union of the dimensions of steps 1..t against the width, for FFN outputs and CLS states, the untrained union dashed.

    With several models of different width, their share that fits, predicted, stands beside the accuracy measured.
    """
    named = _named(results)
    measured = {name: result for name, result in named.items() if "accuracy" in result}
    fig, axes = style.panels(1, 3 if len(measured) > 1 else 2)
    for ax, site in zip(axes, ("mlp_out", "cls"), strict=False):
        for colour, (name, result) in zip(style.SEQUENCE * len(named), named.items(), strict=False):
            _accumulate(ax, result, site, colour, name)
        ax.axhline(1, ls=":", color=style.CHANCE, lw=1, label="all dimensions")
        ax.set_yscale("log", base=2)
        style.step_axis(ax, max(result.sizes["step"] for result in named.values()))
        ax.set_title(DEMANDS[site], fontsize=10)
    axes[0].set_ylabel("95 % rank of steps 1 to t, share of d")
    axes[0].legend(fontsize=7, frameon=False)
    if len(measured) > 1:
        _predicted(axes[2], measured)
    return fig


def _accumulate(ax: Axes, result: xr.Dataset, site: str, colour: str, name: str) -> None:
    steps, d = result.step.values + 1, result.attrs["d_model"]
    ax.plot(steps, demand(result, site).cumsum() / d, "^-", color=colour, markersize=4, alpha=0.6, label=f"{name} sum of the steps".strip())
    ax.plot(steps, result["union_k95"].sel(site=site) / d, "o-", color=colour, markersize=4, label=f"{name} union of the steps".strip())
    if "control_union_k95" in result:
        ax.plot(steps, result["control_union_k95"].sel(site=site) / d, "--", color=style.CONTROL, lw=1.2, label=f"{name} union, untrained".strip())


def _predicted(ax: Axes, measured: Mapping[str, xr.Dataset]) -> None:
    for colour, (name, result) in zip(style.SEQUENCE * len(measured), measured.items(), strict=False):
        row = load(result, "fc2")
        ax.plot(row["fits"], 100 * float(result["accuracy"]), "o", color=colour, label=f"{name} (d = {result.attrs['d_model']})")
        ax.plot(row["fits_shared"], 100 * float(result["accuracy"]), "o", color=colour, fillstyle="none")
    ax.set(xlabel="predicted: share of fc2's demand that fits\n(hollow: with sharing)", ylabel="measured: top-1 (%)", xlim=(0, 1.05))
    ax.legend(fontsize=7, frameon=False)
