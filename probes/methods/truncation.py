"""FFN weights at lower ranks: how many dimensions a matrix' inputs and outputs use, and what the model answers when it
is cut to fewer.

Three ways to cut: truncated SVD, activation-aware (utilised rank, Garg et al.), and low rank + sparse (GoDec).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from analyses import rank as analysis
from models.config import ViTConfig
from models.errors import InputError
from models.vit import BViT
from probes.methods.moments import Moments
from probes.probe import Pass

Weights = dict[str, Tensor]  # parameters by name
Truncation = Callable[[int], Tensor]  # rank -> the matrix at that rank
MATRICES = {"fc1": "mlp_in", "fc2": "mlp_post"}  # a weight matrix and the site of its inputs
CUTS = ("plain", "utilised", "sparse")
SPARSE = 0.05  # share of a matrix's entries that the sparse part of GoDec keeps
GODEC_ROUNDS = 10


def subspaces(weight: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(energy, basis) of a matrix' inputs and of its outputs (without bias), in falling order; second: [in in], of
    inputs.
    """
    values, vectors = (x.flip(-1) for x in torch.linalg.eigh(second))
    outside, singular, _ = torch.linalg.svd(weight @ (vectors * values.clamp(min=0).sqrt()), full_matrices=False)
    return (values.clamp(min=0), vectors), (singular.square(), outside)


def utilised_ranks(model: BViT, moments: dict[str, Moments]) -> dict[str, tuple]:
    """Utilised rank (Garg et al.): the smaller of the 95 % ranks of a matrix' inputs and outputs.

    Per step, and for all steps of a block: in `utilised_union [matrix block]` every step of a block weighs the same.
    """
    config = model.config
    per_step = np.zeros((len(MATRICES), config.n_steps), np.int64)
    per_block = np.zeros((len(MATRICES), config.n_blocks), np.int64)

    def rank_of(weight: Tensor, second: Tensor) -> int:
        return min(int(analysis.energy_rank(energy.cpu().numpy())) for energy, _ in subspaces(weight, second))

    for i, (matrix, site) in enumerate(MATRICES.items()):
        seconds = [moments[site].second_moment(t) for t in range(config.n_steps)]
        per_step[i] = [rank_of(weight_at(model, t, matrix), seconds[t]) for t in range(config.n_steps)]
        for k in range(config.n_blocks):
            steps = [t for t in range(config.n_steps) if config.block_of(t) == k]
            together = sum(seconds[t] / seconds[t].trace().clamp(min=1e-30) for t in steps)
            per_block[i, k] = (
                rank_of(weight_at(model, steps[0], matrix), together) if len(steps) > 1 else per_step[i, steps[0]]
            )
    return {"utilised_rank": (("matrix", "step"), per_step), "utilised_union": (("matrix", "block"), per_block)}


def why_no_accuracy(model: BViT, images: Pass) -> str | None:
    """Why no accuracy can be read, or None."""
    if not model.config.n_classes:
        return "the model has no head"
    if model.blocks[0].is_masked:
        return "the model is pruned, and a truncated matrix under a mask has another rank"
    try:
        images.classes_of(model)
    except InputError as error:
        return str(error)
    return None


def ladder(full: int) -> list[int]:
    """1, 2, 4, ... and the full rank."""
    return [2**i for i in range(full.bit_length()) if 2**i < full] + [full]


