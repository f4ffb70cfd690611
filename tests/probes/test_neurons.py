"""Run with: pytest tests/probes/test_neurons.py"""

import numpy as np
import pytest
import torch
import xarray as xr

from models import ViTConfig, checkpoint, loop, open_data
from models.checkpoint import fresh
from models.errors import InputError
from models.origin import Origin
from probes import neurons as probe
from probes.methods import top_images, visualise
from probes.probe import Pass

CONFIG = ViTConfig.preset("bvit_shapes", n_steps=3, image_size=32, d_model=32, n_heads=2, n_classes=20)
QUICK = dict(iterations=3, copies=2, batch_size=16)


def tiny(config: ViTConfig = CONFIG):
    model = fresh(config, 0).eval()
    model.origin = Origin("planted")
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def data(model):
    return torch.utils.data.Subset(open_data("shapes-easy", like=model), range(0, 100, 2))


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, neurons=[5, 3], control=model, **QUICK)


def values_of(model, data) -> np.ndarray:
    """Activation of every neuron on every image [image step unit], image by image from a full cache."""
    rows = []
    with torch.no_grad():
        for i in range(len(data)):
            _, cache = model.run_with_cache(data[i][0][None])
            rows.append(torch.stack([cache["post", t][0, 1:].mean(0) for t in range(model.config.n_steps)]))
    return torch.stack(rows).numpy()


def test_means_and_top_images_equal_a_sort_of_all_activations(model, data, result) -> None:
    values = values_of(model, data)
    assert np.allclose(result["mean_activation"], values.mean(0), atol=1e-6)
    order = np.argsort(-values, axis=0, kind="stable")[:9]
    assert (result["top"].values == 2 * np.moveaxis(order, 0, -1)[:, [5, 3]]).all()
    assert np.allclose(result["best_real"], values.max(0)[:, [5, 3]], atol=1e-6)
    assert np.allclose(result["median_real"], np.median(values, 0)[:, [5, 3]], atol=1e-6)
    assert (result["shown"].values[:4] == list(dict.fromkeys(result["top"].values[..., 0].ravel()))[:4]).all()


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_merged_batches_equal_one_sort_and_the_lower_index_wins_a_tie(batch) -> None:
    values = torch.randint(0, 4, (50, 2, 3), generator=torch.Generator().manual_seed(0)).float()
    best = None
    for first in range(0, 50, batch):
        best = top_images.merged(best, values[first : first + batch], torch.arange(first, min(first + batch, 50)), 7)
    order = np.argsort(-values.numpy(), axis=0, kind="stable")[:7]
    assert (best[1].numpy() == np.moveaxis(order, 0, -1)).all()
    assert (best[0].numpy() == np.moveaxis(np.take_along_axis(values.numpy(), order, 0), 0, -1)).all()


def test_top_takes_the_neurons_whose_mean_varies_most(model, data) -> None:
    spread = values_of(model, data).mean(0).std(0)
    found = probe.measure(model, data, top=2, methods=("maco",), control=None, thumbnails=False, **QUICK)
    assert found.neuron.values.tolist() == np.argsort(-spread)[:2].tolist()
    assert "thumbnail" not in found


def test_what_a_picture_reached_is_what_the_stored_pixels_reach(model, result) -> None:
    pictures = torch.from_numpy(result["picture"].values).double().float().div(255).permute(0, 1, 2, 5, 3, 4)
    inputs = (pictures - 0.5) / 0.5
    for (m, s, f), _ in np.ndenumerate(result["activation"].values):
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs[m, s, f][None])
        neuron = int(result.neuron[f])
        at = [float(cache["post", t][0, 1:, neuron].mean()) for t in range(3)]
        assert result["transfer"].values[m, f, s] == pytest.approx(at, abs=1e-5)
        assert float(result["activation"][m, s, f]) == float(result["transfer"][m, f, s, s])


