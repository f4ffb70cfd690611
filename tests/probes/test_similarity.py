"""Run with: pytest tests/probes/test_similarity.py"""

import math

import numpy as np
import pytest
import torch

from analyses import dynamics as analysis
from probes.methods import motion, similarity


def written_out(x: np.ndarray, y: np.ndarray, *, debiased: bool = True) -> float:
    """CKA of rows [row d] from their kernels."""

    def hsic(k: np.ndarray, other: np.ndarray) -> float:
        n, one = len(k), np.ones(len(k))
        if not debiased:
            centre = np.eye(n) - 1 / n
            return np.trace(centre @ k @ centre @ other)
        k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
        rest = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ other @ one
        return (np.trace(k @ other) + rest) / (n * (n - 3))

    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / math.sqrt(hsic(k, k) * hsic(other, other))


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_from_streamed_sums_is_its_formula_on_the_whole_set(debiased: bool) -> None:
    rows = torch.randn(50, 4, 7).cumsum(1) + 30 * torch.randn(4, 7)
    grams = similarity.Grams.about(rows[:3].double().mean(0))
    for part in rows.split(11):
        grams.add(part)
    measured, every = grams.cka(debiased=debiased), rows.double().numpy()
    for a in range(4):
        for b in range(4):
            assert float(measured[a, b]) == pytest.approx(written_out(every[:, a], every[:, b], debiased=debiased))
    alone = similarity.of_rows(rows[20:]).cka(debiased=debiased)
    rest = grams.without(similarity.of_rows(rows[:20], grams.shift)).cka(debiased=debiased)
    assert torch.allclose(rest, alone)


def test_independent_gaussians_have_a_biased_cka_of_d_over_n_plus_d_and_a_debiased_one_of_0() -> None:
    n, d = 150, 60
    drawn = [similarity.of_rows(torch.randn(n, 2, d)) for _ in range(20)]
    biased, debiased = (torch.stack([of.cka(debiased=how)[0, 1] for of in drawn]) for how in (False, True))
    assert float(biased.mean()) == pytest.approx(d / (n + d), abs=0.01)
    assert abs(float(debiased.mean())) < 3 * float(debiased.std()) / 20**0.5 + 1e-3


def test_cka_does_not_see_rotations_lengths_and_places_and_says_nothing_of_what_is_constant() -> None:
    x = torch.randn(40, 5)
    turned = 3 * x @ torch.linalg.qr(torch.randn(5, 5))[0] + 7
    cka = similarity.of_rows(torch.stack([x, turned, torch.ones_like(x) / 3], 1)).cka()
    assert float(cka[0, 1]) == pytest.approx(1, abs=1e-5)
    assert cka[2].isnan().all() and cka[:, 2].isnan().all()


def test_participation_ratio_and_stable_rank_are_those_of_their_spectra() -> None:
    rows = torch.randn(300, 1, 6) * torch.tensor([5.0, 3, 2, 1, 1, 0.1]) + 4
    values = np.linalg.eigvalsh(np.cov(rows[:, 0].T.numpy().astype(float)))
    measured = similarity.of_rows(rows).participation_ratio()
    assert float(measured) == pytest.approx(values.sum() ** 2 / (values**2).sum())
    updates = torch.randn(3, 9, 6)
    singular = np.linalg.svd(updates.double().numpy(), compute_uv=False)
    assert motion.stable_rank(updates).numpy() == pytest.approx((singular**2).sum(1) / singular[:, 0] ** 2)
    random = motion.stable_rank(torch.randn(30, 65, 96)).mean()
    assert float(random) == pytest.approx(analysis.random_stable_rank(65, 96), rel=0.08)


def test_the_interval_of_cka_is_as_wide_as_it_varies_over_data_sets() -> None:
    """Against the spread over 200 sets of Gaussian rows that are correlated as planted."""

    def drawn() -> torch.Tensor:
        x = torch.randn(120, 6)
        return torch.stack([x, x + torch.randn(120, 6)], 1)

    values = np.array([float(similarity.of_rows(drawn()).cka()[0, 1]) for _ in range(200)])
    widths = []
    for _ in range(10):
        rows = drawn()
        parts = [part.cka() for part in similarity.left_out_of(rows, torch.randperm(120))]
        low, high = similarity.with_bounds(similarity.of_rows(rows).cka(), parts, 1.0)[1:]
        widths.append(high[0, 1] - low[0, 1])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * values.std(), rel=0.25)
