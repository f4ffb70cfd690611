"""One page of everything: what it shows, what it refuses, and that nothing of a file is believed or executed.

Run with: pytest tests/analyses/test_report.py
"""

import errno
import html
import os
import shutil
import signal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analyses import paper, report, results, study
from models import checkpoint

from .conftest import RUNS, shipped

EVIL = "<img src=x onerror=alert(1)>"
NUMBERS = [*(f"Fig {n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, "10-12", 13, 14)), "Table 1", "Appendix A", "Appendix G"]


class Page(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(content)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def a_run(folder: Path, **attrs: object) -> Path:
    """A run of a recurrence and of a result that no analysis knows, of the checkpoint beside them."""
    folder.mkdir(parents=True)
    (folder / "ckpt.pt").write_bytes(b"weights")
    said = {"checkpoint_sha256": results.sha256(folder / "ckpt.pt")} | attrs
    shipped("demo/recurrence").assign_attrs(said).to_netcdf(folder / "recurrence.nc", engine="h5netcdf")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    found = {
        "good": a_run(root / f"{EVIL.replace('/', '')} $x^2", source=EVIL, data=f"{EVIL}$_{{", classes=[EVIL] * 20),
        "other": a_run(root / "with space", checkpoint_sha256="0" * 64),
        "damaged": a_run(root / "damaged"),
    }
    own = xr.Dataset({EVIL: ("step", np.arange(3.0))}, {"step": range(3)}, {"checkpoint_sha256": "1" * 64})
    own.to_netcdf(found["other"] / "mine.nc", engine="h5netcdf")
    file = found["damaged"] / "recurrence.nc"
    file.write_bytes(file.read_bytes()[:5000])
    return found


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory) -> Path:
    return report.write(tuple(runs.values()), tmp_path_factory.mktemp("out") / "new").parent


@pytest.fixture(scope="module")
def page(made) -> Page:
    return Page((made / "report.html").read_text(encoding="utf-8"))


# What it shows


def test_every_figure_of_the_paper_is_there_or_the_command_that_makes_it(page, runs) -> None:
    assert sorted(item.number for item in paper.ITEMS) == sorted(NUMBERS)
    for item in paper.ITEMS:
        assert f"{item.number}: {item.title}" in page.text
        if item.needs != "recurrence" and not item.makes_run:
            assert f"python -m probes.{item.needs} '{runs['good']}'" in page.text  # quoted, as a shell wants it
        assert not item.states or item.states in page.text
    assert "python -m models.study studies/core.yaml --out runs/study" in page.text
    assert "peaks near step 12" in page.text and report.DIFFER in page.text


def test_numbers_stand_beside_their_chance_level_and_interval(page) -> None:
    accuracy = shipped("demo/recurrence")["accuracy"].values
    assert accuracy.argmax() == 12
    assert f"highest after 12: {100 * accuracy[12]:.1f} % (95 % interval 95.8 to 96.8)" in page.text
    assert "chance 5.0 %, best constant answer 6.0 %, untrained 4.9 %" in page.text


@pytest.mark.parametrize(
    "item", [item for item in paper.ITEMS if item.needs not in ("study", "prune")], ids=lambda i: i.name
)
def test_what_is_said_of_the_shipped_model_has_something_beside_it(item) -> None:
    said = item.says({item.needs: shipped(f"demo/{item.needs}")})
    assert any(word in said for word in ("chance", "random", "untrained", "constant", "even attention", "sum above 1"))


def test_what_is_said_is_what_the_results_hold() -> None:
    of = {"pointing_game": shipped("demo/pointing_game")}
    ratio = of["pointing_game"]["hit_ratio"].sel(radius=0, target="class", average="micro").mean("head").values
    assert f"{100 * ratio.max():.1f} % of the images at step {ratio.argmax() + 1}" in paper.says_pointing(of)
    masks = {"prune": shipped("pruned/prune")}
    assert "36.7 % are its alone (random masks of the same densities 72.7 %)" in paper.says_specialization(masks)
    trained = {"study": study.read(RUNS / "study")}
    assert "2: 74.5 +- 5.0 (n = 3)" in paper.says_steps(trained) and "chance 5.0 %" in paper.says_steps(trained)
    compared = paper.says_comparison(trained)
    assert "recovery 0.83 (95 % interval 0.74 to 0.93)" in compared
    assert "recovery 0.93 (95 % interval 0.89 to 0.97)" in compared


def test_files_lie_beside_the_page(made) -> None:
    assert sorted(path.name for path in (made / "figures").iterdir()) == ["fig-8.pdf", "fig-8.png"]
    assert (made / "figures" / "fig-8.pdf").read_bytes()[:5] == b"%PDF-"
    assert (made / "figures" / "fig-8.png").read_bytes()[:4] == b"\x89PNG"
    table = pd.read_csv(made / "tables" / "fig-8.csv")
    trained = table[table["model"] == "trained"]
    np.testing.assert_allclose(trained["accuracy"], shipped("demo/recurrence")["accuracy"].values)
    assert set(table["run"]) == {next(path for path in table["run"])}
    assert not [*made.rglob("*.tmp")] and (made / "report.html").stat().st_size < 2e6


def test_several_runs_stand_side_by_side(runs, tmp_path) -> None:
    both = (runs["good"], a_run(tmp_path / "B"))
    item = next(item for item in paper.ITEMS if item.number == "Fig 8")
    section = report.section_of(item, report.named(both), report.Folder(tmp_path / "out"))
    assert [part.title for part in section.parts] == ["", runs["good"].name, "B"]
    assert [len(part.pictures) for part in section.parts] == [1, 0, 0]
    assert set(pd.read_csv(tmp_path / "out" / "tables" / "fig-8.csv")["run"]) == {runs["good"].name, "B"}


# What it refuses


def test_a_result_of_another_checkpoint_never_passes_as_this_ones(page, runs) -> None:
    assert "is of another model: it was measured on the checkpoint 00000000" in page.text
    assert f"python -m probes.recurrence '{runs['other']}'" in page.text
    assert page.text.count("it is highest after") == 1  # of the good run alone
    assert "mine.nc is of another model" in page.text and "Beyond the paper" not in page.text


def test_a_damaged_result_is_a_sentence(page) -> None:
    assert "damaged/recurrence.nc is not a readable result" in page.text


def test_a_pruning_is_known_by_its_initialisation(tmp_path) -> None:
    for run in ("demo", "pruned"):
        path = RUNS / run / "ckpt.pt"
        assert results.init_sha256(path) == checkpoint.read(path)["init_sha256"]
    shutil.copy(RUNS / "pruned" / "prune_random.nc", tmp_path / "prune_random.nc")
    shutil.copy(RUNS / "pruned" / "ckpt.pt", tmp_path / "ckpt.pt")
    assert list(report.read(tmp_path, "mine").results) == ["prune_random"]
    shutil.copy(RUNS / "demo" / "ckpt.pt", tmp_path / "ckpt.pt")
    refused = report.read(tmp_path, "mine")
    assert not refused.results and "another model" in refused.refused["prune_random"]
    (tmp_path / "ckpt.pt").write_bytes(b"no archive")
    assert results.init_sha256(tmp_path / "ckpt.pt") == ""


def test_what_a_result_leads_to_is_a_sentence_and_not_the_end(tmp_path) -> None:
    run = a_run(tmp_path / "run")
    damaged = results.read(run / "recurrence.nc").drop_vars(["accuracy", "control_accuracy"])
    damaged.to_netcdf(run / "recurrence.nc", engine="h5netcdf")
    item = next(item for item in paper.ITEMS if item.number == "Fig 8")
    section = report.section_of(item, report.named((run,)), report.Folder(tmp_path))
    assert section.parts and all("could not be made of the result" in part.missing for part in section.parts)


def test_text_of_files_is_text(page, made) -> None:
    assert EVIL in page.text  # as it is written, not as a picture
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "strong", "div"}
    allowed |= {"table", "thead", "tbody", "tr", "th", "td", "nav", "ul", "li", "a", "main", "section", "figure"}
    assert {tag for tag, _ in page.tags} <= allowed | {"img", "pre"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:image/webp;base64,").startswith("data:image/webp;base64,")
        assert attributes.get("href", "#").startswith("#")
        assert tag != "img" or attributes["alt"]
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["{runs}/demo", "{runs}/demo"], "a run is named twice"),
        (["{runs}/demo", "--out", "{runs}/demo/ckpt.pt"], "ckpt.pt, a file; name a folder"),
        (["{runs}/demo-te", "--out", "{runs}/demo/ckpt.pt/sub"], "cannot be made a folder"),
    ],
)
def test_bad_input_is_one_sentence(words, said, command) -> None:
    code, _, heard = command("analyses.report", *(word.format(runs=RUNS) for word in words))
    assert (
        code == 2 and len(heard.splitlines()) == 1 and said in heard and heard.startswith("python -m analyses.report")
    )


