"""How sure is a number? Intervals of ratios and means, and what the best of many would reach by luck.

Accuracies have Wilson's interval. Means over items (an image, or one class on an image) are resampled by photograph:
items of one photograph are not independent, so they are drawn together. The best of many cells is biased upwards; its
chance level is the exact distribution of the best of as many independent pointers.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import signal, stats

DIRECT = 64  # distributions shorter than this are convolved directly, longer ones by FFT


def wilson(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a ratio, `hits` of `n`: (low, high); 0 and 1 where nothing was counted."""
    hits, n = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    z = stats.norm.ppf(0.5 + level / 2)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(hits * (n - hits) / np.maximum(n, 1) + z**2 / 4)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def of_ratio(ratio: ArrayLike, n: ArrayLike, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of ratios measured on n images, times `scale` (100 for per cent): (low, high)."""
    low, high = wilson(np.asarray(ratio, np.float64) * n, n)
    return scale * low, scale * high


def unless_constant(
    low: ArrayLike, high: ArrayLike, value: ArrayLike, n: int, least: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A bootstrap's bounds of values between `least` and 1 over n images; where resampling has nothing to vary, as
    where all images agree, what Wilson's interval of none in n leaves open around the value.
    """
    low, high, value, none = np.asarray(low), np.asarray(high), np.asarray(value), wilson(0, n)[1]
    is_constant = low == high
    return (
        np.where(is_constant, np.maximum(value - none, least), low),
        np.where(is_constant, np.minimum(value + none, 1), high),
    )


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    count = (~np.isnan(values)).sum(0)
    return np.divide(np.nansum(values, 0), count, out=np.full(values.shape[1:], np.nan), where=count > 0)


def averages(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Micro (over items) and macro (over classes) mean of values [item ...]: [average ...]. NaN is left out."""
    values = np.asarray(values, np.float64)
    return np.stack([nanmean(values), nanmean(np.stack([nanmean(values[labels == c]) for c in np.unique(labels)]))])


# Bootstrap


def bootstrap(
    values: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of both `averages` of values [item ...]: (low, high), each [average ...].

    groups: [item], the photograph each item is of; by default each its own. Photographs are drawn with replacement; for
    the macro mean within their class where each shows one class alone, and a class that is not drawn is left out.
    """
    flat = np.asarray(values, np.float32).reshape(len(labels), -1)
    _, photo = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = draws(photo, rng, resamples)
    micro = weighted_mean(weights, flat)
    if len(np.unique(np.stack([photo, labels]), axis=1).T) == photo.max() + 1:
        macro = _macro(flat, labels, lambda members: draws(photo[members], rng, resamples))
    else:
        macro = _macro(flat, labels, lambda members: weights[:, members])
    drawn, tail = np.stack([micro, macro], 1), (1 - level) / 2
    is_empty = np.isnan(drawn).all(0)
    bounds = np.nanquantile(np.where(is_empty, 0, drawn), [tail, 1 - tail], axis=0)
    low, high = np.where(is_empty, np.nan, bounds).reshape(2, 2, *np.shape(values)[1:])
    return low, high


def ratio_of_sums(
    values: np.ndarray,
    scale: np.ndarray,
    groups: np.ndarray,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of values [item ...] over the sum of their scale [item], and its percentile interval: (ratio, low, high).

    Items of one photograph, groups [item], are drawn together. NaN is left out of both sums; where nothing is left,
    or the scale is 0, the ratio is NaN.
    """
    flat = np.asarray(values, np.float64).reshape(len(scale), -1)
    valid = ~np.isnan(flat)
    drawn = np.concatenate([np.ones((1, len(scale))), draws(groups, np.random.default_rng(seed), resamples)])
    above, below = drawn @ np.where(valid, flat, 0), (drawn * scale) @ valid.astype(np.float64)
    ratios = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    is_empty, tail = np.isnan(ratios[0]), (1 - level) / 2
    bounds = np.nanquantile(np.where(is_empty, 0, ratios[1:]), [tail, 1 - tail], axis=0)
    shape = np.shape(values)[1:]
    low, high = np.where(is_empty, np.nan, bounds).reshape(2, *shape)
    return ratios[0].reshape(shape), low, high


def jackknife(left_out: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Half the width of the interval of a number, from its values without one group of items each [group ...].

    For statistics that a bootstrap would bias, because an item drawn twice is the same as itself.
    """
    n = len(left_out)
    error = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean(0)).sum(0))
    return stats.norm.ppf(0.5 + level / 2) * error


def draws(photo: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """How often each item is drawn when its photographs are drawn with replacement: [resample item]."""
    _, photo = np.unique(photo, return_inverse=True)
    n = photo.max() + 1
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)[:, photo]


def poisson_weights(photographs: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Poisson(1) weights of items, those of one photograph alike: [resample item].

    A bootstrap for sums that are streamed (Chamandy et al., 2012): a photograph's weights depend on nothing but its
    number and the seed, so that neither batches nor processes change them.
    """
    drawn = [np.random.default_rng([seed, int(photo)]).poisson(1.0, resamples) for photo in photographs]
    return np.stack(drawn, 1).astype(np.float64)


def weighted_mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of values [item cell] without NaN, under weights [resample item]: [resample cell]; NaN for none."""
    valid = ~np.isnan(values)
    total = weights @ np.where(valid, values, 0)
    count = weights.sum(1, keepdims=True) if valid.all() else weights @ valid.astype(np.float32)
    return np.divide(total, count, out=np.full(total.shape, np.nan, np.float32), where=count > 0)


def _macro(values: np.ndarray, labels: np.ndarray, weights: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Mean over classes of the means of `weights(members)` over each one's items: [resample cell]."""
    total, count = 0.0, 0
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        means = weighted_mean(weights(members), values[members])
        is_there = ~np.isnan(means)
        total, count = total + np.where(is_there, means, 0), count + is_there
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)


# The best of many


def best_of(chance: ArrayLike, n_cells: int, level: float = 0.95) -> tuple[float, float]:
    """Mean and upper quantile of the best hit ratio among `n_cells` independent pointers, exact.

    Each hits image i with probability chance[i], so that its hits have a Poisson binomial distribution, and the best of
    them the distribution function of one to the power of `n_cells`. NaN is left out; NaN where nothing is left.
    """
    chance = np.asarray(chance, np.float64)
    chance = chance[~np.isnan(chance)]
    if not len(chance):
        return np.nan, np.nan
    below = poisson_binomial(chance).cumsum().clip(0, 1) ** n_cells
    return float((1 - below[:-1]).sum() / len(chance)), float(np.argmax(below >= level) / len(chance))


def poisson_binomial(chance: ArrayLike) -> np.ndarray:
    """Distribution of the number of hits among independent trials: [count], trials merged pair by pair."""
    parts = [np.array([1 - p, p]) for p in np.asarray(chance, np.float64)] or [np.ones(1)]
    while len(parts) > 1:
        merged = [_convolved(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = merged + parts[len(merged) * 2 :]
    return parts[0]


def _convolved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.convolve(a, b) if len(a) < DIRECT else signal.fftconvolve(a, b).clip(0)
