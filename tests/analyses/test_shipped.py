"""Every analysis draws the results that come with the repository. Run with: pytest tests/analyses/test_shipped.py"""

import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from matplotlib.figure import Figure

from analyses import capacity, draw, looks, plain, prune

from .conftest import SHIPPED, shipped, without_control

OWN = [name for name in SHIPPED if draw.of(name.partition("/")[2]) is not plain]
FIRST = sorted({name.partition("/")[2]: name for name in reversed(OWN)}.values())  # one run of each analysis


def small(result: xr.Dataset) -> xr.Dataset:
    """The same with few pictures and points, so that it is quickly drawn."""
    sizes = {"neuron": 1} if "picture" in result else {"place": 3}
    sizes |= {"image": 20, "state": 4} if "pacmap" in result else {}
    return result.isel({dim: slice(size) for dim, size in sizes.items() if dim in result.dims})


@pytest.mark.parametrize("name", OWN)
def test_a_shipped_result_has_table_frame_and_figures(name: str) -> None:
    analysis, result = draw.of(name.partition("/")[2]), shipped(name)
    text, frame = analysis.table(result), analysis.frame(result)
    n_steps = 6 if name.startswith("pruned") else 12
    assert f"step {n_steps}" in text or f"{n_steps} steps" in text
    assert isinstance(frame, pd.DataFrame) and len(frame) and not frame.columns.duplicated().any()
    assert isinstance(analysis.interactive(small(result)), go.Figure)
    if name not in FIRST:  # of those, all figures are drawn below
        assert isinstance(analysis.figure(small(result)), Figure)


@pytest.mark.parametrize("name", FIRST)
def test_all_figures_of_an_analysis_are_drawn_to_the_end(name: str, drawn) -> None:
    analysis, result = draw.of(name.partition("/")[2]), small(shipped(name))
    assert next(iter(analysis.FIGURES.values())) is analysis.figure
    for function in analysis.FIGURES.values():
        assert isinstance(drawn(function(result)), Figure)


@pytest.mark.parametrize("name", FIRST)
def test_a_result_without_the_untrained_model_has_them_too(name: str) -> None:
    analysis, result = draw.of(name.partition("/")[2]), without_control(small(shipped(name)))
    assert len(analysis.table(result)) and len(analysis.frame(result)) and analysis.interactive(result).data
    figures = [function(result.drop_vars("thumbnail", errors="ignore")) for function in analysis.FIGURES.values()]
    assert figures[0].axes and all(figure is None or figure.axes for figure in figures)


@pytest.mark.parametrize("name", FIRST)
def test_several_results_stand_in_one_figure(name: str) -> None:
    analysis, result = draw.of(name.partition("/")[2]), small(shipped(name))
    one, two = analysis.figure(result), analysis.figure({"A": result, "B": without_control(result)})
    artists = [sum(len(ax.get_children()) for ax in fig.axes) for fig in (one, two)]
    assert artists[1] > artists[0]


def test_capacity_is_drawn_from_ranks(drawn) -> None:
    both = {"shapes": shipped("demo/rank"), "photos": shipped("photos/rank")}
    assert len(capacity.frame(both)) == 2 * len(capacity.DEMANDS)
    assert len(drawn(capacity.figure(both)).axes) == 3


def test_controls_of_pruning_are_compared_and_drawn(drawn) -> None:
    result = shipped("pruned/prune")
    controls = {name: shipped(f"pruned/prune_{name}") for name in ("random", "shared", "swap")}
    assert "round  16:  52.4 against  62.7" in prune.compared(controls["random"], result)
    assert "round 16: own masks 62.7, swapped 29.1 on average, 7.4 at worst" in prune.compared(controls["swap"], result)
    accuracy = drawn(prune.figure(result, controls)).axes[2]
    assert {"random", "shared", "step-specific", "chance"} <= {line.get_label() for line in accuracy.lines}
    assert {"random", "shared"} <= {trace.name for trace in prune.curves(result, controls).data}
    assert drawn(looks.draw_maps([prune.swap_map(controls["swap"])])).axes[0].images[0].get_array().shape == (6, 6)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in OWN])
def test_other_results_are_drawn_plainly(name: str, drawn) -> None:
    result = shipped(name)
    assert "round 8" in plain.table(result) or "swap (round, step, other_step)" in plain.table(result)
    figure = plain.figure(result)
    assert figure is None or drawn(figure)
