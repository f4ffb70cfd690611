"""Statistics, tables and figures of patches of unusual norm: how many, where, who writes them, and registers."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import looks, style
from analyses.style import Results, as_percent

CONDITIONS = {
    "untouched": "untouched",
    "register": "register at test time",
    "random register": "random neurons to a register",
    "silenced": "the same neurons silenced",
    "trained registers": "trained with registers",
}
METRICS = {"largest": "largest / median norm", "share": "patches above (%)", "images": "images with one (%)"}
SHOWN = 4  # neurons in the figure

# Statistics


def worst(numbers: xr.Dataset) -> int:
    """The state after a step whose largest patch stands out most."""
    largest = numbers["largest"].sel(condition="untouched").isel(state=slice(1, None))
    return int(largest["state"][int(largest.fillna(0).argmax("state"))])


def has_outliers(result: xr.Dataset) -> bool:
    """Whether any patch is above the threshold after any step."""
    share = result["share"].sel(condition="untouched", times=result.attrs["threshold"])
    return bool(share.isel(state=slice(1, None)).max() > 0)


def at_threshold(numbers: xr.Dataset, name: str, threshold: float) -> xr.DataArray:
    return numbers[name].sel(times=threshold) if "times" in numbers[name].dims else numbers[name]


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints."""
    attrs, n_steps = result.attrs, result.sizes["step"]
    limit = f"{attrs['threshold']:g}"
    found = "some patches are" if has_outliers(result) else "no patch is"
    lines = [
        f"outliers: {attrs['n_measured']} images, {n_steps} steps; {found} above {limit} times the median norm of an "
        "image after a step",
        "",
        *state_lines(result),
        "",
        *condition_lines(result),
        "",
        *neuron_lines(result),
    ]
    return "\n".join(lines)


def state_lines(result: xr.Dataset) -> list[str]:
    """Norms over the steps."""
    limit, untrained = result.attrs["threshold"], style.models(result).get("untrained")
    titles = ["median norm", "largest / median", f"above {limit:g} (%)", "untrained", "on the object (%)"]
    lines = [line("patches", titles)]
    for state in style.some(result["state"].values.tolist()):
        at = dict(condition="untouched", state=state)
        on_object = style.with_interval(result, "on_object", dict(state=state)) if "on_object" in result else "-"
        cells = [
            f"{float(result['median'].sel(state=state)):.1f}",
            style.with_interval(result, "largest", at, scale=1, digits=2),
            style.with_interval(result, "share", dict(at, times=limit), digits=2),
            "-" if untrained is None else f"{float(untrained['largest'].sel(at)):.2f}",
            on_object,
        ]
        lines.append(line(style.state_label(state), cells))
    if "on_object" in result:
        lines.append(
            "  on the object: the largest patch, where a random one is in "
            f"{100 * float(result['random_on_object']):.1f} %; untrained: its largest / median"
        )
    return lines


def condition_lines(result: xr.Dataset) -> list[str]:
    """What registers change, where the largest patch stands out most."""
    state, limit = worst(result), result.attrs["threshold"]
    head = f"after {style.state_label(state)}"
    lines = [line(head, ["top-1 (%)", "change (points)", f"above {limit:g} (%)", "register", "largest / median"], 30)]
    for condition in result["condition"].values:
        at = dict(condition=condition, state=state)
        cells = [
            f"{100 * float(result['accuracy'].sel(condition=condition)):.1f}",
            style.with_interval(result, "accuracy_change", dict(condition=condition)),
            f"{100 * float(result['share'].sel(dict(at, times=limit))):.2f}",
            with_number(result["registers"].sel(at)),
            style.with_interval(result, "largest", at, scale=1, digits=2),
        ]
        lines.append(line(f"  {CONDITIONS[condition]}", cells, 30))
    chance = 100 * result.attrs["chance"]
    return [*lines, f"  chance {chance:.1f} %; register: its norm over the median patch's, {len(moved(result))} moved"]


def neuron_lines(result: xr.Dataset) -> list[str]:
    """What makes the largest patch larger than the others, part by part and neuron by neuron."""
    steps = style.some(result["step"].values.tolist())
    lines = [style.row("larger than the others by", [f"step {step + 1}" for step in steps], 8, 28)]
    for patch in ("largest", "random"):
        for part in result["part"].values:
            added = result["parts"].sel(part=part, patch=patch)
            title = f"  {part}" if patch == "largest" else f"  {part}, random patch"
            lines.append(style.row(title, [f"{float(added.sel(step=step)):+.2f}" for step in steps], 8, 28))
    for rank, name in list(enumerate(moved(result)))[:SHOWN]:
        added = result["adds"].sel(which="chosen", rank=rank)
        lines.append(style.row(f"  {name}", [with_number(added.sel(step=step), "+.2f") for step in steps], 8, 28))
    random = result["adds"].sel(which="random").mean("rank")
    lines.append(style.row("  a random neuron", [with_number(random.sel(step=step), "+.2f") for step in steps], 8, 28))
    return [*lines, f"  neurons chosen on {result.attrs['n_chosen_on']} other images"]


