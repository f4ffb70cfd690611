"""Statistics, tables and figures of the pointing game (figures 4 and 10 to 13 of the paper).

Every number stands beside its chance level: the image centre, a random patch, the untrained model, and for the best of
many heads the expected maximum of as many random pointers, with the head chosen on one half of the images and scored
on the other.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import style

RESAMPLES = 1000  # of the bootstrap

# Statistics


def average(values: np.ndarray, labels: np.ndarray, axis: int) -> np.ndarray:
    """Micro (over images) and macro (over classes) mean; the image axis becomes [micro, macro]. NaN is left out.

    values: [... image ...] with images on `axis`; labels: [image].
    """
    values = np.moveaxis(np.asarray(values, dtype=np.float64), axis, 0)
    classes = np.unique(labels)
    per_class = np.stack([_nanmean(values[labels == c]) for c in classes])
    return np.moveaxis(np.stack([_nanmean(values), _nanmean(per_class)]), 0, axis)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    count = (~np.isnan(values)).sum(0)
    return np.divide(np.nansum(values, 0), count, out=np.full(values.shape[1:], np.nan), where=count > 0)


def ratios(hit: np.ndarray, labels: np.ndarray, *, seed: int = 0, level: float = 0.95) -> dict[str, np.ndarray]:
    """Hit ratios with bootstrap confidence intervals over images: three arrays [tolerance target average step head].

    hit: [tolerance target image step head]; labels: [image]. Images are resampled at random for the micro average and
    within their class for the macro average (Efron's percentile interval).
    """
    values = np.moveaxis(hit, 2, 0)
    flat = values.reshape(len(labels), -1).astype(np.float32)
    valid = (~np.isnan(flat)).astype(np.float32)
    flat = np.nan_to_num(flat)
    rng = np.random.default_rng(seed)
    tail = (1 - level) / 2
    bounds = []
    for weights in (_micro_weights(len(labels), rng), _macro_weights(labels, rng)):
        drawn = (weights @ flat) / np.maximum(weights @ valid, 1e-9)
        bounds.append(np.quantile(drawn, [tail, 1 - tail], axis=0).reshape(2, *values.shape[1:]))
    low, high = np.moveaxis(np.stack(bounds), 0, 3)  # [bound tolerance target average step head]
    return {"hit_ratio": average(hit, labels, axis=2), "hit_low": low, "hit_high": high}


def _micro_weights(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float32)


def _macro_weights(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Resampled within each class, each class weighing the same: [resample image]."""
    weights = np.zeros((RESAMPLES, len(labels)), np.float32)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=RESAMPLES) / len(members)
    return weights