@pytest.mark.parametrize("method", visualise.METHODS)
def test_a_picture_does_not_depend_on_those_made_beside_it(method, model, data) -> None:
    canvas = visualise.measured(model, lambda: probe.sampled(Pass(data, 16)))
    pairs = [(0, 3), (1, 8), (2, 3), (2, 8)]

    def made(chosen, batch_size=16):
        with visualise.frozen(model):
            return visualise.optimised(
                method,
                chosen,
                visualise.of_neurons(model, chosen),
                canvas,
                iterations=4,
                copies=2,
                batch_size=batch_size,
            )

    together = made(pairs)
    alone = torch.cat([made([pair]) for pair in pairs])
    assert (together - alone).abs().max() < 1e-3
    assert (together - made(pairs, batch_size=2)).abs().max() < 1e-3
    assert (together == made(pairs)).all()
    assert (together[2] - together[0]).abs().max() > 0.1
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_each_input_runs_to_its_own_step_only(model) -> None:
    ran = {t: 0 for t in range(3)}
    inputs, steps = torch.randn(5, 3, 32, 32), [0, 0, 1, 1, 1]

    def count(activation, hook):
        ran[hook.layer()] += len(activation)

    with model.hooks([("blocks.*.hook_resid_pre", count)]):
        found = visualise.activations(model, inputs, steps, torch.tensor([1, 2, 3, 4, 5]))
    assert ran == {0: 5, 1: 3, 2: 0}
    values = top_images.mean_activations(model, inputs)
    assert torch.allclose(found, torch.stack([values[i, t, i + 1] for i, t in enumerate(steps)]), atol=1e-6)


class Rolled(torch.utils.data.Dataset):
    """Images tiled with one pattern [3 8 8] at a random phase, under noise."""

    spec, split, classes, fingerprint, has_masks, image_size, labels = (
        "rolled",
        "val",
        ("a",),
        "rolled",
        False,
        32,
        np.zeros(64, int),
    )

    def __init__(self, pattern):
        self.pattern = pattern

    def __len__(self):
        return 64

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        shift = torch.randint(0, 8, (2,), generator=generator).tolist()
        clean = self.pattern.repeat(1, 4, 4).roll(shift, (1, 2))
        return (0.4 * clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(-1, 1), 0, None


def planted_model(pattern):
    """One step whose neuron 0 responds to `pattern` in a patch, and attention that adds nothing."""
    model = tiny(ViTConfig.preset("bvit_shapes", n_steps=1, image_size=32, d_model=8, n_heads=2, n_classes=20))
    with torch.no_grad():
        block, patch = model.core[0], model.patch_embed.proj
        for parameter in (model.pos_embed, block.attn.proj.weight, block.mlp.fc1.weight, patch.weight):
            parameter.zero_()
        patch.weight[0], patch.weight[1] = pattern / pattern.norm(), -pattern / pattern.norm()
        patch.bias.copy_(torch.tensor([0.0, 0, 9, -9, 9, -9, 9, -9]))  # keeps the norm's scale almost constant
        block.mlp.fc1.weight[0, 0], block.mlp.fc1.weight[0, 1] = 3, -3
    return model


def likeness(picture: torch.Tensor, pattern: torch.Tensor) -> float:
    """Correlation of a picture [3 h w] with the tiled pattern at the phase where it is highest."""
    tiled = pattern.repeat(1, 4, 4)
    centred = picture - picture.mean((1, 2), keepdim=True)
    scores = [(centred * tiled.roll((dy, dx), (1, 2))).sum() for dy in range(8) for dx in range(8)]
    return float(max(scores) / (centred.norm() * tiled.norm()))


def waves(n: int) -> torch.Tensor:
    """A pattern [3 8 8] of the n lowest frequencies along x, all along y, at random phases and colours, without mean;
    variance 1.
    """
    spectrum = torch.fft.rfft2(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)))
    pattern = torch.fft.irfft2(spectrum * (torch.arange(5) <= n), s=(8, 8))
    pattern = pattern - pattern.mean((1, 2), keepdim=True)
    return pattern / pattern.std()


def grating() -> torch.Tensor:
    """A diagonal wave of period 8, green against red."""
    phase = 2 * torch.pi * (torch.arange(8)[:, None] + torch.arange(8)) / 8
    return 1.2 * torch.stack([-phase.cos(), phase.cos(), torch.zeros(8, 8)])


@pytest.mark.parametrize(("method", "pattern"), [("tv", grating()), ("maco", waves(2))])
def test_a_planted_filter_is_recovered(method, pattern) -> None:
    """Rolls hide a pattern's phase from tv, so it is shown one wave; maco is given the spectrum, so its waves must
    fall into place.
    """
    model, data = planted_model(pattern), Rolled(pattern)
    options = dict(neurons=[0], methods=(method,), copies=4, seed=3)
    begun, done = (probe.measure(model, data, iterations=n, **options) for n in (1, 60))

    def like(result):
        return likeness(torch.from_numpy(result["picture"].values[0, 0, 0]).float().permute(2, 0, 1), pattern)

    assert like(begun) < 0.6
    assert like(done) > 0.85


