"""Does the CLS token look at the object? Hit ratio of every head at every step (figures 4 and 10 to 13 of the paper).

    python -m probes.pointing_game runs/demo
    python -m probes.pointing_game ckpt.pt --data imagenet-s:ImageNetS50

Per image, step and head, the arg-max of CLS attention over the patches is a point; it hits if it lies on the target's
mask (tolerance 0), or within 15 px of it at 224 px (the original pointing game's tolerance, Zhang et al. 2018; the radius
scales with the image). Costs about one plain forward per image, and another for the untrained control.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from models.command import run
from models.errors import InputError
from probes.probe import Common

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from torch import Tensor

    from models.vit import BViT

TOLERANCES = (0, 15)  # pixels at an image of 224
TARGETS = ("class", "any")
COMPANIONS = ("mass", "lift", "iou60", "entropy", "to_cls", "to_registers")
Upsample = Literal["none", "bilinear", "bicubic"]
N_SHOWN = 48  # images whose pixels the result keeps


def measure(
    model: BViT,
    data: Any,
    *,
    control: BViT | None = None,
    upsample: Upsample = "none",
    thumbnails: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Pointing game of every head and step on every image of `data` that shows its class.

    `control` is the untrained model; its hit ratios are stored beside. `upsample` adds hit ratios at the arg-max of the
    upsampled map. Raises `InputError` where there are no masks, or where activations are not finite.
    """
    import numpy as np
    import xarray as xr

    from analyses import pointing_game as analysis
    from models.data import describe, require_masks
    from probes.probe import attributes

    started = time.time()
    require_masks(data)
    watched = watch(model, data, upsample=upsample, batch_size=batch_size, workers=workers, label="pointing game")
    if not len(watched["position"]):
        raise InputError(f"{describe(data).spec}: no image shows its class after the crop; choose other data or a larger --limit")
    config = model.config
    about = describe(data)
    labels = about.labels[watched["position"]]
    ratios = analysis.ratios(watched["hit"], labels, seed=seed)
    cells = ("tolerance", "target", "average", "step", "head")
    result = xr.Dataset(
        {name: (cells, ratios[name]) for name in ("hit_ratio", "hit_low", "hit_high")}
        | {name: (("step", "head"), watched["companions"][i]) for i, name in enumerate(COMPANIONS)}
        | {
            "chance": (("companion",), watched["chance"]),
            "baseline": (("kind", *cells[:3]), analysis.average(watched["baseline"], labels, axis=3)),
            "baseline_per_image": (("kind", "tolerance", "target", "image"), watched["baseline"]),
            "hit": (("tolerance", "target", "image", "step", "head"), watched["hit"]),
            "argmax": (("image", "step", "head"), watched["argmax"]),
            "index": (("image",), about.indices[watched["position"]]),
            "label": (("image",), labels),
        },
        coords={
            "tolerance": list(TOLERANCES), "target": list(TARGETS), "average": ["micro", "macro"], "companion": list(COMPANIONS),
            "kind": ["centre", "uniform", "area"], "step": np.arange(config.n_steps), "head": np.arange(config.n_heads),
        },
    )  # fmt: skip
    if upsample != "none":
        result["hit_ratio_upsampled"] = cells, analysis.average(watched["hit_upsampled"], labels, axis=2)
    if control is not None:
        plain = watch(control.to(model.pos_embed.device), data, batch_size=batch_size, workers=workers, label="untrained control")
        result["control_hit_ratio"] = cells, analysis.average(plain["hit"], labels, axis=2)
        result["control_companions"] = ("companion", "step", "head"), plain["companions"]
    if thumbnails:
        add_thumbnails(result, model, data, watched["position"], seed)
    n_skipped = len(data) - len(watched["position"]) - watched["n_unreadable"]
    return result.assign_attrs(
        attributes(model, data, seed=seed, started=started),
        image_size=config.image_size, patch_size=config.patch_size, upsample=upsample,
        tolerance_pixels=[tolerance * config.image_size / 224 for tolerance in TOLERANCES],
        classes=list(about.classes), n_skipped=n_skipped, n_unreadable=watched["n_unreadable"],
        note="" if len(labels) >= 100 else f"only {len(labels)} images: read the confidence intervals",
    )  # fmt: skip


