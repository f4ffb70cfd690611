"""Ranks, subspaces, tables and figures of the rank probe (figures 6 and 7 of the paper).

Spectra are eigenvalues in falling order, NaN or 0 behind them. Every rank stands beside that of the untrained model,
every overlap of subspaces beside that of random ones, every accuracy beside the best constant answer.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import intervals, looks, style
from analyses.style import Results, as_percent

SITES = {
    "mlp_pre": "FFN hidden, before GELU",
    "mlp_post": "FFN hidden, after GELU",
    "mlp_out": "FFN output",
    "cls": "CLS state",
}
CUTS = {"plain": "truncated SVD", "utilised": "activation-aware", "sparse": "low rank + 5 % sparse"}

# Statistics


def energy_rank(spectrum: np.ndarray, energy: float = 0.95) -> np.ndarray:
    """The least k whose first k eigenvalues [... rank] hold this share of the sum; 0 where the sum is 0."""
    running = np.nan_to_num(np.asarray(spectrum, np.float64)).cumsum(-1)
    total = running[..., -1:]
    return np.where(total[..., 0] > 0, (running < energy * total * (1 - 1e-12)).sum(-1) + 1, 0)


def participation_ratio(spectrum: np.ndarray) -> np.ndarray:
    """(sum l)^2 / sum l^2 over the eigenvalues [... rank]; 0 where all are 0."""
    values = np.nan_to_num(np.asarray(spectrum, np.float64))
    return _ratio(values.sum(-1) ** 2, (values**2).sum(-1))


def stable_rank(spectrum: np.ndarray) -> np.ndarray:
    """sum l / max l over the eigenvalues [... rank]: squared Frobenius over squared spectral norm of the rows."""
    values = np.nan_to_num(np.asarray(spectrum, np.float64))
    return _ratio(values.sum(-1), values.max(-1))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def subspace_overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean squared cosine of the principal angles between two orthonormal bases [d k], over the smaller k.

    1 where one subspace contains the other, 0 where they are orthogonal, NaN where one is empty.
    """
    k = min(one.shape[1], other.shape[1])
    return float(np.square(one.T @ other).sum() / k) if k else np.nan


def chance_overlap(k: np.ndarray, room: int | np.ndarray) -> np.ndarray:
    """What random subspaces of dimensions k [step] overlap by in `room` dimensions: max(k, k') / room."""
    return np.minimum(np.maximum(k[:, None], k) / room, 1.0)


def between_steps(matrix: np.ndarray) -> float:
    """Mean over pairs of different steps; NaN where there are none."""
    pairs = matrix[~np.eye(len(matrix), dtype=bool)]
    pairs = pairs[~np.isnan(pairs)]
    return float(pairs.mean()) if len(pairs) else np.nan


def overlap_levels(result: xr.Dataset, site: str) -> dict[str, float]:
    """Overlap of two steps' subspaces on average: of each model, and of random subspaces."""
    by_model = {model.label(): model.numbers["overlap"] for model in style.series(result, "overlap")}
    every = by_model | {"random": result["overlap_chance"]}
    return {name: between_steps(overlap.sel(site=site).values) for name, overlap in every.items()}


def accuracy_at(result: xr.Dataset, cut: str) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of the ladder and the top-1 accuracy at each."""
    curve = result["svd_accuracy"].sel(cut=cut).dropna("rank")
    return curve["rank"].values, curve.values


def sufficient_rank(result: xr.Dataset, cut: str, loss: float = 0.01) -> int:
    """The least rank of the ladder that loses at most `loss` of the accuracy."""
    ranks, values = accuracy_at(result, cut)
    return int(ranks[np.argmax(values >= float(result["accuracy"]) - loss)])


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: 95 % ranks per step and site (centred / not), overlaps, accuracy by rank."""
    sites = result.site.values
    wide = (f"{site} of {width}" for site, width in zip(sites, result.width.values, strict=True))
    lines = [
        f"95 % rank, centred / not: {result.attrs['n_images']} images, {result.attrs['tokens']} tokens of each",
        style.row("", wide, 17),
    ]
    for t in result.step.values:
        lines.append(style.row(style.step_label(t), (_pair(result["k95"].sel(step=t, site=s)) for s in sites), 17))
    untrained = style.untrained(result, "k95")
    if untrained is not None:
        lines.append(style.row("untrained, mean", (_pair(untrained.mean("step").sel(site=site)) for site in sites), 17))
    together, apart = result["union_k95"].isel(step=-1), result["k95"].sel(centred=True).sum("step")
    sums = (f"{int(together.sel(site=site))} / {int(apart.sel(site=site))}" for site in sites)
    lines.append(style.row("steps together / sum", sums, 17))
    lines.append(style.row("overlap / random", (_overlap(result, site) for site in sites), 17))
    return "\n".join(lines + accuracy_rows(result))


