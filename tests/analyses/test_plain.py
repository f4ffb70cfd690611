"""Run with: pytest tests/analyses/test_plain.py"""

import numpy as np
import pytest
import xarray as xr

from analyses import plain

from .conftest import without_control


@pytest.fixture
def result() -> xr.Dataset:
    """A planted result: norms that double, head 1 the best from step 2 on, steps that are alike, accuracy .9."""
    score = np.array([[0.4, 0.2], [0.1, 0.7], [0.2, 0.8]])
    variables = {
        "norm": ("step", [1.0, 2.0, 4.0]),
        "purity": (("space", "state"), [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]),
        "score": (("step", "head"), score),
        "overlap": (("step", "other_step"), np.where(np.eye(3, dtype=bool), 1, 0.25)),
        "density": ("round", [100, 80]),
        "accuracy": ((), 0.9),
        "per_image": (("image", "step"), np.zeros((5, 3))),
        "word": ("step", ["a", "b", "c"]),
    }
    control = {"norm": ("step", [1.0, 1.0, 1.0]), "score": (("step", "head"), score / 2), "accuracy": ((), 0.1)}
    coords = {"step": range(3), "other_step": range(3), "state": range(4), "head": range(2), "space": ["full", "pca"]}
    untrained = {f"control_{name}": values for name, values in control.items()}
    return xr.Dataset(variables | untrained, coords, attrs={"source": "runs/demo", "data": "shapes"})


def test_every_number_is_in_the_table(result) -> None:
    lines = plain.table(result).splitlines()
    named = {line.split("  ")[0].strip(): line.split() for line in lines}
    header = next(line for line in lines if "norm, untrained" in line)
    assert "score, best head" in header and "score, mean head, untrained" in header and "purity" not in header
    assert named["step 3 (blocks.2)"][-2:] == ["0.4", "0.1"]  # of purity, whose table comes later
    assert next(line for line in lines if line.strip().startswith("step 3")).split()[3:] == [
        *("4", "1", "0.5", "0.8", "0.25", "0.4")
    ]
    assert next(line for line in lines if "accuracy" in line).split() == ["accuracy", "0.9", "0.1"]
    assert next(line for line in lines if "overlap" in line).split()[-2:] == ["0.25", "-"]
    assert lines[-1] == "also there: per_image (image, step), word (step)"


def test_the_figure_has_a_panel_for_each_variable_and_the_untrained_model_beside(result) -> None:
    panels = {ax.get_title(): ax for ax in plain.figure(result).axes if ax.get_title()}
    assert set(panels) == {
        *("norm", "purity", "density", "score, trained", "score, untrained", "overlap, trained"),
    }
    trained, untrained = panels["norm"].lines
    assert trained.get_xdata().tolist() == [1, 2, 3] and trained.get_ydata().tolist() == [1, 2, 4]
    assert untrained.get_label() == "untrained" and untrained.get_linestyle() == "--"
    assert panels["purity"].lines[1].get_label() == "pca" and panels["purity"].lines[1].get_xdata().tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert np.allclose(panels["score, trained"].images[0].get_array()[1], [0.2, 0.7, 0.8])


def test_a_variable_is_chosen_to_hover_over(result) -> None:
    assert [trace.name for trace in plain.interactive(result).data] == ["trained", "untrained"]
    (heads,) = plain.interactive(result, "score").data
    assert np.allclose(np.asarray(heads.customdata)[..., 0], np.asarray(heads.z) / 2)
    (steps,) = plain.interactive(without_control(result), "overlap").data
    assert steps.customdata is None and list(steps.x) == [1, 2, 3]


def test_the_frame_is_tidy(result) -> None:
    frame = plain.frame(result)
    assert frame.columns.tolist() == [
        "variable",
        "model",
        "step",
        "space",
        "state",
        "head",
        "other_step",
        "round",
        "value",
    ]
    cell = frame.query("variable == 'score' and model == 'untrained' and step == 2 and head == 1")
    assert cell["value"].item() == pytest.approx(0.4) and cell["state"].isna().all()
    assert frame.query("variable == 'accuracy'")["value"].tolist() == [0.9, 0.1]


def test_a_result_with_nothing_to_draw_has_a_table_all_the_same() -> None:
    result = xr.Dataset({"accuracy": ((), 0.5), "many": (("step", "unit"), np.zeros((3, 50)))})
    assert plain.figure(result) is None and "many (step, unit)" in plain.table(result)
    with pytest.raises(ValueError, match="nothing over steps"):
        plain.interactive(result)
    assert plain.table(xr.Dataset()) == "" and len(plain.frame(xr.Dataset())) == 0
