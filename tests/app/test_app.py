"""The pages of the dashboard on a tiny run: whole, with parts missing, with broken files, and with others' results."""

import base64
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from streamlit.testing.v1 import AppTest

from app import contents, results
from models import load, open_data
from models.checkpoint import save
from models.vit import BViT

MAIN = Path(results.__file__).with_name("navigation.py")
VIEWS = [page.view for page in contents.PAGES]
OF_PROBE = {page.view: page.needs[0] for page in contents.PAGES if page.needs and page.needs[0].holds}
OF_MODEL = [page.view for page in contents.PAGES if contents.CHECKPOINT in page.needs]

# altair, which streamlit imports, still speaks to narwhals and jsonschema in words that warn
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:altair", "ignore::DeprecationWarning:streamlit")


@pytest.fixture
def opened(monkeypatch):
    """Opens a page of the dashboard on a folder of runs, as a link with these parameters does."""

    # every AppTest looks for components through all packages installed, which takes longer than a page
    monkeypatch.setattr("streamlit.components.v2.manifest_scanner.scan_component_manifests", list, raising=False)

    def visit(runs: Path, view: str = VIEWS[0], **link: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(runs)])
        app = AppTest.from_file(str(MAIN), default_timeout=60)
        app.query_params |= {name: str(value) for name, value in link.items()}
        return app.run() if view == VIEWS[0] else turned_to(app, view)

    return visit


def turned_to(app: AppTest, view: str) -> AppTest:
    return app.switch_page(f"views/{view}.py").run()


def words(app: AppTest) -> str:
    """All text of a page and its sidebar."""
    kinds = (
        app.title,
        app.header,
        app.subheader,
        app.markdown,
        app.caption,
        app.info,
        app.warning,
        app.error,
        app.code,
    )
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def is_whole(app: AppTest) -> bool:
    return not (app.exception or app.error)


def complaint(app: AppTest) -> str:
    """The only error on the page: one line, and no traceback."""
    assert not app.exception
    assert len(app.error) == 1
    assert "\n" not in app.error[0].value
    return app.error[0].value


def changed(path: Path, **attributes: object) -> None:
    """Write a result anew with other attributes."""
    xr.load_dataset(path, engine="h5netcdf").assign_attrs(attributes).to_netcdf(path, engine="h5netcdf")


def curve(app: AppTest, said: str) -> list[float]:
    """The first line of the chart that says this."""
    chart = json.loads(next(chart.proto.spec for chart in app.get("plotly_chart") if said in chart.proto.spec))
    lines = [trace["y"] for trace in chart["data"] if trace.get("fill") != "toself"]
    return numbers(lines[0])


def numbers(values: object) -> list[float]:
    """A list as plotly stores it: plain or packed in base64."""
    if isinstance(values, list):
        return values
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()


# The table of contents


def test_every_view_is_in_the_table_and_every_page_has_its_view():
    assert sorted(VIEWS) == sorted(path.stem for path in (MAIN.parent / "views").glob("*.py"))
    assert len({page.title for page in contents.PAGES}) == len(VIEWS)


def test_every_result_is_of_one_command_that_names_its_probe():
    files = [result.file for result in contents.RESULTS]
    assert len(files) == len(set(files))
    for kind in OF_PROBE.values():
        assert kind.made_by(Path("runs/a")).startswith(f"python -m probes.{Path(kind.file).stem} ")


@pytest.mark.parametrize("view", VIEWS)
def test_a_page_shows_a_whole_run_without_a_complaint(view, tiny_runs, opened):
    app = opened(tiny_runs, view)
    assert is_whole(app) and app.title[0].value
    assert not [warning.value for warning in app.warning if "masks are noise" not in warning.value]
    assert app.get("plotly_chart") or view == "other"


def test_the_sidebar_says_what_is_here_and_what_makes_the_rest(runs, opened):
    app = opened(runs)
    assert "here: ckpt.pt, pointing_game.nc" in words(app) and "prune_swap.nc" in words(app)
    assert not any("missing" in caption.value for caption in app.caption)  # controls of pruning start from its rounds
    (runs / "tiny" / "rank.nc").unlink()
    (runs / "tiny" / "rounds").mkdir()
    made = [f"python -m probes.rank {runs}/tiny", f"python -m probes.prune --control shared --out {runs}/tiny"]
    said = opened(runs).code[0].value.splitlines()
    assert said[:2] == made and len(said) == 4


# The model's pages


