"""Every analysis draws the results that come with the repository. Run with: pytest tests/analyses/test_shipped.py"""

import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from matplotlib.figure import Figure

from analyses import capacity, draw, plain, prune

from .conftest import SHIPPED, shipped, without_control

OWN = [name for name in SHIPPED if draw.of(name.partition("/")[2]) is not plain]


def small(result: xr.Dataset) -> xr.Dataset:
    """The same with few points, neurons and thumbnails, so that it is quickly drawn; all steps."""
    sizes = {"place": 4, "neuron": 2} if "picture" not in result else {"neuron": 1}
    return result.isel({dim: slice(size) for dim, size in sizes.items() if dim in result.dims})


@pytest.mark.parametrize("has_control", [True, False], ids=["control", "no control"])
@pytest.mark.parametrize("name", OWN)
def test_a_shipped_result_has_table_figures_and_frame(name: str, has_control: bool, drawn) -> None:
    analysis = draw.of(name.partition("/")[2])
    result = shipped(name) if has_control else without_control(shipped(name))
    text, frame = analysis.table(result), analysis.frame(result)
    assert "step 12 (blocks.11)" in text or "12 steps" in text
    assert isinstance(frame, pd.DataFrame) and len(frame) and not frame.columns.duplicated().any()
    assert next(iter(analysis.FIGURES.values())) is analysis.figure
    for function in analysis.FIGURES.values():
        figure = function(small(result))
        assert figure is None or isinstance(drawn(figure), Figure)
    assert isinstance(analysis.interactive(result), go.Figure)


@pytest.mark.parametrize("probe", sorted({name.partition("/")[2] for name in OWN}))
def test_several_results_stand_in_one_figure(probe: str, drawn) -> None:
    result = small(shipped(next(name for name in OWN if name.endswith(f"/{probe}"))))
    one, two = draw.of(probe).figure(result), draw.of(probe).figure({"A": result, "B": without_control(result)})
    assert len(drawn(two).axes) >= len(drawn(one).axes)


def test_capacity_is_drawn_from_ranks(drawn) -> None:
    both = {"shapes": shipped("demo/rank"), "photos": shipped("photos/rank")}
    assert len(capacity.frame(both)) == 2 * len(capacity.DEMANDS)
    assert len(drawn(capacity.figure(both)).axes) == 3


def test_controls_of_pruning_are_compared_and_drawn(drawn) -> None:
    result = shipped("pruned/prune")
    controls = {name: shipped(f"pruned/prune_{name}") for name in ("random", "shared", "swap")}
    assert "round   8:  34.6 against  31.2" in prune.compared(controls["random"], result)
    assert "round 8: own masks 31.2, swapped 30.5 on average, 8.2 at worst" in prune.compared(controls["swap"], result)
    accuracy = drawn(prune.figure(result, controls)).axes[2]
    assert {"random", "shared", "step-specific", "chance"} <= {line.get_label() for line in accuracy.lines}
    assert {"random", "shared"} <= {trace.name for trace in prune.curves(result, controls).data}
    assert drawn(prune.swap_figure(controls["swap"])).axes[0].images[0].get_array().shape == (12, 12)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in OWN])
def test_other_results_are_drawn_plainly(name: str, drawn) -> None:
    result = shipped(name)
    assert "round 8" in plain.table(result) or "swap (round, step, other_step)" in plain.table(result)
    figure = plain.figure(result)
    assert figure is None or drawn(figure)
