"""Does the CLS token look at the object? Hit ratio of every head at every step (figures 4 and 10 to 13 of the paper).

    python -m probes.pointing_game runs/demo
    python -m probes.pointing_game ckpt.pt --data imagenet-s:ImageNetS50
    python -m probes.pointing_game runs/demo --map chefer

Per image, step and head, the arg-max of CLS attention over the patches is a point; it hits if it lies on the target's
mask (radius 0), or within 15 px of it at 224 px (the original pointing game's tolerance, Zhang et al. 2018; the radius
scales with the image). Costs about one plain forward per image, and another for the untrained control.

Maps of relevance for the image's own class point in the same way; what a step means for each of them is the table of
`probes.methods.relevance`. Those with a gradient cost about three plain forwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

from etils import epy

from models.errors import InputError
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import pointing_game as analysis
    from models import data as datasets
    from models.data import stream
    from probes.methods import pixels, pointing, relevance

N_SHOWN = 48  # images whose pixels the result keeps
CELLS = ("radius", "target", "average", "step", "head")

MapOf = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]  # images, labels -> [batch step head key]


def file_of(*, map: str = "attention", **others: Any) -> str:
    """Each map has a file of its own: pointing_game.nc, pointing_game.chefer.nc, ..."""
    return "pointing_game" if map == "attention" else f"pointing_game.{map}"


def of_untrained(result: xr.Dataset) -> xr.Dataset:
    return result[["hit_ratio", *pointing.COMPANIONS]]


@probe.measurement(control=of_untrained, lighter=dict(upsample="none", thumbnails=False), file=file_of)
def measure(
    model: models.BViT,
    images: Any,
    *,
    map: Literal["attention", "gradient", "chefer", "rollout"] = "attention",
    upsample: Literal["none", "bilinear", "bicubic"] = "none",
    thumbnails: bool = True,
) -> xr.Dataset:
    """Pointing game of every head at every step, beside the centre, a random patch, and the untrained model.

    Raises `InputError` where there are no masks, where activations are not finite, and for a map of the class's
    relevance where the model does not know the class.

    Args:
        map: attention of CLS; or relevance for the image's own class: gradient (times attention), chefer; or rollout.
        upsample: also score the arg-max of maps upsampled to the image: bilinear or bicubic.
        thumbnails: keep the pixels of a few images for figures and dashboard.
    """
    datasets.require_masks(images.data)
    config, about, is_of_all_heads = model.config, images.about, map in relevance.OF_ALL_HEADS
    map_of = functools.partial(finite_map, model, map, classes_of(model, images, map))
    joined = images.over(lambda batch: read(model, batch, upsample, map_of))
    position, hit = joined["position"].values, joined["hit"].values
    labels, photographs, n = images.labels(position), images.photographs(position), len(position)
    ratios = analysis.ratios(hit, labels, photographs, seed=images.seed)
    companions = zip(pointing.COMPANIONS, joined["sums"].values, strict=True)
    result = xr.Dataset(
        {name: (CELLS, values) for name, values in ratios.items()}
        | {name: (("step", "head"), sums / n) for name, sums in companions}
        | {name: joined[name].variable for name in ("baseline_per_image", "hit", "argmax")}
        | {
            "chance": ("companion", joined["chance_sums"].values / n),
            "baseline": (("kind", *CELLS[:3]), analysis.average(joined["baseline_per_image"].values, labels, axis=3)),
            "index": ("image", images.indices(position)),
            "label": ("image", labels),
            "photograph": ("image", photographs),
        },
        coords={
            **kinds_of_numbers(),
            "step": np.arange(config.n_steps),
            "head": np.arange(1 if is_of_all_heads else config.n_heads),
        },
    )
    if upsample != "none":
        result["hit_ratio_upsampled"] = CELLS, analysis.average(joined["hit_upsampled"].values, labels, axis=2)
    if thumbnails:
        result = result.assign(examples(model, images, position, hit, map_of))
    return result.assign_attrs(
        map=map,
        is_of_all_heads=int(is_of_all_heads),
        image_size=config.image_size,
        patch_size=config.patch_size,
        upsample=upsample,
        radius_pixels=[radius * config.image_size / 224 for radius in pointing.RADII],
        classes=list(about.classes),
        n_skipped=len(images) - n - joined.attrs["n_unreadable"],
        n_unreadable=joined.attrs["n_unreadable"],
        note=probe.note_on(n),
    )


def kinds_of_numbers() -> dict[str, list[Any]]:
    """The coordinates that every result has, whatever the model."""
    return {
        "radius": list(pointing.RADII),
        "target": list(pointing.TARGETS),
        "average": ["micro", "macro"],
        "companion": list(pointing.COMPANIONS),
        "kind": ["centre", "uniform", "area"],
    }


def classes_of(model: models.BViT, images: probe.Pass, map: str) -> torch.Tensor | None:
    """The model's index of each class of the data [label], for the maps that ask for it."""
    if map not in relevance.OF_CLASS:
        return None
    if not model.config.n_classes:
        raise InputError(f"--map {map} needs the class's logit, and the model has no classifier; choose another map")
    return images.classes_of(model)


