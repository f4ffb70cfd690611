"""Statistics, tables and figures of the pointing game (figures 4 and 10 to 13 of the paper).

Every number stands beside its chance level: the image centre, a random patch, the untrained model, and for the best of
many heads what the best of as many random pointers would reach, with the head chosen on one half of the images and
scored on the other.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import intervals, looks, overlay, style
from analyses.style import Results, as_percent

OVER_HEADS = {"mean": "mean over heads", "best": "best head of each step"}
CHANCES = {"centre": "image centre", "uniform": "random patch", "area": "random pixel"}

# Statistics


def average(values: np.ndarray, labels: np.ndarray, axis: int) -> np.ndarray:
    """Micro (over images) and macro (over classes) mean; the image axis becomes [micro, macro]. NaN is left out.

    values: [... image ...] with images on `axis`; labels: [image].
    """
    return np.moveaxis(intervals.averages(np.moveaxis(np.asarray(values), axis, 0), labels), 0, axis)


def ratios(
    hit: np.ndarray, labels: np.ndarray, photographs: np.ndarray | None = None, *, seed: int = 0, level: float = 0.95
) -> dict[str, np.ndarray]:
    """Hit ratios with intervals that resample photographs: three arrays [radius target average step head].

    hit: [radius target image step head]; labels: [image]; photographs: [image], which one each is of, or None. Where
    resampling has nothing to vary, as at 10 hits of 10, the interval is Wilson's for that many photographs.
    """
    values, ratio = np.moveaxis(hit, 2, 0), average(hit, labels, axis=2)
    low, high = intervals.bootstrap(values, labels, photographs, seed=seed, level=level)
    photographs = np.arange(len(labels)) if photographs is None else photographs
    n = np.stack([(~np.isnan(values[photographs == each])).any(0) for each in np.unique(photographs)]).sum(0)
    wilson = intervals.wilson(np.moveaxis(ratio, 2, 0) * n, n, level)
    bounds = [np.where(low < high, drawn, sure) for drawn, sure in zip((low, high), wilson, strict=True)]
    return {"hit_ratio": ratio} | {
        name: np.moveaxis(bound, 0, 2) for name, bound in zip(("hit_low", "hit_high"), bounds, strict=True)
    }


def best_head(result: xr.Dataset, *, radius: int = 0, target: str = "class", seed: int = 0) -> dict[str, float]:
    """The head with the highest hit ratio on a random half of the images, scored on the other half.

    The best of many heads is biased upwards on the images it was chosen on; `chance` is the expected maximum over as
    many random pointers there, `chance_high` its 95 % quantile, `uniform` the level of one of them.
    """
    hit = result["hit"].sel(radius=radius, target=target).values
    uniform = result["baseline_per_image"].sel(kind="uniform", radius=radius, target=target).values
    photographs = result["photograph"].values if "photograph" in result else np.arange(len(hit))
    first, second = halves(photographs, seed)
    ratio = intervals.nanmean(hit[first].astype(np.float64))
    step, head = np.unravel_index(np.nanargmax(ratio), ratio.shape)
    chance, high = intervals.best_of(uniform[first], ratio.size)
    return {
        "step": int(step),
        "head": int(head),
        "n_heads": ratio.size,
        "chosen_on": float(ratio[step, head]),
        "held_out": float(intervals.nanmean(hit[second, step, head])),
        "uniform": float(intervals.nanmean(uniform)),
        "chance": chance,
        "chance_high": high,
    }


def halves(photographs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The items of a random half of the photographs, and those of the other half; both all of them if there is one."""
    each = np.random.default_rng(seed).permutation(np.unique(photographs))
    first = np.isin(photographs, each[: len(each) // 2])
    return (np.flatnonzero(first), np.flatnonzero(~first)) if first.any() else (np.arange(len(photographs)),) * 2


def over_heads(model: xr.Dataset, name: str, reduce: str, cell: dict[str, Any]) -> np.ndarray | None:
    """A variable in % per step: its mean over heads, or its value at the head with that step's highest hit ratio."""
    if name not in model:
        return None
    values = model[name].sel(cell)
    best = model["hit_ratio"].sel(cell).fillna(-1).argmax("head")
    return as_percent(values.mean("head") if reduce == "mean" else values.isel(head=best))


def chance_levels(result: xr.Dataset, kinds: tuple[str, ...] = ("centre", "uniform"), **cell: Any) -> dict[str, float]:
    """Hit ratios in % of those who do not look at the image, by what they are."""
    return {CHANCES[kind]: 100 * float(result["baseline"].sel(kind=kind, **cell)) for kind in kinds}


def head_label(result: xr.Dataset, head: int) -> str:
    """How a head is printed; some maps of relevance are of all heads together."""
    return "all heads" if result.attrs.get("is_of_all_heads") else f"head {head}"


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: per step the mean and the best head's hit ratio, beside chance levels (per cent)."""
    cells = [dict(radius=radius, target=target) for radius in result.radius.values for target in result.target.values]
    named = (f"{cell['target']} {cell['radius']} px" for cell in cells)
    lines = [
        f"pointing game{pointer(result)}: {result.sizes['image']} images, {result.attrs['n_skipped']} without their "
        "class, hit ratio in %",
        style.row("", named, 16),
        f"{'':22}{'mean    best    ' * len(cells)}",
    ]
    for t in result.step.values:
        heads = [as_percent(result["hit_ratio"].sel(average="micro", step=t, **cell)) for cell in cells]
        best = (f"{np.nanmean(h):4.1f}  {np.nanmax(h):5.1f} {f'h{np.nanargmax(h)}':4}" for h in heads)
        lines.append(f"{style.step_label(t):22}{''.join(best)}")
    for name, values in _chance_rows(result, cells).items():
        lines.append(f"{name:22}" + "".join(f"{value:4.1f}{'':12}" for value in values))
    return "\n".join(line.rstrip() for line in [*lines, _best_head_line(result)])


def pointer(result: xr.Dataset) -> str:
    """Whose maximum points, where it is not attention's."""
    name = result.attrs.get("map", "attention")
    return "" if name == "attention" else f" of {name}{' (all heads)' if result.attrs['is_of_all_heads'] else ''}"


def _chance_rows(result: xr.Dataset, cells: list[dict[str, Any]]) -> dict[str, list[float]]:
    levels = [chance_levels(result, tuple(CHANCES), average="micro", **cell) for cell in cells]
    rows = {name: [level[name] for level in levels] for name in CHANCES.values()}
    untrained = style.untrained(result, "hit_ratio")
    if untrained is not None:
        heads = [100 * untrained.sel(average="micro", **cell) for cell in cells]
        rows["untrained, mean head"] = [float(ratio.mean()) for ratio in heads]
        rows["untrained, best head"] = [float(ratio.max()) for ratio in heads]
    return rows


def _best_head_line(result: xr.Dataset) -> str:
    best = best_head(result)
    return (
        f"best of {best['n_heads']} heads: {head_label(result, best['head'])} at {style.step_label(best['step'])}, "
        f"{100 * best['held_out']:.1f} % on the half it was not chosen on (chosen at {100 * best['chosen_on']:.1f} %; "
        f"the best of {best['n_heads']} random pointers would reach {100 * best['chance']:.1f} %)"
    )


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Hit ratio and its interval, one line per radius, target, average, step, head and model."""
    return style.tidy(result, "hit_ratio", "hit_low", "hit_high")


# Figures


def hit_curves(results: Results, reduce: str, *, radius: int, target: str, average: str) -> looks.Curves:
    """Hit ratio per step of every model, of the mean or of the best head, beside the chance levels."""
    cell, lines = dict(radius=radius, target=target, average=average), []
    for model in style.series(results, "hit_ratio"):
        parts = (over_heads(model.numbers, name, reduce, cell) for name in ("hit_ratio", "hit_low", "hit_high"))
        lines.append(looks.Line(model.numbers.step.values + 1, *parts, **model.look()))
    levels = style.levels(results, lambda result: chance_levels(result, **cell))
    title = f"hit ratio, {target}, {radius} px (%)"
    return looks.Curves(lines, y=title, title=OVER_HEADS[reduce], levels=levels)


def figure(results: Results, *, radius: int = 0, target: str = "class", average: str = "micro") -> Figure:
    """Figure 4: hit ratio per step of the mean head and of the best head, a colour per model, beside chance levels."""
    fig, axes = looks.panels(1, 2, sharey=True)
    for ax, reduce in zip(axes, OVER_HEADS, strict=True):
        hit_curves(results, reduce, radius=radius, target=target, average=average).draw(ax, legend=False)
    axes[1].set_ylabel("")
    looks.legend_below(fig, axes[0])
    return fig


def head_map(model: style.Model, *, radius: int, target: str, average: str) -> looks.Map:
    """Hit ratio of every head at every step of one model, its colours from the lowest chance level or cell up."""
    cell = dict(radius=radius, target=target, average=average)
    levels, ratio = chance_levels(model.result, **cell), 100 * model.numbers["hit_ratio"].sel(cell)
    low = float(np.nanmin([*levels.values(), ratio.min()]))
    return looks.head_map(
        ratio, bar=f"hit ratio, {target}, {radius} px (%)", title=model.label(), levels=levels, low=low
    )


def heat_map(results: Results, *, radius: int = 0, target: str = "class", average: str = "micro") -> Figure:
    """Figures 10 to 12: hit ratio of every head at every step, the untrained model beside it."""
    cell = dict(radius=radius, target=target, average=average)
    return looks.draw_maps([head_map(model, **cell) for model in style.series(results, "hit_ratio")])


def examples(result: xr.Dataset, *, n_images: int = 4) -> Figure | None:
    """Figure 13: what the best head of each step attends to, the object outlined; None without pixels."""
    if "thumbnail" not in result:
        return None
    ratio = result["hit_ratio"].sel(radius=0, target="class", average="micro")
    best = ratio.fillna(-1).argmax("head").values
    places = np.linspace(0, result.sizes["place"] - 1, min(n_images, result.sizes["place"])).round().astype(int)
    titles = [f"step {t + 1}\n{head_label(result, head)}" for t, head in enumerate(best)]
    return looks.grid(lambda ax, i, t: draw_example(ax, result, places[i], t, best[t]), titles, [""] * len(places))


def draw_example(ax: Axes, result: xr.Dataset, place: int, step: int, head: int) -> str:
    """One stored image under one head's attention, target outlined, arg-max marked; returns the share inside it."""
    pixels, mask = result["thumbnail"].values[place], target_mask(result, place)
    attention = result["thumbnail_attention"].values[place, step, head].astype(float)
    size, (rows, columns) = len(pixels), attention.shape
    extent, centres = (0, size, size, 0), np.arange(size) + 0.5
    ax.imshow(pixels, extent=extent)
    ax.imshow(attention, extent=extent, cmap=style.ATTENTION, alpha=0.5, interpolation="bilinear")
    ax.contour(centres, centres, mask, levels=[0.5], colors="white", linewidths=0.8)
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    ax.plot((column + 0.5) * size / columns, (row + 0.5) * size / rows, "x", color="cyan", markersize=5)
    ax.set(xticks=[], yticks=[])
    return share_inside(attention, mask)


def share_inside(attention: np.ndarray, mask: np.ndarray) -> str:
    """How much of an attention map [row column] lies where the mask [y x] is 1."""
    (rows, columns), (height, width) = attention.shape, mask.shape
    inside = mask.reshape(rows, height // rows, columns, width // columns).mean((1, 3))
    return f"{100 * (attention * inside).sum() / max(attention.sum(), 1e-9):.0f} % in"


def pixels_of_example(result: xr.Dataset, place: int, step: int, head: int) -> tuple[bytes, str]:
    """The same as a PNG, without a figure; and the share."""
    mask, attention = target_mask(result, place), result["thumbnail_attention"].values[place, step, head].astype(float)
    return overlay.png(result["thumbnail"].values[place], attention, mask), share_inside(attention, mask)


def target_mask(result: xr.Dataset, place: int) -> np.ndarray:
    """Where the class of a stored image is: [y x] of 0 and 1."""
    label = int(result["label"].values[int(result["shown"].values[place])])
    return (result["thumbnail_mask"].values[place] == label + 1).astype(float)


FIGURES = {"steps": figure, "heads": heat_map, "examples": examples}

# Interactive


def interactive(result: xr.Dataset, *, radius: int = 0, target: str = "class", average: str = "micro") -> go.Figure:
    """Head x step map to click on; a transparent scatter over it returns x = step + 1, y = head."""
    cell = dict(radius=radius, target=target, average=average)
    drawn = head_map(next(style.series(result)), **cell)
    parts = (as_percent(result[name].sel(cell).transpose("head", "step")) for name in ("hit_low", "hit_high"))
    places = (
        f"{style.step_label(t)}, {head_label(result, h)}" for h in result["head"].values for t in result["step"].values
    )
    said = [
        f"{place}<br>{ratio:.1f} % [{low:.1f}, {high:.1f}]"
        for place, ratio, low, high in zip(places, drawn.values.flat, *(part.flat for part in parts), strict=True)
    ]
    return replace(drawn, hover=np.reshape(said, drawn.values.shape)).interactive(clickable=True)


def curves(result: xr.Dataset, *, radius: int = 0, target: str = "class", average: str = "micro") -> go.Figure:
    """Figure 4 to hover over: mean and best head per step, the untrained model, centre and random patch."""
    lines = []
    for reduce, colour, what in (("mean", style.MAIN, "mean over heads"), ("best", style.SECOND, "best head")):
        drawn = hit_curves(result, reduce, radius=radius, target=target, average=average)
        for line, model in zip(drawn.lines, style.series(result, "hit_ratio"), strict=True):
            lines.append(replace(line, colour=colour, label=model.label(what)))
    return replace(drawn, lines=lines).interactive()
