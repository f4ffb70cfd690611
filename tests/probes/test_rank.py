"""Run with: pytest tests/probes/test_rank.py"""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from models import ViTConfig, checkpoint, open_data
from models.checkpoint import fresh
from models.errors import InputError
from models.origin import Origin
from probes import rank as probe
from probes.methods import moments, truncation

CONFIG = ViTConfig.preset("bvit_shapes", n_steps=3, d_model=16, n_heads=2, d_mlp=40, n_classes=20)
FULL = 16


def made(config: ViTConfig = CONFIG):
    model = fresh(config, 0).eval()
    model.origin = Origin("planted")
    with torch.no_grad():  # a trained block moves the stream; a fresh one hardly does
        for block in model.core:
            block.mlp.fc1.weight.mul_(3)
            block.mlp.fc1.bias.normal_()
            block.mlp.fc2.bias.normal_()
    return model


@pytest.fixture(scope="module")
def data():
    whole = open_data("shapes", like=CONFIG)
    model = dataclasses.replace(CONFIG, classes=tuple(whole.classes))
    assert model.n_classes == len(whole.classes)
    return torch.utils.data.Subset(whole, range(0, 80, 2))


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return made(dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes)))


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=model, accuracy_images=40, batch_size=16)


def stored_rows(model, data, tokens: int) -> dict[str, np.ndarray]:
    """Every site's rows [step row d] as one matrix, from a full cache."""
    images = torch.stack([data[i][0] for i in range(len(data))])
    chosen = torch.from_numpy(moments.sampled_tokens(np.array(data.indices), tokens, model.config.n_tokens, 0))
    with torch.no_grad():
        _, cache = model.run_with_cache(images)
    at = torch.arange(len(images))[:, None]
    steps = range(model.config.n_steps)
    names = {"mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post", "mlp_out": "hook_mlp_out"}
    rows = {
        site: np.stack([cache[f"blocks.{t}.{name}"][at, chosen].flatten(0, 1).numpy() for t in steps])
        for site, name in names.items()
    }
    return rows | {"cls": np.stack([cache["resid_post", t][:, 0].numpy() for t in steps])}


def test_streamed_spectra_equal_the_svd_of_the_stored_matrix(model, data, result) -> None:
    for site, rows in stored_rows(model, data, 16).items():
        for t, matrix in enumerate(rows.astype(np.float64)):
            assert len(matrix) == int(result["rows"].sel(site=site))
            for centred in (False, True):
                expected = np.linalg.svd(matrix - centred * matrix.mean(0), compute_uv=False) ** 2 / len(matrix)
                found = result["spectrum"].sel(site=site, step=t, centred=centred).values
                assert np.allclose(found[: len(expected)], expected, rtol=1e-5, atol=2e-6 * expected[0])
                share = np.cumsum(expected) / expected.sum()
                assert int(result["k95"].sel(site=site, step=t, centred=centred)) == int(np.argmax(share >= 0.95)) + 1


def test_a_large_common_mean_does_not_blur_the_centred_spectrum(data) -> None:
    """The mean holds all but 1e-8 of the energy: float32 products about zero would see nothing else."""
    model = made()
    expected = probe.measure(model, data, accuracy=False)["spectrum"].sel(site="mlp_pre", centred=True, step=0)
    with torch.no_grad():
        model.core[0].mlp.fc1.bias += 2000
    found = probe.measure(model, data, accuracy=False)["spectrum"].sel(site="mlp_pre", centred=True, step=0)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected[0]))


@pytest.mark.parametrize("planted", [1, 3, 7])
def test_a_planted_low_rank_map_gives_its_rank(data, planted: int) -> None:
    model = made()
    with torch.no_grad():
        model.core[0].mlp.fc2.weight.copy_(torch.randn(16, planted) @ torch.randn(planted, 40))
    found = probe.measure(model, data, accuracy=False)["spectrum"].sel(site="mlp_out")
    counted = (found > 1e-6 * found.max("rank")).sum("rank")
    assert (counted.sel(centred=True) == planted).all()
    assert (counted.sel(centred=False) == planted + 1).all()  # the bias


def test_the_utilised_rank_is_that_of_a_planted_matrix(data) -> None:
    model = made()
    with torch.no_grad():
        model.core[0].mlp.fc2.weight.copy_(torch.randn(16, 1) @ torch.randn(1, 40))
    found = probe.measure(model, data, accuracy=False)
    assert (found["utilised_rank"].sel(matrix="fc2") == 1).all() and int(
        found["utilised_union"].sel(matrix="fc2")[0]
    ) == 1
    assert (found["utilised_rank"] <= FULL).all()


