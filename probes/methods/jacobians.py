"""Derivatives of one step: of the CLS row exactly, of the whole state by products alone.

The Jacobian J of a whole state [pos d_model] is too large to hold. J'J is known by its products with vectors (two
backward passes each), and Lanczos turns a few of them into its largest eigenvalue, in fewer products than power
iteration needs, and into v' log(J'J) v of a random v: half the mean over such v is log|det J| (stochastic Lanczos
quadrature, Ubaru, Chen and Saad, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.vit import BViT
from probes.methods.means import Values

NOTHING = 1e-6  # of the operator, below which a rest of float32 products is rounding
FLOOR = 1e-14  # of the largest eigenvalue of J'J, below which float32 products know none


def of_cls(model: BViT, state: Tensor, step: int) -> Tensor:
    """d (CLS row after a step) / d (CLS row of the state that enters it), other tokens held: [batch out in].

    One backward an output. `state` [batch pos d_model] must not come from inference mode.
    """
    with torch.enable_grad():
        cls = state[:, 0].detach().requires_grad_()
        out = model.run_steps(torch.cat([cls[:, None], state[:, 1:].detach()], 1), step, step + 1)[:, 0]
        rows = [torch.autograd.grad(out[:, i].sum(), cls, retain_graph=True)[0] for i in range(out.shape[1])]
    return torch.stack(rows, 1)


def as_large(jacobian: Tensor, drawn: Tensor) -> Tensor:
    """The null: the identity and a random matrix `drawn` as large (Frobenius) as J - 1: [batch out in]."""
    one = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    size = torch.linalg.matrix_norm(jacobian - one) / torch.linalg.matrix_norm(drawn)
    return one + size[..., None, None] * drawn


def spectra(model: BViT, states: Iterable[Tensor], index: np.ndarray, seed: int) -> tuple[Values, Tensor]:
    """Of the CLS row's Jacobian of every step, from the states that enter them, and of a random one as large (`null_`):
    singular values, log|det|, the largest modulus of an eigenvalue, and which share of them lies outside of the unit
    circle. Beside them the eigenvalues, [image step rank part] with their real and imaginary parts.

    `index`: the images' numbers in the data, from which and the seed the random ones are drawn.
    """
    by_step, random_by_step = [], []
    for t, state in enumerate(states):
        jacobian = of_cls(model, state, t).double().cpu()
        drawn = [np.random.default_rng([seed, t, int(i)]).standard_normal(jacobian.shape[1:]) for i in index]
        by_step.append(jacobian)
        random_by_step.append(as_large(jacobian, torch.from_numpy(np.stack(drawn))))
    own, random = torch.stack(by_step), torch.stack(random_by_step)  # [step image out in]
    eigenvalues = torch.linalg.eigvals(own)
    values = spectrum(own, eigenvalues)
    null = spectrum(random, torch.linalg.eigvals(random))
    return (
        values | {f"null_{name}": value for name, value in null.items()},
        torch.view_as_real(eigenvalues).movedim(1, 0),
    )


def spectrum(jacobians: Tensor, eigenvalues: Tensor) -> Values:
    """Numbers of Jacobians [step image out in] and their eigenvalues [step image rank], as `spectra` names them."""
    singular = torch.linalg.svdvals(jacobians)  # [step image rank]
    return {
        "singular": (("step", "rank"), singular.movedim(1, -1)),
        "log_det": (("step",), singular.log().sum(-1)),
        "radius": (("step",), eigenvalues.abs().amax(-1)),
        "expanding": (("step",), (eigenvalues.abs() > 1).double().mean(-1)),
    }


# Of the whole state


class Products:
    """Products with the Jacobian of a step at a state [batch pos d_model], image by image.

    J'u is a backward pass, and linear in u, so that a backward pass through it gives Jv: the step is run once.
    """

    def __init__(self, model: BViT, state: Tensor, step: int):
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
            self.state = state.detach().requires_grad_()
            self.out = model.run_steps(self.state, step, step + 1)
            self.u = torch.zeros_like(self.out, requires_grad=True)
            (self.pulled,) = torch.autograd.grad(self.out, self.state, self.u, create_graph=True)

    def forward(self, v: Tensor) -> Tensor:
        """J v: [batch pos d_model]."""
        return torch.autograd.grad(self.pulled, self.u, v, retain_graph=True)[0]

    def squared(self, v: Tensor) -> Tensor:
        """J'J v: [batch pos d_model]."""
        return torch.autograd.grad(self.out, self.state, self.forward(v), retain_graph=True)[0]


