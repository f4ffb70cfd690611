"""The pages of the dashboard on a tiny run, whole and with parts missing."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr
from streamlit.testing.v1 import AppTest

from app import contents, idea, image, page
from models import load, open_data
from models.checkpoint import save
from models.vit import BViT

from .visits import MAIN, OF_MODEL, OF_PROBE, PATIENCE, VIEWS, changed, complaint, curve, is_whole, without_words, words

# The table of contents


def test_every_view_is_in_the_table_and_every_page_has_its_view():
    assert sorted(VIEWS) == sorted(path.stem for path in (MAIN.parent / "views").glob("*.py"))
    assert len({one.title for one in contents.PAGES}) == len(VIEWS)


def test_every_result_is_of_one_command_that_names_its_probe():
    files = [result.file for result in contents.RESULTS]
    assert len(files) == len(set(files))
    for kind in OF_PROBE.values():
        assert kind.made_by(Path("runs/a")).startswith(f"python -m probes.{Path(kind.file).stem} ")


@pytest.mark.parametrize("view", VIEWS)
def test_a_page_shows_a_whole_run_without_a_complaint(view, tiny_runs, opened):
    app = opened(tiny_runs, view)
    assert is_whole(app) and app.title[0].value and not without_words(app)
    assert not [warning.value for warning in app.warning if "masks are noise" not in warning.value]
    charts = len(app.get("plotly_chart")) - (view == "transplant")  # whose patches can be chosen from a list too
    assert charts > 0 or view in ("story", "other")
    assert charts == sum(button.label == "Table as CSV" for button in app.get("download_button"))
    clicked = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart") if chart.proto.selection_mode]
    listed = [figure["layout"]["selections"] for figure in clicked]  # without a list, clicks are lost: page.Clickable
    assert listed == [[]] * (view in ("pointing_game", "transplant"))


def test_the_sidebar_says_what_is_here_and_what_makes_the_rest(runs, opened):
    app = opened(runs)
    assert "here: ckpt.pt, pointing_game.nc" in words(app) and "prune_swap.nc" in words(app)
    assert not app.sidebar.get("popover")  # controls of pruning start from its rounds
    (runs / "tiny" / "rank.nc").unlink()
    (runs / "tiny" / "rounds").mkdir()
    made = [f"python -m probes.rank {runs}/tiny", f"python -m probes.prune --control shared --out {runs}/tiny"]
    said = opened(runs).code[0].value.splitlines()
    assert said[:2] == made and len(said) == 4


# The model's pages


def test_the_overview_counts_parameters_and_scores_every_state(runs, opened):
    (runs / "tiny" / "recurrence.nc").unlink()
    app = opened(runs, "overview")
    model = load(runs / "tiny")
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.3f} M" in [metric.value for metric in app.metric]
    data = open_data("shapes-easy", like=model)
    chosen = [i * len(data) // 500 for i in range(500)]
    images, labels = torch.stack([data[i][0] for i in chosen]), torch.tensor([data[i][1] for i in chosen])
    with torch.no_grad():
        expected = [100 * (model(images, n_steps=k).argmax(-1) == labels).float().mean().item() for k in range(4)]
    assert curve(app, "read out") == pytest.approx(expected)


def test_the_overview_shows_the_sweep_that_was_stored_unless_it_is_of_another_model_or_of_other_data(runs, opened):
    path = runs / "tiny" / "recurrence.nc"
    sweep = xr.load_dataset(path, engine="h5netcdf")
    sweep["accuracy"][:] = 0.25
    sweep.to_netcdf(path, engine="h5netcdf")
    assert curve(opened(runs, "overview"), f"top-1 of {sweep.sizes['image']} images") == [25.0] * 4
    for other in ({"data": "shapes"}, {"split": "train"}, {"checkpoint_sha256": "0" * 64}):
        changed(path, **{name: sweep.attrs[name] for name in ("data", "split", "checkpoint_sha256")} | other)
        assert curve(opened(runs, "overview"), "top-1 of 500 images") != [25.0] * 4


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("blocks", "steps", "said"), [(1, 12, "× 12"), (3, 12, "over 12 steps"), (12, 12, "")])
def test_the_picture_of_the_model_says_how_often_a_block_is_passed(blocks, steps, said, dark):
    drawn = ElementTree.fromstring(idea.picture(blocks, steps, dark=dark))
    kinds = Counter(part.tag.rpartition("}")[2] for part in drawn)
    words = [part.text for part in drawn if part.text]
    assert kinds["circle"] == steps and ("one block" if blocks == 1 else f"{blocks} blocks") in words
    assert said in words if said else not [word for word in words if "steps" in word]


def test_moving_the_slider_runs_no_forward(tiny_runs, opened, monkeypatch):
    app = opened(tiny_runs, "steps", image=11)
    assert is_whole(app)
    calls = []
    monkeypatch.setattr(BViT, "forward", lambda self, *args, **options: calls.append(args))
    app.slider(key="step").set_value(1).run()
    assert is_whole(app) and "step 2 (blocks.1)" in words(app)
    assert calls == []


def test_a_figure_is_drawn_once_for_all_visitors_and_anew_for_other_values():
    drawn = []

    def draw(values, *, step):
        drawn.append(step)
        return go.Figure(go.Scatter(y=values * step))

    first, again = (page.drawn(draw, np.arange(3.0), step=2) for _ in range(2))
    assert again is first and drawn == [2] and list(first.data[0].y) == [0, 2, 4]
    assert list(page.drawn(draw, np.arange(3.0), step=3).data[0].y) == [0, 3, 6]
    assert list(page.drawn(draw, np.arange(3.0) + 1, step=2).data[0].y) == [2, 4, 6]
    assert drawn == [2, 3, 2]


def test_what_a_number_is_read_beside_is_no_markdown():
    def shown():
        import streamlit as st

        from app import page

        page.metric(st, "never fire", "3 %", "L0 ![x](https://example.org/x.png)")

    app = AppTest.from_function(shown).run()
    assert app.metric[0].value == "3 %" and app.caption[0].value == r"L0 !\[x\](https://example.org/x.png)"


def test_a_head_switched_off_is_told_and_can_be_switched_on_again(tiny_runs, opened):
    app = opened(tiny_runs, "steps", head=1)
    assert "the answer is now" in words(app)
    app.get("button_group")[0].set_value([]).run()
    assert is_whole(app) and "the answer is now" not in words(app)


def test_activations_that_are_not_finite_name_their_step(runs, opened):
    model = load(runs / "tiny")
    with torch.no_grad():
        model.core[0].mlp.fc2.bias[0] = torch.nan
    save(runs / "tiny" / "ckpt.pt", model, data="shapes-easy", provenance={"seed": 0})
    assert "step 1 (blocks.0)" in complaint(opened(runs, "steps"))


def test_a_model_that_names_no_data_asks_for_an_upload(runs, opened):
    save(runs / "tiny" / "ckpt.pt", load(runs / "tiny"), provenance={"seed": 0})
    assert not opened(runs).exception
    assert "pload" in words(opened(runs, "steps"))
    app = opened(runs, "transplant")
    assert {app.selectbox(key=key).value for key in ("sample", "donor", "unrelated")} == set(image.SAMPLES)


def test_the_overview_of_a_stack_says_nothing_of_shared_weights(runs, opened):
    shared = opened(runs, "overview")
    assert "same at every step" in words(shared) and "stacked ViT" in [metric.label for metric in shared.metric]
    model = load(runs / "tiny")
    stack = BViT(replace(model.config, n_blocks=model.config.n_steps))
    save(runs / "tiny" / "ckpt.pt", stack, data="shapes-easy", provenance={"seed": 0})
    stacked = opened(runs, "overview")
    assert "This model has 3 blocks" in words(stacked)
    assert "same at every step" not in words(stacked)
    assert "stacked ViT" not in [metric.label for metric in stacked.metric]


def test_a_part_of_a_page_that_fails_is_one_sentence_and_the_rest_is_there():
    def script():
        import streamlit as st

        from app import page
        from models.errors import InputError

        @page.part
        def broken():
            raise InputError("that part is damaged")

        broken()
        st.write("the rest")

    app = AppTest.from_function(script).run()
    assert complaint(app) == "that part is damaged" and app.markdown[-1].value == "the rest"


def test_a_run_whose_images_are_elsewhere_is_shown_from_its_results(runs, opened):
    save(runs / "tiny" / "ckpt.pt", load(runs / "tiny"), data="folder:nowhere", provenance={"seed": 0})
    changed(runs / "tiny" / "recurrence.nc", checkpoint_sha256=load(runs / "tiny").origin.sha256, weights="raw")
    for view in VIEWS:
        app = opened(runs, view)
        assert is_whole(app), view
        if view in OF_MODEL:
            assert "folder:nowhere is opened when you ask" in words(app)
            app.button(key="open data").click().run()
            assert "not here (folder:nowhere" in words(app)
    changed(runs / "tiny" / "recurrence.nc", data="folder:nowhere")
    assert len(curve(opened(runs, "overview"), "read out")) == 4


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"], ids=["empty", "text"])
def test_a_broken_checkpoint_is_one_sentence_where_it_is_needed(content, runs, opened):
    (runs / "tiny" / "ckpt.pt").write_bytes(content)
    for view in OF_MODEL:
        assert "ckpt.pt" in complaint(opened(runs, view))
    assert is_whole(opened(runs, "prune"))


def test_results_without_a_checkpoint_are_shown_and_the_rest_names_the_training_command(runs, opened):
    (runs / "tiny" / "ckpt.pt").unlink()
    for view in VIEWS:
        app = opened(runs, view)
        assert not app.exception and bool(app.error) == (view in OF_MODEL)
        assert "python -m models.train" in words(app)


def test_a_half_written_line_of_the_log_is_left_out(runs, opened):
    with open(runs / "tiny" / "train.jsonl", "a") as log:
        log.write('{"update": 3, "about": {"ima": 1}')
    assert is_whole(opened(runs, "overview"))


def test_no_runs_at_all_names_the_training_command(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(tmp_path)])
    for folder in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(folder)])
        app = AppTest.from_file(str(MAIN), default_timeout=PATIENCE).run()
        assert not app.exception
        assert "python -m models.train" in words(app) and str(folder) in words(app)
