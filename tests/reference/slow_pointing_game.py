"""The pointing game once more, in plain NumPy loops: what `probes.pointing_game` must equal."""

import math

import numpy as np


def hit(attention: np.ndarray, mask: np.ndarray, wanted, patch: int, radius: float) -> float:
    """One image, one map: attention [row column], mask [y x], wanted(mask value) -> bool; NaN if it points at an
    ignored pixel.
    """
    scores, ignored = [], 0
    top = attention.max()
    for row in range(attention.shape[0]):
        for column in range(attention.shape[1]):
            if attention[row, column] != top:
                continue
            y, x = row * patch + patch // 2, column * patch + patch // 2
            if mask[y, x] == -1:
                ignored += 1
            else:
                scores.append(float(near(mask, y, x, wanted, radius)))
    return sum(scores) / len(scores) if scores else math.nan


def near(mask: np.ndarray, y: int, x: int, wanted, radius: float) -> bool:
    """Whether a wanted pixel is (y, x) itself or closer to it than the radius."""
    for v in range(mask.shape[0]):
        for u in range(mask.shape[1]):
            if wanted(mask[v, u]) and ((v, u) == (y, x) or math.hypot(v - y, u - x) < radius):
                return True
    return False


def mass(attention: np.ndarray, mask: np.ndarray, label: int, patch: int) -> float:
    """Share of the attention that lies inside the target, pixel by pixel."""
    inside = total = 0.0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            a = attention[y // patch, x // patch] / patch**2
            total += a
            inside += a * (mask[y, x] == label + 1)
    return inside / total


def iou60(attention: np.ndarray, mask: np.ndarray, label: int, patch: int) -> float:
    """IoU with the target of the fewest patches that hold at least 60 % of the attention."""
    order = sorted(np.ndindex(attention.shape), key=lambda place: -attention[place])
    held, kept = 0.0, np.zeros_like(mask, dtype=bool)
    for row, column in order:
        if held >= 0.6 * attention.sum():
            break
        held += attention[row, column]
        kept[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = True
    target = mask == label + 1
    return (kept & target).sum() / (kept | target).sum()


def micro(values: list[float]) -> float:
    kept = [v for v in values if not math.isnan(v)]
    return sum(kept) / len(kept)


def macro(values: list[float], labels: list[int]) -> float:
    return micro(
        [micro([v for v, label in zip(values, labels, strict=True) if label == c]) for c in sorted(set(labels))]
    )
