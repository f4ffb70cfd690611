"""Tables and figures of interventions on the recurrence: accuracy over the steps, beside the untouched model, a random
change of the same size, and the untrained model.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import intervals, looks, style
from analyses.style import Results, as_percent

UNTOUCHED = "untouched"
TITLES = {
    "damp": "the update times a factor",
    "reinject": "a share of z₀ put back at every step",
    "hold_patches": "patches held from a step on",
    "hold_cls": "CLS held from a step on",
    "hold_registers": "registers held from a step on",
    "late_cls": "CLS as in z₀ until a step",
    "permute_embedding": "step embeddings in another order",
    "freeze_embedding": "one step's embedding at every step",
    "extrapolate_embedding": "embeddings beyond the trained steps",
    "permute_masks": "masks in another order",
    "freeze_masks": "one step's masks at every step",
}
NUMBERS = ("accuracy", "change", "change_low", "change_high", "loss", "n_finite")
COLUMNS = f"{'top-1':>8}{'change':>9}{'95 %':>15}{'random':>9}{'untrained':>11}"

# Statistics


def kinds(result: xr.Dataset) -> list[str]:
    """The interventions that a result holds, in its order."""
    return [what for what in dict.fromkeys(result["what"].values.tolist()) if what != UNTOUCHED]


def states(result: xr.Dataset) -> list[int]:
    """The states that the table reads: after the steps trained for, and the last."""
    return list(dict.fromkeys([int(result.attrs["trained_steps"]), int(result["state"][-1])]))


def label(result: xr.Dataset, case: str, *, named: bool = True) -> str:
    """How a case is printed: steps from 1 for readers."""
    what, setting = (str(result[name].sel(case=case).item()) for name in ("what", "setting"))
    setting = f"step {int(setting.removeprefix('step ')) + 1}" if setting.startswith("step ") else setting
    return f"{what} {setting}".strip() if named else setting


def beyond_random(numbers: xr.Dataset) -> xr.DataArray:
    """Where the interval of the change and that of the random one do not meet: [case state]."""
    apart = numbers["change_high"] < numbers["null_change_low"]
    return apart | (numbers["change_low"] > numbers["null_change_high"])


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: a line per case, read out after the steps trained for and after the last."""
    attrs, shown = result.attrs, states(result)
    lines = [
        f"intervention: {attrs['n_measured']} images, chance {100 * attrs['chance']:.1f} %, trained for "
        f"{attrs['trained_steps']} steps; top-1 in %, changes in points",
        "(random: a random change of the same size; * the two 95 % intervals do not meet)",
        f"{'':32}" + "".join(f"{f'after {state} steps':>{len(COLUMNS)}}" for state in shown),
        f"{'':32}" + COLUMNS * len(shown),
        *case_lines(result, shown),
    ]
    lines += [f"left out: {one}" for one in attrs["left_out"].split("; ") if one]
    if (result["n_finite"] < attrs["n_measured"]).any():
        lines.append("states overflow in some images; they count as wrong")
    return "\n".join(line.rstrip() for line in lines)


def case_lines(result: xr.Dataset, shown: list[int]) -> Iterator[str]:
    untrained = style.untrained(result, "accuracy")
    for case in result["case"].values:
        cells = []
        for state in shown:
            at = dict(case=case, state=state)
            cells.append(cell(result.sel(at), None if untrained is None else 100 * float(untrained.sel(at))))
        yield f"{label(result, case):32}" + "".join(cells)


def cell(numbers: xr.Dataset, untrained: float | None) -> str:
    """One case after one state: accuracy, its change with an interval, that of a random change, the untrained model."""
    changed = [f"{'':9}", f"{'':15}", f"{'':9}"]
    if numbers["what"] != UNTOUCHED:
        low, high = (as_percent(numbers[f"change_{end}"]) for end in ("low", "high"))
        changed[:2] = f"{as_percent(numbers['change']):+9.1f}", f"{f'{low:+.1f} to {high:+.1f}':>15}"
        if "null_change" in numbers:
            star = "*" if beyond_random(numbers) else " "
            changed[2] = f"{as_percent(numbers['null_change']):+8.1f}{star}"
    beside = "-" if untrained is None else f"{untrained:.1f}"
    return f"{as_percent(numbers['accuracy']):8.1f}{''.join(changed)}{beside:>11}"


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every number, one line per case, state and model."""
    return style.tidy(result, *NUMBERS, *(f"null_{name}" for name in NUMBERS))


# Figures


def curves(result: xr.Dataset, what: str, name: str = "") -> looks.Curves:
    """Accuracy over the states under one intervention: a colour per setting, dashed under a random change as large."""
    models, n = style.models(result), result.attrs["n_measured"]
    trained, x = models["trained"], result["state"].values
    chosen = result["case"].values[result["what"].values == what]

    def line(case: str, colour: str, said: str) -> looks.Line:
        ratio = trained["accuracy"].sel(case=case).values
        return looks.Line(x, 100 * ratio, *intervals.of_ratio(ratio, n, 100), label=said, colour=colour)

    lines = [line(UNTOUCHED, style.INK, UNTOUCHED)]
    for case, colour in zip(chosen, style.SEQUENCE, strict=False):
        setting = label(result, case, named=False)
        lines.append(line(case, colour, setting))
        if "null_accuracy" in trained:
            values = as_percent(trained["null_accuracy"].sel(case=case))
            lines.append(looks.Line(x, values, label=f"{setting}, random", colour=colour, dash="dash", width=1.0))
    if "untrained" in models:
        values = as_percent(models["untrained"]["accuracy"].sel(case=chosen).mean("case"))
        lines.append(looks.Line(x, values, label="untrained, mean", colour=style.UNTRAINED, dash="dot"))
    return looks.Curves(
        lines,
        x="steps run",
        y="top-1 (%)",
        title=f"{name} {TITLES[what]}".strip(),
        low=0,
        levels={"chance": 100 * result.attrs["chance"]},
        marks={"trained for": result.attrs["trained_steps"]},
    )


def figure(results: Results) -> Figure:
    """A panel per intervention: accuracy over the states, a colour per setting, dashed a random change as large."""
    drawn = [(name, result, what) for name, result in style.named(results).items() for what in kinds(result)]
    columns = min(4, len(drawn))
    figure, axes = looks.panels(int(np.ceil(len(drawn) / columns)), columns, width=3.7, height=3.6)
    for ax in axes[len(drawn) :]:
        ax.set_visible(False)
    for ax, (name, result, what) in zip(axes, drawn, strict=False):
        curves(result, what, name).draw(ax)
    return figure


FIGURES = {"steps": figure}


def interactive(result: xr.Dataset, what: str | None = None) -> go.Figure:
    """One intervention to hover over; by default the first."""
    return curves(result, what or kinds(result)[0]).interactive(height=480)
