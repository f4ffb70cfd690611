"""Statistics, tables and figures of step-specific pruning (figures 5 and 14 of the paper), compared with two nulls.

Random masks of the same densities give the overlap expected from sparsity alone. Replicates of one step (the same graft
trained with other data orders) give the overlap expected from a shared initialisation. A step is specific only if its
mask overlaps with other steps' masks less than replicates of one step overlap with each other; a difference from random
masks does not suffice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import intervals, looks, overlap, style
from analyses.style import Results, as_percent

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]  # name -> (dimensions, values)
CATEGORY_COLOURS = ("#dee2e6", style.SECOND, style.SEQUENCE[2], style.MAIN)  # of overlap.CATEGORIES

# Statistics


def statistics(
    masks: np.ndarray, replicates: np.ndarray, sizes: Mapping[str, int], replicated: Sequence[int]
) -> xr.Dataset:
    """How masks overlap, per weight matrix and over all of them.

    masks: [round step byte], packed by `numpy.packbits` in the order qkv, proj, fc1, fc2; replicates: [round replicated
    replicate byte], masks of the steps `replicated` trained with other data orders, besides the steps' own masks;
    sizes: number of weights of each matrix.
    """
    n_rounds, n_steps, _ = masks.shape
    n = sum(sizes.values())
    rounds = []
    for packed_masks, packed_replicates in zip(masks, replicates, strict=True):
        own_masks = np.unpackbits(packed_masks, axis=-1, count=n)
        replicate_masks = np.unpackbits(packed_replicates, axis=-1, count=n)
        rounds.append(of_round(own_masks, replicate_masks, sizes, replicated))
    statistics = {
        name: (("round", *dims), np.stack([variables[name][1] for variables in rounds]))
        for name, (dims, _) in rounds[0].items()
    }
    packed = {
        "mask": (("round", "step", "byte"), masks),
        "replicate_mask": (("round", "replicated", "replicate", "byte"), replicates),
    }
    parts = ", ".join(f"{name}:{size}" for name, size in sizes.items())
    return xr.Dataset(
        statistics | packed,
        coords={
            "round": np.arange(n_rounds),
            "step": np.arange(n_steps),
            "other_step": np.arange(n_steps),
            "replicated": list(replicated),
            "weight": ["all", *sizes],
            "category": list(overlap.CATEGORIES),
            "count": np.arange(n_steps + 1),
        },
        attrs={"mask_bits": f"numpy.unpackbits(mask, axis=-1, count=n_weights) over {parts}", "n_weights": n},
    )


def of_round(
    masks: np.ndarray, replicates: np.ndarray, sizes: Mapping[str, int], replicated: Sequence[int]
) -> Variables:
    """The statistics of one round; masks [step weight], replicates [replicated replicate weight]."""
    ends = np.cumsum([0, *sizes.values()])
    parts = [slice(0, ends[-1]), *(slice(a, b) for a, b in pairwise(ends))]
    same_step = np.concatenate([masks[list(replicated), None], replicates], axis=1)

    def per_part(statistic: Callable[[np.ndarray], np.ndarray], masks: np.ndarray = masks) -> np.ndarray:
        return np.stack([statistic(masks[..., part]) for part in parts])

    pairs = ("weight", "step", "other_step")
    return {
        "kept": (("step",), masks.sum(1, dtype=np.int64)),
        "density": (("step",), masks.mean(1)),
        "kept_by_weight": (("step", "weight"), per_part(lambda m: m.sum(1, dtype=np.int64)).T),
        "jaccard": (pairs, per_part(overlap.jaccard)),
        "overlap": (pairs, per_part(overlap.overlap)),
        "specialization": (("weight", "step"), per_part(overlap.specialization)),
        "usage": (("weight", "count"), per_part(overlap.usage)),
        "categories": (("weight", "category"), per_part(lambda m: overlap.categories(overlap.usage(m)))),
        "union_density": (("weight",), per_part(lambda m: np.array(overlap.union_density(m)))),
        "replicate_jaccard": (
            ("weight", "replicated", "pair"),
            per_part(lambda stack: np.stack([_between(overlap.jaccard(m)) for m in stack]), same_step),
        ),
    } | _random(np.stack([masks[:, part].mean(1) for part in parts[1:]]), np.array(list(sizes.values())))


def _random(density: np.ndarray, sizes: np.ndarray) -> Variables:
    """The expected overlap of random masks with these densities [matrix step], over all matrices and per matrix."""
    cases = [(sizes, density), *((sizes[i : i + 1], density[i : i + 1]) for i in range(len(sizes)))]
    pairs = ("weight", "step", "other_step")
    nulls = {
        "jaccard_random": (pairs, overlap.random_jaccard),
        "overlap_random": (pairs, overlap.random_overlap),
        "specialization_random": (("weight", "step"), overlap.random_specialization),
        "categories_random": (("weight", "category"), overlap.random_categories),
    }
    return {name: (dims, np.stack([function(*case) for case in cases])) for name, (dims, function) in nulls.items()}


def _between(matrix: np.ndarray) -> np.ndarray:
    """Values of all pairs: [pair]."""
    return np.array([matrix[a, b] for a, b in combinations(range(len(matrix)), 2)])


def _mean_between(matrix: np.ndarray) -> float:
    """Mean over all pairs; NaN if there is none, as with a single step."""
    return float(_between(matrix).mean()) if len(matrix) > 1 else np.nan


def mean_jaccard(result: xr.Dataset, name: str = "jaccard", weight: str = "all") -> np.ndarray:
    """Mean over all pairs of different steps: [round]."""
    return np.array([_mean_between(matrix) for matrix in result[name].sel(weight=weight).values])


def replicate_jaccard(result: xr.Dataset, weight: str = "all") -> np.ndarray:
    """Mean over the pairs of replicates of one step: [round]; NaN if there are none."""
    if not result.sizes.get("pair"):
        return np.full(result.sizes["round"], np.nan)
    pairs = result["replicate_jaccard"].sel(weight=weight)
    return pairs.mean([dim for dim in pairs.dims if dim != "round"]).values  # older results lack `replicated`


def replicated(result: xr.Dataset) -> list[int]:
    """The steps whose grafts were trained again with other data orders."""
    return result["replicated"].values.tolist() if "replicated" in result.coords else [result.attrs["replicated_step"]]


def over_rounds(result: xr.Dataset) -> xr.Dataset:
    """The table's numbers per round: density, accuracy before and after cutting, overlap with both nulls, usage."""
    all_weights = result.sel(weight="all")
    return xr.Dataset(
        {
            "density": all_weights["density"].mean("step"),
            "accuracy": all_weights["accuracy"],
            "accuracy_uncut": all_weights["accuracy"].shift(round=1),
            "accuracy_cut": all_weights["accuracy_cut"],
            "jaccard": ("round", mean_jaccard(result)),
            "jaccard_random": ("round", mean_jaccard(result, "jaccard_random")),
            "jaccard_replicates": ("round", replicate_jaccard(result)),
            "specialization": all_weights["specialization"].mean("step"),
            "specialization_random": all_weights["specialization_random"].mean("step"),
            "dead": all_weights["categories"].isel(category=0, drop=True),
            "universal": all_weights["categories"].isel(category=-1, drop=True),
        }
    ).drop_vars("weight")


