"""Statistics, tables and figures of step-specific pruning (figures 5 and 14 of the paper), beside both nulls.

Random masks of the same densities say what sparsity alone gives. Replicates of one step say what a shared initialisation gives: a step is
specific where it overlaps with the others less than replicates of one step overlap with each other, never merely because it
differs from random.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import overlap, style

PAIRS = ("round", "weight", "step", "other_step")
COLOURS = ("#dee2e6", style.SECOND, "#edae49", style.MAIN)  # of overlap.CATEGORIES

# Statistics


def statistics(masks: np.ndarray, replicates: np.ndarray, sizes: Mapping[str, int]) -> xr.Dataset:
    """What masks [round step byte] (`numpy.packbits` over qkv, proj, fc1, fc2 in this order) share, per matrix and over all.

    replicates: [round replicate byte], grafts of the middle step T // 2 with other data orders; the step's own mask is one more.
    """
    n, middle = sum(sizes.values()), masks.shape[1] // 2
    found = [of_round(*(np.unpackbits(part, axis=-1, count=n) for part in both), sizes, middle) for both in zip(masks, replicates, strict=True)]
    stacked = {name: (("round", *found[0][name][0]), np.stack([row[name][1] for row in found])) for name in found[0]}
    return xr.Dataset(
        stacked | {"mask": (("round", "step", "byte"), masks), "replicate_mask": (("round", "replicate", "byte"), replicates)},
        coords={
            "round": np.arange(len(masks)), "step": np.arange(masks.shape[1]), "other_step": np.arange(masks.shape[1]),
            "weight": ["all", *sizes], "category": list(overlap.CATEGORIES), "count": np.arange(masks.shape[1] + 1),
        },
        attrs={"mask_bits": "numpy.unpackbits(mask, axis=-1, count=n_weights) over " + ", ".join(f"{k}:{v}" for k, v in sizes.items()), "n_weights": n},
    )  # fmt: skip


def of_round(masks: np.ndarray, replicates: np.ndarray, sizes: Mapping[str, int], middle: int) -> dict[str, tuple[tuple, np.ndarray]]:
    """The statistics of one round: name -> (dimensions, values); masks [step weight], replicates [replicate weight]."""
    ends = np.cumsum([0, *sizes.values()])
    parts = {"all": slice(0, ends[-1])} | {name: slice(a, b) for name, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)}
    density = np.stack([masks[:, part].mean(1) for name, part in parts.items() if name != "all"])
    n = np.array(list(sizes.values()))
    chance = {name: (n, density) if name == "all" else (n[i - 1 : i], density[i - 1 : i]) for i, name in enumerate(parts)}
    same = np.concatenate([masks[middle : middle + 1], replicates])

    def per_part(function) -> np.ndarray:
        return np.stack([function(masks[:, part]) for part in parts.values()])

    def by_chance(function) -> np.ndarray:
        return np.stack([function(*chance[name]) for name in parts])

    pairs = ("weight", "step", "other_step")
    return {
        "kept": (("step",), masks.sum(1, dtype=np.int64)),
        "density": (("step",), masks.mean(1)),
        "kept_by_weight": (("step", "weight"), per_part(lambda m: m.sum(1, dtype=np.int64)).T),
        "jaccard": (pairs, per_part(overlap.jaccard)),
        "jaccard_random": (pairs, by_chance(overlap.random_jaccard)),
        "overlap": (pairs, per_part(overlap.overlap)),
        "overlap_random": (pairs, by_chance(overlap.random_overlap)),
        "specialization": (("weight", "step"), per_part(overlap.specialization)),
        "specialization_random": (("weight", "step"), by_chance(overlap.random_specialization)),
        "usage": (("weight", "count"), per_part(overlap.usage)),
        "categories": (("weight", "category"), per_part(lambda m: overlap.categories(overlap.usage(m)))),
        "categories_random": (("weight", "category"), by_chance(overlap.random_categories)),
        "union_density": (("weight",), per_part(lambda m: np.array(overlap.union_density(m)))),
        "replicate_jaccard": (("weight", "pair"), np.stack([_between(overlap.jaccard(same[:, part])) for part in parts.values()])),
    }


def _between(matrix: np.ndarray) -> np.ndarray:
    """Values of all pairs: [pair]."""
    return np.array([matrix[a, b] for a, b in combinations(range(len(matrix)), 2)])


def mean_jaccard(result: xr.Dataset, name: str = "jaccard", weight: str = "all") -> np.ndarray:
    """Mean over all pairs of different steps: [round]."""
    return np.array([_between(matrix).mean() for matrix in result[name].sel(weight=weight).values])


def by_distance(result: xr.Dataset, name: str = "jaccard", *, round: int = -1, weight: str = "all") -> np.ndarray:
    """Mean over pairs of steps |s - t| apart: [distance - 1]."""
    matrix = result[name].isel(round=round).sel(weight=weight).values
    return np.array([np.diagonal(matrix, k).mean() for k in range(1, len(matrix))])


def interval(accuracy: np.ndarray, n: int) -> np.ndarray:
    """Half width of the 95 % interval of an accuracy measured on n images."""
    return 1.96 * np.sqrt(accuracy * (1 - accuracy) / max(n, 1))


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: a line per round, every overlap beside both nulls."""
    replicate = result["replicate_jaccard"].sel(weight="all").mean("pair").values if result.sizes.get("pair") else np.full(result.sizes["round"], np.nan)
    lines = [
        f"step-specific pruning: {result.sizes['step']} steps, {result.attrs['n_weights']} weights, chance {100 * result.attrs['chance']:.1f} %",
        "          density   accuracy  uncut->cut    Jaccard  random  replicates   specialization  random   dead  universal",
    ]
    for i, number in enumerate(result["round"].values):
        row = result.isel(round=i).sel(weight="all")
        shares = row["categories"].values
        before = 100 * float(result["accuracy"][i - 1]) if i else np.nan
        lines.append(
            f"round {number:3d} {100 * float(row['density'].mean()):7.2f} % {100 * float(row['accuracy']):7.1f} % "
            f"{before:6.1f}->{100 * float(row['accuracy_cut']):4.1f} "
            f"{mean_jaccard(result)[i]:10.3f} {mean_jaccard(result, 'jaccard_random')[i]:7.3f} {replicate[i]:11.3f} "
            f"{100 * float(row['specialization'].mean()):13.2f} % {100 * float(row['specialization_random'].mean()):6.2f} % "
            f"{100 * shares[0]:4.0f} % {100 * shares[3]:7.1f} %"
        )
    if result.attrs.get("note"):
        lines.append(f"note: {result.attrs['note']}")
    return "\n".join(lines)


