"""Statistics, tables and figures of how states move: updates, CKA, phases, Jacobians, recovery, extra steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import intervals, looks, style
from analyses.style import Results

MAPS = {"cka": "CKA of states", "increment_cka": "CKA of increments"}


@dataclass(frozen=True)
class Part:
    """One line of a quantity: a variable at some coordinates, its label and the label of its null."""

    what: str  # the line's label
    variable: str
    at: Mapping[str, Any] = field(default_factory=dict)  # coordinates; "middle" and "last" select by position
    null: str = ""
    per: tuple[str, ...] = ()  # the variable is divided by the product of these attributes
    beside: tuple[tuple[str, str], ...] = ()  # further rows of the table: title, variable


CLS, PATCHES = dict(token="cls"), dict(token="patches")
STATE, DIRECTION = dict(form="state"), dict(form="direction")
QUANTITIES = {
    "update": ("relative update", [Part("CLS", "update", CLS), Part("patches", "update", PATCHES)]),
    "angle": (
        "angle (degrees)",
        [Part("CLS", "angle", CLS, "random direction"), Part("patches", "angle", PATCHES, "random direction")],
    ),
    "cosine_to_final": (
        "cosine to the last state",
        [
            Part("CLS", "cosine_to_final", CLS, "of other images"),
            Part("patches", "cosine_to_final", PATCHES, "of other images"),
        ],
    ),
    "coherence": ("cosine of two patches", [Part("", "coherence", null="of two images")]),
    "participation_ratio": ("participation ratio", [Part("", "participation_ratio", null="independent Gaussians")]),
    "stable_rank": ("stable rank of the update", [Part("", "stable_rank", null="Gaussian")]),
    "singular": (
        "singular value",
        [
            Part("CLS largest", "singular", dict(rank=1), "random as large"),
            Part("CLS median", "singular", dict(rank="middle"), "random as large"),
            Part("CLS smallest", "singular", dict(rank="last"), "random as large"),
            Part("state largest", "state_norm"),
        ],
    ),
    "radius": ("largest |eigenvalue|", [Part("CLS", "radius", null="random as large")]),
    "expanding": ("eigenvalues beyond the unit circle", [Part("CLS", "expanding", null="random as large")]),
    "log_det": (
        "log |det| per dimension",
        [
            Part("CLS", "log_det", null="random as large", per=("d_model",)),
            Part(
                "state",
                "state_log_det",
                null="random as large",
                per=("d_model", "n_tokens"),
                beside=(("standard error", "state_log_det_error"), ("half the iterations", "state_half_way")),
            ),
        ],
    ),
    "recovery": (
        "left of a perturbation at the end",
        [
            Part("state", "recovery", STATE | dict(state="last")),
            Part("direction", "recovery", DIRECTION | dict(state="last")),
        ],
    ),
    "returned": (
        "distance to an earlier state",
        [Part("state", "returned", STATE), Part("direction", "returned", DIRECTION)],
    ),
}
LOG = ("update", "singular")
NOT_IN_FIGURE = ("radius", "expanding")
AXES = {"step": "step", "state": "after step", "lag": "steps before the last one that was run"}

# Statistics


def random_stable_rank(rows: int, columns: int) -> float:
    """|G|_F^2 / |G|_2^2 of a large Gaussian matrix."""
    return rows * columns / (np.sqrt(rows) + np.sqrt(columns)) ** 2


def random_log_det(size: np.ndarray, dimensions: int) -> np.ndarray:
    """log|det| of 1 + R for a random d x d matrix R whose eigenvalues fill a disc of radius `size`; d = `dimensions`.

    It is 0 up to a radius of 1: log|x| is harmonic away from 0, so its mean over a circle about 1 is log 1.
    """
    size = np.maximum(size, 1)
    return dimensions * (np.log(size) + (size**-2 - 1) / 2)


def placed(values: xr.DataArray, at: Mapping[str, Any]) -> xr.DataArray:
    """A variable at coordinates, or at the "middle" or "last" of a dimension; dimensions it lacks are ignored."""
    for dim, coordinate in at.items():
        if dim in values.dims:
            index = {"middle": values.sizes[dim] // 2, "last": -1}.get(coordinate)
            values = values.sel({dim: coordinate}) if index is None else values.isel({dim: index})
    return values


def numbers_of(result: xr.Dataset, numbers: xr.Dataset, part: Part, variable: str) -> xr.DataArray:
    """A variable that belongs to `part` (its value, an end of its interval, or its null) along its axis."""
    return placed(numbers[variable], part.at) / np.prod([result.attrs[name] for name in part.per])


def phase_names(result: xr.Dataset, kind: str, n: int) -> str:
    """Phases as they are printed, with steps counted from 1: "1-4, 5-12"; empty if there are none."""
    phases = result[f"{kind}_phase"].sel(phases=n).values
    if (phases < 0).any():
        return ""
    members = [np.flatnonzero(phases == phase) + 1 for phase in range(n)]
    return ", ".join(f"{steps[0]}-{steps[-1]}" if len(steps) > 1 else str(steps[0]) for steps in members)


# Tables


def table(result: xr.Dataset) -> str:
    """The text that the command prints: quantities with nulls and untrained model, phases, CKA, extra steps."""
    attrs, steps = result.attrs, style.some(result["step"].values.tolist())
    lines = [
        f"dynamics: {attrs['n_measured']} images ({attrs['n_sample']} of them for stable rank and recovery), trained "
        f"for {attrs['trained_steps']} steps",
        style.row("", [f"step {step + 1}" for step in steps], 8, 44),
    ]
    for name, (title, parts) in QUANTITIES.items():
        for part in parts:
            if part.variable in result and name != "returned":
                lines += quantity_lines(result, title, part, steps)
    return "\n".join([*lines, "", *phase_lines(result), *beside_lines(result), *beyond_lines(result)])


def quantity_lines(result: xr.Dataset, title: str, part: Part, steps: Sequence[int]) -> Iterator[str]:
    """One quantity over the steps, its null, and the same quantity of the untrained model."""
    models = style.models(result)
    rows = [(f"{title}, {part.what}" if part.what else title, models["trained"], part.variable)]
    rows += [(f"  {label}", models["trained"], variable) for label, variable in part.beside]
    if part.null:
        rows.append((f"  {part.null}", models["trained"], f"null_{part.variable}"))
    if "untrained" in models:
        rows.append(("  untrained", models["untrained"], part.variable))
    for text, numbers, variable in rows:
        values = numbers_of(result, numbers, part, variable)
        if values.ndim == 0:
            values = values.expand_dims(step=steps)
        after = values.isel(state=slice(1, None)).rename(state="step") if "state" in values.dims else values
        yield style.row(text, [short(float(after.isel(step=step))) for step in steps], 8, 44)


def short(value: float) -> str:
    """A number in at most seven characters."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def phase_lines(result: xr.Dataset) -> Iterator[str]:
    """Phases by max-cut: their contrast, the contrast of a steady path (null), and their stability."""
    yield "phases of steps by max-cut (contrast: CKA within less between; steady: if only the distance counted;"
    yield "stable: the same cut without a twentieth of the images)"
    yield style.row("", ["contrast", "steady", "stable", "untrained"], 11, 44)
    untrained = style.models(result).get("untrained")
    for kind in ("increment", "state"):
        for n in result["phases"].values:
            names = phase_names(result, kind, int(n))
            if names:
                contrasts = [result[f"{kind}_contrast"], result[f"null_{kind}_contrast"]]
                cells = [f"{float(contrast.sel(phases=n)):.3f}" for contrast in contrasts]
                cells.append(f"{100 * float(result[f'{kind}_stable'].sel(phases=n)):.0f} %")
                cells.append("-" if untrained is None else f"{float(untrained[f'{kind}_contrast'].sel(phases=n)):.3f}")
                yield style.row(f"{kind}s: {names}", cells, 11, 44)