# Tables


def table(result: xr.Dataset) -> str:
    """The text that the command prints: one line per round, each overlap next to both nulls."""
    n, chance = result.attrs["n_weights"], 100 * result.attrs["chance"]
    lines = [
        f"step-specific pruning: {result.sizes['step']} steps, {n} weights, chance {chance:.1f} %",
        "          density   accuracy  uncut->cut    Jaccard  random  replicates   specialization  random   dead"
        "  universal",
    ]
    for row in over_rounds(result).to_dataframe().itertuples():
        lines.append(
            f"round {row.Index:3d} {100 * row.density:7.2f} % {100 * row.accuracy:7.1f} % "
            f"{100 * row.accuracy_uncut:6.1f}->{100 * row.accuracy_cut:4.1f} "
            f"{row.jaccard:10.3f} {row.jaccard_random:7.3f} {row.jaccard_replicates:11.3f} "
            f"{100 * row.specialization:13.2f} % {100 * row.specialization_random:6.2f} % "
            f"{100 * row.dead:4.0f} % {100 * row.universal:7.1f} %"
        )
    if result.attrs.get("note"):
        lines.append(f"note: {result.attrs['note']}")
    return "\n".join(lines)


def compared(control: xr.Dataset, result: xr.Dataset) -> str:
    """The text that a control's command prints: its accuracy next to that of the steps' own masks."""
    rounds = control["round"].values
    own = 100 * result["accuracy"].sel(round=rounds).values
    if "swap" in control:
        lines = ["accuracy (%) when step t (row) runs under the mask of step s (column)"]
        for number, matrix, own_accuracy in zip(rounds, 100 * control["swap"].values, own, strict=True):
            swapped = matrix[~np.eye(len(matrix), dtype=bool)]
            comparison = "with one step there is none to swap with"
            if swapped.size:
                comparison = f"swapped {swapped.mean():.1f} on average, {swapped.min():.1f} at worst"
            lines.append(f"round {number}: own masks {own_accuracy:.1f}, {comparison}")
        return "\n".join(lines)
    lines = [f"accuracy (%), {control.attrs['control']} masks against step-specific ones"]
    for number, accuracy, own_accuracy in zip(rounds, 100 * control["accuracy"].values, own, strict=True):
        lines.append(f"round {number:3d}: {accuracy:5.1f} against {own_accuracy:5.1f}")
    return "\n".join(lines)


