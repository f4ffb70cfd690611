"""The pages of the dashboard on a tiny run: whole, with parts missing, and with broken files."""

import json
import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest
from torch.utils.data import Subset

from app import live
from models import ViTConfig, open_data
from models.checkpoint import fresh, load, save
from models.errors import InputError
from models.vit import BViT
from probes import pointing_game, probe

MAIN = Path(live.__file__).with_name("main.py")
PAGES = ("views/overview.py", "views/steps.py", "views/pointing_game.py")

# altair, which streamlit imports, still speaks to narwhals and jsonschema in words that warn; plotly's export to numpy's
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:altair", "ignore::DeprecationWarning:streamlit")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A folder of runs that holds one: an untrained model of 3 steps and 2 heads, its log, and its pointing game on 40 images."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    data = open_data("shapes-easy")
    config = ViTConfig.preset("bvit_easy", n_steps=3, d_model=32, n_heads=2, n_classes=len(data.classes), classes=tuple(data.classes))
    save(run / "ckpt.pt", fresh(config, 0), data="shapes-easy", metrics={"top1": 0.05}, provenance={"seed": 0})
    (run / "train.jsonl").write_text('{"update": 1, "images": 64, "loss": 3.0}\n{"update": 2, "images": 128, "top1": 0.1}\n')
    model = load(run)
    images = Subset(open_data("shapes-easy", like=model), range(40))
    probe.save(pointing_game.measure(model, images, control=model, batch_size=20), run / "pointing_game.nc")
    return run.parent


@pytest.fixture
def runs(planted, tmp_path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(planted, tmp_path / "runs"))


@pytest.fixture
def opened(monkeypatch):
    """Opens a page of the dashboard on a folder of runs, as a link with these parameters does.

    AppTest runs a page other than the first without main.py, so the choice of the sidebar is put in its place.
    """

    def visit(runs: Path, page: str, **link: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["main.py", "--runs", str(runs)])
        app = AppTest.from_file(str(MAIN), default_timeout=60)
        for name, value in link.items():
            app.query_params[name] = str(value)
        app.run()
        if page == PAGES[0]:
            return app
        app.switch_page(page).session_state["run"] = "tiny"
        return app.run()

    return visit


