"""A register at test time: an added token that takes what some neurons would write into patches.

After Jiang et al. (2025, arXiv 2506.08010): at every step, of the neurons chosen, the largest activation over the
patches is put on a token that starts as zero, and their activations on the patches are set to zero. Nothing is trained.
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
    """Neurons of blocks: a neuron of a shared block is one at all steps of that block. block, neuron: [rank]."""

    block: Tensor
    neuron: Tensor

    def of(self, block: int) -> Tensor:
        """Those of one block."""
        return self.neuron[self.block == block]

    @classmethod
    def strongest(cls, score: Tensor, n: int) -> Neurons:
        """Those of the largest score [block neuron]."""
        best = score.flatten().topk(min(n, score.numel())).indices
        return cls(best // score.shape[1], best % score.shape[1])

    @classmethod
    def random(cls, blocks: int, width: int, n: int, seed: int) -> Neurons:
        drawn = torch.randperm(blocks * width, generator=torch.Generator().manual_seed(seed))[:n]
        return cls(drawn // width, drawn % width)


def states(model: BViT, images: Tensor, neurons: Neurons, *, has_register: bool = True) -> Iterator[Tensor]:
    """z_0 .. z_T [batch pos d_model] with a register as the last token before the patches, or with the neurons' patches
    silenced alone.
    """
    first = model.config.n_prefix
    z = model.embed(images.to(model.pos_embed.device))
    if has_register:
        z = torch.cat([z[:, :first], torch.zeros_like(z[:, :1]), z[:, first:]], 1)

    def move(post: Tensor, hook: Any) -> Tensor:
        mine, post = neurons.of(model.trained.block_of(hook.layer())).to(post.device), post.clone()
        patches = slice(first + has_register, None)
        if has_register:
            post[:, first, mine] = post[:, patches, mine].amax(1)
        post[:, patches, mine] = 0
        return post

    yield z
    for t in range(model.config.n_steps):
        with model.hooks([(f"blocks.{t}.mlp.hook_post", move)]):
            z = model.run_steps(z, t, t + 1)
        yield z


def without_register(model: BViT, z: Tensor) -> Tensor:
    """A state as the head reads it."""
    first = model.config.n_prefix
    return torch.cat([z[:, :first], z[:, first + 1 :]], 1)