def test_constant_activations_have_rank_zero_about_their_mean(data) -> None:
    model = made()
    with torch.no_grad():
        model.core[0].mlp.fc2.weight.zero_()
    found = probe.measure(model, data, accuracy=False).sel(site="mlp_out")
    for name in ("k95", "participation_ratio", "stable_rank"):
        assert (found[name].sel(centred=True) == 0).all()
        assert np.allclose(found[name].sel(centred=False), 1)
    assert found["overlap"].isnull().all() and (found["union_k95"] == 0).all()


def test_overlap_is_one_with_itself_and_symmetric_and_the_union_holds_every_step(result) -> None:
    overlap = result["overlap"].values
    assert np.allclose(overlap[:, range(3), range(3)], 1) and np.allclose(overlap, overlap.swapaxes(1, 2))
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert (result["union_k95"].isel(step=0) == result["k95"].sel(centred=True).isel(step=0)).all()
    assert (result["union_k95"] <= result["width"]).all()


def test_chance_of_hidden_activations_knows_that_one_matrix_makes_them(data, result) -> None:
    k = result["k95"].sel(site="mlp_pre", centred=True).values
    assert result["overlap_chance"].sel(site="mlp_pre", step=0, other_step=1) == pytest.approx(max(k[0], k[1]) / 16)
    stacked = probe.measure(made(dataclasses.replace(CONFIG, n_blocks=3)), data, accuracy=False)
    k = stacked["k95"].sel(site="mlp_pre", centred=True).values
    assert stacked["overlap_chance"].sel(site="mlp_pre", step=0, other_step=1) == pytest.approx(max(k[0], k[1]) / 40)


@pytest.mark.parametrize("method", [truncation.plain, truncation.utilised, truncation.sparse])
@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_full_rank_is_the_matrix_itself(method, shape) -> None:
    weight = torch.randn(shape)
    rows = torch.randn(500, shape[1], dtype=torch.float64)
    at = method(weight.double(), rows.T @ rows)
    assert torch.equal(at(16).float(), weight)
    assert not torch.equal(at(15).float(), weight)


def test_truncated_svd_is_the_nearest_matrix_of_its_rank() -> None:
    weight = torch.randn(40, 16, dtype=torch.float64)
    singular = torch.linalg.svdvals(weight)
    for rank in (1, 5, 12):
        cut = truncation.plain(weight, torch.eye(16))(rank)
        assert torch.linalg.matrix_rank(cut) == rank
        assert (weight - cut).square().sum() == pytest.approx(float(singular[rank:].square().sum()))


def test_the_activation_aware_matrix_is_exact_on_inputs_of_its_rank() -> None:
    """Inputs fill 4 directions: at rank 4 nothing that the data can see is lost, where the plain truncation loses
    much.
    """
    for shape in ((40, 16), (16, 40)):
        weight = torch.randn(shape, dtype=torch.float64)
        rows = torch.randn(500, 4, dtype=torch.float64) @ torch.randn(4, shape[1], dtype=torch.float64)
        second = rows.T @ rows
        cut = truncation.utilised(weight, second)
        assert torch.allclose(rows @ cut(4).T, rows @ weight.T)
        assert torch.linalg.matrix_rank(cut(2), rtol=1e-9) == 2
        lost = (rows @ (truncation.plain(weight, second)(4) - weight).T).square().sum() / (
            rows @ weight.T
        ).square().sum()
        assert lost > 0.1


def test_low_rank_and_sparse_recovers_both_parts() -> None:
    low = torch.randn(100, 2, dtype=torch.float64) @ torch.randn(2, 60, dtype=torch.float64)
    spikes = torch.zeros(6000, dtype=torch.float64)
    spikes[torch.randperm(6000)[:300]] = 5.0
    weight = low + spikes.view(100, 60)
    eye = torch.eye(60, dtype=torch.float64)
    assert (truncation.sparse(weight, eye)(2) - weight).norm() < 1e-3 * weight.norm()
    assert (truncation.plain(weight, eye)(2) - weight).norm() > 0.3 * weight.norm()


