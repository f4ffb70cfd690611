"""The results that come with the repository, and figures that are drawn to the end."""

import io
from functools import cache
from pathlib import Path

import pytest
import xarray as xr

from analyses import results, style

RUNS = Path(__file__).parents[2] / "runs"
SHIPPED = [f"{path.parent.name}/{path.stem}" for path in sorted(RUNS.glob("*/*.nc"))]


@cache
def shipped(name: str) -> xr.Dataset:
    """A shipped result, as in "demo/rank"."""
    return results.read(RUNS / f"{name}.nc")


def without_control(result: xr.Dataset) -> xr.Dataset:
    return style.models(result)["trained"]


@pytest.fixture
def drawn():
    """Draws a matplotlib figure to the end, at few pixels and where its parts lie, and gives it back."""

    def draw(figure):
        figure.set_layout_engine("none")
        figure.savefig(io.BytesIO(), dpi=20)
        return figure

    return draw
