"""The pages of results: without one, with a broken one, with others', and those that have no page of their own."""

import os
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from app import page, results
from models import load
from models.checkpoint import save

from .visits import MAIN, OF_PROBE, changed, complaint, curve, is_whole, turned_to, words

# The results' pages


@pytest.mark.parametrize("view", OF_PROBE)
def test_without_a_result_the_page_names_the_command(view, runs, opened):
    (runs / "tiny" / OF_PROBE[view].file).unlink()
    app = opened(runs, view)
    assert is_whole(app)
    assert any(code.value.startswith(f"python -m probes.{view} ") for code in app.main.code)


def test_a_result_that_was_measured_anew_is_drawn_anew(runs, opened):
    """Also one of the same size that was copied with its time."""
    path = runs / "tiny" / "prune.nc"
    about = path.stat()
    before = curve(opened(runs, "prune"), '"step 1"')
    result = xr.load_dataset(path, engine="h5netcdf")
    result["specialization"] = result["specialization"] / 2 + 0.1
    result.to_netcdf(path, engine="h5netcdf")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert np.allclose(curve(opened(runs, "prune"), '"step 1"'), np.array(before) / 2 + 10)


class DrawnAnew(Exception):
    """Stands for the end of a run that another follows."""


def test_a_part_of_a_page_is_never_of_another_file_than_the_rest(runs, monkeypatch):
    """A part is drawn by itself when its slider moves; the numbers around it are of the file before."""

    def anew():
        raise DrawnAnew

    session = {"run": "tiny"}
    monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(runs)])
    for name, stands_in in (("session_state", session), ("rerun", anew), ("caption", print)):
        monkeypatch.setattr(results.st, name, stands_in)
    kind = OF_PROBE["dictionary"]
    results.required(kind, "")
    assert results.drawn(kind, size_of) == results.drawn(kind, size_of) > 1
    changed(runs / "tiny" / kind.file, note="measured anew")
    with pytest.raises(DrawnAnew):
        results.drawn(kind, size_of)
    results.required(kind, "")
    assert results.drawn(kind, size_of) > 1


def size_of(result: xr.Dataset) -> int:
    return result.sizes["feature"]


@pytest.mark.parametrize("view", OF_PROBE)
def test_a_broken_result_is_one_sentence_with_the_command(view, runs, opened):
    kind, path = OF_PROBE[view], runs / "tiny" / OF_PROBE[view].file
    whole = path.read_bytes()
    for content in (b"", b"not a result", whole[:2000]):
        path.write_bytes(content)
        said = complaint(opened(runs, view))
        assert kind.file in said and f"python -m probes.{view}" in said
    xr.Dataset({"other": ("x", [1.0])}).to_netcdf(path, engine="h5netcdf")
    said = complaint(opened(runs, view))
    assert f"{kind.file} has no variable {kind.holds}" in said and f"python -m probes.{view}" in said


def test_what_a_page_meets_by_surprise_is_one_sentence_too(runs, opened):
    path = runs / "tiny" / "recurrence.nc"
    xr.load_dataset(path, engine="h5netcdf").drop_vars("exit_steps").to_netcdf(path, engine="h5netcdf")
    assert "exit_steps" in complaint(opened(runs, "recurrence"))


@pytest.mark.parametrize("view", ["neurons", "trajectories", "pointing_game"])
def test_a_result_made_without_pixels_says_where_the_images_are(view, runs, opened):
    path = runs / "tiny" / f"{view}.nc"
    result = xr.load_dataset(path, engine="h5netcdf").assign_attrs(data="elsewhere")
    pixels = [name for name in result if "thumbnail" in name or name in ("shown", "shown_as")]
    result.drop_vars(pixels).to_netcdf(path, engine="h5netcdf")
    app = opened(runs, view)
    assert is_whole(app) and "elsewhere, split val" in words(app)


def test_neurons_that_cannot_be_opened_are_listed_apart_with_the_command_that_opens_them(tiny_runs, opened):
    app = opened(tiny_runs, "neurons")
    offered, table = [int(option) for option in app.selectbox(key="neuron").options], app.table[0].value
    parts = {name: {int(unit) for cell in table[name] for unit in re.findall("[0-9]+", cell)} for name in table}
    assert parts["opened above"] <= set(offered) and parts["no pictures yet"].isdisjoint(offered)
    named = re.fullmatch(r"python -m probes.neurons \S+ --neurons ([0-9,]+)", app.main.code[-1].value)[1].split(",")
    assert [int(unit) for unit in named[:-1]] == offered and int(named[-1]) in parts["no pictures yet"]


