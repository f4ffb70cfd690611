"""Ablation of parts of a step: the parts, the activations that replace them, and the random null.

A part is a head, all of attention, the FFN, or a group of neurons. Its activation is replaced by zero, by its mean over
the data (one mean per prefix token, one for all patches), or by its activation on another image. The null changes the
stream by the same length at each token, in a random direction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.data.stream import Batch, Stream, evenly
from models.vit import BViT
from probes.walk import Pass

SITES = ("attn.hook_z", "hook_attn_out", "mlp.hook_post", "hook_mlp_out")
OUTPUT = {  # the hook point at which a site's activation has been written to the stream
    "attn.hook_z": "hook_attn_out",
    "hook_attn_out": "hook_attn_out",
    "mlp.hook_post": "hook_mlp_out",
    "hook_mlp_out": "hook_mlp_out",
}
TOP = (0.01, 0.1, 0.5, 1.0)  # groups of neurons, by rank: the first 1 %, the next 9 %, ...
N_RANKED = 256  # images on which neurons are ranked
N_DONORS = 8  # images whose activations replace those of other images ("resample")

How = Literal["mean", "zero", "resample"]


@dataclass(frozen=True)
class Part:
    """A part of every step: a hook point, and the heads or neurons of that point that belong to it."""

    name: str
    site: str
    units: tuple[tuple[int, ...], ...] | None = None  # heads or neurons [block unit]; None: all

    def replaced(self, value: Tensor, other: Tensor, block: int) -> Tensor:
        """`value` with this part replaced by that of `other`, both [batch pos ...]."""
        if self.units is None:
            return other.expand_as(value)
        units, value = list(self.units[block]), value.clone()
        value[:, :, units] = other.expand_as(value)[:, :, units]
        return value


def parts_of(model: BViT, ranked: Tensor) -> list[Part]:
    """The heads, attention, the FFN, and groups of neurons by rank; `ranked` [block d_mlp], the strongest first."""
    config = model.config
    heads = [Part(f"head {h}", "attn.hook_z", ((h,),) * config.n_blocks) for h in range(config.n_heads)]
    ends = [0, *dict.fromkeys(max(1, round(share * config.d_mlp)) for share in TOP)]
    groups = [
        Part(f"neurons {first + 1} to {last}", "mlp.hook_post", tuple(map(tuple, ranked[:, first:last].tolist())))
        for first, last in itertools.pairwise(ends)
    ]
    return [*heads, Part("attention", "hook_attn_out"), Part("FFN", "hook_mlp_out"), *groups]


# Replacements


@dataclass(frozen=True)
class Substitute:
    """The activations that replace a site's; means and zeros have one donor for all images."""

    values: dict[str, Tensor]  # by site: [step donor pos ...]
    positions: Tensor  # of the donors in the data: [donor]; -1 for means and zeros

    def at(self, site: str, step: int, position: Tensor) -> Tensor:
        """The replacement for the images at these positions: [batch pos ...]; no image is its own donor."""
        n = len(self.positions)
        donor = position % n
        donor = torch.where(self.positions[donor] == position, (donor + 1) % n, donor)
        return self.values[site][step, donor.to(self.values[site].device)]


def substitute(model: BViT, images: Pass, how: How) -> Substitute:
    """The replacement: zeros, means over all images, or the activations of `N_DONORS` images."""
    if how == "resample":
        donors = evenly(len(images), min(N_DONORS, len(images)))
        (batch,) = Stream(torch.utils.data.Subset(images.data, donors), len(donors))
        return Substitute(activations(model, batch.images, torch.clone), torch.as_tensor(donors))
    means = of_tokens(model, images)
    if how == "zero":
        means = {site: torch.zeros_like(mean) for site, mean in means.items()}
    return Substitute({site: mean[:, None] for site, mean in means.items()}, torch.tensor([-1]))


