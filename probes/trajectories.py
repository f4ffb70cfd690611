"""Where do images travel, step by step, in the space of their CLS state? (Figure 9 of the paper.)

    python -m probes.trajectories runs/demo

Every image leaves one point a state; all of them are laid out together by one PaCMAP fit (arXiv 2012.04456) with a fixed seed, so that
positions of different steps compare, and by one PCA beside it. A picture may mislead: how often the nearest images share a label, in the
full space and in both pictures, and how many neighbours the pictures keep, stand beside their chance levels.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from models.command import run
from models.errors import InputError
from probes.probe import Common

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from models.vit import BViT

N_SHOWN = 64
TOKENS = ("cls", "mean")


def measure(
    model: BViT,
    data: Any,
    *,
    images: int = 1000,
    token: str | None = None,
    neighbors: int = 10,
    control: BViT | None = None,
    thumbnails: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Coordinates `pacmap, pca (image, state, axis)` of z_0 .. z_T for at most `images` images, spread evenly over `data`.

    `token` is "cls", or "mean" over the patches; by default what the model's head reads. `control` is the untrained model, for the labels
    of its neighbours. Raises `InputError` for fewer images than PaCMAP's neighbours take, and for states that are the same for all images.
    """
    import numpy as np
    import xarray as xr

    from analyses import trajectories as analysis
    from models.data import describe
    from probes.probe import attributes, limited

    started, config = time.time(), model.trained
    token = token or config.pool
    if token not in TOKENS:
        raise InputError(f"token is {token!r}, not one of {', '.join(TOKENS)}")
    refuse_too_few(min(len(data), images), neighbors, config.n_steps)
    data = limited(data, images)
    states, position = watch(model, data, token, batch_size=batch_size, workers=workers, label="trajectories")
    refuse_too_few(len(position), neighbors, config.n_steps)
    refuse_constant(states)

    about = describe(data)
    labels = about.labels[position]
    pictures = {"pacmap": pacmap_of(states, neighbors, seed)}
    pictures["pca"], explained = pca_of(states)
    near = analysis.nearest(states, neighbors)
    found = {name: analysis.nearest(points, neighbors) for name, points in pictures.items()}
    result = xr.Dataset(
        {name: (("image", "state", "axis"), points.astype(np.float32)) for name, points in pictures.items()}
        | {
            "explained": ("axis", explained),
            "label": ("image", labels),
            "index": ("image", about.indices[position]),
            "purity": (("space", "state"), np.stack([analysis.purity(seen, labels) for seen in (near, *found.values())])),
            "kept": (("picture", "state"), np.stack([analysis.kept(near, seen) for seen in found.values()])),
        },
        coords={"state": np.arange(config.n_steps + 1), "space": ["states", *pictures], "picture": list(pictures)},
    )
    if control is not None:
        plain, _ = watch(control.to(model.pos_embed.device), data, token, batch_size=batch_size, workers=workers, label="untrained control")
        result["control_purity"] = "state", analysis.purity(analysis.nearest(plain, neighbors), labels)
    if thumbnails:
        add_thumbnails(result, model, data, position)
    return result.assign_attrs(
        attributes(model, data, seed=seed, started=started),
        token=token, neighbors=neighbors, classes=list(about.classes), n_unreadable=len(data) - len(position),
        purity_chance=analysis.purity_chance(labels), kept_chance=neighbors / (len(labels) - 1),
    )  # fmt: skip