def of_state(model: BViT, state: Tensor, step: int, probes: Tensor, iterations: int) -> dict[str, Tensor]:
    """Of each image, from probes [probe batch pos d_model] of entries +1 and -1.

    norm: the largest singular value [batch]; size: |J - 1|^2 in the Frobenius norm, estimated [batch]; log_det
    [probe batch], each probe's estimate, and half_way, the same after half as many iterations.
    """
    apart, v = probes.shape[:2], probes.flatten(0, 1)
    products = Products(model, state.repeat(len(probes), 1, 1), step)
    size = (products.forward(v) - v).flatten(1).square().sum(1)
    alpha, beta = lanczos(products.squared, v, iterations)
    of_log, largest = quadrature(alpha, beta, v[0].numel())
    half, _ = quadrature(alpha[:, : iterations // 2], beta[:, : iterations // 2], v[0].numel())
    return {
        "norm": largest.view(apart).amax(0).sqrt(),
        "size": size.view(apart).mean(0),
        "log_det": of_log.view(apart) / 2,
        "half_way": half.view(apart) / 2,
    }


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The tridiagonal matrix of a symmetric operator from each start [batch ...], float64, fully reorthogonalised:
    diagonal and the one beside it, [batch iteration] each.
    """
    v = start.flatten(1).double()
    basis = [v / v.norm(dim=1, keepdim=True)]
    alpha, beta = [], []
    for _ in range(iterations):
        w = product(basis[-1].view_as(start).to(start.dtype)).flatten(1).double()
        alpha.append((w * basis[-1]).sum(1))
        known = torch.stack(basis, 1)
        for _ in range(2):  # twice is enough (Kahan)
            w = w - torch.einsum("bkn,bk->bn", known, torch.einsum("bkn,bn->bk", known, w))
        length = w.norm(dim=1)
        is_new = length > NOTHING * torch.stack(alpha).abs().amax(0)  # else the start spans no more directions
        beta.append(length * is_new)
        basis.append(w / length.where(is_new, torch.inf)[:, None])
    return torch.stack(alpha, 1), torch.stack(beta, 1)


def quadrature(alpha: Tensor, beta: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Estimates of tr log A and the largest eigenvalue from Lanczos matrices of A: [batch] each."""
    inner = beta[:, : alpha.shape[1] - 1]
    matrix = alpha.diag_embed() + inner.diag_embed(1) + inner.diag_embed(-1)
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=FLOOR * values.amax(-1, keepdim=True))
    return dimensions * (vectors[:, 0].square() * values.log()).sum(-1), values[:, -1]


def signs(index: np.ndarray, step: int, n: int, shape: tuple[int, int], seed: int) -> Tensor:
    """Probes of entries +1 and -1 for every image by its number in the data: [probe image pos d_model]."""
    drawn = [np.random.default_rng([seed, step, int(i)]).integers(0, 2, (n, *shape)) for i in index]
    return torch.from_numpy(np.stack(drawn, 1)).float() * 2 - 1


def volumes(
    model: BViT, states: Iterable[Tensor], index: np.ndarray, *, probes: int, iterations: int, seed: int
) -> Values:
    """Of the whole state's Jacobian of every step: its largest singular value, the root of the mean square of the
    eigenvalues of J - 1 were it normal (size), log|det|, the square of its standard error over the probes, and what
    half as many iterations give.
    """
    by_step = []
    for t, state in enumerate(states):
        drawn = signs(index, t, probes, tuple(state.shape[1:]), seed).to(state)
        by_step.append(of_state(model, state, t, drawn, iterations))
    stacked = {name: torch.stack([of_step[name] for of_step in by_step]).cpu() for name in by_step[0]}
    log_det, half_way = stacked["log_det"], stacked["half_way"]  # [step probe image]
    values = {
        "norm": stacked["norm"],
        "size": (stacked["size"] / (model.config.n_tokens * model.config.d_model)).sqrt(),
        "log_det": log_det.mean(1),
        "squared_error": log_det.var(1) / probes,
        "half_way": half_way.mean(1),
    }
    return {f"state_{name}": (("step",), value) for name, value in values.items()}