def control_table(control: xr.Dataset, result: xr.Dataset) -> str:
    """A control's accuracy beside that of the steps' own masks."""
    own = result["accuracy"].sel(round=control["round"].values)
    if "swap" in control:
        lines = ["accuracy (%) when step t (row) runs under the mask of step s (column)"]
        for number, matrix, base in zip(control["round"].values, control["swap"].values, own.values, strict=True):
            off = matrix[~np.eye(len(matrix), dtype=bool)]
            lines.append(f"round {number}: own masks {100 * base:.1f}, swapped {100 * off.mean():.1f} on average, {100 * off.min():.1f} at worst")
        return "\n".join(lines)
    lines = [f"accuracy (%), {control.attrs['control']} masks against step-specific ones"]
    pairs = zip(control["round"].values, control["accuracy"].values, own.values, strict=True)
    return "\n".join([*lines, *(f"round {number:3d}: {100 * mine:5.1f} against {100 * theirs:5.1f}" for number, mine, theirs in pairs)])


# Figures


def figure(result: xr.Dataset, controls: Mapping[str, xr.Dataset] | None = None, *, round: int = -1) -> Figure:
    """Figure 5: weights by the number of steps that keep them, Jaccard between steps, accuracy against sparsity."""
    fig, (left, middle, right) = style.panels(1, 3, width=4.0, height=3.3)
    draw_categories(left, result)
    draw_map(fig, middle, result, round)
    draw_accuracy(right, result, controls or {})
    return fig


def draw_categories(ax: Axes, result: xr.Dataset) -> None:
    """Stacked bars of usage categories per round; thin bars beside them are random masks of the same densities."""
    for name, offset, width, alpha in (("categories", 0.0, 0.55, 1.0), ("categories_random", 0.42, 0.22, 0.55)):
        bottom = np.zeros(result.sizes["round"])
        for i, category in enumerate(result["category"].values):
            share = 100 * result[name].sel(weight="all", category=category).values
            label = str(category) if name == "categories" else None
            ax.bar(result["round"].values + offset, share, width, bottom=bottom, color=COLOURS[i], alpha=alpha, label=label)
            bottom = bottom + share
    ax.set(xlabel="pruning round", ylabel="weights (%)", title="")
    ax.set_title("weights by use (thin: random masks)", fontsize=9)
    ax.set_xticks(result["round"].values)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=4, frameon=False, columnspacing=0.8, handlelength=1)


