"""Run with: pytest tests/analyses/test_recurrence.py"""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses import recurrence as analysis


@pytest.fixture
def result() -> xr.Dataset:
    accuracy = np.array([0.1, 0.3, 0.6, 0.9, 0.8, 0.2])
    exits = np.linspace(0.3, 0.9, len(analysis.THRESHOLDS))
    return xr.Dataset(
        {
            "accuracy": ("state", accuracy),
            "update": ("state", [np.nan, 2, 1, 0.5, 0.2, 0.1]),
            "class_accuracy": (("state", "label"), np.stack([accuracy, accuracy], 1)),
            "settled": ("image", [0, 1, 3, 3]),
            "exit_accuracy": (("criterion", "threshold"), np.stack([exits, exits])),
            "exit_steps": (("criterion", "threshold"), np.stack([exits, exits]) * 3),
        }
        | {name: ("state", accuracy) for name in ("loss", "confidence", "entropy", "control_accuracy")},
        coords={"state": range(6), "criterion": list(analysis.CRITERIA), "threshold": analysis.THRESHOLDS},
        attrs=dict(trained_steps=3, chance=0.1, classes=["cat", "dog"], overflow_state=-1, note=""),
    )


def test_an_answer_that_comes_back_is_final_only_from_its_return() -> None:
    answers = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 1]])
    assert analysis.settled(answers).tolist() == [0, 1, 3, 3]


def test_whoever_is_sure_leaves_first() -> None:
    confidence = np.array([[0.2, 0.95, 1.0], [0.5, 0.6, 0.7]])
    correct = np.array([[False, True, False], [True, False, True]])
    accuracy, steps = analysis.early_exit(confidence, np.zeros((2, 3)), correct, 2)
    at = int(np.flatnonzero(analysis.THRESHOLDS <= 0.9)[-1])
    assert (accuracy[0, at], steps[0, at]) == (1.0, 2.5)
    assert (accuracy[0, 0], steps[0, 0]) == (0.5, 1.0)
    assert (steps[1] == 1).all()  # no entropy at all: sure at once, whatever the threshold


def test_accuracies_have_wilson_s_interval(result) -> None:
    expected = stats.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    frame = analysis.frame(result.assign(accuracy=("state", [0.75] * 6)))
    assert np.allclose(frame[["accuracy_low", "accuracy_high"]].dropna(), expected)
    assert frame["model"].tolist() == ["trained"] * 6 + ["untrained"] * 6
    low, high = (100 * bound for bound in expected)
    table = analysis.table(result.assign(accuracy=("state", [0.75] * 6)))
    assert f"{low:.1f} to {high:.1f}" in table


def test_peak_and_leaving_within_a_point(result) -> None:
    assert analysis.peak(result) == (3, 0.9)
    steps, accuracy = analysis.exit_at(result, lost=0.05)
    assert accuracy >= 0.85 and steps == pytest.approx(3 * accuracy)


def test_the_table_and_the_figures_show_chance_the_untrained_model_and_the_trained_steps(result) -> None:
    text = analysis.table(result)
    assert (
        "chance 10.0 %, trained for 3 steps" in text
        and "untrained" in text
        and "highest after 3 steps (90.0 %)" in text
    )
    assert "overflow" not in text
    assert "overflow from step 4" in analysis.table(result.assign_attrs(overflow_state=4))
    left = analysis.figure(result).axes[0]
    assert {"trained", "untrained", "chance"} <= {line.get_label() for line in left.lines}
    both = analysis.figure({"bViT": result, "ViT": result.isel(state=slice(4))})
    assert {"bViT", "ViT", "ViT untrained"} <= {line.get_label() for line in both.axes[0].lines}
    shown = [trace.name for trace in analysis.interactive(result).data if trace.fill is None]
    assert shown == ["trained", "untrained", "chance"]
    assert {trace.name for trace in analysis.exits(result).data} == {*analysis.CRITERIA, "same step for all"}
    assert analysis.settling(result).data[0].y.tolist() == [25, 25, 0, 50]
    assert analysis.per_class(result).data[0].z.shape == (2, 6)
