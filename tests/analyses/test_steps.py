"""Run with: pytest tests/analyses/test_steps.py"""

import numpy as np
import pytest
from scipy import stats

from analyses import steps


def test_attention_marks_the_maximum_of_every_head_and_outlines_the_object() -> None:
    maps = np.zeros((3, 4, 4))
    maps[[0, 1, 2], [0, 1, 3], [3, 2, 0]] = 0.5
    picture, mask = np.zeros((16, 16, 3), np.uint8), np.pad(np.ones((4, 4)), 6)
    fig = steps.attention(picture, maps, mask, columns=2)
    assert [trace.type for trace in fig.data] == ["image", "heatmap", "contour", "scatter"] * 3
    crosses = [(trace.x[0], trace.y[0]) for trace in fig.data if trace.type == "scatter"]
    assert crosses == [(13.5, 1.5), (9.5, 5.5), (1.5, 13.5)]
    assert "contour" not in [trace.type for trace in steps.attention(picture, maps, None).data]
    assert fig.layout.annotations[0].text == "head 0<br>peak 100 %"


def test_the_lens_shows_the_likely_classes_and_the_true_one() -> None:
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.9, 0.06, 0.03, 0.01]])
    fig = steps.lens(probabilities, ["a", "b", "c", "d"], step=1, truth=1, top=2)
    assert [trace.name for trace in fig.data] == ["a", "d", "b (true)", "chance"]
    assert np.allclose(fig.data[0].y, [10, 70, 90]) and np.allclose(fig.data[3].y, 25)
    assert fig.data[2].line.width > fig.data[0].line.width and fig.layout.shapes[0].x0 == 2


def test_norms_show_the_patches_of_a_step_and_every_kind_of_token() -> None:
    values = np.arange(12.0).reshape(3, 2, 2)
    fig = steps.norms(values, np.ones(3), np.zeros((3, 1)), step=1)
    assert np.allclose(np.asarray(fig.data[0].z), values[2])
    lines = {trace.name: list(trace.y) for trace in fig.data[1:]}
    assert lines["mean patch"] == [1.5, 5.5, 9.5] and lines["largest patch"] == [3, 7, 11]
    assert lines["CLS"] == [1, 1, 1] and lines["register 0"] == [0, 0, 0]


def test_accuracy_has_wilson_s_interval_and_chance() -> None:
    band, line, chance = steps.accuracy(np.array([0.1, 1.0]), 20, 10).data
    low, high = (stats.binomtest(10, 10).proportion_ci(method="wilson").low, 1.0)
    assert list(line.y) == [10, 100] and np.allclose(chance.y, 5)
    assert np.allclose([band.y[1], band.y[2]], [100 * high, 100 * low])


def test_training_draws_what_was_logged() -> None:
    records = [{"images": 10, "loss": 2.0}, {"images": 20, "loss": 1.0, "top1": 0.5}, {"images": 30}]
    loss, score = steps.training(records).data
    assert list(loss.x) == [10, 20] and list(score.y) == [50.0] and score.yaxis == "y2"
    assert len(steps.training([]).data) == 2


@pytest.mark.parametrize("n_heads", [1, 12])
def test_any_number_of_heads_has_its_panels(n_heads: int) -> None:
    fig = steps.attention(np.zeros((8, 8, 3), np.uint8), np.ones((n_heads, 2, 2)))
    assert len(fig.layout.annotations) == n_heads