def draw_map(fig: Figure, ax: Axes, result: xr.Dataset, round: int) -> None:
    """Jaccard of every two steps at one round, the diagonal left out; both nulls marked on the bar."""
    row = result.isel(round=round).sel(weight="all")
    matrix = row["jaccard"].values.copy()
    np.fill_diagonal(matrix, np.nan)
    steps = range(1, len(matrix) + 1)
    drawn = ax.imshow(matrix, cmap=style.MAP, extent=(0.5, len(matrix) + 0.5, len(matrix) + 0.5, 0.5))
    ax.set(xlabel="step", ylabel="step", xticks=steps, yticks=steps)
    ax.tick_params(labelsize=6)
    null = f"random {_between(row['jaccard_random'].values).mean():.2f}"
    if result.sizes.get("pair"):
        null += f", replicates {float(row['replicate_jaccard'].mean()):.2f}"
    ax.set_title(f"Jaccard after round {int(row['round'])}\n({null})", fontsize=9)
    fig.colorbar(drawn, ax=ax, shrink=0.8)


def draw_accuracy(ax: Axes, result: xr.Dataset, controls: Mapping[str, xr.Dataset]) -> None:
    """Accuracy against density: step-specific masks and the controls that are there."""
    density = 100 * result["density"].mean("step").values
    accuracy = result["accuracy"].values
    ax.errorbar(density, 100 * accuracy, 100 * interval(accuracy, result.attrs["n_val"]), fmt="o-", color=style.MAIN, markersize=4, label="step-specific")
    ax.plot(density, 100 * result["accuracy_cut"].values, ":", color=style.MAIN, lw=1, label="just cut, not retrained")
    for colour, (name, control) in zip(style.SEQUENCE[1:], controls.items(), strict=False):
        if "accuracy" in control:
            at = 100 * result["density"].mean("step").sel(round=control["round"].values).values
            ax.plot(at, 100 * control["accuracy"].values, "s--", color=colour, markersize=3, lw=1, label=name)
    ax.axhline(100 * result.attrs["chance"], ls=":", color=style.CHANCE, lw=1, label="chance")
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set_xticks(density, [f"{d:.0f}" if d >= 10 else f"{d:.1g}" for d in density])
    ax.minorticks_off()
    ax.set(xlabel="weights kept by a step (%)", ylabel="top-1 (%)")
    ax.set_title("accuracy against sparsity", fontsize=9)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=3, frameon=False)


def specialization_figure(result: xr.Dataset) -> Figure:
    """Figure 14: specialisation of every step against the round, by matrix; and the mean Jaccard beside both nulls."""
    fig, axes = style.panels(2, 3, width=3.6, height=2.8)
    colours = colormaps[style.MAP](np.linspace(0, 0.95, result.sizes["step"]))
    rounds = result["round"].values
    for ax, weight in zip(axes, result["weight"].values, strict=False):
        for t, colour in enumerate(colours):
            ax.plot(rounds, 100 * result["specialization"].sel(weight=weight, step=t), color=colour, lw=1, label=f"step {t + 1}")
        null = 100 * result["specialization_random"].sel(weight=weight).mean("step")
        ax.plot(rounds, null, "k--", lw=1.2, label="random masks")
        ax.set_title(str(weight), fontsize=9)
        ax.set(xlabel="pruning round", ylabel="specialization (%)", xticks=rounds)
    axes[0].legend(fontsize=5, frameon=False, ncol=2)
    ax = axes[-1]
    ax.plot(rounds, mean_jaccard(result), "o-", color=style.MAIN, markersize=3, label="between steps")
    ax.plot(rounds, mean_jaccard(result, "jaccard_random"), "k--", lw=1.2, label="random masks")
    if result.sizes.get("pair"):
        ax.plot(rounds, result["replicate_jaccard"].sel(weight="all").mean("pair"), "s-", color=style.SECOND, markersize=3, label="replicates of one step")
    ax.set(xlabel="pruning round", ylabel="mean Jaccard", ylim=(0, 1.02), xticks=rounds)
    ax.legend(fontsize=6, frameon=False)
    return fig


