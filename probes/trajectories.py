"""Where do images travel, step by step, in the space of their CLS state? (Figure 9 of the paper.)

    python -m probes.trajectories runs/demo

Every image leaves one point a state; all of them are laid out together by one PaCMAP fit (arXiv 2012.04456) with a
fixed seed, so that positions of different steps compare, and by one PCA beside it. A picture may mislead: how often
the nearest images share a label, in the full space and in both pictures, and how many neighbours the pictures keep,
stand beside their chance levels. Costs a plain forward an image, then some ten seconds for 10,000 points.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, Literal

from etils import epy

from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import pacmap
    import torch
    import xarray as xr
    from sklearn import decomposition

    import models
    from analyses import style
    from analyses import trajectories as analysis
    from models.data import stream
    from probes.methods import pixels

N_SHOWN = 64  # images whose pixels the result keeps


def of_untrained(result: xr.Dataset) -> xr.Dataset:
    """Of the untrained model, the labels of its neighbours in the full space."""
    return result[["purity"]].sel(space="states", drop=True)


@probe.measurement(control=of_untrained, lighter=dict(layouts=(), thumbnails=False))
def measure(
    model: models.BViT,
    data: Any,
    *,
    images: int = 1000,
    token: Literal["cls", "mean"] | None = None,
    neighbors: int = 10,
    layouts: tuple[Literal["pacmap", "pca"], ...] = ("pacmap", "pca"),
    thumbnails: bool = True,
) -> xr.Dataset:
    """Lay out the states of all steps in one picture, and say how far to trust it.

    Raises `InputError` for fewer images than PaCMAP's neighbours take, and for states that are the same for all images.

    Args:
        images: at most this many, spread evenly over the data; the picture holds T + 1 points of each.
        token: cls, or mean over the patches; by default what the model's head reads.
        neighbors: of PaCMAP and of the numbers beside chance.
        layouts: pictures to make: pacmap, pca.
        thumbnails: keep the pixels of a few images for the dashboard.
    """
    config = model.trained
    token = token or ("mean" if config.pool == "mean" else "cls")
    require((token in ("cls", "mean"), f"token is {token!r}, not cls or mean"))
    refuse_too_few(min(len(data), images), neighbors, config.n_steps)
    data = data.sample(images)
    joined = data.over(lambda batch: read(model, batch, token))
    states, position = joined["states"].values, joined["position"].values
    refuse_too_few(len(position), neighbors, config.n_steps)
    refuse_constant(states)
    labels, pictures = data.labels(position), {}
    if "pacmap" in layouts:
        pictures["pacmap"] = data.once(lambda: pacmap_of(states, neighbors, data.seed))
    if "pca" in layouts:
        pictures["pca"], explained = pca_of(states)
    near = [analysis.nearest(points, neighbors) for points in (states, *pictures.values())]
    varies = np.where((states == states[:1]).all((0, 2)), np.nan, 1.0)  # a point that all images share has no nearest
    result = xr.Dataset(
        {name: (("image", "state", "axis"), points.astype(np.float32)) for name, points in pictures.items()}
        | {"label": ("image", labels), "index": ("image", data.indices(position))}
        | {"purity": (("space", "state"), [varies * analysis.purity(neighbours, labels) for neighbours in near])},
        coords={"state": np.arange(config.n_steps + 1), "space": ["states", *pictures]},
    )
    if pictures:
        result.coords["picture"] = list(pictures)
        result["kept"] = ("picture", "state"), [varies * analysis.kept(near[0], neighbours) for neighbours in near[1:]]
    if "pca" in pictures:
        result["explained"] = "axis", explained
    if thumbnails:
        result = result.assign(a_few(data, position, config))
    return result.assign_attrs(
        token=token,
        neighbors=neighbors,
        classes=list(data.about.classes),
        n_unreadable=joined.attrs["n_unreadable"],
        purity_chance=analysis.purity_chance(labels),
        kept_chance=neighbors / (len(labels) - 1),
    )


def a_few(data: probe.Pass, position: np.ndarray, config: models.ViTConfig) -> dict[str, tuple]:
    """Pixels of a few images, spread evenly, and their places among the images."""
    n = len(position)
    shown = np.unique(np.linspace(0, n - 1, min(N_SHOWN, n)).round().astype(int))
    thumbnails = pixels.shown(data.data, position[shown], config)
    return {"shown": ("place", shown), "thumbnail": (("place", "y", "x", "channel"), thumbnails)}


def refuse_too_few(n_images: int, neighbors: int, n_steps: int) -> None:
    """PaCMAP pairs a point with n neighbours, n / 2 mid-near and 2 n further ones; neighbours of a label need n
    others.
    """
    require((neighbors >= 2, f"--neighbors is {neighbors}, it must be at least 2"))
    needed = max(neighbors + 1, -(-(neighbors + round(neighbors / 2) + 2 * neighbors + 1) // n_steps))
    complaint = f"{n_images} images are too few for {neighbors} neighbours (--neighbors); at least {needed} are needed"
    require((n_images >= needed, complaint))


def refuse_constant(states: np.ndarray) -> None:
    """States [image state d] that are the same for all images have no neighbours; z_0 of the CLS token always is."""
    constant = (states[:, 1:] == states[:1, 1:]).all((0, 2))
    if constant.any():
        step = style.step_label(int(constant.argmax()))
        raise InputError(f"the state after {step} is the same for all images; this model tells nothing apart there")


def read(model: models.BViT, batch: stream.Batch, token: str) -> probe.Reading:
    """States z_0 .. z_T of a batch, in float32: [image state d]."""
    config = model.trained
    tokens = slice(0, 1) if token == "cls" else slice(config.n_prefix, None)
    with torch.inference_mode():
        z = model.embed(batch.images.to(model.pos_embed.device))
        states = [z[:, tokens].float().mean(1)]
        for t in range(config.n_steps):
            z = model.run_steps(z, t, t + 1)
            states.append(z[:, tokens].float().mean(1))
    stacked = torch.stack(states, 1)
    probe.refuse_nonfinite(stacked[:, 1:].sum((0, 2)))
    return {"states": (("image", "state", "d"), stacked)}


def as_points(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct points of all states [point d], and which is each state's [image state]: one for a constant z_0."""
    n, n_states, _ = states.shape
    where = np.arange(n * n_states).reshape(n, n_states)
    rows = states.reshape(n * n_states, -1)
    if (states[:, 0] == states[:1, 0]).all():
        where[:, 0] = 0
        where[:, 1:] = 1 + np.arange(n * (n_states - 1)).reshape(n, n_states - 1)
        rows = np.concatenate([states[:1, 0], states[:, 1:].reshape(n * (n_states - 1), -1)])
    return rows, where


def pacmap_of(states: np.ndarray, neighbors: int, seed: int) -> np.ndarray:
    """One joint PaCMAP fit of all states: [image state axis]."""
    rows, where = as_points(states)
    print(f"fitting PaCMAP to {len(rows)} points", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' deprecations, and that a seed is set
        layout = pacmap.PaCMAP
        logging.getLogger("pacmap").setLevel(logging.ERROR)  # which its import has raised
        return layout(n_components=2, n_neighbors=neighbors, random_state=seed).fit_transform(rows, init="pca")[where]


def pca_of(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of all states [image state axis]; the share of variance of each [axis]."""
    rows, where = as_points(states)
    fit = decomposition.PCA(2, svd_solver="covariance_eigh").fit(rows.astype("float64"))
    return fit.transform(rows)[where], fit.explained_variance_ratio_


if __name__ == "__main__":
    probe.main(measure)
