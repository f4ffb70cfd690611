"""Pages of what strangers wrote: text that means something to Markdown, and results that are no results."""

import errno
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr
from streamlit.testing.v1 import AppTest

from app import results
from tests import damaged

from .visits import OF_PROBE, changed, complaint, is_whole, words

# Text of files

HOSTILE = "![{}](http://elsewhere.example/a.png)"


def markdown_of(app: AppTest) -> str:
    """Everything on a page that Streamlit reads as Markdown."""
    kinds = (app.title, app.subheader, app.markdown, app.caption, app.info, app.warning, app.error)
    said = [str(element.value) for kind in kinds for element in kind]
    said += [image.caption for element in app.get("imgs") for image in element.proto.imgs]
    return "\n".join(said)


@pytest.mark.parametrize("view", OF_PROBE)
def test_text_of_a_result_is_shown_word_for_word(view, runs, opened):
    path = runs / "tiny" / f"{view}.nc"
    result = xr.load_dataset(path, engine="h5netcdf")
    said = {
        name: HOSTILE.format(name) for name in ("note", "data", "split", "source", "weights") if name in result.attrs
    }
    classes = [HOSTILE.format(name) for name in result.attrs.get("classes", [])]
    changed(path, **said, **({"classes": classes} if classes else {}), checkpoint_sha256="![x](h")
    app = opened(runs, view)
    shown = markdown_of(app)
    assert is_whole(app) and "elsewhere.example" in shown
    assert not re.search(r"(?<!\\)\[[^\]]*\]\(h", shown)


def test_names_that_are_no_text_hide_nothing_else(runs, opened):
    (runs / "tiny").rename(runs / os.fsdecode(b"of\xffbytes"))
    shutil.copytree(runs / os.fsdecode(b"of\xffbytes"), runs / "tiny")
    (runs / "tiny" / "rank.nc").rename(runs / "tiny" / os.fsdecode(b"r\xff.nc"))
    app = opened(runs, "overview")
    assert is_whole(app) and app.selectbox(key="run").options == ["tiny"]
    assert "rename the folder: of?bytes" in words(app)


def test_a_folder_that_may_not_be_read_hides_nothing_else(runs, opened, monkeypatch):
    (runs / "locked").mkdir()
    stat, access = os.stat, os.access

    def refused(path, *words, **options):
        if "locked/" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *words, **options)

    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(os, "access", lambda path, *words: "locked" not in str(path) and access(path, *words))
    app = opened(runs, "rank")
    assert is_whole(app) and app.selectbox(key="run").options == ["tiny"] and "may not read it: locked" in words(app)
    assert "is no folder that this server may look into" in complaint(opened(runs / "locked"))
    (runs / "file").write_text("")
    assert "is no folder that this server may look into" in complaint(opened(runs / "file"))


def test_a_file_that_may_not_be_read_is_named_with_the_reason(tiny_runs, opened, monkeypatch):
    app = opened(tiny_runs, "overview")

    def refused(run: Path) -> list[dict]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "train.jsonl")

    monkeypatch.setattr(results, "log", refused)
    app.run()
    assert complaint(app) == "train.jsonl cannot be read (Permission denied)." and len(app.get("plotly_chart")) == 1


def test_text_of_a_message_is_shown_word_for_word(runs, opened):
    (runs / "tiny" / "ckpt.pt").unlink()
    (runs / "tiny").rename(runs / "![a](b)")
    assert r"!\[a\](b)" in complaint(opened(runs))


def test_a_message_names_no_place_in_memory(tiny_runs, opened, monkeypatch):
    app = opened(tiny_runs, "rank")

    def fails(path: str, changed: tuple) -> xr.Dataset:
        raise ValueError(f"cannot read {object()!r}")

    monkeypatch.setattr(results, "_read", fails)
    said = complaint(app.run())
    assert "ValueError: cannot read" in said and "0x" not in said


# Results that are none


def mutations(runs: Path, view: str) -> Iterator[xr.Dataset]:
    """Of the result that a page needs, one after the other, without end."""
    rng, whole = random.Random(view), results.read(runs / "tiny" / OF_PROBE[view].file)
    while True:
        yield damaged.mutated(whole, rng)


@pytest.mark.parametrize("view", OF_PROBE)
def test_a_page_of_a_mutated_result_is_drawn_or_says_one_sentence(view, tiny_runs, opened, monkeypatch):
    """In this process, where nobody reads the file first; the campaign does many more."""
    mutants = mutations(tiny_runs, view)
    app = opened(tiny_runs, view)
    monkeypatch.setattr(results, "_read", lambda path, changed: next(mutants))
    for _ in range(3):
        app.run()
        assert is_whole(app) or complaint(app)
