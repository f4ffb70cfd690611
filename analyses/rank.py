"""Ranks, subspaces, tables and figures of the rank probe (figures 6 and 7 of the paper).

Spectra are eigenvalues in falling order, NaN or 0 behind them. Every rank stands beside that of the untrained model, every overlap
of subspaces beside that of random ones, every accuracy beside the best constant answer.
"""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import style

SITES = {"mlp_pre": "FFN hidden, before GELU", "mlp_post": "FFN hidden, after GELU", "mlp_out": "FFN output", "cls": "CLS state"}
METHODS = {"plain": "truncated SVD", "utilised": "activation-aware", "sparse": "low rank + 5 % sparse"}

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
    """Mean squared cosine of the principal angles between two orthonormal bases [d k], over the smaller k; NaN where one is empty.

    1 where one subspace contains the other, 0 where they are orthogonal.
    """
    k = min(one.shape[1], other.shape[1])
    return float(np.square(one.T @ other).sum() / k) if k else np.nan


def chance_overlap(k: np.ndarray, room: int | np.ndarray) -> np.ndarray:
    """What random subspaces of dimensions k [step] overlap by in `room` dimensions: max(k, k') / room, [step other_step]."""
    return np.minimum(np.maximum(k[:, None], k) / room, 1.0)


def between_steps(matrix: np.ndarray) -> float:
    """Mean over pairs of different steps; NaN where there are none."""
    pairs = matrix[~np.eye(len(matrix), dtype=bool)]
    pairs = pairs[~np.isnan(pairs)]
    return float(pairs.mean()) if len(pairs) else np.nan


def accuracy_at(result: xr.Dataset, method: str) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of the ladder and the top-1 accuracy at each."""
    curve = result["svd_accuracy"].sel(dict(method=method)).dropna("rank")
    return curve["rank"].values, curve.values


def sufficient_rank(result: xr.Dataset, method: str, loss: float = 0.01) -> int:
    """The least rank of the ladder that loses at most `loss` of the accuracy."""
    ranks, values = accuracy_at(result, method)
    return int(ranks[np.argmax(values >= float(result["accuracy"]) - loss)])


# Table


def table(result: xr.Dataset) -> str:
    """What the command prints: 95 % ranks per step and site (centred / not), the untrained model's, overlaps, accuracy by rank."""
    sites = result.site.values
    widths = [f"{site} of {width}" for site, width in zip(sites, result.width.values, strict=True)]
    lines = [
        f"95 % rank, centred / not: {result.attrs['n_images']} images, {result.attrs['tokens']} tokens of each",
        f"{'':22}" + "".join(f"{name:>17}" for name in widths),
    ]
    for t in result.step.values:
        cells = [_pair(result["k95"].sel(dict(step=t, site=site))) for site in sites]
        lines.append(f"{style.step_label(t):22}" + "".join(f"{cell:>17}" for cell in cells))
    if "control_k95" in result:
        means = [_pair(result["control_k95"].sel(site=site).mean("step")) for site in sites]
        lines.append(f"{'untrained, mean':22}" + "".join(f"{cell:>17}" for cell in means))
    lines.append(f"{'steps together / sum':22}" + "".join(f"{_together(result, site):>17}" for site in sites))
    lines.append(f"{'overlap / random':22}" + "".join(f"{_overlap(result, site):>17}" for site in sites))
    return "\n".join(lines + accuracy_rows(result))


def _pair(cell: xr.DataArray) -> str:
    return f"{float(cell.sel(centred=True)):.0f} / {float(cell.sel(centred=False)):.0f}"


def _together(result: xr.Dataset, site: str) -> str:
    return f"{int(result['union_k95'].sel(site=site)[-1])} / {int(result['k95'].sel(dict(site=site, centred=True)).sum())}"


def _overlap(result: xr.Dataset, site: str) -> str:
    return " / ".join(f"{between_steps(result[name].sel(site=site).values):.2f}" for name in ("overlap", "overlap_chance"))


def accuracy_rows(result: xr.Dataset) -> list[str]:
    """Top-1 in % by method and rank; empty where the result has none."""
    if "svd_accuracy" not in result:
        return []
    ranks, _ = accuracy_at(result, result.method.values[0])
    rows = [
        f"top-1 in % with FFN weights of rank k: {int(result['n_accuracy'])} images, unharmed {100 * float(result['accuracy']):.1f}, "
        f"best constant answer {100 * float(result['accuracy_chance']):.1f}",
        f"{'k':22}" + "".join(f"{rank:>7}" for rank in ranks),
    ]
    return rows + [
        f"{METHODS[method]:22}" + "".join(f"{100 * value:7.1f}" for value in accuracy_at(result, method)[1]) for method in result.method.values
    ]


