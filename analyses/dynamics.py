"""Statistics, tables and figures of how states move: steps, CKA and phases, Jacobians, recovery, what lies beyond."""

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
    """One line of a quantity: a variable at a place, and what its null is called."""

    what: str
    variable: str
    at: Mapping[str, Any] = field(default_factory=dict)
    null: str = ""
    per: tuple[str, ...] = ()  # attributes by whose product it is divided
    beside: tuple[tuple[str, str], ...] = ()  # what the table says below it: title, variable


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
    """log|det| of 1 + R for a random matrix R of this many dimensions whose eigenvalues fill a circle of radius `size`.

    0 up to a radius of 1: the mean of log|x| over a circle about 1 that leaves 0 out is that of its centre.
    """
    size = np.maximum(size, 1)
    return dimensions * (np.log(size) + (size**-2 - 1) / 2)


def placed(values: xr.DataArray, at: Mapping[str, Any]) -> xr.DataArray:
    """A variable at a place, which may be the middle or the last along a dimension; others are passed by."""
    for dim, place in at.items():
        if dim in values.dims:
            where = {"middle": values.sizes[dim] // 2, "last": -1}.get(place)
            values = values.sel({dim: place}) if where is None else values.isel({dim: where})
    return values


def numbers_of(result: xr.Dataset, numbers: xr.Dataset, part: Part, variable: str) -> xr.DataArray:
    """A variable of one line of a quantity (the number, an end of its interval, its null) along its axis."""
    return placed(numbers[variable], part.at) / np.prod([result.attrs[name] for name in part.per])


def phase_names(result: xr.Dataset, kind: str, n: int) -> str:
    """Phases as they are printed: steps from 1, as in 1-4, 5-12; empty where there are none."""
    phases = result[f"{kind}_phase"].sel(phases=n).values
    if (phases < 0).any():
        return ""
    steps = [np.flatnonzero(phases == phase) + 1 for phase in range(n)]
    return ", ".join(f"{of[0]}-{of[-1]}" if len(of) > 1 else str(of[0]) for of in steps)


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: a line per quantity, its null and the untrained model below; phases; beyond T."""
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
    """One quantity over the steps, its null, and the untrained model's."""
    named = f"{title}, {part.what}" if part.what else title
    models = style.models(result)
    rows = [(named, models["trained"], part.variable)]
    rows += [(f"  {said}", models["trained"], variable) for said, variable in part.beside]
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
    """A number in at most seven places."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def phase_lines(result: xr.Dataset) -> Iterator[str]:
    """Phases by max-cut, how clear they are beside a steady path's, and how sure."""
    yield "phases of steps by max-cut (contrast: CKA within less between; steady: if only the distance counted;"
    yield "stable: the same cut without a twentieth of the images)"
    yield style.row("", ["contrast", "steady", "stable", "untrained"], 11, 44)
    untrained = style.models(result).get("untrained")
    for kind in ("increment", "state"):
        for n in result["phases"].values:
            names = phase_names(result, kind, int(n))
            if names:
                of = [result[name].sel(phases=n) for name in (f"{kind}_contrast", f"null_{kind}_contrast")]
                cells = [f"{float(value):.3f}" for value in of]
                cells.append(f"{100 * float(result[f'{kind}_stable'].sel(phases=n)):.0f} %")
                contrast = None if untrained is None else float(untrained[f"{kind}_contrast"].sel(phases=n))
                yield style.row(f"{kind}s: {names}", [*cells, "-" if contrast is None else f"{contrast:.3f}"], 11, 44)


def beside_lines(result: xr.Dataset) -> Iterator[str]:
    """CKA between steps, and with the other model's steps, with what shuffled images give."""
    yield ""
    for name, title in MAPS.items():
        null = float(np.nanmax(np.abs(result[f"null_{name}"].values)))
        yield (
            f"{title} of two steps, mean {off_diagonal(result, name)}; shuffled images {null:.3f} at most"
            + untrained_mean(result, name)
        )
    of_next = [f"{value:.3f}" for value in style.some(result["increment_cka"].values.diagonal(1))]
    yield f"CKA of an increment and the next, from step 1 on: {' '.join(of_next)}"
    for name, title in MAPS.items():
        if f"cross_{name}" in result:
            cross = result[f"cross_{name}"]
            best = cross.isel({dim: slice(1, None) for dim in cross.dims if "state" in dim}).max(cross.dims[1])
            yield (
                f"{title} with {result.attrs['beside']}: mean {float(cross.mean()):.3f}, of the most alike step "
                f"{float(best.mean()):.3f}" + untrained_mean(result, f"cross_{name}")
            )


def off_diagonal(result: xr.Dataset, name: str) -> str:
    """Mean CKA of different steps: of states, those after a step."""
    values = result[name].values[-result.sizes["step"] :, -result.sizes["step"] :]
    return f"{values[~np.eye(len(values), dtype=bool)].mean():.3f}" if len(values) > 1 else "-"


def untrained_mean(result: xr.Dataset, name: str) -> str:
    """The same of the untrained model, where it was measured."""
    untrained = style.models(result).get("untrained")
    if untrained is None or name not in untrained:
        return ""
    if name.startswith("cross"):
        return f"; untrained: mean {float(untrained[name].mean()):.3f}"
    return f"; untrained {off_diagonal(untrained, name)}"


def beyond_lines(result: xr.Dataset) -> Iterator[str]:
    """Where states are after the last step that was run, far beyond those trained for."""
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
            ends = [(name, float(numbers[of].sel(form=form))) for name, of in ENDS.items()]
            shares = [f"{name} {with_wilson(share, n)}" for name, share in ends]
            step, far = (float(numbers["returned"].sel(form=form).isel(lag=lag)) for lag in (0, -1))
            lag = int(result["lag"][-1])
            yield f"  {model}, {form}: {', '.join(shares)}; moves {step:.2g} a step, {far:.2g} in {lag} steps"
        grown, turn = float(numbers["growth"]), float(numbers["turn"])
        yield f"  {model}: {grown:.2f} times as long as after {attrs['trained_steps']}; cosine of updates {turn:.4f}"


ENDS = {"fixed point": "fixed", "cycle": "periodic"}


def with_wilson(share: float, n: int) -> str:
    low, high = intervals.of_ratio(share, n, 100)
    return f"{100 * share:.1f} % ({low:.1f} to {high:.1f})"


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every quantity over the steps with its interval and null, one line per cell and model."""
    parts = []
    for name, (_, of) in QUANTITIES.items():
        for part in of:
            for model, numbers in style.models(result).items():
                if part.variable in numbers:
                    parts.append(tidy(result, numbers, part).assign(quantity=name, what=part.what, model=model))
    every = pd.concat(parts, ignore_index=True)
    return every[["quantity", "what", "model", "along", "place", "value", "low", "high", "null"]]


def tidy(result: xr.Dataset, numbers: xr.Dataset, part: Part) -> pd.DataFrame:
    """One line of a quantity as a table."""
    value, low, high, null = (
        numbers_of(result, numbers, part, name) if name in numbers else xr.DataArray(np.nan)
        for name in (part.variable, f"{part.variable}_low", f"{part.variable}_high", f"null_{part.variable}")
    )
    along = value.dims[0]
    columns = {"value": value.values, "low": low.values, "high": high.values, "null": null.values}
    return pd.DataFrame({"along": along, "place": value[along].values} | columns)


def cka_frame(result: xr.Dataset) -> pd.DataFrame:
    """Every CKA with its interval, one line per cell and model."""
    frames = [
        style.tidy(result, *(f"{name}{end}" for end in ("", "_low", "_high")))
        .assign(of=name)
        .rename(columns=lambda column, name=name: str(column).replace(name, "value"))
        for name in (*MAPS, *(f"cross_{name}" for name in MAPS))
        if name in result
    ]
    return pd.concat(frames, ignore_index=True)


# Figures


def curve(result: xr.Dataset, name: str) -> looks.Curves | None:
    """One quantity: a colour per part, dotted its null, dashed the untrained model; None where it was not measured."""
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
    """CKA of states or increments, of one model or (`cross_`) of two, to hover over with its interval."""
    values, interval = result[name], {f"{name}{end}" for end in ("_low", "_high")}
    rows, columns = ([int(place) + ("step" in dim) for place in values[dim].values] for dim in values.dims)
    beside = {}
    if interval <= set(result):
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
    """CKA of states and of increments by title: trained, untrained, and with another model's."""
    drawn = {}
    for model, numbers in style.models(result).items():
        for name, title in MAPS.items():
            drawn[f"{title}{'' if model == 'trained' else ', untrained'}"] = numbers, name
    drawn |= {f"{MAPS[name]}, beside": (result, f"cross_{name}") for name in MAPS if f"cross_{name}" in result}
    return {title: cka_map(of, name, title) for title, (of, name) in drawn.items()}


def figure(results: Results) -> Figure:
    """Every quantity over the steps, then the maps of CKA: rows of four panels, one result after the other."""
    pictures = []
    for name, result in style.named(results).items():
        curves = [curve(result, quantity) for quantity in QUANTITIES if quantity not in NOT_IN_FIGURE]
        of_result = [picture for picture in curves if picture is not None] + [*maps(result).values()]
        pictures += of_result
        of_result[0] = pictures[-len(of_result)] = replace(of_result[0], title=name)
    drawn, axes = looks.panels(-(-len(pictures) // 4), 4, width=3.9, height=3.5)
    for ax, picture in zip(axes, pictures, strict=False):
        picture.draw(ax)
    for ax in axes[len(pictures) :]:
        ax.set_visible(False)
    return drawn


FIGURES = {"dynamics": figure}


def eigenvalues(result: xr.Dataset, step: int) -> go.Figure | None:
    """Eigenvalues of the CLS row's Jacobian of a step on a few images, and the unit circle; None without them."""
    if "eigenvalue" not in result:
        return None
    of_step = result["eigenvalue"].sel(step=step)
    around = np.linspace(0, 2 * np.pi, 200)
    traces = [
        go.Scatter(
            x=np.cos(around),
            y=np.sin(around),
            mode="lines",
            line=dict(color=style.CHANCE, dash="dot"),
            name="unit circle",
            hoverinfo="skip",
        )
    ]
    for place, colour in zip(range(of_step.sizes["place"]), style.SEQUENCE, strict=False):
        real, imaginary = of_step.isel(place=place).transpose("part", "rank").values
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
    """One quantity to hover over."""
    return curve(result, name).interactive(height=420)