def test_an_older_result_without_controls_is_shown_all_the_same(runs, opened):
    for kind in OF_PROBE.values():
        with h5py.File(runs / "tiny" / kind.file, "r+") as result:
            for name in [name for name in result if name.startswith("control_")]:
                del result[name]
    for path in (runs / "tiny").glob("prune_*.nc"):
        path.unlink()
    for view in OF_PROBE:
        assert is_whole(opened(runs, view)), view


def test_the_results_that_come_with_the_repository_are_shown(opened):
    """They were written by an earlier version; one page each, the others are the same code."""
    shipped = MAIN.parents[1] / "runs"
    app = opened(shipped, "recurrence", run="demo")
    for view, run in (("pointing_game", "demo"), ("neurons", "photos"), ("rank", "demo"), ("prune", "pruned")):
        app.selectbox(key="run").set_value(run).run()
        assert is_whole(turned_to(app, view)) and app.get("plotly_chart") and not app.warning, view


def test_the_pruning_page_follows_its_slider(tiny_runs, opened):
    result = xr.load_dataset(tiny_runs / "tiny" / "prune.nc", engine="h5netcdf")
    app = opened(tiny_runs, "prune", round=0)
    for number in (0, 2):
        app.select_slider(key="round").set_value(number).run()
        kept = f"{100 * float(result['density'].sel({'round': number}).mean()):.1f} %"
        assert kept in [metric.value for metric in app.metric]


# Whose results they are


@pytest.mark.parametrize("view", OF_PROBE)
def test_a_result_of_another_model_is_never_shown_as_this_one_s(view, runs, opened):
    kind, path = OF_PROBE[view], runs / "tiny" / OF_PROBE[view].file
    changed(path, **{kind.identity: "0123456789abcdef"})
    app = opened(runs, view)
    here = results.sha256(runs / "tiny") if kind.identity == "checkpoint_sha256" else load(runs / "tiny", "init")
    here = here if isinstance(here, str) else results.init_sha256(runs / "tiny")
    warning = app.warning[0].value
    assert is_whole(app) and "01234567" in warning and here[:8] in warning and here[8:12] not in warning
    assert kind.made_by(runs / "tiny") in [code.value for code in app.main.code]


def test_a_checkpoint_that_was_trained_on_is_another_model(runs, opened):
    model = load(runs / "tiny")
    assert not opened(runs, "recurrence").warning
    with torch.no_grad():
        model.core[0].mlp.fc2.bias[0] += 1
    save(runs / "tiny" / "ckpt.pt", model, data="shapes-easy", provenance={"seed": 0})
    assert "another model" in opened(runs, "recurrence").warning[0].value


def test_the_model_at_another_image_size_is_no_other_model(runs, opened):
    changed(runs / "tiny" / "recurrence.nc", source="runs/tiny at 48 px", checkpoint_sha256="0" * 64)
    app = opened(runs, "recurrence")
    assert is_whole(app) and not app.warning and "at 48 px" in words(app)


@pytest.mark.parametrize("weights", ["ema", "raw", "init"])
def test_a_result_says_which_weights_it_is_of_and_aloud_that_they_are_untrained(weights, runs, opened):
    changed(runs / "tiny" / "rank.nc", weights=weights)
    app = opened(runs, "rank")
    assert is_whole(app) and f"({weights} weights)" in words(app)
    assert ["**untrained**" in warning.value for warning in app.warning] == [True] * (weights == "init")


def test_a_saved_page_says_whose_its_numbers_are(runs, opened, monkeypatch):
    saved = {}
    monkeypatch.setattr(page, "download", lambda label, content, file, kind: saved.update({file: content()}))
    changed(runs / "tiny" / "rank.nc", weights="init", checkpoint_sha256="0123456789")
    app = turned_to(turned_to(opened(runs, "rank"), "trajectories"), "steps")
    assert is_whole(app) and "(init weights), shapes-easy val" in saved["rank.html"]
    assert "it was measured on the checkpoint 01234567" in saved["rank.html"]
    assert "<h1>Trajectories: tiny</h1>" in saved["trajectories.html"] and "(ema weights)" in saved["trajectories.html"]
    assert "of the run tiny</p>" in saved["attention.html"]