# Figures


def _named(results: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    return {"": results} if isinstance(results, xr.Dataset) else dict(results)


def figure(results: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Figure 6: 95 % rank per step and site, one colour a model, centred and not, the untrained model dashed.

    The right axis is the share of the width; models of different width are drawn as shares.
    """
    named = _named(results)
    fig, axes = style.panels(1, len(SITES), width=3.1)
    is_share = len({int(result["width"].sel(site="mlp_out")) for result in named.values()}) > 1
    for ax, (site, title) in zip(axes, SITES.items(), strict=True):
        for colour, (name, result) in zip(style.SEQUENCE * len(named), named.items(), strict=False):
            width = int(result["width"].sel(site=site))
            _ranks(ax, result, site, colour if len(named) > 1 else style.MAIN, name, width if is_share else 1)
        ax.set_title(title if is_share else f"{title} (d = {width})", fontsize=9)
        ax.set_ylim(bottom=0)
        if not is_share:
            ax.secondary_yaxis("right", functions=(lambda k, d=width: k / d, lambda share, d=width: share * d)).tick_params(labelsize=7)
        style.step_axis(ax, max(r.sizes["step"] for r in named.values()))
    axes[0].set_ylabel("95 % rank, share of d" if is_share else "95 % rank (right: share of d)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return fig


def _ranks(ax: Axes, result: xr.Dataset, site: str, colour: str, name: str, scale: int) -> None:
    """Centred, not centred, and untrained, divided by `scale`."""
    steps, k95 = result.step.values + 1, result["k95"].sel(site=site) / scale
    ax.plot(steps, k95.sel(centred=True), "o-", color=colour, markersize=4, label=f"{name} centred".strip())
    ax.plot(steps, k95.sel(centred=False), ":", color=colour, lw=1.5, label=f"{name} not centred".strip())
    if "control_k95" in result:
        untrained = result["control_k95"].sel(dict(site=site, centred=True)) / scale
        ax.plot(steps, untrained, "--", color=style.CONTROL if not name else colour, lw=1.2, label=f"{name} untrained, centred".strip())


def accuracy_figure(results: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure | None:
    """Figure 7: top-1 against rank and against the numbers stored, by method, with the unharmed accuracy and the best constant answer.

    Bands are 95 % binomial. None where no result holds accuracies.
    """
    named = {name: result for name, result in _named(results).items() if "svd_accuracy" in result}
    if not named:
        return None
    fig, axes = style.panels(1, 2, sharey=True)
    lines = ("-", "--", ":", "-.")
    for (name, result), line in zip(named.items(), lines * len(named), strict=False):
        for colour, method in zip(style.SEQUENCE, result.method.values, strict=False):
            ranks, values = accuracy_at(result, method)
            size = result["svd_parameters"].sel(dict(method=method, rank=ranks)).values
            spread = 1.96 * np.sqrt(values * (1 - values) / int(result["n_accuracy"]))
            for ax, x in zip(axes, (ranks, size), strict=True):
                ax.plot(x, 100 * values, f"o{line}", color=colour, markersize=4, label=f"{name} {METHODS[method]}".strip())
                ax.fill_between(x, 100 * (values - spread), 100 * (values + spread), color=colour, alpha=0.12, lw=0)
        for ax in axes:
            ax.axhline(100 * float(result["accuracy"]), ls=line, color=style.CONTROL, lw=1, label=f"{name} all of the weights".strip())
            ax.axhline(100 * float(result["accuracy_chance"]), ls=":", color=style.CHANCE, lw=1, label=f"{name} best constant answer".strip())
    for ax, title in zip(axes, ("rank of fc1 and fc2", "numbers stored for fc1 and fc2"), strict=True):
        ax.set_xscale("log", base=2)
        ax.set_xlabel(title)
    axes[0].set_ylabel("top-1 (%)")
    axes[0].legend(fontsize=7, frameon=False)
    return fig


def overlap_map(result: xr.Dataset) -> Figure:
    """Overlap of the steps' 95 % subspaces, a map a site; its title compares the mean of different steps with that of random subspaces."""
    fig, axes = style.panels(1, len(SITES), width=2.6, height=2.8)
    for ax, (site, title) in zip(axes, SITES.items(), strict=True):
        drawn = ax.imshow(result["overlap"].sel(site=site), cmap=style.MAP, vmin=0, vmax=1)
        ax.set_title(f"{title}\nmean {_overlap(result, site).replace(' / ', ', random ')}", fontsize=8)
        ticks = range(0, result.sizes["step"], max(1, result.sizes["step"] // 6))
        ax.set(xticks=ticks, yticks=ticks, xticklabels=[t + 1 for t in ticks], yticklabels=[t + 1 for t in ticks], xlabel="step")
    axes[0].set_ylabel("step")
    fig.colorbar(drawn, ax=axes, label="mean squared cosine")
    return fig


# Interactive


def interactive(result: xr.Dataset, *, centred: bool = True, measure: str = "k95") -> go.Figure:
    """Figure 6 to hover over: a rank (k95, participation_ratio, stable_rank) as share of the width per step, one line a site, untrained dotted."""
    steps, fig = result.step.values + 1, go.Figure()
    for colour, (site, title) in zip(style.SEQUENCE, SITES.items(), strict=False):
        width, cell = int(result["width"].sel(site=site)), dict(site=site, centred=centred)
        rows = {title: (result[measure].sel(cell).values, None)}
        if measure == "k95" and "control_k95" in result:
            rows[f"untrained, {title}"] = result["control_k95"].sel(cell).values, "dot"
        for name, (values, dash) in rows.items():
            fig.add_scatter(
                x=steps, y=values / width, name=name, customdata=values, line=dict(color=colour, dash=dash),
                hovertemplate=f"step %{{x}}: %{{customdata:.4~g}} of {width}<extra>{name}</extra>",
            )  # fmt: skip
    fig.update_layout(
        xaxis=dict(title="step", dtick=1, range=[0.5, len(steps) + 0.5]), yaxis=dict(title="share of the width", rangemode="tozero"),
        legend=dict(orientation="h", y=-0.2), margin=dict(l=50, r=10, t=20, b=45),
    )  # fmt: skip
    return fig


def accuracy_curves(result: xr.Dataset) -> go.Figure:
    """Figure 7 to hover over: top-1 against rank by method; hover says how many numbers are stored."""
    fig, ranks = go.Figure(), []
    for colour, method in zip(style.SEQUENCE, result.method.values, strict=False):
        ranks, values = accuracy_at(result, method)
        size = result["svd_parameters"].sel(dict(method=method, rank=ranks)).values
        fig.add_scatter(
            x=ranks, y=100 * values, name=METHODS[method], line_color=colour, customdata=size,
            hovertemplate="rank %{x}: %{y:.1f} %, %{customdata:,.0f} numbers<extra></extra>",
        )  # fmt: skip
    for name, key, dash in (("all of the weights", "accuracy", "dash"), ("best constant answer", "accuracy_chance", "dot")):
        level = 100 * float(result[key])
        fig.add_scatter(x=ranks, y=np.full(len(ranks), level), name=name, mode="lines", line=dict(color=style.CHANCE, dash=dash, width=1))
    fig.update_layout(
        xaxis=dict(title="rank of fc1 and fc2", type="log", tickvals=ranks), yaxis_title="top-1 (%)",
        legend=dict(orientation="h", y=-0.2), margin=dict(l=50, r=10, t=20, b=45),
    )  # fmt: skip
    return fig


def overlaps(result: xr.Dataset, site: str) -> go.Figure:
    """One site's overlap map to hover over, with the chance level of each pair."""
    steps = result.step.values + 1
    fig = go.Figure(
        go.Heatmap(
            z=result["overlap"].sel(site=site).values, x=steps, y=steps, zmin=0, zmax=1, colorscale=style.MAP,
            customdata=result["overlap_chance"].sel(site=site).values,
            hovertemplate="steps %{y} and %{x}: %{z:.3f}, random %{customdata:.3f}<extra></extra>", colorbar_title="overlap",
        )
    )  # fmt: skip
    fig.update_layout(
        xaxis=dict(title="step", dtick=1), yaxis=dict(title="step", dtick=1, autorange="reversed"), margin=dict(l=50, r=10, t=20, b=45)
    )
    return fig
