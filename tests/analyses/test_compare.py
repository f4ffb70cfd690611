"""Run with: pytest tests/analyses/test_compare.py"""

import numpy as np

from analyses import compare


def test_the_table_of_two_models_attention_tells_their_heads_apart() -> None:
    maps = {"one": np.arange(8.0).reshape(2, 2, 2) / 10, "other": np.full((1, 3, 3), 0.5)}
    found = compare.frame(maps)
    assert found.columns.tolist() == ["model", "head", "row", "column", "attention (%)"] and len(found) == 8 + 9
    of = found.set_index(["model", "head", "row", "column"])["attention (%)"]
    assert of["one", 1, 0, 1] == 50 and of["one", 0, 1, 0] == 20 and of["other", 0, 2, 2] == 50


def test_each_of_two_models_has_its_own_chance_level() -> None:
    classes = {"one": ["a", "b"], "other": ["a", "b", "c", "d"]}
    probability = {name: np.full((3, len(of)), 1 / len(of)) for name, of in classes.items()}
    assert compare.answers(probability, classes, ["a"]).levels == {"one: chance": 50, "other: chance": 25}
    alike = {name: probability["one"] for name in classes}
    assert compare.answers(alike, {name: ["a", "b"] for name in classes}, ["a"]).levels == {"chance": 50}