def test_the_overview_counts_parameters_and_scores_every_state(tiny_runs, opened):
    app = opened(tiny_runs)
    model = load(tiny_runs / "tiny")
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.3f} M" in [metric.value for metric in app.metric]
    data = open_data("shapes-easy", like=model)
    chosen = [i * len(data) // 500 for i in range(500)]
    images, labels = torch.stack([data[i][0] for i in chosen]), torch.tensor([data[i][1] for i in chosen])
    with torch.no_grad():
        expected = [100 * (model(images, n_steps=k).argmax(-1) == labels).float().mean().item() for k in range(4)]
    assert curve(app, "read out") == pytest.approx(expected)


def test_moving_the_slider_runs_no_forward(tiny_runs, opened, monkeypatch):
    app = opened(tiny_runs, "steps", image=11)
    assert is_whole(app)
    calls = []
    monkeypatch.setattr(BViT, "forward", lambda self, *args, **options: calls.append(args))
    app.slider(key="step").set_value(1).run()
    assert is_whole(app) and "step 2 (blocks.1)" in words(app)
    assert calls == []


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


def test_a_run_whose_images_are_elsewhere_is_shown_from_its_results(runs, opened):
    save(runs / "tiny" / "ckpt.pt", load(runs / "tiny"), data="folder:nowhere", provenance={"seed": 0})
    changed(runs / "tiny" / "recurrence.nc", checkpoint_sha256=load(runs / "tiny").origin.sha256)
    for view in VIEWS:
        app = opened(runs, view)
        assert is_whole(app), view
        if view in OF_MODEL:
            assert "folder:nowhere is opened when you ask" in words(app)
            app.button(key="open data").click().run()
            assert "not here (folder:nowhere" in words(app)
    assert len(curve(opened(runs), "read out")) == 4


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
    assert is_whole(opened(runs))


def test_no_runs_at_all_names_the_training_command(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(tmp_path)])
    for folder in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(folder)])
        app = AppTest.from_file(str(MAIN), default_timeout=60).run()
        assert not app.exception
        assert "python -m models.train" in words(app) and str(folder) in words(app)


# The results' pages


@pytest.mark.parametrize("view", OF_PROBE)
def test_without_a_result_the_page_names_the_command(view, runs, opened):
    (runs / "tiny" / OF_PROBE[view].file).unlink()
    app = opened(runs, view)
    assert is_whole(app)
    assert any(code.value.startswith(f"python -m probes.{view} ") for code in app.main.code)


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
    assert is_whole(app) and "`elsewhere`, split val" in words(app)


def test_an_older_result_without_controls_is_shown_all_the_same(runs, opened):
    for kind in OF_PROBE.values():
        path = runs / "tiny" / kind.file
        result = xr.load_dataset(path, engine="h5netcdf")
        result.drop_vars([name for name in result if name.startswith("control_")]).to_netcdf(path, engine="h5netcdf")
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


# Text of files

HOSTILE = "![{}](http://elsewhere.example/a.png)"


def markdown_of(app: AppTest) -> str:
    """Everything on a page that Streamlit reads as Markdown."""
    kinds = (app.title, app.subheader, app.markdown, app.caption, app.info, app.warning, app.error)
    said = [str(element.value) for kind in kinds for element in kind]
    said += [image.caption for element in app.get("imgs") for image in element.proto.imgs]
    return "\n".join(said)


@pytest.mark.parametrize("view", ["pointing_game", "recurrence", "trajectories"])
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


def test_text_of_a_message_is_shown_word_for_word(runs, opened):
    (runs / "tiny" / "ckpt.pt").unlink()
    (runs / "tiny").rename(runs / "![a](b)")
    assert r"!\[a\](b)" in complaint(opened(runs))


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


# Links

LINKS = {
    "steps": dict(image=7, step=1, head=1),
    "pointing_game": dict(map="gradient", radius=15, target="any", average="macro", cell_step=1, cell_head=1),
    "rank": dict(site="CLS state", dimension="stable rank", centred="false"),
    "trajectories": dict(picture="PCA", colour="step", follow="7: cross checks"),
    "recurrence": dict(curve="entropy"),
    "intervention": dict(what="reinject"),
    "prune": dict(round=1, weight="fc1", shared="overlap"),
}


MEANS = {"CLS state": "cls", "stable rank": "stable_rank", "false": False, "PCA": "pca", "7: cross checks": 7}


def values(app: AppTest, keys: Sequence[str]) -> dict[str, object]:
    return {key: app.session_state[key] for key in keys if key in app.session_state}


@pytest.mark.parametrize("view", LINKS)
def test_what_a_link_names_is_shown_and_survives_a_change_of_page(view, tiny_runs, opened):
    named = {key: MEANS.get(value, value) for key, value in LINKS[view].items()}
    app = opened(tiny_runs, view, **LINKS[view])
    assert is_whole(app) and values(app, named) == named
    app = turned_to(turned_to(app, "overview"), view)
    assert is_whole(app) and values(app, named) == named


@pytest.mark.parametrize("view", LINKS)
def test_a_link_to_what_is_not_there_opens_the_page_all_the_same(view, tiny_runs, opened):
    plain = opened(tiny_runs, view, run="nowhere")
    assert is_whole(plain) and plain.selectbox(key="run").value == "tiny"
    for wrong in ("99999999999", "-1", "x", "", "--5", "²", "9" * 4400):
        app = opened(tiny_runs, view, **dict.fromkeys(LINKS[view], wrong))
        assert is_whole(app) and (not wrong or values(app, LINKS[view]) == values(plain, LINKS[view]))


def test_another_run_with_fewer_steps_keeps_what_it_can(tiny_runs, opened):
    shipped = MAIN.parents[1] / "runs"
    app = opened(shipped, "pointing_game", run="demo", cell_step=9, cell_head=2)
    assert app.session_state["cell_step"] == 9
    app.session_state["cell_step"] = 99
    assert is_whole(app.run()) and app.session_state["cell_step"] < 12 and app.session_state["cell_head"] == 2
