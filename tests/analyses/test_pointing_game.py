"""Run with: pytest tests/analyses/test_pointing_game.py"""

import numpy as np
import pytest
import xarray as xr

from analyses import pointing_game as analysis

from .conftest import shipped


def test_averages_equal_loops() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.random((2, 30, 3)), rng.integers(0, 4, 30)
    values[0, 5] = np.nan
    micro, macro = np.moveaxis(analysis.average(values, labels, axis=1), 1, 0)
    assert np.allclose(micro[0], np.delete(values[0], 5, 0).mean(0))
    keep = np.arange(30) != 5
    assert np.allclose(macro[0], np.mean([values[0][keep & (labels == c)].mean(0) for c in range(4)], axis=0))


def test_the_shipped_ratios_and_their_intervals_come_back() -> None:
    result = shipped("photos/pointing_game")
    ratios = analysis.ratios(result["hit"].values, result["label"].values)
    assert np.allclose(ratios["hit_ratio"], result["hit_ratio"])
    for name in ("hit_low", "hit_high"):
        assert np.allclose(ratios[name][:, :, 0], result[name].sel(average="micro"), atol=1e-6)


def test_items_of_one_photograph_are_drawn_together() -> None:
    hit = (np.random.default_rng(1).random((1, 1, 100, 2, 2)) < 0.5).astype(np.float32)
    labels, photographs = np.arange(200) % 2, np.repeat(np.arange(100), 2)
    once = analysis.ratios(hit, np.zeros(100, int))
    twice = analysis.ratios(np.repeat(hit, 2, 2), labels, photographs)
    assert np.allclose(once["hit_low"][:, :, 0], twice["hit_low"][:, :, 0], atol=1e-6)


def planted(hit: np.ndarray, chance: float) -> xr.Dataset:
    """A result with these hits [image step head] at radius 0 and this chance; untrained, head 0 always hits."""
    n, n_steps, n_heads = hit.shape
    cells = ("radius", "target", "average", "step", "head")
    coords = {"radius": [0], "target": ["class"], "average": ["micro", "macro"], "kind": ["centre", "uniform", "area"]}
    untrained = np.zeros((1, 1, 2, n_steps, n_heads))
    untrained[..., 0] = 1
    return xr.Dataset(
        {name: (cells, values) for name, values in analysis.ratios(hit[None, None], np.zeros(n, int)).items()}
        | {
            "hit": (("radius", "target", "image", "step", "head"), hit[None, None]),
            "baseline_per_image": (("kind", "radius", "target", "image"), np.full((3, 1, 1, n), chance)),
            "baseline": (("kind", "radius", "target", "average"), np.full((3, 1, 1, 2), chance)),
            "control_hit_ratio": (cells, untrained),
        },
        coords | {"step": range(n_steps), "head": range(n_heads)},
        attrs=dict(n_skipped=0),
    )


@pytest.fixture
def result() -> xr.Dataset:
    """Three steps of two heads on 100 images: head 1 hits in 20, 60 and 90 of them, head 0 in 50."""
    hit = np.zeros((100, 3, 2), np.float32)
    hit[:50, :, 0] = 1
    for step, n in enumerate((20, 60, 90)):
        hit[:n, step, 1] = 1
    return planted(hit, 0.1)


def test_best_head_of_pure_chance_is_not_better_on_the_other_half() -> None:
    hit = (np.random.default_rng(3).random((1000, 12, 12)) < 0.28).astype(np.float32)
    result = planted(hit, 0.28)
    best = analysis.best_head(result)
    assert best["chosen_on"] > 0.31 and best["held_out"] < best["chosen_on"] - 0.02
    others = [analysis.best_head(result, seed=seed)["held_out"] for seed in range(20)]
    assert abs(np.mean(others) - 0.28) < 0.01
    assert abs(best["chosen_on"] - best["chance"]) < 0.02 and best["chance"] < best["chance_high"]
    assert best["n_heads"] == 144 and best["uniform"] == pytest.approx(0.28)


def test_the_best_of_two_images_is_chosen_by_chance() -> None:
    best = analysis.best_head(planted(np.ones((2, 1, 3), np.float32), 0.5))
    assert best["chance"] == 1 - 0.5**3 and best["held_out"] == 1


def test_the_table_has_every_chance_level(result) -> None:
    lines = {line[:22].strip(): line[22:].split() for line in analysis.table(result).splitlines()}
    assert lines["step 3 (blocks.2)"] == ["70.0", "90.0", "h1"] and lines["step 1 (blocks.0)"] == ["35.0", "50.0", "h0"]
    assert lines["random patch"] == ["10.0"] and lines["untrained, mean head"] == ["50.0"]
    assert lines["untrained, best head"] == ["100.0"]
    assert "best of 6 heads: head 1 at step 3 (blocks.2)" in analysis.table(result)


def test_figure_4_has_the_mean_and_the_best_head_with_intervals(result) -> None:
    mean, best = analysis.figure(result).axes
    assert np.allclose(mean.lines[0].get_ydata(), [35, 55, 70]) and np.allclose(best.lines[0].get_ydata(), [50, 60, 90])
    assert np.allclose(mean.lines[1].get_ydata(), 50) and np.allclose(best.lines[1].get_ydata(), 100)
    assert len(mean.collections) == 1  # the interval of the trained model
    names = [trace.name for trace in analysis.curves(result).data if trace.fill is None]
    assert names == [
        *("mean over heads", "untrained, mean over heads", "best head", "untrained, best head"),
        *("image centre", "random patch"),
    ]


def test_a_cell_to_click_says_its_step_head_and_interval(result) -> None:
    cells, overlay = analysis.interactive(result).data
    assert np.asarray(cells.z)[1].tolist() == pytest.approx([20, 60, 90]) and cells.zmin == 10
    place, cell = list(zip(overlay.x, overlay.y, strict=True)).index((3, 1)), dict(average="micro", step=2, head=1)
    low, high = (100 * result[name].sel(cell).item() for name in ("hit_low", "hit_high"))
    assert overlay.text[place] == f"step 3 (blocks.2), head 1<br>90.0 % [{low:.1f}, {high:.1f}]"


def test_heads_and_frame_hold_both_models(result) -> None:
    trained, untrained, _ = analysis.heat_map(result).axes
    assert [ax.get_title() for ax in (trained, untrained)] == ["trained", "untrained"]
    assert np.allclose(untrained.images[0].get_array()[0], 100)
    frame = analysis.frame(result)
    assert len(frame) == 2 * 12 and frame.query("model == 'untrained'")["hit_low"].isna().all()
    assert analysis.examples(result) is None


def test_ten_hits_of_ten_are_not_certain() -> None:
    sure = analysis.ratios(np.ones((1, 1, 10, 1, 1)), np.arange(10) % 2)
    assert np.allclose(sure["hit_low"], 0.7225, atol=1e-3) and np.allclose(sure["hit_high"], 1)
    of_five = analysis.ratios(np.ones((1, 1, 10, 1, 1)), np.arange(10) % 2, np.arange(10) // 2)
    assert np.allclose(of_five["hit_low"][:, :, 0], 0.5655, atol=1e-3)


def test_no_photograph_is_in_both_halves() -> None:
    photographs = np.repeat(np.arange(7), [1, 2, 3, 1, 2, 3, 1])
    first, second = analysis.halves(photographs, 0)
    assert sorted([*first, *second]) == list(range(13))
    assert not set(photographs[first]) & set(photographs[second])
    assert [len(part) for part in analysis.halves(np.zeros(4, int), 0)] == [4, 4]
