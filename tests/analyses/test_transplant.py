"""Figures of a transplant and of two models on one image, on numbers that are known."""

import numpy as np
import pytest

from analyses import compare, transplant


@pytest.mark.parametrize(
    ("flips", "said"),
    [([0, 0, 0], "at no step"), ([0, 1, 0], "at step 2"), ([1, 1, 0, 1, 1, 1], "at steps 1 to 2, 4 to 6")],
)
def test_where_the_answer_flips_is_said_in_runs(flips, said):
    assert transplant.flips_at(np.array(flips)) == said


def test_the_effect_is_the_share_of_the_way_between_the_logit_differences():
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [1.0, 1.0, 5.0], [1.5, 0.5, -3.0]])
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probability[0, 2] = probability[1, 2] = 0  # of no account, but for the arg-max
    found = transplant.effect(probability, probability[0], probability[1])
    assert found == pytest.approx([0, 1, 0.5, 0.25])


def test_a_cross_stands_where_a_patch_flips_the_answer():
    effects, flips = np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool)
    effects[1, 1, 0], flips[1, 1, 0] = 0.4, True
    drawn = transplant.grid(effects, flips, np.array([0.0, 0.25]))
    crosses = [trace for trace in drawn.data if trace.type == "scatter"]
    assert (len(crosses[0].x), list(crosses[1].x), list(crosses[1].y)) == (0, [0], [1])
    assert drawn.data[2].z.tolist() == [[0, 0], [40, 0]] and drawn.layout.coloraxis.cmax == pytest.approx(40)
    assert [note.text for note in drawn.layout.annotations] == ["step 1<br>CLS 0 %", "step 2<br>CLS 25 %"]


def test_both_models_attention_is_on_one_scale_and_the_difference_is_of_the_means():
    a, b = np.full((2, 2, 2), 0.1), np.full((3, 2, 2), 0.2)
    b[0, 0, 0] = 0.5
    drawn = compare.attention({"a": a, "b": b})
    assert drawn.layout.coloraxis.cmax == pytest.approx(50) and len(drawn.data) == 3 + 4 + 1
    assert drawn.data[-1].z == pytest.approx(np.array([[20, 10], [10, 10]]))
    assert len(compare.attention({"a": a, "b": np.full((2, 3, 3), 0.1)}).data) == 3 + 3


def test_answers_are_drawn_of_the_classes_that_a_model_has():
    probability = {"a": np.eye(3)[[0, 1, 2]], "b": np.eye(2)[[0, 1]]}
    drawn = compare.answers(probability, {"a": ["x", "y", "z"], "b": ["y", "w"]}, ["y", "z"])
    assert [line.label for line in drawn.lines] == ["a: y", "a: z", "b: y"]
    assert drawn.lines[2].y.tolist() == [100, 0] and drawn.levels["a: chance"] == pytest.approx(100 / 3)