def beside_lines(result: xr.Dataset) -> Iterator[str]:
    """CKA between steps, and with the other model's steps, compared with shuffled images."""
    yield ""
    for name, title in MAPS.items():
        null = float(np.nanmax(np.abs(result[f"null_{name}"].values)))
        yield (
            f"{title} of two steps, mean {off_diagonal(result, name)}; shuffled images {null:.3f} at most"
            + untrained_mean(result, name)
        )
    consecutive = [f"{value:.3f}" for value in style.some(result["increment_cka"].values.diagonal(1))]
    yield f"CKA of an increment and the next, from step 1 on: {' '.join(consecutive)}"
    for name, title in MAPS.items():
        if f"cross_{name}" in result:
            cross = result[f"cross_{name}"]
            best = cross.isel({dim: slice(1, None) for dim in cross.dims if "state" in dim}).max(cross.dims[1])
            yield (
                f"{title} with {result.attrs['beside']}: mean {float(cross.mean()):.3f}, of the most alike step "
                f"{float(best.mean()):.3f}" + untrained_mean(result, f"cross_{name}")
            )


def off_diagonal(result: xr.Dataset, name: str) -> str:
    """Mean CKA over pairs of different steps; the initial state z_0 is left out."""
    values = result[name].values[-result.sizes["step"] :, -result.sizes["step"] :]
    return f"{values[~np.eye(len(values), dtype=bool)].mean():.3f}" if len(values) > 1 else "-"