def swap_figure(control: xr.Dataset, result: xr.Dataset) -> Figure:
    """Accuracy when step t runs under the mask of step s, at the last round measured, as change against its own mask."""
    fig, (ax,) = style.panels(1, 1, width=4.4, height=3.8)
    matrix = 100 * control["swap"].values[-1]
    change = matrix - np.diag(matrix)[:, None]
    limit = max(np.abs(change).max(), 1e-9)
    n = len(matrix)
    drawn = ax.imshow(change, cmap="RdBu", vmin=-limit, vmax=limit, extent=(0.5, n + 0.5, n + 0.5, 0.5))
    ax.set(xlabel="mask of step", ylabel="used at step", xticks=range(1, n + 1), yticks=range(1, n + 1))
    ax.set_title(f"change of top-1 (points), round {int(control['round'].values[-1])}, own masks {np.diag(matrix).mean():.1f} %", fontsize=9)
    fig.colorbar(drawn, ax=ax)
    return fig


def interactive(result: xr.Dataset, *, round: int = -1, weight: str = "all", name: str = "jaccard") -> go.Figure:
    """Step x step map of Jaccard or overlap at one round, the random null in the hover text."""
    row = result.isel(round=round).sel(weight=weight)
    matrix, null = row[name].values.copy(), row[f"{name}_random"].values
    np.fill_diagonal(matrix, np.nan)
    labels = [str(t + 1) for t in result["step"].values]
    hover = "step %{y} and step %{x}: %{z:.3f}<br>random masks: %{customdata:.3f}<extra></extra>"
    figure = go.Figure(go.Heatmap(z=matrix, x=labels, y=labels, customdata=null, colorscale=style.MAP, hovertemplate=hover))
    figure.update_layout(xaxis_title="step", yaxis_title="step", yaxis_autorange="reversed", height=430, margin=dict(l=10, r=10, t=10, b=10))
    figure.update_yaxes(scaleanchor="x")
    return figure


def curves(result: xr.Dataset, controls: Mapping[str, xr.Dataset] | None = None, *, round: int = -1) -> go.Figure:
    """Accuracy over the rounds, of the steps' own masks and of the controls; the chosen round marked."""
    rounds = result["round"].values
    figure = go.Figure(go.Scatter(x=rounds, y=100 * result["accuracy"].values, mode="lines+markers", name="step-specific"))
    for name, control in (controls or {}).items():
        if "accuracy" in control:
            figure.add_scatter(x=control["round"].values, y=100 * control["accuracy"].values, mode="lines+markers", name=name, line=dict(dash="dash"))
    figure.add_hline(100 * result.attrs["chance"], line_dash="dot", annotation_text="chance")
    figure.add_vline(int(rounds[round]), line_color=style.CHANCE, line_width=1)
    figure.update_layout(xaxis_title="pruning round", yaxis_title="top-1 (%)", height=380, margin=dict(l=10, r=10, t=10, b=10))
    return figure


def shares(result: xr.Dataset, *, weight: str = "all") -> go.Figure:
    """Usage categories per round, random masks of the same densities beside."""
    figure = go.Figure()
    for pattern, name in (("", "categories"), ("/", "categories_random")):
        for colour, category in zip(COLOURS, result["category"].values, strict=True):
            figure.add_bar(
                x=[result["round"].values, ["random" if pattern else "found"] * result.sizes["round"]],
                y=100 * result[name].sel(weight=weight, category=category).values,
                name=str(category), marker=dict(color=colour, pattern_shape=pattern), showlegend=not pattern,
            )  # fmt: skip
    figure.update_layout(barmode="stack", yaxis_title="weights (%)", xaxis_title="pruning round", height=380, margin=dict(l=10, r=10, t=10, b=10))
    return figure


def specialization_curves(result: xr.Dataset, *, weight: str = "all") -> go.Figure:
    """Specialisation of every step over the rounds, beside random masks of the same densities."""
    figure = go.Figure()
    for t in result["step"].values:
        values = 100 * result["specialization"].sel(weight=weight, step=t).values
        figure.add_scatter(x=result["round"].values, y=values, mode="lines", name=f"step {t + 1}")
    null = 100 * result["specialization_random"].sel(weight=weight).mean("step").values
    figure.add_scatter(x=result["round"].values, y=null, mode="lines", name="random masks", line=dict(dash="dash", color=style.CHANCE))
    figure.update_layout(xaxis_title="pruning round", yaxis_title="specialization (%)", height=380, margin=dict(l=10, r=10, t=10, b=10))
    return figure
