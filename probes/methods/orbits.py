"""Long-run behaviour of states: recovery from perturbations; fixed points or cycles far beyond the trained steps."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from models.vit import BViT

FORMS = ("state", "direction")  # the state itself; its tokens at unit length (the next norm removes lengths)


def form(state: Tensor, name: str) -> Tensor:
    """A state [batch pos d_model] in one of the `FORMS`."""
    return state / state.norm(dim=-1, keepdim=True) if name == "direction" else state


def recovery(model: BViT, states: list[Tensor], noise: Tensor, size: float) -> Tensor:
    """Perturbs each state z_0 .. z_{T-1} and measures how much of the perturbation remains at every later state.

    states: z_0 .. z_T, [batch pos d_model] each; noise: [batch step pos d_model], scaled at each token to `size` times
    the token's length. Returns the distance to the unperturbed state, relative to the initial one, in both forms: [form
    step state batch]. `step` is the step that the perturbed state enters; values are NaN before that state and 1 at it.
    """
    n_steps = len(states) - 1
    remaining = torch.full((len(FORMS), n_steps, n_steps + 1, len(noise)), torch.nan)
    for t in range(n_steps):
        unit = noise[:, t] / noise[:, t].norm(dim=-1, keepdim=True)
        perturbed = states[t] + size * states[t].norm(dim=-1, keepdim=True) * unit
        initial = distances(states[t], perturbed)
        remaining[:, t, t] = 1
        for s in range(t, n_steps):
            perturbed = model.run_steps(perturbed, s, s + 1)
            remaining[:, t, s + 1] = (distances(states[s + 1], perturbed) / initial).cpu()
    return remaining


def distances(one: Tensor, other: Tensor) -> Tensor:
    """The distance between two states, in both forms: [form batch]."""
    return torch.stack([(form(one, name) - form(other, name)).flatten(1).norm(dim=1) for name in FORMS])


def noises(index: np.ndarray, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Gaussian noise for every image, seeded by its index in the data: [image step pos d_model]."""
    noise = [np.random.default_rng([seed, int(i)]).standard_normal(shape, np.float32) for i in index]
    return torch.from_numpy(np.stack(noise))


def run_on(model: BViT, state: Tensor, first: int, last: int, lags: int) -> dict[str, Tensor]:
    """Runs the model from the state [batch pos d_model] after `first` steps to the state after `last` steps.

    returned: distance of the last state to the state `lag` steps earlier, relative to the last state's length, in both
    forms [form lag batch]; turn: cosine of the last two updates (1 for a straight line, -1 for back and forth) [batch];
    growth: length of the last state divided by that of the first [batch]. NaN or infinite where states overflow.
    """
    start, recent = state, deque([state], maxlen=lags + 1)
    for k in range(first, last):
        state = model.run_steps(state, k, k + 1)
        recent.append(state)
    length = torch.stack([form(state, name).flatten(1).norm(dim=1) for name in FORMS])
    returned = [distances(state, recent[-1 - lag]) / length for lag in range(1, lags + 1)]
    updates = (recent[-1] - recent[-2]).flatten(1), (recent[-2] - recent[-3]).flatten(1)
    return {
        "returned": torch.stack(returned, 1),
        "turn": torch.nn.functional.cosine_similarity(*updates, dim=1),
        "growth": state.flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1),
    }


def periods(returned: Tensor, tolerance: float) -> Tensor:
    """The smallest lag at which a state returns to within `tolerance`: 1 for a fixed point, 0 if there is none.

    returned: [form lag batch]. Returns [form batch].
    """
    is_back = returned <= tolerance
    return torch.where(is_back.any(1), is_back.int().argmax(1) + 1, 0)
