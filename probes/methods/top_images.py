"""Which images activate each neuron most, at every step, from one pass of which nothing grows with the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.errors import InputError
from models.vit import BViT
from probes.probe import Pass, refuse_nonfinite

N_SAMPLED = 256  # images behind medians, spread evenly


@dataclass(frozen=True)
class TopImages:
    """What images activate every neuron, and how much. Ties are in order of position."""

    n: int  # images read
    n_sampled: int  # images behind the median
    mean: np.ndarray  # [step unit] float64
    top: np.ndarray  # [step unit place] positions of the images with the highest activations
    value: np.ndarray  # [step unit place] those activations
    median: np.ndarray  # [step unit]


def observe(model: BViT, images: Pass, n_top: int) -> TopImages:
    """One pass over the data, for the activation of every neuron (mean over patches) at every step."""
    stride = max(1, len(images) // N_SAMPLED)
    n, total, best, sample = 0, 0, None, []
    for batch in images.batches():
        values = mean_activations(model, batch.images.to(model.pos_embed.device))
        n, total = n + len(values), total + values.double().sum(0)
        best = merged(best, values, torch.as_tensor(batch.index, device=values.device), n_top)
        every = zip(batch.index.tolist(), values.cpu().numpy(), strict=True)
        sample += [(i, value) for i, value in every if i % stride == 0]
    own = (n, None if best is None else [total.cpu().numpy(), *(part.cpu().numpy() for part in best)])
    parts = images.gathered([(images.shard[0], own)])
    n = sum(count for count, _ in parts)
    if not n:
        raise InputError(f"{images.about.spec}: no image could be read")
    totals, values, tops = zip(*(part for _, part in parts if part is not None), strict=True)
    refuse_nonfinite(torch.from_numpy(sum(totals).sum(1)))
    values, tops = np.concatenate(values, -1), np.concatenate(tops, -1)
    order = np.lexsort((tops, -values))[..., :n_top]
    value, top = np.take_along_axis(values, order, -1), np.take_along_axis(tops, order, -1)
    sampled = images.gathered(sample)
    median = np.median(np.stack(sampled), 0) if sampled else np.full(value.shape[:2], np.nan, np.float32)
    return TopImages(n, len(sampled), sum(totals) / n, top, value, median)


def mean_activations(model: BViT, images: Tensor) -> Tensor:
    """Mean over the patches of every neuron after GELU at every step: [batch step unit]."""
    config = model.config
    reduce = {"blocks.*.mlp.hook_post": lambda post: post[:, config.n_prefix :].mean(1)}
    with torch.inference_mode():
        _, cache = model.run_with_cache(images, names_filter=reduce, stop_at_step=config.n_steps)
        return torch.stack([cache[f"blocks.{t}.mlp.hook_post"] for t in range(config.n_steps)], 1)


def merged(best: tuple[Tensor, Tensor] | None, values: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values so far and their images, [step unit place] each, after a batch of values [batch step unit].

    Batches come in ascending order of `index`, and the sort is stable, so that the lower index wins a tie.
    """
    candidates = values.permute(1, 2, 0)
    index = index.expand_as(candidates)
    if best is not None:
        candidates, index = torch.cat([best[0], candidates], -1), torch.cat([best[1], index], -1)
    ordered, order = candidates.sort(dim=-1, descending=True, stable=True)
    return ordered[..., :k].clone(), index.gather(-1, order[..., :k])
