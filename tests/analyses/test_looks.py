"""Run with: pytest tests/analyses/test_looks.py"""

import io
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from analyses import looks, style, tiles

X = np.arange(1, 5)


@pytest.fixture
def curves() -> looks.Curves:
    trained = looks.Line(X, X / 4, X / 4 - 0.1, X / 4 + 0.1, label="trained", mark="o")
    untrained = looks.Line(X, X / 8, label="untrained", colour=style.UNTRAINED, dash="dash")
    levels, marks = {"chance": 0.05, "centre": 0.4}, {"trained for": 3}
    return looks.Curves([trained, untrained], y="hit ratio", levels=levels, marks=marks, low=0)


def test_curves_are_the_same_in_both_libraries(curves, drawn) -> None:
    _, (ax,) = looks.panels()
    curves.draw(ax)
    drawn(ax.figure)
    traces = {trace.name: trace for trace in curves.interactive().data if trace.fill is None}
    for line in ax.lines[:2]:
        trace = traces[line.get_label()]
        assert np.allclose(trace.x, line.get_xdata()) and np.allclose(trace.y, line.get_ydata())
        assert trace.line.color == line.get_color()
    assert [line.get_linestyle() for line in ax.lines[:4]] == ["-", "--", ":", "-."]
    assert [traces[name].line.dash for name in ("trained", "untrained", "chance", "centre")] == [
        "solid",
        "dash",
        "dot",
        "dashdot",
    ]
    assert list(traces["trained"].text)[1] == "step 2 (blocks.1)" and "%{text}: %{y" in traces["trained"].hovertemplate
    assert np.allclose(traces["chance"].y, 0.05) and list(traces["chance"].x) == [1, 4]
    assert ax.get_ylim()[0] == 0 and ax.get_xlabel() == "step" and ax.lines[4].get_xdata() == [3, 3]


def test_a_band_is_a_filled_outline_without_nan(curves) -> None:
    low = np.array([0.1, np.nan, 0.3, 0.4])
    band = looks.Line(X, low, low - 0.1, low + 0.1).band()
    assert list(band.x) == [1, 3, 4, 4, 3, 1] and np.allclose(band.y, [0.2, 0.4, 0.5, 0.3, 0.2, 0])
    bands = [trace for trace in curves.traces() if trace.fill]
    assert len(bands) == 1 and not bands[0].showlegend and curves.lines[1].band() is None


def test_logarithmic_axes_have_plain_numbers(drawn) -> None:
    _, (ax,) = looks.panels()
    ranks = [1, 2, 4, 96]
    drawn_ranks = looks.Curves([looks.Line(ranks, ranks)], log="x", base=2, ticks=ranks)
    drawn_ranks.draw(ax)
    drawn(ax.figure)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "96"]
    assert drawn_ranks.interactive().layout.xaxis.type == "log" and ax.get_legend() is None


@pytest.fixture
def scores() -> xr.DataArray:
    return xr.DataArray(np.arange(6.0).reshape(3, 2), dims=("step", "head"), coords={"step": range(3), "head": [0, 1]})


def test_a_click_on_a_head_map_says_step_and_head(scores) -> None:
    figure = looks.head_map(scores).interactive(clickable=True)
    cells, overlay = figure.data
    assert np.asarray(cells.z).tolist() == [[0, 2, 4], [1, 3, 5]] and cells.hoverinfo == "skip"
    assert list(zip(overlay.x, overlay.y, strict=True)) == [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)]
    assert overlay.marker.opacity == 0 and overlay.marker.symbol == "square"
    assert list(figure.layout.xaxis.range) == [0.5, 3.5] and list(figure.layout.yaxis.range) == [1.5, -0.5]


def test_head_maps_share_one_bar_that_names_their_levels(scores, drawn) -> None:
    maps = [looks.head_map(scale * scores, title=str(scale), levels={"random patch": 2.5}) for scale in (1, 2)]
    figure = drawn(looks.draw_maps(maps))
    first, second, bar = figure.axes
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 10)
    assert "2.5 random patch" in [label.get_text() for label in bar.get_yticklabels()]
    assert [label.get_text() for label in first.get_xticklabels()] == ["1", "2", "3"]


def test_levels_on_a_bar_give_ticks_no_way_and_merge_where_they_touch() -> None:
    places, labels = looks.bar_ticks(0, 100, {"centre": 50.1, "random patch": 17.7, "random pixel": 17.6})
    named = dict(zip(labels, places, strict=True))
    assert named["17.6 random pixel, random patch"] == 17.6 and named["50.1 centre"] == 50.1
    assert sorted(places) == [0, 17.6, 40, 50.1, 60, 80, 100]  # the tick at 20 would touch the first level


