"""A register added at test time, which takes over the activations of some neurons from the patches.

After Jiang et al. (2025, arXiv 2506.08010): the register is a token that starts at zero. At every step it receives each
chosen neuron's largest activation over the patches, and the neuron's activations at the patches are set to zero.
Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.vit import BViT


@dataclass(frozen=True)
class Neurons:
    """A list of neurons, each given by its block and its index; it acts at all steps that share the block."""

    block: Tensor  # [rank]
    neuron: Tensor  # [rank]

    def of(self, block: int) -> Tensor:
        """The neurons of one block."""
        return self.neuron[self.block == block]

    @classmethod
    def strongest(cls, score: Tensor, n: int) -> Neurons:
        """The n neurons of the largest score [block neuron]."""
        best = score.flatten().topk(min(n, score.numel())).indices
        return cls(best // score.shape[1], best % score.shape[1])

    @classmethod
    def random(cls, blocks: int, width: int, n: int, seed: int) -> Neurons:
        drawn = torch.randperm(blocks * width, generator=torch.Generator().manual_seed(seed))[:n]
        return cls(drawn // width, drawn % width)


def states(model: BViT, images: Tensor, neurons: Neurons, *, has_register: bool = True) -> Iterator[Tensor]:
    """Yields z_0 .. z_T [batch pos d_model] with a register inserted before the patches.

    Without a register, the neurons are only silenced at the patches.
    """
    first = model.config.n_prefix
    z = model.embed(images.to(model.pos_embed.device))
    if has_register:
        z = torch.cat([z[:, :first], torch.zeros_like(z[:, :1]), z[:, first:]], 1)

    def move(post: Tensor, hook: Any) -> Tensor:
        """Moves the chosen neurons' activations from the patches to the register."""
        chosen = neurons.of(model.trained.block_of(hook.layer())).to(post.device)
        patches = slice(first + has_register, None)
        post = post.clone()
        if has_register:
            post[:, first, chosen] = post[:, patches, chosen].amax(1)
        post[:, patches, chosen] = 0
        return post

    yield z
    for t in range(model.config.n_steps):
        with model.hooks([(f"blocks.{t}.mlp.hook_post", move)]):
            z = model.run_steps(z, t, t + 1)
        yield z


def without_register(model: BViT, z: Tensor) -> Tensor:
    """A state with the register removed, as the classification head expects it."""
    first = model.config.n_prefix
    return torch.cat([z[:, :first], z[:, first + 1 :]], 1)
