"""Composition scores: how strongly one head writes into what another head's q, k or v reads (Elhage et al., 2021).

A single shared block gives one table of heads by heads, valid for all pairs of steps. With several blocks, or with a
mask per step, there is one table for every pair of blocks or steps. Reading matrices include the norm's scale and
centring, writing matrices include LayerScale; a norm or rotation of queries and keys after their projection is ignored.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import models
from analyses.graph import SLOTS
from models.hooks import Step

N_DRAWS = 200  # random matrices of the null
TAIL = 0.025  # probability outside the null's interval, on each side


def variables(model: models.BViT, seed: int) -> dict[str, tuple]:
    """Composition scores and their null: mean and 95 % interval for random matrices of the same singular values.

    Each is [slot block head other_block other_head]: `head` of `block` writes, `other_head` of `other_block` reads
    through q, k or v.
    """
    with torch.no_grad():
        by_block = [circuits(model.blocks[t]) for t in steps(model)]
    qk = [torch.cat(factors) for factors in zip(*(qk for qk, _ in by_block), strict=True)]
    ov = [torch.cat(factors) for factors in zip(*(ov for _, ov in by_block), strict=True)]
    readers = {"q": qk, "k": [qk[1].mT, qk[0].mT], "v": ov}
    null = np.stack([of_random(ov, reader, seed) for reader in readers.values()], 1)
    low, high = np.quantile(null, [TAIL, 1 - TAIL], axis=0)
    values_of = {
        "composition": np.stack([scores(ov, reader) for reader in readers.values()]),
        "composition_chance": null.mean(0),
        "composition_low": low,
        "composition_high": high,
    }
    shape = len(SLOTS), len(by_block), model.config.n_heads, len(by_block), model.config.n_heads
    dims = ("slot", "block", "head", "other_block", "other_head")
    return {name: (dims, values.reshape(shape)) for name, values in values_of.items()}


def steps(model: models.BViT) -> list[int]:
    """The first step of every block; all steps if each has its own mask."""
    config = model.config
    if any(step.is_masked for step in model.blocks):
        return list(range(config.n_steps))
    block_of_step = [config.block_of(t) for t in range(config.n_steps)]
    return [block_of_step.index(block) for block in range(config.n_blocks)]


def circuits(step: Step) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Low-rank factors of W_QK and of W_OV of every head, each as [head d_model d_head] and [head d_head d_model].

    Matrices act on row vectors: x W.
    """
    norm, n_heads = step.shared.block.norm1, step.attn.half.n_heads
    weight = step.weight("qkv").double() * norm.weight.double()
    if norm.is_centred:
        weight = weight - weight.mean(1, keepdim=True)
    q, k, v = weight.unflatten(0, (3, n_heads, -1))
    return (q.mT, k), (v.mT, step.attn.W_O.double())


def scores(writer: list[Tensor], reader: list[Tensor]) -> np.ndarray:
    """|W_1 W_2| / (|W_1| |W_2|) in Frobenius norms, for all pairs of low-rank products: [writer reader].

    Outer factors are replaced by the R of their QR decomposition, because the orthonormal Q does not change the norm;
    so each pair needs only matrices of d_head x d_head.
    """
    first, last = triangle(writer[0]), triangle(reader[1].mT)
    rows = []
    for left, right in zip(first, writer[1], strict=True):
        rows.append(torch.linalg.matrix_norm(left @ right @ reader[0] @ last.mT))
    norm_products = norms(*writer)[:, None] * norms(*reader)
    return (torch.stack(rows) / norm_products.clamp_min(1e-300)).cpu().numpy()


def of_random(writer: list[Tensor], reader: list[Tensor], seed: int) -> np.ndarray:
    """The null's scores, with a random rotation between the two matrices: [draw writer reader].

    The rotation keeps the singular values of both matrices. Then |S_1 U S_2|^2 is the sum of s_1^2 U^2 s_2^2, where U
    is the d_head x d_head corner of a rotation of all d_model axes.
    """
    writer_energy, reader_energy = energy_shares(writer), energy_shares(reader)
    rng, (d_model, d_head) = np.random.default_rng(seed), writer[0].shape[1:]
    corners = (np.linalg.qr(rng.standard_normal((d_model, d_head)))[0][:d_head] for _ in range(N_DRAWS))
    return np.stack([np.sqrt(writer_energy @ np.square(corner) @ reader_energy.T) for corner in corners])


def energy_shares(circuit: list[Tensor]) -> np.ndarray:
    """Squared singular values of each head's product, divided by their sum: [head d_head]."""
    squares = singular_values(*circuit).square()
    return (squares / squares.sum(1, keepdim=True).clamp_min(1e-300)).cpu().numpy()


def triangle(factor: Tensor) -> Tensor:
    """The R of each head's QR decomposition: [head d_model d_head] -> [head d_head d_head]."""
    return torch.linalg.qr(factor, mode="r").R


def norms(left: Tensor, right: Tensor) -> Tensor:
    """Frobenius norms of the products of factors [head d_model d_head] and [head d_head d_model]: [head]."""
    return torch.linalg.matrix_norm(triangle(left) @ right)


def singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of the same products: [head d_head]."""
    return torch.linalg.svdvals(triangle(left) @ triangle(right.mT).mT)
