"""What a forward costs: floating-point operations by formula, two for each multiply-add, block applications counted.

Sharing weights saves parameters, not operations: a bViT costs what the stacked ViT of its width and steps costs. Norms,
softmax, GELU and additions are left out, as torch's own counter does.
"""

from __future__ import annotations

from models.config import ViTConfig


def of_embedding(config: ViTConfig) -> int:
    """Patches into tokens, for one image."""
    return 2 * config.n_patches * 3 * config.patch_size**2 * config.d_model


def of_step(config: ViTConfig) -> int:
    """One application of the block, for one image; its quadratic part is ``4 tokens^2 d_model``."""
    n, d = config.n_tokens, config.d_model
    attention = 2 * n * d * 3 * d + 4 * n**2 * d + 2 * n * d * d
    return attention + 4 * n * d * config.d_mlp


def of_head(config: ViTConfig) -> int:
    """The read-out of one image; a distilled model has two heads."""
    return 2 * config.d_model * config.n_classes * (2 if config.pool == "distilled" else 1)


def of_forward(config: ViTConfig, n_steps: int | None = None) -> int:
    """A forward of one image, of T steps or so many."""
    n_steps = config.n_steps if n_steps is None else n_steps
    return of_embedding(config) + n_steps * of_step(config) + of_head(config)
