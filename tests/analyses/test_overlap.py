"""Run with: pytest tests/analyses/test_overlap.py"""

import numpy as np
import pytest

from analyses import overlap

PLANTED = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0]], bool)


def test_planted_masks_have_their_closed_forms() -> None:
    assert np.allclose(overlap.jaccard(PLANTED), [[1, 2 / 4, 1 / 4], [2 / 4, 1, 1 / 4], [1 / 4, 1 / 4, 1]])
    assert np.allclose(overlap.overlap(PLANTED), [[1, 2 / 3, 1 / 2], [2 / 3, 1, 1 / 2], [1 / 2, 1 / 2, 1]])
    assert overlap.usage(PLANTED).tolist() == [3, 3, 1, 1]
    assert overlap.categories(overlap.usage(PLANTED)).tolist() == [3 / 8, 3 / 8, 1 / 8, 1 / 8]
    assert np.allclose(overlap.specialization(PLANTED), [1 / 3, 1 / 3, 1 / 2])
    assert overlap.union_density(PLANTED) == 5 / 8


def test_nulls_at_one_density_are_the_short_formulas() -> None:
    density = np.full((1, 12), 0.2)
    assert np.allclose(overlap.random_jaccard([1000], density)[0, 1], 0.2 / 1.8)
    assert np.allclose(overlap.random_overlap([1000], density)[0, 1], 0.2)
    assert np.allclose(overlap.random_specialization([1000], density), 0.8**11)
    assert np.allclose(
        overlap.random_categories([1000], density),
        [0.8**12, 12 * 0.2 * 0.8**11, 1 - 0.8**12 - 12 * 0.2 * 0.8**11 - 0.2**12, 0.2**12],
    )


@pytest.mark.parametrize("unequal", [False, True])
def test_random_masks_meet_their_nulls_within_sampling_error(unequal: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([4000, 1000, 3000])
    density = rng.uniform(0.05, 0.6, (3, 5)) if unequal else np.full((3, 5), 0.3)
    kept = np.round(sizes[:, None] * density).astype(int)
    draws = []
    for _ in range(40):
        parts = [np.stack([rng.permutation(np.arange(n) < k) for k in row]) for n, row in zip(sizes, kept, strict=True)]
        drawn = np.concatenate(parts, 1)
        shares = overlap.categories(overlap.usage(drawn))
        draws.append(
            (overlap.jaccard(drawn)[0, 1], overlap.overlap(drawn)[2, 3], overlap.specialization(drawn)[4], *shares)
        )
    exact = kept / sizes[:, None]
    expected = (
        overlap.random_jaccard(sizes, exact)[0, 1],
        overlap.random_overlap(sizes, exact)[2, 3],
        overlap.random_specialization(sizes, exact)[4],
        *overlap.random_categories(sizes, exact),
    )
    error = np.std(draws, 0) / np.sqrt(len(draws))
    assert (np.abs(np.mean(draws, 0) - expected) < 4 * error + 2e-4).all()


def test_weights_that_all_steps_keep_are_counted_where_there_are_none() -> None:
    assert overlap.usage(np.array([[1, 0, 0], [0, 1, 0]])).tolist() == [1, 2, 0]


def test_masks_may_be_bytes() -> None:
    assert overlap.usage(PLANTED.astype(np.uint8)).tolist() == overlap.usage(PLANTED).tolist()
    assert np.array_equal(overlap.specialization(PLANTED.astype(np.uint8)), overlap.specialization(PLANTED))


def test_categories_of_many_counts_are_those_of_each() -> None:
    counts = np.array([[3, 3, 1, 1], [0, 4, 2, 10], [5, 1, 1, 1]])
    assert np.array_equal(overlap.categories(counts), [overlap.categories(row) for row in counts])


def test_a_step_overlaps_with_itself_whole_under_random_masks_too() -> None:
    sizes, density = np.array([10, 30]), np.array([[0.2, 0.4], [0.01, 0.02]])
    for null in (overlap.random_jaccard, overlap.random_overlap):
        assert np.diag(null(sizes, density)).tolist() == [1, 1] and np.isfinite(null(sizes, density)).all()


def test_nulls_of_few_weights_are_numbers() -> None:
    sizes, density = np.array([4]), np.array([[0.1, 0.1]])
    assert np.allclose(overlap.random_specialization(sizes, density), 0.9)
    assert overlap.random_jaccard(sizes, density)[0, 1] == pytest.approx(0.1 / 1.9)


def test_empty_masks_have_no_overlap_to_speak_of() -> None:
    empty = np.zeros((2, 8), bool)
    assert np.isnan(overlap.jaccard(empty)).all() and np.isnan(overlap.specialization(empty)).all()


def test_categories_of_one_and_of_two_steps_are_shares() -> None:
    for masks in (np.array([[1, 0, 1, 1]]), np.array([[1, 0, 1, 0], [1, 1, 0, 0]])):
        shares = overlap.categories(overlap.usage(masks))
        assert shares.sum() == 1
    assert overlap.categories(overlap.usage(np.array([[1, 0, 1, 1]]))).tolist() == [0.25, 0, 0, 0.75]
    assert overlap.categories(np.array([4, 0])).tolist() == [1, 0, 0, 0]