@dataclass(frozen=True)
class Table:
    """What every patch of a batch of images would score, before anybody looks.

    hit: [tolerance target batch patch], NaN where the patch's centre pixel is ignored; baseline: [baseline tolerance target batch];
    share: [batch patch], the target's share of each patch; dilated: [tolerance target batch h w]; area: [batch], the target's share of the image.
    """

    hit: Tensor
    baseline: Tensor
    share: Tensor
    dilated: Tensor
    area: Tensor


def score_table(masks: Tensor, labels: Tensor, patch: int) -> Table:
    """From masks [batch h w] and labels [batch]."""
    import torch
    import torch.nn.functional as F

    size, ignored = masks.shape[-1], masks == -1
    targets = torch.stack([masks == (labels + 1)[:, None, None], masks > 0])
    dilated = torch.stack([dilate(targets, tolerance * size / 224) for tolerance in TOLERANCES])
    score = dilated.float().masked_fill(ignored, torch.nan)
    hit = score[..., patch // 2 :: patch, patch // 2 :: patch].flatten(-2)
    baseline = torch.stack([score[..., size // 2, size // 2], hit.nanmean(-1), score.flatten(-2).nanmean(-1)])
    share = F.avg_pool2d(targets[0].float()[:, None], patch).flatten(1)
    area = targets[0].flatten(1).float().sum(1) / (~ignored).flatten(1).sum(1).clamp(min=1)
    return Table(hit, baseline, share, dilated, area)


def dilate(masks: Tensor, radius: float) -> Tensor:
    """Pixels closer than `radius` to a True pixel of masks [... h w]; the masks themselves at radius 0."""
    import math

    import torch
    import torch.nn.functional as F

    reach = math.ceil(radius) - 1
    if reach < 1:
        return masks
    height, width = masks.shape[-2:]
    rows = F.pad(masks.flatten(0, -3).to(torch.int16), (reach + 1, reach, reach, reach))
    so_far = rows.cumsum(-1, dtype=torch.int16)
    count = torch.zeros_like(so_far[:, :height, :width])
    for dy in range(-reach, reach + 1):  # a disc is a stack of rows, and what a row holds is a difference of two running sums
        half = math.ceil(math.sqrt(radius**2 - dy**2)) - 1
        row = so_far[:, reach + dy : reach + dy + height]
        count += row[..., reach + 1 + half :][..., :width]
        count -= row[..., reach - half :][..., :width]
    return (count > 0).unflatten(0, masks.shape[:-2])


def hits(attention: Tensor, table: Table) -> Tensor:
    """Hits [tolerance target batch step head] of patch attention [batch step head patch]; NaN where it points at ignored pixels.

    Exact ties of the arg-max count as their mean.
    """
    import torch

    top = (attention == attention.amax(-1, keepdim=True)).float()
    valid = (~table.hit.isnan()).float()
    return torch.einsum("bshp,lgbp->lgbsh", top, table.hit.nan_to_num(0)) / torch.einsum("bshp,lgbp->lgbsh", top, valid)


def hits_upsampled(attention: Tensor, table: Table, size: int, mode: str) -> Tensor:
    """As `hits`, at the arg-max pixel of the map upsampled to the image."""
    import torch
    import torch.nn.functional as F

    batch, step, head, patches = attention.shape
    grid, out = int(patches**0.5), torch.empty(2, 2, batch, step, head, device=attention.device)
    dilated = table.dilated.flatten(-2).float()
    for t in range(step):  # one step at a time: a full-size map per head is large
        maps = F.interpolate(attention[:, t].unflatten(-1, (grid, grid)), (size, size), mode=mode, align_corners=False)
        place = maps.flatten(-2).argmax(-1)
        out[..., t, :] = dilated.gather(-1, place.expand(2, 2, batch, head))
    return out


def companions(attention: Tensor, keys: Tensor, n_prefix: int, table: Table) -> Tensor:
    """Tolerance-free companions [companion batch step head], in the order of COMPANIONS, from CLS attention to all keys.

    mass: share of the patch attention inside the target; lift: mass over the target's area; iou60: IoU of the patches that hold the
    top 60 % of the mass with the target (Caron et al., 2021); entropy: of the patch attention over its maximum; the rest as named.
    """
    import math

    import torch

    normal = attention / attention.sum(-1, keepdim=True).clamp(min=1e-12)
    share = table.share[:, None, None]
    mass = (normal * share).sum(-1)
    ordered, order = normal.sort(-1, descending=True)
    top = torch.zeros_like(normal).scatter(-1, order, ((ordered.cumsum(-1) - ordered) < 0.6).to(normal.dtype))
    inside, total = (top * share).sum(-1), share.sum(-1)
    iou = inside / (top.sum(-1) + total - inside).clamp(min=1e-12)
    entropy = -(normal * normal.clamp(min=1e-12).log()).sum(-1) / math.log(normal.shape[-1])
    lift = mass / table.area[:, None, None].clamp(min=1e-12)
    return torch.stack([mass, lift, iou, entropy, keys[..., 0], keys[..., 1:n_prefix].sum(-1)])


def watch(model: BViT, data: Any, *, upsample: Upsample = "none", batch_size: int, workers: int = 0, label: str = "") -> dict[str, Any]:
    """One pass: per-image hits, arg-max and baselines, in order of index, and means of the companions over images."""
    import numpy as np

    from models.data import Stream
    from probes.probe import gathered, processes, progress

    rank, world = processes()
    batches = Stream(data, batch_size, workers=workers, shard=(rank, world))
    records = [(int(batch.index[0]), watch_batch(model, batch, upsample)) for batch in progress(batches, len(data), label)]
    everyone = [record for record in gathered(records) if len(record["position"])]
    n_unreadable = sum(gathered([(rank, len(batches.unreadable))]))
    if not everyone:
        return {"position": np.zeros(0, np.int64), "n_unreadable": n_unreadable}
    joined = {name: np.concatenate([r[name] for r in everyone], axis) for name, axis in AXES.items() if name in everyone[0]}
    n = len(joined["position"])
    sums = {name: np.sum([r[name] for r in everyone], axis=0) / n for name in ("companions", "chance")}
    return joined | sums | {"n_unreadable": n_unreadable}


AXES = {"position": 0, "argmax": 0, "hit": 2, "hit_upsampled": 2, "baseline": 3}  # the image axis of each per-image array


def watch_batch(model: BViT, batch: Any, upsample: Upsample) -> dict[str, np.ndarray]:
    """What one batch leaves behind: kilobytes per image, float64 sums for the rest."""
    import numpy as np
    import torch

    from probes.probe import cls_attention

    device, config = model.pos_embed.device, model.config
    masks, labels = batch.masks.to(device), torch.as_tensor(batch.labels, device=device)
    keys = cls_attention(model, batch.images.to(device))
    shown = (masks == (labels + 1)[:, None, None]).flatten(1).any(1)
    keys, masks, labels = keys[shown], masks[shown], labels[shown]
    attention, table = keys[..., config.n_prefix :], score_table(masks, labels, config.patch_size)
    small = np.uint8 if config.n_patches <= 256 else np.uint16
    record = {
        "position": batch.index[shown.cpu().numpy()],
        "argmax": attention.argmax(-1).cpu().numpy().astype(small),
        "hit": hits(attention, table).cpu().numpy().astype(np.float32),
        "baseline": table.baseline.cpu().numpy().astype(np.float32),
        "companions": companions(attention, keys, config.n_prefix, table).double().sum(1).cpu().numpy(),
        "chance": chance(table, config.n_patches).double().sum(1).cpu().numpy(),
    }
    if upsample != "none":
        record["hit_upsampled"] = hits_upsampled(attention, table, config.image_size, upsample).cpu().numpy()
    return record


def chance(table: Table, n_patches: int) -> Tensor:
    """What each companion would be for uniform attention: [companion batch]; NaN for those that have no chance level.

    For iou60 it is that of 60 % of the patches drawn at random, with the expected overlap.
    """
    import torch

    share = table.share.mean(-1)
    inside = 0.6 * share
    nothing = torch.full_like(share, torch.nan)
    return torch.stack(
        [share, share / table.area.clamp(min=1e-12), inside / (0.6 + share - inside), torch.ones_like(share), nothing, nothing]
    )


def add_thumbnails(result: xr.Dataset, model: BViT, data: Any, position: np.ndarray, seed: int) -> None:
    """Pixels, masks and attention of a few images, in place: a third each of the best, the worst, and drawn at random.

    Best and worst by the number of (step, head) cells that hit the class at tolerance 0.
    """
    import numpy as np
    import torch

    from probes.probe import cls_attention

    score = np.nan_to_num(result["hit"].values[0, 0]).mean((1, 2))
    n = min(N_SHOWN, len(score))
    ranked = np.argsort(-score, kind="stable")
    third = n // 3
    middle = np.random.default_rng(seed).permutation(ranked[third : len(score) - third])[: n - 2 * third]
    shown = np.concatenate([ranked[:third], middle, ranked[len(score) - third :]])
    items = [data[int(i)] for i in position[shown]]
    images = torch.stack([item[0] for item in items])
    attention = cls_attention(model, images.to(model.pos_embed.device))[..., model.config.n_prefix :].cpu().numpy()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.config.mean, model.config.std))
    pixels = ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    result["shown"] = "place", shown
    result["shown_as"] = "place", np.array(["best"] * third + ["random"] * len(middle) + ["worst"] * third)
    result["thumbnail"] = ("place", "y", "x", "channel"), pixels
    result["thumbnail_mask"] = ("place", "y", "x"), torch.stack([item[2] for item in items]).numpy().astype(np.int16)
    peak = attention.max(-1, keepdims=True)
    side = model.config.image_size // model.config.patch_size
    scaled = np.round(255 * attention / np.maximum(peak, 1e-12)).astype(np.uint8).reshape(*attention.shape[:3], side, side)
    result["thumbnail_attention"] = ("place", "step", "head", "row", "column"), scaled


def command(
    common: Annotated[Common, tyro.conf.arg(name="")],
    *,
    upsample: Upsample = "none",
    control: bool = True,
    thumbnails: bool = True,
) -> None:
    """Pointing game of every head at every step, beside the centre, a random patch, and the untrained model.

    Args:
        common: the options of every probe.
        upsample: also score the arg-max of maps upsampled to the image: bilinear or bicubic.
        control: also measure the untrained model (same config and seed), where the checkpoint can rebuild it.
        thumbnails: keep the pixels of a few images for figures and dashboard.
    """
    from analyses import pointing_game as analysis
    from probes import probe

    model = probe.open_model(common)
    data = probe.open_images(common, model)
    untrained = probe.untrained_of(common) if control and common.weights != "init" else None
    options = dict(batch_size=common.batch_size, workers=common.workers, seed=common.seed)
    result = measure(model, data, control=untrained, upsample=upsample, thumbnails=thumbnails, **options)
    probe.save(result, probe.result_path(common, model, "pointing_game"))
    if probe.processes()[0] == 0:
        print(analysis.table(result))


if __name__ == "__main__":
    run(command, prog="python -m probes.pointing_game")
