"""Names and colours that all figures and tables share, and access to the models that one result holds."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

# Colours that stay apart under protanopia and deuteranopia; colour maps by names that matplotlib and plotly share.

MAIN, SECOND, UNTRAINED, CHANCE, INK = "#2a6f97", "#d55e00", "#8d99ae", "#6c757d", "#1b1f24"
SEQUENCE = (MAIN, SECOND, "#f0b73a", "#009e73", "#802060", "#7cc4ee")
ON_DARK = {  # replacements on a dark page for the colours that are too dark there
    MAIN: "#6fb1d6",
    "#802060": "#d183b5",
    CHANCE: "#a9b1b8",
    UNTRAINED: "#b4bfd0",
    INK: "#f1f3f5",
}
MAP, CHANGE, ATTENTION = "viridis", "RdBu", "inferno"

PREFIX = "control_"  # of the untrained model's variables in a result; only `models` reads this prefix

# Steps


def step_label(step: int) -> str:
    """How a step is printed: counted from 1 for readers, with its hook name counted from 0."""
    return f"step {step + 1} (blocks.{step})"


def state_label(state: int) -> str:
    """How a state is printed, after its step."""
    return "before step 1" if state == 0 else step_label(state - 1)


def some(values: Sequence[Any], most: int = 13) -> Sequence[Any]:
    """At most `most` of the values, at equal distances from the first on, so that ticks do not overlap."""
    return values[:: -(-len(values) // most)] if len(values) else values


# Models

Results = xr.Dataset | Mapping[str, xr.Dataset]  # one result, or several by name


def models(result: xr.Dataset) -> dict[str, xr.Dataset]:
    """A result split by model: "trained" and, if it was measured, "untrained", both with the same variable names."""
    untrained = [name for name in result.data_vars if str(name).startswith(PREFIX)]
    parts = {"trained": result.drop_vars(untrained)}
    if untrained:
        parts["untrained"] = result[untrained].rename({name: str(name).removeprefix(PREFIX) for name in untrained})
    return parts


def named(results: Results) -> dict[str, xr.Dataset]:
    """Results by name; a single result has the empty name."""
    return {"": results} if isinstance(results, xr.Dataset) else dict(results)


def untrained(result: xr.Dataset, name: str) -> xr.DataArray | None:
    """A variable of the untrained model; None if it was not measured."""
    return models(result).get("untrained", {}).get(name)


@dataclass(frozen=True)
class Model:
    """One model of a figure: the result it comes from, its own numbers, and the appearance of its lines."""

    name: str
    is_trained: bool
    colour: str
    result: xr.Dataset
    numbers: xr.Dataset

    def label(self, what: str = "") -> str:
        """The legend's label for a quantity of this model."""
        if self.is_trained:
            return f"{self.name} {what}".strip() or "trained"
        title = f"{self.name} untrained".strip()
        return f"{title}, {what}" if what else title

    def look(self, what: str = "", **other: Any) -> dict[str, Any]:
        """Label, colour, dash and mark of this model's line for a quantity; an untrained model's line is dashed."""
        dash, mark = ("solid", "o") if self.is_trained else ("dash", "")
        return dict(label=self.label(what), colour=self.colour, dash=dash, mark=mark) | other


def series(results: Results, *needed: str) -> Iterator[Model]:
    """Every model of the results that has the needed variables; with one result alone, its untrained model is grey."""
    by_name = named(results)
    for (name, result), colour in zip(by_name.items(), itertools.cycle(SEQUENCE), strict=False):
        for kind, numbers in models(result).items():
            if all(variable in numbers for variable in needed):
                is_grey = kind == "untrained" and len(by_name) == 1
                yield Model(name, kind == "trained", UNTRAINED if is_grey else colour, result, numbers)


def levels(results: Results, levels_of: Callable[[xr.Dataset], Mapping[str, float]]) -> dict[str, float]:
    """Chance levels of all results by label: given once if all results agree, else with each result's name."""
    by_result = {name: dict(levels_of(result)) for name, result in named(results).items()}
    first = next(iter(by_result.values()))
    if all(other == first for other in by_result.values()):
        return first
    return {f"{name} {label}": level for name, own in by_result.items() for label, level in own.items()}


# Tables


def row(title: str, cells: Iterable[Any], width: int = 9, first: int = 22) -> str:
    """One line of a printed table: its title, then the cells aligned on the right."""
    return f"{title:{first}}" + "".join(f"{cell:>{width}}" for cell in cells)


def with_interval(
    numbers: xr.Dataset, name: str, at: dict[str, Any], *, scale: float = 100, digits: int = 1, unit: str = ""
) -> str:
    """A variable and its interval (`_low`, `_high`) at the coordinates `at`, in per cent by default."""
    value, low, high = (scale * float(numbers[f"{name}{end}"].sel(at)) for end in ("", "_low", "_high"))
    return "-" if np.isnan(value) else f"{value:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def tidy(result: xr.Dataset, *names: str) -> pd.DataFrame:
    """Variables as a table, one line per cell and model."""
    frames = []
    for kind, numbers in models(result).items():
        available = [name for name in names if name in numbers]
        if available:
            frames.append(numbers[available].to_dataframe().reset_index().assign(model=kind))
    return pd.concat(frames, ignore_index=True)


def caption(result: xr.Dataset) -> str:
    """The model and the data of a result, as far as its attributes name them."""
    attrs = result.attrs
    model = f"{attrs['source']} ({attrs.get('weights', '')} weights)" if "source" in attrs else ""
    data = f"{attrs['data']} {attrs.get('split', '')}".strip() if "data" in attrs else ""
    images = f"{attrs['n_images']} images" if attrs.get("n_images") is not None else ""
    return ", ".join(part for part in (model, data, images) if part)


def aligned(frame: pd.DataFrame) -> str:
    """A table as a command prints it: numbers to four digits, columns aligned on the right."""
    return frame.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-")


def as_percent(ratio: xr.DataArray | np.ndarray) -> np.ndarray:
    """Ratios in %, as plain numbers."""
    return 100 * np.asarray(ratio, np.float64)
