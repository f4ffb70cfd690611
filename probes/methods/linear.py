"""The linear probe: multinomial logistic regression on standardised CLS states, after every number of steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression

from models import loop
from models.data import stream
from models.vit import BViT
from probes.methods.reading import states_of
from probes.walk import Pass

L2 = (1e-3, 1e-2, 1e-1)  # penalties that are tried; on |w|^2 / 2, beside the mean loss
HELD_OUT = 0.1  # share of the training images on which the penalty is chosen
LARGEST = 2**31  # bytes of features, above which fewer training images are taken
NEVER = -1e9  # logit of a class that no training image shows

Features = Float[np.ndarray, "image d"]
Labels = Int[np.ndarray, " image"]


@dataclass(frozen=True)
class Linear:
    """A linear probe of one state, on it as the final norm leaves it: weight [class d], bias [class]."""

    weight: np.ndarray
    bias: np.ndarray
    l2: float
    held_out: float  # accuracy on the held-out training images under that penalty, NaN where it was not chosen on any


def states(model: BViT, images: torch.Tensor) -> Iterator[Float[torch.Tensor, "image d"]]:
    """The CLS state after 0 .. T steps, under the final norm."""
    for z in states_of(model, images):
        yield model.norm(z[:, 0])


def fitting(model: BViT, train: Pass) -> Pass:
    """As many training images, spread evenly, as have room for their features."""
    each = 4 * (model.config.n_steps + 1) * model.config.d_model
    return train.sample(max(1, LARGEST // each))


def features(model: BViT, images: Pass) -> tuple[np.ndarray, np.ndarray]:
    """Every CLS state, float32 [image state d], and labels [image]; one pass."""

    def read(batch: stream.Batch) -> dict:
        with torch.inference_mode():
            of_batch = torch.stack(list(states(model, batch.images.to(model.pos_embed.device).float())), 1)
        return {"cls": (("image", "state", "d"), of_batch.float())}

    measured = images.over(read)
    return measured["cls"].values, images.labels(measured["position"])


def accuracies(model: BViT, images: Pass, probes: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Share of right answers of `fitted_all`'s probes: [seed state]; one pass, in which nothing is kept."""
    weight, bias = (probes[name].to(model.pos_embed) for name in ("weight", "bias"))

    def read(batch: stream.Batch) -> dict:
        right, labels = [], batch.labels.to(weight.device)
        with torch.inference_mode():
            for k, z in enumerate(states(model, batch.images.to(weight.device).float())):
                logits = torch.einsum("scd,nd->snc", weight[:, k], z) + bias[:, k, None]
                right.append((logits.argmax(-1) == labels).sum(1))
        return {"right": (("seed", "state"), torch.stack(right, 1))}

    measured = images.over(read)
    return measured["right"].values / measured["position"].size


def fitted_all(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    seeds: Sequence[int],
    *,
    kept: Path | None = None,
    key: Mapping[str, Any] | None = None,
    label: str = "",
) -> dict[str, torch.Tensor]:
    """Probes of features [image state d], one for every seed and state; a killed run goes on with the next.

    weight [seed state class d], bias [seed state class], l2 and held_out [seed state], float64.
    """
    n_states, d = features.shape[1:]
    sizes = {"weight": (n_classes, d), "bias": (n_classes,), "l2": (), "held_out": ()}
    probes = {name: torch.zeros(len(seeds), n_states, *size, dtype=torch.float64) for name, size in sizes.items()}
    fits = loop.Loop(
        kept,
        {"probes": probes},
        updates=len(seeds) * n_states,
        key=key,
        restart=True,
        unit=" probes",
        label=label,
        advice="look for what is not finite in the images",
    )
    for update in fits:
        seed, state = divmod(update, n_states)
        probe = fitted(features[:, state], labels, n_classes, seeds[seed])
        for name, values in probes.items():
            values[seed, state] = torch.as_tensor(np.nan_to_num(getattr(probe, name)))
    return probes


def fitted(features: Features, labels: Labels, n_classes: int, seed: int) -> Linear:
    """The probe of one state: its penalty chosen on a tenth of the images, drawn from `seed`, then refit on all."""
    order, n = np.random.default_rng(seed).permutation(len(labels)), max(1, round(HELD_OUT * len(labels)))
    held, rest = order[:n], order[n:]
    tried = {}
    for l2 in L2 if len(np.unique(labels[rest])) > 1 else ():
        weight, bias = logistic(features[rest], labels[rest], n_classes, l2)
        tried[l2] = float(((features[held] @ weight.T + bias).argmax(1) == labels[held]).mean())
    best = max(tried, key=lambda l2: (tried[l2], l2), default=L2[-1])
    return Linear(*logistic(features, labels, n_classes, best), best, tried.get(best, np.nan))


def logistic(features: Features, labels: Labels, n_classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Minimum of mean cross-entropy + l2 |w|^2 / 2 over standardised features, as weight [class d] and bias [class] of
    the features as they are. A class without an image is never answered.
    """
    mean, sd = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64) + 1e-6
    rows = 2 if len(np.unique(labels)) == 2 else 1  # of two classes scikit-learn fits the difference w: |(-w, w) / 2|^2
    fit = LogisticRegression(C=rows / (l2 * len(labels)), max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the last digit, and of many classes with few images
        fit.fit((features - mean) / sd, labels)
    w, b = fit.coef_, fit.intercept_
    if rows == 2:
        w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
    weight, bias = np.zeros((n_classes, features.shape[1])), np.full(n_classes, NEVER)
    weight[fit.classes_], bias[fit.classes_] = w / sd, b - (w / sd) @ mean
    return weight, bias