def test_an_interrupted_optimisation_goes_on_to_the_same_pictures(model, data, tmp_path, monkeypatch) -> None:
    canvas, pairs = visualise.measured(model, lambda: probe.sampled(Pass(data, 16))), [(0, 3), (2, 3)]
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    objective, calls = visualise.of_neurons(model, pairs), []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return objective(*args)

    def made(objective, key="a", kept=tmp_path / "kept"):
        return visualise.optimised("tv", pairs, objective, canvas, iterations=6, copies=2, kept=kept, key=key)

    whole = made(objective, kept=None)
    with pytest.raises(KeyboardInterrupt):
        made(stopping)
    calls.clear()
    counted = lambda *args: calls.append(args) or objective(*args)  # noqa: E731
    assert (made(counted) == whole).all() and len(calls) == 3
    assert (made(counted) == whole).all() and len(calls) == 3
    assert (made(counted, key="b") == whole).all() and len(calls) == 9
    (tmp_path / "kept").write_bytes(b"broken")
    assert (made(counted) == whole).all() and len(calls) == 15


def test_the_canvas_has_the_data_s_colours_and_spectrum(model) -> None:
    images = 0.5 * torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cumsum(-1).tanh()
    canvas = visualise.measured(model, lambda: iter(images.split(7)))
    pixels = (images * 0.5 + 0.5).transpose(0, 1).flatten(1)
    assert torch.allclose(canvas.colour, pixels.mean(1), atol=1e-5)
    assert torch.allclose(canvas.mixing @ canvas.mixing, torch.cov(pixels), atol=1e-4)
    phases = 2 * torch.pi * torch.rand(4, 3, 32, 17, generator=torch.Generator().manual_seed(0))
    pictures = torch.logit(visualise.painted("maco", phases, canvas)) / 4 + 0.5
    assert torch.allclose(torch.cov(pictures.transpose(0, 1).flatten(1)), torch.cov(pixels), atol=0.02)
    assert torch.allclose(pictures.mean((0, 2, 3)), canvas.colour, atol=1e-4)
    assert (
        canvas.magnitude[:, 0, 1:5].mean() > 2 * canvas.magnitude[:, 0, 12:].mean()
    )  # walks along x are smooth along x


def test_a_stacked_model_without_a_head_is_as_good(data) -> None:
    stacked = tiny(ViTConfig.preset("vit_shapes", n_steps=2, image_size=32, d_model=32, n_heads=2, n_classes=0))
    found = probe.measure(stacked, data, neurons=[0], steps=[1], methods=("tv",), **QUICK)
    assert found["picture"].shape == (1, 1, 1, 32, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(neurons=[128]), "no neuron 128: the model has neurons 0 to 127"),
        (dict(neurons=[-1]), "no neuron -1"),
        (dict(neurons=[]), "no neuron is named"),
        (dict(steps=[3]), "no step 3: the model has steps 0 to 2"),
        (dict(top=0), "--top is 0"),
        (dict(top=500), "--top is 500"),
        (dict(iterations=0), "--iterations is 0"),
        (dict(copies=0), "--copies is 0"),
        (dict(n_top=0), "--n-top is 0"),
    ],
)
def test_bad_input_is_one_sentence(options, message, model, data) -> None:
    with pytest.raises(InputError, match=message):
        probe.measure(model, data, **options)


def test_activations_that_are_not_finite_name_their_step(data) -> None:
    broken = tiny()
    with torch.no_grad():
        broken.core[0].mlp.fc2.bias[0] = torch.nan
    with pytest.raises(InputError, match=r"step 1 \(blocks.0\) on: core.0.mlp.fc2.bias"):
        probe.measure(broken, data, **QUICK)


def test_the_command_writes_the_same_result_again(model, tmp_path, command) -> None:
    checkpoint.save(tmp_path / "ckpt.pt", model, data="shapes-easy", provenance={"seed": 0})
    options = (
        "--limit",
        20,
        "--neurons",
        "3,17",
        "--steps",
        "0,2",
        "--iterations",
        2,
        "--copies",
        2,
        "--device",
        "cpu",
    )
    for name in ("a.nc", "b.nc"):
        code, printed, _ = command("probes.neurons", tmp_path, *options, "--out", tmp_path / name)
        assert code == 0 and "neurons 3, 17" in printed
    first, second = (xr.load_dataset(tmp_path / name, engine="h5netcdf") for name in ("a.nc", "b.nc"))
    assert first.drop_attrs().identical(second.drop_attrs())
    assert not list(tmp_path.glob("*.partial"))
    code, _, complaint = command("probes.neurons", tmp_path, "--neurons", "3;17")
    assert code == 2 and "--neurons" in complaint and "as in 3,17" in complaint