def words(app: AppTest) -> str:
    """All text of a page."""
    kinds = (app.title, app.header, app.subheader, app.markdown, app.caption, app.info, app.error, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def complaint(app: AppTest) -> str:
    """The only error on the page: one line, and no traceback."""
    assert not app.exception
    assert len(app.error) == 1
    assert "\n" not in app.error[0].value
    return app.error[0].value


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_a_whole_run_without_a_complaint(page, planted, opened):
    app = opened(planted, page)
    assert not app.exception and not app.error
    assert app.title[0].value
    assert app.get("plotly_chart")


def test_the_overview_counts_parameters_and_scores_every_state(planted, opened):
    app = opened(planted, PAGES[0])
    model, data = load(planted / "tiny"), open_data("shapes-easy", like=load(planted / "tiny"))
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.3f} M" in [metric.value for metric in app.metric]
    chart = json.loads(next(c.proto.spec for c in app.get("plotly_chart") if "read out" in c.proto.spec))
    chosen = [i * len(data) // 500 for i in range(500)]
    images, labels = torch.stack([data[i][0] for i in chosen]), torch.tensor([data[i][1] for i in chosen])
    with torch.no_grad():
        expected = [100 * (model(images, n_steps=k).argmax(-1) == labels).float().mean().item() for k in range(4)]
    assert numbers(chart["data"][0]["y"]) == pytest.approx(expected)


def numbers(values: object) -> list[float]:
    """A list as plotly stores it: plain or packed in base64."""
    if isinstance(values, list):
        return values
    import base64

    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()


def test_a_link_opens_the_image_and_the_step_it_names(planted, opened):
    app = opened(planted, PAGES[1], image=7, step=1)
    assert app.number_input(key="image").value == 7
    assert "step 2 (blocks.1)" in words(app)


@pytest.mark.parametrize("link", [dict(image=10**9), dict(image=-1), dict(step=99), dict(step="x"), dict(head=77)])
def test_a_link_to_what_is_not_there_opens_the_page_all_the_same(link, planted, opened):
    for page in PAGES[1:]:
        app = opened(planted, page, **link)
        assert not app.exception and not app.error


def test_moving_the_slider_runs_no_forward(planted, opened, monkeypatch):
    app = opened(planted, PAGES[1], image=11)
    assert not app.exception
    calls = []
    monkeypatch.setattr(BViT, "forward", lambda self, *a, **k: calls.append(a))
    slider = next(s for s in [*app.slider, *app.select_slider] if s.key == "step")
    slider.set_value(1)
    app.session_state["run"] = "tiny"
    app.run()
    assert not app.exception and not app.error
    assert "step 2 (blocks.1)" in words(app)
    assert calls == []


def test_without_a_result_the_page_names_the_command(runs, opened):
    (runs / "tiny" / "pointing_game.nc").unlink()
    app = opened(runs, PAGES[2])
    assert not app.exception and not app.error
    assert any(code.value.startswith("python -m probes.pointing_game ") for code in app.code)


@pytest.mark.parametrize("content", [b"", b"not a result", None], ids=["empty", "text", "truncated"])
def test_a_broken_result_is_one_sentence(content, runs, opened):
    path = runs / "tiny" / "pointing_game.nc"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    assert "pointing_game.nc" in complaint(opened(runs, PAGES[2]))


def test_a_result_without_what_the_page_needs_is_one_sentence(runs, opened):
    import xarray as xr

    xr.Dataset({"other": ("x", [1.0])}).to_netcdf(runs / "tiny" / "pointing_game.nc", engine="h5netcdf")
    assert "pointing_game.nc" in complaint(opened(runs, PAGES[2]))


@pytest.mark.parametrize("page", PAGES[:2])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint"], ids=["empty", "text"])
def test_a_broken_checkpoint_is_one_sentence(content, page, runs, opened):
    (runs / "tiny" / "ckpt.pt").write_bytes(content)
    assert "ckpt.pt" in complaint(opened(runs, page))


@pytest.mark.parametrize("page", PAGES[:2])
def test_results_without_a_checkpoint_name_the_training_command(page, runs, opened):
    (runs / "tiny" / "ckpt.pt").unlink()
    app = opened(runs, page)
    assert not app.exception
    assert "python -m models.train" in words(app)
    assert not opened(runs, PAGES[2]).error


def test_a_half_written_line_of_the_log_is_left_out(runs, opened):
    with open(runs / "tiny" / "train.jsonl", "a") as log:
        log.write('{"update": 3, "ima')
    app = opened(runs, PAGES[0])
    assert not app.exception and not app.error


def test_a_link_to_a_run_that_is_not_there_opens_one_that_is(planted, opened):
    app = opened(planted, PAGES[0], run="nowhere")
    assert not app.exception and not app.error
    assert app.selectbox(key="run").value == "tiny"


def test_no_runs_at_all_names_the_training_command(tmp_path, opened):
    for folder in (tmp_path, tmp_path / "nowhere"):
        app = opened(folder, PAGES[0])
        assert not app.exception
        assert "python -m models.train" in words(app) or str(folder) in words(app)


def test_activations_that_are_not_finite_name_their_step(runs, opened):
    model = load(runs / "tiny")
    with torch.no_grad():
        model.core[0].mlp.fc2.bias[0] = torch.nan
    save(runs / "tiny" / "ckpt.pt", model, data="shapes-easy", provenance={"seed": 0})
    assert "step 1 (blocks.0)" in complaint(opened(runs, PAGES[1]))


def test_a_model_that_names_no_data_asks_for_an_upload(runs, opened):
    save(runs / "tiny" / "ckpt.pt", load(runs / "tiny"), provenance={"seed": 0})
    for page in PAGES[:2]:
        app = opened(runs, page)
        assert not app.exception
    assert "pload" in words(app)


def encoded(mode: str) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((90, 50), 60).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_an_upload_of_any_kind_becomes_the_model_s_input(mode, planted):
    model = load(planted / "tiny")
    image = np.asarray(live.from_upload(model, encoded(mode), "mine"))
    assert image.shape == (3, 32, 32) and np.isfinite(image).all()


def test_an_unreadable_upload_is_one_sentence_that_names_it(planted):
    with pytest.raises(InputError, match=r"mine\.png cannot be read as an image"):
        live.from_upload(load(planted / "tiny"), b"no picture", "mine.png")


def test_without_head_equals_the_plain_forward_with_that_head_s_columns_zeroed(planted):
    """A head's output reaches the stream through its columns of the output projection: zeroed there at a single step."""
    model = load(planted / "tiny")
    image = open_data("shapes-easy", like=model)[3][0]
    got = live.without_head(model, "planted", image.numpy(), 1, 0)
    with torch.no_grad():
        z = model.run_steps(model.embed(image[None]), 0, 1)
        weight = model.core[0].attn.proj.weight
        kept = weight.clone()
        weight[:, :16] = 0
        z = model.run_steps(z, 1, 2)
        weight.copy_(kept)
        expected = model.read_out(model.run_steps(z, 2, 3))[0].softmax(-1)
    assert got == pytest.approx(expected.numpy(), abs=1e-6)
