"""The pages of the dashboard on a tiny run: whole, with parts missing, and with broken files."""

import json
import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import live
from models import load, open_data
from models.checkpoint import save
from models.errors import InputError
from models.vit import BViT

MAIN = Path(live.__file__).with_name("main.py")
PAGES = ("views/overview.py", "views/steps.py", "views/pointing_game.py")
NEEDED = {
    "pointing_game": "hit_ratio",
    "neurons": "picture",
    "rank": "k95",
    "trajectories": "pacmap",
    "recurrence": "accuracy",
    "prune": "jaccard",
}
ALL_PAGES = (*PAGES[:2], *(f"views/{name}.py" for name in NEEDED))

# altair, which streamlit imports, still speaks to narwhals and jsonschema in words that warn; plotly's export to
# numpy's
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:altair", "ignore::DeprecationWarning:streamlit")


@pytest.fixture
def runs(tiny_runs, tmp_path) -> Path:
    """A copy of the tiny run to break."""
    return Path(shutil.copytree(tiny_runs, tmp_path / "runs"))


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


@pytest.mark.parametrize("page", ALL_PAGES)
def test_a_page_shows_a_whole_run_without_a_complaint(page, tiny_runs, opened):
    app = opened(tiny_runs, page)
    assert not app.exception and not app.error
    assert app.title[0].value
    assert app.get("plotly_chart")


def test_the_overview_counts_parameters_and_scores_every_state(tiny_runs, opened):
    app = opened(tiny_runs, PAGES[0])
    model, data = load(tiny_runs / "tiny"), open_data("shapes-easy", like=load(tiny_runs / "tiny"))
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


def test_a_link_opens_the_image_and_the_step_it_names(tiny_runs, opened):
    app = opened(tiny_runs, PAGES[1], image=7, step=1)
    assert app.number_input(key="image").value == 7
    assert "step 2 (blocks.1)" in words(app)


@pytest.mark.parametrize("link", [dict(image=10**9), dict(image=-1), dict(step=99), dict(step="x"), dict(head=77)])
def test_a_link_to_what_is_not_there_opens_the_page_all_the_same(link, tiny_runs, opened):
    for page in PAGES[1:]:
        app = opened(tiny_runs, page, **link)
        assert not app.exception and not app.error


def test_moving_the_slider_runs_no_forward(tiny_runs, opened, monkeypatch):
    app = opened(tiny_runs, PAGES[1], image=11)
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


@pytest.mark.parametrize("probe", NEEDED)
def test_without_a_result_the_page_names_the_command(probe, runs, opened):
    (runs / "tiny" / f"{probe}.nc").unlink()
    app = opened(runs, f"views/{probe}.py")
    assert not app.exception and not app.error
    assert any(code.value.startswith(f"python -m probes.{probe} ") for code in app.code)


@pytest.mark.parametrize("probe", NEEDED)
@pytest.mark.parametrize("content", [b"", b"not a result", None], ids=["empty", "text", "truncated"])
def test_a_broken_result_is_one_sentence(content, probe, runs, opened):
    path = runs / "tiny" / f"{probe}.nc"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    assert f"{probe}.nc" in complaint(opened(runs, f"views/{probe}.py"))


@pytest.mark.parametrize("probe", NEEDED)
def test_a_result_without_what_the_page_needs_is_one_sentence(probe, runs, opened):
    xr.Dataset({"other": ("x", [1.0])}).to_netcdf(runs / "tiny" / f"{probe}.nc", engine="h5netcdf")
    said = complaint(opened(runs, f"views/{probe}.py"))
    assert f"{probe}.nc has no variable {NEEDED[probe]}" in said and f"python -m probes.{probe}" in said


@pytest.mark.parametrize("probe", ["neurons", "trajectories"])
def test_a_result_made_without_pixels_says_where_the_images_are(probe, runs, opened):
    path = runs / "tiny" / f"{probe}.nc"
    result = xr.load_dataset(path, engine="h5netcdf").drop_vars(["shown", "thumbnail"]).assign_attrs(data="elsewhere")
    result.to_netcdf(path, engine="h5netcdf")
    app = opened(runs, f"views/{probe}.py")
    assert not app.exception and not app.error
    assert "`elsewhere`, split val" in words(app)


def test_an_older_result_without_controls_is_shown_all_the_same(runs, opened):
    for probe in NEEDED:
        path = runs / "tiny" / f"{probe}.nc"
        result = xr.load_dataset(path, engine="h5netcdf")
        result.drop_vars([name for name in result if name.startswith("control_")]).to_netcdf(path, engine="h5netcdf")
    for path in (runs / "tiny").glob("prune_*.nc"):
        path.unlink()
    for probe in NEEDED:
        app = opened(runs, f"views/{probe}.py")
        assert not app.exception and not app.error, probe


def test_the_pruning_page_follows_its_slider(tiny_runs, opened):
    result = xr.load_dataset(tiny_runs / "tiny" / "prune.nc", engine="h5netcdf")
    for number in (0, 2):
        app = opened(tiny_runs, "views/prune.py", round=number)
        kept = f"{100 * float(result['density'].sel({'round': number}).mean()):.1f} %"
        assert kept in [metric.value for metric in app.metric]


def test_a_link_follows_one_image_through_the_picture(tiny_runs, opened):
    app = opened(tiny_runs, "views/trajectories.py", follow=7, picture="pca", colour="step")
    assert not app.exception and not app.error
    assert app.selectbox(key="follow").value == 7 and app.selectbox(key="picture").value == "pca"


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


def test_a_link_to_a_run_that_is_not_there_opens_one_that_is(tiny_runs, opened):
    app = opened(tiny_runs, PAGES[0], run="nowhere")
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
def test_an_upload_of_any_kind_becomes_the_model_s_input(mode, tiny_runs):
    model = load(tiny_runs / "tiny")
    image = np.asarray(live.from_upload(model, encoded(mode), "mine"))
    assert image.shape == (3, 32, 32) and np.isfinite(image).all()


def test_an_unreadable_upload_is_one_sentence_that_names_it(tiny_runs):
    with pytest.raises(InputError, match=r"mine\.png cannot be read as an image"):
        live.from_upload(load(tiny_runs / "tiny"), b"no picture", "mine.png")


def test_without_head_equals_the_plain_forward_with_that_head_s_columns_zeroed(tiny_runs):
    """A head's output reaches the stream through its columns of the output projection: zeroed there at a single step."""
    model = load(tiny_runs / "tiny")
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


def test_a_run_whose_images_are_elsewhere_is_shown_from_its_results(runs, opened):
    save(runs / "tiny" / "ckpt.pt", load(runs / "tiny"), data="folder:nowhere", provenance={"seed": 0})
    changed = load(runs / "tiny").origin.sha256
    path = runs / "tiny" / "recurrence.nc"
    xr.load_dataset(path, engine="h5netcdf").assign_attrs(checkpoint_sha256=changed).to_netcdf(path, engine="h5netcdf")
    for page in ALL_PAGES:
        app = opened(runs, page)
        assert not app.exception and not app.error
        if page in PAGES[:2]:
            assert "not here (folder:nowhere" in words(app)
    overview = opened(runs, PAGES[0])
    chart = json.loads(next(c.proto.spec for c in overview.get("plotly_chart") if "read out" in c.proto.spec))
    assert len(numbers(chart["data"][0]["y"])) == 4