@pytest.mark.parametrize("about", [dict(weights="init"), dict(source="tiny at 48 px", checkpoint_sha256="0" * 64)])
def test_a_sweep_of_other_weights_or_of_another_size_does_not_stand_for_the_model(about, runs, opened):
    path = runs / "tiny" / "recurrence.nc"
    result = xr.load_dataset(path, engine="h5netcdf")
    measured = curve(opened(runs, "overview"), "read out")
    result["accuracy"] = 0 * result["accuracy"] + 0.77
    result.to_netcdf(path, engine="h5netcdf")
    assert curve(opened(runs, "overview"), "read out") == [77.0] * 4 != measured
    changed(path, **about)
    app = opened(runs, "overview")
    assert is_whole(app) and 77.0 not in curve(app, "read out")


@pytest.mark.parametrize(
    "about, said", [(dict(checkpoint_sha256="0123456789"), "01234567"), (dict(weights="init"), "**untrained**")]
)
def test_results_side_by_side_say_whose_they_are(about, said, runs, opened):
    shutil.copytree(runs / "tiny", runs / "two")
    link = {"run": "tiny", "with": "two", "probe": "recurrence"}
    assert not opened(runs, "compare", **link).warning
    changed(runs / "two" / "recurrence.nc", **about)
    app = opened(runs, "compare", **link)
    assert is_whole(app) and len(app.warning) == 1 and said in app.warning[0].value


def test_a_run_is_never_taken_for_another_one_untrained(runs, opened):
    model = load(runs / "tiny")
    model.head.bias.data[7] = 100
    save(runs / "tiny untrained" / "ckpt.pt", model, data="shapes-easy", provenance={"seed": 0})
    app = opened(runs, "compare", run="tiny", **{"with": "tiny untrained"})
    assert app.selectbox(key="with").options == ["tiny untrained", "tiny untrained untrained"]
    assert is_whole(app) and app.metric[1].value == model.config.classes[7]


def test_a_control_of_another_pruning_is_not_drawn(runs, opened):
    changed(runs / "tiny" / "prune_random.nc", plan="{}")
    app = opened(runs, "prune")
    assert is_whole(app) and "prune_random.nc is of another pruning" in app.warning[0].value
    charts = [chart.proto.spec for chart in app.get("plotly_chart")]
    assert not any('"random"' in chart and "just cut" in chart for chart in charts)


# Results without a page


@pytest.fixture
def own_result(runs) -> Path:
    """What a probe of ten lines leaves, as in the head of probes/probe.py."""
    path = runs / "tiny" / "length.nc"
    attrs = dict(checkpoint_sha256=results.sha256(runs / "tiny"), source="runs/tiny", weights="ema", data="shapes-easy")
    numbers = {"length": ("step", [1.0, 2.5, 3.0]), "control_length": ("step", [1.0, 1.0, 1.25])}
    maps = {"spread": (("step", "head"), np.arange(6.0).reshape(3, 2)), "words": ("image", ["a", "b"])}
    xr.Dataset(numbers | maps, attrs=attrs | dict(command="python mine.py runs/tiny")).to_netcdf(
        path, engine="h5netcdf"
    )
    return path


def test_a_result_of_a_probe_of_one_s_own_gets_a_page(own_result, runs, opened):
    app = opened(runs, "other")
    assert is_whole(app) and not app.warning
    assert "length.nc" in words(app) and "step 3 (blocks.2)" in words(app) and "untrained" in words(app)
    assert curve(app, "untrained") == [1.0, 2.5, 3.0]
    assert [button.label for button in app.get("download_button")] == ["Save as HTML", "Table as CSV"]
    app.selectbox(key="variable").set_value("spread").run()
    assert is_whole(app) and "heatmap" in app.get("plotly_chart")[0].proto.spec


def test_it_is_held_against_the_checkpoint_as_well(own_result, runs, opened):
    changed(own_result, checkpoint_sha256="0123456789")
    app = opened(runs, "other")
    assert "01234567" in app.warning[0].value and "python mine.py runs/tiny" in words(app)


def test_several_are_chosen_from_and_one_that_cannot_be_read_is_one_sentence(own_result, runs, opened):
    xr.Dataset({"score": ((), 0.5)}).to_netcdf(runs / "tiny" / "alone.nc", engine="h5netcdf")
    (runs / "tiny" / "broken.nc").write_bytes(b"no result")
    app = opened(runs, "other")
    assert app.selectbox(key="result").options == ["alone.nc", "broken.nc", "length.nc"]
    assert is_whole(app) and "score" in words(app)  # without a figure: nothing runs over steps
    app.selectbox(key="result").set_value("broken.nc").run()
    assert "broken.nc is not a readable result" in complaint(app)