def refuse_too_few(n_images: int, neighbors: int, n_steps: int) -> None:
    """PaCMAP pairs a point with n neighbours, n / 2 mid-near and 2 n further points; neighbours of a label need n other images."""
    if neighbors < 2:
        raise InputError(f"--neighbors is {neighbors}, it must be at least 2")
    needed = max(neighbors + 1, -(-(neighbors + round(neighbors / 2) + 2 * neighbors + 1) // n_steps))
    if n_images < needed:
        raise InputError(f"{n_images} images are too few for {neighbors} neighbours (--neighbors); at least {needed} are needed")


def refuse_constant(states: np.ndarray) -> None:
    """States [image state d] that are the same for all images have no neighbours; z_0 of the CLS token always is."""
    from analyses.style import step_label

    constant = (states[:, 1:] == states[:1, 1:]).all((0, 2))
    if constant.any():
        raise InputError(f"the state after {step_label(int(constant.argmax()))} is the same for all images; this model tells nothing apart there")


def watch(model: BViT, data: Any, token: str, *, batch_size: int, workers: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """States [image state d] in float32 and the images' positions in `data`, in order of position."""
    import numpy as np
    import torch

    from models.data import Stream
    from probes.probe import gathered, processes, progress, refuse_nonfinite

    device, config = model.pos_embed.device, model.trained
    seen = slice(0, 1) if token == "cls" else slice(config.n_prefix, None)
    if token == "cls" and not config.n_prefix:
        raise InputError("the model has no CLS token; use --token mean")
    records = []
    for batch in progress(Stream(data, batch_size, workers=workers, shard=processes()), len(data), label):
        with torch.inference_mode():
            z = model.embed(batch.images.to(device))
            states = [z[:, seen].float().mean(1)]
            for t in range(config.n_steps):
                z = model.run_steps(z, t, t + 1)
                states.append(z[:, seen].float().mean(1))
        stacked = torch.stack(states, 1)
        refuse_nonfinite(stacked[:, 1:].sum((0, 2)))
        records.append((int(batch.index[0]), (stacked.cpu().numpy(), batch.index)))
    parts = gathered(records)
    if not parts:
        raise InputError("no image could be read")
    return np.concatenate([states for states, _ in parts]), np.concatenate([index for _, index in parts])


def as_points(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct points of all states as rows [point d], and each state's row [image state]: one point for a z_0 that never varies."""
    import numpy as np

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
    import logging
    import sys
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' deprecations, and that a seed is set
        import pacmap

        logging.getLogger("pacmap").setLevel(logging.ERROR)
        rows, where = as_points(states)
        print(f"fitting PaCMAP to {len(rows)} points", file=sys.stderr)
        found = pacmap.PaCMAP(n_components=2, n_neighbors=neighbors, random_state=seed).fit_transform(rows, init="pca")
    return found[where]


def pca_of(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of all states [image state axis], and the share of the variance each explains [axis]."""
    from sklearn.decomposition import PCA

    rows, where = as_points(states)
    fit = PCA(2, svd_solver="covariance_eigh").fit(rows.astype("float64"))
    return fit.transform(rows)[where], fit.explained_variance_ratio_


def add_thumbnails(result: xr.Dataset, model: BViT, data: Any, position: np.ndarray) -> None:
    """Pixels of a few images, spread evenly, in place; `shown` is their place along `image`."""
    import numpy as np
    import torch

    n = len(position)
    shown = np.unique(np.linspace(0, n - 1, min(N_SHOWN, n)).round().astype(int))
    pixels = torch.stack([data[int(i)][0] for i in position[shown]])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.config.mean, model.config.std))
    result["shown"] = "place", shown
    result["thumbnail"] = ("place", "y", "x", "channel"), ((pixels * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def command(
    common: Annotated[Common, tyro.conf.arg(name="")],
    *,
    images: int = 1000,
    token: Literal["cls", "mean"] | None = None,
    neighbors: int = 10,
    control: bool = True,
    thumbnails: bool = True,
) -> None:
    """Lay out the states of all steps in one picture, and say how far to trust it.

    Args:
        common: the options of every probe.
        images: at most this many, spread evenly over the data; the picture holds T + 1 points of each.
        token: cls, or mean over the patches; by default what the model's head reads.
        neighbors: of PaCMAP and of the numbers beside chance.
        control: also measure the untrained model (same config and seed), where the checkpoint can rebuild it.
        thumbnails: keep the pixels of a few images for the dashboard.
    """
    from analyses import trajectories as analysis
    from probes import probe

    model = probe.open_model(common)
    data = probe.open_images(common, model)
    untrained = probe.untrained_of(common) if control and common.weights != "init" else None
    options = dict(batch_size=common.batch_size, workers=common.workers, seed=common.seed)
    result = measure(model, data, images=images, token=token, neighbors=neighbors, control=untrained, thumbnails=thumbnails, **options)
    probe.save(result, probe.result_path(common, model, "trajectories"))
    if probe.processes()[0] == 0:
        print(analysis.table(result))


if __name__ == "__main__":
    run(command, prog="python -m probes.trajectories")
