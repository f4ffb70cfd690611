"""Run with: pytest tests/analyses/test_neurons.py"""

import itertools

import numpy as np
import pytest
import xarray as xr

from analyses import neurons as analysis


def test_jaccard_equals_sets() -> None:
    rng = np.random.default_rng(0)
    top = np.stack([[rng.permutation(12)[:4] for _ in range(5)] for _ in range(3)])
    overlap = analysis.jaccard(top)
    for unit, s, t in itertools.product(range(5), range(3), range(3)):
        a, b = set(top[s, unit]), set(top[t, unit])
        assert overlap[unit, s, t] == pytest.approx(len(a & b) / len(a | b))
    assert analysis.off_diagonal(overlap)[0] == pytest.approx(overlap[0][np.triu_indices(3, 1)].mean())


@pytest.mark.parametrize(("n", "k"), [(6, 2), (7, 3), (4, 4)])
def test_chance_of_jaccard_equals_enumeration(n, k) -> None:
    first = set(range(k))
    others = [set(c) for c in itertools.combinations(range(n), k)]
    assert analysis.chance_jaccard(n, k) == pytest.approx(np.mean([len(first & o) / len(first | o) for o in others]))


def test_a_grating_has_its_frequency_and_is_periodic_and_noise_is_not() -> None:
    x = np.arange(64)
    grating = 128 + 100 * np.cos(2 * np.pi * 5 * x / 64)[None, :, None] * np.ones((64, 1, 3))
    noise = np.random.default_rng(0).normal(128, 30, (64, 64, 3))
    frequency, periodicity = analysis.spatial(np.stack([grating, noise])).values()
    assert frequency[0] == pytest.approx(5) and periodicity[0] == pytest.approx(1, abs=0.02)
    assert frequency[1] > 20 and periodicity[1] < 0.06


@pytest.fixture
def result() -> xr.Dataset:
    rng = np.random.default_rng(0)
    cells = dict(recipe=2, step=3, neuron=2)
    made = xr.Dataset(
        {
            "activation": (tuple(cells), np.array([[[2.0, 1.0]] * 3, [[0.5, 3.0]] * 3])),
            "best_real": (("step", "neuron"), np.ones((3, 2))),
            "median_real": (("step", "neuron"), np.zeros((3, 2))),
            "picture": ((*cells, "y", "x", "channel"), rng.integers(0, 255, (2, 3, 2, 16, 16, 3), dtype=np.uint8)),
            "transfer": (("recipe", "neuron", "step", "other_step"), rng.random((2, 2, 3, 3))),
            "jaccard": (("neuron", "step", "other_step"), rng.random((2, 3, 3))),
            "top": (("step", "neuron", "place"), rng.integers(0, 50, (3, 2, 9))),
            "change": (("unit",), np.array([0.1, 0.4, 0.2, 0.3])),
            "unit_overlap": (("unit",), np.array([0.5, 0.4, 0.2, 0.3])),
            "overlap": (("all_step", "other_all_step"), np.full((3, 3), 0.25)),
            "chance_jaccard": ((), 0.01),
        },
        coords={"recipe": ["tv", "maco"], "step": [0, 1, 2], "other_step": [0, 1, 2], "neuron": [7, 3]},
    )
    return made.assign_attrs(n_read=50)


def test_the_table_says_what_the_numbers_say(result) -> None:
    text = analysis.table(result)
    assert "tv 3 of 6, maco 3 of 6" in text  # 1.0 against 1.0 does not beat it
    assert "overlap by 0.250" in text and "random sets 0.0100" in text
    assert "mean activation changes most: neurons 1, 3, 2" in text
    assert "top images change most: neurons 2, 3, 1" in text
    assert "step 3 (blocks.2)" in text


def test_figures_show_every_neuron_and_step(result) -> None:
    assert len(analysis.figure(result).axes) == 6
    assert analysis.best_recipe(result.assign(best_real=result["best_real"] * 0.9)) == "tv"
    shown = analysis.interactive(result, neuron=3, recipe="maco")
    assert np.allclose(np.array(shown.data[0].z), result["transfer"].values[1, 1])
    assert len(analysis.curves(result, neuron=3).data) == 4
    assert np.allclose(np.array(analysis.overlaps(result, neuron=7).data[0].z), result["jaccard"].values[0])


def test_overlaps_stand_beside_random_sets_and_the_untrained_model(result) -> None:
    assert analysis.top_overlap(result) == pytest.approx({"trained": 0.25, "random": 0.01})
    untrained = result.assign(control_overlap=result["overlap"] / 2)
    assert analysis.top_overlap(untrained)["untrained"] == 0.125
    assert "random sets 0.0100, untrained model 0.125" in analysis.table(untrained)


def test_models_with_other_steps_stand_in_one_grid(result) -> None:
    axes = analysis.figure({"A": result, "B": result.isel(step=slice(2))}).axes
    assert [ax.get_ylabel() for ax in axes[::3]] == ["A neuron 7", "A neuron 3", "B neuron 7", "B neuron 3"]
    assert [len(ax.images) for ax in axes] == [1] * 6 + [1, 1, 0] * 2


def pictures_of_kinds() -> dict[str, np.ndarray]:
    """Grey pictures [y x channel] that repeat themselves, and some that do not."""
    rng, n = np.random.default_rng(0), 64
    y, x = np.mgrid[:n, :n] / n
    cycles = np.fft.fftfreq(n, 1 / n)
    radius = np.maximum(np.hypot(cycles[:, None], cycles), 1)
    blob = np.exp(-((x - 0.5) ** 2 + (y - 0.4) ** 2) / 0.02)
    kinds = {
        "grating": np.sin(16 * np.pi * x),
        "diagonal grating": np.sin(2 * np.pi * (5 * x + 3 * y)),
        "grating with an edge": np.sin(20 * np.pi * x) * blob,
        "checks": np.sign(np.sin(8 * np.pi * x) * np.sin(8 * np.pi * y)),
        "dots": ((x * 8 % 1 - 0.5) ** 2 + (y * 8 % 1 - 0.5) ** 2 < 0.06) * 1.0,
        "blob": blob,
        "disc": ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.04) * 1.0,
        "edge": (x > 0.5) * 1.0,
        "slanted edge": (x + 0.3 * y > 0.7) * 1.0,
        "ramp": x,
        "1/f noise": np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, n))) / radius).real,
        "1/f2 noise": np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, n))) / radius**2).real,
        "white noise": rng.standard_normal((n, n)),
    }
    return {name: np.repeat(picture[..., None], 3, -1) for name, picture in kinds.items()}


def test_what_repeats_itself_is_periodic_and_a_blob_an_edge_and_noise_are_not() -> None:
    kinds = pictures_of_kinds()
    periodicity = dict(zip(kinds, analysis.spatial(np.stack(list(kinds.values())))["periodicity"], strict=True))
    repeating = ("grating", "diagonal grating", "grating with an edge", "checks", "dots")
    assert all(periodicity[name] > 0.55 for name in repeating), periodicity
    assert all(value < 0.2 for name, value in periodicity.items() if name not in repeating), periodicity
    assert periodicity["grating"] == pytest.approx(1, abs=0.01) and periodicity["blob"] == 0
