"""Statistics, table and figures of the neurons probe (figure 3 of the paper).

A picture's worth is a number: the activation it reaches, over that of the best real image. Top images of two steps are
compared by their Jaccard overlap, beside that of random sets of the same size and that of the untrained model.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage, stats

from analyses import looks, style

# Statistics


def jaccard(top: np.ndarray) -> np.ndarray:
    """|A n B| / |A u B| of the sets of top images between steps: [unit step step], from [step unit place]."""
    n_steps, n_units, k = top.shape
    out = np.ones((n_units, n_steps, n_steps))
    for s in range(n_steps):
        for t in range(s):
            common = (top[s, :, :, None] == top[t, :, None, :]).sum((1, 2))
            out[:, s, t] = out[:, t, s] = common / (2 * k - common)
    return out


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Mean of the cells off the diagonal of [... step step]; NaN for a single step."""
    n = matrix.shape[-1]
    return matrix[..., ~np.eye(n, dtype=bool)].mean(-1) if n > 1 else np.full(matrix.shape[:-2], np.nan)


def chance_jaccard(n: int, k: int) -> float:
    """Expected Jaccard overlap of two random sets of k out of n: i in common, hypergeometric, give i / (2k - i)."""
    i = np.arange(k + 1)
    return float((stats.hypergeom.pmf(i, n, k, k) * i / (2 * k - i)).sum())


def quality(result: xr.Dataset) -> xr.DataArray:
    """Activation of each picture over that of the best real image (recipe, step, neuron); above 1 beats it."""
    return result["activation"] / result["best_real"].where(result["best_real"] > 0)


def beats_real(result: xr.Dataset) -> xr.DataArray:
    """Share of the pictures that activate their neuron more than any real image does (recipe)."""
    return (result["activation"] > result["best_real"]).mean(("step", "neuron"))


def best_recipe(result: xr.Dataset) -> str:
    """The recipe whose pictures beat the best real image most often."""
    return str(result["recipe"].values[int(beats_real(result).values.argmax())])


