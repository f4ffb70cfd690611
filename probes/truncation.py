"""FFN weights at lower ranks: how many dimensions a matrix' inputs and outputs use, and what the model answers when it is cut to fewer.

Three ways to cut: truncated SVD, activation-aware (utilised rank, Garg et al.), and low rank + sparse (GoDec).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from models.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from models.vit import BViT
    from probes.rank import Moments

MATRICES = {"fc1": "mlp_in", "fc2": "mlp_post"}  # a weight matrix and the site of its inputs
METHODS = ("plain", "utilised", "sparse")
SPARSE = 0.05  # share of a matrix's entries that the sparse part of GoDec keeps
GODEC_ROUNDS = 10


def weight_at(model: BViT, step: int, matrix: str) -> Tensor:
    """fc1 or fc2 as this step runs with it, float64 [out in]."""
    block = model.blocks[step]
    if block.mlp.mask_fc1 is not None:
        return block.masked_weights()[f"mlp.{matrix}.weight"].detach().double()
    return getattr(block.core.mlp, matrix).weight.detach().double()


def subspaces(weight: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(energy, basis) of a matrix' inputs and of its outputs (without bias), in falling order; second: [in in] of the inputs."""
    import torch

    values, vectors = (x.flip(-1) for x in torch.linalg.eigh(second))
    outside, singular, _ = torch.linalg.svd(weight @ (vectors * values.clamp(min=0).sqrt()), full_matrices=False)
    return (values.clamp(min=0), vectors), (singular.square(), outside)


def utilised_ranks(model: BViT, moments: dict[str, Moments]) -> dict[str, tuple]:
    """Utilised rank (Garg et al.): the smaller of the 95 % ranks of a matrix' inputs and outputs, per step, and for all of its steps.

    In `utilised_union [matrix block]` every step of a block weighs the same.
    """
    import numpy as np

    from analyses import rank as analysis

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
            per_block[i, k] = rank_of(weight_at(model, steps[0], matrix), together) if len(steps) > 1 else per_step[i, steps[0]]
    return {"utilised_rank": (("matrix", "step"), per_step), "utilised_union": (("matrix", "block"), per_block)}


def why_no_accuracy(model: BViT, data: Any) -> str | None:
    """Why no accuracy can be read, or None."""
    from models.data import describe, match_classes

    if not model.config.n_classes:
        return "the model has no head"
    if model.blocks[0].mlp.mask_fc1 is not None:
        return "the model is pruned, and a truncated matrix under a mask has another rank"
    try:
        match_classes(describe(data).classes, model.config.classes)
    except InputError as error:
        return str(error)
    return None


def ladder(full: int) -> list[int]:
    """1, 2, 4, ... and the full rank."""
    return [2**i for i in range(full.bit_length()) if 2**i < full] + [full]


def plain(weight: Tensor, second: Tensor) -> Callable[[int], Tensor]:
    """Truncated SVD: the nearest matrix of a rank."""
    import torch

    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return lambda rank: weight - (u[:, rank:] * s[rank:]) @ v[rank:]


def utilised(weight: Tensor, second: Tensor) -> Callable[[int], Tensor]:
    """Projections on the subspaces of inputs and outputs that hold one share of their energy, the largest that gives the rank (Garg et al.)."""
    import torch

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


def sparse(weight: Tensor, second: Tensor) -> Callable[[int], Tensor]:
    """Low rank plus the 5 % entries that it fits worst, in turns (GoDec, Zhou & Tao 2011, with one subspace iteration a turn)."""
    import torch

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


def truncated_accuracy(model: BViT, data: Any, moments: dict[str, Moments], n: int, batch_size: int, workers: int) -> dict[str, tuple]:
    """Top-1 with fc1 and fc2 of every block at each rank of the ladder [method rank], NaN at the ranks between.

    Also `accuracy` unharmed, `accuracy_chance` (the best constant answer), `svd_parameters` (numbers stored: two factors, or the
    matrix where that is less, and the sparse entries), and `n_accuracy` images behind them all.
    """
    import numpy as np
    import torch
    from torch.func import functional_call
    from tqdm import tqdm

    from models.data import Stream, describe, match_classes
    from probes.probe import gathered, limited, processes

    config, device = model.config, model.pos_embed.device
    subset = limited(data, n)
    where = torch.tensor(match_classes(describe(subset).classes, config.classes))
    batches = [(batch.images, where[batch.labels]) for batch in Stream(subset, batch_size, workers=workers, shard=processes())]

    def correct(weights: dict[str, Tensor]) -> int:
        with torch.inference_mode():
            logits = (functional_call(model, weights, (images.to(device),)).argmax(-1).cpu() for images, _ in batches)
            return sum(int((answer == labels).sum()) for answer, (_, labels) in zip(logits, batches, strict=True))

    ranks = ladder(min(config.d_model, config.d_mlp))
    jobs = [(method, rank) for method in METHODS for rank in ranks]
    hits = [correct({})]
    bar = tqdm(total=len(jobs), desc="truncated weights", unit=" models", disable=processes()[0] > 0, mininterval=1, dynamic_ncols=True)
    for method in METHODS:
        at = truncations(model, moments, method)
        for rank in ranks:
            hits.append(correct({name: function(rank).float() for name, function in at.items()}))
            bar.update()
    bar.close()
    labels = np.concatenate(gathered([(processes()[0], np.concatenate([labels.numpy() for _, labels in batches] or [np.zeros(0, int)]))]))
    share = np.sum(gathered([(processes()[0], np.array(hits))]), axis=0) / max(len(labels), 1)
    accuracy, parameters = (np.full((len(METHODS), max(config.d_mlp, config.d_model)), np.nan, np.float64) for _ in range(2))
    for (method, rank), value in zip(jobs, share[1:], strict=True):
        accuracy[METHODS.index(method), rank - 1] = value
        parameters[METHODS.index(method), rank - 1] = stored(config, method, rank)
    return {
        "method": (("method",), list(METHODS)),
        "svd_accuracy": (("method", "rank"), accuracy),
        "svd_parameters": (("method", "rank"), parameters),
        "accuracy": ((), share[0]),
        "accuracy_chance": ((), np.bincount(labels).max() / len(labels)),
        "n_accuracy": ((), len(labels)),
    }


def truncations(model: BViT, moments: dict[str, Moments], method: str) -> dict[str, Callable[[int], Tensor]]:
    """A function of the rank for each FFN matrix, by its parameter's name; the inputs of a block are those of all its steps."""
    config, found = model.config, {}
    for matrix, site in MATRICES.items():
        for k, block in enumerate(model.core):
            second = sum(moments[site].second_moment(t) for t in range(config.n_steps) if config.block_of(t) == k)
            weight = getattr(block.mlp, matrix).weight.detach().double()
            found[f"core.{k}.mlp.{matrix}.weight"] = {"plain": plain, "utilised": utilised, "sparse": sparse}[method](weight, second)
    return found


def stored(config: Any, method: str, rank: int) -> int:
    """Numbers that hold both FFN matrices of every block at this rank."""
    size = config.d_model * config.d_mlp
    full = min(rank * (config.d_model + config.d_mlp), size)
    return 2 * config.n_blocks * (min(full + round(SPARSE * size), size) if method == "sparse" else full)