def test_a_step_map_leaves_its_diagonal_out_and_says_the_null(drawn) -> None:
    matrix = np.full((3, 3), 0.5)
    look = looks.step_map(matrix, [0, 5, 11], diagonal=False, beside={"random": np.full((3, 3), 0.25)})
    (trace,) = look.interactive().data
    assert np.isnan(np.diag(np.asarray(trace.z))).all() and (matrix == 0.5).all()
    assert list(trace.x) == [1, 6, 12] and np.allclose(trace.customdata, 0.25) and "random" in trace.hovertemplate
    _, (ax,) = looks.panels()
    look.draw(ax)
    drawn(ax.figure)
    assert len(ax.figure.axes) == 2 and ax.get_aspect() == 1


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ("step", "top-1 (%)", "a<br>%{text}: %{y:.1f} %"),
        ("read out after step (0 is the embedding)", "loss", "a<br>read out after step %{x}: %{y:.4~g}"),
    ],
)
def test_a_line_says_its_name_place_and_value_under_the_mouse(x: str, y: str, said: str) -> None:
    trace, level = looks.Curves([looks.Line([1, 2], [0.5, 0.25], label="a")], x=x, y=y, levels={"b": 1}).traces()
    assert level.hovertemplate.startswith("b<br>%{y")
    assert trace.hovertemplate == said + "<extra></extra>"
    assert trace.text is None or list(trace.text) == ["step 1 (blocks.0)", "step 2 (blocks.1)"]


def test_a_cell_says_its_place_in_words_and_one_of_nothing_says_nothing() -> None:
    look = dict(x="what step ... had", y="put into step", bar="top-1 (%)")
    (trace,) = looks.step_map(np.eye(2), [0, 1], **look).interactive().data
    assert trace.hovertemplate == "put into step %{y}, what step %{x} had: %{z:.1f} %<extra></extra>"
    assert trace.hoverongaps is False


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_boxes_under_the_mouse_can_be_read(theme: str) -> None:
    figure = looks.Curves([looks.Line([1, 2], [0.5, 0.25])]).interactive()
    box = (looks.on_dark(figure) if theme == "dark" else figure).layout.hoverlabel
    assert contrast(box.font.color, box.bgcolor) >= 7


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours as hex."""
    levels = sorted(luminance(colour) for colour in (one, other))
    return (levels[1] + 0.05) / (levels[0] + 0.05)


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_a_map_of_nothing_can_be_drawn(drawn) -> None:
    _, (ax,) = looks.panels()
    looks.step_map(np.full((1, 1), np.nan), [0]).draw(ax)
    drawn(ax.figure)


def test_a_legend_lies_under_its_axis_and_covers_nothing(curves) -> None:
    figure, (ax, _) = looks.panels(1, 2)
    curves.draw(ax)
    figure.savefig(io.BytesIO())
    legend, label = (artist.get_window_extent() for artist in (ax.get_legend(), ax.xaxis.label))
    assert legend.y0 >= 0 and legend.y1 <= label.y0 and legend.x1 < figure.bbox.width


def test_a_grid_has_a_caption_under_each_image(drawn) -> None:
    def draw(ax, row: int, column: int) -> str:
        ax.imshow(np.zeros((4, 4)))
        return f"{row} {column}"

    figure = drawn(looks.grid(draw, ["step 1", "step 2"], ["a", "b", "c"]))
    assert [ax.get_xlabel() for ax in figure.axes] == ["0 0", "0 1", "1 0", "1 1", "2 0", "2 1"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["a", "", "b", "", "c", ""]


def test_a_page_needs_nothing_from_outside_and_sends_nothing_there() -> None:
    page = looks.as_html(go.Figure(), "<b>title</b>", 'of "shapes" & more')
    assert "&lt;b&gt;title&lt;/b&gt;" in page and "of &quot;shapes&quot; &amp; more" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert '"showSendToCloud": false' in page
    assert page == looks.as_html(go.Figure(), "<b>title</b>", 'of "shapes" & more')


def test_cells_of_a_large_map_are_not_covered_by_the_gaps_between_them() -> None:
    for rows, gap in ((3, 1), (384, 0)):
        drawn = looks.Map(np.zeros((rows, 12)), range(12), range(rows)).interactive().data[0]
        assert (drawn.ygap, drawn.xgap) == (gap, 1)


def test_a_long_legend_leaves_the_plot_its_height() -> None:
    lines = [looks.Line([1, 2], [0, 1], low=[0, 0], high=[1, 2], label=f"line {i}") for i in range(9)]
    few, many = (looks.Curves(lines[:n]).interactive().layout.height for n in (3, 9))
    assert few == 380 and many == 380 + 5 * looks.LEGEND_ROW


def test_small_maps_are_squares_of_their_own_under_titles_that_a_phone_has_room_for() -> None:
    drawn = tiles.settled(tiles.panels([f"step {t}<br>CLS" for t in range(12)], 2, 6))
    axes = [drawn.layout[name] for name in drawn.layout if name.startswith("yaxis")]
    assert len(axes) == 12 and all(axis.scaleanchor == axis.anchor for axis in axes)
    assert {note.font.size for note in drawn.layout.annotations} == {11}
