"""Run with: pytest tests/probes/test_trajectories.py"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models import ViTConfig, checkpoint, open_data
from models.checkpoint import fresh
from models.errors import InputError
from models.origin import Origin
from probes import trajectories as probe
from probes.probe import Pass

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)

# PaCMAP's words about its seed and sizes go through logging; what remains are its dependencies' deprecations
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data():
    return torch.utils.data.Subset(open_data("shapes-easy", like=CONFIG), range(0, 120, 2))


@pytest.fixture(scope="module")
def model():
    model = fresh(CONFIG, 0).eval()
    model.origin = Origin("planted")
    return model


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=model, batch_size=16)


@pytest.fixture(scope="module")
def states(model, data) -> np.ndarray:
    """CLS states [image state d] from a full cache."""
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.stack([data[i][0] for i in range(len(data))]))
    stream = [cache["resid_pre", 0], *(cache["resid_post", t] for t in range(3))]
    return torch.stack([z[:, 0] for z in stream], 1).numpy()


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(model, data, result) -> None:
    again = probe.measure(model, data, control=model, batch_size=16)
    assert again.drop_attrs().identical(result.drop_attrs())
    other = probe.measure(model, data, batch_size=16, seed=1)
    assert (other["pacmap"] != result["pacmap"]).any() and np.allclose(other["pca"], result["pca"])


def test_pca_is_one_joint_svd_of_all_points(result, states) -> None:
    rows = np.concatenate([states[:1, 0], states[:, 1:].reshape(-1, 16)]).astype(np.float64)
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    found = result["pca"].values[:, 1:].reshape(-1, 2)
    expected = (u * s)[1:, :2]
    signs = np.sign((found * expected).sum(0))
    assert np.allclose(found, expected * signs, atol=1e-4 * s[0] / np.sqrt(len(rows)))
    assert np.allclose(result["explained"], (s**2 / (s**2).sum())[:2], rtol=1e-4)


def test_the_cls_state_before_the_first_step_is_one_point(result) -> None:
    for picture in ("pacmap", "pca"):
        assert (result[picture].sel(state=0) == result[picture].sel(state=0)[0]).all()
        assert len(np.unique(result[picture].sel(state=1).values, axis=0)) == 60


def test_a_point_that_all_images_share_has_no_neighbours(result) -> None:
    for name in ("purity", "kept", "control_purity"):
        assert result[name].sel(state=0).isnull().all() and result[name].sel(state=slice(1, None)).notnull().all()


def test_one_fit_places_all_states(monkeypatch, states) -> None:
    import pacmap

    fitted = []
    whole = pacmap.PaCMAP.fit_transform
    monkeypatch.setattr(
        pacmap.PaCMAP,
        "fit_transform",
        lambda self, rows, **options: fitted.append(len(rows)) or whole(self, rows, **options),
    )
    assert probe.pacmap_of(states, 10, 0).shape == (60, 4, 2)
    assert fitted == [1 + 60 * 3]


def test_neighbours_share_a_label_as_often_as_a_search_by_hand_finds(result, states) -> None:
    labels = result["label"].values
    for k in (1, 3):
        distance = ((states[:, None, k].astype(np.float64) - states[None, :, k]) ** 2).sum(-1)
        np.fill_diagonal(distance, np.inf)
        near = np.argsort(distance, 1)[:, :10]
        expected = np.mean([labels[j] == labels[i] for i in range(60) for j in near[i]])
        assert float(result["purity"].sel(space="states", state=k)) == pytest.approx(expected, abs=2 / 600)
        assert float(result["control_purity"].sel(state=k)) == pytest.approx(expected, abs=2 / 600)
        points = result["pca"].sel(state=k).values.astype(np.float64)
        flat = ((points[:, None] - points[None]) ** 2).sum(-1)
        np.fill_diagonal(flat, np.inf)
        still = np.mean([j in np.argsort(flat[i])[:10] for i in range(60) for j in near[i]])
        assert float(result["kept"].sel(picture="pca", state=k)) == pytest.approx(still, abs=4 / 600)


def test_the_mean_token_is_the_mean_of_the_patches(model, data, states) -> None:
    with torch.no_grad():
        z = model.embed(torch.stack([data[i][0] for i in range(len(data))]))
    of_token = {token: Pass(data, 7).over(lambda b, t=token: probe.read(model, b, t)) for token in ("mean", "cls")}
    assert np.allclose(of_token["mean"]["states"][:, 0], z[:, CONFIG.n_prefix :].mean(1), atol=1e-6)
    assert np.allclose(of_token["cls"]["states"], states, atol=1e-5)
    found = probe.measure(model, data, token="mean", thumbnails=False)
    assert found.attrs["token"] == "mean" and not (found["pca"].sel(state=0) == found["pca"].sel(state=0)[0]).all()
    assert "thumbnail" not in found


def test_thumbnails_are_the_images_they_stand_for(result, data) -> None:
    place = 7
    image = (data[int(result["shown"][place])][0] * 0.5 + 0.5).permute(1, 2, 0) * 255
    assert np.abs(result["thumbnail"].values[place] - image.numpy()).max() <= 1
    assert result["index"].values.tolist() == list(range(0, 120, 2))


def test_images_are_spread_evenly(model, data) -> None:
    assert probe.measure(model, data, images=20, thumbnails=False)["index"].values.tolist() == list(range(0, 120, 6))


def test_too_few_images_say_how_many_are_needed(model, data) -> None:
    with pytest.raises(InputError, match="10 images are too few for 10 neighbours.*at least 12 are needed"):
        probe.measure(model, data, images=10)
    assert probe.measure(model, data, images=12, thumbnails=False).sizes["image"] == 12
    with pytest.raises(InputError, match="60 images are too few for 70 neighbours.*at least 82 are needed"):
        probe.measure(model, data, neighbors=70)
    with pytest.raises(InputError, match="--neighbors is 1"):
        probe.measure(model, data, neighbors=1)


def test_states_that_tell_nothing_apart_are_refused(data) -> None:
    model = fresh(CONFIG, 0).eval()
    model.origin = Origin("planted")
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
    with pytest.raises(InputError, match=r"step 1 \(blocks.0\) is the same for all images"):
        probe.measure(model, data)


def test_activations_that_are_not_finite_name_their_step(model, data) -> None:
    broken = [("blocks.1.hook_resid_pre", lambda x, hook: x * torch.nan)]
    with model.hooks(fwd_hooks=broken), pytest.raises(InputError, match=r"step 2 \(blocks.1\)"):
        probe.measure(model, data)


def test_a_model_and_data_with_other_classes_will_do(data) -> None:
    model = fresh(dataclasses.replace(CONFIG, n_classes=2, classes=("cat", "dog"), n_blocks=3), 0).eval()
    model.origin = Origin("planted")
    assert len(probe.measure(model, data, thumbnails=False).attrs["classes"]) == 20


def test_the_command_prints_its_table_and_refuses_too_few_images(model, tmp_path: Path, command) -> None:
    source = tmp_path / "ckpt.pt"
    checkpoint.save(source, model, data="shapes-easy", provenance={"seed": 0})
    options = ("--images", 40, "--batch-size", 8, "--device", "cpu", "--no-control")
    code, printed, _ = command("probes.trajectories", source, *options)
    assert code == 0 and "trajectories: 40 images x 4 states of the cls token" in printed and "chance" in printed
    code, _, complaint = command("probes.trajectories", source, "--limit", 5)
    assert code == 2 and "5 images are too few" in complaint