def frame(result: xr.Dataset) -> pd.DataFrame:
    """The table's numbers as a data frame with one row per round, the accuracy with its interval."""
    low, high = intervals.of_ratio(result["accuracy"].values, result.attrs["n_val"])
    bounds = {"accuracy_low": ("round", low), "accuracy_high": ("round", high)}
    return over_rounds(result).assign(bounds).to_dataframe().reset_index()


# Figures


def figure(results: Results, controls: Mapping[str, xr.Dataset] | None = None, *, round: int = -1) -> Figure:
    """Figure 5: weights by the number of steps that keep them, Jaccard between steps, accuracy against sparsity."""
    named = style.named(results)
    fig, axes = looks.panels(len(named), 3, width=4.0, height=3.5)
    for row, (name, result) in enumerate(named.items()):
        left, middle, right = axes[3 * row : 3 * row + 3]
        draw_categories(left, result)
        pair_map(result, round=round).draw(middle)
        draw_accuracy(right, result, controls or {})
        left.set_title(f"{name} weights by use (thin: random masks)".strip(), fontsize=9)
    return fig


def draw_categories(ax: Axes, result: xr.Dataset) -> None:
    """Stacked bars of usage categories per round; thin bars beside them are random masks of the same densities."""
    rounds = result["round"].values
    for name, offset, width, alpha in (("categories", 0.0, 0.55, 1.0), ("categories_random", 0.42, 0.22, 0.55)):
        shares = as_percent(result[name].sel(weight="all").transpose("category", "round"))
        bottoms = shares.cumsum(0) - shares
        for share, bottom, colour, category in zip(shares, bottoms, CATEGORY_COLOURS, overlap.CATEGORIES, strict=True):
            label = category if name == "categories" else None
            ax.bar(rounds + offset, share, width, bottom=bottom, color=colour, alpha=alpha, label=label)
    ax.set(xlabel="pruning round", ylabel="weights (%)", xticks=style.some(rounds))
    looks.legend_under(ax)


def pair_map(result: xr.Dataset, *, round: int = -1, weight: str = "all", name: str = "jaccard") -> looks.Map:
    """Jaccard or overlap of every pair of steps at one round; the title gives the means of both nulls."""
    at_round = result.isel(round=round).sel(weight=weight)
    null = f"random {_mean_between(at_round[f'{name}_random'].values):.2f}"
    if result.sizes.get("pair") and name == "jaccard":
        null += f", replicates {float(at_round['replicate_jaccard'].mean()):.2f}"
    title = f"{name.capitalize()} after round {int(at_round['round'])}\n({null})"
    beside = {"random masks": at_round[f"{name}_random"].values}
    return looks.step_map(at_round[name].values, result.step.values, diagonal=False, title=title, beside=beside)


def accuracy_curves(result: xr.Dataset, controls: Mapping[str, xr.Dataset], x: Mapping[int, float]) -> looks.Curves:
    """Accuracy of step-specific masks (with its interval, and right after cutting) and of the available controls.

    x: the horizontal position of each round.
    """
    positions = list(x.values())
    bounds = intervals.of_ratio(result["accuracy"].values, result.attrs["n_val"], 100)
    uncut, cut = as_percent(result["accuracy"]), as_percent(result["accuracy_cut"])
    lines = [
        looks.Line(positions, uncut, *bounds, label="step-specific", mark="o"),
        looks.Line(positions, cut, label="just cut, not retrained", dash="dot", width=1.0),
    ]
    for colour, (name, control) in zip(style.SEQUENCE[1:], controls.items(), strict=False):
        if "accuracy" in control:
            own_positions = [x[int(number)] for number in control["round"].values]
            look = dict(label=name, colour=colour, dash="dash", mark="s", width=1.0)
            lines.append(looks.Line(own_positions, as_percent(control["accuracy"]), **look))
    levels = {"chance": 100 * result.attrs["chance"]}
    return looks.Curves(lines, x="pruning round", y="top-1 (%)", levels=levels)


def draw_accuracy(ax: Axes, result: xr.Dataset, controls: Mapping[str, xr.Dataset]) -> None:
    """Accuracy against the density of a step's mask, on a falling logarithmic axis."""
    density = as_percent(result["density"].mean("step"))
    x = dict(zip(result["round"].values.tolist(), density, strict=True))
    axis = dict(x="weights kept by a step (%)", log="x", ticks=style.some(density, 9))
    replace(accuracy_curves(result, controls, x), title="accuracy against sparsity", **axis).draw(ax)
    ax.invert_xaxis()


