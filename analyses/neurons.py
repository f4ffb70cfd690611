"""Statistics, table and figures of the neurons probe (figure 3 of the paper).

A picture's worth is a number: the activation it reaches, over that of the best real image. Top images of two steps are compared by
their Jaccard overlap, beside that of random sets of the same size and that of the untrained model.
"""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import style

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
    """Expected Jaccard overlap of two random sets of k out of n: sum over i of P(i in common) i / (2k - i), hypergeometric."""
    from scipy.stats import hypergeom

    i = np.arange(k + 1)
    return float((hypergeom.pmf(i, n, k, k) * i / (2 * k - i)).sum())


def quality(result: xr.Dataset) -> xr.DataArray:
    """Activation of each picture over that of the best real image (method, step, neuron); above 1 beats it."""
    return result["activation"] / result["best_real"].where(result["best_real"] > 0)


def beats_real(result: xr.Dataset) -> xr.DataArray:
    """Share of the pictures that activate their neuron more than any real image does (method)."""
    return (result["activation"] > result["best_real"]).mean(("step", "neuron"))


def best_method(result: xr.Dataset) -> str:
    """The method whose pictures beat the best real image most often."""
    return str(result["method"].values[int(beats_real(result).values.argmax())])


def spatial(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Of pictures [... y x channel]: `frequency`, the power-weighted mean in cycles per image, and `periodicity`, the share of the
    power in the strongest 1 % of the frequencies (white noise has about 5.6 %); both without the mean, summed over channels.
    """
    size = pictures.shape[-2]
    power = (np.abs(np.fft.fft2(pictures.astype(np.float64), axes=(-3, -2))) ** 2).sum(-1)
    power[..., 0, 0] = 0
    cycles = np.fft.fftfreq(size, 1 / size)
    radius = np.hypot(cycles[:, None], cycles)
    total = np.maximum(power.sum((-2, -1)), 1e-12)
    strongest = np.sort(power.reshape(*power.shape[:-2], -1), -1)[..., -max(1, round(0.01 * size**2)) :].sum(-1)
    return {"frequency": (power * radius).sum((-2, -1)) / total, "periodicity": strongest / total}


def spread_of(result: xr.Dataset, n: int = 3) -> dict[str, list[int]]:
    """Units whose mean activation, and whose top images, change most and least over the steps."""
    change, overlap = result["change"].values, result["unit_overlap"].values
    return {
        "mean activation changes most": np.argsort(-change, kind="stable")[:n].tolist(),
        "mean activation changes least": np.argsort(change, kind="stable")[:n].tolist(),
        "top images change most": np.argsort(overlap, kind="stable")[:n].tolist(),
        "top images change least": np.argsort(-overlap, kind="stable")[:n].tolist(),
    }


# Table


def table(result: xr.Dataset) -> str:
    """What the command prints: per step the pictures' activations over the best real image's, and their spatial frequency."""
    methods = [str(m) for m in result["method"].values]
    ratio, seen = quality(result), {m: spatial(result["picture"].sel(dict(method=m)).values) for m in methods}
    lines = [
        f"neurons {', '.join(map(str, result.neuron.values))}: {result.attrs['n_read']} images, activation after GELU, mean over patches "
        "and over these neurons",
        f"{'':22}{'real images':>18}" + "".join(f"{m:>40}" for m in methods),
        f"{'':22}{'median':>9}{'best':>9}" + f"{'picture':>12}{'/ best':>9}{'cycles':>9}{'periodic':>10}" * len(methods),
    ]
    for i, t in enumerate(result.step.values):
        line = f"{style.step_label(t):22}" + "".join(f"{float(result[name].sel(step=t).mean()):9.3f}" for name in ("median_real", "best_real"))
        for m in methods:
            cell = dict(method=m, step=t)
            line += f"{float(result['activation'].sel(cell).mean()):12.3f}{float(ratio.sel(cell).median()):9.1f}"
            line += f"{seen[m]['frequency'][i].mean():9.1f}{100 * seen[m]['periodicity'][i].mean():8.0f} %"
        lines.append(line)
    shares = beats_real(result)
    n = result.sizes["step"] * result.sizes["neuron"]
    lines.append("pictures that beat the best real image: " + ", ".join(f"{m} {round(float(shares.sel(dict(method=m))) * n)} of {n}" for m in methods))
    if result.sizes["all_step"] > 1:
        lines += [overlap_line(result), *(f"{what}: neurons {', '.join(map(str, units))}" for what, units in spread_of(result).items())]
    return "\n".join(lines)


def overlap_line(result: xr.Dataset) -> str:
    """Overlap of the top images between steps in one sentence, beside its chance levels."""
    untrained = f", untrained model {off_diagonal(result['control_overlap'].values):.3f}" if "control_overlap" in result else ""
    return (
        f"top {result.sizes['place']} images of a neuron at two steps overlap by {off_diagonal(result['overlap'].values):.3f} (Jaccard, all "
        f"{result.sizes['unit']} neurons and pairs of steps; random sets {float(result['chance_jaccard']):.4f}{untrained})"
    )


# Figures


def figure(result: xr.Dataset, *, method: str | None = None) -> Figure:
    """Figure 3: one row a neuron, one column a step; below each picture its activation, and that over the best real image's.

    `method` is by default the one whose pictures beat the best real image most often.
    """
    method = best_method(result) if method is None else method
    ratio, chosen = quality(result).sel(dict(method=method)), result.sel(dict(method=method))
    rows, columns = result.sizes["neuron"], result.sizes["step"]
    fig, axes = style.panels(rows, columns, width=1.05, height=1.25)
    for ax, (neuron, step) in zip(axes, ((f, t) for f in result.neuron.values for t in result.step.values), strict=True):
        cell = dict(neuron=neuron, step=step)
        ax.imshow(chosen["picture"].sel(cell))
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(worth(float(ratio.sel(cell)), float(chosen["activation"].sel(cell))), fontsize=6, labelpad=1)
        if neuron == result.neuron.values[0]:
            ax.set_title(f"step {step + 1}", fontsize=7)
        if step == result.step.values[0]:
            ax.set_ylabel(f"neuron {neuron}", fontsize=7)
    fig.suptitle(f"{method}: below each picture its activation, and that over the best of {result.attrs['n_read']} real images", fontsize=7)
    return fig


def worth(ratio: float, activation: float) -> str:
    return f"{activation:.2f}" + ("" if np.isnan(ratio) else f", {ratio:.1f}x")


def curves(result: xr.Dataset, *, neuron: int | None = None) -> go.Figure:
    """Activation per step of the pictures, of the best and of the median real image."""
    neuron = int(result.neuron.values[0]) if neuron is None else neuron
    here, steps, fig = result.sel(neuron=neuron), result.step.values + 1, go.Figure()
    for method, colour in zip(here["method"].values, style.SEQUENCE, strict=False):
        fig.add_scatter(x=steps, y=here["activation"].sel(dict(method=method)), name=f"picture, {method}", line_color=colour)
    fig.add_scatter(x=steps, y=here["best_real"], name="best real image", line=dict(color=style.CONTROL, dash="dash"))
    fig.add_scatter(x=steps, y=here["median_real"], name="median real image", line=dict(color=style.CHANCE, dash="dot"))
    fig.update_layout(
        xaxis=dict(title="step", dtick=1), yaxis_title="activation after GELU", legend=dict(orientation="h", y=-0.25),
        margin=dict(l=50, r=10, t=20, b=45),
    )  # fmt: skip
    return fig


def interactive(result: xr.Dataset, *, neuron: int | None = None, method: str | None = None) -> go.Figure:
    """Transfer: what the picture made for one step does at another, over the best real image there."""
    neuron = int(result.neuron.values[0]) if neuron is None else neuron
    method = best_method(result) if method is None else method
    best = result["best_real"].sel(neuron=neuron).values
    reached = result["transfer"].sel(dict(method=method, neuron=neuron)).values
    ratio = reached / np.where(best > 0, best, np.nan)
    return matrix(ratio, result.step.values, "over best real", f"activation {'%{customdata:.3f}'}, %{{z:.2f}} of the best real image", reached)


def overlaps(result: xr.Dataset, *, neuron: int | None = None) -> go.Figure:
    """Jaccard overlap of a neuron's top images between steps."""
    neuron = int(result.neuron.values[0]) if neuron is None else neuron
    values = result["jaccard"].sel(neuron=neuron).values
    return matrix(values, result.step.values, "Jaccard", "overlap %{z:.2f}", values)


def matrix(values: np.ndarray, steps: np.ndarray, title: str, hover: str, data: np.ndarray) -> go.Figure:
    """A step x step heat map; rows: the step a picture or set belongs to, columns: where it is tried."""
    names = [str(t + 1) for t in steps]
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    drawn = go.Heatmap(
        z=values, x=names, y=names, customdata=data, colorscale=style.MAP, zmin=0, zmax=top, xgap=1, ygap=1, colorbar_title=title,
        hovertemplate=f"of step %{{y}}, at step %{{x}}<br>{hover}<extra></extra>",
    )  # fmt: skip
    fig = go.Figure(drawn)
    fig.update_layout(
        xaxis=dict(title="at step", type="category"), yaxis=dict(title="of step", type="category", autorange="reversed"),
        margin=dict(l=50, r=10, t=20, b=45),
    )  # fmt: skip
    return fig