def _pair(cell: xr.DataArray) -> str:
    return f"{float(cell.sel(centred=True)):.0f} / {float(cell.sel(centred=False)):.0f}"


def _overlap(result: xr.Dataset, site: str, sep: str = " / ") -> str:
    levels = overlap_levels(result, site)
    return f"{levels['trained']:.2f}{sep}{levels['random']:.2f}"


def accuracy_rows(result: xr.Dataset) -> list[str]:
    """Top-1 in % by cut and rank; empty where the result has none."""
    if "svd_accuracy" not in result:
        return []
    ranks, _ = accuracy_at(result, result.cut.values[0])
    best, constant = 100 * float(result["accuracy"]), 100 * float(result["accuracy_chance"])
    rows = {CUTS[cut]: [f"{100 * value:.1f}" for value in accuracy_at(result, cut)[1]] for cut in result.cut.values}
    return [
        f"top-1 in % with FFN weights of rank k: {int(result['n_accuracy'])} images, unharmed {best:.1f}, "
        f"best constant answer {constant:.1f}",
        *(style.row(name, cells, 7) for name, cells in ({"k": ranks} | rows).items()),
    ]


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Ranks, one line per site, step, centring and model."""
    return style.tidy(result, "k95", "participation_ratio", "stable_rank")


# Figures


def ranks_of(results: Results, site: str, *, share: bool = False) -> Iterator[looks.Line]:
    """95 % rank per step of every model, centred and not (the untrained one centred); as shares of the width."""
    for model in style.series(results, "k95"):
        k95 = model.numbers["k95"].sel(site=site) / (int(model.result["width"].sel(site=site)) if share else 1)
        steps = k95.step.values + 1
        yield looks.Line(steps, k95.sel(centred=True).values, **model.look("centred"))
        if model.is_trained:
            yield looks.Line(steps, k95.sel(centred=False).values, **model.look("not centred", dash="dot", mark=""))


def figure(results: Results) -> Figure:
    """Figure 6: 95 % rank per step and site, one colour per model, centred and not, the untrained model dashed.

    The right axis is the share of the width; models of different width are drawn as shares.
    """
    every = style.named(results)
    fig, axes = looks.panels(1, len(SITES), width=3.1)
    share = len({int(result["width"].sel(site="mlp_out")) for result in every.values()}) > 1
    for ax, (site, title) in zip(axes, SITES.items(), strict=True):
        d = int(next(iter(every.values()))["width"].sel(site=site))
        title = title if share else f"{title} (d = {d})"
        looks.Curves([*ranks_of(results, site, share=share)], title=title, low=0).draw(ax, legend=False)
        if not share:
            right = ax.secondary_yaxis("right", functions=(lambda k, d=d: k / d, lambda part, d=d: part * d))
            right.tick_params(labelsize=7)
    axes[0].set_ylabel("95 % rank, share of d" if share else "95 % rank (right: share of d)")
    looks.legend_below(fig, axes[0], 3)
    return fig


def accuracy_of(results: Results, x: str) -> looks.Curves:
    """Top-1 against "rank" or "stored" numbers by cut, with Wilson's interval, unharmed and best constant answer."""
    lines = []
    for (name, result), dash in zip(style.named(results).items(), list(looks.DASHES) * 9, strict=False):
        n = int(result["n_accuracy"])
        for colour, cut in zip(style.SEQUENCE, result.cut.values, strict=False):
            ranks, values = accuracy_at(result, cut)
            size = result["svd_parameters"].sel(cut=cut, rank=ranks).values
            bounds = intervals.of_ratio(values, n, 100)
            said = [f"rank {k}: {100 * v:.1f} %, {s:,.0f} numbers" for k, v, s in zip(ranks, values, size, strict=True)]
            lines.append(
                looks.Line(
                    ranks if x == "rank" else size,
                    as_percent(values),
                    *bounds,
                    hover=said,
                    label=f"{name} {CUTS[cut]}".strip(),
                    colour=colour,
                    dash=dash,
                    mark="o",
                )
            )
    ticks = sorted({int(rank) for line in lines for rank in line.x}) if x == "rank" else None
    names = {"rank": "rank of fc1 and fc2", "stored": "numbers stored for fc1 and fc2"}
    return looks.Curves(
        lines, x=names[x], y="top-1 (%)", levels=style.levels(results, _accuracy_levels), ticks=ticks, log="x", base=2
    )