def best_head(result: xr.Dataset, *, tolerance: int = 0, target: str = "class", seed: int = 0) -> dict[str, float]:
    """The head with the highest hit ratio on a random half of the images, scored on the other half.

    The best of many heads is biased upwards on the images it was chosen on; `chance` is the expected maximum over as many
    independent random pointers on the first half, `chance_high` its 95 % quantile, `uniform` the level of one of them.
    """
    hit = result["hit"].sel(dict(tolerance=tolerance, target=target)).values
    uniform = result["baseline_per_image"].sel(dict(kind="uniform", tolerance=tolerance, target=target)).values
    order = np.random.default_rng(seed).permutation(len(hit))
    first, second = order[: len(hit) // 2], order[len(hit) // 2 :]
    if not len(first):
        first = second
    chosen_on = _nanmean(hit[first].astype(np.float64))
    step, head = np.unravel_index(np.nanargmax(chosen_on), chosen_on.shape)
    level, high = chance_of_maximum(uniform[first], chosen_on.size, seed)
    return {
        "step": int(step), "head": int(head), "n_heads": chosen_on.size,
        "chosen_on": float(chosen_on[step, head]), "held_out": float(np.nanmean(hit[second, step, head])),
        "uniform": float(np.nanmean(uniform)), "chance": level, "chance_high": high,
    }  # fmt: skip


def chance_of_maximum(chance: np.ndarray, n_cells: int, seed: int = 0, draws: int = 4000) -> tuple[float, float]:
    """Mean and 95 % quantile of the best hit ratio among `n_cells` independent pointers that hit image i with probability chance[i]."""
    chance = chance[~np.isnan(chance)].astype(np.float64)
    spread = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
    best = chance.mean() + spread * np.random.default_rng(seed).standard_normal((draws, n_cells)).max(1)
    return float(best.mean()), float(np.quantile(best, 0.95))


# Table


def table(result: xr.Dataset) -> str:
    """What the command prints: per step, hit ratio of the mean and of the best head, beside the chance levels (per cent)."""
    ratio = 100 * result["hit_ratio"].sel(average="micro")
    base = 100 * result["baseline"].sel(average="micro")
    columns = [(tolerance, target) for tolerance in result.tolerance.values for target in result.target.values]
    head = "".join(f"{f'{target} {tolerance} px':>16}" for tolerance, target in columns)
    lines = [
        f"pointing game: {result.sizes['image']} images, {result.attrs['n_skipped']} without their class, hit ratio in %",
        f"{'':22}{head}",
        f"{'':22}{'mean    best    ' * len(columns)}",
    ]
    for t in result.step.values:
        cells = [ratio.sel(dict(step=t, tolerance=tolerance, target=target)).values for tolerance, target in columns]
        lines.append(
            f"{style.step_label(t):22}" + "".join(f"{np.nanmean(c):4.1f}  {np.nanmax(c):5.1f} h{np.nanargmax(c):<2d}" + " " for c in cells)
        )
    for name, values in _chance_rows(result, base, columns).items():
        lines.append(f"{name:22}" + "".join(f"{value:4.1f}{'':12}" for value in values))
    best = best_head(result)
    lines.append(
        f"best of {best['n_heads']} heads: head {best['head']} at {style.step_label(best['step'])}, {100 * best['held_out']:.1f} % on the half it was "
        f"not chosen on (chosen at {100 * best['chosen_on']:.1f} %; the best of {best['n_heads']} random pointers would reach "
        f"{100 * best['chance']:.1f} %)"
    )
    return "\n".join(lines)


def _chance_rows(result: xr.Dataset, base: xr.DataArray, columns: list[tuple[int, str]]) -> dict[str, list[float]]:
    names = {"centre": "image centre", "uniform": "random patch", "area": "random pixel"}
    rows = {title: [float(base.sel(dict(kind=name, tolerance=t, target=g))) for t, g in columns] for name, title in names.items()}
    if "control_hit_ratio" in result:
        control = 100 * result["control_hit_ratio"].sel(average="micro")
        rows["untrained, mean head"] = [float(control.sel(dict(tolerance=t, target=g)).mean()) for t, g in columns]
        rows["untrained, best head"] = [float(control.sel(dict(tolerance=t, target=g)).max()) for t, g in columns]
    return rows


# Figures


def figure(results: xr.Dataset | Mapping[str, xr.Dataset], *, tolerance: int = 0, target: str = "class", average: str = "micro") -> Figure:
    """Figure 4: hit ratio per step of the mean head and of the best head, one colour a model, beside the chance levels."""
    named = {"": results} if isinstance(results, xr.Dataset) else dict(results)
    fig, axes = style.panels(1, 2, sharey=True)
    cell = dict(tolerance=tolerance, target=target, average=average)
    for colour, (name, result) in zip(style.SEQUENCE * len(named), named.items(), strict=False):
        steps = result.step.values + 1
        for ax, reduce in zip(axes, ("mean", "best"), strict=True):
            ratio, low, high = (_over_heads(result, key, reduce, cell) for key in ("hit_ratio", "hit_low", "hit_high"))
            ax.plot(steps, 100 * ratio, "o-", color=colour, markersize=4, label=name or "trained")
            ax.fill_between(steps, 100 * low, 100 * high, color=colour, alpha=0.15, lw=0)
            if "control_hit_ratio" in result:
                control = result["control_hit_ratio"].sel(cell)
                control = control.mean("head") if reduce == "mean" else control.max("head")
                ax.plot(steps, 100 * control, "--", color=colour, alpha=0.7, lw=1.2, label=f"{name} untrained".strip())
    result = next(iter(named.values()))
    for ax, title in zip(axes, ("mean over heads", "best head of each step"), strict=True):
        for line, name in zip((":", "-."), ("centre", "uniform"), strict=True):
            level = 100 * float(result["baseline"].sel(dict(kind=name, **cell)))
            ax.axhline(level, ls=line, color=style.CHANCE, lw=1, label={"centre": "image centre", "uniform": "random patch"}[name])
        ax.set_title(title, fontsize=10)
        style.step_axis(ax, max(r.sizes["step"] for r in named.values()))
    axes[0].set_ylabel(f"hit ratio, {target}, {tolerance} px (%)")
    axes[1].legend(fontsize=7, frameon=False)
    return fig


def _over_heads(result: xr.Dataset, key: str, reduce: str, cell: dict[str, Any]) -> np.ndarray:
    """A variable per step: its mean over heads, or its value at the head with the highest hit ratio of that step."""
    values = result[key].sel(cell)
    if reduce == "mean":
        return values.mean("head").values
    return values.isel(head=result["hit_ratio"].sel(cell).fillna(-1).argmax("head")).values


def heat_map(result: xr.Dataset, *, tolerance: int = 0, target: str = "class", average: str = "micro") -> Figure:
    """Figures 10 to 12: hit ratio of every head at every step, the untrained model beside it."""
    cell = dict(tolerance=tolerance, target=target, average=average)
    maps = {"trained": result["hit_ratio"].sel(cell)}
    if "control_hit_ratio" in result:
        maps["untrained"] = result["control_hit_ratio"].sel(cell)
    fig, axes = style.panels(1, len(maps), width=1.2 + 0.32 * result.sizes["step"], height=1.3 + 0.28 * result.sizes["head"])
    top = 100 * max(float(values.max()) for values in maps.values())
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        drawn = ax.imshow(100 * values.transpose("head", "step"), cmap=style.MAP, vmin=0, vmax=top, aspect="auto")
        ax.set_xticks(range(result.sizes["step"]), [str(t + 1) for t in result.step.values])
        ax.set(xlabel="step", ylabel="head", yticks=result["head"].values)
        ax.set_title(name, fontsize=10)
    bar = fig.colorbar(drawn, ax=axes)
    bar.set_label(f"hit ratio, {target}, {tolerance} px (%)", fontsize=8)
    for name, style_ in (("centre", "--"), ("uniform", ":")):
        bar.ax.axhline(100 * float(result["baseline"].sel(dict(kind=name, **cell))), color="white", ls=style_)
    bar.ax.set_title("-- centre\n·· random", fontsize=6)
    return fig


def examples(result: xr.Dataset, *, n_images: int = 4) -> Figure | None:
    """Figure 13: what the best head of each step attends to, over the steps, with the mask's outline and the arg-max; None without pixels."""
    if "thumbnail" not in result:
        return None
    best = result["hit_ratio"].sel(dict(tolerance=0, target="class", average="micro")).fillna(-1).argmax("head").values
    places = np.linspace(0, result.sizes["place"] - 1, min(n_images, result.sizes["place"])).round().astype(int)
    fig, axes = style.panels(len(places), result.sizes["step"], width=1.05, height=1.25)
    for row, place in enumerate(places):
        for t in range(result.sizes["step"]):
            ax = axes[row * result.sizes["step"] + t]
            draw_example(ax, result, int(place), t, int(best[t]))
            if row == 0:
                ax.set_title(f"step {t + 1}\nhead {best[t]}", fontsize=7)
    return fig


def draw_example(ax: Any, result: xr.Dataset, place: int, step: int, head: int, fontsize: int = 6) -> None:
    """One stored image under one head's attention, the target outlined, the arg-max marked, the mass inside the target below."""
    pixels = result["thumbnail"].values[place]
    attention = result["thumbnail_attention"].values[place, step, head].astype(float)
    mask = target_mask(result, place)
    size, (rows, columns) = len(pixels), attention.shape
    extent = (0, size, size, 0)
    ax.imshow(pixels, extent=extent)
    ax.imshow(attention, extent=extent, cmap="inferno", alpha=0.5, interpolation="bilinear")
    ax.contour(np.arange(size) + 0.5, np.arange(size) + 0.5, mask, levels=[0.5], colors="white", linewidths=0.8)
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    ax.plot((column + 0.5) * size / columns, (row + 0.5) * size / rows, "x", color="cyan", markersize=5)
    inside = mask.reshape(rows, size // rows, columns, size // columns).mean((1, 3))
    ax.set_xlabel(f"{100 * (attention * inside).sum() / max(attention.sum(), 1e-9):.0f} % in", fontsize=fontsize, labelpad=1)
    ax.set(xticks=[], yticks=[])


def target_mask(result: xr.Dataset, place: int) -> np.ndarray:
    """Where the class of a stored image is: [y x] of 0 and 1."""
    label = int(result["label"].values[int(result["shown"].values[place])])
    return (result["thumbnail_mask"].values[place] == label + 1).astype(float)


def interactive(result: xr.Dataset, *, tolerance: int = 0, target: str = "class", average: str = "micro") -> go.Figure:
    """Head x step map to click on, its colours from chance to the best cell; a transparent scatter over it returns x = step + 1, y = head."""
    cell = dict(tolerance=tolerance, target=target, average=average)
    ratio, low, high = (100 * result[key].sel(cell).transpose("head", "step").values for key in ("hit_ratio", "hit_low", "hit_high"))
    heads, steps = np.indices(ratio.shape)
    chance = 100 * float(result["baseline"].sel(dict(kind="uniform", **cell)))
    fig = go.Figure(
        go.Heatmap(
            z=ratio,
            x=steps[0] + 1,
            y=heads[:, 0],
            colorscale=style.MAP,
            zmin=min(chance, np.nanmin(ratio)),
            zmax=np.nanmax(ratio),
            hoverinfo="skip",
            xgap=1,
            ygap=1,
            colorbar_title="hit ratio (%)",
        )
    )
    text = [
        f"{style.step_label(t)}, head {h}<br>{r:.1f} % [{a:.1f}, {b:.1f}]"
        for t, h, r, a, b in zip(*map(np.ravel, (steps, heads, ratio, low, high)), strict=True)
    ]
    fig.add_scatter(
        x=steps.ravel() + 1, y=heads.ravel(), mode="markers", marker=dict(symbol="square", size=26, opacity=0),
        text=text, hovertemplate="%{text}<extra></extra>", showlegend=False,
    )  # fmt: skip
    last, lowest = steps.max() + 1.5, heads.max() + 0.5
    fig.update_layout(
        xaxis=dict(title="step", dtick=1, range=[0.5, last]),
        yaxis=dict(title="head", dtick=1, range=[lowest, -0.5]),
        margin=dict(l=50, r=10, t=20, b=45),
    )
    return fig


def curves(result: xr.Dataset, *, tolerance: int = 0, target: str = "class", average: str = "micro") -> go.Figure:
    """Figure 4 to hover over: mean and best head per step, the untrained model, centre and random patch."""
    cell = dict(tolerance=tolerance, target=target, average=average)
    steps = result.step.values + 1
    fig = go.Figure()
    for reduce, colour in (("mean", style.MAIN), ("best", style.SECOND)):
        title = {"mean": "mean over heads", "best": "best head"}[reduce]
        ratio, low, high = (100 * _over_heads(result, key, reduce, cell) for key in ("hit_ratio", "hit_low", "hit_high"))
        fig.add_scatter(
            x=steps, y=ratio, name=title, line_color=colour, error_y=dict(array=high - ratio, arrayminus=ratio - low, thickness=1)
        )
        if "control_hit_ratio" in result:
            control = 100 * result["control_hit_ratio"].sel(cell)
            control = control.mean("head") if reduce == "mean" else control.max("head")
            fig.add_scatter(x=steps, y=control.values, name=f"untrained, {title}", line=dict(color=colour, dash="dot"))
    for name, dash in (("centre", "dash"), ("uniform", "dashdot")):
        level = 100 * float(result["baseline"].sel(dict(kind=name, **cell)))
        title = {"centre": "image centre", "uniform": "random patch"}[name]
        fig.add_scatter(x=steps, y=np.full(len(steps), level), name=title, mode="lines", line=dict(color=style.CHANCE, dash=dash, width=1))
    fig.update_layout(
        xaxis=dict(title="step", dtick=1, range=[0.5, len(steps) + 0.5]), yaxis_title=f"hit ratio, {target}, {tolerance} px (%)",
        legend=dict(orientation="h", y=-0.2), margin=dict(l=50, r=10, t=20, b=45),
    )  # fmt: skip
    return fig