def test_a_run_under_two_names_is_the_same_run(tmp_path) -> None:
    (tmp_path / "link").symlink_to(RUNS / "demo-te")
    for other in (tmp_path / "link", RUNS / ".." / RUNS.name / "demo-te"):
        with pytest.raises(ValueError, match="named twice"):
            report.named((RUNS / "demo-te", other))


def test_files_of_runs_with_like_names_lie_apart(tmp_path) -> None:
    names = ("a b", "a_b", os.fsdecode(b"a\xffb"), "new\nline", "x" * 250)
    folders = tuple(tmp_path / name for name in names)
    for folder in folders:
        folder.mkdir()
    runs = report.named(folders)
    assert len({report.plain(run.name) for run in runs}) == len(runs)
    assert all(run.name.isprintable() and len(run.name) <= report.LONGEST + 1 for run in runs)


@pytest.mark.parametrize(
    ("name", "value"), [("n_images", np.arange(3)), ("weights", np.arange(2)), ("source", 1), ("config", "[" * 10**5)]
)
def test_attributes_of_another_kind_are_a_sentence(name, value, tmp_path) -> None:
    run = report.read(a_run(tmp_path / "run", **{name: value}), "run")
    report.about(run), list(report.notes_of(run))
    assert name == "config" or f"its {name} is no" in run.refused["recurrence"]