def _accuracy_levels(result: xr.Dataset) -> dict[str, float]:
    names = {"all of the weights": "accuracy", "best constant answer": "accuracy_chance"}
    return {what: 100 * float(result[name]) for what, name in names.items()}


def accuracy_figure(results: Results) -> Figure | None:
    """Figure 7: top-1 against rank and against the numbers stored, by cut; None where no result holds accuracies."""
    there = {name: result for name, result in style.named(results).items() if "svd_accuracy" in result}
    if not there:
        return None
    fig, axes = looks.panels(1, 2, sharey=True)
    for ax, x in zip(axes, ("rank", "stored"), strict=True):
        accuracy_of(there, x).draw(ax, legend=False)
    axes[1].set_ylabel("")
    looks.legend_below(fig, axes[0], 3)
    return fig


def overlap_at(result: xr.Dataset, site: str) -> looks.Map:
    """Overlap of the steps' 95 % subspaces at a site; the title compares its mean with that of random subspaces."""
    title = f"{SITES[site]}\nmean {_overlap(result, site, ', random ')}"
    beside = {"random": result["overlap_chance"].sel(site=site).values}
    return looks.step_map(
        result["overlap"].sel(site=site).values,
        result.step.values,
        low=0.0,
        high=1.0,
        bar="mean squared cosine",
        title=title,
        beside=beside,
    )


def overlap_map(result: xr.Dataset) -> Figure:
    """Overlap of the steps' 95 % subspaces, a map per site."""
    return looks.draw_maps([overlap_at(result, site) for site in SITES], width=2.6, height=2.8)


FIGURES = {"ranks": figure, "accuracy": accuracy_figure, "overlap": overlap_map}

# Interactive


def interactive(result: xr.Dataset, *, centred: bool = True, measure: str = "k95") -> go.Figure:
    """Figure 6 to hover over: k95, participation_ratio or stable_rank as share of the width, one line per site."""
    lines = []
    for colour, (site, title) in zip(style.SEQUENCE, SITES.items(), strict=False):
        width = int(result["width"].sel(site=site))
        for model in style.series(result, measure):
            values = model.numbers[measure].sel(site=site, centred=centred).values
            said = [
                f"{style.step_label(t)}: {k:.4g} of {width}" for t, k in zip(result.step.values, values, strict=True)
            ]
            look = model.look(title, colour=colour, hover=said)
            lines.append(looks.Line(result.step.values + 1, values / width, **look))
    return looks.Curves(lines, y="share of the width", low=0).interactive(450)


def accuracy_curves(result: xr.Dataset) -> go.Figure:
    """Figure 7 to hover over: top-1 against rank by cut; hover says how many numbers are stored."""
    return accuracy_of(result, "rank").interactive()


def overlaps(result: xr.Dataset, site: str) -> go.Figure:
    """One site's overlap map to hover over, with the chance level of each pair."""
    return overlap_at(result, site).interactive()
