"""Second moments of activations, streamed: what spectra, ranks and subspaces are made of.

Sums are float64 over float32 products about a fixed point near the mean, so that neither a large mean nor the number of
images costs precision. Memory is one d x d matrix per step and site, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from models.data.stream import Batch, Stream
from models.vit import BViT
from probes.probe import Pass, refuse_nonfinite

# Where rows are taken: `mlp_in` is what fc1 is given, `cls` the CLS state after the step
SITES = {
    "mlp_in": "blocks.*.hook_resid_mid",
    "mlp_post": "blocks.*.mlp.hook_post",
    "mlp_out": "blocks.*.hook_mlp_out",
    "cls": "blocks.*.hook_resid_post",
}


@dataclass
class Moments:
    """Streamed sums of rows x - shift, per step, float64: count [step], total [step d], gram [step d d].

    The shift [step d] is any fixed point near the mean: it keeps a large mean out of the float32 products.
    """

    shift: Tensor
    count: Tensor
    total: Tensor
    gram: Tensor

    @classmethod
    def about(cls, shift: Tensor) -> Moments:
        """Nothing added yet, about a point [step d]."""
        zeros = torch.zeros_like(shift, dtype=torch.float64)
        return cls(shift.float(), zeros[:, 0].clone(), zeros, zeros.new_zeros(*zeros.shape, zeros.shape[-1]))

    def add(self, step: int, rows: Tensor) -> None:
        """One batch of rows [row d]."""
        rows = rows.float() - self.shift[step]
        self.count[step] += len(rows)
        self.total[step] += rows.double().sum(0)
        self.gram[step] += rows.T @ rows

    @property
    def rows(self) -> int:
        return int(self.count[0])

    @property
    def mean(self) -> Tensor:
        """[step d]"""
        return self.shift.double() + self.total / self.count[:, None].clamp(min=1)

    def covariance(self, step: int) -> Tensor:
        """[d d]"""
        offset = self.total[step] / self.count[step]
        return self.gram[step] / self.count[step] - offset.outer(offset)

    def second_moment(self, step: int) -> Tensor:
        """The covariance about zero: [d d]."""
        mean = self.mean[step]
        return self.covariance(step) + mean.outer(mean)


def of_model(model: BViT, images: Pass, tokens: int) -> dict[str, Moments]:
    """One pass: the moments of every site, from `tokens` random tokens of each image (`cls` from the CLS token alone).

    Those of `mlp_pre`, fc1's output, follow from its input's. Raises `InputError` where activations are not finite.
    """
    config, device = model.config, model.pos_embed.device
    widths = dict.fromkeys(SITES, config.d_model) | {"mlp_post": config.d_mlp}
    moments = {site: Moments.about(torch.zeros(config.n_steps, width, device=device)) for site, width in widths.items()}

    def add(batch: Batch) -> None:
        places = sampled_tokens(images.indices(batch.index), tokens, config.n_tokens, images.seed)
        add_batch(model, batch.images.to(device), torch.from_numpy(places).to(device), moments)

    for batch in Stream(Subset(images.data, range(min(4, len(images)))), 4):  # the same first images on every process
        add(batch)
    moments = {site: Moments.about(first.mean) for site, first in moments.items()}
    for batch in images.batches():
        add(batch)
    for site, own in moments.items():
        count, total, gram = images.sum([own.count, own.total, own.gram])
        moments[site] = replace(own, count=count, total=total, gram=gram)
    refuse_nonfinite(sum(each.total.sum(1) + each.gram.sum((1, 2)) for each in moments.values()))
    return moments | {"mlp_pre": through_fc1(model, moments["mlp_in"])}


def sampled_tokens(indices: np.ndarray, tokens: int, n_tokens: int, seed: int) -> np.ndarray:
    """Positions [image token] drawn without replacement, a function of seed and image alone."""
    return np.stack([np.random.default_rng([seed, int(i)]).permutation(n_tokens)[:tokens] for i in indices])


def add_batch(model: BViT, images: Tensor, places: Tensor, moments: dict[str, Moments]) -> None:
    """Adds one batch to the moments; places: [image token] positions."""
    at = torch.arange(len(images), device=images.device)[:, None]

    def sampled(x: Tensor, step: int) -> Tensor:
        return x[at, places].flatten(0, 1)

    def normalised(x: Tensor, step: int) -> Tensor:
        """fc1's input, made from the sampled tokens alone."""
        return model.blocks[step].shared.block.norm2(sampled(x, step)[None], model.blocks[step].ln2)[0]

    def adding(site: str, rows: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, Any], None]:
        return lambda x, hook: moments[site].add(hook.layer(), rows(x, hook.layer()))

    rows = dict.fromkeys(SITES, sampled) | {"mlp_in": normalised, "cls": lambda x, step: x[:, 0]}
    with torch.inference_mode():
        model.run_with_hooks(images, fwd_hooks=[(name, adding(site, rows[site])) for site, name in SITES.items()])


def through_fc1(model: BViT, inputs: Moments) -> Moments:
    """The moments of fc1's output, exactly, from its input's: a linear map of the rows is one of their moments."""
    steps = model.blocks
    weight = torch.stack([step.weight("fc1").detach().double() for step in steps])
    bias = torch.stack([step.mlp.half.fc1.bias.detach().double() for step in steps])
    shift = (weight @ inputs.shift.double()[..., None])[..., 0] + bias
    total = (weight @ inputs.total[..., None])[..., 0]
    return Moments(shift, inputs.count, total, weight @ inputs.gram @ weight.mT)
