"""Run with: pytest tests/analyses/test_points.py"""

import numpy as np
import pytest
from plotly.subplots import make_subplots

from analyses import looks, points


def test_lines_and_levels_are_named_and_bands_left_out() -> None:
    line = looks.Line([1, 2], [0.5, 0.25], [0.4, 0.2], [0.6, 0.3], label="trained")
    found = points.table(looks.Curves([line], x="step", y="top-1", levels={"chance": 0.05}).interactive())
    assert found.columns.tolist() == ["series", "step", "top-1"]
    assert found.values.tolist() == [
        ["trained", 1, 0.5],
        ["trained", 2, 0.25],
        ["chance", 1, 0.05],
        ["chance", 2, 0.05],
    ]


@pytest.mark.parametrize("clickable", [False, True])
def test_every_cell_of_a_map_is_a_line(clickable: bool) -> None:
    cells = looks.Map(np.array([[1.0, 2.0], [3.0, np.nan]]), [1, 2], [0, 1], x="step", y="head", bar="hit (%)")
    found = points.table(cells.interactive(clickable=clickable))
    assert found.columns.tolist() == ["head", "step", "hit (%)"]
    assert found["head"].tolist() == [0, 0, 1, 1] and found["step"].tolist() == [1, 2, 1, 2]
    assert found["hit (%)"].tolist()[:3] == [1, 2, 3] and np.isnan(found["hit (%)"].iloc[-1])


def test_rows_and_columns_of_one_name_are_both_there() -> None:
    found = points.table(looks.step_map(np.eye(2), [0, 1], x="step", bar="overlap").interactive())
    assert found.values.tolist() == [[1, 1, 1], [1, 2, 0], [2, 1, 0], [2, 2, 1]]
    assert found.columns.tolist() == ["step (row)", "step (column)", "overlap"]


def test_panels_go_by_their_titles() -> None:
    figure = make_subplots(1, 2, subplot_titles=["head 0", "head 1"])
    for column in (1, 2):
        figure.add_heatmap(z=[[column]], row=1, col=column)
    assert points.table(figure).values.tolist() == [["head 0", 0, 0, 1], ["head 1", 0, 0, 2]]


def test_a_figure_of_nothing_has_an_empty_table() -> None:
    assert points.table(make_subplots(1, 1)).empty
