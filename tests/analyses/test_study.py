"""Run with: pytest tests/analyses/test_study.py"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses import study as analysis


def line(
    model: str, d: int, steps: int, seed: int, top1: float, groups: str = "width", fields: str = "", lr: float = 4e-3
):
    n_blocks = steps if model.startswith("vit") else 1
    told = dict(cell=f"{model},d_model={d},n_steps={steps},{fields},lr={lr},seed={seed}", groups=groups, model=model)
    told |= dict(fields=f"d_model={d};n_steps={steps}" + (f";{fields}" if fields else ""), seed=seed, lr=lr, top1=top1)
    size = dict(n_steps=steps, n_blocks=n_blocks, d_model=d, n_classes=20)
    return told | size | dict(parameters=1000 * d * n_blocks, flops=1e6 * d * steps)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two widths and three seeds, steps, and a variant; recovery at width 32 is 0.5, at 64 0.9."""
    rows = []
    for seed, noise in enumerate((-0.01, 0.0, 0.01)):
        for d, bvit, vit in ((32, 0.30, 0.55), (64, 0.68, 0.75)):
            rows += [line("bvit_easy", d, 12, seed, bvit + noise), line("vit_easy", d, 12, seed, vit - noise)]
        rows += [line("bvit_easy", 64, t, seed, 0.2 + 0.04 * t + noise, "steps") for t in (1, 4, 16)]
    rows.append(line("bvit_easy", 64, 12, 0, 0.7, "variants", "norm=rms"))
    pd.DataFrame(rows).to_csv(tmp_path / "study.csv", index=False)
    return tmp_path


def test_recovery_is_the_share_of_the_gain_over_chance(folder: Path) -> None:
    rows = analysis.recovery(analysis.read(folder))
    assert rows["d_model"].tolist() == [32, 64] and rows["bvit_n"].tolist() == [3, 3]
    assert np.allclose(rows["recovery"], [(0.30 - 0.05) / (0.55 - 0.05), (0.68 - 0.05) / (0.75 - 0.05)])
    assert np.allclose(rows["gap"], [0.25, 0.07]) and np.allclose(rows["bvit_sd"], 0.01)
    assert ((rows["low"] < rows["recovery"]) & (rows["recovery"] < rows["high"])).all()


def test_the_interval_of_a_ratio_is_a_t_interval_where_the_denominator_is_known() -> None:
    above = np.array([0.4, 0.5, 0.45, 0.52])
    ratio, low, high = analysis.fieller(above, [0.8, 0.8, 0.8, 0.8])
    half = stats.t.ppf(0.975, 6) * above.std(ddof=1) / 2 / 0.8
    assert (ratio, low, high) == pytest.approx(
        (above.mean() / 0.8, above.mean() / 0.8 - half, above.mean() / 0.8 + half)
    )


def test_the_interval_of_a_ratio_covers_it_95_times_in_100() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        _, low, high = analysis.fieller(rng.normal(0.45, 0.03, 3), rng.normal(0.6, 0.03, 3))
        covered += low <= 0.75 <= high
    assert 0.94 < covered / 2000 < 0.965


def test_an_interval_that_is_open_or_of_one_seed_is_nan() -> None:
    assert np.isnan(analysis.fieller([0.5], [0.6])[1:]).all() and analysis.fieller([0.3], [0.6])[0] == 0.5
    assert np.isnan(analysis.fieller([0.5, 0.6], [0.3, -0.2])[1:]).all()


def test_trainings_that_differ_in_seed_alone_are_one_line(folder: Path) -> None:
    rows = analysis.summary(analysis.read(folder).query("group == 'steps'"))
    assert rows["n_steps"].tolist() == [1, 4, 16] and (rows["n"] == 3).all()
    assert np.allclose(rows["top1"], [0.24, 0.36, 0.84]) and np.allclose(rows["sd"], 0.01)


def test_tables_and_figures_show_what_is_there(folder: Path) -> None:
    frame = analysis.read(folder)
    predicted = pd.DataFrame([dict(cell="x", d_model=32, seed=0, demand="mlp_out", fits=0.25, fits_shared=0.9)])
    table = analysis.table(frame, predicted)
    assert "30.0 +- 1.0" in table and "0.500" in table and "0.250" in table and "n = 3 seeds" in table
    assert "norm rms" in table and "bViT" in table
    figure = analysis.figure(frame, predicted)
    assert len(figure.axes) == 4
    titles = ["Over the number of steps", "Over the width", "What of the stacked ViT is recovered"]
    assert list(analysis.interactive(frame, predicted)) == titles


def test_a_partial_study_shows_its_n(folder: Path) -> None:
    frame = pd.read_csv(folder / "study.csv")
    frame[(frame["seed"] == 0) & (frame["d_model"] == 32)].to_csv(folder / "study.csv", index=False)
    table = analysis.table(analysis.read(folder))
    assert "n = 1 seeds" in table and "+-" not in table.splitlines()[2]
    (folder / "study.csv").unlink()
    with pytest.raises(ValueError, match="holds no study.csv"):
        analysis.read(folder)


def test_a_bvit_of_one_step_is_the_one_block_vit_and_counts_as_a_bvit(folder: Path) -> None:
    frame = analysis.read(folder)
    assert set(frame[frame["n_steps"] == 1]["family"]) == {"bvit"}
    assert set(frame[frame["model"] == "vit_easy"]["family"]) == {"vit"}
