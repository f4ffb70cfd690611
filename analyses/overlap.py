"""How much do step-specific masks share, beside what chance alone would give (figures 5 and 14 of the paper).

Masks are [step weight] of 0 and 1. Overlap and specialisation both move with sparsity alone, so every one of them has
its closed form for random masks of the same densities here: `sizes` are the numbers of weights of each matrix,
`density` [matrix step] the share each step keeps of it.
"""

import numpy as np

from analyses.intervals import poisson_binomial

CATEGORIES = ("dead", "step-specific", "partly shared", "universal")


def intersections(masks: np.ndarray) -> np.ndarray:
    """|A and B| of every two steps: [step other_step]; the diagonal is |A|."""
    rows = masks.astype(np.float64)
    return rows @ rows.T


def jaccard(masks: np.ndarray) -> np.ndarray:
    """|A and B| / |A or B|: [step other_step]; NaN where both are empty."""
    intersection = intersections(masks)
    sizes = np.diag(intersection)
    return _ratio(intersection, sizes[:, None] + sizes[None] - intersection)


def overlap(masks: np.ndarray) -> np.ndarray:
    """|A and B| / min(|A|, |B|): [step other_step]."""
    intersection = intersections(masks)
    sizes = np.diag(intersection)
    return _ratio(intersection, np.minimum(sizes[:, None], sizes[None]))


def usage(masks: np.ndarray) -> np.ndarray:
    """How many weights are kept by exactly 0, 1, ..., T steps: [count]."""
    return np.bincount(masks.sum(0, dtype=np.int64), minlength=len(masks) + 1)


def categories(counts: np.ndarray) -> np.ndarray:
    """Usage counts [... count] as shares of all weights in the order of CATEGORIES: [... category]."""
    alone = counts[..., 1] if counts.shape[-1] > 2 else 0 * counts[..., 1]  # one step alone keeps for all steps
    parts = [counts[..., 0], alone, counts[..., 2:-1].sum(-1), counts[..., -1]]
    return np.stack(parts, -1) / counts.sum(-1, keepdims=True)


def specialization(masks: np.ndarray) -> np.ndarray:
    """The share of a step's weights that no other step keeps: [step]."""
    alone = masks.astype(bool) & (masks.sum(0, dtype=np.int64) == 1)
    return _ratio(alone.sum(1), masks.sum(1, dtype=np.int64))


def union_density(masks: np.ndarray) -> float:
    """The share of weights that any step keeps."""
    return float(masks.any(0).mean())


def random_jaccard(sizes: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Jaccard of independent random masks (ratio of expectations): [step other_step]; rho / (2 - rho) if alike."""
    both, either = _expected_pairs(sizes, density)
    return _with_diagonal_one(_ratio(both, either))


def random_overlap(sizes: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Overlap of independent random masks: [step other_step]; the larger density where there is one matrix."""
    both, _ = _expected_pairs(sizes, density)
    kept = np.asarray(sizes, float) @ density
    return _with_diagonal_one(_ratio(both, np.minimum(kept[:, None], kept[None])))


def random_specialization(sizes: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Specialisation of independent random masks: [step]; (1 - rho)^(T - 1) at one density."""
    alone = np.stack([density[:, t] * np.prod(np.delete(1 - density, t, 1), 1) for t in range(density.shape[1])], 1)
    return _ratio(np.asarray(sizes, float) @ alone, np.asarray(sizes, float) @ density)


def random_categories(sizes: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Shares of weights in the order of CATEGORIES under independent random masks: [category]."""
    weight = np.asarray(sizes, float) / np.sum(sizes)
    counts = np.stack([poisson_binomial(row) for row in density])
    return categories(weight @ counts)


def _expected_pairs(sizes: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected |A and B| and |A or B| of every two steps."""
    s, t = density[:, :, None], density[:, None, :]
    weight = np.asarray(sizes, float)
    return np.tensordot(weight, s * t, 1), np.tensordot(weight, s + t - s * t, 1)


def _with_diagonal_one(values: np.ndarray) -> np.ndarray:
    values[np.diag_indices(len(values))] = 1
    return values


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
