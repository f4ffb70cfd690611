"""The pointing game's arithmetic: what every patch would score, and what attention over the patches does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RADII = (0, 15)  # pixels at an image of 224
TARGETS = ("class", "any")
COMPANIONS = ("mass", "lift", "iou60", "entropy", "to_cls", "to_registers")


@dataclass(frozen=True)
class Table:
    """What every patch of a batch of images would score, before anybody looks; ignored pixels count for nothing.

    hit: [radius target batch patch], NaN where the patch's centre pixel is ignored; baseline: [baseline radius target
    batch]; score: [radius target batch h w], NaN where ignored; share, valid: [batch patch], the shares of each patch
    that are the target's and that are not ignored.
    """

    hit: Tensor
    baseline: Tensor
    score: Tensor
    share: Tensor
    valid: Tensor

    @property
    def area(self) -> Tensor:
        """The target's share of the image that is not ignored: [batch]."""
        return self.share.sum(-1) / self.valid.sum(-1).clamp(min=1e-12)


def score_table(masks: Tensor, labels: Tensor, patch: int) -> Table:
    """From masks [batch h w] and labels [batch]."""
    size, ignored = masks.shape[-1], masks == -1
    targets = torch.stack([masks == (labels + 1)[:, None, None], masks > 0])
    dilated = torch.stack([dilate(targets, radius * size / 224) for radius in RADII])
    score = dilated.float().masked_fill(ignored, torch.nan)
    hit = score[..., patch // 2 :: patch, patch // 2 :: patch].flatten(-2)
    baseline = torch.stack([score[..., size // 2, size // 2], hit.nanmean(-1), score.flatten(-2).nanmean(-1)])
    share, valid = (F.avg_pool2d(part.float()[:, None], patch).flatten(1) for part in (targets[0], ~ignored))
    return Table(hit, baseline, score, share, valid)


def dilate(masks: Tensor, radius: float) -> Tensor:
    """Pixels closer than `radius` to a True pixel of masks [... h w]; the masks themselves at radius 0."""
    reach = math.ceil(radius) - 1
    if reach < 1:
        return masks
    height, width = masks.shape[-2:]
    rows = F.pad(masks.flatten(0, -3).to(torch.int16), (reach + 1, reach, reach, reach))
    so_far = rows.cumsum(-1, dtype=torch.int16)
    count = torch.zeros_like(so_far[:, :height, :width])
    for dy in range(-reach, reach + 1):  # a disc is a stack of rows, a row's count a difference of running sums
        half = math.ceil(math.sqrt(radius**2 - dy**2)) - 1
        row = so_far[:, reach + dy : reach + dy + height]
        count += row[..., reach + 1 + half :][..., :width]
        count -= row[..., reach - half :][..., :width]
    return (count > 0).unflatten(0, masks.shape[:-2])


def hits(attention: Tensor, table: Table) -> Tensor:
    """Hits [radius target batch step head] of patch attention [batch step head patch]; exact ties count as their mean.

    NaN where attention points at ignored pixels.
    """
    top = (attention == attention.amax(-1, keepdim=True)).float()
    valid = (~table.hit.isnan()).float()
    return torch.einsum("bshp,lgbp->lgbsh", top, table.hit.nan_to_num(0)) / torch.einsum("bshp,lgbp->lgbsh", top, valid)


def hits_upsampled(attention: Tensor, table: Table, size: int, mode: str) -> Tensor:
    """As `hits`, at the arg-max pixel of the map upsampled to the image."""
    batch, step, head, patches = attention.shape
    grid, hit = int(patches**0.5), torch.empty(2, 2, batch, step, head, device=attention.device)
    score = table.score.flatten(-2)
    for t in range(step):  # one step at a time: a full-size map per head is large
        maps = F.interpolate(attention[:, t].unflatten(-1, (grid, grid)), (size, size), mode=mode, align_corners=False)
        hit[..., t, :] = score.gather(-1, maps.flatten(-2).argmax(-1).expand(2, 2, batch, head))
    return hit


def companions(attention: Tensor, keys: Tensor, n_prefix: int, table: Table) -> Tensor:
    """Radius-free companions [companion batch step head], in the order of COMPANIONS, from CLS attention to all keys.

    mass: share of the patch attention inside the target, of that which is not on ignored pixels; lift: mass over the
    target's area; iou60: IoU of the patches that hold the top 60 % of the mass with the target (Caron et al., 2021);
    entropy: of the patch attention over its maximum; the rest as named.
    """
    normal = attention / attention.sum(-1, keepdim=True).clamp(min=1e-12)
    share, valid = table.share[:, None, None], table.valid[:, None, None]
    mass = (normal * share).sum(-1) / (normal * valid).sum(-1).clamp(min=1e-12)
    ordered, order = normal.sort(-1, descending=True)
    top = torch.zeros_like(normal).scatter(-1, order, ((ordered.cumsum(-1) - ordered) < 0.6).to(normal.dtype))
    inside = (top * share).sum(-1)
    iou = inside / ((top * valid).sum(-1) + share.sum(-1) - inside).clamp(min=1e-12)
    entropy = -(normal * normal.clamp(min=1e-12).log()).sum(-1) / math.log(normal.shape[-1])
    lift = mass / table.area[:, None, None].clamp(min=1e-12)
    return torch.stack([mass, lift, iou, entropy, keys[..., 0], keys[..., 1:n_prefix].sum(-1)])


def chance(table: Table) -> Tensor:
    """What each companion would be for uniform attention: [companion batch]; NaN for those that have no chance level.

    For iou60 it is that of 60 % of the patches drawn at random, with the expected overlap.
    """
    share, valid = table.share.sum(-1), table.valid.sum(-1)
    iou = 0.6 * share / (0.6 * valid + share - 0.6 * share).clamp(min=1e-12)
    nothing = torch.full_like(share, torch.nan)
    return torch.stack([table.area, torch.ones_like(share), iou, torch.ones_like(share), nothing, nothing])