def no_folder(out: Path) -> None:
    (out / "figures").write_text("mine")


def a_link(out: Path) -> None:
    (out / "tables").symlink_to(out.parent)


def of_somebody(out: Path) -> None:
    (out / "report.html").write_text("<html>mine")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(no_folder, "cannot be made a folder"), (a_link, "is a link"), (of_somebody, "was not written by this command")],
)
def test_what_cannot_be_written_is_refused_before_anything_is_drawn(spoil, said, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    spoil(out)
    monkeypatch.setattr(report, "section_of", lambda *args: pytest.fail("it drew"))
    with pytest.raises(ValueError, match=said):
        report.write((RUNS / "demo-te",), out)
    assert "mine" in "".join(path.read_text() for path in out.iterdir() if path.is_file()) or spoil is a_link


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "is intact"),
        (signal.SIGINT, 130, "stopped"),
        (signal.SIGTERM, 143, "stopped"),
    ],
)
def test_a_full_disk_and_a_stop_leave_the_page_before(end, code, said, runs, made, monkeypatch, command) -> None:
    def fails(*args) -> None:
        if isinstance(end, OSError):
            raise end
        signal.raise_signal(end)

    before = (made / "report.html").read_bytes()
    heard_before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
    monkeypatch.setattr(os, "replace", fails)
    monkeypatch.setattr(paper, "ITEMS", [item for item in paper.ITEMS if item.number == "Fig 8"])
    ended, _, heard = command("analyses.report", runs["good"], "--out", made)
    signal.signal(signal.SIGINT, heard_before)
    assert ended == code and said in heard.splitlines()[-1]
    assert (made / "report.html").read_bytes() == before and not [*made.rglob("*.tmp")]


# What is shipped


def test_the_shipped_report_says_what_the_shipped_results_say() -> None:
    path = RUNS.parent / "docs" / "report.html"
    content = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 4e6  # to send in a letter
    for item in paper.ITEMS:
        run = {"study": "study", "prune": "pruned"}.get(item.needs, "demo")
        of = {item.needs: study.read(RUNS / run) if run == "study" else shipped(f"{run}/{item.needs}")}
        if item.number != "Appendix G":  # whose controls lie in results of their own
            assert html.escape(item.says(of), quote=True).replace("&#x27;", "&#39;") in content, item.number


def test_it_opens_on_a_telephone_and_asks_nobody(browser) -> None:
    path, asked = RUNS.parent / "docs" / "report.html", []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("[...document.images].every(image => image.alt)") and page.locator("section").count() > 14
    assert [address for address in asked if not address.startswith("data:")] == [path.as_uri()]
    page.close()