def untrained_mean(result: xr.Dataset, name: str) -> str:
    """The mean CKA of the untrained model; empty if it was not measured."""
    untrained = style.models(result).get("untrained")
    if untrained is None or name not in untrained:
        return ""
    if name.startswith("cross"):
        return f"; untrained: mean {float(untrained[name].mean()):.3f}"
    return f"; untrained {off_diagonal(untrained, name)}"


def beyond_lines(result: xr.Dataset) -> Iterator[str]:
    """Where states end up when the model runs for many more steps than it was trained with."""
    if "returned" not in result:
        return
    attrs, n = result.attrs, result.sizes["image"]
    yield ""
    yield (
        f"after {attrs['max_steps']} steps ({n} images; a state that returns to within {attrs['tolerance']:g} of its "
        "length counts as the same):"
    )
    for model, numbers in style.models(result).items():
        for form in result["form"].values:
            ends = [(name, float(numbers[variable].sel(form=form))) for name, variable in ENDS.items()]
            shares = [f"{name} {with_wilson(share, n)}" for name, share in ends]
            distance = numbers["returned"].sel(form=form)
            step, far, lag = float(distance[0]), float(distance[-1]), int(result["lag"][-1])
            yield f"  {model}, {form}: {', '.join(shares)}; moves {step:.2g} a step, {far:.2g} in {lag} steps"
        grown, turn = float(numbers["growth"]), float(numbers["turn"])
        yield f"  {model}: {grown:.2f} times as long as after {attrs['trained_steps']}; cosine of updates {turn:.4f}"


ENDS = {"fixed point": "fixed", "cycle": "periodic"}


