"""Run with: pytest tests/analyses/test_trajectories.py"""

import json
import re

import numpy as np
import pytest
import xarray as xr

from analyses import style
from analyses import trajectories as analysis


@pytest.fixture
def result() -> xr.Dataset:
    """20 images of two classes that part: all at the origin before step 1, at -1 and +1 (and a little off) after it,
    at -2 and +2 after step 2.
    """
    labels = np.arange(20) % 2
    off = np.random.default_rng(0).normal(0, 0.01, (20, 3, 2))
    off[:, 0] = 0
    points = (off + np.stack([0 * labels, 2 * labels - 1, 4 * labels - 2], 1)[..., None]).astype(np.float32)
    return xr.Dataset(
        {
            "pacmap": (("image", "state", "axis"), points),
            "pca": (("image", "state", "axis"), points),
            "explained": ("axis", [0.75, 0.05]),
            "label": ("image", labels),
            "index": ("image", 10 * np.arange(20)),
            "purity": (("space", "state"), np.full((3, 3), 0.8)),
            "kept": (("picture", "state"), np.full((2, 3), 0.4)),
            "control_purity": ("state", np.full(3, 0.5)),
        },
        coords={"state": range(3), "space": ["states", "pacmap", "pca"], "picture": ["pacmap", "pca"]},
        attrs=dict(token="cls", neighbors=5, classes=["cat", "dog"], purity_chance=9 / 19, kept_chance=5 / 19),
    )


def test_classes_apart_are_pure_and_one_picture_keeps_its_own_neighbours(result) -> None:
    near = analysis.nearest(result["pacmap"].values, 5)
    assert near.shape == (3, 20, 5) and (near[1] != np.arange(20)[:, None]).all()
    assert analysis.purity(near, result["label"].values)[1:].tolist() == [1, 1]
    assert analysis.kept(near, near).tolist() == [1, 1, 1]


def test_chance_levels_are_met_by_random_labels_and_random_neighbours() -> None:
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(400, 10, 3)), rng.choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])
    near = analysis.nearest(points, 8)
    assert analysis.purity(near, labels).mean() == pytest.approx(analysis.purity_chance(labels), abs=0.01)
    assert analysis.kept(near, analysis.nearest(rng.normal(size=(400, 10, 3)), 8)).mean() == pytest.approx(
        8 / 399, abs=0.002
    )
    assert analysis.purity_chance(np.array([0, 0, 1, 1])) == pytest.approx(1 / 3)


def test_the_mean_path_of_a_class_without_an_image_is_empty(result) -> None:
    paths = analysis.class_paths(result.assign_attrs(classes=["cat", "dog", "cow"]))
    assert np.allclose(paths[:2, :, 0], [[0, -1, -2], [0, 1, 2]], atol=0.02) and np.isnan(paths[2]).all()


def test_the_table_leaves_out_the_one_point_and_names_chance(result) -> None:
    text = analysis.table(result)
    assert "step 1 (blocks.0)" in text and "before step 1 the cls state is the same for all images" in text
    assert "chance 47.4 %" in text and "80 % of the variance" in text
    moved = result.copy(deep=True)
    moved["pca"][0, 0] = 1
    assert "before step 1         " in analysis.table(moved)


def test_the_figure_shows_both_pictures_chance_and_the_untrained_model(result) -> None:
    fig = analysis.figure(result)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles[:2] == ["PaCMAP, by step", "PaCMAP, by class"] and titles[2].startswith("PCA, by class (80 %")
    assert {"full space", "PaCMAP", "PCA", "untrained", "chance"} == {line.get_label() for line in fig.axes[3].lines}


@pytest.mark.parametrize("colour", ["class", "step"])
def test_play_walks_through_every_state(result, colour: str) -> None:
    drawn = analysis.interactive(result, "pca", colour, follow=3)
    assert [frame.name for frame in drawn.frames] == ["before step 1", "step 1 (blocks.0)", "step 2 (blocks.1)", "all"]
    assert [len(frame.data[0].x) for frame in drawn.frames] == [20, 20, 20, 60]
    assert np.allclose(drawn.frames[1].data[0].x, result["pca"].sel(state=1)[:, 0])
    assert np.allclose(drawn.frames[2].data[2].x, result["pca"].values[3, :, 0])
    assert drawn.frames[1].data[0].customdata[7][:3].tolist() == [7, 70, "dog"]
    shades = drawn.frames[-1].data[0].marker.color
    assert len(set(shades)) == {"class": 2, "step": 3}[colour]
    drawn_classes = analysis.interactive(result.assign_attrs(classes=["cat", "dog", *map(str, range(40))]))
    assert len(drawn_classes.frames[0].data[1].x) == 0  # too many classes for mean paths


def test_the_page_holds_its_pictures_and_no_name_can_break_out_of_it(result) -> None:
    hostile = result.assign_attrs(classes=["</script><script>alert(1)</script>", "dog"])
    html = analysis.page(analysis.interactive(hostile), {3: "data:image/jpeg;base64,AAAA"})
    assert json.loads(re.search(r"pictures = (\{.*?\});", html)[1]) == {"3": "data:image/jpeg;base64,AAAA"}
    assert "<script>alert(1)" not in html


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_figure_is_of_one_theme_on_the_ground_of_the_page_around_it(result, scheme: str) -> None:
    html = analysis.page(analysis.interactive(result, follow=3), "pictures.js", "plotly.js", scheme)
    assert '<meta name="color-scheme" content="light">' in html  # as the frame's own, else its ground is opaque
    assert (style.INK in html, style.CHANCE in html) == ((scheme == "light"),) * 2


def test_curves_have_chance_and_the_untrained_model(result) -> None:
    figure = analysis.curves(result)
    assert [trace.name for trace in figure.data] == ["full space", "PaCMAP", "PCA", "untrained", "chance"]
    assert list(figure.data[0].x) == [1, 2] and np.allclose(figure.data[3].y, 50)


def test_the_frame_has_a_column_for_every_space_and_picture(result) -> None:
    frame = analysis.frame(result)
    assert frame.columns.tolist() == [
        *("state", "purity_states", "purity_pacmap", "purity_pca", "purity_untrained", "kept_pacmap", "kept_pca"),
    ]
    assert (frame["purity_untrained"] == 0.5).all() and "purity_untrained" not in analysis.frame(
        result.drop_vars("control_purity")
    )