def moved(result: xr.Dataset) -> list[str]:
    """Names of the neurons that are moved to the register."""
    blocks, neurons = result["chosen_block"].values, result["chosen_neuron"].values
    named = [f"neuron {neuron}" for neuron in neurons]
    return (
        named if not blocks.any() else [f"{name} of block {block}" for block, name in zip(blocks, named, strict=True)]
    )


def line(title: str, cells: list[str], first: int = 22) -> str:
    widths = (12, 22, 22, 11, 24) if first == 22 else (11, 24, 14, 10, 22)
    return f"{title:{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def with_number(value: xr.DataArray, how: str = ".2f") -> str:
    return "-" if np.isnan(float(value)) else f"{float(value):{how}}"


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Norms, shares and accuracy of every condition with their intervals, one line per state, multiple and model."""
    names = ("largest", "share", "images", "cls", "registers", "accuracy", "accuracy_change")
    return style.tidy(result, *(f"{name}{end}" for name in names for end in ("", "_low", "_high")))


def neuron_frame(result: xr.Dataset) -> pd.DataFrame:
    """What every neuron adds to the largest patch above the others, one line per step."""
    return style.tidy(result, "written")


# Figures


def curves(results: Results, metric: str = "largest") -> looks.Curves:
    """A metric over the steps under every condition; of the untrained model as it is, dashed."""
    lines, scale = [], 1 if metric == "largest" else 100
    for model in style.series(results, metric):
        threshold = model.result.attrs["threshold"]
        for condition, colour in zip(CONDITIONS, style.SEQUENCE, strict=False):
            is_shown = condition in model.numbers["condition"].values and (model.is_trained or condition == "untouched")
            if is_shown:
                ends = ("", "_low", "_high")
                of = [at_threshold(model.numbers, f"{metric}{end}", threshold).sel(condition=condition) for end in ends]
                value, low, high = (scale * each.isel(state=slice(1, None)).values for each in of)
                look = model.look(CONDITIONS[condition], mark="", colour=colour if model.is_trained else model.colour)
                lines.append(looks.Line(np.arange(1, len(value) + 1), value, low, high, **look))
    levels = style.levels(results, lambda result: {"outlier": result.attrs["threshold"]}) if metric == "largest" else {}
    return looks.Curves(lines, x="after step", y=METRICS[metric], levels=levels, low=0)


def object_curves(results: Results) -> looks.Curves | None:
    """How often the largest patch of an image is of the object, beside a random one; None without masks."""
    lines = []
    for model in style.series(results, "on_object"):
        value, low, high = (as_percent(model.numbers[f"on_object{end}"])[1:] for end in ("", "_low", "_high"))
        lines.append(looks.Line(np.arange(1, len(value) + 1), value, low, high, **model.look(mark="")))
    there = {name: result for name, result in style.named(results).items() if "on_object" in result}
    if not lines:
        return None
    levels = style.levels(there, lambda result: {"a random patch": 100 * float(result["random_on_object"])})
    return looks.Curves(lines, x="after step", y="largest patch on the object (%)", levels=levels, low=0)


def place_map(numbers: xr.Dataset, state: int, title: str = "") -> looks.Map:
    """Where the largest patch of an image lies."""
    values = as_percent(numbers["place"].sel(state=state).transpose("row", "column"))
    rows, columns = (range(1, 1 + length) for length in values.shape)
    return looks.Map(
        values,
        columns,
        rows,
        levels={"chance": 100 / values.size},
        x="column",
        y="row",
        bar="largest patch (%)",
        low=0,
        is_square=True,
        title=title,
    )


def neuron_curves(results: Results) -> looks.Curves:
    """What the neurons that write the largest patch add to it over the steps, beside random neurons."""
    lines = []
    for model in style.series(results, "adds"):
        if model.is_trained:
            steps = model.numbers["step"].values + 1
            for rank, name in list(enumerate(moved(model.result)))[:SHOWN]:
                of = [
                    model.numbers[f"adds{end}"].sel(which="chosen", rank=rank).values for end in ("", "_low", "_high")
                ]
                look = model.look(name, colour=style.SEQUENCE[rank], mark="")
                lines.append(looks.Line(steps, *of, **look))
            random = model.numbers["adds"].sel(which="random").mean("rank").values
            look = model.look("a random neuron", colour=style.CHANCE, mark="", dash="dot")
            lines.append(looks.Line(steps, random, **look))
    return looks.Curves(lines, x="step", y="adds to the norm, above the others")


def figure(results: Results) -> Figure:
    """A row per result: the largest norm, where the largest patch lies, and who writes it."""
    named = style.named(results)
    drawn, axes = looks.panels(len(named), 4, width=4.0, height=3.6)
    for i, (name, result) in enumerate(named.items()):
        here, numbers = axes[4 * i :], style.models(result)["trained"]
        curves(result).draw(here[0])
        here[0].set_title(name, fontsize=9)
        (object_curves(result) or curves(result, "share")).draw(here[1])
        place_map(numbers, worst(result), f"after {style.state_label(worst(result))}").draw(here[2])
        neuron_curves(result).draw(here[3])
    return drawn


FIGURES = {"outliers": figure}


def interactive(result: xr.Dataset, metric: str = "largest") -> go.Figure:
    """A metric under every condition over the steps, to hover over."""
    return curves(result, metric).interactive()