def read(model: models.BViT, batch: stream.Batch, upsample: str, map_of: MapOf) -> probe.Reading:
    """What one batch leaves: hits, arg-max and baselines of each image that shows its class, sums of the rest."""
    device, config = model.pos_embed.device, model.config
    masks, labels = batch.masks.to(device), batch.labels.to(device)
    keys = map_of(batch.images.to(device), batch.labels)
    shows = (masks == (labels + 1)[:, None, None]).flatten(1).any(1)
    keys, masks, labels = keys[shows], masks[shows], labels[shows]
    patches, table = keys[..., config.n_prefix :], pointing.score_table(masks, labels, config.patch_size)
    index_type = torch.uint8 if config.n_patches <= 256 else torch.uint16
    companions = pointing.companions(patches, keys, config.n_prefix, table)
    per_image = ("radius", "target", "image", "step", "head")
    reading = {
        "position": ("image", batch.index[shows.cpu().numpy()]),
        "argmax": (("image", "step", "head"), patches.argmax(-1).to(index_type)),
        "hit": (per_image, pointing.hits(patches, table)),
        "baseline_per_image": (("kind", "radius", "target", "image"), table.baseline),
        "sums": (("companion", "step", "head"), companions.double().sum(1)),
        "chance_sums": ("companion", pointing.chance(table).double().sum(1)),
    }
    if upsample != "none":
        hits = pointing.hits_upsampled(patches, table, config.image_size, upsample)
        reading["hit_upsampled"] = per_image, hits
    return reading


def finite_map(
    model: models.BViT, map: str, class_of_label: torch.Tensor | None, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """A map [batch step head key] of images; raises `InputError` that names the first step that is not finite."""
    target = None if class_of_label is None else class_of_label[labels].to(images.device)
    keys = relevance.maps(model, images, map, target)
    probe.refuse_nonfinite(keys.flatten(2).sum((0, 2)))
    return keys


def examples(
    model: models.BViT, images: probe.Pass, position: np.ndarray, hit: np.ndarray, map_of: MapOf
) -> dict[str, Any]:
    """Pixels, masks and attention of a few images: a third each of the best, the worst, and drawn at random.

    Best and worst by the number of (step, head) cells that hit the class at radius 0.
    """
    config, score = model.config, np.nan_to_num(hit[0, 0]).mean((1, 2))
    ranked, n = np.argsort(-score, kind="stable"), min(N_SHOWN, len(score))
    third, rest = n // 3, n - 2 * (n // 3)
    middle = np.random.default_rng(images.seed).permutation(ranked[third : len(score) - third])[:rest]
    shown = np.concatenate([ranked[:third], middle, ranked[len(score) - third :]])
    items = [images.data[int(i)] for i in position[shown]]
    pictures = torch.stack([item[0] for item in items]).to(model.pos_embed.device)
    maps = map_of(pictures, torch.tensor([item[1] for item in items]))[..., config.n_prefix :].cpu().numpy()
    scaled = np.round(255 * maps / np.maximum(maps.max(-1, keepdims=True), 1e-12)).astype(np.uint8)
    scaled = scaled.reshape(*maps.shape[:3], config.side, config.side)
    return {
        "shown": ("place", shown),
        "shown_as": ("place", np.array(["best"] * third + ["random"] * rest + ["worst"] * third)),
        "thumbnail": (("place", "y", "x", "channel"), pixels.shown(images.data, position[shown], config)),
        "thumbnail_mask": (("place", "y", "x"), torch.stack([item[2] for item in items]).numpy().astype(np.int16)),
        "thumbnail_attention": (("place", "step", "head", "row", "column"), scaled),
    }


if __name__ == "__main__":
    probe.main(measure)
