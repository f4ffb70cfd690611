"""Run with: pytest tests/test_study.py"""

import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from models import study
from models.errors import InputError

from .warm import Started, python

TINY = {
    "data": "shapes-easy:128",
    "recipe": "plain",
    "images": 512,
    "seeds": 1,
    "batch_size": 32,
    "val_limit": 64,
    "groups": [
        {
            "name": "width",
            "models": ["bvit_easy", "vit_easy"],
            "fields": {"n_steps": 2, "n_heads": 2},
            "vary": {"d_model": [8, 16]},
        },
        {"name": "narrow", "models": ["bvit_easy"], "vary": [{"n_steps": 2, "n_heads": 2, "d_model": 8}]},
    ],
}


def written(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def numbers(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "study.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study.study(written(folder / "tiny.yaml"), out=folder / "out", device="cpu")
    return folder


def test_every_cell_is_trained_once_and_has_a_line(undisturbed: Path) -> None:
    frame = numbers(undisturbed / "out")
    assert frame["cell"].tolist() == [
        "bvit_easy,d_model=8,n_heads=2,n_steps=2,seed=0",
        "bvit_easy,d_model=16,n_heads=2,n_steps=2,seed=0",
        "vit_easy,d_model=8,n_heads=2,n_steps=2,seed=0",
        "vit_easy,d_model=16,n_heads=2,n_steps=2,seed=0",
    ]
    assert frame["groups"].tolist() == ["width;narrow", "width", "width", "width"]
    assert (frame["images"] == 512).all() and (frame["n_blocks"] == [1, 1, 2, 2]).all()
    assert (frame["top1"] > 0).all() and frame["init_sha256"].nunique() == 4
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "out").rglob("ckpt.pt")}
    study.study(undisturbed / "tiny.yaml", out=undisturbed / "out", device="cpu")
    assert before == {path: path.stat().st_mtime_ns for path in (undisturbed / "out").rglob("ckpt.pt")}


def test_killed_and_shared_by_two_it_ends_in_the_same_table(undisturbed: Path, tmp_path: Path) -> None:
    """Two processes share the cells; one is killed in the middle of a training, and started again."""
    out = tmp_path / "out"
    script = "from models import loop; loop.SAVE_EVERY = 0.1; import runpy; "
    script += "runpy.run_module('models.study', run_name='__main__', alter_sys=True)"
    command = ["-c", script, undisturbed / "tiny.yaml", "--out", out, "--device", "cpu"]
    first, second = Started(*command), Started(*command)
    while first.is_alive() and not list(out.glob("*/last.pt")):
        time.sleep(0.02)
    first.kill()
    first.end()
    done = second.end()
    assert done.returncode == 0, done.stderr
    done = python(*command)
    assert "4 of 4 cells are finished" in done.stdout, done.stderr
    pd.testing.assert_frame_equal(numbers(out), numbers(undisturbed / "out"))


def test_a_sitting_ends_in_time_and_the_next_goes_on(undisturbed: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    study.study(undisturbed / "tiny.yaml", out=out, hours=1e-9, device="cpu")
    assert "0 of 4 cells are finished; 4 are in training elsewhere" in capsys.readouterr().out
    study.study(undisturbed / "tiny.yaml", out=out, only="bvit*", device="cpu")
    assert "2 of 4 cells are finished" in capsys.readouterr().out
    partial = numbers(out)
    pd.testing.assert_frame_equal(partial, numbers(undisturbed / "out").iloc[:2])


def test_a_dry_run_says_what_it_would_train(undisturbed: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(study, "RATE_SECONDS", 0.01)
    study.study(undisturbed / "tiny.yaml", out=tmp_path / "out", dry_run=True)
    table = capsys.readouterr().out
    assert "vit_easy,d_model=16,n_heads=2,n_steps=2,seed=0" in table and "4 cells," in table and "hours" in table
    assert not (tmp_path / "out").exists()
    study.study(undisturbed / "tiny.yaml", out=undisturbed / "out", dry_run=True)
    assert capsys.readouterr().out.count("done") == 4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"imagse": 3}, "unknown key imagse"),
        ({"images": "many"}, "images is 'many', it must be int"),
        ({"images": 0}, "images is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"recipe": "fast"}, "recipe is 'fast', it must be one of deit, small, plain"),
        ({"data": "nothing"}, "no data set is called 'nothing'"),
        ({"groups": []}, "groups is empty"),
        ({"groups": 3}, "groups must be a list"),
        ({"groups": [{"models": ["bvit_easy"]}]}, "group 1 lacks name"),
        ({"groups": [{"name": "a", "models": []}]}, "models is empty"),
        ({"groups": [{"name": "a", "models": ["bvit_huge"]}]}, "no preset named 'bvit_huge'"),
        ({"groups": [{"name": "a", "models": ["bvit_easy"], "widht": 3}]}, "group 1 has an unknown key widht"),
        ({"groups": [{"name": "a", "models": ["bvit_easy"], "vary": {"d_model": [15]}}]}, "multiple of n_heads"),
        ({"groups": [{"name": "a", "models": ["bvit_easy"], "vary": {"d_model": ["wide"]}}]}, "d_model is 'wide'"),
        (
            {"groups": [{"name": "a", "models": ["bvit_easy"], "vary": {"d_model": [8, 16], "n_heads": [2]}}]},
            "equally long",
        ),
        ({"groups": [{"name": "a", "models": ["bvit_easy"], "lr": [-1.0]}]}, "--lr is -1.0"),
    ],
)
def test_a_wrong_file_is_one_sentence_before_anything_is_trained(tmp_path: Path, changes: dict, complaint: str) -> None:
    file = written(tmp_path / "wrong.yaml", **changes)
    with pytest.raises(InputError, match=complaint):
        study.study(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_wrong_input_is_one_sentence(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    for name in ("broken", "deep", "none"):
        file = tmp_path / f"{name}.yaml"
        with pytest.raises(InputError, match="cannot be read as YAML"):
            study.study(file, out=tmp_path / "out")
    with pytest.raises(InputError, match="matches none of the cells"):
        study.study(undisturbed / "tiny.yaml", out=tmp_path / "out", only="cnn*")
    with pytest.raises(InputError, match="holds another study"):
        study.study(written(tmp_path / "other.yaml", images=1024), out=undisturbed / "out")


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[1] / "studies").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_shipped_studies_are_read(file: Path, monkeypatch) -> None:
    """Those on photographs without photographs: their data is one that is always there."""
    load = yaml.safe_load
    monkeypatch.setattr(yaml, "safe_load", lambda text: load(text) | {"data": "shapes"})
    cells = list(study.read(file).cells())
    assert len({cell.name for cell in cells}) == len(cells) >= 6
    if file.stem == "core":
        assert len(cells) == 52