def with_wilson(share: float, n: int) -> str:
    low, high = intervals.of_ratio(share, n, 100)
    return f"{100 * share:.1f} % ({low:.1f} to {high:.1f})"


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every quantity over the steps with its interval and null, one row per position and model."""
    tables = []
    for name, (_, parts) in QUANTITIES.items():
        for part in parts:
            for model, numbers in style.models(result).items():
                if part.variable in numbers:
                    tables.append(tidy(result, numbers, part).assign(quantity=name, what=part.what, model=model))
    joined = pd.concat(tables, ignore_index=True)
    return joined[["quantity", "what", "model", "along", "place", "value", "low", "high", "null"]]


def tidy(result: xr.Dataset, numbers: xr.Dataset, part: Part) -> pd.DataFrame:
    """One line of a quantity as a data frame."""
    value, low, high, null = (
        numbers_of(result, numbers, part, name) if name in numbers else xr.DataArray(np.nan)
        for name in (part.variable, f"{part.variable}_low", f"{part.variable}_high", f"null_{part.variable}")
    )
    along = value.dims[0]
    columns = {"value": value.values, "low": low.values, "high": high.values, "null": null.values}
    return pd.DataFrame({"along": along, "place": value[along].values} | columns)


def cka_frame(result: xr.Dataset) -> pd.DataFrame:
    """Every CKA with its interval, one row per pair of steps and model."""
    frames = []
    for name in (*MAPS, *(f"cross_{name}" for name in MAPS)):
        if name in result:
            columns = {f"{name}{end}": f"value{end}" for end in ("", "_low", "_high")}
            frames.append(style.tidy(result, *columns).assign(of=name).rename(columns=columns))
    return pd.concat(frames, ignore_index=True)


# Figures


def curve(result: xr.Dataset, name: str) -> looks.Curves | None:
    """One quantity: a colour per part, its null dotted, the untrained model dashed; None if it was not measured."""
    title, parts = QUANTITIES[name]
    lines, along = [], "step"
    for part, colour in zip(parts, style.SEQUENCE, strict=False):
        for model in style.series(result, part.variable):
            value, low, high = (
                numbers_of(result, model.numbers, part, f"{part.variable}{end}") for end in ("", "_low", "_high")
            )
            along = value.dims[0]
            x = value[along].values + (along == "step")
            look = model.look(part.what, mark="", colour=colour)
            lines.append(looks.Line(x, value.values, low.values, high.values, **look))
            if part.null and model.is_trained:
                null = numbers_of(result, model.numbers, part, f"null_{part.variable}").values
                label = f"{part.what}, {part.null}" if part.what else part.null
                lines.append(looks.Line(x, np.broadcast_to(null, x.shape), label=label, colour=colour, dash="dot"))
    return looks.Curves(lines, x=AXES[along], y=title, log="y" if name in LOG else "") if lines else None


def cka_map(result: xr.Dataset, name: str, title: str) -> looks.Map:
    """CKA of states or increments of one model, or (`cross_`) of two, with its interval in the hover text."""
    values = result[name]
    rows, columns = ([int(index) + ("step" in dim) for index in values[dim].values] for dim in values.dims)
    beside = {}
    if f"{name}_low" in result and f"{name}_high" in result:
        beside = {"95 % from": result[f"{name}_low"].values, "to": result[f"{name}_high"].values}
    axis = "step" if "step" in values.dims[0] else "after step"
    other = f"{axis}, {result.attrs['beside']}" if name.startswith("cross_") else axis
    return looks.Map(
        values.values,
        columns,
        rows,
        title=title,
        x=other,
        y=axis,
        bar="CKA",
        low=0,
        high=1,
        is_square=True,
        beside=beside,
    )


def maps(result: xr.Dataset) -> dict[str, looks.Map]:
    """Maps of CKA by title: of the trained and the untrained model's states and increments, and with another model."""
    variables = {}
    for model, numbers in style.models(result).items():
        for name, title in MAPS.items():
            variables[f"{title}{'' if model == 'trained' else ', untrained'}"] = numbers, name
    variables |= {f"{MAPS[name]}, beside": (result, f"cross_{name}") for name in MAPS if f"cross_{name}" in result}
    return {title: cka_map(numbers, name, title) for title, (numbers, name) in variables.items()}


def figure(results: Results) -> Figure:
    """Every quantity over the steps, then the maps of CKA: rows of four panels, one result after the other."""
    pictures = []
    for name, result in style.named(results).items():
        curves = [curve(result, quantity) for quantity in QUANTITIES if quantity not in NOT_IN_FIGURE]
        first, *others = [picture for picture in curves if picture is not None] + [*maps(result).values()]
        pictures += [replace(first, title=name), *others]
    drawn, axes = looks.panels(-(-len(pictures) // 4), 4, width=3.9, height=3.5)
    for ax, picture in zip(axes, pictures, strict=False):
        picture.draw(ax)
    for ax in axes[len(pictures) :]:
        ax.set_visible(False)
    return drawn


FIGURES = {"dynamics": figure}


def eigenvalues(result: xr.Dataset, step: int) -> go.Figure | None:
    """A step's Jacobian eigenvalues at CLS on a few images, and the unit circle; None if they were not measured."""
    if "eigenvalue" not in result:
        return None
    eigenvalue = result["eigenvalue"].sel(step=step)
    angle = np.linspace(0, 2 * np.pi, 200)
    traces = [
        go.Scatter(
            x=np.cos(angle),
            y=np.sin(angle),
            mode="lines",
            line=dict(color=style.CHANCE, dash="dot"),
            name="unit circle",
            hoverinfo="skip",
        )
    ]
    for place, colour in zip(range(eigenvalue.sizes["place"]), style.SEQUENCE, strict=False):
        real, imaginary = eigenvalue.isel(place=place).transpose("part", "rank").values
        traces.append(
            go.Scatter(
                x=real,
                y=imaginary,
                mode="markers",
                marker=dict(color=colour, size=5, opacity=0.7),
                name=f"image {place + 1}",
                hovertemplate="%{x:.3f} + %{y:.3f} i<extra></extra>",
            )
        )
    drawn = go.Figure(traces).update_layout(height=420, legend=looks.BELOW, **looks.WHITE)
    return drawn.update_xaxes(title="real part").update_yaxes(title="imaginary part", scaleanchor="x")


def interactive(result: xr.Dataset, name: str = "update") -> go.Figure:
    """One quantity for the dashboard."""
    return curve(result, name).interactive(height=420)
