"""Run with: pytest tests/analyses/test_style.py"""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import analyses
from analyses import style

SOURCES = sorted(Path(analyses.__file__).parent.glob("*.py"))
VISION = {  # linear RGB as seen without one kind of cone (Machado, Oliveira & Fernandes, 2009)
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]


def lab(colour: str, vision: str) -> np.ndarray:
    """CIE L*a*b* of a colour as somebody sees it."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart_without_red_or_green_cones(vision: str) -> None:
    seen = [lab(colour, vision) for colour in (*style.SEQUENCE, style.UNTRAINED)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_steps_are_printed_from_one_and_states_after_them() -> None:
    assert style.step_label(5) == "step 6 (blocks.5)"
    assert [style.state_label(k) for k in (0, 1)] == ["before step 1", "step 1 (blocks.0)"]
    assert list(style.some(range(12))) == list(range(12)) and list(style.some(range(24), 8)) == list(range(0, 24, 3))


@pytest.fixture
def result() -> xr.Dataset:
    made = {"score": ("step", [1.0, 2.0]), "control_score": ("step", [0.5, 0.5]), "other": ((), 3)}
    return xr.Dataset(made, {"step": [0, 1]}, attrs={"data": "shapes"})


def test_models_parts_the_trained_from_the_untrained(result) -> None:
    parts = style.models(result)
    assert list(parts) == ["trained", "untrained"]
    assert set(parts["trained"]) == {"score", "other"} and set(parts["untrained"]) == {"score"}
    assert parts["untrained"]["score"].sel(step=1) == 0.5
    assert all(part.attrs == {"data": "shapes"} for part in parts.values())
    assert list(style.models(parts["trained"])) == ["trained"]
    assert style.untrained(result, "other") is None and style.untrained(parts["trained"], "score") is None


def test_series_names_and_colours_every_model(result) -> None:
    alone = list(style.series(result, "score"))
    assert [model.label() for model in alone] == ["trained", "untrained"]
    assert alone[1].look() == dict(label="untrained", colour=style.UNTRAINED, dash="dash", mark="")
    assert [model.label("mean") for model in alone] == ["mean", "untrained, mean"]
    assert len(list(style.series(result, "score", "other"))) == 1
    both = list(style.series({"bViT": result, "ViT": result}, "score"))
    assert [model.label("mean") for model in both][:2] == ["bViT mean", "bViT untrained, mean"]
    assert both[0].colour == both[1].colour != both[2].colour and both[3].result is result


def test_levels_are_named_once_where_they_are_the_same(result) -> None:
    other = result.assign_attrs(data="voc")
    chance = {"shapes": 5, "voc": 10}

    def of(one: xr.Dataset) -> dict[str, float]:
        return {"chance": chance[one.attrs["data"]]}

    assert style.levels({"a": result, "b": result}, of) == {"chance": 5}
    assert style.levels({"a": result, "b": other}, of) == {"a chance": 5, "b chance": 10}


def test_tables(result) -> None:
    frame = style.tidy(result, "score", "absent")
    assert frame["model"].tolist() == ["trained"] * 2 + ["untrained"] * 2
    assert frame["score"].tolist() == [1, 2, 0.5, 0.5] and frame["step"].tolist() == [0, 1, 0, 1]
    assert style.row("step 1", ["a", "bc"], 4, first=8) == "step 1     a  bc"
    assert style.aligned(frame).splitlines()[1].split() == ["0", "1", "trained"]
    assert style.caption(result.assign_attrs(source="runs/demo", weights="ema", split="val", n_images=7)) == (
        "runs/demo (ema weights), shapes val, 7 images"
    )
    assert style.caption(xr.Dataset()) == ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_file_is_short_reads_the_control_in_one_place_and_imports_at_its_top(path) -> None:
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert path.stem == "style" or "control_" not in text
    assert len(text.splitlines()) <= 400 and max(map(len, text.splitlines())) <= 120
    for function in functions:
        assert function.end_lineno - function.lineno < 60, function.name
        assert not [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
