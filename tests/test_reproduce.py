"""Others' rules beside ours, as ``make reproduce`` prints them. Run with: pytest tests/test_reproduce.py"""

import json

import numpy as np
import pytest

from tests.reference import reproduce
from tests.reference.reproduce import RUNS, Line, Stored


@pytest.fixture(scope="module")
def few() -> Stored:
    """A part of the shipped run's stored attention."""
    whole = reproduce.stored(RUNS / "demo" / "pointing_game.nc")
    return Stored(whole.attention[::20], whole.masks[::20], whole.labels[::20], whole.patch)


def test_our_pointing_game_is_that_of_others_on_the_same_arrays(few) -> None:
    lines = {line.what: line for line in reproduce.pointing_lines(few)}
    assert all(line.holds for line in lines.values()) and sum(line.must_agree for line in lines.values()) == 4
    assert lines["hit ratio, over whole patches"].theirs > lines["hit ratio, at patch centres"].theirs
    assert "differ by rule" in str(lines["hit ratio, over whole patches"])


def test_rules_on_a_planted_map() -> None:
    maps, target = np.zeros((1, 4, 4)), np.zeros((1, 4, 4), bool)
    maps[0, 1, 2], maps[0, 3, 3], target[0, 1, 2:] = 3.0, 1.0, True
    assert reproduce.quantus_pointing(maps, target) == [1] and reproduce.quantus_mass(maps, target) == [0.75]
    assert reproduce.quantus_rank(maps, target) == [0.5]  # of the two largest pixels one is inside
    assert reproduce.torchray(target[0], 3, 2, 2.1) and not reproduce.torchray(target[0], 3, 2, 2.0)


def test_statistics_are_those_of_scipy_scikit_learn_and_closed_forms() -> None:
    lines = list(reproduce.statistics_lines())
    assert len(lines) >= 4 and [str(line) for line in lines if not line.holds] == []


BOX = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
BOX += "<ymax>{}</ymax></bndbox></object>"


def test_the_image_centre_is_scored_on_boxes(tmp_path) -> None:
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("one\ntwo\n")
    size = "<size><width>100</width><height>80</height></size>"
    objects = {  # the centre is (50, 40): inside; 14 px away, 15 px away; all difficult
        "one": BOX.format("dog", 0, 40, 30, 60, 50) + BOX.format("cat", 0, 65, 41, 90, 60),
        "two": BOX.format("cat", 0, 66, 41, 90, 60) + BOX.format("cow", 1, 1, 1, 99, 79),
    }
    for name, boxes in objects.items():
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{boxes}</annotation>")
    assert reproduce.centre_of(reproduce.voc_boxes(tmp_path)) == 75.0  # dog 1 of 1, cat 1 of 2
    content = {
        "images": [{"id": 7, "width": 100, "height": 80}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [64, 30, 20, 20]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert reproduce.centre_of(reproduce.coco_boxes(tmp_path / "coco.json")) == 100.0
    content["annotations"][0]["bbox"][0] = 65
    (tmp_path / "coco.json").write_text(json.dumps(content))
    lines = list(reproduce.centre_lines(tmp_path, tmp_path / "coco.json"))
    assert lines[1].ours == 0.0 and lines[0].ours == 75.0 and not lines[0].holds  # 69.6 is VOC 2007's


def test_what_is_missing_is_skipped_with_a_word_and_a_difference_ends_with_1(few, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reproduce, "stored", lambda path: few)
    monkeypatch.setattr(reproduce, "statistics_lines", lambda: [Line("one", "a book", 0.5, 0.5)])
    reproduce.reproduce()
    said = capsys.readouterr().out
    assert "name its folder" in said and "no number at hand" in said and "DIFFER" not in said
    monkeypatch.setattr(reproduce, "statistics_lines", lambda: [Line("one", "a book", 0.5, 0.6)])
    with pytest.raises(SystemExit, match="1"):
        reproduce.reproduce()
    assert "DIFFER" in capsys.readouterr().out