def plain(weight: Tensor, second: Tensor) -> Truncation:
    """Truncated SVD: the nearest matrix of a rank."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return lambda rank: weight - (u[:, rank:] * s[rank:]) @ v[rank:]


def utilised(weight: Tensor, second: Tensor) -> Truncation:
    """Projections on the subspaces of inputs and outputs that hold one share of their energy, the largest that gives
    the rank (Garg et al.).
    """
    sides = subspaces(weight, second)
    shares = [energy.cumsum(0) / energy.sum().clamp(min=1e-30) for energy, _ in sides]

    def at(rank: int) -> Tensor:
        share = max(float(s[rank - 1]) for s in shares)
        everything = share >= 1 - 1e-12
        (_, inside), (_, outside) = sides
        k_in, k_out = (len(s) if everything else int(torch.searchsorted(s, share * (1 - 1e-12))) + 1 for s in shares)
        projected = weight - weight @ inside[:, k_in:] @ inside[:, k_in:].T
        return projected - outside[:, k_out:] @ (outside[:, k_out:].T @ projected)

    return at


def sparse(weight: Tensor, second: Tensor) -> Truncation:
    """Low rank plus the 5 % entries that it fits worst, in turns (GoDec, Zhou & Tao 2011, with one subspace iteration
    a turn).
    """
    start = torch.linalg.svd(weight, full_matrices=False)[0]
    n_kept = round(SPARSE * weight.numel())

    def at(rank: int) -> Tensor:
        basis, rest, entries = start[:, :rank], weight, torch.zeros_like(weight)
        for _ in range(GODEC_ROUNDS):
            missed = weight - basis @ (basis.T @ rest)
            largest = missed.abs().flatten().topk(n_kept).indices
            entries = torch.zeros_like(weight)
            entries.view(-1)[largest] = missed.view(-1)[largest]
            rest = weight - entries
            basis = torch.linalg.qr(rest @ (rest.T @ basis))[0]
        return weight - (rest - basis @ (basis.T @ rest))

    return at


def truncated_accuracy(model: BViT, images: Pass, moments: dict[str, Moments]) -> dict[str, tuple]:
    """Top-1 with fc1 and fc2 of every block at each rank of the ladder [cut rank], NaN at the ranks between.

    Also `accuracy` unharmed, `accuracy_chance` (the best constant answer), `svd_parameters` (numbers stored: two
    factors, or the matrix where that is less, and the sparse entries), and `n_accuracy` images behind them all.
    """
    config = model.config
    jobs = [(cut, rank) for cut in CUTS for rank in ladder(min(config.d_model, config.d_mlp))]
    shares, labels = accuracies(model, images, truncated(model, moments, jobs), len(jobs))
    accuracy, parameters = (np.full((len(CUTS), max(config.d_mlp, config.d_model)), np.nan) for _ in range(2))
    for (cut, rank), share in zip(jobs, shares[1:], strict=True):
        accuracy[CUTS.index(cut), rank - 1] = share
        parameters[CUTS.index(cut), rank - 1] = numbers_stored(config, cut, rank)
    return {
        "cut": ("cut", list(CUTS)),
        "svd_accuracy": (("cut", "rank"), accuracy),
        "svd_parameters": (("cut", "rank"), parameters),
        "accuracy": ((), shares[0]),
        "accuracy_chance": ((), np.bincount(labels).max() / len(labels)),
        "n_accuracy": ((), len(labels)),
    }


def accuracies(model: BViT, images: Pass, variants: Iterable[Weights], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 of the model and of each of `n` variants of its weights [1 + variant], and the labels of the images
    [image].
    """
    device, class_of_label = model.pos_embed.device, images.classes_of(model)
    batches = list(images.batches())

    def right(weights: Weights) -> int:
        with torch.inference_mode():
            answers = [
                functional_call(model, weights, (batch.images.to(device),)).argmax(-1).cpu() for batch in batches
            ]
        return sum(int((answer == class_of_label[b.labels]).sum()) for answer, b in zip(answers, batches, strict=True))

    bar = tqdm(variants, desc="truncated weights", total=n, unit=" models", disable=not images.is_main, mininterval=1)
    counts = np.array([right({}), *map(right, bar)])
    labels = [label for part in images.gathered([(images.shard[0], [b.labels for b in batches])]) for label in part]
    labels = torch.cat(labels).numpy()
    return np.sum(images.gathered([(images.shard[0], counts)]), axis=0) / len(labels), labels


def truncated(model: BViT, moments: dict[str, Moments], jobs: Iterable[tuple[str, int]]) -> Iterator[Weights]:
    """Both FFN matrices of every block at each (cut, rank), by parameter name; each cut is prepared once."""
    for cut, ranks in groupby(jobs, key=lambda job: job[0]):
        at = truncations(model, moments, cut)
        for _, rank in ranks:
            yield {name: at_rank(rank).float() for name, at_rank in at.items()}


def truncations(model: BViT, moments: dict[str, Moments], cut: str) -> dict[str, Truncation]:
    """A function of the rank for each FFN matrix, by parameter name; a block's inputs are those of all its steps."""
    config, functions = model.config, {"plain": plain, "utilised": utilised, "sparse": sparse}
    by_name = {}
    for matrix, site in MATRICES.items():
        for k in range(config.n_blocks):
            steps = [t for t in range(config.n_steps) if config.block_of(t) == k]
            second = sum(moments[site].second_moment(t) for t in steps)
            by_name[f"core.{k}.mlp.{matrix}.weight"] = functions[cut](weight_at(model, steps[0], matrix), second)
    return by_name


def weight_at(model: BViT, step: int, matrix: str) -> Tensor:
    """fc1 or fc2 as this step runs with it, float64 [out in]."""
    return model.blocks[step].weight(matrix).detach().double()


def numbers_stored(config: ViTConfig, cut: str, rank: int) -> int:
    """Numbers that hold both FFN matrices of every block at this rank."""
    size = config.d_model * config.d_mlp
    full = min(rank * (config.d_model + config.d_mlp), size)
    return 2 * config.n_blocks * (min(full + round(SPARSE * size), size) if cut == "sparse" else full)