def specialization_of(result: xr.Dataset, weight: str) -> looks.Curves:
    """Specialisation of every step over the rounds, with the mean of random masks of the same densities."""
    rounds = result["round"].values
    shades = colormaps[style.MAP](np.linspace(0, 0.95, result.sizes["step"]))
    by_step = as_percent(result["specialization"].sel(weight=weight).transpose("step", "round"))
    lines = [
        looks.Line(rounds, values, label=f"step {t + 1}", colour=colors.to_hex(shade), width=1.0)
        for t, (values, shade) in enumerate(zip(by_step, shades, strict=True))
    ]
    null = as_percent(result["specialization_random"].sel(weight=weight).mean("step"))
    lines.append(looks.Line(rounds, null, label="random masks", colour=style.INK, dash="dash", width=1.2))
    return looks.Curves(lines, x="pruning round", y="specialization (%)", title=weight)


def specialization_figure(result: xr.Dataset) -> Figure:
    """Figure 14: specialisation of every step over the rounds, per matrix; and the mean Jaccard with both nulls."""
    fig, axes = looks.panels(2, 3, width=3.6, height=2.8)
    for ax, weight in zip(axes, result["weight"].values, strict=False):
        specialization_of(result, str(weight)).draw(ax, legend=False)
    numbers = over_rounds(result)
    kinds = {
        "jaccard": ("between steps", style.MAIN, "solid", "o"),
        "jaccard_random": ("random masks", style.INK, "dash", ""),
        "jaccard_replicates": ("replicates of one step", style.SECOND, "solid", "s"),
    }
    lines = [
        looks.Line(numbers["round"].values, numbers[name].values, label=label, colour=colour, dash=dash, mark=mark)
        for name, (label, colour, dash, mark) in kinds.items()
    ]
    looks.Curves(lines, x="pruning round", y="mean Jaccard", low=0, high=1.02).draw(axes[-1])
    looks.legend_below(fig, axes[0], 7)
    return fig


def swap_map(control: xr.Dataset) -> looks.Map:
    """Change of accuracy when step t runs under the mask of step s, at the last round measured."""
    matrix = 100 * control["swap"].values[-1]
    change = matrix - np.diag(matrix)[:, None]
    limit = max(float(np.abs(change).max()), 1e-9)
    number, own = int(control["round"].values[-1]), np.diag(matrix).mean()
    title, bar = f"round {number}, own masks {own:.1f} %", "change of top-1 (points)"
    return looks.step_map(
        change,
        control["step"].values,
        x="mask of step",
        y="used at step",
        title=title,
        bar=bar,
        low=-limit,
        high=limit,
        colours=style.CHANGE,
    )


FIGURES = {"overlap": figure, "specialization": specialization_figure}

# Interactive


def interactive(result: xr.Dataset, *, round: int = -1, weight: str = "all", name: str = "jaccard") -> go.Figure:
    """Step x step map of Jaccard or overlap at one round, with the random null in the hover text."""
    return pair_map(result, round=round, weight=weight, name=name).interactive()


def curves(result: xr.Dataset, controls: Mapping[str, xr.Dataset] | None = None, *, round: int = -1) -> go.Figure:
    """Accuracy of the steps' own masks and of the controls over the rounds, with a line at the chosen round."""
    rounds = result["round"].values.tolist()
    drawn = accuracy_curves(result, controls or {}, dict(zip(rounds, rounds, strict=True))).interactive()
    return drawn.add_vline(rounds[round], line=dict(color=style.CHANCE, width=1))


def shares(result: xr.Dataset, *, weight: str = "all") -> go.Figure:
    """Usage categories per round, each next to those of random masks of the same densities."""
    fig, rounds = go.Figure(), result["round"].values
    for pattern, name, kind in (("", "categories", "own"), ("/", "categories_random", "random")):
        for colour, category in zip(CATEGORY_COLOURS, overlap.CATEGORIES, strict=True):
            share = as_percent(result[name].sel(weight=weight, category=category))
            hover = [f"{category}, {kind} masks<br>round {r}: {s:.1f} %" for r, s in zip(rounds, share, strict=True)]
            fig.add_bar(
                x=[rounds, [kind] * len(rounds)],
                y=share,
                name=category,
                marker=dict(color=colour, pattern_shape=pattern),
                showlegend=not pattern,
                hovertext=hover,
                hovertemplate="%{hovertext}<extra></extra>",
            )
    above = dict(orientation="h", yanchor="bottom", y=1.0)
    fig.update_layout(barmode="stack", height=380, legend=above, **looks.WHITE)
    return fig.update_xaxes(title="pruning round").update_yaxes(title="weights (%)")


def specialization_curves(result: xr.Dataset, *, weight: str = "all") -> go.Figure:
    """Specialisation of every step over the rounds, beside random masks of the same densities."""
    return specialization_of(result, weight).interactive()
