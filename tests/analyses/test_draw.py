"""Run with: pytest tests/analyses/test_draw.py"""

import pandas as pd
import pytest
import xarray as xr

from analyses import draw, plain, pointing_game, recurrence

from .conftest import shipped


def test_an_analysis_is_found_by_the_probe_s_name() -> None:
    assert draw.of("pointing_game") is pointing_game and draw.of("recurrence") is recurrence
    for other in ("prune_random", "of_my_own", "style", "intervals", "no name", "os.path", ""):
        assert draw.of(other) is plain


@pytest.fixture
def result() -> xr.Dataset:
    numbers = {"norm": ("step", [1.0, 2.0]), "control_norm": ("step", [1.0, 1.0])}
    attrs = {"source": "runs/demo", "weights": "ema", "data": "<i>shapes</i>", "split": "val"}
    return xr.Dataset(numbers, {"step": [0, 1]}, attrs=attrs)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_pictures_are_what_their_suffix_says(result, tmp_path, suffix: str, start: bytes) -> None:
    draw.save(result, plain, tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(start)


def test_a_page_says_what_it_is_of(result, tmp_path) -> None:
    draw.save(result, plain, tmp_path / "my_probe.html")
    page = (tmp_path / "my_probe.html").read_text()
    assert "<h1" in page and "my probe" in page and "runs/demo (ema weights), &lt;i&gt;shapes&lt;/i&gt; val" in page


def test_numbers_come_back_from_csv(tmp_path) -> None:
    result = shipped("demo/recurrence")
    draw.save(result, recurrence, tmp_path / "a.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), recurrence.frame(result))


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.PNG", "a.csv.gz"])
def test_other_files_are_refused_in_one_sentence_before_anything_is_written(result, tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg, \.html or \.csv"):
        draw.save(result, plain, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw_is_said(tmp_path) -> None:
    lone = xr.Dataset({"accuracy": ((), 0.5)})
    for suffix in (".png", ".html"):
        with pytest.raises(ValueError, match="nothing"):
            draw.save(lone, plain, tmp_path / f"a{suffix}")
    draw.save(lone, plain, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines() == ["variable,model,value", "accuracy,trained,0.5"]
