"""Where states go: back after a perturbation; far beyond the trained steps to a fixed point, round a cycle, or on."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from models.vit import BViT

FORMS = ("state", "direction")  # a state as it is; each of its tokens over its length, which the next norm removes


def form(state: Tensor, name: str) -> Tensor:
    """A state [batch pos d_model] in one of `FORMS`."""
    return state / state.norm(dim=-1, keepdim=True) if name == "direction" else state


def recovery(model: BViT, states: list[Tensor], noise: Tensor, size: float) -> Tensor:
    """A perturbation of each state z_0 .. z_{T-1}, and what is left of it at every later one, in both forms.

    states: z_0 .. z_T, [batch pos d_model] each; noise: [batch step pos d_model], made as long as `size` of each token.
    Returns distances over that at the start [form step state batch], by the step that the perturbed state enters: NaN
    before that state and 1 at it.
    """
    last = len(states) - 1
    left = torch.full((len(FORMS), last, last + 1, len(noise)), torch.nan)
    for t in range(last):
        unit = noise[:, t] / noise[:, t].norm(dim=-1, keepdim=True)
        pushed = states[t] + size * states[t].norm(dim=-1, keepdim=True) * unit
        start = distances(states[t], pushed)
        left[:, t, t] = 1
        for s in range(t, last):
            pushed = model.run_steps(pushed, s, s + 1)
            left[:, t, s + 1] = (distances(states[s + 1], pushed) / start).cpu()
    return left


def distances(one: Tensor, other: Tensor) -> Tensor:
    """How far two states lie apart, in both forms: [form batch]."""
    return torch.stack([(form(one, name) - form(other, name)).flatten(1).norm(dim=1) for name in FORMS])


def noises(index: np.ndarray, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Gaussian numbers for every image by its number in the data: [image step pos d_model]."""
    drawn = [np.random.default_rng([seed, int(i)]).standard_normal(shape, np.float32) for i in index]
    return torch.from_numpy(np.stack(drawn))


def run_on(model: BViT, state: Tensor, first: int, last: int, lags: int) -> dict[str, Tensor]:
    """From the state [batch pos d_model] after `first` steps on to that after `last` of them.

    returned: how far the last state lies from the one `lag` steps before it, in both forms, over its own length [form
    lag batch]; turn: the cosine of the last two updates (1 straight on, -1 back and forth) [batch]; growth: the length
    of the last state over the first's [batch]. NaN or infinite where states overflow.
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
    """The smallest lag at which a state returned as close as `tolerance`: 1 for a fixed point, 0 for none.

    returned: [form lag batch]; gives [form batch].
    """
    is_back = returned <= tolerance
    return torch.where(is_back.any(1), is_back.int().argmax(1) + 1, 0)