def spatial(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Of pictures [... y x channel]: `frequency`, the power-weighted mean in cycles per image, and `periodicity`.

    Both are taken without the mean, of the power summed over channels.
    """
    *shape, size, _, _ = pictures.shape
    power = (np.abs(np.fft.fft2(pictures.astype(np.float64), axes=(-3, -2))) ** 2).sum(-1)
    power[..., 0, 0] = 0
    cycles = np.fft.fftfreq(size, 1 / size)
    total = np.maximum(power.sum((-2, -1)), 1e-12)
    return {
        "frequency": (power * np.hypot(cycles[:, None], cycles)).sum((-2, -1)) / total,
        "periodicity": np.array([periodicity(each) for each in power.reshape(-1, size, size)]).reshape(shape),
    }


def periodicity(power: np.ndarray) -> float:
    """How much a picture of this power spectrum [row column] repeats itself: 1 for a grating, 0 for a blob or an edge.

    Half the height of the highest peak of its autocorrelation away from the centre, above the lowest point on the
    straight way there. (1/f noise has up to 0.2, white noise 0.05.)
    """
    correlation, size = np.fft.ifft2(power).real, len(power)
    correlation = correlation / max(correlation[0, 0], 1e-12)
    shift = np.fft.fftfreq(size, 1 / size)
    near = np.abs(shift) < size / 2 - 1
    is_peak = correlation == ndimage.maximum_filter(correlation, 3, mode="wrap")
    is_peak &= (np.hypot(shift[:, None], shift) >= 2) & near[:, None] & near & (correlation > 0)
    heights = [0.0]
    for y, x in zip(*np.nonzero(is_peak), strict=True):
        way = np.linspace(0, 1, 2 * int(np.hypot(shift[y], shift[x])) + 1)
        between = ndimage.map_coordinates(correlation, [way * shift[y], way * shift[x]], order=1, mode="grid-wrap")
        heights.append((correlation[y, x] - between.min()) / 2)
    return float(max(heights))


def spread_of(result: xr.Dataset, n: int = 3) -> dict[str, list[int]]:
    """Units whose mean activation, and whose top images, change most and least over the steps."""
    change, overlap = result["change"].values, result["unit_overlap"].values
    return {
        "mean activation changes most": np.argsort(-change, kind="stable")[:n].tolist(),
        "mean activation changes least": np.argsort(change, kind="stable")[:n].tolist(),
        "top images change most": np.argsort(overlap, kind="stable")[:n].tolist(),
        "top images change least": np.argsort(-overlap, kind="stable")[:n].tolist(),
    }


def top_overlap(result: xr.Dataset) -> dict[str, float]:
    """Overlap of the top images between steps, mean over all neurons, by model; and of random sets."""
    models = style.series(result, "overlap")
    overlaps = {model.label(): float(off_diagonal(model.numbers["overlap"].values)) for model in models}
    return overlaps | {"random": float(result["chance_jaccard"])}


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: per step the pictures' activations over the best real image's, and their frequency."""
    recipes = [str(recipe) for recipe in result["recipe"].values]
    columns = f"{'picture':>12}{'/ best':>9}{'cycles':>9}{'periodic':>10}"
    lines = [
        f"neurons {', '.join(map(str, result.neuron.values))}: {result.attrs['n_read']} images, activation after GELU, "
        "mean over patches and over these neurons",
        f"{'':22}{'real images':>18}" + style.row("", recipes, 40, first=0),
        f"{'':22}{'median':>9}{'best':>9}" + columns * len(recipes),
    ]
    made = {recipe: _of_recipe(result.sel(recipe=recipe)) for recipe in recipes}
    for i, t in enumerate(result.step.values):
        real = (f"{float(result[name].sel(step=t).mean()):.3f}" for name in ("median_real", "best_real"))
        lines.append(style.row(style.step_label(t), real) + "".join(made[recipe][i] for recipe in recipes))
    n = result.sizes["step"] * result.sizes["neuron"]
    won = (f"{recipe} {round(float(beats_real(result).sel(recipe=recipe)) * n)} of {n}" for recipe in recipes)
    lines.append(f"pictures that beat the best real image: {', '.join(won)}")
    if result.sizes["all_step"] > 1:
        lines.append(_overlap_line(result))
        lines += [f"{what}: neurons {', '.join(map(str, units))}" for what, units in spread_of(result).items()]
    return "\n".join(lines)


def _of_recipe(made: xr.Dataset) -> list[str]:
    """What the table says of one recipe's pictures, a part of a line for each step."""
    activation, ratio = made["activation"].mean("neuron").values, quality(made).median("neuron").values
    looks_like = {name: values.mean(-1) for name, values in spatial(made["picture"].values).items()}
    cells = zip(activation, ratio, looks_like["frequency"], 100 * looks_like["periodicity"], strict=True)
    return [f"{reached:12.3f}{over:9.1f}{cycles:9.1f}{periodic:8.0f} %" for reached, over, cycles, periodic in cells]


def _overlap_line(result: xr.Dataset) -> str:
    overlap = top_overlap(result)
    untrained = f", untrained model {overlap['untrained']:.3f}" if "untrained" in overlap else ""
    return (
        f"top {result.sizes['place']} images of a neuron at two steps overlap by {overlap['trained']:.3f} (Jaccard, "
        f"all {result.sizes['unit']} neurons and pairs of steps; random sets {overlap['random']:.4f}{untrained})"
    )


def frame(result: xr.Dataset) -> pd.DataFrame:
    """What each picture reaches, one line per recipe, step and neuron, beside the best and the median real image."""
    return style.tidy(result.assign(over_best=quality(result)), "activation", "over_best", "best_real", "median_real")


# Figures


def figure(results: style.Results, *, recipe: str | None = None) -> Figure:
    """Figure 3: a row per neuron, a column per step; below each its activation, and that over the best real image's.

    `recipe` is by default the one whose pictures beat the best real image most often.
    """
    every = style.named(results)
    result = max(every.values(), key=lambda one: one.sizes["step"])
    recipe = recipe or best_recipe(result)
    made = [(name, one.assign(ratio=quality(one)).sel(recipe=recipe)) for name, one in every.items()]
    rows = [(name, one.sel(neuron=neuron)) for name, one in made for neuron in one.neuron.values]
    steps = result.step.values

    def draw(ax: Axes, row: int, column: int) -> str:
        if steps[column] not in rows[row][1].step:
            return ""
        cell = rows[row][1].sel(step=steps[column])
        ax.imshow(cell["picture"])
        return worth(float(cell["ratio"]), float(cell["activation"]))

    labels = [f"{name} neuron {int(one.neuron)}".strip() for name, one in rows]
    about = (
        f"{recipe}: below each picture its activation, and that over the best of {result.attrs['n_read']} real images"
    )
    return looks.grid(draw, [f"step {step + 1}" for step in steps], labels, about)


def worth(ratio: float, activation: float) -> str:
    """An activation, and how many times that of the best real image it is."""
    return f"{activation:.2f}" + ("" if np.isnan(ratio) else f", {ratio:.1f}x")


FIGURES = {"pictures": figure}

# Interactive


def curves(result: xr.Dataset, *, neuron: int | None = None) -> go.Figure:
    """Activation per step of the pictures, of the best and of the median real image."""
    here = result.sel(neuron=result.neuron.values[0] if neuron is None else neuron)
    steps, lines = result.step.values + 1, []
    for recipe, colour in zip(here["recipe"].values, style.SEQUENCE, strict=False):
        reached = here["activation"].sel(recipe=recipe).values
        lines.append(looks.Line(steps, reached, label=f"picture, {recipe}", colour=colour, mark="o"))
    real = dict(colour=style.CHANCE)
    lines.append(looks.Line(steps, here["best_real"].values, label="best real image", dash="dash", **real))
    lines.append(looks.Line(steps, here["median_real"].values, label="median real image", dash="dot", **real))
    return looks.Curves(lines, y="activation after GELU").interactive()


def interactive(result: xr.Dataset, *, neuron: int | None = None, recipe: str | None = None) -> go.Figure:
    """Transfer: what the picture made for one step does at another, over the best real image there."""
    cell = dict(neuron=result.neuron.values[0] if neuron is None else neuron)
    best = result["best_real"].sel(cell).values
    reached = result["transfer"].sel(recipe=recipe or best_recipe(result), **cell).values
    ratio = reached / np.where(best > 0, best, np.nan)
    return _between_steps(ratio, result, "over best real", {"activation": reached})


def overlaps(result: xr.Dataset, *, neuron: int | None = None) -> go.Figure:
    """Jaccard overlap of a neuron's top images between steps."""
    overlap = result["jaccard"].sel(neuron=result.neuron.values[0] if neuron is None else neuron).values
    return _between_steps(overlap, result, "Jaccard", {})


def _between_steps(values: np.ndarray, result: xr.Dataset, bar: str, beside: Mapping[str, np.ndarray]) -> go.Figure:
    """Rows: the step that a picture or set belongs to; columns: where it is tried."""
    return looks.step_map(
        values, result.step.values, x="at step", y="of step", low=0.0, bar=bar, beside=beside
    ).interactive()