def activations(model: BViT, images: Tensor, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The activation [batch pos ...] of every site at every step, passed through `reduce` in its hook: [step ...]."""
    functions = {f"blocks.*.{site}": reduce for site in SITES}
    with torch.inference_mode():
        _, cache = model.run_with_cache(images.to(model.pos_embed.device), names_filter=functions)
    steps = range(model.config.n_steps)
    return {site: torch.stack([cache[f"blocks.{t}.{site}"] for t in steps]) for site in SITES}


def of_tokens(model: BViT, images: Pass) -> dict[str, Tensor]:
    """Means over images, one per prefix token and one for all patches: [step pos ...] by site."""
    n_prefix, n_tokens = model.config.n_prefix, model.config.n_tokens

    def summed(value: Tensor) -> Tensor:
        return torch.cat([value[:, :n_prefix], value[:, n_prefix:].mean(1, keepdim=True)], 1).double().sum(0)

    def read(batch: Batch) -> dict[str, Any]:
        sums = activations(model, batch.images, summed)
        reading: dict[str, Any] = {"n": ((), len(batch.images))}
        for site, values in sums.items():
            own_dims = [f"{site} {i}" for i in range(values.ndim - 2)]
            reading[site] = ("step", "kind", *own_dims), values
        return reading

    measured = images.over(read)
    kinds = [*range(n_prefix), *[n_prefix] * (n_tokens - n_prefix)]
    mean = {site: torch.from_numpy(measured[site].values / float(measured["n"]))[:, kinds] for site in SITES}
    return {site: values.to(model.pos_embed) for site, values in mean.items()}


def ranked_neurons(model: BViT, images: Pass, mean: Substitute, target: Callable[[Batch], Tensor]) -> Tensor:
    """The neurons of each block, ranked by the first-order change of the loss when the mean replaces them.

    The score is |gradient x (mean - activation)|, summed over tokens, averaged over images and over the block's steps.
    Returns [block d_mlp], the largest change first.
    """
    config, site = model.config, "mlp.hook_post"

    def read(batch: Batch) -> dict[str, Any]:
        activation: dict[int, Tensor] = {}  # by step

        def store(value: Tensor, hook: Any) -> None:
            value.retain_grad()
            activation[hook.layer()] = value

        with torch.enable_grad():
            x = batch.images.to(model.pos_embed.device).requires_grad_()
            logits = model.run_with_hooks(x, fwd_hooks=[(f"blocks.*.{site}", store)])
            torch.nn.functional.cross_entropy(logits, target(batch), reduction="sum").backward()
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            change = [mean.values[site][t, 0] - activation[t] for t in range(config.n_steps)]
            scores = [(activation[t].grad * change[t]).sum(1).abs().sum(0) for t in range(config.n_steps)]
        return {"score": (("step", "neuron"), torch.stack(scores).double())}

    score = images.sample(N_RANKED).over(read)["score"].values
    of_block = np.array([config.block_of(t) for t in range(config.n_steps)])
    total = np.stack([score[of_block == k].sum(0) for k in range(config.n_blocks)])
    return torch.from_numpy(np.argsort(-total, axis=1, kind="stable"))


# Switching off


@dataclass(frozen=True)
class Switch:
    """Hooks for a batch [kind part image]: kind 0 replaces the part, kind 1 is its null, a change of equal length."""

    model: BViT
    parts: list[Part]
    put_in: Substitute
    position: Tensor  # of the images in the data: [image]
    direction: Tensor  # random unit vectors of the null: [image step d_model]

    def hooks(self, step: int) -> list[tuple[str, Callable[..., Tensor]]]:
        """The hooks of one step."""
        change_lengths: dict[int, Tensor] = {}  # by part, the length of its change of the stream: [image pos 1]
        points, block = self.model.blocks[step], self.model.config.block_of(step)
        written = {
            "attn.hook_z": lambda change: torch.einsum("bphd,hdm->bpm", change, points.attn.W_O),
            "mlp.hook_post": lambda change: change @ points.mlp.W_out,
        }

        def hook_at(site: str) -> Callable[..., Tensor]:
            of_site = [(i, part) for i, part in enumerate(self.parts) if part.site == site]
            of_output = [(i, part) for i, part in enumerate(self.parts) if OUTPUT[part.site] == site]

            def replace(value: Tensor, hook: Any) -> Tensor:
                value = value.unflatten(0, (2, len(self.parts), -1)).clone()
                for i, part in of_site:
                    other = self.put_in.at(site, step, self.position)
                    change = part.replaced(value[1, i], other, block) - value[1, i]
                    change_lengths[i] = written.get(site, torch.clone)(change).norm(dim=-1, keepdim=True)
                    value[0, i] = part.replaced(value[0, i], other, block)
                for i, _ in of_output:
                    value[1, i] += change_lengths[i] * self.direction[:, step, None]
                return value.flatten(0, 2)

            return replace

        return [(f"blocks.{step}.{site}", hook_at(site)) for site in SITES]


def directions(position: Tensor, n_steps: int, d_model: int, seed: int) -> Tensor:
    """A random unit vector for every image and step, independent of the image's batch: [image step d_model]."""
    normals = [np.random.default_rng([seed, int(i)]).normal(size=(n_steps, d_model)) for i in position]
    vectors = torch.from_numpy(np.stack(normals)).float()
    return vectors / vectors.norm(dim=-1, keepdim=True)