def test_accuracy_at_full_rank_is_the_unharmed_one_and_low_ranks_equal_a_changed_copy(model, data, result) -> None:
    assert (result["svd_accuracy"].sel(rank=FULL) == result["accuracy"]).all()
    assert list(result["svd_accuracy"].dropna("rank")["rank"]) == [1, 2, 4, 8, 16]
    images, labels = torch.stack([data[i][0] for i in range(40)]), torch.tensor([data[i][1] for i in range(40)])
    with torch.no_grad():
        assert float(result["accuracy"]) == float((model(images).argmax(-1) == labels).double().mean())
        copy = made(model.config)
        copy.load_state_dict(model.state_dict())
        for layer in (copy.core[0].mlp.fc1, copy.core[0].mlp.fc2):
            u, s, v = torch.linalg.svd(layer.weight.double(), full_matrices=False)
            layer.weight.copy_((u[:, :2] * s[:2]) @ v[:2])
        expected = float((copy(images).argmax(-1) == labels).double().mean())
    assert float(result["svd_accuracy"].sel(cut="plain", rank=2)) == expected
    counts = np.unique(labels, return_counts=True)[1]
    assert float(result["accuracy_chance"]) == counts.max() / 40
    assert list(result["svd_parameters"].sel(rank=4)) == [2 * 4 * 56, 2 * 4 * 56, 2 * (4 * 56 + 32)]


def test_weights_are_as_before(model, data) -> None:
    before = checkpoint.state_sha256(model.state_dict())
    probe.measure(model, data, accuracy_images=8)
    assert checkpoint.state_sha256(model.state_dict()) == before


def test_same_result_twice_and_with_any_batch_size(model, data, result) -> None:
    again = probe.measure(model, data, control=model, accuracy_images=40, batch_size=16)
    assert again.drop_attrs().identical(result.drop_attrs())
    other = probe.measure(model, data, accuracy=False, batch_size=7)
    assert np.allclose(
        other["spectrum"], result["spectrum"], rtol=1e-5, atol=1e-6 * float(result["spectrum"].max()), equal_nan=True
    )
    assert (other["k95"] == result["k95"]).all()


def test_tokens_depend_on_seed_and_image_alone() -> None:
    one = moments.sampled_tokens(np.array([5, 9, 2]), 6, 65, 0)
    assert (one[1] == moments.sampled_tokens(np.array([9]), 6, 65, 0)[0]).all()
    assert (one != moments.sampled_tokens(np.array([5, 9, 2]), 6, 65, 1)).any()
    assert all(len(set(row)) == 6 for row in one)


def test_too_few_images_are_a_note(model, data) -> None:
    assert "cls has 40 for 16 dimensions" in probe.measure(model, data, accuracy=False).attrs["note"]
    enough = xr.Dataset({"rows": ("site", [960]), "width": ("site", [16])}, {"site": ["cls"]})
    assert probe.too_few(enough) == ""


def test_accuracy_is_left_out_with_a_word_without_a_head_or_with_other_classes(data) -> None:
    headless = probe.measure(made(dataclasses.replace(CONFIG, n_classes=0, n_blocks=3)), data)
    assert "svd_accuracy" not in headless and "no head" in headless.attrs["no_accuracy"]
    other = probe.measure(made(dataclasses.replace(CONFIG, n_classes=2, classes=("cat", "dog"))), data)
    assert "svd_accuracy" not in other and "has no class" in other.attrs["no_accuracy"]


def test_a_stacked_model_is_cut_in_every_block(data) -> None:
    config = dataclasses.replace(CONFIG, n_blocks=3, classes=tuple(data.dataset.classes))
    found = probe.measure(made(config), data, accuracy_images=16)
    assert (found["svd_accuracy"].sel(rank=FULL) == found["accuracy"]).all()
    assert int(found["svd_parameters"].sel(cut="plain", rank=1)) == 3 * 2 * 56
    assert (found["utilised_union"].values == found["utilised_rank"].values).all()


def test_bad_input_is_one_sentence(model, data) -> None:
    with pytest.raises(InputError, match="--tokens is 66, an image of this model has 1 to 65"):
        probe.measure(model, data, tokens=66)
    with pytest.raises(InputError, match="--accuracy-images is 0"):
        probe.measure(model, data, accuracy_images=0)
    broken = [("blocks.1.hook_resid_pre", lambda x, hook: x * torch.nan)]
    with model.hooks(fwd_hooks=broken), pytest.raises(InputError, match=r"step 2 \(blocks.1\)"):
        probe.measure(model, data)
