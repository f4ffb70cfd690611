"""How far the weights let a head write into what another head's q, k or v reads (Elhage et al., 2021).

One block is one table of heads by heads, for all pairs of steps. With more blocks, or masks of their own for the steps,
there is one for every pair of them. Reads carry the norm's affine and centring, writes LayerScale; what attention does
to queries and keys after their projection (norm, rotation) is left out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import models
from analyses.graph import SLOTS
from models.hooks import Step

N_DRAWS = 200  # of random matrices
TAIL = 0.025


def variables(model: models.BViT, seed: int) -> dict[str, tuple]:
    """The scores and, of random matrices with the same singular values, the mean and the ends of the middle 95 %.

    Each is [slot block head other_block other_head]: head `head` of `block` writes, `other_head` of `other_block` reads
    through q, k or v.
    """
    with torch.no_grad():
        heads = [circuits(model.blocks[t]) for t in steps(model)]
    qk, ov = ([torch.cat([of[i][side] for of in heads]) for side in (0, 1)] for i in (0, 1))
    readers = {"q": qk, "k": [qk[1].mT, qk[0].mT], "v": ov}
    found = {"composition": np.stack([scores(ov, reader) for reader in readers.values()])}
    null = np.stack([of_random(ov, reader, seed) for reader in readers.values()], 1)
    found |= {"composition_chance": null.mean(0)}
    found |= dict(
        zip(("composition_low", "composition_high"), np.quantile(null, [TAIL, 1 - TAIL], axis=0), strict=True)
    )
    shape = len(SLOTS), len(heads), model.config.n_heads, len(heads), model.config.n_heads
    dims = ("slot", "block", "head", "other_block", "other_head")
    return {name: (dims, values.reshape(shape)) for name, values in found.items()}


def steps(model: models.BViT) -> list[int]:
    """One step of every block; all steps where each has a mask of its own."""
    c = model.config
    if any(step.is_masked for step in model.blocks):
        return list(range(c.n_steps))
    return [next(t for t in range(c.n_steps) if c.block_of(t) == block) for block in range(c.n_blocks)]


def circuits(step: Step) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Factors of W_QK and W_OV of every head, a row vector times them: [head d_model d_head], [head d_head d_model]."""
    norm, n_heads = step.shared.block.norm1, step.attn.half.n_heads
    weight = step.weight("qkv").double() * norm.weight.double()
    if norm.is_centred:
        weight = weight - weight.mean(1, keepdim=True)
    q, k, v = weight.unflatten(0, (3, n_heads, -1))
    return (q.mT, k), (v.mT, step.attn.W_O.double())


def scores(writer: list[Tensor], reader: list[Tensor]) -> np.ndarray:
    """|W_1 W_2| / (|W_1| |W_2|), Frobenius norms, of all pairs of low-rank products: [writer reader].

    Orthonormal factors drop out of a norm, so that nothing larger than d_head x d_head is kept for a pair.
    """
    first, last = triangle(writer[0]), triangle(reader[1].mT)
    size = [norms(*circuit) for circuit in (writer, reader)]
    rows = []
    for left, right in zip(first, writer[1], strict=True):
        rows.append(torch.linalg.matrix_norm(left @ right @ reader[0] @ last.mT))
    return (torch.stack(rows) / (size[0][:, None] * size[1]).clamp_min(1e-300)).cpu().numpy()


def of_random(writer: list[Tensor], reader: list[Tensor], seed: int) -> np.ndarray:
    """Scores where a random rotation lies between the two matrices, which keeps their singular values:
    [draw writer reader].

    |S_1 U S_2|^2 is the sum of s_1^2 U^2 s_2^2, U being the corner of a rotation of all d_model axes.
    """
    squares = [singular_values(*circuit).square() for circuit in (writer, reader)]
    energy = [(circuit / circuit.sum(1, keepdim=True).clamp_min(1e-300)).cpu().numpy() for circuit in squares]
    rng, (d_model, d_head) = np.random.default_rng(seed), writer[0].shape[1:]
    corners = (np.linalg.qr(rng.standard_normal((d_model, d_head)))[0][:d_head] for _ in range(N_DRAWS))
    return np.stack([np.sqrt(energy[0] @ np.square(corner) @ energy[1].T) for corner in corners])


def triangle(factor: Tensor) -> Tensor:
    """R of QR: [head d_model d_head] -> [head d_head d_head]."""
    return torch.linalg.qr(factor, mode="r").R


def norms(left: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(triangle(left) @ right)


def singular_values(left: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.svdvals(triangle(left) @ triangle(right.mT).mT)
