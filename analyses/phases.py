"""Phases of a path: steps that follow each other and are alike, by the maximal cut of the others."""

from collections.abc import Sequence

import numpy as np

PHASES = (2, 3, 4)  # how many are looked for


def cut(similarity: np.ndarray, n_phases: int) -> np.ndarray:
    """The maximal cut of steps into so many phases, each of steps that follow each other: the phase of every step.

    What is cut is 1 - similarity [step step] between steps of different phases; exact, by dynamic programming. Phases
    are -1 where there are fewer steps or similarities are missing.
    """
    n = len(similarity)
    if n < n_phases or not np.isfinite(similarity).all():
        return np.full(n, -1)
    apart = 1 - np.asarray(similarity, np.float64)
    inside = np.array([[apart[a:b, a:b].sum() for b in range(n + 1)] for a in range(n + 1)])
    least, first = inside[0], []  # what is left uncut of the first b steps, and where their last phase begins
    for _ in range(1, n_phases):
        tried = least[:, None] + inside
        tried[np.tril_indices(n + 1)] = np.inf
        first.append(tried.argmin(0))
        least = tried.min(0)
    phases, end = np.zeros(n, np.int64), n
    for phase, begins in zip(range(n_phases - 1, 0, -1), reversed(first), strict=True):
        phases[begins[end] : end] = phase
        end = begins[end]
    return phases


def contrast(similarity: np.ndarray, phases: np.ndarray) -> float:
    """Mean similarity [step step] of different steps of one phase, less that of steps of different phases."""
    same, other = phases[:, None] == phases, ~np.eye(len(phases), dtype=bool)
    if same.all() or not (same & other).any():
        return np.nan
    return float(similarity[same & other].mean() - similarity[~same].mean())


def steady(similarity: np.ndarray) -> np.ndarray:
    """The null of phases: steps whose similarity depends on how far apart they are alone, [step step]."""
    lag = np.abs(np.subtract.outer(*2 * (np.arange(len(similarity)),)))
    means = np.array([similarity[lag == far].mean() for far in range(len(similarity))])
    return means[lag]


def described(
    similarity: np.ndarray, replicates: Sequence[np.ndarray]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Phases of the similarity of steps [step step], how clear they are beside a steady path's, and in which share of
    replicates (of the jackknife) they are the same: variables under names with a place for what is similar.
    """
    cuts, path = np.stack([cut(similarity, n) for n in PHASES]), steady(similarity)
    same = [[(cut(of, n) == found).all() for of in replicates] for n, found in zip(PHASES, cuts, strict=True)]
    return {
        "{}_phase": (("phases", "step"), cuts),
        "{}_contrast": (("phases",), np.array([contrast(similarity, found) for found in cuts])),
        "null_{}_contrast": (("phases",), np.array([contrast(path, cut(path, n)) for n in PHASES])),
        "{}_stable": (("phases",), np.mean(same, 1)),
    }
